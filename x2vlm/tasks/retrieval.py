"""Image-text and video-text retrieval: a contrastive shortlist, re-ranked by matching (X2-VLM 4.3.1, 4.4, 4.5).

Example: for the photo 000000000285 ("a big burly bear ...") all captions are ranked by cosine, the best `shortlist` of
them are scored again by matching, and the photo counts at R@1 if one of its own five captions comes first.

Candidates that are not on the shortlist come after it, as in the reference, which scores them -100. Every image is
encoded once; each language is a retrieval of its own among the images that have captions in it. Examples of one `group`
show the same: the captions of each are right answers for the images of all.
I images, T captions, U distinct captions, Q queries, K candidates on a shortlist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError
from x2vlm.tasks.config import RetrievalConfig
from x2vlm.tasks.from_samples import retrieval_examples
from x2vlm.tasks.matching.encoded import EncodedImages, Numbers, encode_images, encode_texts
from x2vlm.tasks.matching.learning import RETRIEVAL_TRAINING, shown_by
from x2vlm.tasks.matching.reranking import rerank, shortlists
from x2vlm.tasks.scoring import bootstrap_interval, mean_rank, median_rank, recall_at, shortlist_ranks
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:
    from x2vlm.models.downstream.task_model import TaskModel


def check_retrieval(examples: Sequence[Example], labels: Sequence[str], options: RetrievalConfig) -> None:
    """ConfigError if an example is not one image or clip with captions, or images and clips are mixed."""
    for example in examples:
        if len(example.media) != 1 or not example.texts:
            raise ConfigError(
                f"example {example.example_id}: {len(example.media)} media and {len(example.texts)} captions; "
                "retrieval takes one image or clip with its captions"
            )
        if example.kind != examples[0].kind:
            raise ConfigError(
                f"example {example.example_id}: a {example.kind} among {examples[0].kind}s; evaluate them apart"
            )


@torch.no_grad()
def evaluate_retrieval(model: TaskModel, cfg: RetrievalConfig, ctx: TaskContext) -> TaskResult:
    """Recall and ranks of text retrieval (tr_*) and image or video retrieval (ir_*).

    `mean_recall` is the mean of all recalls. With several languages the metrics of each are called `de/tr_r1`, and
    `mean_recall` is the mean over languages. Raises InvalidSample for an empty split, ConfigError as `check_retrieval`.
    """
    check_examples(ctx.examples, "retrieval")
    check_retrieval(ctx.examples, (), cfg)
    model.eval()
    media = list(dict.fromkeys(example.media[0] for example in ctx.examples))
    images = encode_images(model, ctx, media, cfg.spool_above_bytes)
    languages = list(dict.fromkeys(example.language for example in ctx.examples))
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    predictions, ids, means = [], [], []
    for language in languages:
        questions = questions_of([e for e in ctx.examples if e.language == language], media)
        answers = _answer(model, cfg, ctx, images, questions)
        prefix = f"{language}/" if len(languages) > 1 else ""
        found = _metrics(cfg, answers)
        means.append(found["mean_recall"])
        metrics |= {prefix + name: value for name, value in found.items()}
        for direction, each in answers.items():
            intervals[f"{prefix}{direction}_r1"] = bootstrap_interval((each.ranks < 1) * 100.0)
        predictions += [_predictions(language, questions, direction, each) for direction, each in answers.items()]
        ids += [f"{name}={text}" for name, text in zip(questions.caption_ids, questions.texts, strict=True)]
    metrics["mean_recall"] = sum(means) / len(means)
    table = pa.concat_tables(predictions)
    return TaskResult(
        metrics=metrics,
        predictions=table,
        data_digest=data_digest(ids),
        intervals=intervals,
        num_examples=table.num_rows,
        measured_as={"ties": cfg.ties, "shortlist": str(cfg.shortlist)},
    )


@dataclass(frozen=True)
class Questions:
    """One language: its images, as numbers among all media, its captions, and the right answers of each."""

    images: Numbers
    image_ids: list[str]
    texts: list[str]
    caption_ids: list[str]
    texts_of_I: list[list[int]]
    images_of_T: list[list[int]]


def questions_of(examples: Sequence[Example], media: Sequence[str]) -> Questions:
    """The images of `examples`, each once, in the order of their first example, and all captions."""
    names = list(dict.fromkeys(example.media[0] for example in examples))
    number_of = {name: number for number, name in enumerate(names)}
    place_of = {name: place for place, name in enumerate(media)}
    image_ids = dict.fromkeys(names, "")
    texts: list[str] = []
    caption_ids: list[str] = []
    shown: list[str] = []  # by each caption
    images_of: dict[str, set[int]] = {}
    texts_of: dict[str, list[int]] = {}
    for example in examples:
        name, key = example.media[0], shown_by(example)
        image_ids[name] = image_ids[name] or example.example_id
        images_of.setdefault(key, set()).add(number_of[name])
        for turn, text in enumerate(example.texts):
            texts_of.setdefault(key, []).append(len(texts))
            texts.append(text)
            caption_ids.append(f"{example.example_id}#{turn}")
            shown.append(key)
    texts_of_I: list[set[int]] = [set() for _ in names]
    for key, numbers in images_of.items():
        for number in numbers:
            texts_of_I[number].update(texts_of[key])
    return Questions(
        images=np.array([place_of[name] for name in names], dtype=np.int64),
        image_ids=list(image_ids.values()),
        texts=texts,
        caption_ids=caption_ids,
        texts_of_I=[sorted(numbers) for numbers in texts_of_I],
        images_of_T=[sorted(images_of[key]) for key in shown],
    )


@dataclass(frozen=True)
class Answers:
    """One direction: the shortlist of every query, its scores, and the rank of the best right candidate."""

    shortlist_QK: Numbers
    scores_QK: NDArray[np.float64]
    ranks: Numbers


def _answer(
    model: TaskModel, cfg: RetrievalConfig, ctx: TaskContext, images: EncodedImages, questions: Questions
) -> dict[str, Answers]:
    texts = encode_texts(model, ctx, questions.texts, cfg.spool_above_bytes)
    feature_IE = images.features_IE[torch.from_numpy(questions.images).to(images.features_IE.device)]
    every_image, every_text = np.arange(len(questions.images)), np.arange(len(texts.features_UE))
    texts_of = shortlists(feature_IE, texts.features_UE, texts.distinct_of_T, cfg.shortlist, ctx.ranks)
    images_of_U = shortlists(texts.features_UE, feature_IE, every_image, cfg.shortlist, ctx.ranks)
    of_images = np.broadcast_to(questions.images[:, None], texts_of.shape), texts.distinct_of_T[texts_of]
    of_texts = questions.images[images_of_U], np.broadcast_to(every_text[:, None], images_of_U.shape)
    scores_IK, scores_UK = rerank(model.base, images, texts.table, (of_images, of_texts), ctx.batch_size, ctx.ranks)
    images_of, scores_TK = images_of_U[texts.distinct_of_T], scores_UK[texts.distinct_of_T]
    num_texts, num_images = len(questions.texts), len(questions.images)
    tr_ranks = shortlist_ranks(texts_of, scores_IK, num_texts, questions.texts_of_I, cfg.ties)
    ir_ranks = shortlist_ranks(images_of, scores_TK, num_images, questions.images_of_T, cfg.ties)
    return {"tr": Answers(texts_of, scores_IK, tr_ranks), "ir": Answers(images_of, scores_TK, ir_ranks)}


def _metrics(cfg: RetrievalConfig, answers: dict[str, Answers]) -> dict[str, float]:
    found: dict[str, float] = {}
    for direction, each in answers.items():
        found |= {f"{direction}_r{k}": recall_at(each.ranks, k) for k in cfg.recalls}
    found["mean_recall"] = sum(found.values()) / len(found)
    for direction, each in answers.items():
        found[f"{direction}_mean_recall"] = sum(recall_at(each.ranks, k) for k in cfg.recalls) / len(cfg.recalls)
        found[f"{direction}_median_rank"] = median_rank(each.ranks)
        found[f"{direction}_mean_rank"] = mean_rank(each.ranks)
    return found


def _predictions(language: str, questions: Questions, direction: str, answers: Answers) -> pa.Table:
    queries, candidates = questions.image_ids, questions.caption_ids
    if direction == "ir":
        queries, candidates = candidates, queries
    top = np.lexsort((answers.shortlist_QK, -answers.scores_QK), axis=1)[:, 0]
    rows = np.arange(len(queries))
    return pa.table(
        {
            "example_id": queries,
            "retrieved": ["text" if direction == "tr" else "image"] * len(queries),
            "language": [language] * len(queries),
            "top_candidate": [candidates[index] for index in answers.shortlist_QK[rows, top]],
            "top_score": answers.scores_QK[rows, top],
            "rank_of_right": answers.ranks,
        }
    )


RETRIEVAL = Task(
    evaluate=evaluate_retrieval,
    training=RETRIEVAL_TRAINING,
    check=check_retrieval,
    from_samples=retrieval_examples,
)
