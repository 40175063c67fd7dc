"""The `filter` stage: the paper's rules about rows, captions and concepts (X2-VLM A.1), before anything is scored.

What goes is handed on as drops with the value and the threshold that decided, so a threshold can be argued about later
without running anything.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from x2vlm.config import FrozenConfig
from x2vlm.data import boxes, filters
from x2vlm.data.texts import concept_text
from x2vlm.samples import (
    Box,
    Caption,
    Concept,
    Drop,
    Grain,
    Sample,
    count_rules,
    drop_table,
    sample_table,
    samples_of,
    write_table,
)

logger = logging.getLogger(__name__)


class FilterConfig(FrozenConfig):
    """Thresholds; None switches a rule off. Equality with a threshold always keeps."""

    min_short_edge: int | None = pydantic.Field(default=224, ge=1)  # of images, oriented pixels
    max_aspect_ratio: float | None = pydantic.Field(default=3.0, ge=1)  # of images, both directions
    min_video_words: int | None = pydantic.Field(default=2, ge=0)
    languages: tuple[str, ...] = ()  # captions in others go; empty keeps all
    box_tolerance_pixels: float = pydantic.Field(default=0.5, ge=0)  # boxes that reach out by less are moved inside
    image_res: int = pydantic.Field(default=224, ge=1)  # side of the square that training resizes to
    patch_size: int = pydantic.Field(default=16, ge=0)  # 0 keeps boxes of any size
    small_box_rule: boxes.SmallBoxRule = "area"
    region_text_overlap: float | None = pydantic.Field(default=0.75, ge=0, le=1)
    text_overlap_measure: boxes.OverlapMeasure = "smaller"


def plan_filter(config: FilterConfig, inputs: Inputs) -> list[Part]:
    """One part per input part, of the same name (with the artifact's number before it where there are several).

    Where there is a slot `flagged`, every part also reads the list of flagged domains.
    """
    artifacts = inputs["rows"]
    flagged = tuple(
        Read("flagged", part.file("flagged.parquet")) for a in inputs.get("flagged", ()) for part in a.parts
    )
    return [
        Part(
            part.name if len(artifacts) == 1 else f"{number:03d}-{part.name}",
            (Read("rows", part.file("rows.parquet")), *flagged),
        )
        for number, artifact in enumerate(artifacts)
        for part in artifact.parts
    ]


def filter_part(config: FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes rows.parquet, what is kept in input order, and drops.parquet."""
    with inputs.open(part.reads[0].file) as file:
        rows = pq.read_table(file)
    samples = samples_of(rows)
    verdicts = row_verdicts(rows, config)
    if len(part.reads) > 1:
        lists = [pq.read_table(inputs.local_path(read.file))["domain"].to_pylist() for read in part.reads[1:]]
        verdicts.insert(0, filters.domain_not_flagged(rows, {domain for names in lists for domain in names}))
    report = _Report()
    kept = []
    for position, sample in enumerate(samples):
        failed = next((verdict for verdict in verdicts if not verdict.keep[position]), None)
        if failed is not None:
            report.drops.extend(_drop_row(sample, failed, position))
            continue
        sample = filter_items(sample, config, report)
        if sample.captions or sample.concepts:
            kept.append(sample)
        else:
            report.drops.append(_drop(sample, "nothing_left", reason="no caption and no concept is left"))
    write_table(sample_table(kept), out.path / "rows.parquet")
    write_table(drop_table(report.drops), out.path / "drops.parquet")
    counts = {
        "rows": Count(len(samples), len(kept), count_rules(report.drops, "row")),
        "concepts": Count(*_totals("concepts", samples, kept), count_rules(report.drops, "concept")),
        "captions": Count(*_totals("captions", samples, kept), count_rules(report.drops, "caption")),
    }
    logger.info("stage=filter part=%s rows=%d kept=%d", part.name, len(samples), len(kept))
    file_rows = {"rows.parquet": len(kept), "drops.parquet": len(report.drops)}
    return PartResult(counts, file_rows, {"boxes": dict(sorted(report.boxes.items()))})


def row_verdicts(rows: pa.Table, config: FilterConfig) -> list[filters.Verdict]:
    """What each rule that is on says about the rows, in the order in which rules are asked."""
    verdicts = []
    if config.min_short_edge is not None:
        verdicts.append(filters.min_short_edge(rows, config.min_short_edge))
    if config.max_aspect_ratio is not None:
        verdicts.append(filters.max_aspect_ratio(rows, config.max_aspect_ratio))
    if config.min_video_words is not None:
        verdicts.append(filters.min_video_words(rows, config.min_video_words))
    return verdicts


@dataclass
class _Report:
    """What a part collects. `boxes` counts both readings of "smaller than a patch", and boxes moved inside."""

    drops: list[Drop] = field(default_factory=list)
    boxes: Counter[str] = field(default_factory=lambda: Counter(moved_inside=0, small_by_area=0, small_by_any_side=0))


def filter_items(sample: Sample, config: FilterConfig, report: _Report) -> Sample:
    """`sample` with the captions and concepts that pass; the others go to the report."""
    captions = tuple(_keep_captions(sample, config, report))
    concepts = list(_keep_boxes(sample, config, report))
    return replace(sample, captions=captions, concepts=tuple(_keep_texts(sample, concepts, config, report)))


def _keep_captions(sample: Sample, config: FilterConfig, report: _Report) -> Iterator[Caption]:
    min_words = config.min_video_words if sample.kind == "video" else None
    words = filters.num_words(pa.array([caption.text for caption in sample.captions], pa.string())).to_pylist()
    for position, caption in enumerate(sample.captions):
        drop: dict[str, Any] = {"unit": "caption", "item": str(position)}
        if config.languages and caption.language not in config.languages:
            report.drops.append(_drop(sample, "language", reason=f"language {caption.language!r}", **drop))
        elif min_words is not None and words[position] < min_words:
            report.drops.append(_drop(sample, "min_video_words", words[position], min_words, **drop))
        else:
            yield caption


def _keep_boxes(sample: Sample, config: FilterConfig, report: _Report) -> Iterator[Concept]:
    """Concepts whose box is inside the image and not too small, moved inside where they are over by rounding only."""
    for concept in sample.concepts:
        drop: dict[str, Any] = {"unit": "concept", "item": concept.annotation_id}
        if sample.media is None or min(sample.media.width, sample.media.height) < 1:
            reason = "the box cannot be judged without the image's width and height"
            report.drops.append(_drop(sample, "size_unknown", reason=reason, **drop))
            continue
        size, box = (sample.media.width, sample.media.height), concept.box
        inside = _inside(box, size, config)
        if inside is None:
            reason = f"x={box.x:g} y={box.y:g} w={box.w:g} h={box.h:g} in an image of {size[0]}x{size[1]}"
            over, tolerance = boxes.pixels_outside(box, *size), config.box_tolerance_pixels
            if over > tolerance:
                report.drops.append(_drop(sample, "box_invalid", over, tolerance, reason, **drop))
            else:  # without extent: no number was compared
                report.drops.append(_drop(sample, "box_invalid", reason=reason, **drop))
            continue
        report.boxes["moved_inside"] += inside != box
        if _too_small(inside, size, config, report):
            area, least = boxes.resized_area(inside, *size, config.image_res), float(config.patch_size**2)
            reason = f"{config.small_box_rule}: w={box.w:g} h={box.h:g} in an image of {size[0]}x{size[1]}"
            report.drops.append(_drop(sample, "box_too_small", area, least, reason, **drop))
            continue
        yield replace(concept, box=inside)


def _inside(box: Box, size: tuple[int, int], config: FilterConfig) -> Box | None:
    """The box, without what rounding put over the border; None for a box that is invalid or was only there."""
    if boxes.box_invalid(box, *size, config.box_tolerance_pixels):
        return None
    inside = boxes.snap_to_border(box, *size)
    return inside if inside.w > 0 and inside.h > 0 else None


def _too_small(box: Box, size: tuple[int, int], config: FilterConfig, report: _Report) -> bool:
    """The verdict of the chosen rule; both are counted, because the paper's words allow both."""
    small = {
        rule: boxes.box_too_small(box, *size, config.image_res, config.patch_size, rule)
        for rule in ("area", "any_side")
    }
    report.boxes["small_by_area"] += small["area"]
    report.boxes["small_by_any_side"] += small["any_side"]
    return small[config.small_box_rule]


def _keep_texts(sample: Sample, concepts: list[Concept], config: FilterConfig, report: _Report) -> Iterator[Concept]:
    """Concepts without the regions whose text nearly repeats another region's; labels of objects may repeat."""
    regions = [position for position, concept in enumerate(concepts) if concept.grain == Grain.REGION]
    overlaps: dict[int, float] = {}
    if config.region_text_overlap is not None:
        texts = [concept_text(concepts[position]) for position in regions]
        areas = [concepts[position].box.area for position in regions]
        dropped = boxes.overlapping_texts(texts, areas, config.region_text_overlap, config.text_overlap_measure)
        overlaps = {regions[index]: overlap for index, overlap in dropped.items()}
    for position, concept in enumerate(concepts):
        if position in overlaps:
            item, reason = concept.annotation_id, f"repeats a larger region: {concept.text!r}"
            report.drops.append(
                _drop(
                    sample,
                    "region_text_overlap",
                    overlaps[position],
                    config.region_text_overlap,
                    reason,
                    unit="concept",
                    item=item,
                )
            )
        else:
            yield concept


def _drop_row(sample: Sample, verdict: filters.Verdict, position: int) -> Iterator[Drop]:
    """The row's drop, and one for each caption and concept that goes with it."""
    value = verdict.value[position]
    yield _drop(
        sample,
        verdict.rule_of(position),
        None if np.isnan(value) else float(value),
        None if np.isnan(verdict.threshold) else verdict.threshold,
        verdict.reason_of(position),
    )
    for concept in sample.concepts:
        yield _drop(sample, "row_dropped", unit="concept", item=concept.annotation_id)
    for index in range(len(sample.captions)):
        yield _drop(sample, "row_dropped", unit="caption", item=str(index))


def _drop(
    sample: Sample,
    rule: str,
    value: float | None = None,
    threshold: float | None = None,
    reason: str = "",
    *,
    unit: str = "row",
    item: str = "",
) -> Drop:
    value = None if value is None or not np.isfinite(value) else float(value)
    return Drop(sample.key, sample.source, sample.source_row, "filter", rule, unit, item, value, threshold, reason)


def _totals(what: str, before: list[Sample], after: list[Sample]) -> tuple[int, int]:
    return sum(len(getattr(sample, what)) for sample in before), sum(len(getattr(sample, what)) for sample in after)


FILTER = Stage(
    name="filter",
    version=2,
    config_type=FilterConfig,
    slots=("rows",),
    plan_parts=plan_filter,
    run_part=filter_part,
)

# Takes out the rows of flagged domains too.
FILTER_DOMAINS = replace(FILTER, slots=("rows", "flagged"))
