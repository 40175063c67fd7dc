"""Running the parts of one stage without the engine: planned, run one by one, checked, and handed on as an input."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pydantic

from pipelines.flow.live import Report, no_report
from pipelines.flow.segments import segments_name, segments_of
from pipelines.flow.stage import (
    ArtifactReference,
    Count,
    Input,
    InputFile,
    InputPart,
    Part,
    PartResult,
    PartSummary,
    Stage,
    part_fingerprint,
)
from x2vlm.errors import CorruptArtifact


@dataclass(frozen=True)
class Reader:
    """Opens local input files after checking their hash, and only those that the part declared."""

    part: Part
    inputs: Mapping[str, Sequence[Input]] = field(default_factory=dict)

    def artifact(self, reference: ArtifactReference) -> Input:
        return next(one for items in self.inputs.values() for one in items if one.reference == reference)

    def local_path(self, file: InputFile) -> Path:
        self._check(file)
        assert file.start is None, f"{file.path} is a segment: open it"
        data = Path(file.uri).read_bytes()
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise CorruptArtifact(f"{file.uri}: changed")
        return Path(file.uri)

    def open(self, file: InputFile) -> BinaryIO:
        if file.start is None:
            return self.local_path(file).open("rb")
        data = self.read_range(file, file.start, file.bytes)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise CorruptArtifact(f"{file.uri}: changed")
        return BytesIO(data)

    def read_range(self, file: InputFile, start: int, num_bytes: int) -> bytes:
        self._check(file)
        with Path(file.uri).open("rb") as stream:
            stream.seek(start)
            return stream.read(num_bytes)

    def _check(self, file: InputFile) -> None:
        looked_up = {
            file.uri
            for one in self.part.lookup_artifacts
            for part in self.artifact(one.artifact).parts
            for file in part.files
        }
        declared = {read.file.uri for read in (*self.part.reads, *self.part.lookups)} | looked_up
        assert file.uri in declared, f"{file.path} was not declared"


@dataclass(frozen=True)
class Writer:
    """An empty folder."""

    path: Path
    state_uri: str = ""
    report: Report = no_report


@dataclass
class Run:
    """What a stage's parts wrote, by part name."""

    artifact: Input
    results: dict[str, PartResult] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()
    summary: Mapping[str, Any] = field(default_factory=dict)

    def counts(self, unit: str = "rows") -> Count:
        return sum((result.counts[unit] for result in self.results.values()), Count(0, 0))

    def bytes_of(self) -> dict[str, bytes]:
        return {f"{p.name}/{f.path}": Path(f.uri).read_bytes() for p in self.artifact.parts for f in p.files}


def as_part(name: str, folder: Path, summary: Mapping[str, Any] | None = None) -> InputPart:
    """The files of a folder as a committed part."""
    files = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
        files.append(InputFile(path.name, len(data), hashlib.sha256(data).hexdigest(), str(path), rows))
    part = InputPart(name, tuple(files), summary or {})

    return replace(part, open_segments=partial(_segments, part))


def _segments(part: InputPart, file: InputFile) -> Mapping[str, InputFile]:
    return segments_of(file, Path(part.file(segments_name(file.path)).uri).read_bytes())


def as_source(path: Path) -> Input:
    """An upstream file as the engine hands it to a stage."""
    data = path.read_bytes()
    file = InputFile(path.name, len(data), hashlib.sha256(data).hexdigest(), str(path))
    return Input("source:test", file.sha256, (InputPart(path.name, (file,)),))


def run_stage(
    stage: Stage,
    config: pydantic.BaseModel,
    inputs: dict[str, tuple[Input, ...]],
    folder: Path,
    seed: int | None = None,
) -> Run:
    """Plan and run every part (in an order drawn from `seed`), check the conservation law, finish."""
    parts = list(stage.plan_parts(config, inputs))
    order = list(parts) if seed is None else random.Random(seed).sample(parts, len(parts))
    run = Run(Input(f"{stage.name}/test", "", ()), folder=folder)
    for part in order:
        out = folder / part.name
        out.mkdir(parents=True)
        result = stage.run_part(config, Reader(part, inputs), part, Writer(out))
        for unit, count in result.counts.items():
            count.check(f"{stage.name} {part.name} {unit}")
        assert set(result.file_rows) <= {path.name for path in out.iterdir()}
        run.results[part.name] = result
        run.fingerprints[part.name] = part_fingerprint(stage, config, part)
    committed = tuple(as_part(part.name, folder / part.name, run.results[part.name].summary) for part in parts)
    if stage.finish:
        summaries = [PartSummary(p.name, run.results[p.name].counts, run.results[p.name].summary) for p in parts]
        run.summary = stage.finish(config, summaries)
    run.artifact = Input(f"{stage.name}/test", "", committed, run.summary)
    return run
