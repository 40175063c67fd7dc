"""A fine-tuning that was killed anywhere comes out as one that was not: weights bit for bit, and the same table."""

import json
import random
import signal

import pytest

from tests.support.training.finetuning import evaluate_on_rank, finetune_here, finetune_killed, toy_config, toy_inputs
from tests.support.training.processes import on_ranks
from x2vlm.stores.segments import read_lines
from x2vlm.train.progress import CLOCK_NAMES

SEED = random.randrange(2**32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    return finetune_here(toy_config(), inputs, tmp_path_factory.mktemp("whole"))


def outputs(out):
    """Every file by its name; of the metrics what does not depend on the clock."""
    found = {path.name: path.read_bytes() for path in out.path.iterdir()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    return found, [{name: value for name, value in line.items() if name not in CLOCK_NAMES} for line in lines]


def test_killed_at_any_step_it_ends_with_the_same_bytes(inputs, whole, tmp_path):
    step = random.Random(SEED).randrange(9)
    runtime = {"checkpoint_every": 2, "keep_checkpoints": 1}
    assert finetune_killed(toy_config(), inputs, tmp_path, {"step": step}, **runtime) == -signal.SIGKILL, SEED
    assert not list((tmp_path / "out").iterdir())
    assert outputs(finetune_here(toy_config(), inputs, tmp_path, **runtime)) == outputs(whole), (SEED, step)


def test_killed_while_epochs_are_measured_it_measures_only_the_others(inputs, whole, tmp_path):
    assert finetune_killed(toy_config(), inputs, tmp_path, {"epoch": 2}) == -signal.SIGKILL
    measured = sorted((tmp_path / "state" / "selection").iterdir())
    assert [path.name for path in measured] == ["epoch-00000.json", "epoch-00001.json"]
    before = [path.stat().st_mtime_ns for path in measured]
    num_lines = len(list(read_lines(f"{tmp_path}/state/metrics.jsonl")))
    assert outputs(finetune_here(toy_config(), inputs, tmp_path)) == outputs(whole)
    assert [path.stat().st_mtime_ns for path in measured] == before
    assert len(list(read_lines(f"{tmp_path}/state/metrics.jsonl"))) == num_lines == 9


def test_two_processes_measure_what_one_does(inputs, whole, tmp_path):
    (tmp_path / "inputs").symlink_to(inputs["data"][0].parts[0].files[0].uri.rpartition("/data/")[0])
    (tmp_path / "out").symlink_to(whole.path)
    (alone,) = on_ranks(evaluate_on_rank, 1, str(tmp_path))
    first, second = on_ranks(evaluate_on_rank, 2, str(tmp_path))
    assert bytes(first) == bytes(second) == bytes(alone)
    assert len(json.loads(bytes(alone))[1]) == 8
