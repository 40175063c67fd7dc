"""OpenImages V6: one sample per image, with its boxes as objects and its visual relations as attributes and regions.

Roles: `images` (train-images-boxable-with-rotation.csv), `classes` (oidv6-class-descriptions*.csv), `boxes`
(*-annotations-bbox.csv), and optionally `relations` (*-annotations-vrd.csv), `attributes`
(oidv6-attributes-description.csv). The image table is streamed; annotations are held as Arrow columns sorted by image
(about 3.5 GB at the peak for the train set, extrapolated from a small file).

The files contain no image sizes, so boxes stay normalised to [0, 1] and their annotation ids start with
`x2vlm.data.boxes.NORMALISED` until the size is known. Ids are made from row numbers: `bbox:<n>` and `vrd:<n>`, n the
zero-based data row of the file.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.boxes import NORMALISED, union
from x2vlm.data.readers.hashes import published_hash
from x2vlm.data.readers.source import Fault, Source, box_of, read_csv
from x2vlm.data.tables.csv_columns import csv_columns
from x2vlm.data.tables.csv_rows import Record, csv_records
from x2vlm.data.tables.rows import BadRow
from x2vlm.data.text.texts import MADE_OF, clean_text
from x2vlm.samples import Box, Concept, Drop, Grain, Sample

Names = Mapping[str, str]  # MID -> name
BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf", "IsDepiction")
RELATION_COLUMNS = (
    *("ImageID", "LabelName1", "LabelName2", "RelationshipLabel"),
    *("XMin1", "XMax1", "YMin1", "YMax1", "XMin2", "XMax2", "YMin2", "YMax2"),
)
IMAGE_COLUMNS = ("ImageID", "OriginalURL", "License", "Author", "Rotation")
ID = {"boxes": "bbox", "relations": "vrd"}

# `is` rows give human actions as verbs; the paper writes "woman jumping" (X2-VLM A.1), not "jump woman".
ACTIONS = {
    "stand": "standing",
    "sit": "sitting",
    "lie": "lying",
    "walk": "walking",
    "run": "running",
    "jump": "jumping",
    "dance": "dancing",
    "sing": "singing",
    "talk": "talking",
    "cry": "crying",
    "smile": "smiling",
}


def read_openimages(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the image table; the row key is ImageID. Of an image, boxes come before relations.

    `IsGroupOf` and `IsDepiction` boxes become drops. An `is` relation becomes an object with an attribute ("wooden
    table") or an action ("woman jumping"), any other a region on the box around both ends ("woman plays guitar").
    Images with a rotation other than 0 are dropped: it is not documented whether their boxes refer to the image before
    or after it.
    """
    names = _names(source, "classes") | (_names(source, "attributes") if "attributes" in source.files else {})
    tables = [_Annotations(source, "boxes", BOX_COLUMNS)]
    if "relations" in source.files:
        tables.append(_Annotations(source, "relations", RELATION_COLUMNS))
    for table in tables:
        seen["concepts"] += table.num_rows + len(table.bad_lines)
        yield from table.bad_lines
    known: set[str] = set()
    for row in read_csv(source, "images", IMAGE_COLUMNS):
        seen["rows"] += 1
        if isinstance(row, BadRow):
            yield source.drop_bad(row)
            continue
        line, values = row.line, row.values
        if not values["ImageID"]:
            yield source.drop(f"line {line}", "malformed_row", "no ImageID")
        elif values["ImageID"] in known:
            yield source.drop(values["ImageID"], "duplicate_row", f"line {line} repeats ImageID {values['ImageID']}")
        else:
            known.add(values["ImageID"])
            yield from _sample(source, values, tables, names)
    for table in tables:
        for image_id, record in table.without_image(known):
            reason = f"{image_id} is not in the image table"
            yield source.drop_item(image_id, "concept", record["id"], "unknown_image", reason)


