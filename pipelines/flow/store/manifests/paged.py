"""A manifest of many parts: a small sealed JSON, and beside it a Parquet file with the parts.

The JSON names the file with its sha256, and each of its chunks with place, sha256 and content root; so its seal covers
every byte, and damage is told by chunk. Readers see `Manifest.parts` as a sequence that decodes a chunk at a
time. Manifests of few parts keep them inside, and so do all that were written before.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from pipelines.flow.fingerprint import merkle_join, merkle_root, sha256_of
from pipelines.flow.store.artifact import (
    CountRecord,
    InputRecord,
    Manifest,
    ManifestPart,
    PartRecord,
    Record,
    seal,
    unseal,
)
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.layout import parts_table_path
from pipelines.flow.store.manifests.part_table import CHUNK_PARTS, Chunk, ChunkRecord, PartTableWriter
from x2vlm.errors import CorruptArtifact

INLINE_PARTS = CHUNK_PARTS  # a manifest of at most so many parts is one file
INLINE_FILES = 20_000  # and of at most so many files and reads
KEPT_CHUNKS = 2
REMEDY = "restore the file from a backup, or delete it and rerun the node that wrote it"


class TableRecord(Record):
    """The file with the parts of a manifest: where it lies in the store, and what is in it."""

    path: str
    bytes: int
    sha256: str
    num_parts: int
    chunk_parts: int  # of every chunk but the last
    chunks: list[ChunkRecord]


class PagedManifest(Record):
    """What is sealed of a manifest of many parts: all fields of `Manifest`, with the parts' file in their place."""

    format: Literal[2] = 2
    node: str
    stage: str
    version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: list[InputRecord]
    table: TableRecord
    num_bytes: int  # of all files of all parts
    counts: dict[str, CountRecord]
    summary: dict[str, Any] = {}
    root: str
    provenance: dict[str, Any] = {}


class ManifestFile(pydantic.RootModel[Annotated[Manifest | PagedManifest, pydantic.Field(discriminator="format")]]):
    """Either form of a manifest."""


