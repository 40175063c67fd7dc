"""Zero-shot image-text retrieval: a contrastive shortlist, re-ranked by the matching head (X2-VLM 4.3.1).

Example: for the photo 000000000285 ("a big burly bear ...") all captions are ranked by cosine, the best `shortlist` of
them are scored again by matching, and the photo counts at R@1 if one of its own five captions comes first.

I images, T captions, N image tokens, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from x2vlm.errors import InvalidSample
from x2vlm.models.tokens import VisionTokens
from x2vlm.tasks.config import RetrievalConfig
from x2vlm.tasks.scoring import best_ranks, bootstrap_interval, recall_at
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.x2vlm import X2VLM

NOT_SHORTLISTED = -100.0  # as in the reference: below every matching logit that occurs


@torch.no_grad()
def evaluate_retrieval(model: X2VLM, cfg: RetrievalConfig, ctx: TaskContext) -> TaskResult:
    """Recall of text retrieval (tr_*) and image retrieval (ir_*) over all captioned samples of `ctx`.

    Raises InvalidSample if there is no captioned sample.
    """
    samples = [sample for sample in ctx.samples if sample.captions]
    if not samples:
        raise InvalidSample("empty_split", "retrieval needs held-out samples with captions; there are none")
    texts = [caption.text for sample in samples for caption in sample.captions]
    image_of_T = [index for index, sample in enumerate(samples) for _ in sample.captions]
    texts_of_I: list[list[int]] = [[] for _ in samples]
    for text, image in enumerate(image_of_T):
        texts_of_I[image].append(text)

    model.eval()
    patches, image_feature_IE = _encode_images(model, ctx, samples)
    mask_TL, states_TLD, text_feature_TE = _encode_texts(model, ctx, texts)
    cosine_IT = (image_feature_IE @ text_feature_TE.T).float()
    tr_scores_IT = _rerank(model, ctx, patches, states_TLD, mask_TL, cosine_IT, cfg.shortlist)
    ir_scores_TI = _rerank(model, ctx, patches, states_TLD, mask_TL, cosine_IT.T, cfg.shortlist, by_text=True)

    tr_ranks = best_ranks(tr_scores_IT, texts_of_I)
    ir_ranks = best_ranks(ir_scores_TI, [[image] for image in image_of_T])
    metrics = {f"tr_r{k}": recall_at(tr_ranks, k) for k in cfg.recalls}
    metrics |= {f"ir_r{k}": recall_at(ir_ranks, k) for k in cfg.recalls}
    metrics["mean_recall"] = sum(metrics.values()) / len(metrics)
    caption_ids = [f"{samples[image].key}#{text - texts_of_I[image][0]}" for text, image in enumerate(image_of_T)]
    intervals = {
        "tr_r1": bootstrap_interval((tr_ranks < 1) * 100.0),
        "ir_r1": bootstrap_interval((ir_ranks < 1) * 100.0),
    }
    predictions = pa.concat_tables(
        [
            _predictions("text", [s.key for s in samples], caption_ids, tr_scores_IT, tr_ranks),
            _predictions("image", caption_ids, [s.key for s in samples], ir_scores_TI, ir_ranks),
        ]
    )
    digest = data_digest([f"{caption_ids[i]}={text}" for i, text in enumerate(texts)])
    return TaskResult(metrics, predictions, digest, intervals, num_examples=len(samples) + len(texts))


def _batches(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _encode_images(model: X2VLM, ctx: TaskContext, samples: list) -> tuple[VisionTokens, Tensor]:  # type: ignore[type-arg]
    """Tokens of all images (kept, since matching reads them again) and their features (I, E)."""
    summaries, patches, features = [], [], []
    for rows in _batches(len(samples), ctx.batch_size):
        pixels = ctx.processor.images([ctx.load_image(sample) for sample in samples[rows]])
        vision = model.encode_image(pixels.to(ctx.device))
        summaries.append(vision.summary_BD)
        patches.append(vision.patches_MPD)
        features.append(model.project_vision(vision))
    return VisionTokens(torch.cat(summaries), torch.cat(patches)), torch.cat(features)


def _encode_texts(model: X2VLM, ctx: TaskContext, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Mask (T, L), states (T, L, D) and features (T, E) of all captions."""
    ids_TL, mask_TL = (tensor.to(ctx.device) for tensor in ctx.processor.texts(texts))
    states = [model.encode_text(ids_TL[rows], mask_TL[rows]) for rows in _batches(len(texts), ctx.batch_size)]
    states_TLD = torch.cat(states)
    return mask_TL, states_TLD, model.project_text(states_TLD)


def _rerank(
    model: X2VLM,
    ctx: TaskContext,
    vision: VisionTokens,
    states_TLD: Tensor,
    mask_TL: Tensor,
    cosine_QC: Tensor,
    shortlist: int,
    by_text: bool = False,
) -> NDArray[np.float64]:
    """Matching logits of each query's `shortlist` best candidates by cosine, NOT_SHORTLISTED elsewhere."""
    num_queries, num_candidates = cosine_QC.shape
    # A stable sort on the negative: equal cosines keep their order, whatever the device does.
    best_QK = torch.argsort(-cosine_QC, dim=1, stable=True)[:, : min(shortlist, num_candidates)].cpu()
    scores_QC = np.full((num_queries, num_candidates), NOT_SHORTLISTED)
    pairs = [(query, int(candidate)) for query in range(num_queries) for candidate in best_QK[query]]
    for rows in _batches(len(pairs), ctx.batch_size):
        query, candidate = (torch.tensor(side, device=ctx.device) for side in zip(*pairs[rows], strict=True))
        image, text = (candidate, query) if by_text else (query, candidate)
        fused = model.fuse(states_TLD[text], mask_TL[text], vision.select(image))
        scores_QC[query.cpu().numpy(), candidate.cpu().numpy()] = model.match(fused)[:, 1].double().cpu().numpy()
    return scores_QC


def _predictions(
    retrieved: str, queries: list[str], candidates: list[str], scores_QC: NDArray[np.float64], ranks: NDArray[np.int64]
) -> pa.Table:
    top = np.argmax(scores_QC, axis=1)
    return pa.table(
        {
            "retrieved": [retrieved] * len(queries),
            "query": queries,
            "top_candidate": [candidates[index] for index in top],
            "top_score": scores_QC[np.arange(len(queries)), top],
            "rank_of_right": ranks,
        }
    )


RETRIEVAL = Task(evaluate=evaluate_retrieval)
