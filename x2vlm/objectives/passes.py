"""The passes of a step through the fusion layers: positive pairs, negative pairs, masked tokens, boxes.

B rows of a stream, G rows of it on all ranks of its negative group, M images, P patches, K reads, X lines of a table,
D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from x2vlm.models.blocks.fusion_plan import NOTHING, ImageTable, Pass, TextTable, plan_fusion
from x2vlm.models.blocks.packing import HostToDeviceBatch, Numbers, fetch
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.streams import Drawn, Stream
from x2vlm.objectives.towers import padded_texts

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM

# Line of the table of positions with the class token's position.
CLASS_TOKEN = 0


@dataclass(frozen=True)
class Reading:
    """Fused states that a head reads; `slots` are those of masked tokens, from the first row on (None: every slot)."""

    states_KD: Tensor
    slots: Tensor | None = None


def run_passes(
    model: X2VLM,
    streams: Sequence[Stream],
    drawn: Sequence[Drawn | None],
    table: TextTable,
    execution: ExecutionConfig,
) -> dict[str, list[Reading | None]]:
    """For each of the heads matching, masked_lm and boxes the states it reads of every stream (None: none).

    Readings of matching are the positive pairs, then texts with negative images, then images with negative texts.
    """
    every_row = [range(stream.num_rows) for stream in streams]
    return read_passes(model, streams, drawn, join_tables(streams, drawn, table), execution, every_row)


def join_tables(streams: Sequence[Stream], drawn: Sequence[Drawn | None], table: TextTable) -> Tables:
    """The texts and images that the passes of a step read: of this rank, and of its negative groups."""
    gathered = [_gather_negatives(stream, pairs, table) for stream, pairs in zip(streams, drawn, strict=True)]
    known = _fetch(drawn, gathered)
    texts, first_gathered_text = _join_texts(table, gathered, known, streams)
    images, places = _join_images(gathered, known)
    return Tables(texts, images, known, first_gathered_text, places)


def read_passes(
    model: X2VLM,
    streams: Sequence[Stream],
    drawn: Sequence[Drawn | None],
    tables: Tables,
    execution: ExecutionConfig,
    rows: Sequence[range],
) -> dict[str, list[Reading | None]]:
    """`run_passes` for consecutive rows of every stream; their negatives may be any rows."""
    wanted: list[tuple[str, int, Pass]] = []
    positions: list[Tensor] = [torch.zeros(1, dtype=torch.long, device=tables.texts.states_XD.device)]
    num_positions = 1
    for number, stream in enumerate(streams):
        place, pairs, some = tables.places[number], drawn[number], np.array(rows[number], dtype=np.int64)
        own = np.full(len(some), NOTHING) if place is None else place.first_row + some
        clean = None if stream.clean is None else stream.clean + some
        if pairs is not None and place is not None and clean is not None:
            images, texts = tables.known[number].images, tables.known[number].texts
            assert images is not None
            assert texts is not None
            wrong = tables.first_gathered_text[number] + texts[some]
            for text, row in ((clean, own), (clean, place.first_gathered_row + images[some]), (wrong, own)):
                wanted.append(("matching", number, _class_tokens(text, row)))
        words = _masked_tokens_pass(stream, own, rows[number], num_positions, execution.only_masked_words)
        positions.append(stream.batch.masked_positions_BK.flatten())
        num_positions += positions[-1].numel()
        wanted.append(("masked_lm", number, words))
        if stream.batch.kind == "region" and place is not None and clean is not None:
            wanted.append(("boxes", number, _class_tokens(clean, place.whole_rows[some])))
    passes = [each for *_, each in wanted]
    states = _fuse(model, passes, tables.texts, tables.images, torch.cat(positions), execution)
    return _readings(streams, rows, wanted, states, execution)


def _class_tokens(texts: Numbers, rows: Numbers) -> Pass:
    return Pass(texts, rows, np.ones_like(texts), np.full_like(texts, CLASS_TOKEN))


def _masked_tokens_pass(stream: Stream, images: Numbers, rows: range, first_position: int, only_real: bool) -> Pass:
    """`images` are rows of the table of images, one for each of the stream's `rows`."""
    texts = stream.masked + np.array(rows, dtype=np.int64)
    num_slots = stream.batch.masked_positions_BK.shape[1]
    if only_real:
        num_reads = np.bincount(stream.view.masked_rows, minlength=stream.num_rows)[rows.start : rows.stop]
        return Pass(texts, images, num_reads, first_position + _slots_of(stream, rows))
    every = first_position + np.arange(rows.start * num_slots, rows.stop * num_slots)
    return Pass(texts, images, np.full_like(texts, num_slots), every)


