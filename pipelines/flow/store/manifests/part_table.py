"""Records of parts as columns of a Parquet file, in chunks that can each be read and checked alone.

A chunk is a row group of CHUNK_PARTS parts. Its bytes lie in one piece, so one ranged read fetches it, and its content
root is a subtree of the artifact's Merkle root.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.fingerprint import canonical_json, merkle_root, sha256_of
from pipelines.flow.store.artifact import CountRecord, FileRecord, ManifestPart, PartRecord, ReadRecord, Record, seal

CHUNK_PARTS = 1024  # a power of two, so that chunks are whole subtrees
DIGEST = pa.binary(32)
READ = pa.struct([("slot", pa.string()), ("path", pa.string()), ("sha256", DIGEST)])
FILE = pa.struct(
    [
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", DIGEST),
        ("rows", pa.int64()),
        ("location", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("stage", pa.string()),
        ("version", pa.int32()),
        ("fingerprint", DIGEST),
        ("record_sha256", DIGEST),
        ("content_sha256", DIGEST),
        ("spec", pa.string()),  # JSON, as are counts and summary
        ("reads", pa.list_(READ)),
        ("files", pa.list_(FILE)),
        ("counts", pa.string()),
        ("summary", pa.string()),
        ("seconds", pa.float64()),
    ]
)
# What repeats from part to part.
DICTIONARY = ["stage", "spec", "reads.list.element.slot", "reads.list.element.path", "files.list.element.path"]
COMPRESSION_LEVEL = 6


class ChunkRecord(Record):
    """Where a chunk lies in its file, the sha256 of these bytes, and the Merkle root of its parts' contents."""

    start: int
    bytes: int
    sha256: str
    root: str


class PartTableWriter:
    """Writes parts to a table held in memory, compressed; `close` gives its bytes."""

    def __init__(self, chunk_parts: int = CHUNK_PARTS) -> None:
        self.chunk_parts = chunk_parts
        self.chunks: list[ChunkRecord] = []
        self.num_parts = 0
        self.num_bytes = 0  # of all files of all parts
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._sink,
            SCHEMA,
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=DICTIONARY,
            write_statistics=["name"],
        )
        self._waiting: list[tuple[ManifestPart, str]] = []

    def add(self, name: str, record: PartRecord) -> None:
        """Append a part."""
        part = ManifestPart.model_construct(name=name, record=record, record_sha256=seal(record)[1])
        self._waiting.append((part, record.content_sha256))
        self.num_parts += 1
        self.num_bytes += sum(file.bytes for file in record.files)
        if len(self._waiting) == self.chunk_parts:
            self._write_chunk()

    def close(self) -> bytes:
        """The bytes of the file."""
        if self._waiting:
            self._write_chunk()
        self._writer.close()
        return self._sink.getvalue()

    def _write_chunk(self) -> None:
        start = self._sink.tell()
        self._writer.write_table(_as_table(self._waiting), row_group_size=len(self._waiting))
        end = self._sink.tell()
        digest = hashlib.sha256(self._sink.getbuffer()[start:end]).hexdigest()
        root = merkle_root(sha256_of([part.name, content]) for part, content in self._waiting)
        self.chunks.append(ChunkRecord(start=start, bytes=end - start, sha256=digest, root=root))
        self._waiting.clear()


