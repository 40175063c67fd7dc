"""Training without Ray: what the entry point says to whoever starts it wrongly, and its exit codes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.fencing import LEASE, sole_driver
from pipelines.s5_pretrain.shards import write_listing
from pipelines.s5_pretrain.torchrun import EXIT_USAGE, agreed_code, main, read_job
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.pretrain_part import job_of, toy_inputs
from x2vlm.command_line import EXIT_FENCED
from x2vlm.data.loading.shard_cache import fetch_listing
from x2vlm.data.shards.listing import ShardListing
from x2vlm.errors import ConfigError
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig
from x2vlm.train.metrics import read_metrics
from x2vlm.train.stopping import EXIT_STOPPED


@pytest.fixture(autouse=True)
def started_by_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")


def test_a_missing_job_is_named_with_where_to_find_one(tmp_path):
    with pytest.raises(ConfigError, match=r"job\.json: no such file.*jobs/full_pretrain\.py"):
        read_job([str(tmp_path / "job.json")])


@pytest.mark.parametrize("content", ["", '{"config": {', "[]", '{"config": {}}'])
def test_a_torn_job_is_named_with_its_remedy(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(ConfigError, match=r"job\.json: not the job of a run.*start the run again"):
        read_job([str(tmp_path / "job.json")])


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_wrong_use_ends_with_the_command(arguments, caplog):
    assert main(arguments) == EXIT_USAGE
    assert "torchrun --nproc-per-node" in caplog.text


def test_a_process_that_torchrun_did_not_start_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="not started by torchrun"):
        read_job([str(tmp_path / "job.json")])


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([75, 75], 75),
        ([75, -15], 75),
        ([0, 75], 75),
        ([1, -15], 1),
        ([75, 1], 1),
        ([-9, 1], 1),
        ([-15], 1),
        ([], 1),
        ([6, 1, 1], 6),
        ([76, 76, -15], 76),
        ([3, -15], 3),
    ],
    ids=str,
)
def test_the_code_of_a_run_is_that_of_its_processes(codes, expected):
    """The first to fail takes the others with it, by SIGTERM or by a broken connection: theirs say nothing."""
    assert agreed_code(codes) == expected


@pytest.mark.parametrize("arguments", [[], ["--nproc-per-node", "2"], ["--nproc-per-node", "2", "gone.json"]])
def test_a_launch_without_a_job_ends_as_wrong_use(arguments, monkeypatch, caplog):
    monkeypatch.delenv("RANK")
    assert main(arguments) == EXIT_USAGE
    assert "the job of a run" in caplog.text or "no such file. A run leaves job.json" in caplog.text


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job of very many steps for two processes."""
    folder = tmp_path_factory.mktemp("job")
    train = {"steps": 100_000, "warmup_steps": 1, "precision": "float32", "optimizer": {"lr": 2e-3}}
    config = PretrainConfig(model=MODEL, data=DATA, train=TrainConfig.model_validate(train), world_size=2)
    return job_of(config, toy_inputs(folder / "inputs"), folder / "state", checkpoint_every=100_000)


def launched(job, folder, **changes) -> subprocess.Popen:
    told = {**job, "state_uri": str(folder / "state"), **changes}
    (folder / "job.json").write_text(json.dumps(told))
    command = [
        sys.executable,
        "-m",
        "pipelines.s5_pretrain.torchrun",
        "--nproc-per-node",
        "2",
        str(folder / "job.json"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.Popen(command, env=environment, stderr=(folder / "log").open("wb"))


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_ends_with_75(job, tmp_path):
    process = launched(job, tmp_path)
    metrics = tmp_path / "state/metrics.jsonl"
    while len(read_metrics(metrics)) < 3:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_STOPPED, (tmp_path / "log").read_text()
    assert CheckpointStore(f"{tmp_path}/state/checkpoints").steps() == [len(read_metrics(metrics))]


@pytest.mark.slow
def test_a_job_that_was_taken_over_ends_with_6(job, tmp_path):
    """Its token is no longer the highest of the state folder."""
    with sole_driver(str(tmp_path / "state")), sole_driver_of_another(tmp_path / "state"):
        assert launched(job, tmp_path, token=1).wait(120) == EXIT_FENCED, (tmp_path / "log").read_text()
    assert "another driver trains this run now (token 2, ours is 1)" in (tmp_path / "log").read_text()


@contextlib.contextmanager
def sole_driver_of_another(state):
    Store(str(state)).blobs.create(f"leases/{LEASE}/{2:010d}.json", b"{}")
    yield


@pytest.mark.slow
def test_a_failure_ends_with_1(job, tmp_path):
    listing = fetch_listing(**job["shards"])
    damaged = [listing.shard(number) | {"index_sha256": "0" * 64} for number in range(len(listing))]
    shards = write_listing(ShardListing.of_shards(damaged), str(tmp_path))
    assert launched(job, tmp_path, shards=shards).wait(120) == 1
    assert "rerun the pack stage" in (tmp_path / "log").read_text()
