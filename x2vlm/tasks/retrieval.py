"""Zero-shot image-text retrieval: a contrastive shortlist, re-ranked by the matching head (X2-VLM 4.3.1).

Example: for the photo 000000000285 ("a big burly bear ...") all captions are ranked by cosine, the best `shortlist` of
them are scored again by matching, and the photo counts at R@1 if one of its own five captions comes first.

Candidates that are not on the shortlist come after it, as in the reference, which scores them -100.
I images, T captions, U distinct captions, Q queries, K candidates on a shortlist, X tokens of all captions, L text
tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.models.blocks.fusion_plan import TextTable
from x2vlm.models.tokens import VisionTokens
from x2vlm.tasks.classification import encode_media
from x2vlm.tasks.config import RetrievalConfig
from x2vlm.tasks.from_samples import retrieval_examples
from x2vlm.tasks.reranking import rerank, shortlists
from x2vlm.tasks.scoring import bootstrap_interval, recall_at, shortlist_ranks
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.models.x2vlm import X2VLM


@torch.no_grad()
def evaluate_retrieval(model: TaskModel, cfg: RetrievalConfig, ctx: TaskContext) -> TaskResult:
    """Recall of text retrieval (tr_*) and image retrieval (ir_*) over all examples of `ctx`.

    Raises InvalidSample for an empty split.
    """
    check_examples(ctx.examples, "retrieval")
    examples, base = ctx.examples, model.base
    texts = [text for example in examples for text in example.texts]
    image_of_T = [index for index, example in enumerate(examples) for _ in example.texts]
    texts_of_I: list[list[int]] = [[] for _ in examples]
    for text, image in enumerate(image_of_T):
        texts_of_I[image].append(text)

    model.eval()
    images, image_feature_IE = _encode_images(model, ctx)
    table, text_feature_UE, distinct_of_T = _encode_texts(base, ctx, texts)
    every_image = np.arange(len(examples))
    texts_of = shortlists(image_feature_IE, text_feature_UE, distinct_of_T, cfg.shortlist)
    images_of_U = shortlists(text_feature_UE, image_feature_IE, every_image, cfg.shortlist)
    of_images = np.broadcast_to(every_image[:, None], texts_of.shape), distinct_of_T[texts_of]
    of_texts = images_of_U, np.broadcast_to(np.arange(len(images_of_U))[:, None], images_of_U.shape)
    tr_scores_IK, ir_scores_UK = rerank(base, images, table, of_images, of_texts, ctx.batch_size)
    images_of, ir_scores_TK = images_of_U[distinct_of_T], ir_scores_UK[distinct_of_T]

    tr_ranks = shortlist_ranks(texts_of, tr_scores_IK, len(texts), texts_of_I)
    ir_ranks = shortlist_ranks(images_of, ir_scores_TK, len(examples), [[image] for image in image_of_T])
    metrics = {f"tr_r{k}": recall_at(tr_ranks, k) for k in cfg.recalls}
    metrics |= {f"ir_r{k}": recall_at(ir_ranks, k) for k in cfg.recalls}
    metrics["mean_recall"] = sum(metrics.values()) / len(metrics)
    caption_ids = [
        f"{examples[image].example_id}#{text - texts_of_I[image][0]}" for text, image in enumerate(image_of_T)
    ]
    intervals = {
        "tr_r1": bootstrap_interval((tr_ranks < 1) * 100.0),
        "ir_r1": bootstrap_interval((ir_ranks < 1) * 100.0),
    }
    predictions = pa.concat_tables(
        [
            _predictions("text", [e.example_id for e in examples], caption_ids, texts_of, tr_scores_IK, tr_ranks),
            _predictions("image", caption_ids, [e.example_id for e in examples], images_of, ir_scores_TK, ir_ranks),
        ]
    )
    digest = data_digest([f"{caption_ids[i]}={text}" for i, text in enumerate(texts)])
    return TaskResult(metrics, predictions, digest, intervals, num_examples=len(examples) + len(texts))


def _batches(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _encode_images(model: TaskModel, ctx: TaskContext) -> tuple[VisionTokens, Tensor]:
    """Tokens of all images (kept, since matching reads them again) and their features (I, E)."""
    kept: VisionTokens | None = None
    features = []
    for rows in _batches(len(ctx.examples), ctx.batch_size):
        vision = encode_media(model, _pixels(ctx.examples[rows], ctx).to(ctx.device))
        if kept is None:  # allocated once: joining the batches at the end would hold every token twice
            kept = VisionTokens(
                vision.summary_BD.new_empty(len(ctx.examples), *vision.summary_BD.shape[1:]),
                vision.patches_MPD.new_empty(len(ctx.examples), *vision.patches_MPD.shape[1:]),
            )
        kept.summary_BD[rows], kept.patches_MPD[rows] = vision.summary_BD, vision.patches_MPD
        features.append(model.base.project_vision(vision))
    assert kept is not None
    return kept, torch.cat(features)


def _pixels(examples: Sequence[Example], ctx: TaskContext) -> Tensor:
    """(B, C, H, W) of images or (B, F, C, H, W) of clips."""
    visuals = [ctx.load(example.media[0]) for example in examples]
    is_clip = examples[0].kind == "video"
    return ctx.processor.clips(visuals) if is_clip else ctx.processor.images([v.frames[0] for v in visuals])


def _encode_texts(model: X2VLM, ctx: TaskContext, texts: list[str]) -> tuple[TextTable, Tensor, NDArray[np.int64]]:
    """States of the real tokens of the distinct captions, their features (U, E), and the distinct one of each caption.

    Captions of equal tokens are encoded and scored once: their scores are then equal, not only up to rounding.
    """
    all_ids_TL, all_mask_TL = ctx.processor.texts(texts)
    _, first, distinct_of_T = np.unique(all_ids_TL.numpy(), axis=0, return_index=True, return_inverse=True)
    ids_TL, mask_TL = all_ids_TL[first], all_mask_TL[first]
    lengths = mask_TL.sum(dim=1).numpy()
    starts = np.cumsum(lengths) - lengths
    states_XD: Tensor | None = None
    features = []
    for rows in _batches(len(lengths), ctx.batch_size):
        longest = int(lengths[rows].max())
        mask_BL = mask_TL[rows, :longest].to(ctx.device)
        states_BLD = model.encode_text(ids_TL[rows, :longest].to(ctx.device), mask_BL)
        if states_XD is None:
            states_XD = states_BLD.new_empty(int(lengths.sum()), states_BLD.shape[-1])
        states_XD[int(starts[rows.start]) :][: int(lengths[rows].sum())] = states_BLD[mask_BL]
        features.append(model.project_text(states_BLD))
    assert states_XD is not None
    return TextTable(states_XD, starts, lengths, lengths), torch.cat(features), distinct_of_T.ravel()


def _predictions(
    retrieved: str,
    queries: list[str],
    candidates: list[str],
    shortlist_QK: NDArray[np.int64],
    scores_QK: NDArray[np.float64],
    ranks: NDArray[np.int64],
) -> pa.Table:
    top = np.lexsort((shortlist_QK, -scores_QK), axis=1)[:, 0]
    rows = np.arange(len(queries))
    return pa.table(
        {
            "example_id": queries,
            "retrieved": [retrieved] * len(queries),
            "top_candidate": [candidates[index] for index in shortlist_QK[rows, top]],
            "top_score": scores_QK[rows, top],
            "rank_of_right": ranks,
        }
    )


RETRIEVAL = Task(evaluate=evaluate_retrieval, from_samples=retrieval_examples)
