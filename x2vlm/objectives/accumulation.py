"""The losses of a step and their gradients in chunks of its rows: the memory of a chunk, the result of the whole batch.

The contrastive loss compares all rows, and negatives of the matching loss come from all rows. So gradients of chunks
cannot simply be added up. As in GradCache (arXiv 2101.06983), both towers run twice. First without a graph, chunk by
chunk: their outputs are kept. Then all losses are computed from these outputs, the fusion layers chunk by chunk too,
which gives the gradients of the outputs. Last the towers run again with a graph, chunk by chunk, and send those
gradients on to their parameters. This adds one forward pass of the towers, about a quarter of a step. Unlike GradCache,
which keeps one feature per row, the states of all tokens are kept: the fusion layers read them.

Memory is that of a chunk, plus image tokens and text states of the batch: three times their size (the outputs, the
joined tables, the gradients of these).
B rows, M images, X lines of a table, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from x2vlm.data.loading.batch import UNUSED_LABEL, Batch
from x2vlm.errors import ConfigError
from x2vlm.models.blocks.fusion_plan import ImageTable, TextTable
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.across_ranks import Gather, NegativeGroup
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.host import HostView, host_views
from x2vlm.objectives.passes import Tables, join_tables, read_passes
from x2vlm.objectives.step import compare_rows, make_streams, read_losses
from x2vlm.objectives.streams import Drawn, Stream
from x2vlm.objectives.towers import ImageTokens, Texts, encode_images, encode_texts, image_tokens

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM

Losses = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Accumulation:
    """How a step is cut: `num_chunks` of every batch; `seeds` of the towers' dropout in each, and of what follows.

    `total_of` makes of the losses of all streams the number whose gradient is wanted; it must be linear in them.
    `precision` is the context of forward passes, such as autocast; entered anew for each, because autocast must not
    carry weights that were cast without a graph into a pass with one.
    """

    num_chunks: int
    chunk_seeds: Sequence[int]
    seed: int
    total_of: Callable[[Losses], Tensor]
    precision: Callable[[], AbstractContextManager[object]] = nullcontext


def accumulate_gradients(
    model: X2VLM,
    batches: Mapping[str, Batch],
    objectives: Mapping[str, ObjectiveConfig],
    how: Accumulation,
    *,
    negatives: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    gather: Gather | None = None,
    negative_groups: Mapping[str, NegativeGroup] | None = None,
    generator: torch.Generator | None = None,
    execution: ExecutionConfig | None = None,
) -> Losses:
    """The losses of `step_losses`, detached, after adding their gradients to those of the parameters.

    Without dropout, losses and gradients differ from those of the whole batch by rounding only; with it, each chunk
    has random numbers of its own. Other arguments are those of `step_losses`. ConfigError if a stream has fewer rows
    than chunks.
    """
    execution = execution or ExecutionConfig()
    labels, listed = list(batches), list(batches.values())
    for label, batch in batches.items():
        if batch.num_rows < how.num_chunks:
            raise ConfigError(
                f"stream {label}: {batch.num_rows} rows of a process are not {how.num_chunks} chunks; lower accumulate"
            )
    views = host_views(listed)
    towers = _Towers(model, listed, views, how, execution)
    with how.precision():
        images, texts = towers.outputs()
        torch.manual_seed(how.seed)
        streams = make_streams(batches, views, objectives, images, texts, negative_groups)
        found: Losses = {label: {} for label in labels}
        drawn: list[Drawn | None] = []
        for stream in streams:
            pinned = (negatives or {}).get(stream.label)
            loss, pairs = compare_rows(model, stream, texts, gather, pinned, generator)
            found[stream.label] |= {} if loss is None else {"contrastive": loss}
            drawn.append(pairs)
        tables = join_tables(streams, drawn, texts.table)
    cut = _cut(tables)
    added = _passes(model, streams, drawn, cut, how, execution)
    # Through joining, gathering, pooling and projecting, to the outputs of the towers.
    ends, gradients = _ends(tables, cut)
    if any(found.values()):
        ends, gradients = [*ends, how.total_of(found)], [*gradients, None]
    torch.autograd.backward(ends, gradients)
    towers.backward()
    return {
        label: {name: value.detach() for name, value in parts.items()} | added[label] for label, parts in found.items()
    }


def chunk_of(count: int, number: int, num_chunks: int) -> range:
    """The rows of chunk `number`: consecutive, of sizes that differ by one at most."""
    return range(count * number // num_chunks, count * (number + 1) // num_chunks)


class _Towers:
    """Both towers over all batches, chunk by chunk: outputs without a graph, and their gradients sent on later."""

    def __init__(
        self,
        model: X2VLM,
        batches: Sequence[Batch],
        views: Sequence[HostView],
        how: Accumulation,
        execution: ExecutionConfig,
    ) -> None:
        self._model, self._batches, self._views = model, batches, views
        self._how, self._execution = how, execution
        self._parts: list[list[Tensor]] = []  # by chunk, as `_encode` lists them

    @property
    def _numbers(self) -> range:
        return range(self._how.num_chunks)

    def outputs(self) -> tuple[list[ImageTokens | None], Texts]:
        """Image tokens and texts of all batches, as leaves of a graph that begins here."""
        pieces = []
        with torch.no_grad():
            for number in self._numbers:
                vision, texts = self._encode(number)
                pieces.append((vision, texts))
        for vision, texts in pieces:
            part = [tensor for each in vision if each is not None for tensor in (each.summary_BD, each.patches_MPD)]
            self._parts.append([tensor.detach().requires_grad_() for tensor in (*part, texts.table.states_XD)])
        images: list[ImageTokens | None] = []
        place = 0
        for index, batch in enumerate(self._batches):
            if pieces[0][0][index] is None:
                images.append(None)
                continue
            summary, patches = (torch.cat([part[place + side] for part in self._parts]) for side in (0, 1))
            images.append(image_tokens(self._model, batch, VisionTokens(summary, patches)))
            place += 2
        return images, _joined_texts([texts for _, texts in pieces], [part[-1] for part in self._parts], self._batches)

    def backward(self) -> None:
        """Add the gradients that the outputs have got to those of the towers' parameters."""
        for number in self._numbers:
            with self._how.precision():
                vision, texts = self._encode(number)
            again = [tensor for each in vision if each is not None for tensor in (each.summary_BD, each.patches_MPD)]
            pairs = [
                (output, leaf.grad)
                for output, leaf in zip([*again, texts.table.states_XD], self._parts[number], strict=True)
                if leaf.grad is not None and output.requires_grad
            ]
            self._parts[number] = []  # not needed again: the next chunks have more room
            if pairs:
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])

    def _encode(self, number: int) -> tuple[list[VisionTokens | None], Texts]:
        torch.manual_seed(self._how.chunk_seeds[number])
        chunks = [_chunk(batch, number, self._how.num_chunks) for batch in self._batches]
        found = encode_images(self._model, chunks, self._execution)
        views = []
        for batch, view in zip(self._batches, self._views, strict=True):
            rows = chunk_of(batch.num_rows, number, self._how.num_chunks)
            views.append(replace(view, lengths=view.lengths[rows.start : rows.stop]))
        texts = encode_texts(self._model, chunks, views, self._execution)
        return [None if each is None else each.rows for each in found], texts


