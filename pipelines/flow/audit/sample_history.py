"""The life of one sample: every table row of the store that carries its key, in the order of the graph."""

import io
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.audit.part_index import parts_of_files
from pipelines.flow.segments import mark_of_row, read_segment, segments_name, segments_of
from pipelines.flow.stage import InputFile
from pipelines.flow.store.artifact import FileRecord, ManifestPart, PartRecord, SealedManifest
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from x2vlm.command_line import printable

log = logging.getLogger(__name__)

MAX_TEXT = 160
PAYLOAD_SUFFIXES = (".tar", ".media.parquet")  # of the file that an index belongs to
OWNERS = "owners"  # in the spec of a part: the parts of rows about which its segments may say something
TABLE_SUFFIXES = (".parquet", ".index", ".arrow")


@dataclass(frozen=True)
class Trace:
    """One table row that carries the key: which node and file, which row (from 0), and the row itself. Row -1: it
    follows from the whole file."""

    node: str
    part: str
    file: str
    row: int
    values: dict[str, Any]
    shard: str = ""  # the file beside an index where the payload lies

    @property
    def verdict(self) -> str:
        """What this row means in one word."""
        name = self.file.rsplit("/", 1)[-1]
        # A table of decisions also names rows that stay: their rule is empty, or their action another one.
        if self.values.get("rule") or self.values.get("action") == "drop":
            return "dropped"
        if "payload_offset" in self.values:
            return "packed"
        if "step" in self.values:
            return "trained"
        if name.startswith("ledger"):
            return "fetched"
        return "scored" if name.startswith("scores") else "kept"

    def __str__(self) -> str:
        facts = {key: value for key, value in self.values.items() if key != "key" and value not in (None, "", [], {})}
        place = f" in {self.shard}" if self.shard else ""
        text = json.dumps(facts, ensure_ascii=False, default=str)
        short = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
        return printable(f"{self.verdict:8} {self.node}, part {self.part}, {self.file} row {self.row}{place}: {short}")


def trace_sample(
    store: Store, manifests: Sequence[SealedManifest], key: str, origins: Collection[str] | None = None
) -> list[Trace]:
    """Every row with this key in the Parquet files of these manifests, producers first.

    Only the key column is read until the key is met; row groups whose statistics exclude it are skipped. With
    `origins`, the sha256 of the files of first stages that hold the key, only parts are opened that read a file in
    which the key was found: what a part writes about a row, it has read. That takes milliseconds where looking
    everywhere takes minutes, and relies on the records being true. Of files of segments (`pipelines.flow.segments`)
    those are opened that are named after a part in which the key was found, where the part's spec lists such `owners`.
    """
    traces: list[Trace] = []
    seen: set[str] = set()
    carriers = set() if origins is None else set(origins)
    for stored in manifests:
        every = stored.manifest.parts
        if len(every) and OWNERS in every[0].record.spec:
            for part in every:
                found = _in_segments(store, stored.manifest.node, part, key, traces)
                seen.update(store.file_uri(part.record, file) for file in part.record.files if found)
                traces += found
        for part in every if origins is None else parts_of_files(store, stored, carriers):
            for file in part.record.files:
                uri = store.file_uri(part.record, file)
                if _is_table(file.path) and uri not in seen:
                    seen.add(uri)
                    shard = _payloads_beside(part.record, file)
                    for own, row, values in _rows_of(store, part.record, file, uri, key):
                        carriers.update((file.sha256, *own))
                        traces.append(Trace(stored.manifest.node, part.name, file.path, row, values, shard))
    return traces


