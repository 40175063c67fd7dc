"""A run on a real Ray of several nodes that loses one and gets another: 4 processes, then 2 of 3, then 4 again."""

import functools
import threading
from pathlib import Path

import pytest

from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.worker import train
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.pretrain_part import job_of, toy_inputs
from tests.support.training.ray_runs import LOOK_SECONDS, lines_of, undisturbed, wait_for
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig

STEPS = 1000
EQUAL_STEPS = 20  # compared with an undisturbed run


@pytest.mark.slow
def test_a_node_is_lost_and_another_comes(tmp_path: Path, monkeypatch):
    """No step is lost or made twice in the record, and with equal numbers of processes the curve is the undisturbed."""
    import ray
    import ray.train
    from ray.cluster_utils import Cluster

    config = PretrainConfig(
        model=MODEL,
        data=DATA,
        train=TrainConfig.model_validate(
            {"steps": STEPS, "warmup_steps": 10, "precision": "float32", "optimizer": {"lr": 2e-3}}
        ),
        world_size=4,
    )
    inputs = toy_inputs(tmp_path / "inputs")
    job = job_of(config, inputs, tmp_path / "state", min_workers=2, checkpoint_every=10, max_failures=2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(4)]
    ray.init(address=cluster.address, log_to_driver=False)
    state = tmp_path / "state"
    problems: list[BaseException] = []

    def train_here() -> None:
        try:
            train(job, 4)
        except BaseException as error:
            problems.append(error)

    often = functools.partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=LOOK_SECONDS)
    monkeypatch.setattr(ray.train, "ScalingConfig", often)
    thread = threading.Thread(target=train_here)  # as the driver does; nodes are added in the main thread only
    thread.start()
    try:
        wait_for(state, EQUAL_STEPS, 4)
        cluster.remove_node(nodes[-1], allow_graceful=False)
        wait_for(state, EQUAL_STEPS, 2)
        cluster.add_node(num_cpus=1)
        wait_for(state, EQUAL_STEPS, 4)
        thread.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert problems == []
    lines = lines_of(state)
    assert [line["step"] for line in lines] == list(range(STEPS))
    intervals = CheckpointStore(f"{state}/checkpoints").load_newest().facts["world_sizes"]
    assert [size for _, size in intervals] == [4, 2, 4]
    print("world sizes", intervals)  # noqa: T201
    assert lines[:EQUAL_STEPS] == undisturbed(job, tmp_path / "undisturbed", EQUAL_STEPS)[:EQUAL_STEPS]
