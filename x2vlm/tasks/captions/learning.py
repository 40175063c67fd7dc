"""How captions are learned: rows of masked words read from left to right, or captions sampled and rewarded.

B rows, L tokens, K masked positions, R = B x S sampled texts of S samples an image, T tokens of them.
The caption of a row is not cleaned, only cut into word pieces, as released: the model writes punctuation as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.data.loading.masking import MaskedText, mask_text
from x2vlm.data.randomness import Draws
from x2vlm.data.task_examples import Example
from x2vlm.errors import InvalidSample
from x2vlm.models.generate import GenerateConfig, generate, sample
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.captioning import left_to_right, self_critical, smoothed_words, text_log_probs, word_logits
from x2vlm.tasks.captions.scores import CiderD, plain_tokens
from x2vlm.tasks.classification import encode_media
from x2vlm.tasks.config import CaptioningConfig
from x2vlm.tasks.task import LossContext
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.rows import PreparedRow, RowPreparation, join_pixels

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.downstream.task_model import TaskModel

END_WORD = "<eos>"  # a word of its own in rewards: without it captions that break off would be the best


@dataclass(frozen=True)
class CausalText:
    """A text to learn: its tokens, the place of each in the text, which are inserted [MASK]s, and what is predicted."""

    ids: list[int]
    offsets: list[int]
    inserted: list[bool]
    masked_positions: list[int]
    labels: list[int]


def in_place(masked: MaskedText) -> CausalText:
    """The tokens of `masked` as they are: a [MASK] takes the place of the token."""
    length = len(masked.ids)
    return CausalText(masked.ids, list(range(length)), [False] * length, masked.positions, masked.labels)


def inserted(ids: Sequence[int], masked_positions: Sequence[int], mask_id: int) -> CausalText:
    """All of `ids`, and a [MASK] with the same place before each of those at `masked_positions`."""
    wanted, masks = set(masked_positions), []
    tokens: list[tuple[int, int, bool]] = []  # id, place, whether it is an inserted [MASK]
    for place, token in enumerate(ids):
        if place in wanted:
            masks.append(len(tokens))
            tokens.append((mask_id, place, True))
        tokens.append((token, place, False))
    numbers, offsets, flags = (list(column) for column in zip(*tokens, strict=True))
    return CausalText(numbers, offsets, flags, masks, [ids[place] for place in sorted(wanted)])


def caption_rows(examples: Sequence[Example], options: CaptioningConfig) -> list[tuple[int, int]]:
    """A row per caption, as released also for self-critical training, which uses all captions of the image in each."""
    return [(index, number) for index, example in enumerate(examples) for number in range(len(example.texts))]


def prepare_caption(
    example: Example, item: int, media: Sequence[Visual], preparation: RowPreparation, options: CaptioningConfig
) -> PreparedRow:
    """The image of a row and its caption; a seed for what is masked is among its values.

    Not mirrored if one of its texts speaks of a side. InvalidSample("empty_caption") for a text of blanks.
    """
    texts = example.texts if options.mode == "scst" else (example.texts[item],)
    if not all(text.strip() for text in texts):
        raise InvalidSample("empty_caption", f"example {example.example_id}: a caption has no word")
    pixels, operations = preparation.all_media(media, texts)
    seed = preparation.draws.integer(0, 2**31 - 1)
    return PreparedRow(example.example_id, pixels, operations, texts, values={"masking": [seed]})


def collate_captions(rows: Sequence[PreparedRow], processor: Processor, options: CaptioningConfig) -> TaskBatch:
    """Tensors of `CausalText` by their names, padded, with `mask` on real tokens and `counts` on used slots."""
    keys, pixels = [row.key for row in rows], join_pixels(rows)
    if options.mode == "scst":
        return TaskBatch(keys, {"pixels": pixels}, {"references": [json.dumps(row.texts) for row in rows]})
    texts = [_causal_text(row, processor, options) for row in rows]
    tensors = {
        "ids": _padded([text.ids for text in texts], processor.tokenizer.pad_id),
        "mask": _padded([[1] * len(text.ids) for text in texts], 0).bool(),
        "offsets": _padded([text.offsets for text in texts], 0),
        "inserted": _padded([[int(flag) for flag in text.inserted] for text in texts], 0).bool(),
        "masked_positions": _padded([text.masked_positions for text in texts], 0),
        "labels": _padded([text.labels for text in texts], 0),
        "counts": _padded([[1] * len(text.labels) for text in texts], 0),
    }
    # On the host: reading it from the ids would wait for the device in every step.
    return TaskBatch(keys, tensors | {"pixels": pixels}, {"start_id": [str(processor.tokenizer.cls_id)] * len(rows)})


def caption_losses(
    model: TaskModel, batch: TaskBatch, options: CaptioningConfig, context: LossContext
) -> dict[str, Tensor]:
    """`words`, or `self_critical`."""
    if options.mode == "scst":
        return {"self_critical": _self_critical(model, batch, options, context)}
    vision, tensors = encode_media(model, batch.pixels()), batch.tensors
    logits_BKV = word_logits(
        model.base,
        vision,
        tensors["ids"],
        left_to_right(tensors["inserted"]),
        tensors["offsets"],
        tensors["masked_positions"],
    )
    start_id = int(batch.notes["start_id"][0])
    return {
        "words": smoothed_words(logits_BKV, tensors["labels"], tensors["counts"], start_id, options.label_smoothing)
    }


class CaptionReward:
    """CIDEr-D with the document frequencies of the training captions, and the tokens of the model it rewards."""

    def __init__(self, examples: Sequence[Example], processor: Processor, options: CaptioningConfig) -> None:
        self.processor = processor
        self.prompt_ids = processor.prompt(options.prompt)
        captions = [[words_of(text) for text in example.texts] for example in examples if example.texts]
        self._cider = CiderD(captions)

    def of(self, tokens: Sequence[int], has_ended: bool, references: Sequence[str]) -> float:
        """The reward of a written text against the captions of its image: 10 at best."""
        words = plain_tokens(self.processor.decode(tokens)) + [END_WORD] * has_ended
        return self._cider.score(words, [words_of(text) for text in references])


def reward_of_training(
    examples: Sequence[Example], processor: Processor, options: CaptioningConfig
) -> CaptionReward | None:
    """What self-critical training needs of all examples; None for the other modes."""
    return CaptionReward(examples, processor, options) if options.mode == "scst" else None


def words_of(text: str) -> list[str]:
    """The words of a whole caption, with its end."""
    return [*plain_tokens(text), END_WORD]


def _causal_text(row: PreparedRow, processor: Processor, options: CaptioningConfig) -> CausalText:
    tokenizer, prompt = processor.tokenizer, options.prompt.strip()
    num_prompt = len(processor.prompt(prompt)) - 1
    # A caption that is too long has no end token then, as released: it does not end there.
    whole = tokenizer.encode(f"{prompt} {row.texts[0]}".strip().lower(), len(row.texts[0]) + num_prompt + 2)
    ids = whole[: processor.config.max_tokens]
    draws = Draws(int(row.values["masking"][0]), "masking")
    masked = mask_text(ids, tokenizer, draws, options.masking, num_source_tokens=num_prompt, mask_last=True)
    return in_place(masked) if options.mode == "causal" else inserted(ids, masked.positions, tokenizer.mask_id)


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long)


def _self_critical(model: TaskModel, batch: TaskBatch, options: CaptioningConfig, context: LossContext) -> Tensor:
    """Without dropout and dropped paths: the captions must have been drawn from what is trained."""
    reward, is_training = context.prepared, model.training
    if not isinstance(reward, CaptionReward):
        raise ValueError("self-critical training takes `prepared=TaskTraining.before(...)` of the training examples")
    model.eval()
    try:
        vision = encode_media(model, batch.pixels())
        return self_critical_loss(model, vision, batch, options, reward, context.generator)
    finally:
        model.train(is_training)


def self_critical_loss(
    model: TaskModel,
    vision: VisionTokens,
    batch: TaskBatch,
    options: CaptioningConfig,
    reward: CaptionReward,
    generator: torch.Generator,
) -> Tensor:
    """Samples captions of every image and compares their rewards with that of the greedy one (arXiv 1612.00563)."""
    special, count = reward.processor.tokenizer, options.scst_samples
    start = (reward.prompt_ids, special.mask_id, special.sep_id)
    longest = options.scst_max_tokens
    greedy = generate(model.base, vision, *start, GenerateConfig(max_tokens=longest, no_repeat=0))
    drawn = sample(model.base, vision, *start, longest, count, generator)
    references = [json.loads(texts) for texts in batch.notes["references"]]
    baseline = [
        reward.of(text.tokens, len(text.tokens) < longest, own) for text, own in zip(greedy, references, strict=True)
    ]
    advantages = []
    for row, (tokens, written) in enumerate(zip(drawn.tokens_RT.tolist(), drawn.written_RT.tolist(), strict=True)):
        text = tokens[: sum(written)]
        has_ended = text[-1] == special.sep_id
        own = references[row // count]
        advantages.append(reward.of(text[:-1] if has_ended else text, has_ended, own) - baseline[row // count])
    rows_R = torch.arange(vision.num_rows, device=drawn.tokens_RT.device).repeat_interleave(count)
    log_probs_RT = text_log_probs(
        model.base, vision.select(rows_R), reward.prompt_ids, drawn.tokens_RT, special.mask_id
    )
    return self_critical(log_probs_RT, drawn.written_RT, torch.tensor(advantages, device=log_probs_RT.device))
