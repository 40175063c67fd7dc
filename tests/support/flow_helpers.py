"""The engine's reader and writer on plain local folders, so that a test can run one part of a stage by itself."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pydantic

from pipelines.flow.live import Report, no_report
from pipelines.flow.stage import ArtifactReference, Input, InputFile, InputPart, Part, PartResult, Stage


def input_file(path: Path, name: str | None = None) -> InputFile:
    """A local file as an input, with its real size and sha256."""
    data = path.read_bytes()
    return InputFile(name or path.name, len(data), hashlib.sha256(data).hexdigest(), path.as_uri())


def upstream_input(path: Path, card: str = "test") -> Input:
    """A local file as a source file of a card."""
    file = input_file(path)
    return Input(f"source:{card}", file.sha256, (InputPart(path.name, (file,)),))


def artifact_input(node: str, parts: Mapping[str, Path]) -> Input:
    """Folders (by part name) that a stage wrote, as an input artifact."""
    inputs = [
        InputPart(name, tuple(input_file(file, str(file.relative_to(folder))) for file in files_in(folder)))
        for name, folder in parts.items()
    ]
    return Input(node, "root", tuple(inputs))


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class LocalReader:
    """Opens inputs where their uri says they lie, after checking their sha256."""

    artifacts: tuple[Input, ...] = ()  # that parts may look things up in

    def artifact(self, reference: ArtifactReference) -> Input:
        return next(one for one in self.artifacts if one.reference == reference)

    def local_path(self, file: InputFile) -> Path:
        path = Path(file.uri.removeprefix("file://"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        return path

    def open(self, file: InputFile) -> BinaryIO:
        return self.local_path(file).open("rb")


@dataclass(frozen=True)
class LocalWriter:
    """An empty folder to write to."""

    path: Path

    @property
    def state_uri(self) -> str:
        return (self.path.parent / f"{self.path.name}.state").as_uri()

    @property
    def report(self) -> Report:
        return no_report


def run_stage_part(stage: Stage, config: pydantic.BaseModel, part: Part, folder: Path) -> PartResult:
    """Runs one part into `folder` and checks what the engine checks: every unit of every count adds up."""
    folder.mkdir(parents=True)
    result = stage.run_part(config, LocalReader(), part, LocalWriter(folder))
    for unit, count in result.counts.items():
        count.check(f"{stage.name} {part.name} {unit}")
    return result


def read_rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The rows of all Parquet files below `folder` that match, in the order of their names."""
    return [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def folder_bytes(folder: Path) -> Sequence[tuple[str, bytes]]:
    """Every file's name and content, to compare two runs."""
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in files_in(folder)]