def _chunk(batch: Batch, number: int, num_chunks: int) -> Batch:
    """What the towers read of a chunk: images (of a region batch whole ones) and texts."""
    rows = chunk_of(batch.num_rows, number, num_chunks)
    some = slice(rows.start, rows.stop)
    pixels, operations = batch.pixels, batch.operations
    if pixels is not None:
        images = chunk_of(len(pixels), number, num_chunks)
        frames = pixels.shape[1] if batch.kind == "video" else 1
        pixels = pixels[images.start : images.stop]
        operations = None if operations is None else operations[images.start * frames : images.stop * frames]
    return Batch(
        kind="image" if batch.kind == "region" else batch.kind,
        keys=batch.keys[some],
        text_ids_BL=batch.text_ids_BL[some],
        text_mask_BL=batch.text_mask_BL[some],
        masked_ids_BL=batch.masked_ids_BL[some],
        masked_positions_BK=batch.masked_positions_BK[some],
        masked_labels_BK=batch.masked_labels_BK[some],
        pixels=pixels,
        operations=operations,
    )


def _joined_texts(chunks: Sequence[Texts], states: Sequence[Tensor], batches: Sequence[Batch]) -> Texts:
    """The texts of all chunks in one table, numbered as `encode_texts` does for whole batches."""
    first_line = np.cumsum([0, *(len(each) for each in states)])
    starts, held, visible = [], [], []
    clean: list[int | None] = []
    masked: list[int] = []
    num_texts = 0
    for index, batch in enumerate(batches):
        for numbers in ([chunk.clean[index] for chunk in chunks], [chunk.masked[index] for chunk in chunks]):
            is_clean = len(clean) == len(masked)
            if is_clean:
                clean.append(None if numbers[0] is None else num_texts)
            else:
                masked.append(num_texts)
            if numbers[0] is None:
                continue
            for number, (chunk, first) in enumerate(zip(chunks, numbers, strict=True)):
                assert first is not None
                some = slice(first, first + len(chunk_of(batch.num_rows, number, len(chunks))))
                starts.append(chunk.table.starts[some] + first_line[number])
                held.append(chunk.table.held[some])
                visible.append(chunk.table.visible[some])
            num_texts += batch.num_rows
    table = TextTable(torch.cat(list(states)), np.concatenate(starts), np.concatenate(held), np.concatenate(visible))
    return Texts(table, clean, masked)


