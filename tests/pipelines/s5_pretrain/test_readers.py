"""How many processes prefetch, and what is said when one of them is killed."""

import multiprocessing
import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.local_processes import MAX_READERS, readers_per_trainer, usable_cpus
from pipelines.s5_pretrain.worker import _num_readers
from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from x2vlm.data.loading.loader import StepLoader, iterate_steps
from x2vlm.errors import ReaderLost
from x2vlm.train.config import TrainRuntime


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def cpus_of(tmp_path: Path, own: str) -> float:
    (tmp_path / "own").write_text(own)
    with mock.patch("os.sched_getaffinity", return_value=set(range(64))):
        return usable_cpus(tmp_path / "cgroup", tmp_path / "own")


def test_a_quota_of_any_group_above_the_process_counts(tmp_path):
    group(tmp_path / "cgroup", "pod/container", cpu__max="max 100000\n")
    assert cpus_of(tmp_path, "0::/pod/container\n") == 64
    group(tmp_path / "cgroup", "pod", cpu__max="1200000 100000\n")
    assert cpus_of(tmp_path, "0::/pod/container\n") == 12
    group(tmp_path / "cgroup", "pod/container", cpu__max="350000 100000\n")
    assert cpus_of(tmp_path, "0::/pod/container\n") == 3.5


def test_so_does_that_of_version_1(tmp_path):
    own = "4:memory:/other\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/x\n"
    assert cpus_of(tmp_path, own) == 64
    group(tmp_path / "cgroup", "cpu/docker/ab", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cpus_of(tmp_path, own) == 64
    group(tmp_path / "cgroup", "cpu/docker/ab", cpu__cfs_quota_us="800000", cpu__cfs_period_us="100000")
    assert cpus_of(tmp_path, own) == 8


def test_the_affinity_of_this_very_process_counts():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() <= 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cpus() <= len(before)


@pytest.mark.parametrize(
    ("trainers", "cpus", "expected"), [(8, 256.0, MAX_READERS), (8, 64.0, 7), (4, 12.0, 2), (8, 2.0, 1), (1, 0.5, 1)]
)
def test_the_trainers_of_a_machine_share_its_cpus(trainers, cpus, expected):
    assert readers_per_trainer(trainers, cpus) == expected


@pytest.mark.parametrize(("environment", "expected"), [({}, 3), ({"LOCAL_WORLD_SIZE": "4"}, 7)])
def test_a_trainer_that_sees_one_gpu_asks_how_many_share_the_machine(environment, expected, monkeypatch):
    """Ray shows each worker its own GPU: the device count says nothing of the machine."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = 1 if environment else 8
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=seen),
        mock.patch("pipelines.s5_pretrain.worker.usable_cpus", return_value=32.0),
        mock.patch("os.cpu_count", return_value=256),
    ):
        assert _num_readers(PretrainConfig(world_size=64), TrainRuntime()) == expected
        assert _num_readers(PretrainConfig(world_size=64), TrainRuntime(readers=2)) == 2


def test_without_a_gpu_nothing_prefetches():
    with mock.patch("torch.cuda.is_available", return_value=False):
        assert _num_readers(PretrainConfig(), TrainRuntime()) == 0


def test_a_killed_reader_is_named_with_its_signal_and_the_likely_cause(tmp_path):
    """kill -9, as the kernel does it when memory runs out."""
    loader = StepLoader(make_shards(tmp_path), DATA, TOKENIZER, 32, 16, rank=1, world_size=2)
    before = {child.pid for child in multiprocessing.active_children()}
    steps = iterate_steps(loader, 0, 100_000, num_workers=2)
    next(steps)
    readers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(readers) == 2
    os.kill(readers[0].pid, signal.SIGKILL)
    with pytest.raises(ReaderLost) as raised:
        for _ in steps:
            pass
    message = str(raised.value)
    assert f"for rank 1 died: pid {readers[0].pid} was killed by SIGKILL. " in message
    assert "memory runs out" in message
    assert "train_runtime.readers" in message
    assert raised.value.__cause__ is not None


def test_errors_of_samples_stay_what_they_are(tmp_path):
    """A reader that raises is no reader that died."""
    loader = StepLoader(make_shards(tmp_path), DATA, TOKENIZER, 32, 16)
    loader.streams = None
    with pytest.raises(TypeError):
        next(iterate_steps(loader, 0, 4, num_workers=1))
