"""An experiment of two phases on three sources of the shipped sample, small enough for a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipelines.experiment import Experiment, load_experiment
from pipelines.flow.blobs import PROJECT_ROOT
from pipelines.flow.events import NodeFinished
from pipelines.flow.executor import run
from pipelines.flow.planner import plan
from pipelines.flow.runner import InlineRunner
from pipelines.flow.store import Store
from pipelines.graph import build_graph

NUM_STEPS = 2


def two_phases(folder: Path, phase1: dict[str, Any] | None = None, phase2: dict[str, Any] | None = None) -> Experiment:
    """The sample's model, first on pictures and regions, then with clips; `phase1`, `phase2` change their training."""
    values = yaml.safe_load((PROJECT_ROOT / "pipelines/experiments/sample.yaml").read_text())
    names = ("coco", "visual_genome", "webvid")
    pretrain = values["pretrain"] | {"world_size": 1}
    train = {**pretrain["train"], "steps": NUM_STEPS, "warmup_steps": 0, "checkpoint_every": 1}
    streams = [
        {"kind": "image", "batch_size": 4, "sources": ["coco"]},
        {"kind": "region", "batch_size": 4, "num_images": 2, "sources": ["visual_genome"]},
    ]
    first = {key: value for key, value in pretrain["model"].items() if key != "num_frames"}
    clips = {"kind": "video", "batch_size": 2, "sources": ["webvid"]}
    changes = {
        "sources": {name: values["sources"][name] for name in names},
        "evaluate": {},
        "decontaminate": None,
        "phases": {
            "phase1": {
                **pretrain,
                "model": first,
                "data": {**pretrain["data"], "streams": streams},
                "train": train | (phase1 or {}),
            }
        },
        "pretrain": {
            **pretrain,
            "start": {"node": "phase1"},
            "data": {**pretrain["data"], "streams": [*streams, clips]},
            "train": train | (phase2 or {}),
        },
    }
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return load_experiment(str(path), str(folder / "store"))


class Run(NamedTuple):
    experiment: Experiment
    nodes: Mapping[str, NodeFinished]


def run_inline(experiment: Experiment) -> Run:
    graph, store = build_graph(experiment), Store(experiment.store_uri)
    planned = plan(graph, store, experiment.name)
    return Run(experiment, run(graph, planned, store, InlineRunner(), lambda event: None, {}).nodes)
