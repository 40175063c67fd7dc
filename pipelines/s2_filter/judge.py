"""All rules on all rows of a part: rows first, then the captions and the concepts of the kept rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.s2_filter.config import FilterConfig
from pipelines.s2_filter.drops import Dropped, drops_table, join_texts, of_verdict
from x2vlm.data.columns import Items, SampleColumns, flags
from x2vlm.data.rules import box_rules, caption_rules
from x2vlm.data.rules import row_filters as filters
from x2vlm.data.rules.languages import DETECTOR, MODEL_SHA256
from x2vlm.data.rules.row_filters import Verdict
from x2vlm.data.rules.text_overlap import drop_repeats, find_overlaps
from x2vlm.data.text.concept_texts import concept_texts
from x2vlm.samples import Grain

ROW, WITH_ROW_CONCEPTS, WITH_ROW_CAPTIONS, CAPTIONS, BOXES, TEXTS, LEFT = range(7)  # the order of drops


@dataclass
class Findings:
    """The results of a part: drops, and counts for its summary.

    `rules` has for each row and caption rule the number of items it applies to and how many of those it would drop,
    independent of other rules (captions: of kept rows). `boxes` counts both interpretations of "smaller than a patch"
    and boxes moved inside; `region_texts` both interpretations of "overlap".
    """

    dropped: list[Dropped] = field(default_factory=list)
    rules: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    boxes: Counter[str] = field(default_factory=lambda: Counter(moved_inside=0, small_by_area=0, small_by_any_side=0))
    region_texts: Counter[str] = field(default_factory=lambda: Counter(overlap_by_smaller=0, overlap_by_jaccard=0))
    languages: dict[str, Any] = field(default_factory=dict)

    def note(self, unit: str, verdict: Verdict) -> None:
        judged, failed = int(np.count_nonzero(verdict.applies)), int(np.count_nonzero(~verdict.keep))
        self.rules.setdefault(unit, {})[verdict.rule] = {"judged": judged, "failed": failed}


@dataclass(frozen=True)
class Judged:
    """The kept rows as a table of SAMPLE_SCHEMA in input order; the drops as one of DROP_SCHEMA; and the counts."""

    kept: pa.Table
    drops: pa.Table
    findings: Findings


def judge(rows: pa.Table, config: FilterConfig, first: Sequence[Verdict] = ()) -> Judged:
    """Every rule of `config` on `rows`, a table of SAMPLE_SCHEMA.

    `first` are verdicts that need more than the rows themselves; they are applied before all others.
    """
    columns, findings = SampleColumns(rows), Findings()
    is_kept = judge_rows([*first, *row_verdicts(columns, config)], len(columns), findings)
    captions = judge_captions(columns, is_kept, config, findings)
    concepts = judge_concepts(columns, is_kept, config, findings)
    has_items = np.zeros(len(columns), dtype=bool)
    has_items[captions.row] = has_items[concepts.row] = True
    empty = np.flatnonzero(is_kept & ~has_items)
    reason = "no caption and no concept is left"
    findings.dropped.append(Dropped("row", "nothing_left", LEFT, empty, reason=reason))
    kept = _kept_rows(rows, is_kept & has_items, {"captions": captions, "concepts": concepts})
    return Judged(kept, drops_table(rows, findings.dropped), findings)


def row_verdicts(columns: SampleColumns, config: FilterConfig) -> list[Verdict]:
    """The verdicts of all enabled row rules, in the order in which they are applied."""
    verdicts = [filters.unique_key(columns)]
    if config.min_short_edge is not None:
        verdicts.append(filters.min_short_edge(columns, config.min_short_edge))
    if config.max_aspect_ratio is not None:
        verdicts.append(filters.max_aspect_ratio(columns, config.max_aspect_ratio))
    if config.min_video_words is not None:
        verdicts.append(filters.min_video_words(columns, config.min_video_words))
    if config.min_similarity is not None:
        verdicts.append(filters.min_similarity(columns, config.min_similarity))
    if config.max_punsafe is not None:
        verdicts.append(filters.max_punsafe(columns, config.max_punsafe))
    if config.max_pwatermark is not None:
        verdicts.append(filters.max_pwatermark(columns, config.max_pwatermark))
    if config.nsfw:
        verdicts.append(filters.not_nsfw(columns, config.nsfw))
    return verdicts


def judge_rows(verdicts: Sequence[Verdict], num_rows: int, findings: Findings) -> np.ndarray:
    """True for rows that no rule drops; the first rule that does is recorded."""
    is_kept = np.ones(num_rows, dtype=bool)
    for verdict in verdicts:
        findings.note("row", verdict)
        is_dropped = is_kept & ~verdict.keep
        if is_dropped.any():
            findings.dropped += of_verdict(verdict, is_dropped, unit="row", step=ROW, row=np.arange(num_rows))
            is_kept &= verdict.keep
    return is_kept


def judge_captions(columns: SampleColumns, is_kept: np.ndarray, config: FilterConfig, findings: Findings) -> Items:
    """The captions to keep."""
    captions, words = columns.captions, columns.words_of_videos if config.min_video_words is not None else None
    of_kept_row = is_kept[captions.row]
    if not of_kept_row.all():
        gone = ~of_kept_row
        item, row = _numbers_as_texts(captions.position[gone]), captions.row[gone]
        findings.dropped.append(
            Dropped("caption", "row_dropped", WITH_ROW_CAPTIONS, row, captions.position[gone], item)
        )
        captions, words = captions.select(of_kept_row), None if words is None else words[of_kept_row]
    verdicts = caption_verdicts(captions, words, config)
    passes = np.ones(len(captions), dtype=bool)
    for verdict in verdicts:
        findings.note("caption", verdict)
        if verdict.rule == "language":
            findings.languages = _language_facts(verdict, config)
        is_dropped = passes & ~verdict.keep
        if is_dropped.any():
            item = _numbers_as_texts(captions.position)
            findings.dropped += of_verdict(
                verdict,
                is_dropped,
                unit="caption",
                step=CAPTIONS,
                row=captions.row,
                position=captions.position,
                item=item,
            )
            passes &= verdict.keep
    return captions if passes.all() else captions.select(passes)


def caption_verdicts(captions: Items, words: np.ndarray | None, config: FilterConfig) -> list[Verdict]:
    """The verdicts of all enabled caption rules, in the order in which they are applied.

    `words` counts those of captions of videos, NaN for images; None where that rule is off.
    """
    texts = captions.values.field("text")
    verdicts = [caption_rules.not_empty(texts)]
    if config.languages:
        claimed, by_detector = captions.values.field("language"), config.language_from == "detector"
        verdicts.append(caption_rules.language_in(texts, claimed, config.languages, by_detector))
    if words is not None and config.min_video_words is not None:
        verdicts.append(caption_rules.enough_video_words(words, config.min_video_words))
    if (config.min_caption_chars, config.max_caption_chars) != (None, None):
        verdicts += caption_rules.chars_between(texts, config.min_caption_chars, config.max_caption_chars)
    if (config.min_caption_words, config.max_caption_words) != (None, None):
        verdicts += caption_rules.words_between(texts, config.min_caption_words, config.max_caption_words)
    if config.min_letter_share is not None:
        verdicts.append(caption_rules.min_letter_share(texts, config.min_letter_share))
    if config.max_repeated_chars is not None:
        verdicts.append(caption_rules.max_repeated_chars(texts, config.max_repeated_chars))
    if config.drop_captions_with_url:
        verdicts.append(caption_rules.no_url(texts))
    return verdicts


def judge_concepts(columns: SampleColumns, is_kept: np.ndarray, config: FilterConfig, findings: Findings) -> Items:
    """The concepts to keep, their boxes moved inside where they exceed the border only by rounding."""
    concepts = columns.concepts
    if not len(concepts):
        return concepts
    of_kept_row = is_kept[concepts.row]
    if not of_kept_row.all():
        _drop_concepts(concepts, ~of_kept_row, findings, "row_dropped", WITH_ROW_CONCEPTS)
        concepts = concepts.select(of_kept_row)
    concepts, boxes = _judge_boxes(concepts, columns, config, findings)
    if config.region_text_overlap is not None and len(concepts):
        concepts = _judge_texts(concepts, boxes, config, findings)
    return concepts


def _judge_boxes(
    concepts: Items, columns: SampleColumns, config: FilterConfig, findings: Findings
) -> tuple[Items, box_rules.Boxes]:
    """Concepts whose box is inside the image and not too small, and their boxes as written."""
    width, height = (side[concepts.row] for side in columns.size)
    given = box_rules.boxes_of(concepts.values.field("box"), width, height)
    unknown = box_rules.size_unknown(given)
    reason = "the box cannot be judged without the image's width and height"
    _drop_concepts(concepts, unknown, findings, "size_unknown", BOXES, reason=reason)

    over, tolerance = box_rules.pixels_outside(given), config.box_tolerance_pixels
    inside = box_rules.snap_to_border(given)
    invalid = box_rules.box_invalid(given, tolerance) | ~((inside.w > 0) & (inside.h > 0))
    is_dropped = invalid & ~unknown
    for compared in (True, False):  # a box without extent: nothing was compared
        chosen = is_dropped & ((over > tolerance) == compared)
        if chosen.any():
            where = join_texts(
                *("x=", given.x[chosen], " y=", given.y[chosen], " w=", given.w[chosen], " h=", given.h[chosen]),
                *(" in an image of ", width[chosen], "x", height[chosen]),
            )
            value, threshold = (over[chosen], tolerance) if compared else (None, None)
            _drop_concepts(concepts, chosen, findings, "box_invalid", BOXES, value, threshold, where)

    valid = ~unknown & ~invalid
    moved = valid & (box_rules.pixels_outside(given) > 0)
    findings.boxes["moved_inside"] += int(np.count_nonzero(moved))
    small = {
        "area": valid & box_rules.box_too_small(inside, config.image_res, config.patch_size, "area"),
        "any_side": valid & box_rules.box_too_small(inside, config.image_res, config.patch_size, "any_side"),
    }
    findings.boxes.update({f"small_by_{rule}": int(np.count_nonzero(found)) for rule, found in small.items()})
    chosen = small[config.small_box_rule]
    if chosen.any():
        what = join_texts(
            *(f"{config.small_box_rule}: w=", given.w[chosen], " h=", given.h[chosen]),
            *(" in an image of ", width[chosen], "x", height[chosen]),
        )
        area = box_rules.resized_area(inside, config.image_res)[chosen]
        _drop_concepts(concepts, chosen, findings, "box_too_small", BOXES, area, float(config.patch_size**2), what)
    passes = valid & ~chosen
    return _with_boxes(concepts, inside, bool(moved.any())).select(passes), _select(inside, passes)


def _judge_texts(concepts: Items, boxes: box_rules.Boxes, config: FilterConfig, findings: Findings) -> Items:
    """Concepts without the regions whose text nearly repeats another region's; labels of objects may repeat."""
    threshold = config.region_text_overlap
    assert threshold is not None
    is_region = flags(pc.equal(concepts.values.field("grain"), str(Grain.REGION)))
    regions = np.flatnonzero(is_region)
    if not len(regions):
        return concepts
    texts = concept_texts(concepts.values.filter(pa.array(is_region)))
    image, area = concepts.row[regions], boxes.area[regions]
    overlaps = {
        measure: drop_repeats(find_overlaps(texts, image, area, threshold, measure))
        for measure in ("smaller", "jaccard")
    }
    for measure, found in overlaps.items():
        findings.region_texts[f"overlap_by_{measure}"] += int(np.count_nonzero(~np.isnan(found)))
    overlap = np.full(len(concepts), np.nan)
    overlap[regions] = overlaps[config.text_overlap_measure]
    is_dropped = ~np.isnan(overlap)
    if is_dropped.any():
        reason = join_texts(
            "repeats a larger region: '", concepts.values.field("text").filter(pa.array(is_dropped)), "'"
        )
        _drop_concepts(
            concepts, is_dropped, findings, "region_text_overlap", TEXTS, overlap[is_dropped], threshold, reason
        )
    return concepts.select(~is_dropped)


