"""An experiment of two phases on three sources of the shipped sample, small enough for a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import save_file
from timm.models.beit import Beit
from transformers import BertConfig, BertForMaskedLM

from pipelines.experiment import Experiment, load_experiment
from pipelines.flow.run.events import NodeFinished
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.project import PROJECT_ROOT

NUM_STEPS = 2


def two_phases(folder: Path, phase1: dict[str, Any] | None = None, phase2: dict[str, Any] | None = None) -> Experiment:
    """The sample's model, first on images and regions, then with clips; `phase1`, `phase2` change their training."""
    values = yaml.safe_load((PROJECT_ROOT / "pipelines/experiments/sample.yaml").read_text())
    names = ("coco", "visual_genome", "webvid")
    pretrain = values["pretrain"] | {"world_size": 1}
    train = {**pretrain["train"], "steps": NUM_STEPS, "warmup_steps": 0}
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
        "train_runtime": {"checkpoint_every": 1},
        "phases": {
            "phase1": {
                **pretrain,
                "start": {"vision": str(folder / "beit.safetensors"), "text": str(folder / "bert")},
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
    if not (folder / "bert").exists():
        save_backbones(folder)
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return load_experiment(str(path), str(folder / "store"))


def save_backbones(folder: Path) -> None:
    """A BEiT-2 and a BERT of the sample model's sizes, at random, as their publishers would lay them down."""
    torch.manual_seed(3)
    beit = Beit(
        img_size=96, patch_size=16, embed_dim=64, depth=3, num_heads=4, num_classes=5, init_values=0.1,
        global_pool="avg", use_abs_pos_emb=False, use_rel_pos_bias=True,
    )  # fmt: skip
    save_file(beit.state_dict(), folder / "beit.safetensors")
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    BertForMaskedLM(BertConfig(vocab_size=1033, max_position_embeddings=64, **sizes)).save_pretrained(folder / "bert")


class Run(NamedTuple):
    experiment: Experiment
    nodes: Mapping[str, NodeFinished]


def run_inline(experiment: Experiment) -> Run:
    graph, store = build_graph(experiment), Store(experiment.store_uri)
    planned = plan(graph, store, experiment.name)
    return Run(experiment, run(graph, planned, store, InlineRunner(), lambda event: None, {}).nodes)
