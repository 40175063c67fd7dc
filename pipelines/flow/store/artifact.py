"""Records of what was written: part records, manifests and references, sealed so that any changed byte shows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from pipelines.flow.fingerprint import canonical_json, merkle_root, sha256_of
from pipelines.flow.stage import Count, Input, InputFile, InputPart
from x2vlm.errors import CorruptArtifact


class Record(pydantic.BaseModel):
    """Base of everything the store writes as JSON."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=pydantic.BaseModel)


class FileRecord(Record):
    """One output file. `location` is where it lies below the part's folder, `path` its name for consumers."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    location: str = ""


class CountRecord(Record):
    """A `Count` as stored."""

    num_in: int
    num_out: int
    dropped: dict[str, int] = {}

    def to_count(self) -> Count:
        return Count(self.num_in, self.num_out, self.dropped)

    @classmethod
    def of(cls, count: Count) -> "CountRecord":
        return cls(num_in=count.num_in, num_out=count.num_out, dropped=dict(sorted(count.dropped.items())))


class ReadRecord(Record):
    """A file a part was made from."""

    slot: str
    path: str
    sha256: str


class PartRecord(Record):
    """`part.json`: what one part read, wrote and dropped. `seconds` is the only field that differs between reruns."""

    format: Literal[1] = 1
    stage: str
    version: int
    fingerprint: str
    spec: dict[str, Any] = {}
    reads: list[ReadRecord] = []
    files: list[FileRecord]
    counts: dict[str, CountRecord]
    summary: dict[str, Any] = {}
    seconds: float = 0.0

    @property
    def content_sha256(self) -> str:
        """Hash of the outputs alone: names, sizes and bytes of all files, counts and summary."""
        return sha256_of(
            {
                "files": [[file.path, file.bytes, file.sha256] for file in sorted(self.files, key=lambda f: f.path)],
                "counts": {unit: [c.num_in, c.num_out, c.dropped] for unit, c in self.counts.items()},
                "summary": self.summary,
            }
        )


class ManifestPart(Record):
    """A part as its manifest names it. `record_sha256` seals the whole `part.json`."""

    name: str
    record: PartRecord
    record_sha256: str


class InputRecord(Record):
    """An input artifact of a node: who made it and the exact manifest that was read ("" for upstream files)."""

    slot: str
    node: str
    root: str
    manifest_sha256: str = ""
    manifest_path: str = ""
    uri: str = ""  # of an upstream file
    bytes: int | None = None  # of an upstream file


def _listed(parts: object, validate: pydantic.ValidatorFunctionWrapHandler) -> Any:
    """Parts that are decoded when they are asked for stay what they are; lists are checked."""
    return validate(parts) if isinstance(parts, list | tuple) or not isinstance(parts, Sequence) else parts


class Manifest(Record):
    """The record of one artifact; written last, and the only thing readers trust.

    `parts` of many are decoded when they are asked for (`pipelines.flow.store.manifests`).
    """

    format: Literal[1] = 1
    node: str
    stage: str
    version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: list[InputRecord]
    parts: Annotated[Sequence[ManifestPart], pydantic.WrapValidator(_listed)]
    counts: dict[str, CountRecord]
    summary: dict[str, Any] = {}
    root: str
    provenance: dict[str, Any] = {}


@dataclass(frozen=True)
class SealedManifest:
    """A manifest that was read and whose seal holds, with its path in the store."""

    manifest: Manifest
    path: str
    sha256: str  # its seal


class Ref(Record):
    """`refs/<experiment>/<node>.json`: the human name of a manifest."""

    format: Literal[1] = 1
    experiment: str
    node: str
    manifest_path: str
    manifest_sha256: str
    fingerprint: str
    root: str


def content_root(records: Mapping[str, PartRecord]) -> str:
    """Merkle root over (name, content) of every part, in order: equal bytes give equal roots, whoever made them."""
    return merkle_root(sha256_of([name, record.content_sha256]) for name, record in records.items())


def total_counts(records: Mapping[str, PartRecord]) -> dict[str, Count]:
    """Counts of all parts added up, per unit."""
    totals: dict[str, Count] = {}
    for record in records.values():
        for unit, count in record.counts.items():
            totals[unit] = totals.get(unit, Count(0, 0)) + count.to_count()
    return totals


def seal(record: Record) -> tuple[bytes, str]:
    """Bytes to store for `record`, and their seal: the sha256 of the record's canonical JSON.

    The seal is stored inside the bytes, so that `unseal` notices any changed byte without a second file.
    """
    body = canonical_json(record.model_dump(mode="json"))
    digest = hashlib.sha256(body).hexdigest()
    return _HEAD + body + _MIDDLE + digest.encode() + _TAIL, digest


def unseal(record_type: type[R], data: bytes, where: str) -> tuple[R, str]:
    """The record stored in `data` and its seal; CorruptArtifact names `where` if a single byte is not as written.

    The body's bytes are hashed as they lie there: a manifest of 10,000 parts is read once, not encoded again.
    """
    remedy = "restore the file from a backup, or delete it and rerun the node that wrote it"
    end = len(data) - _SEAL_BYTES
    digest = data[end + len(_MIDDLE) : len(data) - len(_TAIL)]
    framed = data.startswith(_HEAD) and data[end:] == _MIDDLE + digest + _TAIL
    if end < len(_HEAD) or not framed:
        raise CorruptArtifact(f"{where}: not a sealed record; {remedy}")
    body = data[len(_HEAD) : end]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CorruptArtifact(f"{where}: its bytes do not match its seal; {remedy}")
    try:
        return record_type.model_validate_json(body), digest.decode()
    except pydantic.ValidationError as error:
        raise CorruptArtifact(f"{where}: sealed, but not a {record_type.__name__}: {error}; {remedy}") from None


# A sealed record is canonical JSON of {"body": record, "seal": sha256 of the body} and a newline.
_HEAD, _MIDDLE, _TAIL = b'{"body":', b',"seal":"', b'"}\n'
_SEAL_BYTES = len(_MIDDLE) + 64 + len(_TAIL)


def as_input(
    manifest: Manifest,
    path: str,
    sha256: str,
    file_uri: Callable[[PartRecord, FileRecord], str],
    open_segments: Callable[[InputPart, InputFile], Mapping[str, InputFile]] | None = None,
) -> Input:
    """`manifest`, at `path` with seal `sha256`, as its consumers see it.

    `file_uri` says where an output file of a part lies, `open_segments` what the segments of one are.
    """

    def with_segments(part: InputPart) -> InputPart:
        return part if open_segments is None else replace(part, open_segments=partial(open_segments, part))

    parts = tuple(
        InputPart(
            name=part.name,
            files=tuple(
                InputFile(
                    path=file.path,
                    bytes=file.bytes,
                    sha256=file.sha256,
                    uri=file_uri(part.record, file),
                    rows=file.rows,
                )
                for file in part.record.files
            ),
            summary=part.record.summary,
        )
        for part in manifest.parts
    )
    found = tuple(map(with_segments, parts))
    return Input(manifest.node, manifest.root, found, manifest.summary, path, sha256)