def _slots_of(stream: Stream, rows: range) -> Numbers:
    """The slots of the masked tokens of `rows` in the flattened (B, K) arrays of the batch."""
    masked = stream.view.masked_rows
    return stream.masked_slots[(masked >= rows.start) & (masked < rows.stop)]


def _fuse(
    model: X2VLM,
    passes: list[Pass],
    table: TextTable,
    image_table: ImageTable | None,
    positions_X: Tensor,
    execution: ExecutionConfig,
) -> list[Tensor]:
    """The states that every pass reads (K, D): from one call for all, or from one call each."""
    states: list[Tensor] = []
    for together in [passes] if execution.one_fusion_call else [[each] for each in passes]:
        plan = plan_fusion(together, table, image_table, positions_X, share_image_keys=execution.share_image_keys)
        seen = None if image_table is None else image_table.states_XD
        states += model.fusion.run(table.states_XD, seen, plan, execution.prune_last_layer)
    return states


def _readings(
    streams: Sequence[Stream],
    rows: Sequence[range],
    wanted: Sequence[tuple[str, int, Pass]],
    states: Sequence[Tensor],
    execution: ExecutionConfig,
) -> dict[str, list[Reading | None]]:
    found: dict[str, list[Reading | None]] = {}
    for head in ("matching", "masked_lm", "boxes"):
        found[head] = [None] * len(streams)
        for number, stream in enumerate(streams):
            own = [read for (name, of, _), read in zip(wanted, states, strict=True) if (name, of) == (head, number)]
            slots = None
            if head == "masked_lm" and execution.only_masked_words:
                first_slot = rows[number].start * stream.batch.masked_positions_BK.shape[1]
                slots = HostToDeviceBatch.to_device(_slots_of(stream, rows[number]) - first_slot, own[0].device)
            if own:
                found[head][number] = Reading(own[0] if len(own) == 1 else torch.cat(own), slots)
    return found


@dataclass(frozen=True)
class _GatheredRows:
    """Image tokens a stream's texts may attend to: this rank's and, with a negative group, the gathered ones."""

    rows: VisionTokens
    own_image_of: Numbers | None  # of this rank's rows; None: row b shows image b
    whole_MD: Tensor | None  # summaries of the images of a region batch
    rank: int
    num_ranks: int
    texts_GLD: Tensor | None
    lengths_G: Tensor | None

    @property
    def image_of_G(self) -> Tensor | None:
        """On the device, if it was gathered from other ranks."""
        return self.rows.image_of_B if self.texts_GLD is not None else None


def _gather_negatives(stream: Stream, pairs: Drawn | None, table: TextTable) -> _GatheredRows | None:
    if stream.images is None:
        return None
    whole = stream.images.whole
    whole_MD = None if whole is None else whole.summary_BD
    if stream.group is None or pairs is None or stream.clean is None:
        return _GatheredRows(stream.images.rows, stream.view.image_of, whole_MD, 0, 1, None, None)
    texts = stream.clean + np.arange(stream.num_rows)
    longest = stream.batch.text_ids_BL.shape[1]
    lengths_B = HostToDeviceBatch.to_device(table.visible[texts], table.states_XD.device)
    texts_GLD, lengths_G = stream.group.gather_texts(padded_texts(table, texts, longest), lengths_B)
    rows = stream.group.gather_images(stream.images.rows)
    gather = stream.group.gather
    return _GatheredRows(rows, stream.view.image_of, whole_MD, gather.rank, gather.world_size, texts_GLD, lengths_G)


@dataclass(frozen=True)
class _Fetched:
    """The values of one stream that were fetched from the device."""

    images: Numbers | None
    texts: Numbers | None
    image_of: Numbers | None
    lengths: Numbers | None


def _fetch(drawn: Sequence[Drawn | None], gathered: Sequence[_GatheredRows | None]) -> list[_Fetched]:
    """The only device-to-host synchronisation of a step."""
    requested: list[list[Tensor | None]] = []
    for pairs, rows_of_group in zip(drawn, gathered, strict=True):
        requested.append(
            [
                None if pairs is None else pairs.image_of_text,
                None if pairs is None else pairs.text_of_image,
                None if rows_of_group is None else rows_of_group.image_of_G,
                None if rows_of_group is None else rows_of_group.lengths_G,
            ]
        )
    values = iter(fetch([tensor for each in requested for tensor in each if tensor is not None]))
    return [_Fetched(*(None if tensor is None else next(values) for tensor in each)) for each in requested]


