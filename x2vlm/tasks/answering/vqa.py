"""Question answering by a decoder that ranks a list of answers: VQAv2, xGQA, own data (X2-VLM 4.3.2).

Example: to a photo and "What position is this man playing?" the decoder gives each first token a probability; of the
3,129 listed answers the 128 whose first token is likeliest are scored token by token, and "pitcher" is the best.

B questions, A answers of all questions of a batch, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.task_heads import start_decoder
from x2vlm.models.downstream.answers import AnswerTable, answer_losses, rank_answers, weighted_answer_loss
from x2vlm.models.downstream.config import DecoderConfig
from x2vlm.models.downstream.decoder import AnswerDecoder
from x2vlm.models.fusion import VisionMemory
from x2vlm.tasks.answering.checks import check_known, check_labels, check_questions
from x2vlm.tasks.answering.results import Answered, chosen_metric, has_answers, score_with, scored, unscored
from x2vlm.tasks.answering.rows import answered_rows, prepare_answered
from x2vlm.tasks.classification import encode_media, evaluation_pixels
from x2vlm.tasks.config import VqaConfig
from x2vlm.tasks.scoring.answers import vqa_submission
from x2vlm.tasks.sharing import map_batches
from x2vlm.tasks.task import LossContext, Task, TaskContext, TaskResult, TaskTraining
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.rows import PreparedRow, join_pixels, join_texts

if TYPE_CHECKING:
    from x2vlm.data.text.tokenizer import TextTokenizer
    from x2vlm.inference.processor import Processor
    from x2vlm.models.downstream.task_model import TaskModel

ANSWER_LIST = "the list of answers"
SUBMISSION = "vqa_results.json"


def check_vqa(examples: Sequence[Example], labels: Sequence[str], options: VqaConfig) -> None:
    """ConfigError without a list of answers, or for an example that is not one image or clip with one question."""
    check_labels(labels, ANSWER_LIST)
    check_questions(examples, num_media=1)
    check_known(examples, labels, ANSWER_LIST)


def answer_table(answers: Sequence[str], tokenizer: TextTokenizer, max_tokens: int) -> AnswerTable:
    """Answers as tokens (N, L), padded to the longest; not cleaned as questions are ("t-shirt" keeps its hyphen)."""
    rows = [tokenizer.encode(answer, max_tokens) for answer in answers]
    length = max(map(len, rows))
    ids = [row + [tokenizer.pad_id] * (length - len(row)) for row in rows]
    mask = [[True] * len(row) + [False] * (length - len(row)) for row in rows]
    return AnswerTable(torch.tensor(ids), torch.tensor(mask))


@torch.no_grad()
def evaluate_vqa(model: TaskModel, options: VqaConfig, ctx: TaskContext) -> TaskResult:
    """Accuracy by `options.metric`; for a split without answers the file that its server takes.

    Raises InvalidSample for an empty split, ConfigError as `check_vqa`, and for a model without a decoder.
    """
    check_examples(ctx.examples, "vqa")
    check_vqa(ctx.examples, ctx.labels, options)
    decoder = _decoder(model)
    metric = chosen_metric(ctx.examples, options.metric) if has_answers(ctx.examples) else None
    model.eval()
    max_tokens = min(ctx.processor.config.max_tokens, decoder.num_positions)
    table = answer_table(ctx.labels, ctx.processor.tokenizer, max_tokens).to(ctx.device)

    def answer(examples: Sequence[Example]) -> list[list[float]]:
        pixels = evaluation_pixels(examples, 0, ctx).to(ctx.device)
        ids_BL, mask_BL = (tensor.to(ctx.device) for tensor in ctx.processor.texts([e.texts[0] for e in examples]))
        memory = _question_memory(model, decoder, pixels, ids_BL, mask_BL)
        best_B, probs_B = rank_answers(decoder, memory, table, options.shortlist, options.answer_score).best()
        return [[float(number), float(value)] for number, value in zip(best_B, probs_B, strict=True)]

    chosen = map_batches(ctx.examples, ctx.batch_size, ctx.ranks, answer)
    answers = [ctx.labels[int(number)] for number, _ in chosen]
    answered = Answered(ctx.examples, answers, [value for _, value in chosen])
    shortlist = str(min(options.shortlist, len(ctx.labels)))
    measured_as = {"answer_score": options.answer_score, "shortlist": shortlist, "answers": str(len(ctx.labels))}
    if metric is None:
        ids = [example.example_id for example in ctx.examples]
        return unscored(answered, {SUBMISSION: vqa_submission(ids, answers)}, measured_as)
    measured_as |= {"metric": metric} | ({"vqa_variant": options.vqa_variant} if metric == "vqa" else {})
    return scored(answered, score_with(metric, options.vqa_variant), measured_as)


def _decoder(model: TaskModel) -> AnswerDecoder:
    if not isinstance(model.head, AnswerDecoder):
        raise ConfigError("this model has no decoder of answers: fine-tune it for the task `vqa` first")
    return model.head


def _question_memory(
    model: TaskModel, decoder: AnswerDecoder, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor
) -> VisionMemory:
    states_BLD = model.base.encode_text(ids_BL, mask_BL)
    return decoder.question_memory(model.base.fuse(states_BLD, mask_BL, encode_media(model, pixels)), mask_BL)


def _collate(rows: Sequence[PreparedRow], processor: Processor, options: VqaConfig) -> TaskBatch:
    ids_BL, mask_BL = join_texts(rows, processor)
    weighted = [json.loads(row.notes["answers"]) for row in rows]
    answers = [answer for of_row in weighted for answer in of_row]
    table = answer_table(answers, processor.tokenizer, processor.config.max_tokens)
    counts = [len(of_row) for of_row in weighted]
    tensors = {
        "ids": ids_BL,
        "mask": mask_BL,
        "pixels": join_pixels(rows),
        "answer_ids": table.ids_NL,
        "answer_mask": table.mask_NL,
        "answer_weights": torch.tensor([weight for of_row in weighted for weight in of_row.values()]),
        "row_of_answer": torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
    }
    return TaskBatch([row.key for row in rows], tensors, {"num_answers": [str(count) for count in counts]})


def _chunks(batch: TaskBatch, number: int) -> list[TaskBatch]:
    """The rows in `number` nearly equal parts, each with the answers to its own questions."""
    ends = [0, *accumulate(int(count) for count in batch.notes["num_answers"])]
    bounds = [batch.num_rows * part // number for part in range(number + 1)]
    of_answers = ("answer_ids", "answer_mask", "answer_weights", "row_of_answer")
    parts = []
    for first, last in pairwise(bounds):
        if first == last:
            continue
        tensors = {
            name: tensor[ends[first] : ends[last]] if name in of_answers else tensor[first:last]
            for name, tensor in batch.tensors.items()
        }
        tensors["row_of_answer"] = tensors["row_of_answer"] - first
        notes = {name: values[first:last] for name, values in batch.notes.items()}
        parts.append(replace(batch, keys=batch.keys[first:last], tensors=tensors, notes=notes))
    return parts


def _losses(model: TaskModel, batch: TaskBatch, options: VqaConfig, context: LossContext) -> dict[str, Tensor]:
    decoder, tensors = _decoder(model), batch.tensors
    memory = _question_memory(model, decoder, batch.pixels(), tensors["ids"], tensors["mask"])
    losses_A = answer_losses(
        decoder, tensors["answer_ids"], tensors["answer_mask"], memory.select(tensors["row_of_answer"])
    )
    return {"answers": weighted_answer_loss(losses_A, tensors["answer_weights"], batch.num_rows)}


def _start(model: TaskModel) -> None:
    start_decoder(model)


VQA = Task(
    evaluate=evaluate_vqa,
    training=TaskTraining(
        rows=answered_rows,
        prepare=prepare_answered,
        collate=_collate,
        losses=_losses,
        head=lambda num_labels, options: DecoderConfig(num_layers=options.decoder_layers),
        start_head=_start,
        chunks=_chunks,
    ),
    check=check_vqa,
)
