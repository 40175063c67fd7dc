"""Training with fewer machines than planned: how many processes train, who waits, and which failures end a run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.s5_pretrain.config import PretrainConfig, num_training, workers_of
from pipelines.s5_pretrain.worker import FailureWindow
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.pretrain_part import job_of, toy_inputs
from tests.support.training.processes import train_job
from x2vlm.errors import ConfigError
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.metrics import read_metrics


def recipe(world_size: int, batches=(1024, 1024), group: int | None = None) -> PretrainConfig:
    streams = [{"kind": "image", "batch_size": size, "name": f"s{n}"} for n, size in enumerate(batches)]
    objective = {"negative_group_size": group} if group else {}
    return PretrainConfig.model_validate(
        {"world_size": world_size, "data": {"streams": streams}, "train": {"objective": objective}}
    )


@pytest.mark.parametrize(
    ("world_size", "batches", "group", "started", "expected"),
    [
        (64, (1024, 1024), None, 64, 64),
        (64, (1024, 1024), None, 56, 32),  # one of eight machines is gone
        (4, (16, 16, 4), None, 3, 2),
        (24, (3072, 1536), None, 23, 16),
        (16, (1024, 1024, 640), None, 15, 8),
        (8, (1024,), 128, 7, 4),
        (16, (1024,), 128, 12, 8),  # 64 rows each: two share a group
        (12, (96,), 24, 9, 8),
        (5, (5,), None, 4, 1),
    ],
)
def test_as_many_train_as_divide_every_batch(world_size, batches, group, started, expected):
    config = recipe(world_size, batches, group)
    assert num_training(config, TrainRuntime(min_workers=1), started) == expected


@given(batch=st.integers(1, 200), other=st.integers(1, 200), world_size=st.integers(1, 32), started=st.integers(1, 32))
def test_it_is_the_largest_number_that_does(batch, other, world_size, started):
    batches = (batch * world_size, other * world_size)
    config, started = recipe(world_size, batches), min(started, world_size)
    found = num_training(config, TrainRuntime(min_workers=1), started)
    fitting = [n for n in range(1, started + 1) if all(size % n == 0 for size in batches)]
    assert found == max(fitting)


def test_the_fewest_processes_are_enough_to_train_with_as_many_as_asked():
    """Three are wanted at least, and only 4 of 4 divides: with three started, two would train."""
    config = recipe(4, (16,))
    assert workers_of(config, TrainRuntime(min_workers=3)).fewest == 4
    assert workers_of(config, TrainRuntime(min_workers=2)).fewest == 2
    assert workers_of(config, TrainRuntime()).fewest == 4
    for runtime, started in ((TrainRuntime(), 3), (TrainRuntime(min_workers=2), 1), (TrainRuntime(min_workers=2), 5)):
        with pytest.raises(ConfigError, match=rf"{started} processes were started, the experiment says (4|2 to 4)"):
            num_training(config, runtime, started)


def test_three_of_four_processes_train_on_two_and_the_third_returns(tmp_path: Path):
    """Real processes. The steps read what one process reads, and the checkpoint names the number of processes."""
    train = {"steps": 3, "warmup_steps": 1, "precision": "float32", "optimizer": {"lr": 2e-3}}
    config = PretrainConfig(model=MODEL, data=DATA, train=TrainConfig.model_validate(train), world_size=4)
    job = job_of(config, toy_inputs(tmp_path / "inputs"), tmp_path / "state", min_workers=2)
    assert train_job(job, 3) == [0, 0, 0]
    lines = read_metrics(tmp_path / "state/metrics.jsonl")
    assert [(line["step"], line["world_size"]) for line in lines] == [(0, 2), (1, 2), (2, 2)]
    found = CheckpointStore(f"{tmp_path}/state/checkpoints").load_newest()
    assert (found.step, found.facts["world_sizes"]) == (3, [[0, 2]])
    assert json.loads(json.dumps(job))["config"]["world_size"] == 4


def test_failures_count_within_a_window_of_time():
    now = 0.0
    window = FailureWindow(3, 24, lambda: now)
    for hour, allowed in ((0, True), (1, True), (2, True), (3, False), (25.5, True), (26, True), (27.5, True)):
        now = hour * 3600
        assert window.allows_another() is allowed, hour
    assert FailureWindow(0, 24).allows_another() is False


def test_a_run_of_weeks_may_lose_a_machine_every_day():
    now = 0.0
    window = FailureWindow(1, 24, lambda: now)
    for day in range(60):
        now = day * 86_401
        assert window.allows_another()
    now += 3600
    assert not window.allows_another()
