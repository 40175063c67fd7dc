"""What an answer costs the decoder, and the best of a list of answers (X2-VLM 4.3.2).

Answers are never written freely. The probability of their first token picks the most likely `shortlist` answers of the
list; those are scored as a whole. An answer is [CLS] token ... token [SEP], padded.
B questions, A answers, K answers on the shortlist, N answers of the list, L tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from x2vlm.models.downstream.config import AnswerScore
from x2vlm.models.downstream.decoder import AnswerDecoder, KeysValues
from x2vlm.models.fusion import VisionMemory

LOGIT_BYTES = 256 * 2**20  # most bytes of vocabulary logits at once
ANSWERS_AT_ONCE = 32  # of a question; of similar lengths, so that little is padded
_NO_TOKEN = -100


@dataclass(frozen=True)
class AnswerTable:
    """The list of answers as tokens: ids and mask (N, L), each with its start and end token."""

    ids_NL: Tensor
    mask_NL: Tensor

    def to(self, device: torch.device) -> "AnswerTable":
        """The table on `device`."""
        return AnswerTable(self.ids_NL.to(device), self.mask_NL.to(device))


@dataclass(frozen=True)
class RankedAnswers:
    """For each question the probability of every first token (B, V), its shortlist (B, K) and that one's probabilities.

    The shortlist is in order of the first tokens' probabilities, equal ones in the order of the list. `probs_BK` are
    those of whole answers, and sum to 1 over the shortlist.
    """

    first_token_probs_BV: Tensor
    answers_BK: Tensor
    probs_BK: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Number and probability (B,) of the best answer; of equally probable ones the first on the shortlist."""
        order_BK = self.probs_BK.sort(dim=1, descending=True, stable=True).indices[:, :1]
        return self.answers_BK.gather(1, order_BK)[:, 0], self.probs_BK.gather(1, order_BK)[:, 0]


def answer_losses(decoder: AnswerDecoder, ids_AL: Tensor, mask_AL: Tensor, memory: VisionMemory) -> Tensor:
    """(A,) float32: the negative log likelihood of each answer, summed over its tokens; teacher forcing.

    `memory` has one row per answer.
    """
    states_ALD = decoder(ids_AL[:, :-1], mask_AL[:, :-1], memory)
    logits_ALV = decoder.predict(states_ALD).float()
    targets_AL = ids_AL[:, 1:].masked_fill(~mask_AL[:, 1:].bool(), _NO_TOKEN)
    losses_AL = cross_entropy(logits_ALV.transpose(1, 2), targets_AL, ignore_index=_NO_TOKEN, reduction="none")
    return losses_AL.sum(dim=1)


def weighted_answer_loss(losses_A: Tensor, weights_A: Tensor, num_questions: int) -> Tensor:
    """The loss of a batch: the sum of weight x negative log likelihood over its answers, divided by its questions."""
    return (weights_A * losses_A).sum() / num_questions


@torch.no_grad()
def rank_answers(
    decoder: AnswerDecoder,
    memory: VisionMemory,
    table: AnswerTable,
    shortlist: int,
    score: AnswerScore = "released",
) -> RankedAnswers:
    """The `shortlist` most likely answers (all, if the list is shorter) of every question in `memory`."""
    first, past = _first_tokens(decoder, memory, table)
    of_list_BN = first[:, table.ids_NL[:, 1]]
    order_BN = of_list_BN.sort(dim=1, descending=True, stable=True).indices
    answers_BK = order_BN[:, : min(shortlist, order_BN.shape[1])]
    scores_BK = _scores(decoder, memory, table, answers_BK, (first, past), score)
    return RankedAnswers(first.exp(), answers_BK, scores_BK.softmax(dim=1))


@torch.no_grad()
def score_answers(
    decoder: AnswerDecoder,
    memory: VisionMemory,
    table: AnswerTable,
    answers_BK: Tensor,
    score: AnswerScore = "released",
) -> Tensor:
    """Scores (B, K) of the given answers of the list, whose softmax are the probabilities of `rank_answers`."""
    return _scores(decoder, memory, table, answers_BK, _first_tokens(decoder, memory, table), score)


def _first_tokens(decoder: AnswerDecoder, memory: VisionMemory, table: AnswerTable) -> tuple[Tensor, list[KeysValues]]:
    """Log probabilities (B, V) of the token after the start token, and the start token's keys and values."""
    num_questions = memory.layers[0][0].summary_BH1E.shape[0]
    start_B1 = table.ids_NL[:1, :1].expand(num_questions, 1)
    states_B1D, past = decoder.extend(start_B1, torch.ones_like(start_B1), None, memory)
    return decoder.predict(states_B1D[:, 0]).float().log_softmax(dim=-1), past


def _scores(
    decoder: AnswerDecoder,
    memory: VisionMemory,
    table: AnswerTable,
    answers_BK: Tensor,
    start: tuple[Tensor, list[KeysValues]],
    score: AnswerScore,
) -> Tensor:
    first_BV, past = start
    lengths_BK = table.mask_NL.sum(dim=1)[answers_BK]
    first_BK = first_BV.gather(1, table.ids_NL[:, 1][answers_BK])
    scores_BK = first_BK * (2 if score == "released" else 1)
    by_length_BK = lengths_BK.argsort(dim=1, stable=True)
    for columns in _chunks(answers_BK.shape, table, first_BV.shape[1]):
        chosen = by_length_BK[:, columns]
        longest = int(lengths_BK.gather(1, chosen).max())
        if longest > 2:  # [CLS] token [SEP] and more
            rows_R = answers_BK.gather(1, chosen).flatten()
            rest_R = _rest(decoder, memory, table.ids_NL[rows_R, :longest], table.mask_NL[rows_R, :longest], past)
            scores_BK = scores_BK.scatter_add(1, chosen, rest_R.view(chosen.shape))
    return scores_BK


def _chunks(shape: torch.Size, table: AnswerTable, vocab_size: int) -> Iterator[slice]:
    """Columns of the shortlist that are scored together."""
    num_questions, num_answers = shape
    bytes_each = 4 * num_questions * vocab_size * max(1, table.ids_NL.shape[1] - 2)
    size = max(1, min(ANSWERS_AT_ONCE, LOGIT_BYTES // bytes_each))
    return (slice(start, start + size) for start in range(0, num_answers, size))


def _rest(
    decoder: AnswerDecoder, memory: VisionMemory, ids_RL: Tensor, mask_RL: Tensor, past: list[KeysValues]
) -> Tensor:
    """(R,): the log probabilities of all tokens from the second on, summed; rows of a question are adjacent."""
    each = len(ids_RL) // len(past[0][0])
    started = [(keys.repeat_interleave(each, dim=0), values.repeat_interleave(each, dim=0)) for keys, values in past]
    states_RND, _ = decoder.extend(ids_RL[:, 1:-1], mask_RL[:, 1:-1], started, memory)
    is_real = mask_RL[:, 2:].bool()
    losses = cross_entropy(decoder.predict(states_RND[is_real]).float(), ids_RL[:, 2:][is_real], reduction="none")
    return torch.zeros(is_real.shape, device=losses.device).masked_scatter(is_real, -losses).sum(dim=1)
