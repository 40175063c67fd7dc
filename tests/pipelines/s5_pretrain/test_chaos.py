"""Two thousand steps on a real Ray of several nodes with their state on an S3 store, both of which fail repeatedly.

Workers are killed, a node is lost and another comes (4 processes, then what divides the batches of 3, then 4), the
store is away for 10 to 60 seconds three times, and two branches go on from the middle.
"""

import functools
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.flow.stage import Inputs, SourceFile
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.stage import plan_pretrain, pretrain_part
from pipelines.s5_pretrain.start import StartConfig
from pipelines.s5_pretrain.start_run import marker_of
from pipelines.s5_pretrain.worker import train
from tests.support.s3 import s3_client, s3_in_environment, s3_server
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.faulty_store import FaultyStore, faulty_store
from tests.support.training.pretrain_part import LocalInputs, Out, job_of, toy_inputs
from tests.support.training.ray_runs import LOOK_SECONDS, lines_of, undisturbed, wait_for
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.metrics import read_metrics

STEPS = 2000
RUNTIME = {"min_workers": 2, "checkpoint_every": 20, "keep_every": 500, "max_failures": 20}
TRAIN = {"steps": STEPS, "warmup_steps": 10, "precision": "float32", "optimizer": {"lr": 1e-3}}


def num_lines(state: str) -> int:
    return len(read_metrics(f"{state}/metrics.jsonl"))


def kill_a_worker() -> None:
    workers = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if b"RayTrainWorker" in _command(pid)]
    assert workers
    os.kill(max(workers), signal.SIGKILL)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def outage(store: FaultyStore, failure: str, seconds: float) -> None:
    store.failure = failure  # type: ignore[assignment]
    time.sleep(seconds)
    store.failure = ""


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    with s3_server() as endpoint, faulty_store(endpoint) as proxy, s3_in_environment(proxy.endpoint):
        s3_client(endpoint).create_bucket(Bucket="runs")
        yield proxy


@pytest.mark.slow
def test_two_thousand_steps_of_chaos_lose_nothing(store: FaultyStore, tmp_path: Path, monkeypatch) -> None:
    import ray
    import ray.train
    from ray.cluster_utils import Cluster

    config = PretrainConfig(model=MODEL, data=DATA, train=TrainConfig.model_validate(TRAIN), world_size=4)
    inputs = toy_inputs(tmp_path / "inputs")
    state = f"s3://runs/store/state/pretrain/{uuid.uuid4().hex}"
    job = {**job_of(config, inputs, tmp_path / "unused", **RUNTIME), "state_uri": state}
    often = functools.partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=LOOK_SECONDS)
    monkeypatch.setattr(ray.train, "ScalingConfig", often)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(4)]
    ray.init(address=cluster.address, log_to_driver=False)
    problems: list[BaseException] = []

    def train_here() -> None:
        try:
            train(job, 4)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=train_here)  # as the driver does; nodes are added in the main thread only
    thread.start()
    began = time.monotonic()
    try:
        wait_for(state, 60)
        outage(store, "refuse", 10)
        wait_for(state, 200)
        kill_a_worker()
        wait_for(state, 400, 4)
        alone = num_lines(state)  # so far with the same number of processes
        cluster.remove_node(nodes[-1], allow_graceful=False)
        wait_for(state, alone + 40)
        outage(store, "error", 60)
        cluster.add_node(num_cpus=1)
        wait_for(state, alone + 200, 4)
        kill_a_worker()
        wait_for(state, 1500)
        outage(store, "hang", 20)
        thread.join()
    finally:
        store.failure = ""
        ray.shutdown()
        cluster.shutdown()
    print("seconds", round(time.monotonic() - began))  # noqa: T201
    assert problems == []
    lines = lines_of(state)
    assert [line["step"] for line in lines] == list(range(STEPS))
    intervals = CheckpointStore(f"{state}/checkpoints").load_newest().facts["world_sizes"]
    print("world sizes", intervals)  # noqa: T201
    sizes = [size for _, size in intervals]
    assert sizes[0] == sizes[-1] == 4
    assert min(sizes) < 4
    calm = undisturbed(job, tmp_path / "undisturbed", alone)
    first_change = next(step for step, size in intervals if size != 4)
    same = min(first_change, alone, len(calm))
    assert same >= 300
    assert lines[:same] == calm[:same]

    # Two branches off a milestone, with as many processes as the run had there: one as it is, one with another rate.
    step = 1500
    assert max(interval for interval in intervals if interval[0] <= step)[1] == 4
    as_it_is = branch_lines(state, step, {}, inputs, tmp_path / "as-it-is")
    assert as_it_is == lines[step:]
    slower = branch_lines(state, step, {"steps": 1600, "optimizer": {"lr": 1e-4}}, inputs, tmp_path / "slower")
    assert [line["step"] for line in slower] == list(range(step, 1600))
    assert losses_of(slower[0]) == losses_of(lines[step])  # before its first update
    assert losses_of(slower[-1]) != losses_of(lines[1599])


def branch_lines(
    state: str, step: int, changes: Mapping[str, Any], inputs: Inputs, folder: Path
) -> list[dict[str, Any]]:
    """The metrics of a branch of four processes that goes on from `step` of the run in `state`."""
    branch = f"s3://runs/store/state/pretrain/{uuid.uuid4().hex}"
    marker = marker_of(state, step, Store("s3://runs/store"))
    folder.mkdir()
    found = SourceHashes(Store(str(folder / "hashes"))).fingerprint(SourceFile(marker, "start.run"))
    own = PretrainConfig(
        model=MODEL,
        data=DATA,
        train=TrainConfig.model_validate({**TRAIN, **changes}),
        world_size=4,
        start=StartConfig(run="anywhere", step=step).recorded(),
    )
    out = Out(folder / "part", branch)
    out.path.mkdir()
    (part,) = plan_pretrain(own, {**inputs, "start_run": (found,)})
    local = folder / "marker"
    local.write_bytes(Store(marker.rpartition("/")[0]).blobs.read("COMMITTED") or b"")
    pretrain_part(own, Local(str(marker), local), part, out, TrainRuntime(checkpoint_every=100))
    assert json.loads((out.path / "start.json").read_text())["step"] == step
    return lines_of(branch)


def losses_of(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if "/" in name}


class Local(LocalInputs):
    """Local inputs, and the marker of a checkpoint that lies on the store."""

    def __init__(self, uri: str, path: Path) -> None:
        self._uri, self._path = uri, path

    def local_path(self, file) -> Path:
        return self._path if file.uri == self._uri else super().local_path(file)