def _drop_concepts(
    concepts: Items,
    is_dropped: np.ndarray,
    findings: Findings,
    rule: str,
    step: int,
    value: np.ndarray | None = None,
    threshold: float | None = None,
    reason: pa.Array | str = "",
) -> None:
    if is_dropped.any():
        item = concepts.values.field("annotation_id").filter(pa.array(is_dropped))
        findings.dropped.append(
            Dropped(
                "concept",
                rule,
                step,
                concepts.row[is_dropped],
                concepts.position[is_dropped],
                item,
                value,
                threshold,
                reason,
            )
        )


def _with_boxes(concepts: Items, boxes: box_rules.Boxes, any_moved: bool) -> Items:
    if not any_moved:
        return concepts
    kind = concepts.values.type
    fields = {field.name: array for field, array in zip(kind, concepts.values.flatten(), strict=True)}
    fields["box"] = box_rules.box_column(boxes, kind.field("box").type)
    values = pa.StructArray.from_arrays([fields[field.name] for field in kind], fields=list(kind))
    return Items(values, concepts.row, concepts.position)


def _select(boxes: box_rules.Boxes, keep: np.ndarray) -> box_rules.Boxes:
    sides = (boxes.x, boxes.y, boxes.w, boxes.h, boxes.width, boxes.height)
    return box_rules.Boxes(*(side[keep] for side in sides))


def _kept_rows(rows: pa.Table, is_kept: np.ndarray, items: dict[str, Items]) -> pa.Table:
    """The kept rows, each with its kept items."""
    for name, kept in items.items():
        index = rows.column_names.index(name)
        column = kept.regroup(rows.num_rows).cast(rows.schema.field(name).type)
        rows = rows.set_column(index, rows.schema.field(name), column)
    return rows if is_kept.all() else rows.filter(pa.array(is_kept))


def _numbers_as_texts(values: np.ndarray) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _language_facts(verdict: Verdict, config: FilterConfig) -> dict[str, Any]:
    """The source of caption languages, and counts by language."""
    by = f"{DETECTOR}, model {MODEL_SHA256[:12]}" if config.language_from == "detector" else "source"
    counts = pc.value_counts(pc.fill_null(verdict.labels, "unknown")).to_pylist()
    return {"by": by, "captions": dict(sorted((pair["values"], pair["counts"]) for pair in counts))}
