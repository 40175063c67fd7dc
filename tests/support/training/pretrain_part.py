"""What the engine gives a pretrain part, on local files: reader, writer, and the inputs of a toy training."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.flow.live import Report, no_report
from pipelines.flow.stage import Input, InputFile, InputPart
from tests.support.training.corpus import WORDS, make_shards


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


def toy_inputs(folder: Path, broken: Sequence[int] = ()) -> dict[str, tuple[Input, ...]]:
    """Packed shards and their vocabulary, below `folder`; images whose number is in `broken` cannot be decoded."""
    shards = make_shards(folder, broken=broken)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    parts = tuple(
        InputPart(f"{number:05d}", (_file(files.media), _file(files.index))) for number, files in enumerate(shards)
    )
    return {
        "shards": (Input("pack/toy", "root-of-shards", parts),),
        "vocabulary": (Input("source:vocabulary", "root", (InputPart("vocab", (_file(vocabulary),)),)),),
    }


def _file(path: Path) -> InputFile:
    data = path.read_bytes()
    return InputFile(path.name, len(data), hashlib.sha256(data).hexdigest(), str(path))
