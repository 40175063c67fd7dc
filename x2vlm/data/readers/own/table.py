"""A user's own table: CSV, TSV, JSON lines or Parquet, plain or packed, one image or clip a row.

Roles: `rows`, or several called `rows-<name>`. The card's `columns` says which column holds what; what it does not say
is told by usual names (`readers.own.layout.ALIASES`). A caption may be made of several columns, and a column may hold a
list of texts: each is a caption of the row. Addresses are URLs, or paths as `readers.own.places` takes them.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from x2vlm.data.boxes import NORMALISED
from x2vlm.data.readers.hashes import published_hash
from x2vlm.data.readers.join import Join
from x2vlm.data.readers.own.formats import table_rows
from x2vlm.data.readers.own.layout import BoxFormat, match_columns
from x2vlm.data.readers.own.places import kind_of, media_url
from x2vlm.data.readers.source import Fault, Source, box_of, finite_number, met_before, whole_number
from x2vlm.data.tables.rows import BadRow, ByteRange, Row, UnreadableTable
from x2vlm.data.tables.values import text_of, texts_of
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Caption, Concept, Drop, Grain, MediaKind, Sample, SourceScores

Values = Mapping[str, Sequence[Any]]  # field -> the values of its columns
SCORES = ("similarity", "punsafe", "pwatermark")
KINDS: dict[str, MediaKind] = {"image": "image", "photo": "image", "video": "video", "clip": "video"}
BOX_KEYS, TEXT_KEYS = ("bbox", "box"), ("label", "phrase", "text", "name", "category")


def read_table(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order, files in order of their roles.

    The row key is the column that the card calls `id` (a repeated or empty one is a drop), else the zero-based row
    number of file `rows` and `<name>:<row number>` of file `rows-<name>`. Boxes are counted as concepts, texts as
    captions. SourceUnavailable where the columns do not say what is what.
    """
    roles = sorted(role for role in source.files if role == "rows" or role.startswith("rows-"))
    if not roles:
        raise SourceUnavailable(f"card {source.card}: needs a file for role `rows` (or several, `rows-<name>`)")
    with Join() as known:
        for one in met_before(_ids(source, roles[0], source.within), _ids_before(source, roles[0])):
            known.first_listing("rows", one)
        for role in roles:
            yield from _read_file(source, role, known, seen)


def _read_file(source: Source, role: str, known: Join, seen: Counter[str]) -> Iterator[Sample | Drop]:
    path = source.file(role)
    prefix = "" if role == "rows" else f"{role.removeprefix('rows-')}:"
    found: dict[str, tuple[str, ...]] = {}
    for row in _rows(source, role, path, found, source.within):
        seen["rows"] += 1
        key = f"{prefix}{row.number}"
        if isinstance(row, BadRow):
            yield source.drop_bad(row, key)
            continue
        values = {field: [row.values[name] for name in columns] for field, columns in found.items()}
        if "id" in values:
            own = _text(values, "id")
            if not own:
                yield source.drop(key, "malformed_row", f"no {found['id'][0]}")
                continue
            if not known.first_listing("rows", own):
                yield source.drop(key, "duplicate_row", f"{found['id'][0]} {own} again")
                continue
            key = own
        yield from _row(source, path, key, values, seen)


def _rows(
    source: Source, role: str, path: Path, found: dict[str, tuple[str, ...]], within: ByteRange | None
) -> Iterator[Row | BadRow]:
    """The rows of a file; `found` is filled with the columns of each field before the first."""
    has_header = not any(isinstance(name, int) for names in source.columns.values() for name in names)

    def match(names: Sequence[str]) -> list[str]:
        try:
            found.update(match_columns(names, source.columns, source.boxes is not None))
        except ValueError as error:
            raise UnreadableTable(str(error), f"{path.name} is read by `reader: table`") from None
        return [name for columns in found.values() for name in columns]

    with source.reading(role):
        yield from table_rows(path, match, has_header, within)


def _ids_before(source: Source, role: str) -> Iterator[str]:
    """The ids of all rows before a slice, file by file; none without a slice."""
    for earlier, path in source.earlier.items():
        yield from _ids(replace(source, files={earlier: path}), earlier, None)
    if source.before:
        yield from _ids(source, role, source.before)


def _ids(source: Source, role: str, within: ByteRange | None) -> Iterator[str]:
    """The ids of the rows that a slice may repeat; none where rows have no ids or nothing comes before."""
    if "id" not in source.columns or not (source.earlier or source.within or within):
        return
    found: dict[str, tuple[str, ...]] = {}
    for row in _rows(source, role, source.file(role), found, within):
        if isinstance(row, Row) and (own := text_of(row.values[found["id"][0]]).strip()):
            yield own


