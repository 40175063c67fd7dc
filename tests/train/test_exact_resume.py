"""A run that was killed, stopped, moved or disturbed has the bits of one that was not: weights, metrics, samples.

All runs are real processes over gloo and the real loop; see `tests.support.training.processes` for what kills them.
"""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from tests.support.training.processes import BASE, Start, keys_by_step, run
from x2vlm.data.loading.loader import StepLoader
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.metrics import read_metrics
from x2vlm.train.progress import CLOCK_NAMES
from x2vlm.train.stopping import EXIT_STOPPED

STEPS = BASE["steps"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), broken=(3,))


@pytest.fixture(scope="module")
def start(shards):
    return Start("", tuple(str(files.media) for files in shards))


class Runs:
    """Undisturbed runs, each made once."""

    def __init__(self, folder, start):
        self._folder, self._start, self._done = folder, start, {}

    def straight(self, **changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in self._done:
            folder = self._folder / f"straight-{len(self._done)}"
            start = dataclasses.replace(self._start, folder=str(folder), **changes)
            assert run(start) == [0] * start.world_size, logs(folder)
            self._done[key] = folder
        return self._done[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, start):
    return Runs(tmp_path_factory.mktemp("runs"), start)


def logs(folder):
    return "\n".join(path.read_text()[-3000:] for path in sorted(Path(folder).glob("*.log")))


def lines_of(folder):
    lines = read_metrics(Path(folder) / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCK_NAMES} for line in lines]


def assert_same_run(folder, expected, same_world=True):
    """Bit for bit: model, optimizer and metrics; every step once."""
    ours, theirs = (CheckpointStore(f"{path}/checkpoints").load_newest() for path in (folder, expected))
    assert ours.step == theirs.step
    for kind in ("model", "optimizer"):
        mine, other = getattr(ours, kind), getattr(theirs, kind)
        assert mine.keys() == other.keys()
        differing = [name for name in mine if not torch.equal(mine[name], other[name])]
        assert not differing, f"{kind}: {len(differing)} of {len(mine)} differ: {differing[:5]}"
    assert [line["step"] for line in lines_of(folder)] == list(range(ours.step))
    assert lines_of(folder) == lines_of(expected)
    assert keys_by_step(folder) == keys_by_step(expected)


@pytest.mark.parametrize(
    ("world_size", "num_workers"),
    [
        pytest.param(world_size, num_workers, marks=() if (world_size, num_workers) == (2, 0) else pytest.mark.slow)
        for world_size in (1, 2, 4)
        for num_workers in (0, 1, 3)
    ],
)
def test_killed_and_resumed_equals_undisturbed(runs, start, tmp_path, world_size, num_workers):
    """SIGKILL of one process between two checkpoints; readers of an undisturbed run are none, here 0, 1 or 3."""
    expected = runs.straight(world_size=world_size)
    first = dataclasses.replace(start, folder=str(tmp_path), world_size=world_size, num_workers=num_workers, name="1")
    codes = run(dataclasses.replace(first, kill_rank=world_size - 1, kill_after=4))
    assert codes[world_size - 1] == -signal.SIGKILL, logs(tmp_path)
    assert run(dataclasses.replace(first, name="2")) == [0] * world_size, logs(tmp_path)
    assert_same_run(tmp_path, expected)


