"""Training the toy model on toy shards in this process."""

from pathlib import Path

import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER
from x2vlm.data.loading.loader import StepLoader
from x2vlm.models.checkpoints.weights import own_tensors
from x2vlm.models.x2vlm import build_model
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.progress import CLOCK_NAMES
from x2vlm.train.ranks import Ranks

CONFIG = TrainConfig.model_validate(
    {
        "steps": 8,
        "warmup_steps": 2,
        "precision": "float32",
        "optimizer": {"lr": 2e-3},
    }
)
RUNTIME = TrainRuntime(checkpoint_every=3)


def toy_model():
    """The same weights each time."""
    torch.manual_seed(0)
    return build_model(MODEL)


def run(folder, shard_files, config=CONFIG, on_step=None, model=None, runtime=RUNTIME):
    """Train `model`, or else the toy, below `folder`; gives the weights and the metrics without clock times."""
    model = model or toy_model()
    loader = StepLoader(shard_files, DATA, TOKENIZER, 32, 16)
    store = CheckpointStore(f"{folder}/checkpoints", runtime.keep_checkpoints)
    fit(model, loader, config, Ranks(), store, f"{folder}/metrics.jsonl", on_step=on_step, runtime=runtime)
    return own_tensors(model), metrics_of(folder)


def metrics_of(folder):
    """The metrics of every step of a run below `folder`, without clock times."""
    lines = read_metrics(Path(folder) / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCK_NAMES} for line in lines]
