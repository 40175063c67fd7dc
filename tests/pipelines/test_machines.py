"""What parts get of a cluster's machines: GPUs, none of them, one store. On a real Ray that was told of two GPUs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pipelines.flow.run.cluster import check_room, current_cluster
from pipelines.flow.run.ray_runner import RayRunner
from pipelines.flow.stage import Count, Part, PartReader, PartResult, PartWriter, Runtime
from pipelines.flow.store.store import Store
from tests.e2e.conftest import descendants
from tests.support.flow import toy
from tests.support.flow.helpers import run_all
from x2vlm.errors import ConfigError, NotEnoughRoom, StageFailed

NUM_GPUS = 2


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray that schedules two GPUs; nothing here touches CUDA."""
    environment = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "") or os.getcwd()}}
    for attempt in range(5):
        try:
            ray.init(
                address="local",
                num_cpus=4,
                num_gpus=NUM_GPUS,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env=environment,
            )
            break
        except Exception:  # Ray gives itself 30 s, too few on a busy machine
            ray.shutdown()
            if attempt == 4:
                raise
    yield
    ray.shutdown()


def say_gpus(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """What the process of a part sees, while others of its node run."""
    (out.path / "a.txt").write_text("x")
    time.sleep(0.5)  # so that parts overlap
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all of them")
    return PartResult({"rows": Count(1, 1)}, summary={"seen": seen, "pid": os.getpid()})


SAY = replace(toy.FILTER, run_part=say_gpus, finish=None)


def seen(tmp_path: Path, runtime: Runtime, share: float | None) -> list[str]:
    """What each of four parts saw."""
    toy.write_source(tmp_path, "a", [f"row {n}" for n in range(12)])
    stage = replace(SAY, gpu_share=None if share is None else lambda config: share)
    graph = toy.toy_graph(tmp_path, ["a"], filter_stage=stage, runtime=runtime)
    with RayRunner() as runner:
        result = run_all(graph, Store(tmp_path / "store"), runner=runner)
    parts = [part.record.summary["seen"] for part in result.nodes["filter/a"].manifest.parts]
    assert len(parts) == 4
    return parts


@pytest.mark.parametrize(
    ("runtime", "share"),
    [(Runtime(), None), (Runtime(num_gpus=0), 0.5), (Runtime(num_gpus=0), None)],
    ids=["the stage uses none", "the experiment says none", "both"],
)
def test_a_part_without_a_gpu_sees_none(two_gpus: None, tmp_path: Path, runtime: Runtime, share: float | None) -> None:
    assert seen(tmp_path, runtime, share) == ["", "", "", ""]


@pytest.mark.parametrize("runtime", [Runtime(), Runtime(num_gpus=0.5)], ids=["by itself", "as the experiment says"])
def test_parts_share_gpus_and_crowd_none(two_gpus: None, tmp_path: Path, runtime: Runtime) -> None:
    found = Counter(seen(tmp_path, runtime, 0.5))
    assert set(found) <= {"0", "1"}, "one GPU each, and an existing one"


def job(folder: Path, world_size: int) -> dict[str, Any]:
    """A pretrain job that must not come to train: it has no data."""
    streams = [{"kind": "image", "batch_size": 12}]
    config = {"data": {"seed": 1, "streams": streams}, "world_size": world_size}
    return {"config": config, "state_uri": str(folder / "state"), "shards": [], "vocabulary": [], "facts": {}}


@pytest.mark.parametrize(
    ("world_size", "num_gpus", "words"),
    [
        (3, None, "3 workers at a time, each with 1 CPU and 1 GPU, but .* 4 CPU and 2 GPU: room for 2"),
        (3, 1.0, "3 workers at a time.*room for 2"),
        (2, 2.0, "2 workers at a time, each with 1 CPU and 2 GPU.*room for 1"),
        (6, 0.0, "6 workers at a time, each with 1 CPU, but .* room for 4"),
    ],
)
def test_training_never_falls_back_to_cpus(
    two_gpus: None, tmp_path: Path, world_size: int, num_gpus: float | None, words: str
) -> None:
    from pipelines.s5_pretrain.worker import train  # brings torch, which the workers of this module do not need

    with pytest.raises(NotEnoughRoom, match=words):
        train(job(tmp_path, world_size), world_size, num_gpus)


def test_what_the_launcher_may_add_is_known_on_the_head(two_gpus: None, tmp_path: Path) -> None:
    """The autoscaler's process is found by the words that Ray starts it with; the cluster's own, and no other."""
    kinds = {"head": {"resources": {"CPU": 0}}, "gpu": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 2}}
    config = tmp_path / "cluster.yaml"
    config.write_text(yaml.safe_dump({"max_workers": 4, "head_node_type": "head", "available_node_types": kinds}))
    monitor = tmp_path / "monitor.py"
    monitor.write_text("import time\ntime.sleep(600)\n")
    address = ray.get_runtime_context().gcs_address
    trained = toy.toy_graph(tmp_path, ["a"], runtime=Runtime(num_gpus=4))["filter/a"]
    with pytest.raises(NotEnoughRoom, match="4 GPU on one machine"):
        check_room([trained], current_cluster())
    for of, autoscales in (("127.0.0.1:1", False), (address, True)):
        process = subprocess.Popen(
            [sys.executable, str(monitor), f"--autoscaling-config={config}", f"--gcs-address={of}"]
        )
        try:
            found = current_cluster()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert found.autoscales is autoscales
        assert [machine.resources["GPU"] for machine in found.addable] == ([8.0, 8.0] if autoscales else [])
    check_room([trained], found)


