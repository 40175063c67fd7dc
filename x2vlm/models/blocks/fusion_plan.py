"""Layout of one fusion call: which texts run together and which image each attends to; computed once on the host.

T tokens, S slots, X states of a table, R rows of images, P patches, U problems of a group, Q queries, K keys,
D width.
A *pass* is a set of texts, each with an image (or none), some of whose states a head reads: positive pairs, negative
pairs, masked tokens, boxes. A *problem* is an image with all texts that attend to it: cross-attention needs no
boundaries between texts, so the tokens of all texts of an image are queries of one attention problem, and its keys are
computed once. Rows of one image (its regions) share the patches; each adds its own summary key and masks out the
patches it does not cover.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from x2vlm.models.blocks.masks import AttentionMask
from x2vlm.models.blocks.packing import (
    Groups,
    HostToDeviceBatch,
    Numbers,
    Placement,
    SelfLayout,
    add_sequences,
    choose_groups,
    place,
    widest,
)
from x2vlm.models.blocks.rows import place_rows, take_rows

NOTHING = -1


@dataclass(frozen=True)
class TextTable:
    """Concatenated states of all texts; text i has `held[i]` of them from `starts[i]` on.

    The first `visible[i]` are real tokens, the others padding that attention must mask.
    """

    states_XD: Tensor
    starts: Numbers
    held: Numbers
    visible: Numbers


@dataclass(frozen=True)
class ImageTable:
    """The concatenated patches of all images, then summary tokens. A row is a summary and an image's patches.

    Row r sees the patches in `patch_mask_RP[mask_of_row[r]]`, all of them where that is NOTHING. The last line of
    `patch_mask_RP` is all true.
    """

    states_XD: Tensor
    num_patches: int
    image_of_row: Numbers
    summary_of_row: Numbers  # line of `states_XD`
    mask_of_row: Numbers
    patch_mask_RP: Tensor | None


@dataclass(frozen=True)
class Pass:
    """Texts with their images. `read_positions` indexes, text after text, the positions that are read."""

    texts: Numbers
    rows: Numbers  # row of the ImageTable, or NOTHING
    num_reads: Numbers  # per text
    read_positions: Numbers  # line of the table of positions

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.rows) == len(self.num_reads)
        assert self.num_reads.sum() == len(self.read_positions)


@dataclass(frozen=True)
class CrossLayout:
    """Problems grouped for cross-attention: slots of the queries, shape of the keys, and masks."""

    queries: Groups
    key_shapes: tuple[tuple[int, int], ...]
    masks: tuple[AttentionMask | None, ...]


@dataclass(frozen=True)
class FusionPlan:
    """The layout run by `FusionEncoder.run`. Tokens with an image come first; the others skip cross-attention."""

    tokens_T: Tensor  # line of the text table
    held: Numbers  # tokens of every text of the plan, in its order
    num_crossing: int  # tokens with an image
    within: SelfLayout
    across: CrossLayout | None
    memory: "MemoryLayout | None"
    reads_K: Tensor  # token numbers that heads read
    num_crossing_reads: int
    within_reads: SelfLayout  # the same layouts with only the read tokens as queries
    across_reads: CrossLayout | None
    order: Groups  # read states back in the order of the passes
    reads_per_pass: tuple[int, ...]


@dataclass(frozen=True)
class MemoryLayout:
    """Which state of the image table is in which slot of the keys."""

    token_of_slot: Tensor
    real_slots: Tensor | None  # None: a state may be in several slots
    real_tokens: Tensor | None

    def spread(self, states_XD: Tensor) -> Tensor:
        if self.real_slots is None or self.real_tokens is None:
            return take_rows(states_XD, self.token_of_slot)
        return place_rows(states_XD, self.token_of_slot, self.real_slots, self.real_tokens)


def plan_fusion(
    passes: Sequence[Pass],
    texts: TextTable,
    images: ImageTable | None,
    positions_X: Tensor,
    *,
    share_image_keys: bool,
) -> FusionPlan:
    """The plan of one call for all `passes`; without `share_image_keys` every text gets keys of its own.

    `positions_X` is the table of positions within a text that `Pass.read_positions` points to.
    """
    text = np.concatenate([each.texts for each in passes])
    row = np.concatenate([each.rows for each in passes])
    num_reads = np.concatenate([each.num_reads for each in passes])
    first_read = np.cumsum(num_reads) - num_reads
    problem = _problems(row, images, share_image_keys)
    # Texts of one problem are consecutive, texts without an image last.
    sequence = np.argsort(np.where(problem == NOTHING, problem.max() + 1, problem), kind="stable")
    text, row, problem, num_reads = text[sequence], row[sequence], problem[sequence], num_reads[sequence]
    held, visible = texts.held[text], texts.visible[text]
    has_image = problem != NOTHING

    transfer = HostToDeviceBatch(texts.states_XD.device)
    within = add_sequences(transfer, held, visible)
    within_reads = transfer.add_placement(place(num_reads, within.groups, widest(num_reads, within.groups)))

    read_number = ranges(first_read[sequence], num_reads)  # by place in the plan
    back = np.empty_like(read_number)
    back[read_number] = np.arange(len(read_number))
    order = transfer.add_placement(Placement(((1, len(back)),), back, read_number))
    tokens = transfer.add(ranges(texts.starts[text], held))
    sources = transfer.add(np.concatenate([each.read_positions for each in passes])[read_number])
    starts = transfer.add(np.repeat(np.cumsum(held) - held, num_reads))
    crossing = None
    if images is not None and has_image.any():
        crossing = _PendingCrossLayout(transfer, images, row[has_image], problem[has_image], share_image_keys)
        crossing.add_queries(held[has_image])
        crossing.add_reads(num_reads[has_image])
    transfer.send()
    layout = within.resolve(transfer)
    return FusionPlan(
        tokens_T=transfer.get(tokens),
        held=held,
        num_crossing=int(held[has_image].sum()),
        within=layout,
        across=None if crossing is None else crossing.layout(),
        memory=None if crossing is None else crossing.memory_layout(),
        reads_K=transfer.get(starts) + positions_X[transfer.get(sources)],
        num_crossing_reads=int(num_reads[has_image].sum()),
        within_reads=replace(layout, queries=within_reads.resolve(transfer)),
        across_reads=None if crossing is None else crossing.reads_layout(),
        order=order.resolve(transfer),
        reads_per_pass=tuple(len(each.read_positions) for each in passes),
    )


def ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """starts[0], starts[0] + 1, ... (counts[0] of them), then those of starts[1], and so on."""
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _problems(row: Numbers, images: ImageTable | None, share_keys: bool) -> Numbers:
    """A number for every text, equal where they use one set of keys; NOTHING without an image."""
    if images is None:
        return np.full(len(row), NOTHING)
    own = images.image_of_row[np.maximum(row, 0)] if share_keys else np.arange(len(row))
    return np.where(row == NOTHING, NOTHING, own)


class _PendingCrossLayout:
    """Cross-attention of texts sorted by problem: index arrays in transfer, and the layouts built from them."""

    def __init__(
        self, transfer: HostToDeviceBatch, images: ImageTable, row: Numbers, problem: Numbers, share_keys: bool
    ) -> None:
        self._transfer, self._images, self._share_keys = transfer, images, share_keys
        _, self._unit = np.unique(problem, return_inverse=True)
        self._row = row
        num_units = int(self._unit[-1]) + 1
        # Distinct rows of every problem: their summaries are keys after the patches, in this order.
        pairs, of_text = np.unique(np.stack([self._unit, row]), axis=1, return_inverse=True)
        self._num_summaries = np.bincount(pairs[0], minlength=num_units)
        first = np.cumsum(self._num_summaries) - self._num_summaries
        self._summaries, self._first_summary = images.summary_of_row[pairs[1]], first
        self._summary_slot = of_text.ravel() - first[self._unit]
        self._image = images.image_of_row[pairs[1][first]]
        is_masked = images.mask_of_row[pairs[1]] != NOTHING
        self._needs_mask = (np.bincount(pairs[0], weights=is_masked, minlength=num_units) > 0) | (
            self._num_summaries > 1
        )

    def add_queries(self, counts: Numbers) -> None:
        """Make `counts` tokens of every text the queries."""
        per_unit = np.bincount(self._unit, weights=counts).astype(np.int64)
        self._groups: list[Numbers] = []
        for chosen in (np.flatnonzero(~self._needs_mask), np.flatnonzero(self._needs_mask)):
            if len(chosen):
                found = choose_groups(per_unit[chosen], power=1)
                self._groups += [chosen[units] for units in found]
        self._all_queries = self._add(counts, per_unit)
        self._add_memory()

    def add_reads(self, counts: Numbers) -> None:
        """The same problems in the same groups with fewer queries."""
        self._read_queries = self._add(counts, np.bincount(self._unit, weights=counts).astype(np.int64))

    def layout(self) -> CrossLayout:
        return self._layout(self._all_queries)

    def reads_layout(self) -> CrossLayout:
        return self._layout(self._read_queries)

    def memory_layout(self) -> MemoryLayout:
        get = self._transfer.get
        token_of_slot, *real = (get(index) for index in self._memory)
        return MemoryLayout(token_of_slot, *real) if real else MemoryLayout(token_of_slot, None, None)

    def _add(self, counts: Numbers, per_unit: Numbers) -> tuple[Any, list[tuple[int, int] | None]]:
        placement = place(per_unit, self._groups, widest(per_unit, self._groups))
        line = self._images.mask_of_row[self._row]
        mask_line, summary = np.repeat(line, counts), np.repeat(self._summary_slot, counts)
        indices: list[tuple[int, int] | None] = []
        sizes = [rows * width for rows, width in placement.shapes]
        pieces = np.split(placement.token_of_slot, np.cumsum(sizes)[:-1])
        for units, tokens, shape in zip(self._groups, pieces, placement.shapes, strict=True):
            masked = self._needs_mask[units[0]] and len(tokens)
            indices.append(
                (
                    self._transfer.add(mask_line[tokens].reshape(shape)),
                    self._transfer.add(summary[tokens].reshape(shape)),
                )
                if masked
                else None
            )
        return self._transfer.add_placement(placement), indices

    def _add_memory(self) -> None:
        patches, token_of_slot, is_real = self._images.num_patches, [], []
        self._key_shapes: list[tuple[int, int]] = []
        for units in self._groups:
            most = int(self._num_summaries[units].max())
            slot = np.arange(most)
            has = slot < self._num_summaries[units][:, None]
            own = self._summaries[np.where(has, self._first_summary[units][:, None] + slot, 0)]
            covered = self._image[units][:, None] * patches + np.arange(patches)
            token_of_slot.append(np.concatenate([covered, own], axis=1).ravel())
            is_real.append(np.concatenate([np.ones_like(covered, dtype=bool), has], axis=1).ravel())
            self._key_shapes.append((len(units), patches + most))
        tokens, real = np.concatenate(token_of_slot), np.flatnonzero(np.concatenate(is_real))
        self._memory = [self._transfer.add(tokens)]
        if self._share_keys:
            self._memory += [self._transfer.add(real), self._transfer.add(tokens[real])]

    def _layout(self, added: tuple[Any, list[tuple[int, int] | None]]) -> CrossLayout:
        placement, indices = added
        masks = tuple(
            None if pair is None else self._mask(self._transfer.get(pair[0]), self._transfer.get(pair[1]), num_keys)
            for pair, (_, num_keys) in zip(indices, self._key_shapes, strict=True)
        )
        return CrossLayout(placement.resolve(self._transfer), tuple(self._key_shapes), masks)

    def _mask(self, line_UQ: Tensor, summary_UQ: Tensor, num_keys: int) -> AttentionMask:
        """(U, 1, Q, K): the patches of the query's own row and its own summary."""
        table, num_patches = self._images.patch_mask_RP, self._images.num_patches
        if table is None:
            patches_UQP = torch.ones(*line_UQ.shape, num_patches, dtype=torch.bool, device=line_UQ.device)
        else:
            patches_UQP = table[line_UQ]  # NOTHING is the last line
        slots = torch.arange(num_keys - num_patches, device=line_UQ.device)
        mask_UQK = torch.cat([patches_UQP, summary_UQ[..., None] == slots], dim=-1)
        return AttentionMask(mask_UQK[:, None])
