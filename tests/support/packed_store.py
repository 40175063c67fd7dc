"""A store with a finished `pack/toy`, as an experiment would leave it, over a small corpus of every stored format."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.flow.stage import Count, Graph, Inputs, Node, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.flow.stage import SourceFile as File
from pipelines.flow.store.store import Store
from pipelines.s4_materialize import PACK, PARTITION, PackConfig, PartitionConfig
from tests.support.flow.helpers import run_all
from tests.support.stages.curated import Row, build, clip, encoded, row, scene
from x2vlm.config import FrozenConfig
from x2vlm.samples import Box, Concept, Grain

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def rows_of_every_format(num_images: int, num_clips: int, without_caption: int = 0) -> list[Row]:
    """Images of all formats in turn, then clips; the last images have regions and no caption. Sources bring different
    fields: only some rows have scores, licences, sizes and concepts."""
    rows = []
    for number in range(num_images):
        image_format = IMAGE_FORMATS[number % 4]
        payload = encoded(scene(number, (48 + number, 40)).convert("RGB"), image_format)
        captions = [f"image {number} ünï", "a second caption"][: 1 + number % 2]
        concepts = [Concept(Grain.REGION, "a corner", Box(1.0, 2.0, 20.0, 15.0), ("bright",))]
        one = row(
            "toy",
            str(number),
            payload,
            captions if number < num_images - without_caption else [],
            concepts if number % 3 == 0 or number >= num_images - without_caption else [],
            score=number / 100,
        )
        assert one.sample.media is not None
        media = replace(one.sample.media, format=image_format.lower())
        licence = "CC-BY" if number % 5 == 0 else ""
        claimed = number if number % 2 else None
        rows.append(replace(one, sample=replace(one.sample, media=media, licence=licence, claimed_width=claimed)))
    rows += [row("clips", str(n), clip(n, n + 1, size=(64, 48)), [f"clip {n}"]) for n in range(num_clips)]
    return rows


def packed_store(
    folder: Path, rows: Sequence[Row], pack: PackConfig | None = None, num_shards: int = 4, stage: Stage = PACK
) -> Store:
    """A store below `folder` in which `pack/toy` of the experiment `toy` is finished."""
    corpus = build(folder / "corpus", {"toy": [rows]})
    config = PartitionConfig(num_shards=num_shards, min_clip_score=None)
    given = [
        _given(name, sorted(Path(file.uri) for one in inputs for part in one.parts for file in part.files))
        for name, inputs in corpus.items()
    ]
    read = {name: (f"given/{name}",) for name in corpus}
    graph = Graph(
        [
            *given,
            Node("partition/toy", PARTITION, config, {**read, "decisions": ()}),
            Node("pack/toy", stage, pack or PackConfig(), {"buckets": ("partition/toy",), "media": read["media"]}),
        ]
    )
    store = Store(folder / "store")
    run_all(graph, store, "toy")
    return store


def experiment_file(folder: Path, store: Store) -> Path:
    """The YAML of an experiment called `toy` whose store is `store`."""
    path = folder / "toy.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "toy",
                "store": store.uri,
                "sources": {"toy": {"card": "sample/cc3m"}},
                "partition": {"num_shards": 4},
                "vocabulary": "datasets/sample/vocab.txt",
            }
        ),
        encoding="utf-8",
    )
    return path


def _plan(config: FrozenConfig, inputs: Inputs) -> list[Part]:
    files = [file for one in inputs["files"] for part in one.parts for file in part.files]
    return [Part("00000", tuple(Read("files", file) for file in files))]


def _give(config: FrozenConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    for read in part.reads:
        shutil.copyfile(inputs.local_path(read.file), out.path / read.file.path)
    return PartResult({"rows": Count(len(part.reads), len(part.reads))})


GIVEN = Stage("given", 1, FrozenConfig, ("files",), _plan, _give)


def _given(name: str, paths: Sequence[Path]) -> Node:
    return Node(f"given/{name}", GIVEN, FrozenConfig(), {"files": tuple(File(str(path), name) for path in paths)})


def job_json(stdout: str) -> Any:
    """What a job printed with `--json`."""
    return json.loads(stdout.splitlines()[-1])
