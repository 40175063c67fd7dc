"""What a user's data are, as their reader understands them: read in part, and nothing is fetched."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.new_source.media import served_folder
from x2vlm.data.readers import READERS, Source
from x2vlm.data.readers.own.formats import format_of, head_of, table_rows
from x2vlm.data.readers.own.layout import BoxFormat, match_columns
from x2vlm.data.readers.own.places import LOCAL_HOST, is_local
from x2vlm.data.tables.parquet_rows import ParquetTable
from x2vlm.data.tables.rows import Row, UnreadableTable
from x2vlm.data.tables.values import text_of
from x2vlm.errors import ConfigError
from x2vlm.samples import Drop, Sample

LOOK_ROWS = 20_000  # read to count kinds, hosts and drops
SHOWN_ROWS = 5


@dataclass(frozen=True)
class Wishes:
    """What the user said about the data; everything may be left to be found out."""

    name: str
    columns: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    boxes: BoxFormat | None = None
    media: Path | None = None  # where paths begin


@dataclass(frozen=True)
class Found:
    """What a source holds, for its card and its experiment."""

    reader: str
    root: Path  # absolute; the card's files lie below it
    files: dict[str, str]  # role -> path below `root`
    samples: list[Sample]  # of the rows looked at
    dropped: Counter[str]  # rule -> rows of them
    reasons: dict[str, str]  # rule -> the first reason
    num_looked: int
    num_rows: int  # of all, estimated where `is_counted` is false
    is_counted: bool
    columns: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    boxes: BoxFormat | None = None
    media_folder: Path | None = None  # whose files are served on this machine while they are fetched
    notes: list[str] = field(default_factory=list)

    @property
    def share_kept(self) -> float:
        return len(self.samples) / max(self.num_looked, 1)


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
    found = look_with("table", source, path.parent, {"rows": path.name})
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


def look_with(reader: str, source: Source, root: Path, files: dict[str, str]) -> Found:
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
    return Found(reader, root, files, samples, dropped, reasons, seen["rows"], seen["rows"], True)


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


LOOKERS: dict[str, Callable[[Path, Wishes], Found]] = {"table": look_at_table}


def kind_of_source(path: Path) -> str:
    """table, folder or tars. ConfigError if there is nothing."""
    if "*" in path.name or path.suffix == ".tar":
        return "tars"
    if path.is_dir():
        return "tars" if any(path.glob("*.tar")) else "folder"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file or folder")
    return "table"


def look_at(path: Path, wishes: Wishes) -> Found:
    """What a user's data are. ConfigError names what is missing to understand them."""
    kind = kind_of_source(path)
    if kind not in LOOKERS:
        raise ConfigError(f"{path} is read as {kind}, which is not known here; there are {', '.join(sorted(LOOKERS))}")
    found = LOOKERS[kind](path, wishes)
    if not found.samples:
        rules = "; ".join(f"{rule} {number} ({found.reasons[rule]})" for rule, number in found.dropped.most_common(3))
        raise ConfigError(f"{path}: none of the first {found.num_looked} rows can be used: {rules or 'it is empty'}")
    return found