def _row(source: Source, path: Path, key: str, values: Values, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """The sample of a row with the drops of its items, or the drop of the row with them."""
    made = list(_concepts(source.boxes, values)) if source.boxes is not None else []
    texts = [text for value in values.get("caption", ()) for text in _caption_texts(value)]
    seen["captions"] += len(texts)
    seen["concepts"] += len(made)
    address = _text(values, "url")
    span = _span(values)
    kind = KINDS.get(_text(values, "kind").casefold()) or ("video" if span else kind_of(address, source.kind))
    url = media_url(source, path, address) if address else ("missing_url", "")
    cleaned = [clean_text(text) for text in texts]
    fault = url if isinstance(url, tuple) else None
    if fault is None and isinstance(span, str):
        fault = "malformed_span", span
    if fault is None and not any(cleaned) and not made:
        fault = "empty_caption", ""
    if fault is not None:
        yield source.drop(key, *fault)
        yield from source.drop_concepts(key, (item for item, _ in made))
        for position in range(len(texts)):
            yield source.drop_item(key, "caption", str(position), "row_dropped")
        return
    language = _text(values, "language") or source.language
    for position, text in enumerate(cleaned):
        if not text:
            yield source.drop_item(key, "caption", str(position), "empty_caption")
    concepts: list[Concept] = []
    yield from source.keep_concepts(key, made, concepts)
    start, end = span if isinstance(span, tuple) and kind == "video" else (None, None)
    yield source.sample(
        key,
        str(url),
        kind,
        captions=tuple(Caption(text, language, "alt") for text in cleaned if text),
        concepts=tuple(concepts),
        start_seconds=start,
        end_seconds=end,
        licence=_text(values, "licence").strip("?"),
        author=clean_text(_text(values, "author")),
        claimed_width=whole_number(_first(values, "width")),
        claimed_height=whole_number(_first(values, "height")),
        published_hash=published_hash("sha256", _first(values, "sha256"))
        or published_hash("md5", _first(values, "md5")),
        source_scores=_source_scores(values),
    )


def _first(values: Values, field: str) -> Any:
    return values[field][0] if values.get(field) else None


def _text(values: Values, field: str) -> str:
    return text_of(_first(values, field)).strip()


def _caption_texts(value: Any) -> list[str]:
    """The texts of a value: a list's, or those of a list that is written as JSON."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        listed = _json_list(value)
        if listed is not None and listed and all(isinstance(text, str) for text in listed):
            value = listed
    return texts_of(value)


def _json_list(value: Any) -> list[Any] | None:
    """A list, or one that is written as JSON; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _source_scores(values: Values) -> SourceScores | None:
    if not any(name in values for name in (*SCORES, "nsfw")):
        return None
    scores = {name: finite_number(_first(values, name)) for name in SCORES}
    return SourceScores(**scores, nsfw=_text(values, "nsfw") or None)


def _span(values: Values) -> tuple[float, float] | str | None:
    """When a clip starts and ends, in seconds; None where the row has no times, a reason where they are none."""
    start, end = (_first(values, name) for name in ("start", "end"))
    if start in (None, "") and end in (None, ""):
        return None
    first, last = 0.0 if start in (None, "") else seconds_of(start), seconds_of(end)
    if first is None or last is None or not 0 <= first < last:
        return f"from {start!r} to {end!r} is no span of seconds"
    return first, last


def seconds_of(value: Any) -> float | None:
    """A time as seconds: a number, or text like "75.5", "1:15.5" and "00:01:15.500"; None for anything else."""
    if isinstance(value, bool):
        return None
    if not isinstance(value, str) or ":" not in value:
        return finite_number(value)
    parts = [finite_number(part.replace(",", ".")) for part in value.strip().split(":")]
    if len(parts) > 3 or any(part is None or part < 0 for part in parts):
        return None
    total = 0.0
    for part in parts:
        total = total * 60 + (part or 0.0)
    return total


def _concepts(boxes: BoxFormat, values: Values) -> Iterable[tuple[str, Concept | Fault]]:
    """(id, concept or what is wrong with it) of every box of a row."""
    grain, field = (Grain.REGION, "phrases") if "phrases" in values else (Grain.OBJECT, "labels")
    given = _first(values, "boxes")
    if given is None or given == "":
        return
    listed = _json_list(given)
    if listed is None:
        yield "box:0", ("malformed_box", f"no list of boxes: {given!r:.80}")
        return
    if listed and not isinstance(listed[0], list | dict):  # one box without the list around it
        listed = [listed]
    named = _json_list(_first(values, field))
    if named is None:
        named = texts_of(_first(values, field))
    has_own = all(isinstance(box, dict) for box in listed)
    for number, box in enumerate(listed):
        item = f"box:{number}"
        if not has_own and len(named) != len(listed):
            yield item, ("unequal_lengths", f"{len(listed)} boxes, {len(named)} {field}")
            continue
        text = _pick(box, TEXT_KEYS) if has_own else named[number]
        yield item, _concept(boxes, grain, item, _pick(box, BOX_KEYS) if has_own else box, text_of(text))


def _pick(box: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((box[key] for key in keys if key in box), None)


def _concept(boxes: BoxFormat, grain: Grain, item: str, numbers: Any, text: str) -> Concept | Fault:
    label = clean_text(text)
    if not label:
        return "empty_text", ""
    box = box_in_format(boxes, numbers)
    if box is None:
        return "malformed_box", f"{numbers!r:.80} is no box in the format {boxes.format}"
    prefix = NORMALISED if boxes.unit == "fraction" else ""
    return Concept(grain, label, box, (), prefix + item)


def box_in_format(boxes: BoxFormat, numbers: Any) -> Box | None:
    """Four numbers as corner and size, in the unit they are given in; None for what is no box with an area."""
    made = box_of(numbers) if isinstance(numbers, list | tuple) and len(numbers) == 4 else None
    if made is None:
        return None
    if boxes.format == "xyxy":
        made = Box(made.x, made.y, made.w - made.x, made.h - made.y)
    elif boxes.format == "cxcywh":
        made = Box(made.x - made.w / 2, made.y - made.h / 2, made.w, made.h)
    return made if made.w > 0 and made.h > 0 and math.isfinite(made.area) else None