def _in_segments(store: Store, node: str, part: ManifestPart, key: str, traces: Sequence[Trace]) -> list[Trace]:
    """The rows with this key in segments about the parts in which it was seen."""
    seen = {f"-{trace.part}" for trace in traces}
    owners = {
        name
        for name in part.record.spec.get(OWNERS, ())
        if isinstance(name, str) and any(name.endswith(one) for one in seen)
    }
    files = {file.path: file for file in part.record.files}
    found = []
    for path, file in files.items() if owners else ():
        if (listing := files.get(segments_name(path))) is None:
            continue
        uri = store.file_uri(part.record, file)
        try:
            with _open(store, store.file_uri(part.record, listing)) as stream:
                segments = segments_of(InputFile(path, file.bytes, file.sha256, uri), stream.read())
            for name in sorted(owners & segments.keys()):
                with _open(store, uri) as stream:
                    stream.seek(segments[name].start or 0)
                    table = read_segment(io.BytesIO(stream.read(segments[name].bytes)))
                found += [
                    Trace(node, part.name, f"{path}#{name}", row, table.slice(row, 1).to_pylist()[0])
                    for row in _places(table, key)
                ]
        except (OSError, pa.ArrowException) as error:
            log.warning("event=table_unreadable file=%s error=%r", uri, str(error))  # the audit of files reports it
    return found


def _is_table(path: str) -> bool:
    """True for tables, also for indexes of shards; not for payloads."""
    return path.endswith(TABLE_SUFFIXES) and not path.endswith(PAYLOAD_SUFFIXES)


def _payloads_beside(record: PartRecord, file: FileRecord) -> str:
    stem = file.path.removesuffix(".parquet").removesuffix(".index").removeprefix("_")
    names = {other.path for other in record.files}
    return next((name for suffix in PAYLOAD_SUFFIXES if (name := f"{stem}{suffix}") in names), "")


def _rows_of(
    store: Store, record: PartRecord, file: FileRecord, uri: str, key: str
) -> Iterator[tuple[tuple[str, ...], int, dict[str, Any]]]:
    """(what whoever read it is found by, row, values) of the rows with this key; of a segment, row in the segment."""
    listing = next((other for other in record.files if other.path == segments_name(file.path)), None)
    try:
        with _open(store, uri) as stream:
            if listing is None:
                yield from (((), row, values) for row, values in _matches(pq.ParquetFile(stream), key))
                return
            with _open(store, store.file_uri(record, listing)) as listed:
                segments = segments_of(InputFile(file.path, file.bytes, file.sha256, uri), listed.read())
            for segment in segments.values():
                stream.seek(segment.start or 0)
                table = read_segment(io.BytesIO(stream.read(segment.bytes)))
                for row in _places(table, key):
                    mark = mark_of_row(segment, row)
                    carriers = (segment.sha256,) if mark is None else (segment.sha256, mark)
                    yield carriers, row, table.slice(row, 1).to_pylist()[0]
    except (OSError, pa.ArrowException) as error:
        log.warning("event=table_unreadable file=%s error=%r", uri, str(error))  # the audit of files reports it


def _places(table: pa.Table, key: str) -> list[int]:
    if "key" not in table.column_names:
        return []
    return [row for row, value in enumerate(table["key"].to_pylist()) if value == key]


def _matches(table: pq.ParquetFile, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    names = table.schema_arrow.names
    if "key" not in names or not pa.types.is_string(table.schema_arrow.field("key").type):
        return  # rows in compact form have binary keys: they are followed by what they lead to
    start = 0
    for group in range(table.num_row_groups):
        if _may_hold(table, group, key):
            keys = table.read_row_group(group, columns=["key"]).column("key")
            hits = [index for index, value in enumerate(keys.to_pylist()) if value == key]
            if hits:
                rows = table.read_row_group(group).take(hits).to_pylist()
                yield from ((start + index, row) for index, row in zip(hits, rows, strict=True))
        start += table.metadata.row_group(group).num_rows


def _may_hold(table: pq.ParquetFile, group: int, key: str) -> bool:
    row_group = table.metadata.row_group(group)
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        if column.path_in_schema == "key":
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max:
                return True
            return bool(statistics.min <= key <= statistics.max)
    return True


def _open(store: Store, uri: str) -> Any:
    path = local_path_of(uri)
    if path is not None:
        return path.open("rb")
    blobs = store.blobs
    inside = blobs.local_root is None and uri.startswith(f"{blobs.uri}/")
    return (blobs.fs if inside else fsspec.core.url_to_fs(uri)[0]).open(uri, "rb")