def _cut(tables: Tables) -> Tables:
    """The same tables without their graph: gradients of all chunks are added up here, and sent on once."""
    texts = replace(tables.texts, states_XD=tables.texts.states_XD.detach().requires_grad_())
    images: ImageTable | None = None
    if tables.images is not None:
        images = replace(tables.images, states_XD=tables.images.states_XD.detach().requires_grad_())
    return replace(tables, texts=texts, images=images)


def _ends(tables: Tables, cut: Tables) -> tuple[list[Tensor], list[Tensor | None]]:
    """The joined tables, whose graph leads back to the towers, and the gradients that the chunks have left for them."""
    pairs = [(tables.texts.states_XD, cut.texts.states_XD.grad)]
    if tables.images is not None and cut.images is not None:
        pairs.append((tables.images.states_XD, cut.images.states_XD.grad))
    known = [(end, gradient) for end, gradient in pairs if gradient is not None and end.requires_grad]
    return [end for end, _ in known], [gradient for _, gradient in known]


def _passes(
    model: X2VLM,
    streams: Sequence[Stream],
    drawn: Sequence[Drawn | None],
    tables: Tables,
    how: Accumulation,
    execution: ExecutionConfig,
) -> Losses:
    """The losses that are read from the fusion layers, detached, after the backward pass of every chunk."""
    sums: Losses = {stream.label: {} for stream in streams}
    for number in range(how.num_chunks):
        rows = [chunk_of(stream.num_rows, number, how.num_chunks) for stream in streams]
        with how.precision():
            readings = read_passes(model, streams, drawn, tables, execution, rows)
            parts = [_loss_rows(*each) for each in zip(streams, drawn, rows, strict=True)]
            losses = read_losses(model, [stream for stream, _ in parts], [pairs for _, pairs in parts], readings)
        shares: Losses = {}
        for stream, pairs, some, found in zip(streams, drawn, rows, losses, strict=True):
            weights = _fractions(stream, pairs, some)
            shares[stream.label] = {name: value * weights[name] for name, value in found.items()}
        how.total_of(shares).backward()  # type: ignore[no-untyped-call]
        for label, share in shares.items():
            for name, value in share.items():
                sums[label][name] = sums[label].get(name, torch.zeros_like(value)) + value.detach()
    return sums


def _loss_rows(stream: Stream, pairs: Drawn | None, rows: range) -> tuple[Stream, Drawn | None]:
    """A stream as the losses of some of its rows see it."""
    batch, start, stop = stream.batch, rows.start, rows.stop
    batch = replace(
        batch,
        keys=batch.keys[start:stop],
        text_ids_BL=batch.text_ids_BL[start:stop],
        text_mask_BL=batch.text_mask_BL[start:stop],
        masked_ids_BL=batch.masked_ids_BL[start:stop],
        masked_positions_BK=batch.masked_positions_BK[start:stop],
        masked_labels_BK=batch.masked_labels_BK[start:stop],
        lengths=None,
        num_masked=None,
        image_of=None,
        box_cxcywh_R4=None if batch.box_cxcywh_R4 is None else batch.box_cxcywh_R4[start:stop],
        is_whole_image_R=None if batch.is_whole_image_R is None else batch.is_whole_image_R[start:stop],
    )
    # Counts of the whole batch divide the sums: what the reference does with an empty one is seen in these.
    config = stream.config.model_copy(update={"parity": "fixed"})
    if pairs is not None and pairs.has_negative is not None:
        pairs = replace(pairs, has_negative=pairs.has_negative[start:stop])
    return replace(stream, batch=batch, config=config), pairs


def _fractions(stream: Stream, pairs: Drawn | None, rows: range) -> dict[str, Tensor | float]:
    """By loss the fraction of the batch's counted items that lie in `rows`: the weight of their mean in the batch's."""
    batch, some = stream.batch, slice(rows.start, rows.stop)
    counts = {"masked_lm": (batch.masked_labels_BK != UNUSED_LABEL).sum(dim=1)}
    if pairs is not None and pairs.has_negative is not None:
        counts["matching"] = pairs.has_negative
    if batch.is_whole_image_R is not None:
        real = ~batch.is_whole_image_R.bool()
        boxes = torch.ones_like(real) if stream.config.box_loss_on_whole_images else real
        counts["box_l1"] = counts["box_giou"] = boxes
    found: dict[str, Tensor | float] = {"matching": len(rows) / stream.num_rows}
    for name, each in counts.items():
        total = each.sum()
        is_reference = name.startswith("box") and stream.config.parity == "reference"
        found[name] = each[some].sum() / (total if is_reference else total.clamp_min(1))
    return found
