"""What a user's table is, as its reader understands it: read in part, and nothing is fetched."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.new_source.found import LOOK_ROWS, Found, Wishes
from pipelines.new_source.media import served_folder
from x2vlm.data.readers import READERS, Source
from x2vlm.data.readers.own.formats import format_of, head_of, table_rows
from x2vlm.data.readers.own.layout import match_columns
from x2vlm.data.readers.own.places import LOCAL_HOST, is_local
from x2vlm.data.tables.parquet_rows import ParquetTable
from x2vlm.data.tables.rows import Row, UnreadableTable
from x2vlm.data.tables.values import text_of
from x2vlm.errors import ConfigError
from x2vlm.samples import Drop, Sample


def look_at_table(path: Path, wishes: Wishes) -> Found:
    """A CSV, TSV, JSON lines or Parquet file. ConfigError where its columns do not say what is what."""
    path = path.resolve()
    try:
        columns, notes = _columns(path, wishes)
        addresses = _addresses(path, columns, wishes.boxes is not None)
        num_rows, is_counted = _count(path)
    except (UnreadableTable, ValueError) as error:
        raise ConfigError(_in_words_of_options(f"{path.name}: {error}")) from None
    local = [address for address in addresses if is_local(address)]
    media, media_notes = served_folder(path.parent, local, wishes.media)
    source = Source(
        card=wishes.name,
        name=wishes.name,
        split="train",
        files={"rows": path},
        columns=columns,
        boxes=wishes.boxes,
        media_url=LOCAL_HOST if media else "",
        media_folder=str(media or ""),
    )
    found = _look_with("table", source, path.parent, {"rows": path.name})
    if found.num_looked < LOOK_ROWS:
        num_rows, is_counted = found.num_looked, True
    return dataclasses.replace(
        found,
        num_rows=max(num_rows, found.num_looked),
        is_counted=is_counted,
        columns=columns,
        boxes=wishes.boxes,
        media_folder=media,
        notes=[*notes, *media_notes],
    )


def _look_with(reader: str, source: Source, root: Path, files: dict[str, str]) -> Found:
    """The first rows of a source through its reader."""
    seen: Counter[str] = Counter()
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for item in READERS[reader](source, seen):
        if isinstance(item, Sample):
            samples.append(item)
        elif isinstance(item, Drop) and item.unit == "row":
            dropped[item.rule] += 1
            reasons.setdefault(item.rule, f"row {item.source_row}: {item.reason}" if item.reason else item.source_row)
        if seen["rows"] >= LOOK_ROWS:
            break
    return Found(reader, str(root), files, samples, dropped, reasons, seen["rows"], seen["rows"], True)


def _columns(path: Path, wishes: Wishes) -> tuple[dict[str, tuple[str | int, ...]], list[str]]:
    """The columns for the card: as given, or by position where a table without a header shows which is which."""
    given = dict(wishes.columns)
    if format_of(path) not in ("csv", "tsv"):
        return given, []
    if any(isinstance(name, int) for names in given.values() for name in names):
        return given, []
    first: list[list[str]] = []

    def take_header(names: Any) -> list[str]:
        first.append(list(names))
        return []

    next(table_rows(path, take_header), None)
    header = first[0] if first else []
    addresses = [
        at for at, text in enumerate(header) if "://" in text or re.search(r"\w\.(jpe?g|png|webp|mp4|webm)$", text)
    ]
    if given or len(addresses) != 1:
        return given, []
    others = [at for at in range(len(header)) if at not in addresses]
    if len(others) != 1:
        raise UnreadableTable(
            "its first line is no header: it holds an address",
            f"It has {len(header)} columns; say which is which, from 0: --url {addresses[0]} --caption NUMBER",
        )
    note = f"no header: column {addresses[0]} holds addresses, column {others[0]} captions"
    return {"url": (addresses[0],), "caption": (others[0],)}, [note]


def _addresses(path: Path, columns: Mapping[str, Any], with_boxes: bool) -> list[str]:
    """The addresses of the first rows. ValueError where no column holds them."""
    found: dict[str, tuple[str, ...]] = {}

    def match(names: Any) -> list[str]:
        found.update(match_columns(names, columns, with_boxes))
        return list(found["url"])

    has_header = not any(isinstance(name, int) for names in columns.values() for name in names)
    rows = itertools.islice(table_rows(path, match, has_header), LOOK_ROWS)
    texts = (text_of(row.values[found["url"][0]]).strip() for row in rows if isinstance(row, Row))
    return [text for text in texts if text]


def _count(path: Path) -> tuple[int, bool]:
    """How many rows a file has, and whether that is counted: of a text it is its size by the length of its lines."""
    if format_of(path) == "parquet":
        with ParquetTable(path) as table:
            return table.num_rows, True
    head = head_of(path)
    return int(path.stat().st_size / max(len(head), 1) * max(head.count(b"\n"), 1)), False


def _in_words_of_options(message: str) -> str:
    """A reader's message, which speaks of the card, in the words of this command."""
    message = re.sub(r"Say which in the card: `columns: \{(\w+): ([^}]+)\}`", r"Say which: --\1 \2", message)
    return message.replace("which the card gives for", "given for")
