"""Host-side metadata of the batches of a step: lengths, masked tokens, the image of each region.

B text rows, K slots for masked tokens, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from x2vlm.data.loading.batch import UNUSED_LABEL, Batch
from x2vlm.models.blocks.packing import Numbers, fetch


@dataclass(frozen=True)
class HostView:
    """The metadata of one batch on the host."""

    lengths: Numbers  # tokens of every text
    masked_rows: Numbers  # the text of every masked token
    masked_slots: Numbers  # and its slot
    image_of: Numbers | None  # image of every region


def host_views(batches: Sequence[Batch]) -> list[HostView]:
    """A view per batch: from its host fields, or with one synchronisation for all batches that lack some.

    ValueError if a text has no token, or padding that is not at its end.
    """
    wanted: list[Tensor] = []
    for batch in batches:
        wanted += _missing(batch)
    known = iter(fetch(wanted))
    return [_view(batch, [next(known) for _ in _missing(batch)]) for batch in batches]


def _missing(batch: Batch) -> list[Tensor]:
    missing = []
    if batch.lengths is None:
        missing.append(batch.text_mask_BL.bool())
    if batch.num_masked is None:
        missing.append(batch.masked_labels_BK != UNUSED_LABEL)
    if batch.image_of is None and batch.image_of_R is not None:
        missing.append(batch.image_of_R)
    if missing and batch.text_ids_BL.is_meta:
        raise ValueError("a batch on the meta device has no values: give it lengths, num_masked and image_of")
    return missing


def _view(batch: Batch, missing: list[Numbers]) -> HostView:
    missing = list(missing)
    if batch.lengths is None:
        mask = missing.pop(0).astype(bool)
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("a text has padding before a real token: padding must stand at the end")
        lengths = mask.sum(axis=1)
    else:
        lengths = np.array(batch.lengths, dtype=np.int64)
    if (lengths < 1).any():
        raise ValueError(f"text row {int(lengths.argmin())} has no token: every text begins with the class token")
    if batch.num_masked is None:
        is_masked = missing.pop(0).astype(bool)
    else:
        is_masked = np.arange(batch.masked_labels_BK.shape[1]) < np.array(batch.num_masked)[:, None]
    rows, slots = np.nonzero(is_masked)
    image_of = None
    if batch.image_of_R is not None:
        image_of = missing.pop(0) if batch.image_of is None else np.array(batch.image_of, dtype=np.int64)
    return HostView(lengths, rows, slots, image_of)
