"""Segments: many small tables in one file, each of which a part can read, and depend on, alone.

A file of segments is a concatenation of Arrow IPC streams, each compressed with zstd as a whole: buffer by buffer, as
Arrow compresses itself, a hundred rows take a third more bytes. Beside it lies `<its name>.segments`, which
names each segment with its place, its size and its sha256. A `Read` of a segment enters a fingerprint by the segment's
sha256, so a part runs again only when rows of its own have changed, and however many parts read from a file, it is one
file in the store.

A segment costs about a kilobyte, so one for every few rows is too much. Several consumers may then share a segment: its
rows are cut into *groups*, which the listing names with a digest of exactly their rows (`row_digests`). A part that
needs the group `g` of all parts of an artifact reads what `read_of_groups` gives, which enters its fingerprint by those
digests, looks the artifact up (`Part.lookup_artifacts`) and finds its segments with rows of `g` by `segments_with`.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipelines.flow.stage import Input, InputFile, InputPart

SUFFIX = ".segments"
GROUP_TYPE = pa.struct([("name", pa.string()), ("sha256", pa.binary(32)), ("rows", pa.int64())])
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("rows", pa.int64()),
        ("groups", pa.list_(GROUP_TYPE)),
    ]
)
GROUPS = "groups"  # in the `detail` of a segment that has some: an array of GROUP_TYPE
SEGMENTS = "segments"  # in the `detail` of a read of groups: part, start, bytes and sha256 of each


@dataclass(frozen=True)
class Group:
    """Consecutive rows of a segment that one consumer needs, with the digest of them."""

    name: str
    sha256: bytes
    rows: int


@dataclass
class Holders:
    """Where the rows of a group lie: its segments, each with the name of its part, in order."""

    segments: list[tuple[str, InputFile]] = field(default_factory=list)
    rows: int = 0
    digests: list[bytes] = field(default_factory=list)  # of the rows in each of the segments


def segments_name(path: str) -> str:
    """Name of the listing of the segments of the file called `path`."""
    return f"{path}{SUFFIX}"


class SegmentWriter:
    """Writes a file of segments and its listing, one table after the other; use it as a context manager.

    Equal tables in equal order give equal bytes. ValueError if a name comes twice. The listing appears on leaving.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("xb")
        self._listed: dict[str, dict[str, object]] = {}
        self._groups: list[Sequence[Group]] = []
        self._offset = 0

    @property
    def file_rows(self) -> dict[str, int]:
        """Rows by file name, as `PartResult.file_rows` wants them."""
        rows = sum(int(str(one["rows"])) for one in self._listed.values())
        return {self.path.name: rows, segments_name(self.path.name): len(self._listed)}

    def add(self, name: str, table: pa.Table, groups: Sequence[Group] = ()) -> None:
        """Append `table` as the segment `name`, whose rows are those of `groups` in order if there are any."""
        if name in self._listed:
            raise ValueError(f"{self.path.name}: two segments are called {name}")
        data = encode(table)
        self._stream.write(data)
        digest = hashlib.sha256(data).digest()
        entry = {"name": name, "offset": self._offset, "bytes": len(data), "sha256": digest, "rows": table.num_rows}
        self._listed[name] = entry
        self._groups.append(groups)
        self._offset += len(data)

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()
        if kind is None:
            listing = pa.Table.from_pylist(list(self._listed.values()), schema=pa.schema(list(SCHEMA)[:-1]))
            listing = listing.append_column(SCHEMA.field(GROUPS), _group_lists(self._groups))
            # Not Parquet: a plan reads one for every part of a node, and opening Parquet takes twenty times as long.
            self.path.with_name(segments_name(self.path.name)).write_bytes(encode(listing))


def encode(table: pa.Table) -> bytes:
    """`table` as an Arrow IPC stream of one record batch, compressed with zstd; equal rows give equal bytes.

    The rows are copied first: a slice of a table shares its buffers, and the last byte of a bitmap would hold bits of
    the rows behind it.
    """
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.take(pa.array(np.arange(table.num_rows))).combine_chunks())
    return bytes(pa.Codec("zstd").compress(sink.getvalue(), asbytes=True))


