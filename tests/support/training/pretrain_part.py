"""The reader and writer that the engine gives a pretrain part, on local files."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.flow.live import Report, no_report


@dataclass(frozen=True)
class Out:
    """Where a part writes, as the engine would give it."""

    path: Path
    state_uri: str
    report: Report = no_report


class LocalInputs:
    """A PartReader over local files."""

    def local_path(self, file):
        return Path(file.uri)

    def open(self, file):
        return Path(file.uri).open("rb")