def _as_table(parts: Sequence[tuple[ManifestPart, str]]) -> pa.Table:
    records = [part.record for part, _ in parts]
    reads = [[(one.slot, one.path, bytes.fromhex(one.sha256)) for one in record.reads] for record in records]
    files = [
        [(one.path, one.bytes, bytes.fromhex(one.sha256), one.rows, one.location) for one in record.files]
        for record in records
    ]
    columns: dict[str, Iterable[Any]] = {
        "name": [part.name for part, _ in parts],
        "stage": [record.stage for record in records],
        "version": [record.version for record in records],
        "fingerprint": [bytes.fromhex(record.fingerprint) for record in records],
        "record_sha256": [bytes.fromhex(part.record_sha256) for part, _ in parts],
        "content_sha256": [bytes.fromhex(content) for _, content in parts],
        "spec": [_text(record.spec) for record in records],
        "reads": reads,
        "files": files,
        "counts": [_text({k: c.model_dump() for k, c in record.counts.items()}) for record in records],
        "summary": [_text(record.summary) for record in records],
        "seconds": [record.seconds for record in records],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _text(value: object) -> str:
    return canonical_json(value).decode()


class Chunk:
    """The parts of one chunk; each column is read, by `read_column`, and decoded when it is first asked for."""

    def __init__(self, num_parts: int, read_column: Callable[[str], pa.ChunkedArray]) -> None:
        self.num_parts = num_parts
        self._read_column = read_column
        self._columns: dict[str, list[Any]] = {}

    def record(self, row: int) -> PartRecord:
        """The record of the part at `row`, equal to its `part.json`."""
        places, (slots, read_paths, read_digests) = self._reads
        counts = json.loads(self._column("counts")[row])
        return PartRecord.model_construct(
            stage=self._column("stage")[row],
            version=self._column("version")[row],
            fingerprint=self.fingerprint(row),
            spec=json.loads(self._column("spec")[row]),
            reads=[
                ReadRecord.model_construct(slot=slots[i], path=read_paths[i], sha256=read_digests[i].hex())
                for i in range(places[row], places[row + 1])
            ],
            files=self.files(row),
            counts={unit: CountRecord.model_construct(**count) for unit, count in counts.items()},
            summary=self.summary(row),
            seconds=self._column("seconds")[row],
        )

    def part(self, row: int) -> ManifestPart:
        """The part at `row` as the manifest names it."""
        sealed = self._column("record_sha256")[row].hex()
        return ManifestPart.model_construct(name=self.names[row], record=self.record(row), record_sha256=sealed)

    @property
    def names(self) -> list[str]:
        """Names of the parts."""
        return self._column("name")

    def fingerprint(self, row: int) -> str:
        """The fingerprint of the part at `row`."""
        return str(self._column("fingerprint")[row].hex())

    def summary(self, row: int) -> dict[str, Any]:
        """The summary of the part at `row`."""
        found: dict[str, Any] = json.loads(self._column("summary")[row])
        return found

    def files(self, row: int) -> list[FileRecord]:
        """Records of the files of the part at `row`."""
        paths, sizes, digests, rows, locations = self.file_columns
        return [
            FileRecord.model_construct(
                path=paths[i], bytes=sizes[i], sha256=digests[i].hex(), rows=rows[i], location=locations[i]
            )
            for i in range(self.file_places[row], self.file_places[row + 1])
        ]

    @property
    def file_places(self) -> list[int]:
        """Where the files of each part begin among all files of the chunk, and where the last ones end."""
        return self._files[0]

    @property
    def file_columns(self) -> list[list[Any]]:
        """Paths, sizes, digests, rows and locations of all files of the chunk."""
        return self._files[1]

    def _column(self, name: str) -> list[Any]:
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = _shared(self._read_column(name).combine_chunks())
        return found

    @cached_property
    def _reads(self) -> tuple[list[int], list[list[Any]]]:
        return _lists(self._read_column("reads"))

    @cached_property
    def _files(self) -> tuple[list[int], list[list[Any]]]:
        return _lists(self._read_column("files"))


def _lists(column: pa.ChunkedArray) -> tuple[list[int], list[list[Any]]]:
    """Where the items of each row begin among all items, and where the last ones end; and the fields of all items."""
    lengths: list[int] = pc.list_value_length(column).to_pylist()
    places = [0]
    for length in lengths:
        places.append(places[-1] + length)
    items = column.combine_chunks().flatten()
    return places, [_shared(items.field(index)) for index in range(items.type.num_fields)]


def _shared(values: pa.Array) -> list[Any]:
    """The values as Python objects; texts that repeat are one object."""
    if not pa.types.is_string(values.type):
        return list(values.to_pylist())
    encoded = values.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    return [words[place] for place in encoded.indices.to_pylist()]