class PagedParts(Sequence[ManifestPart]):
    """The parts of a table, decoded a chunk at a time: fast in their order, a chunk's time for each jump."""

    def __init__(self, data: bytes, table: TableRecord, num_bytes: int) -> None:
        self.data, self.table, self.num_bytes = data, table, num_bytes
        self._file = pq.ParquetFile(pa.BufferReader(data))
        self._kept: dict[int, Chunk] = {}
        self._decoding = threading.Lock()

    def __len__(self) -> int:
        return self.table.num_parts

    @overload
    def __getitem__(self, place: int) -> ManifestPart: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[ManifestPart]: ...
    def __getitem__(self, place: int | slice) -> ManifestPart | Sequence[ManifestPart]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        chunk, row = self.locate(place)
        return chunk.part(row)

    def __iter__(self) -> Iterator[ManifestPart]:
        for chunk in self.chunks():
            for row in range(chunk.num_parts):
                yield chunk.part(row)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PagedParts) and self.seals == other.seals

    __hash__ = None  # type: ignore[assignment]

    @property
    def names(self) -> list[str]:
        """Names of all parts."""
        return list(self._column("name").to_pylist())

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of all parts."""
        return [digest.hex() for digest in self._column("fingerprint").to_pylist()]

    @property
    def seals(self) -> list[tuple[str, bytes]]:
        """(name, seal of the record) of all parts."""
        return list(zip(self.names, self._column("record_sha256").to_pylist(), strict=True))

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order."""
        for number in range(len(self.table.chunks)):
            yield self.chunk(number)

    def summaries(self, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, summary) of the parts whose summary, as JSON, has `text` in it: others are not decoded."""
        for chunk in self.chunks():
            for row, summary in enumerate(chunk.summary_texts):
                if text in summary:
                    yield chunk.names[row], chunk.summary(row)

    def locate(self, place: int) -> tuple[Chunk, int]:
        """The chunk of the part at `place`, and its row there. IndexError beyond the end."""
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(f"part {place} of {len(self)}")
        number, row = divmod(place, self.table.chunk_parts)
        return self.chunk(number), row

    def chunk(self, number: int) -> Chunk:
        """The chunk with this number; the ones last asked for are kept."""
        found = self._kept.get(number)
        if found is None:
            found = Chunk(
                min(self.table.chunk_parts, len(self) - number * self.table.chunk_parts), self._reader(number)
            )
            self._kept = {**dict(list(self._kept.items())[1 - KEPT_CHUNKS :]), number: found}
        return found

    def _reader(self, number: int) -> Callable[[str], pa.ChunkedArray]:
        def read_column(name: str) -> pa.ChunkedArray:
            with self._decoding:
                return self._file.read_row_group(number, columns=[name])[name]

        return read_column

    def _column(self, name: str) -> pa.ChunkedArray:
        with self._decoding:
            return self._file.read(columns=[name])[name]


class PartsBuilder:
    """Collects the parts of a manifest: few as they are, many as a table."""

    def __init__(self) -> None:
        self._few: list[ManifestPart] = []
        self._num_files = 0
        self._writer: PartTableWriter | None = None

    def add(self, name: str, record: PartRecord) -> None:
        """Append a part."""
        if self._writer is not None:
            self._writer.add(name, record)
            return
        self._few.append(ManifestPart(name=name, record=record, record_sha256=seal(record)[1]))
        self._num_files += len(record.files) + len(record.reads)
        if len(self._few) > INLINE_PARTS or self._num_files > INLINE_FILES:
            self._writer = PartTableWriter(CHUNK_PARTS)
            for part in self._few:
                self._writer.add(part.name, part.record)
            self._few.clear()

    def close(self, node: str, fingerprint: str) -> tuple[Sequence[ManifestPart], str]:
        """The parts of the manifest of this node and fingerprint, and their content root."""
        writer = self._writer
        if writer is None:
            return self._few, merkle_root(sha256_of([part.name, part.record.content_sha256]) for part in self._few)
        stage, name = node.split("/", 1)
        data = writer.close()
        digest = hashlib.sha256(data).hexdigest()
        table = TableRecord(
            path=parts_table_path(stage, name, fingerprint, digest),
            bytes=len(data),
            sha256=digest,
            num_parts=writer.num_parts,
            chunk_parts=writer.chunk_parts,
            chunks=writer.chunks,
        )
        return PagedParts(data, table, writer.num_bytes), merkle_join([chunk.root for chunk in writer.chunks])


def sealed_manifest(manifest: Manifest) -> tuple[bytes, str]:
    """Bytes to store for `manifest`, and their seal. The table of many parts has a file of its own."""
    if not isinstance(manifest.parts, PagedParts):
        return seal(manifest)
    fields = {name: getattr(manifest, name) for name in PagedManifest.model_fields if name in Manifest.model_fields}
    return seal(
        PagedManifest(**{**fields, "format": 2}, table=manifest.parts.table, num_bytes=manifest.parts.num_bytes)
    )


def open_manifest(blobs: Blobs, data: bytes, where: str) -> tuple[Manifest, str]:
    """The manifest stored in `data` and its seal; CorruptArtifact if a byte of it or of its table is not as written."""
    found, digest = unseal(ManifestFile, data, where)
    if isinstance(found.root, Manifest):
        return found.root, digest
    paged = found.root
    parts = PagedParts(_table_bytes(blobs, paged.table), paged.table, paged.num_bytes)
    fields = {name: getattr(paged, name) for name in Manifest.model_fields if name not in ("parts", "format")}
    return Manifest.model_construct(**fields, parts=parts), digest


def _table_bytes(blobs: Blobs, table: TableRecord) -> bytes:
    data = blobs.read(table.path)
    if data is None:
        raise CorruptArtifact(f"{blobs.uri_of(table.path)}: gone, with the parts of its manifest; {REMEDY}")
    if len(data) != table.bytes or hashlib.sha256(data).hexdigest() != table.sha256:
        damaged = [number for number, chunk in enumerate(table.chunks) if not _is_intact(data, chunk)]
        raise CorruptArtifact(
            f"{blobs.uri_of(table.path)}: its bytes do not match its manifest, in chunks {damaged or 'none'} of "
            f"{len(table.chunks)}; {REMEDY}"
        )
    return data


def _is_intact(data: bytes, chunk: ChunkRecord) -> bool:
    return hashlib.sha256(data[chunk.start : chunk.start + chunk.bytes]).hexdigest() == chunk.sha256
