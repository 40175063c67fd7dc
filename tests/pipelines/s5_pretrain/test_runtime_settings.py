"""What changes no result of a training is no part of what it is: it may change in mid-run, and has one place."""

from typing import Any

import pytest
import torch

from pipelines.experiment import Experiment
from pipelines.flow.stage import part_fingerprint
from pipelines.graph import build_graph
from pipelines.s5_pretrain.stage import plan_pretrain
from tests.support.settings import changed, sample_values
from tests.support.training.corpus import make_shards
from tests.support.training.pretrain_part import toy_inputs
from tests.support.training.runs import CONFIG, run
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.train.config import MOVED, TrainRuntime

OTHER: dict[str, Any] = {
    "on_nonfinite": "stop",
    "max_skipped_steps": 99,
    "cpu_threads": 2,
    "checkpoint_every": 7,
    "keep_checkpoints": 5,
    "validate_every": 9,
    "validation_batches": 3,
    "min_workers": 1,
    "record_samples": False,
    "checkpoint_vision_blocks": 1,
}


def parsed(values: dict[str, Any]) -> Experiment:
    return parse_config(Experiment, values, "here.yaml")


def test_every_moved_setting_has_another_value_here():
    assert set(OTHER) == set(MOVED)
    assert {name for name, value in OTHER.items() if getattr(TrainRuntime(), name) == value} == set()


@pytest.mark.parametrize("name", sorted(OTHER))
def test_it_is_accepted_in_the_runtime_and_leaves_the_fingerprint_alone(name: str, tmp_path):
    values = sample_values()
    edited = parsed(changed(values, ("train_runtime", name), OTHER[name]))
    before, after = (build_graph(one)["pretrain/sample"] for one in (parsed(values), edited))
    assert getattr(after.stage.run_part.keywords["runtime"], name) == OTHER[name]
    inputs = toy_inputs(tmp_path)
    (part,) = plan_pretrain(before.config, inputs)
    assert part_fingerprint(after.stage, after.config, part) == part_fingerprint(before.stage, before.config, part)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_at_its_old_place_it_is_refused_with_the_new_one(name: str):
    places = {"min_workers": ("pretrain",), "record_samples": ("pretrain",)}
    place = places.get(name, ("pretrain", "train"))
    if name == "checkpoint_vision_blocks":
        place = ("pretrain", "train", "execution")
    with pytest.raises(ConfigError, match=rf"{name}: is `train_runtime\.{name}` now"):
        parsed(changed(sample_values(), (*place, name), OTHER[name]))


class StopError(Exception):
    """Ends a training between two steps."""


def test_all_of_them_may_change_in_mid_run_and_the_weights_stay_the_same(tmp_path):
    """Stopped after step 5 of 8 and gone on with under other settings, against an undisturbed run: bit for bit."""
    shards = make_shards(tmp_path / "shards")
    expected, lines = run(tmp_path / "straight", shards)

    def stop(step: int) -> None:
        if step == 5:
            raise StopError

    with pytest.raises(StopError):
        run(tmp_path / "changed", shards, on_step=stop, runtime=TrainRuntime(checkpoint_every=2))
    # No held-out shards and one process: those settings are there, and have nothing to do.
    other = TrainRuntime.model_validate(OTHER | {"cpu_threads": 1, "checkpoint_every": 3})
    weights, found = run(tmp_path / "changed", shards, runtime=other)
    assert found == lines
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert (CONFIG.steps, len(lines)) == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({("train_runtime", "min_workers"): 4}, r"train_runtime.min_workers \(4\) is more than pretrain.world_size"),
        (
            {("train_runtime", "validate_every"): 5, ("pretrain", "data", "validation_share"): 0.0},
            "train_runtime.validate_every needs held-out shards",
        ),
        ({("pretrain", "data", "validation_share"): 0.95}, "pretrain.data.validation_share: 0.95 holds out 8 of 8"),
        (
            {
                ("train_runtime", "checkpoint_vision_blocks"): 2,
                ("pretrain", "model", "vision", "backbone"): "clip_vit",
            },
            "train_runtime.checkpoint_vision_blocks: knows the blocks of beit2 only",
        ),
    ],
)
def test_what_does_not_fit_the_training_is_refused_when_the_file_is_loaded(changes, message):
    values = sample_values()
    for path, value in changes.items():
        values = changed(values, path, value)
    with pytest.raises(ConfigError, match=message):
        parsed(values)