def read_segment(stream: BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of one segment, from a stream of its bytes (`PartReader.open`); with `columns` only those of them that
    it has."""
    with stream, pa.input_stream(pa.py_buffer(stream.read()), compression="zstd") as plain:
        data = plain.read()
    included = None
    if columns is not None:
        names = pa.ipc.open_stream(data).schema.names
        included = [names.index(name) for name in columns if name in names]
    return pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(included_fields=included)).read_all()


def segments_of(file: InputFile, listing: bytes) -> Mapping[str, InputFile]:
    """The segments of `file` by name, from the bytes of its listing. Their `path` is `<file>#<name>`."""
    table = read_segment(io.BytesIO(listing)).combine_chunks()
    columns = (table[name].to_pylist() for name in SCHEMA.names[:-1])
    groups = _array(table, GROUPS)
    found = {}
    for number, (name, offset, size, digest, rows) in enumerate(zip(*columns, strict=True)):
        own = groups[number].values if groups[number].is_valid else None
        found[name] = InputFile(
            path=f"{file.path}#{name}",
            bytes=size,
            sha256=digest.hex(),
            uri=file.uri,
            rows=rows,
            detail={GROUPS: own} if own is not None and len(own) else {},
            start=offset,
        )
    return found


def holders_of_groups(parts: Iterable[InputPart], path: str) -> dict[str, Holders]:
    """The groups of all segments of the file `path` of each of `parts`, by name."""
    found: dict[str, Holders] = {}
    for part in parts:
        for segment in part.segments(path).values():
            groups = segment.detail.get(GROUPS)
            if groups is None:
                continue
            place = (part.name, replace(segment, detail={}))  # one for all groups: there may be a hundred in a segment
            columns = (groups.field(name).to_pylist() for name in ("name", "sha256", "rows"))
            for name, digest, rows in zip(*columns, strict=True):
                holders = found.setdefault(name, Holders())
                holders.segments.append(place)
                holders.rows += rows
                holders.digests.append(digest)
    return found


def read_of_groups(path: str, name: str, holders: Holders) -> InputFile:
    """The rows of a group in all parts of an artifact, as a part reads them. It has no bytes of its own: `sha256` is
    that of the digests of the rows of each part, in the order of the parts, and `detail` says where these lie."""
    places = [(part, segment.start, segment.bytes, bytes.fromhex(segment.sha256)) for part, segment in holders.segments]
    sha256 = combined(holders.digests)
    return InputFile(f"{path}@{name}", 0, sha256, "", rows=holders.rows, detail={SEGMENTS: places})


def segments_with(read: InputFile, artifact: Input) -> list[tuple[str, InputFile]]:
    """The segments that a `read_of_groups` of this artifact takes rows from, each with the name of its part."""
    path = read.path.rpartition("@")[0]
    found = []
    for name, start, size, digest in read.detail[SEGMENTS]:
        file = artifact.part(name).file(path)
        found.append((name, replace(file, bytes=size, sha256=digest.hex(), rows=None, start=start)))
    return found


def mark_of_row(segment: InputFile, row: int) -> str | None:
    """What the read of the group with row `row` of this segment is found by (`mark_of_read`); None without groups."""
    groups = segment.detail.get(GROUPS)
    if groups is None:
        return None
    place = int(np.searchsorted(np.cumsum(groups.field("rows").to_pylist()), row, side="right"))
    path = segment.path.partition("#")[0]
    return mark_of_read(f"{path}@{groups.field('name')[place].as_py()}")


def mark_of_read(path: str) -> str | None:
    """A hash of the path of a `read_of_groups`, None of any other: its sha256 is that of the rows of all parts, so one
    of these cannot tell who read it."""
    return hashlib.sha256(path.encode()).hexdigest() if "@" in path else None


def hashes_inside(parts: Iterable[InputPart]) -> Iterator[str]:
    """The sha256 of every segment of every file of `parts`, and of every `read_of_groups` of them: what a part may read
    besides whole files. One listing is in memory at a time."""
    digests: dict[tuple[str, str], list[bytes]] = {}
    for part in parts:
        names = {file.path for file in part.files}
        for path in sorted(name for name in names if segments_name(name) in names):
            for segment in part.segments(path).values():
                yield segment.sha256
                if (groups := segment.detail.get(GROUPS)) is not None:
                    for name, digest in zip(
                        groups.field("name").to_pylist(), groups.field("sha256").to_pylist(), strict=True
                    ):
                        digests.setdefault((path, name), []).append(digest)
    yield combined(())
    yield from map(combined, digests.values())


def combined(digests: Iterable[bytes]) -> str:
    """The sha256 of the rows of a group in several segments, from that of the rows in each."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _group_lists(groups: Sequence[Sequence[Group]]) -> pa.ListArray:
    flat = [group for own in groups for group in own]
    columns = [[group.name for group in flat], [group.sha256 for group in flat], [group.rows for group in flat]]
    arrays = [pa.array(values, kind.type) for values, kind in zip(columns, GROUP_TYPE, strict=True)]
    ends = np.cumsum([0, *map(len, groups)])
    structs = pa.StructArray.from_arrays(arrays, fields=list(GROUP_TYPE))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs)


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
