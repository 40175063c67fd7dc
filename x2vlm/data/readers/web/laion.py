"""LAION: one sample per row of Parquet metadata, streamed in batches.

Roles: `rows`, or several called `rows-<name>`. Releases differ: column names come in upper and lower case, TEXT may be
called `txt`, sizes are integers or floats with NaN, any value may be missing, SAMPLE_ID is neither complete nor unique
(so the row number is the row key). Hashes of the images are read from `md5` (-md5 releases) or `sha256hash`; a column
that is just called `hash` is ignored, because what it is a hash of is not documented. The scores of a release
(similarity, punsafe, pwatermark, NSFW) are kept with the row for rules that an experiment switches on; a release
without any of them gives rows without scores.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from x2vlm.data.readers.hashes import published_hash
from x2vlm.data.readers.source import Source, finite_number, whole_number
from x2vlm.data.tables.parquet_rows import ParquetTable, is_textual
from x2vlm.data.tables.rows import BadRow, Row
from x2vlm.data.tables.values import text_of
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Caption, Drop, Sample, SourceScores

COLUMNS = {  # value: its column names in lower case
    "url": ("url",),
    "text": ("text", "txt", "caption"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "licence": ("license",),
    "language": ("language",),
    "sha256": ("sha256hash", "sha256"),
    "md5": ("md5",),
    "similarity": ("similarity",),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "nsfw": ("nsfw",),
}
SCORES = ("similarity", "punsafe", "pwatermark")
REQUIRED = ("url", "text")


def read_laion(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order, files in order of their roles; texts are unfiltered.

    The row key is the zero-based row number of file `rows`, and `<name>:<row number>` of file `rows-<name>`, so that
    adding a file changes no key.
    """
    roles = sorted(role for role in source.files if role == "rows" or role.startswith("rows-"))
    if not roles:
        raise SourceUnavailable(f"card {source.card}: LAION needs a file for role `rows` (or several, `rows-<name>`)")
    for role in roles:
        prefix = "" if role == "rows" else f"{role.removeprefix('rows-')}:"
        for row in _records(source, role):
            seen["rows"] += 1
            number = f"{prefix}{row.number}"
            yield source.drop_bad(row, number) if isinstance(row, BadRow) else _row(source, number, row.values)


def _records(source: Source, role: str) -> Iterator[Row | BadRow]:
    """The rows of a file, their values by the names in COLUMNS."""
    with source.reading(role), ParquetTable(source.file(role)) as table:
        names = _columns(source, role, table.schema)
        for row in table.rows(list(names.values()), source.within):
            if isinstance(row, Row):
                row = row._replace(values={what: row.values[name] for what, name in names.items()})
            yield row


def _columns(source: Source, role: str, schema: pa.Schema) -> dict[str, str]:
    """The file's column name for each of COLUMNS that it has."""
    found: dict[str, str] = {}
    for what, aliases in COLUMNS.items():
        matches = [name for alias in aliases for name in schema.names if name.lower() == alias]
        if matches:
            found[what] = matches[0]
    for what in REQUIRED:
        if what not in found:
            problem = f"no column {what.upper()}; it has {', '.join(schema.names)}"
            source.fail(role, problem, "Give a LAION metadata file, or one with these columns in any case")
        kind = schema.field(schema.get_all_field_indices(found[what])[0]).type
        if not is_textual(kind):
            source.fail(role, f"column {found[what]} holds {kind}, not text", "Give a LAION metadata file")
    return found


def _row(source: Source, row: str, values: Mapping[str, Any]) -> Sample | Drop:
    url, text = (values["url"] or "").strip(), clean_text(values["text"] or "")
    if not url:
        return source.drop(row, "missing_url")
    if not text:
        return source.drop(row, "empty_caption")
    licence = text_of(values.get("licence"))
    return Sample(
        key=source.key(row),
        source=source.name,
        source_row=row,
        split=source.split,
        kind="image",
        url=url,
        captions=(Caption(text, text_of(values.get("language")) or source.language, "alt"),),
        claimed_width=whole_number(values.get("width")),
        claimed_height=whole_number(values.get("height")),
        licence=source.licence if licence in ("", "?") else licence,
        published_hash=published_hash("sha256", values.get("sha256")) or published_hash("md5", values.get("md5")),
        source_scores=_source_scores(values),
    )


def _source_scores(values: Mapping[str, Any]) -> SourceScores | None:
    """The scores in the row's columns, None for missing or non-numeric values; None itself without any such column."""
    if not any(name in values for name in (*SCORES, "nsfw")):
        return None
    nsfw = values.get("nsfw")
    return SourceScores(
        **{name: finite_number(values.get(name)) for name in SCORES}, nsfw=None if nsfw is None else text_of(nsfw)
    )
