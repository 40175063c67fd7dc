"""Training where there is no Ray of our own, and how it ends: other people's clusters, signals, full disks."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial

import pytest

from pipelines.flow.run.part_task import try_part
from pipelines.flow.store.scratch import REMEDIES, remedy_for
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.local_processes import causes, check_devices, train_on_this_machine
from pipelines.s5_pretrain.stage import PRETRAIN, plan_pretrain, pretrain_part
from pipelines.s5_pretrain.watching import newest_line
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.pretrain_part import LocalInputs, Out, toy_inputs
from x2vlm.errors import ConfigError, StageFailed, Stopped
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.metrics import read_metrics


def config(steps: int, world_size: int = 1) -> PretrainConfig:
    train = {"steps": steps, "warmup_steps": 1, "precision": "float32"}
    return PretrainConfig(
        model=MODEL,
        data=DATA,
        train=TrainConfig.model_validate({**train, "optimizer": {"lr": 2e-3}}),
        world_size=world_size,
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_inputs(tmp_path_factory.mktemp("inputs"))


def test_several_processes_train_here_whatever_cluster_the_environment_names(inputs, tmp_path, monkeypatch):
    """192.0.2.1 never answers."""
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    heard = []
    two = config(4, world_size=2)
    (part,) = plan_pretrain(two, inputs)
    out = Out(tmp_path / "out", str(tmp_path / "state"), lambda count: heard.append(count()))
    out.path.mkdir()
    result = pretrain_part(two, LocalInputs(), part, out)
    assert result.counts["rows"].num_out == 4
    assert [line["world_size"] for line in read_metrics(out.path / "metrics.jsonl")] == [2] * 4
    assert heard[0] == {"step": 0, "steps": 4}


@pytest.mark.parametrize(("world_size", "num_gpus"), [(2, 1), (8, 4), (3, 2)])
def test_fewer_gpus_than_processes_are_refused_with_numbers(world_size, num_gpus):
    check_devices(world_size, 0)
    check_devices(num_gpus, num_gpus)
    with pytest.raises(ConfigError, match=rf"all {world_size} processes.*has {num_gpus} GPUs.*world_size"):
        check_devices(world_size, num_gpus)


def test_a_failure_of_the_processes_comes_home_with_what_they_said(tmp_path):
    with pytest.raises(StageFailed, match=r"(?s)its processes ended with 3.*gone\.json: no such file"):
        train_on_this_machine(str(tmp_path / "gone.json"), 2)


SAID = {
    "ours": (["E launcher\n"] * 60 + ["ERROR:__main__:StageFailed: no\n"] + ["noise\n"] * 90, 1),
    "rank": (["[rank0]: Traceback\n", "[rank0]: OSError: x\n"] + ["noise\n"] * 90, 2),
    "nothing": (["noise\n"] * 90, 30),
}


@pytest.mark.parametrize(("said", "number"), SAID.values(), ids=SAID)
def test_the_launchers_report_does_not_bury_the_cause(said, number):
    assert len(causes(said)) == number
    assert ("noise\n" in causes(said)) == (number == 30)


def test_sigterm_saves_the_step_and_ends_as_stopped(inputs, tmp_path):
    """In the main thread of a process that trains by itself: not a failure of the part, but the end of the run."""
    many = config(100_000)
    rare = replace(PRETRAIN, run_part=partial(pretrain_part, runtime=TrainRuntime(checkpoint_every=100_000)))
    (part,) = plan_pretrain(many, inputs)
    store = Store(str(tmp_path / "store"))
    metrics = tmp_path / "store"

    def stop_when_it_trains() -> None:
        while not any(path.stat().st_size for path in metrics.glob("state/pretrain/*/metrics/0*.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_trains, daemon=True).start()
    with pytest.raises(Stopped, match="the same command goes on from there"):
        try_part(store, rare, many, part, None, False)
    assert list(metrics.glob("state/pretrain/*/checkpoints/step-*"))


FULL = {
    "safetensors": Exception(
        "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)"
    ),
    "ray": StageFailed("pretrain: run failed: rank 0 on node a: OSError: [Errno 28] No space left on device: '/s/x'"),
    "arrow": OSError("IOError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    "quota": RuntimeError("[enforce fail at inline_container.cc:668] . Disk quota exceeded"),
    "plain": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_known_by_whatever_name(error):
    assert remedy_for(error) in REMEDIES.values()
    assert "free some space" in str(remedy_for(error))


@pytest.mark.parametrize("error", [ValueError("no space"), OSError("unknown"), KeyError("x")])
def test_other_errors_get_no_remedy_of_a_disk(error):
    assert remedy_for(error) is None


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount to make a small disk")
@pytest.mark.parametrize("kilobytes", [24, 96, 260])
def test_a_disk_that_fills_while_training_names_the_remedy(inputs, tmp_path, kilobytes):
    """At the start, in the first checkpoint, in a later one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        some = config(40)
        (part,) = plan_pretrain(some, inputs)
        often = replace(PRETRAIN, run_part=partial(pretrain_part, runtime=TrainRuntime(checkpoint_every=2)))
        outcome = try_part(Store(str(disk / "store")), often, some, part, None, False)
        assert outcome.record is None
        assert "the disk is full: free some space, then rerun the same command" in outcome.error
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics/00000000.jsonl"])
def test_what_is_shown_of_a_training_is_the_newest_whole_line(tmp_path, name):
    """Of a file of an earlier release, and of a segment that grows."""
    files, path = StoreFiles(str(tmp_path)), tmp_path / name
    path.parent.mkdir(exist_ok=True)
    assert newest_line(files, "metrics.jsonl") is None
    if path.parent != tmp_path:
        (path.parent / "head.json").write_text('{"segments": 1}')
    lines = [
        json.dumps({"step": step, "loss": 5.0 - step, "texts_per_second": 80.0, "x": "y" * 100_000})
        for step in range(3)
    ]
    for text, step, loss in [(lines[0] + "\n", 1, 5.0), ("\n".join(lines[:2]) + "\n" + lines[2][:9], 2, 4.0)]:
        path.write_text(text)
        assert newest_line(files, "metrics.jsonl") == {"step": step, "loss": loss, "texts_per_second": 80.0}
    path.write_text(lines[0][:-1])
    assert newest_line(files, "metrics.jsonl") is None
