"""What the engine gives a pretrain part, on local files: reader, writer, and the inputs of a toy training."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.flow.live import Report, no_report
from pipelines.flow.stage import Input, InputFile, InputPart
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.shards import listing_of, write_listing
from pipelines.s5_pretrain.stage import plan_pretrain
from tests.support.training.corpus import WORDS, make_shards
from x2vlm.train.config import TrainRuntime


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


def job_of(config: PretrainConfig, inputs: Mapping[str, tuple[Input, ...]], state: Path, **runtime: Any) -> dict:
    """The job that a pretrain part leaves in its state folder."""
    (part,) = plan_pretrain(config, inputs)
    state.mkdir(parents=True, exist_ok=True)
    return {
        "config": config.model_dump(mode="json"),
        "runtime": TrainRuntime(**runtime).model_dump(mode="json"),
        "shards": write_listing(listing_of(part), str(state)),
        "vocabulary": list(WORDS),
        "state_uri": str(state),
        "facts": {"shards_root": part.spec["shards_root"], "world_size": config.world_size},
    }