def _join_texts(
    table: TextTable, gathered: Sequence[_GatheredRows | None], known: Sequence[_Fetched], streams: Sequence[Stream]
) -> tuple[TextTable, list[int]]:
    """The table with the texts of other ranks appended, and the first text that negative pairs refer to."""
    states, starts, held, visible = [table.states_XD], [table.starts], [table.held], [table.visible]
    num_states, num_texts, first = len(table.states_XD), len(table.starts), []
    for rows_of_group, values, stream in zip(gathered, known, streams, strict=True):
        if rows_of_group is None or rows_of_group.texts_GLD is None or values.lengths is None:
            first.append(NOTHING if stream.clean is None else stream.clean)
            continue
        num_gathered, length = rows_of_group.texts_GLD.shape[:2]
        first.append(num_texts)
        states.append(rows_of_group.texts_GLD.flatten(0, 1))
        starts.append(num_states + length * np.arange(num_gathered))
        # Without packing every text includes its padding, here up to the length of the group.
        packs = (table.held == table.visible).all()
        held.append(values.lengths if packs else np.full_like(values.lengths, length))
        visible.append(values.lengths)
        num_states += num_gathered * length
        num_texts += num_gathered
    if len(states) == 1:
        return table, first
    joined = (np.concatenate(each) for each in (starts, held, visible))
    return TextTable(torch.cat(states), *joined), first


@dataclass(frozen=True)
class _Place:
    """Rows of a stream in the table of images."""

    first_row: int
    first_gathered_row: int
    whole_rows: Numbers


@dataclass(frozen=True)
class Tables:
    """What the passes of a step read, and where each stream's rows are in it."""

    texts: TextTable
    images: ImageTable | None
    known: list[_Fetched]
    first_gathered_text: list[int]
    places: list[_Place | None]


def _join_images(
    gathered: Sequence[_GatheredRows | None], known: Sequence[_Fetched]
) -> tuple[ImageTable | None, list[_Place | None]]:
    """One table for the images of all streams, and where each stream's rows are in it."""
    present = [rows_of_group for rows_of_group in gathered if rows_of_group is not None]
    if not present:
        return None, [None] * len(gathered)
    num_patches = present[0].rows.patches_MPD.shape[1]
    num_states = sum(len(rows_of_group.rows.patches_MPD) for rows_of_group in present) * num_patches
    summaries: list[Tensor] = []
    masks: list[Tensor] = []
    image_of: list[Numbers] = []
    mask_of: list[Numbers] = []
    places: list[_Place | None] = []
    num_images = num_rows = num_masks = 0
    for rows_of_group, values in zip(gathered, known, strict=True):
        if rows_of_group is None:
            places.append(None)
            continue
        own, num_gathered_rows = rows_of_group.rows, rows_of_group.rows.num_rows
        rank_images = len(own.patches_MPD) // rows_of_group.num_ranks
        images = rows_of_group.own_image_of if values.image_of is None else values.image_of
        image_of.append(num_images + (np.arange(num_gathered_rows) if images is None else images))
        mask_of.append(
            np.full(num_gathered_rows, NOTHING)
            if own.patch_mask_BP is None
            else num_masks + np.arange(num_gathered_rows)
        )
        summaries.append(own.summary_BD)
        if own.patch_mask_BP is not None:
            masks.append(own.patch_mask_BP)
            num_masks += num_gathered_rows
        whole_rows = np.zeros(0, dtype=np.int64)
        if rows_of_group.whole_MD is not None and rows_of_group.own_image_of is not None:
            whole_rows = num_rows + num_gathered_rows + rows_of_group.own_image_of
            num_own = len(
                rows_of_group.whole_MD
            )  # the gathered images may be padded with empty ones after the rank's own
            image_of.append(num_images + rows_of_group.rank * rank_images + np.arange(num_own))
            mask_of.append(np.full(num_own, NOTHING))
            summaries.append(rows_of_group.whole_MD)
        places.append(
            _Place(num_rows + rows_of_group.rank * (num_gathered_rows // rows_of_group.num_ranks), num_rows, whole_rows)
        )
        num_rows += sum(len(each) for each in summaries[-1 - (len(whole_rows) > 0) :])
        num_images += len(own.patches_MPD)
    patches = [rows_of_group.rows.patches_MPD.flatten(0, 1) for rows_of_group in present]
    table = ImageTable(
        states_XD=torch.cat([*patches, *summaries]),
        num_patches=num_patches,
        image_of_row=np.concatenate(image_of),
        summary_of_row=num_states + np.arange(num_rows),
        mask_of_row=np.concatenate(mask_of),
        patch_mask_RP=torch.cat([*masks, torch.ones_like(masks[0][:1])]) if masks else None,
    )
    return table, places
