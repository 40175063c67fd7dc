"""Switches of the ablations: what a region batch no longer teaches does not move, and everything else still does."""

from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.streams import StreamConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.objectives.config import ObjectiveConfig, counted_losses
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig
from x2vlm.train.loop import fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.ranks import Ranks

ALIGNING = {"contrastive", "matching", "masked_lm"}
BOXES = {"box_l1", "box_giou"}


def _moved_parts(folder: Path, objective: dict[str, Any]) -> tuple[set[str], set[str]]:
    """(modules that a step on regions alone moves, losses in its line of metrics)."""
    data = DATA.model_copy(update={"streams": (StreamConfig(kind="region", batch_size=8, num_images=4),)})
    loader = StepLoader(make_shards(folder / "shards"), data, TOKENIZER, 32, 16)
    values = {"steps": 1, "warmup_steps": 0, "precision": "float32", "objective": objective}
    config = TrainConfig.model_validate({**values, "optimizer": {"weight_decay": 0.0}})
    torch.manual_seed(0)
    model = build_model(MODEL)
    before = {name: value.clone() for name, value in model.named_parameters()}
    fit(model, loader, config, Ranks(), CheckpointStore(f"{folder}/checkpoints"), f"{folder}/metrics.jsonl")
    moved = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    (line,) = read_metrics(folder / "metrics.jsonl")
    return moved, {name.split("/")[1] for name in line if name.startswith("region/")}


@pytest.mark.parametrize(
    ("objective", "losses", "still"),
    [
        ({}, ALIGNING | BOXES, set()),
        ({"locate_regions": False}, ALIGNING, {"box_head"}),
        ({"align_regions": False}, BOXES, {"match_head", "word_head", "vision_proj", "text_proj", "temperature"}),
    ],
)
def test_what_is_left_out_teaches_nothing(
    tmp_path: Path, objective: dict[str, Any], losses: set[str], still: set[str]
) -> None:
    moved, told = _moved_parts(tmp_path, objective)
    heads = {"box_head", "match_head", "word_head", "vision_proj", "text_proj", "temperature"}
    assert told == losses
    assert moved == {"vision", "text", "fusion"} | heads - still


def test_images_and_clips_are_never_concerned() -> None:
    losses = {"contrastive": 1, "matching": 2, "masked_lm": 3}
    config = ObjectiveConfig(align_regions=False)
    assert counted_losses("image", losses, config) == counted_losses("video", losses, config) == losses
    assert counted_losses("region", losses | {"box_l1": 4, "box_giou": 5}, config) == {"box_l1": 4, "box_giou": 5}


def test_a_region_stream_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="leave the region stream out"):
        ObjectiveConfig(align_regions=False, locate_regions=False)