def test_where_machines_are_added_every_part_looks_for_the_store(
    two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that comes later is this one, after its folder has become another."""
    monkeypatch.setenv("X2VLM_MACHINES", '[{"CPU": 4, "count": 2}]')
    graph, store = toy.toy_graph(tmp_path, ["a"]), Store(tmp_path / "store")
    with RayRunner() as runner:
        assert runner.cluster.autoscales
        runner.prepare(graph.values(), store)
        (mark,) = (tmp_path / "store" / "leases").glob(".seen-*")
        mark.unlink()
        with pytest.raises(StageFailed, match=r"does not see the folder of .*--store s3://bucket/prefix"):
            run_all(graph, store, runner=runner)
        mark.touch()
        assert run_all(graph, store, runner=runner).num_parts_run > 0
    assert not mark.exists()


@pytest.fixture
def other_machine(two_gpus: None, tmp_path: Path) -> Iterator[Path]:
    """A second machine joins: another host name, and a disk of its own where the returned folder lies."""
    own_disk = tmp_path / "disk"
    own_disk.mkdir()
    ray_command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
    joins = [*ray_command, "--address", ray.get_runtime_context().gcs_address, "--num-cpus", "1", "--num-gpus", "0"]
    script = f'hostname other-machine && mount -t tmpfs none {own_disk} && exec "$@"'
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody have a host name and mounts of its own (unshare)")
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(
            ["unshare", "--mount", "--uts", "sh", "-c", script, "sh", *joins],
            env={
                **os.environ,
                "RAY_raylet_start_wait_time_s": "150",
                "RAY_agent_register_timeout_ms": "150000",
            },  # 30 by itself, too few on a busy machine
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 180
        while len(current_cluster().hostnames) < 2:
            assert node.poll() is None, (tmp_path / "node.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "node.log").read_text()
            time.sleep(0.3)  # polling another process
        yield own_disk
    finally:
        for pid in [*descendants(node.pid), node.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()


@pytest.mark.slow
def test_a_store_that_one_machine_has_for_itself_is_refused(other_machine: Path, tmp_path: Path) -> None:
    graph = toy.toy_graph(tmp_path, ["a"])
    with RayRunner() as runner:
        with pytest.raises(ConfigError, match=r"other-machine does not see the folder of .*--store s3://bucket/prefix"):
            runner.prepare(graph.values(), Store(other_machine / "store"))
        shared = Store(tmp_path / "shared")
        runner.prepare(graph.values(), shared)
        assert run_all(graph, shared, runner=runner).num_parts_run > 0
    assert list((tmp_path / "shared" / "leases").glob(".seen-*")) == []