@pytest.mark.slow
def test_readers_end_with_a_killed_trainer(start, tmp_path):
    """SIGKILL of the process they read for: no reader and no server of readers may stay (they hold its log open)."""
    dying = dataclasses.replace(start, folder=str(tmp_path), num_workers=2, kill_after=1, name="1")
    seen = set()

    def look(processes):
        while len(holders := _holders(tmp_path / "1-rank-0.log") - {processes[0].pid}) < 3 and processes[0].is_alive():
            time.sleep(0.01)
        seen.update(holders)

    assert run(dying, look) == [-signal.SIGKILL], logs(tmp_path)
    assert len(seen) >= 3  # two readers and their server
    deadline = time.monotonic() + 60
    while (left := _holders(tmp_path / "1-rank-0.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _holders(path):
    """Processes whose standard output is `path`."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd/1") == str(path):
                found.add(int(process.name))
        except OSError:
            pass
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", range(STEPS))
def test_any_step_is_a_good_moment_to_die(runs, start, tmp_path, kill_after):
    expected = runs.straight()
    assert run(dataclasses.replace(start, folder=str(tmp_path), kill_after=kill_after, name="1")) == [-signal.SIGKILL]
    assert run(dataclasses.replace(start, folder=str(tmp_path), name="2")) == [0], logs(tmp_path)
    assert_same_run(tmp_path, expected)


# A checkpoint is 2 files, 3 hashes, 4 syncs, 1 rename and 1 sync of the folder: 11 calls. 1-11 are those of step 3.
@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=() if call == 10 else pytest.mark.slow) for call in range(1, 23)]
)
def test_killed_while_a_checkpoint_is_being_written(runs, start, tmp_path, call):
    """The training goes on while the thread writes; wherever that dies, nothing half-written counts."""
    expected = runs.straight()
    assert run(dataclasses.replace(start, folder=str(tmp_path), kill_in_write=call, name="1")) == [-signal.SIGKILL]
    whole = CheckpointStore(f"{tmp_path}/checkpoints").steps()
    assert whole == ([] if call <= 10 else [3] if call <= 21 else [3, 6])
    assert run(dataclasses.replace(start, folder=str(tmp_path), name="2")) == [0], logs(tmp_path)
    assert_same_run(tmp_path, expected)


def test_killed_at_the_edge_of_an_epoch(runs, start, shards, tmp_path):
    """The image stream has 24 rows and takes 4 a step: step 6 opens its second epoch."""
    images = StepLoader(shards, DATA, TOKENIZER, 32, 16).streams[0]
    assert images.size() == 6 * images.config.items_per_step
    expected = runs.straight()
    dying = dataclasses.replace(start, folder=str(tmp_path), kill_after=6, kill_when_there="step-00000006", name="1")
    assert run(dying) == [-signal.SIGKILL]
    assert CheckpointStore(f"{tmp_path}/checkpoints").steps()[-1] == 6
    assert run(dataclasses.replace(start, folder=str(tmp_path), name="2")) == [0], logs(tmp_path)
    assert_same_run(tmp_path, expected)


def test_reading_numbers_later_changes_none(runs, start, tmp_path):
    """On a GPU the host runs ahead of its numbers by a step; here by two."""
    changed = dataclasses.replace(start, folder=str(tmp_path), runtime={"steps_ahead": 2})
    assert run(changed) == [0], logs(tmp_path)
    assert_same_run(tmp_path, runs.straight())


@pytest.mark.slow
def test_samples_of_a_step_do_not_depend_on_how_many_processes_read_them(runs, start, tmp_path):
    """1, then 2, 4 and 2 processes, each start killed after two steps: every step reads what one process would."""
    changed = dataclasses.replace(start, folder=str(tmp_path), runtime={"checkpoint_every": 2})
    for number, (world_size, last_step) in enumerate([(1, 2), (2, 4), (4, 6), (2, None)]):
        part = dataclasses.replace(changed, world_size=world_size, kill_after=last_step, name=str(number))
        if last_step is not None:
            part = dataclasses.replace(part, kill_when_there=f"step-{last_step:08d}")
        codes = run(part)
        assert codes == [0] * world_size if last_step is None else codes[0] == -signal.SIGKILL, logs(tmp_path)
    assert keys_by_step(tmp_path) == keys_by_step(runs.straight())
    assert [line["world_size"] for line in lines_of(tmp_path)] == [1, 1, 2, 2, 4, 4, 2, 2]
    facts = CheckpointStore(f"{tmp_path}/checkpoints").load_newest().facts
    assert facts["world_sizes"] == [[0, 1], [2, 2], [4, 4], [6, 2]]
    ours, expected = lines_of(tmp_path), lines_of(runs.straight())
    names = [name for name in expected[0] if name.endswith(("/masked_lm", "/contrastive"))]
    for name in names:  # the same batches from the same weights, but for dropout: the first step tells
        assert ours[0][name] == expected[0][name], name


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_of_no_numbers_is_skipped_and_resuming_repeats_that(start, tmp_path, world_size):
    """Images of steps 2 and 5 are NaN on one rank: all skip; killed between them, the run ends the same."""
    poisoned = dataclasses.replace(start, world_size=world_size, nan_steps=(2, 5))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    keep_all = {"checkpoint_every": 1, "keep_checkpoints": 9}
    assert run(dataclasses.replace(poisoned, folder=str(straight), runtime=keep_all)) == [0] * world_size, logs(
        straight
    )
    lines = lines_of(straight)
    assert [line["step"] for line in lines if line.get("skipped")] == [2, 5]
    assert "image/contrastive" in lines[2]["not_finite"]
    read = keys_by_step(straight)[2]  # by all ranks; a region image counts once for each of its rows
    assert lines[2]["keys"] == {stream: sorted(set(keys)) for stream, keys in read.items()}
    assert "image/contrastive" not in lines[2]
    assert lines[3]["image/contrastive"] > 0
    before, after = (_tensors(straight, step) for step in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)  # the skipped step moved nothing, no count
    assert any(not torch.equal(after[name], value) for name, value in _tensors(straight, 4).items())

    codes = run(dataclasses.replace(poisoned, folder=str(killed), runtime=keep_all, kill_after=3, name="1"))
    assert codes[0] == -signal.SIGKILL
    assert run(dataclasses.replace(poisoned, folder=str(killed), runtime=keep_all, name="2")) == [0] * world_size
    assert_same_run(killed, straight)


def _tensors(folder, step):
    from safetensors.torch import load_file

    path = Path(folder) / f"checkpoints/step-{step:08d}"
    return {**load_file(path / "model.safetensors"), **load_file(path / "optimizer.safetensors")}


def test_too_many_skipped_steps_end_the_run_even_across_a_restart(start, tmp_path):
    """Two in a row are allowed; the two before the kill and the one after it make three."""
    poisoned = dataclasses.replace(
        start,
        folder=str(tmp_path),
        nan_steps=(2, 3, 4),
        runtime={"checkpoint_every": 1, "max_skipped_steps": 2},
        kill_after=3,
        kill_when_there="step-00000004",
        name="1",
    )
    assert run(poisoned) == [-signal.SIGKILL]
    assert run(dataclasses.replace(poisoned, kill_after=None, name="2")) == [1]
    log = (tmp_path / "2-rank-0.log").read_text()
    assert "step 4: " in log
    assert "3 such steps in a row, the run allows 2" in log


def test_on_nonfinite_stop_ends_at_the_first(start, tmp_path):
    stopping = dataclasses.replace(start, folder=str(tmp_path), nan_steps=(1,), runtime={"on_nonfinite": "stop"})
    assert run(stopping) == [1]
    assert "step 1: " in logs(tmp_path)
    assert "image/contrastive is nan" in logs(tmp_path)
    assert len(lines_of(tmp_path)) == 1


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_saves_and_stops_all_at_one_step(start, tmp_path, world_size):
    """SIGTERM to one process: all end with the code for it within 25 s of it, and the next start ends like one run."""
    train = {"steps": 40}
    rare = {"checkpoint_every": 1000}
    long = dataclasses.replace(
        start, world_size=world_size, train=train, runtime=rare, folder=str(tmp_path / "stopped"), name="1"
    )
    told = {}

    def terminate_one(processes):
        metrics = Path(long.folder) / "metrics.jsonl"
        while len(read_metrics(metrics)) < 3:
            assert all(process.is_alive() for process in processes), logs(long.folder)
            time.sleep(0.01)
        told["at"] = time.monotonic()
        os.kill(processes[-1].pid, signal.SIGTERM)

    assert run(long, terminate_one) == [EXIT_STOPPED] * world_size, logs(long.folder)
    assert time.monotonic() - told["at"] < 25  # the promise: preempted machines get 30 s
    steps = len(lines_of(long.folder))
    assert 3 <= steps < 40
    assert CheckpointStore(f"{long.folder}/checkpoints").steps() == [steps]
    if world_size == 1:  # to the end, and against an undisturbed run
        straight = dataclasses.replace(long, folder=str(tmp_path / "straight"), train=train)
        assert run(straight) == [0]
        assert run(dataclasses.replace(long, train=train, name="2")) == [0]
        assert_same_run(long.folder, straight.folder)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_its_stack_told(start, tmp_path):
    """Rank 1 sleeps in its data at step 3; both end, and both say who, where and at which step."""
    hanging = dataclasses.replace(
        start, folder=str(tmp_path), world_size=2, hang_at=3, runtime={"stall_seconds": 3.0}, name="1"
    )
    from x2vlm.train.watchdog import EXIT_STALLED

    assert run(hanging) == [EXIT_STALLED] * 2, logs(tmp_path)
    for rank in range(2):
        log = (tmp_path / f"1-rank-{rank}.log").read_text()
        assert "Behind: rank 1 (host " in log
        assert "at step 3, phase 'wait for data', in _hang_here" in log
    stalled = json.loads((tmp_path / "heartbeats/stalled.json").read_text())
    assert "_hang_here" in stalled["processes"][1]["stack"]
    assert stalled["processes"][0]["waits_for_others"]
    assert run(dataclasses.replace(hanging, hang_at=None, name="2")) == [0, 0], logs(tmp_path)
