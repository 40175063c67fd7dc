"""The matching head on the shortlists of a retrieval: each pair once, the keys and values of each image once.

I images, T captions, X tokens of all captions together, Q queries, C candidates, K of them on a shortlist, P patches,
L text tokens, D width, E width of the comparison space. "Keys" stands for keys and values of all fusion layers.
A pair may be on the shortlist of its image, of its caption, or on both; it is scored once. Pairs are taken image after
image, so that keys are projected once per image and dropped after its last pair. Memory besides the encoded images
(I x P x D) and captions (X x D) is bounded: keys take KEY_BYTES at most, and twice as much is copied for the pairs of
a batch in one layer only. Several processes share the images out, those of a batch of encoding together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from x2vlm.errors import InvalidSample
from x2vlm.models.blocks.fusion_plan import TextTable
from x2vlm.models.blocks.packing import HostToDeviceBatch
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.towers import padded_texts
from x2vlm.tasks.matching.encoded import EncodedImages, Numbers
from x2vlm.tasks.sharing import batches_of, sum_over_ranks
from x2vlm.train.ranks import Ranks

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.x2vlm import X2VLM

# Keys held at once: 18 images of the base model at 224 pixels in float32. At least those of one image.
KEY_BYTES = 128 * 2**20
# Cosines held at once, as rows of queries: 1 million of 4 bytes, and a count of 8 for each.
COSINES_AT_ONCE = 1 << 20


def shortlists(
    query_QE: Tensor, candidate_UE: Tensor, feature_of_C: Numbers, size: int, ranks: Ranks | None = None
) -> Numbers:
    """(Q, K) the numbers of the `size` most similar candidates of every query, best first; ties by number.

    Candidate c has the feature `feature_of_C[c]`: equal candidates share one, so that their cosines are equal too and
    not only up to rounding. A few queries at a time: the table of all cosines would take 0.5 GB for COCO 5K,
    and sorting it 1 GB more. InvalidSample ("nan_score") for features that are not finite.
    """
    size = min(size, len(feature_of_C))
    best_QK = torch.zeros(len(query_QE), size, dtype=torch.long)
    ranks = ranks or Ranks()
    feature_of = HostToDeviceBatch.to_device(feature_of_C, query_QE.device)
    runs = batches_of(len(query_QE), max(1, COSINES_AT_ONCE // len(feature_of_C)))
    for rows in runs[ranks.rank :: ranks.world_size]:
        some = slice(rows.start, rows.stop)
        best_QK[some] = _largest((query_QE[some] @ candidate_UE.T).float()[:, feature_of], size).cpu()
    found: Numbers = sum_over_ranks(best_QK, ranks).numpy()
    return found


def _largest(cosine_QC: Tensor, size: int) -> Tensor:
    """(Q, K) the positions of the `size` largest of every row, in order; ties by position, whatever the device does."""
    if not bool(cosine_QC.isfinite().all()):
        raise InvalidSample("nan_score", "features hold NaN: the model or its input is broken")
    least_Q1 = cosine_QC.topk(size, dim=1).values[:, -1:]
    above_QC, equal_QC = cosine_QC > least_Q1, cosine_QC == least_Q1
    missing_Q1 = size - above_QC.sum(dim=1, keepdim=True)
    chosen_QC = above_QC | (equal_QC & (equal_QC.cumsum(dim=1) <= missing_Q1))
    positions_QK = chosen_QC.nonzero()[:, 1].view(-1, size)
    order_QK = torch.argsort(-cosine_QC.gather(1, positions_QK), dim=1, stable=True)
    return positions_QK.gather(1, order_QK)


def rerank(
    model: X2VLM,
    images: EncodedImages,
    texts: TextTable,
    pair_sets: Sequence[tuple[Numbers, Numbers]],
    batch_size: int,
    ranks: Ranks,
) -> list[NDArray[np.float64]]:
    """Matching logits, in their shapes, of sets of pairs (number of an image, number of a text); on all processes.

    `batch_size` pairs run through the fusion layers at a time.
    """
    num_texts = len(texts.starts)
    # A pair is the number image x texts + text: one integer that sorts by image.
    sets = [image * num_texts + text for image, text in pair_sets]
    pairs = np.unique(np.concatenate([numbers.ravel() for numbers in sets]))
    logits = torch.zeros(len(pairs), dtype=torch.float64)
    image_of_pair = pairs // num_texts
    at_once = _images_at_once(model, images.tokens)
    for batch in images.batches:
        first, last = np.searchsorted(image_of_pair, [batch.start, batch.stop])
        for start, stop in _pieces(image_of_pair[first:last], at_once):
            some = slice(first + start, first + stop)
            logits[some] = torch.from_numpy(_logits_of(model, images, texts, pairs[some], batch_size))
    shared = sum_over_ranks(logits, ranks).numpy()
    return [shared[np.searchsorted(pairs, numbers)] for numbers in sets]


def _logits_of(
    model: X2VLM, images: EncodedImages, texts: TextTable, pairs: Numbers, batch_size: int
) -> NDArray[np.float64]:
    """Of the pairs of a few images, whose keys are projected together."""
    image, text = np.divmod(pairs, len(texts.starts))
    needed, row = np.unique(image, return_inverse=True)
    memory = model.image_memory(images.of(needed, model.temperature.device))
    logits = np.empty(len(pairs))
    # Texts of about equal length together, for less padding; images need no order within a piece.
    order = np.argsort(texts.visible[text], kind="stable")
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        states_BLD, mask_BL = (tensor.to(model.temperature.device) for tensor in text_batch(texts, text[some]))
        rows = HostToDeviceBatch.to_device(row[some], states_BLD.device)
        fused_BLD = model.fuse(states_BLD, mask_BL, memory.select(rows))
        logits[some] = model.match(fused_BLD)[:, 1].double().cpu().numpy()
    return logits


def text_batch(texts: TextTable, chosen: Numbers) -> tuple[Tensor, Tensor]:
    """States (B, L, D) of the chosen texts, padded to the longest of them, and their mask (B, L)."""
    length = int(texts.visible[chosen].max())
    lengths_B = HostToDeviceBatch.to_device(texts.visible[chosen], texts.states_XD.device)
    mask_BL = torch.arange(length, device=lengths_B.device) < lengths_B[:, None]
    return padded_texts(texts, chosen, length), mask_BL


def _images_at_once(model: X2VLM, images: VisionTokens) -> int:
    """As many images as have at most KEY_BYTES of keys, at least one."""
    fusion, patches = model.config.fusion, images.patches_MPD
    numbers = 2 * fusion.num_layers * (patches.shape[1] + 1) * model.config.text.width
    return max(1, KEY_BYTES // (numbers * patches.element_size()))


def _pieces(image_of_pair: Numbers, images_at_once: int) -> Iterator[tuple[int, int]]:
    """Bounds of runs of pairs, sorted by image, with all pairs of at most `images_at_once` images each."""
    if len(image_of_pair) == 0:
        return iter(())
    starts = np.flatnonzero(np.diff(image_of_pair, prepend=-1))
    bounds = [*starts[::images_at_once].tolist(), len(image_of_pair)]
    return pairwise(bounds)