class _Annotations:
    """An annotation CSV in memory: its rows by image, and drops for malformed lines."""

    def __init__(self, source: Source, role: str, columns: tuple[str, ...]) -> None:
        self.role = role
        self.bad_lines: list[Drop] = []
        with source.reading(role):
            table, numbers, bad = csv_columns(source.file(role), columns)
        for row, image_id in bad:
            item = f"{ID[role]}:{row.number}"
            self.bad_lines.append(source.drop_item(image_id or "(none)", "concept", item, row.rule, row.reason))
        table = table.append_column("id", pa.array([f"{ID[role]}:{number}" for number in numbers], pa.string()))
        # A stable sort: rows of an image keep the order of the file.
        self._table = table.take(pc.sort_indices(table, sort_keys=[("ImageID", "ascending")])).combine_chunks()
        self.num_rows = table.num_rows
        self._spans = self._find_spans()

    def _find_spans(self) -> dict[str, tuple[int, int]]:
        """Image id -> (first row, number of rows) in the sorted table."""
        runs = pc.run_end_encode(self._table["ImageID"].combine_chunks()) if self.num_rows else None
        if runs is None:
            return {}
        spans, start = {}, 0
        for image_id, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            spans[image_id] = (start, end - start)
            start = end
        return spans

    def of(self, image_id: str) -> list[dict[str, str]]:
        """The rows of an image, in file order."""
        start, count = self._spans.get(image_id, (0, 0))
        return self._table.slice(start, count).to_pylist() if count else []

    def without_image(self, known: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """(image id, row) of every row whose image is not in `known`."""
        for image_id in self._spans:
            if image_id not in known:
                for record in self.of(image_id):
                    yield image_id or "(none)", record


def _names(source: Source, role: str) -> dict[str, str]:
    """MID -> name. Newer copies have a header, older ones none: names are the rows that start with a MID.

    A row that is no good names nothing: annotations with its MID are dropped as `unknown_label`.
    """
    with source.reading(role):
        records = [record for record in csv_records(source.file(role)) if isinstance(record, Record)]
    lines = [one.fields for one in records if len(one.fields) == 2 and one.fields[0].startswith(("/m/", "/g/"))]
    if not lines:
        source.fail(role, "no row like `/m/011k07,Tortoise`", "Check the card or download the file again")
    return {mid: clean_text(name) for mid, name in lines}


def _sample(
    source: Source, values: Mapping[str, str], tables: list[_Annotations], names: Names
) -> Iterator[Sample | Drop]:
    row, url = values["ImageID"], values["OriginalURL"].strip()
    rotated = values["Rotation"].strip().lower() not in ("", "nan", "0", "0.0")
    if not url or rotated:
        rule, reason = ("rotation_unclear", f"Rotation {values['Rotation']}") if url else ("missing_url", "")
        yield source.drop(row, rule, reason)
        yield from source.drop_concepts(row, (record["id"] for table in tables for record in table.of(row)))
        return
    concepts: list[Concept] = []
    for table in tables:
        make = _object if table.role == "boxes" else _relation
        made = ((record["id"], make(record, names)) for record in table.of(row))
        yield from source.keep_concepts(row, made, concepts)
    yield source.sample(
        row,
        url,
        concepts=tuple(concepts),
        licence=values["License"].strip(),
        author=clean_text(values["Author"]),
        published_hash=_original_md5(values.get("OriginalMD5", "")),
    )


def _original_md5(text: str) -> str:
    """OriginalMD5, which is base64, as a published hash: of the file at OriginalURL, not of a thumbnail."""
    try:
        return published_hash("md5", base64.b64decode(text.strip(), validate=True).hex())
    except ValueError:  # binascii.Error is one; text beyond ASCII is another
        return ""


def _object(record: Mapping[str, str], names: Names) -> Concept | Fault:
    """A box row as a concept, or what is wrong with it."""
    if record["IsGroupOf"] == "1":
        return "group_of", "one box around more than five instances"
    if record["IsDepiction"] == "1":
        return "depiction", "a drawing or statue of the thing"
    name = names.get(record["LabelName"])
    if not name:
        return "unknown_label", f"no name for {record['LabelName']}"
    box = _box(record, "")
    if box is None:
        return "malformed_box", f"not four numbers: {dict(record)}"
    return Concept(Grain.OBJECT, name, box, (), NORMALISED + record["id"])


def _relation(record: Mapping[str, str], names: Names) -> Concept | Fault:
    """A relation row as a concept, or what is wrong with it."""
    subject, other = names.get(record["LabelName1"]), names.get(record["LabelName2"])
    if not subject or not other:
        return "unknown_label", f"no name for {record['LabelName2'] if subject else record['LabelName1']}"
    box, other_box = _box(record, "1"), _box(record, "2")
    if box is None or other_box is None:
        return "malformed_box", f"not eight numbers: {dict(record)}"
    annotation_id = NORMALISED + record["id"]
    if record["RelationshipLabel"] != "is":
        phrase = f"{subject} {spoken(record['RelationshipLabel'])} {other}"
        return Concept(Grain.REGION, phrase, union(box, other_box), (), annotation_id)
    if action := ACTIONS.get(other.lower()):
        return Concept(Grain.REGION, f"{subject} {action}", box, (), annotation_id)
    return Concept(Grain.OBJECT, subject, box, (attribute_name(other),), annotation_id)


def spoken(label: str) -> str:
    """A relation label as words: "inside_of" and "insideOf" become "inside of"."""
    return clean_text(re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", label)).lower()


def attribute_name(name: str) -> str:
    """An attribute's name as words: "Wooden" becomes "wooden", "(made of)Leather" "made of leather"."""
    return clean_text(name.replace("(made of)", f" {MADE_OF}")).lower()


def _box(record: Mapping[str, str], end: str) -> Box | None:
    corners = box_of(record[f"{side}{end}"] for side in ("XMin", "YMin", "XMax", "YMax"))
    return corners and Box(corners.x, corners.y, corners.w - corners.x, corners.h - corners.y)
