"""All losses of one optimizer step: every stream's towers, negatives, fusion passes and heads together.

B rows of a stream, K reads, X lines of a table, D width, E width of the comparison space, V vocabulary.
The host synchronises with the device once, to fetch which texts were drawn as negatives: their lengths determine the
layout of the fusion call. All other metadata is in the batches (`Batch.lengths` etc.).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.models.blocks.packing import HostToDeviceBatch
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives.across_ranks import Gather, NegativeGroup
from x2vlm.objectives.box_losses import box_losses
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.host import HostView, host_views
from x2vlm.objectives.losses import contrastive, masked_lm, matching, text_keys
from x2vlm.objectives.negatives import draw_negatives, require_group
from x2vlm.objectives.passes import Reading, run_passes
from x2vlm.objectives.streams import Drawn, Stream
from x2vlm.objectives.towers import ImageTokens, Texts, encode_images, encode_texts

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM


def step_losses(
    model: X2VLM,
    batches: Mapping[str, Batch],
    objectives: Mapping[str, ObjectiveConfig] | None = None,
    *,
    negatives: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    gather: Gather | None = None,
    negative_groups: Mapping[str, NegativeGroup] | None = None,
    generator: torch.Generator | None = None,
    execution: ExecutionConfig | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Unweighted losses of every stream by its label: masked_lm; with images contrastive, matching; of regions boxes.

    `negatives` = (image index per text, text index per image) fixes the pairs of a stream's matching loss; with a
    negative group they are drawn from, and counted over, the rows of all its ranks. Otherwise they come from this
    rank's rows, in groups of `negative_group_size`; with that set and a `gather`, generators in equal states on every
    rank make them independent of the number of ranks. `execution` changes only the order of computation.
    The temperature is not clamped: do so before (`X2VLM.clamp_temperature`). ConfigError if a group size does not
    match the rows; ValueError for texts without a token or padded in front.
    """
    execution = execution or ExecutionConfig()
    views = host_views(list(batches.values()))
    images = encode_images(model, list(batches.values()), execution)
    texts = encode_texts(model, list(batches.values()), views, execution)
    streams = make_streams(batches, views, objectives, images, texts, negative_groups)
    losses: dict[str, dict[str, Tensor]] = {stream.label: {} for stream in streams}
    drawn: list[Drawn | None] = []
    for stream in streams:
        pinned = (negatives or {}).get(stream.label)
        loss, pairs = compare_rows(model, stream, texts, gather, pinned, generator)
        losses[stream.label] |= {} if loss is None else {"contrastive": loss}
        drawn.append(pairs)
    readings = run_passes(model, streams, drawn, texts.table, execution)
    for stream, found in zip(streams, read_losses(model, streams, drawn, readings), strict=True):
        losses[stream.label] |= found
    return losses


def make_streams(
    batches: Mapping[str, Batch],
    views: Sequence[HostView],
    objectives: Mapping[str, ObjectiveConfig] | None,
    images: Sequence[ImageTokens | None],
    texts: Texts,
    negative_groups: Mapping[str, NegativeGroup] | None,
) -> list[Stream]:
    """One stream for each batch, with the tokens of its images and the numbers of its texts."""
    return [
        Stream(
            label=label,
            batch=batch,
            view=views[number],
            config=(objectives or {}).get(label) or ObjectiveConfig(),
            images=images[number],
            clean=texts.clean[number],
            masked=texts.masked[number],
            group=(negative_groups or {}).get(label),
        )
        for number, (label, batch) in enumerate(batches.items())
    ]


def pretrain_losses(
    model: X2VLM,
    batch: Batch,
    negatives: tuple[Tensor, Tensor] | None = None,
    *,
    config: ObjectiveConfig | None = None,
    gather: Gather | None = None,
    negative_group: NegativeGroup | None = None,
    generator: torch.Generator | None = None,
    execution: ExecutionConfig | None = None,
) -> dict[str, Tensor]:
    """The losses of one batch; everything is as in `step_losses`."""
    return step_losses(
        model,
        {"": batch},
        {"": config or ObjectiveConfig()},
        negatives=None if negatives is None else {"": negatives},
        gather=gather,
        negative_groups=None if negative_group is None else {"": negative_group},
        generator=generator,
        execution=execution,
    )[""]


