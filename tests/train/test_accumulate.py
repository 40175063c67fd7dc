"""The setting `accumulate`: one optimizer step in chunks has the weights of the step at once, and needs less memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.processes import on_ranks
from x2vlm.config import parse_config
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.errors import ConfigError
from x2vlm.train.config import TrainConfig

NO_DROPOUT = {
    "vision": MODEL.vision.model_copy(update={"drop_path": 0.0}),
    "text": MODEL.text.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0}),
    "fusion": MODEL.fusion.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0}),
}


def steps(rank, world_size, tars, accumulate, dropout=False, objective=None, precision="float32"):
    """Metrics of two steps and the weights after them, on this rank."""
    from x2vlm.models.x2vlm import build_model
    from x2vlm.train.config import TrainConfig, TrainRuntime
    from x2vlm.train.loop import _build_trainer
    from x2vlm.train.ranks import current_ranks
    from x2vlm.train.step import train_step

    config = TrainConfig.model_validate(
        {"warmup_steps": 0, "precision": precision, "accumulate": accumulate, "objective": objective or {}}
    )
    shards = [ShardFiles(Path(tar), Path(tar).with_suffix(".parquet")) for tar in tars]
    loader = StepLoader(shards, DATA, TOKENIZER, 32, 16, rank, world_size)
    torch.manual_seed(0)
    model = build_model(MODEL if dropout else MODEL.model_copy(update=NO_DROPOUT))
    trainer = _build_trainer(model, loader, config, current_ranks(), None, TrainRuntime())
    numbers = [train_step(trainer, loader[step]).read() for step in range(2)]
    trainer.gradients.close()
    return {"numbers": numbers, "weights": {name: p.detach().tolist() for name, p in model.named_parameters()}}


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> list[str]:
    return [str(files.media) for files in make_shards(tmp_path_factory.mktemp("shards"))]


def check(found, expected):
    for one, other in zip(found["numbers"], expected["numbers"], strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(torch.tensor(found["weights"][name]), torch.tensor(weight), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def at_once(tars):
    return steps(0, 1, tars, 1)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_weights_after_steps_in_chunks_are_those_at_once(tars, at_once, accumulate):
    assert {"image/contrastive", "image/matching", "region/box_giou", "video/masked_lm"} <= set(at_once["numbers"][0])
    check(steps(0, 1, tars, accumulate), at_once)


def test_a_repeated_step_has_the_same_numbers_bit_for_bit(tars):
    one, other = (steps(0, 1, tars, 2, dropout=True) for _ in range(2))
    assert one == other
    assert one["numbers"] != steps(0, 1, tars, 4, dropout=True)["numbers"]


def test_half_precision_takes_steps(tars):
    found = steps(0, 1, tars, 2, dropout=True, precision="bfloat16")
    assert all(numbers["finite"] == 1 for numbers in found["numbers"])


@pytest.mark.slow
def test_two_processes_with_negatives_of_both(tars):
    """The rows of both are one batch to the contrastive loss, and one group of negatives."""
    expected = on_ranks(steps, 2, tars, 1, False, {"negative_group_size": 4})
    found = on_ranks(steps, 2, tars, 2, False, {"negative_group_size": 4})
    for one, other in zip(found, expected, strict=True):
        check(one, other)


def test_chunks_are_a_setting_of_training():
    assert TrainConfig().accumulate == 1
    with pytest.raises(ConfigError, match="accumulate"):
        parse_config(TrainConfig, {"accumulate": 0}, "train")


MEMORY = """
import json, resource, sys, torch
from tests.benchmarks.step_inputs import images, regions, make_batches, without_dropout
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.objectives.accumulation import Accumulation, accumulate_gradients
from x2vlm.objectives.step import step_losses
torch.set_num_threads(1)
torch.manual_seed(0)
config = ModelConfig(
    vision=VisionConfig(image_res=224, width=96, depth=12, num_heads=2),
    text=TextConfig(width=96, num_layers=12, num_heads=2, intermediate=384),
    fusion=FusionConfig(num_layers=6, num_heads=2, intermediate=384), embed_dim=32)
model = build_model(without_dropout(config)).train()
batches = make_batches([images(64), regions(64, 24)], config)
total = lambda losses: torch.stack([value for parts in losses.values() for value in parts.values()]).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
chunks = int(sys.argv[1])
if chunks == 1:
    total(step_losses(model, batches)).backward()
else:
    accumulate_gradients(model, batches, {}, Accumulation(chunks, range(chunks), 0, total))
norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
print(json.dumps({"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, "norm": norm}))
"""


@pytest.mark.slow
def test_eight_chunks_take_a_fraction_of_the_memory(project_root: Path) -> None:
    """A narrow model with the layers, images and texts of the base model, of which activations are the most."""
    found = {}
    for chunks in (1, 8):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(chunks)], cwd=project_root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[chunks] = json.loads(done.stdout)
    assert found[8]["bytes"] < found[1]["bytes"] / 3, found
