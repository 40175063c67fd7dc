"""Hard negatives of a group of rows are the same, however many processes share the batch."""

from pathlib import Path

import pytest
import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.processes import on_ranks
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.errors import ConfigError
from x2vlm.train.ranks import Ranks, current_ranks, negative_groups

GROUP_SIZE = 4  # the image batch has 4 rows: of one, two or four processes


def one_step(rank, world_size, tars):
    """Numbers of a step without dropout, and the weights after it, with negatives from groups of rows."""
    from x2vlm.models.x2vlm import build_model
    from x2vlm.train.config import TrainConfig, TrainRuntime
    from x2vlm.train.loop import _build_trainer
    from x2vlm.train.step import train_step

    config = TrainConfig.model_validate(
        {"warmup_steps": 0, "precision": "float32", "objective": {"negative_group_size": GROUP_SIZE}}
    )
    shards = [ShardFiles(Path(tar), Path(tar).with_suffix(".parquet")) for tar in tars]
    loader = StepLoader(shards, DATA, TOKENIZER, 32, 16, rank, world_size)
    torch.manual_seed(0)
    model = build_model(MODEL)
    trainer = _build_trainer(model, loader, config, current_ranks(), None, TrainRuntime())
    model.eval()  # dropout differs between ranks, on purpose
    numbers = train_step(trainer, loader[0]).read()
    return {
        "matching": numbers["image/matching"],
        "norm": numbers["grad_norm"],
        "groups": sorted(trainer.negative_groups),
    }


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_more_processes_draw_the_same_negatives(tmp_path, world_size):
    tars = [str(files.media) for files in make_shards(tmp_path)]
    (alone,) = on_ranks(one_step, 1, tars)
    for found in on_ranks(one_step, world_size, tars):
        assert found["matching"] == pytest.approx(alone["matching"], abs=2e-6)
        assert "image" in found["groups"]
    assert not alone["groups"]


def test_groups_that_cannot_be_made_are_refused():
    assert negative_groups(Ranks(), {"image": 128}, {"image": 1024}, 40) == {}
    assert negative_groups(Ranks(), {"image": None}, {"image": 100}, 40) == {}
    with pytest.raises(ConfigError, match="groups of 96 negatives cannot be made of 2 processes with 64 rows"):
        negative_groups(Ranks(0, 2), {"image": 96}, {"image": 64}, 40)
    with pytest.raises(ConfigError, match="groups of 192 negatives cannot be made of 2 processes with 64 rows"):
        negative_groups(Ranks(0, 2), {"image": 192}, {"image": 64}, 40)
