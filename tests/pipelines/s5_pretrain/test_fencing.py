"""A driver that was paused, taken over and woken: its trainers write nothing more, and it ends with its own code."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.flow.store.lease import acquire
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.fencing import LEASE, Fence, sole_driver
from pipelines.s5_pretrain.stage import plan_pretrain
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.driver import TTL_SECONDS
from tests.support.training.pretrain_part import toy_inputs
from x2vlm.command_line import EXIT_FENCED
from x2vlm.errors import LeaseLost, PlanBusy
from x2vlm.train.background_saves import BackgroundSaves
from x2vlm.train.checkpoint import Checkpoint, CheckpointStore
from x2vlm.train.config import TrainConfig
from x2vlm.train.metrics import read_metrics


def checkpoint(step: int) -> Checkpoint:
    import torch

    return Checkpoint(step, {"w": torch.ones(2)}, {}, {})


def test_only_the_driver_with_the_highest_token_may_write(tmp_path):
    state = str(tmp_path / "state")
    with sole_driver(state) as first:
        fence = Fence(state, first.token)
        store = CheckpointStore(f"{state}/checkpoints", before_commit=fence.check)
        store.save(checkpoint(1))
    with sole_driver(state) as second:
        assert second.token == first.token + 1
        with pytest.raises(LeaseLost, match=r"another driver trains this run now \(token 2, ours is 1\)"):
            store.save(checkpoint(2))
        assert store.steps() == [1]
        CheckpointStore(f"{state}/checkpoints", before_commit=Fence(state, second.token).check).save(checkpoint(2))
    assert store.steps() == [1, 2]
    Fence(state, second.token).check()  # a released lease is still the newest one
    Fence(state, None).check()


def test_a_save_in_the_background_ends_as_taken_over_and_not_as_failed(tmp_path):
    state = str(tmp_path / "state")
    with sole_driver(state) as first:
        fence = Fence(state, first.token)
    with sole_driver(state):
        saves = BackgroundSaves(CheckpointStore(f"{state}/checkpoints", before_commit=fence.check))
        saves.save(checkpoint(1))
        with pytest.raises(LeaseLost, match="another driver trains this run now"):
            saves.wait()


def test_whoever_looks_is_told_within_the_time_between_two_looks(tmp_path):
    state, heard = str(tmp_path / "state"), []
    with sole_driver(state) as first, Fence(state, first.token).watched(heard.append, seconds=0.05):
        time.sleep(0.3)
        assert heard == []
        Store(state).blobs.create(f"leases/{LEASE}/{first.token + 1:010d}.json", b"{}")
        deadline = time.monotonic() + 20
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(heard) == 1
    assert "another driver trains this run now" in heard[0]


def test_a_live_driver_of_another_plan_keeps_its_training(tmp_path):
    """It renews within the time that the newcomer watches: no two drivers train in one state folder."""
    state = str(tmp_path / "state")
    with sole_driver(state, 1.0) as held:
        with pytest.raises(PlanBusy, match=str(os.getpid())):
            sole_driver(state, 1.0)
        held.check()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_inputs(tmp_path_factory.mktemp("inputs"))


class Drivers:
    """Driver processes of one training, whose output is kept."""

    def __init__(self, folder: Path, inputs, world_size: int) -> None:
        train = {"steps": 100_000, "warmup_steps": 1, "precision": "float32", "optimizer": {"lr": 2e-3}}
        config = PretrainConfig(model=MODEL, data=DATA, train=TrainConfig.model_validate(train), world_size=world_size)
        (part,) = plan_pretrain(config, inputs)
        (folder / "part.pickle").write_bytes(pickle.dumps((config, part)))
        self.folder, self.started = folder, []

    def start(self) -> subprocess.Popen:
        log = (self.folder / f"driver-{len(self.started)}.log").open("wb")
        command = [sys.executable, "-m", "tests.support.training.driver", str(self.folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process

    def log(self, number: int) -> str:
        return (self.folder / f"driver-{number}.log").read_text(errors="replace")

    @property
    def state(self) -> Path:
        return next(self.folder.glob("store/state/pretrain/*"), self.folder / "none")

    def writer(self) -> int:
        """The token in the newest checkpoint."""
        found = CheckpointStore(f"{self.state}/checkpoints").load_newest()
        return 0 if found is None else found.facts["writer"]

    def end(self) -> None:
        for process in self.started:
            for number in (signal.SIGCONT, signal.SIGKILL):
                if process.poll() is None:
                    os.kill(process.pid, number)
            process.wait()


@pytest.fixture
def drivers(tmp_path, inputs):
    made = []

    def make(world_size: int) -> Drivers:
        made.append(Drivers(tmp_path, inputs, world_size))
        return made[-1]

    yield make
    for one in made:
        one.end()


def until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_paused_driver_that_was_taken_over_ends_with_its_own_code(drivers, world_size):
    """SIGSTOP of the driver; another takes over; SIGCONT. With two processes those of the first train on meanwhile."""
    two = drivers(world_size)
    first = two.start()
    until(lambda: two.writer() == 1, lambda: two.log(0))
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(TTL_SECONDS + 1)
    second = two.start()
    until(lambda: two.writer() == 2 or second.poll() is not None, lambda: two.log(1))
    assert second.poll() is None, two.log(1)
    os.kill(first.pid, signal.SIGCONT)
    began = time.monotonic()
    assert first.wait(60) == EXIT_FENCED, two.log(0)
    assert time.monotonic() - began < 60
    assert "took over" in two.log(0) or "another driver trains this run now" in two.log(0)
    # The winner trains on, and all that is written is its.
    steps = len(read_metrics(two.state / "metrics.jsonl"))
    until(lambda: len(read_metrics(two.state / "metrics.jsonl")) > steps + 20, lambda: two.log(1))
    assert second.poll() is None
    lines = [line["step"] for line in read_metrics(two.state / "metrics.jsonl")]
    assert lines == list(range(len(lines)))
    assert two.writer() == 2


def test_the_training_of_a_killed_driver_is_taken_over_at_once(tmp_path):
    """A process that is visibly dead is not waited for."""
    state = str(tmp_path / "state")
    code = f"import os; from pipelines.s5_pretrain.fencing import sole_driver; sole_driver({state!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    began = time.monotonic()
    with sole_driver(state) as mine:
        assert mine.token == 2
    assert time.monotonic() - began < 10
    with acquire(Store(state), LEASE) as again:
        assert again.token == 3