def compare_rows(
    model: X2VLM,
    stream: Stream,
    texts: Texts,
    gather: Gather | None,
    pinned: tuple[Tensor, Tensor] | None,
    generator: torch.Generator | None,
) -> tuple[Tensor | None, Drawn | None]:
    """The contrastive loss of a stream with images and, if it has a matching loss, its negative pairs."""
    if stream.images is None or stream.clean is None:
        return None, None
    batch, config = stream.batch, stream.config
    first = texts.table.starts[stream.clean : stream.clean + batch.num_rows]
    states_BD = texts.table.states_XD.index_select(0, HostToDeviceBatch.to_device(first, texts.table.states_XD.device))
    image_BE, text_BE = model.project(stream.images.rows, states_BD[:, None])
    keys_B = text_keys(batch.text_ids_BL, batch.text_mask_BL) if config.exclude_equal_texts else None
    loss = contrastive(
        image_BE,
        text_BE,
        model.temperature,
        gather=gather,
        gradient=config.contrastive_gradient,
        # Regions of one image differ: their texts are true negatives of each other here.
        image_ids_B=None if batch.kind == "region" or config.contrastive_targets == "row" else batch.image_ids_B,
        text_keys_B=keys_B,
    )
    if not config.matching:
        return loss, None
    if pinned is not None:
        return loss, Drawn(*pinned, has_negative=None)
    size, group = config.negative_group_size, stream.group
    require_group(stream.label, size, batch.num_rows, group)
    all_rows = None
    if size is not None and gather is not None:
        all_rows = gather.world_size * batch.num_rows, gather.rank * batch.num_rows
    image_of_text, text_of_image, has_negative = draw_negatives(
        image_BE,
        text_BE,
        model.temperature,
        None if config.same_image_negatives else batch.image_ids_B,
        generator,
        None if group is None else group.gather,
        group_size=size,
        all_rows=all_rows,
        text_keys_B=keys_B,
    )
    return loss, Drawn(image_of_text, text_of_image, has_negative)


def read_losses(
    model: X2VLM, streams: list[Stream], drawn: list[Drawn | None], readings: Mapping[str, list[Reading | None]]
) -> list[dict[str, Tensor]]:
    """The losses of the fused states: each head is called once for all streams."""
    match = _once(lambda states: model.match(states[:, None]), readings["matching"])
    boxes = _once(lambda states: model.locate(states[:, None]), readings["boxes"])
    words = _once(
        lambda states: model.word_head(states[None], model.text.word_embeddings.weight)[0], readings["masked_lm"]
    )
    found: list[dict[str, Tensor]] = []
    for number, stream in enumerate(streams):
        losses: dict[str, Tensor] = {}
        pairs, reading, logits = drawn[number], readings["masked_lm"][number], words[number]
        assert reading is not None
        assert logits is not None
        matched, box_cxcywh = match[number], boxes[number]
        if matched is not None:
            losses["matching"] = matching(matched, None if pairs is None else pairs.has_negative)
        labels = stream.batch.masked_labels_BK.flatten()
        if reading.slots is not None:
            labels = labels.index_select(0, reading.slots)
        losses["masked_lm"] = masked_lm(logits[None], labels[None])
        if box_cxcywh is not None:
            losses["box_l1"], losses["box_giou"] = _boxes(stream, box_cxcywh)
        found.append(losses)
    return found


def _once(head, readings: list[Reading | None]) -> list[Tensor | None]:  # type: ignore[no-untyped-def]
    """The outputs of `head` for every reading, from one call."""
    states = [reading.states_KD for reading in readings if reading is not None]
    if not states:
        return [None] * len(readings)
    outputs = iter(head(states[0] if len(states) == 1 else torch.cat(states)).split([len(each) for each in states]))
    return [None if reading is None else next(outputs) for reading in readings]


def _boxes(stream: Stream, box_cxcywh_R4: Tensor) -> tuple[Tensor, Tensor]:
    batch, config = stream.batch, stream.config
    assert batch.box_cxcywh_R4 is not None
    assert batch.is_whole_image_R is not None
    counts = ~batch.is_whole_image_R.bool()
    if config.box_loss_on_whole_images:
        counts = torch.ones_like(counts)
    return box_losses(box_cxcywh_R4, batch.box_cxcywh_R4, counts, config.parity)
