"""How many texts of each grain a table of samples holds: the numbers that size the training streams."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.flow.stage import Count, Json, PartSummary
from x2vlm.samples import Grain


def count_grains(rows: pa.Table) -> dict[str, int]:
    """Rows and texts of `rows` by what the training streams draw on.

    | key | counts |
    |---|---|
    | images, clips | rows of each kind |
    | images_with_captions, clips_with_captions | rows that can feed the image-text and the video stream |
    | images_with_concepts | rows that can feed the region stream |
    | captions, objects, regions | texts |
    """
    is_clip = pc.equal(rows["kind"], "video")
    is_image = pc.invert(is_clip)
    captioned = pc.greater(lengths(rows, "captions"), 0)
    grains = pc.struct_field(pc.list_flatten(rows["concepts"]), "grain")
    return {
        "images": _true(is_image),
        "clips": _true(is_clip),
        "images_with_captions": _true(pc.and_(is_image, captioned)),
        "clips_with_captions": _true(pc.and_(is_clip, captioned)),
        "images_with_concepts": _true(pc.and_(is_image, pc.greater(lengths(rows, "concepts"), 0))),
        "captions": total(rows, "captions"),
        "objects": _true(pc.equal(grains, str(Grain.OBJECT))),
        "regions": _true(pc.equal(grains, str(Grain.REGION))),
    }


def add_up_grains(config: object, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The `grains` of all parts added up: `finish` of both stages."""
    totals: dict[str, int] = {}
    for part in parts:
        for name, number in part.summary["grains"].items():
            totals[name] = totals.get(name, 0) + number
    return {"grains": totals}


def count_units(
    before: pa.Table, after: pa.Table, dropped: Mapping[str, int], concepts_dropped: Mapping[str, int] | None = None
) -> dict[str, Count]:
    """Rows by `dropped` reason; captions, and concepts but for `concepts_dropped`, only ever leave with their row."""
    own = {"concepts": {rule: number for rule, number in (concepts_dropped or {}).items() if number}}
    counts = {"rows": Count(before.num_rows, after.num_rows, dropped)}
    for unit in ("captions", "concepts"):
        num_in, num_out = total(before, unit), total(after, unit)
        lost = own.get(unit, {})
        if with_row := num_in - num_out - sum(lost.values()):
            lost = {**lost, "row_dropped": with_row}
        counts[unit] = Count(num_in, num_out, lost)
    return counts


def lengths(rows: pa.Table, column: str) -> pa.ChunkedArray:
    """Length of a list column's value per row; a null list is empty."""
    return pc.fill_null(pc.list_value_length(rows[column]), 0)


def total(rows: pa.Table, column: str) -> int:
    """Number of items in a list column over all rows."""
    return int(pc.sum(lengths(rows, column), min_count=0).as_py())


def _true(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask, min_count=0).as_py())
