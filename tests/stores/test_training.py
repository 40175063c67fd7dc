"""A training whose store fails, is slow or is full: no step is lost, nobody is killed, and what is said is true."""

import errno
import hashlib
import itertools
import json
import os
import signal
import threading
import time
import uuid

import pytest
import torch

from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from tests.support.training.processes import Start, on_ranks
from tests.support.training.processes import run as run_processes
from tests.support.training.runs import CONFIG, RUNTIME, metrics_of, toy_model
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_cache import ShardCache, local_shards
from x2vlm.errors import StageFailed
from x2vlm.models.checkpoints.weights import own_tensors
from x2vlm.stores.calls import StoreFiles
from x2vlm.train import watchdog as watchdogs
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.progress import CLOCK_NAMES
from x2vlm.train.ranks import Ranks, tensors_from_first
from x2vlm.train.recording import writer
from x2vlm.train.stopping import TrainingStopped
from x2vlm.train.watchdog import Watchdog

STEPS = 24
OUTAGE_SECONDS = 2.5


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def stalls(monkeypatch):
    """Where watchdogs would have ended this process."""
    found = []
    monkeypatch.setattr(Watchdog, "_give_up", lambda self, heartbeat, limit: found.append(heartbeat))
    return found


def _fit(folder, files, steps=STEPS, every=3, on_step=None, runtime=None, store=None, **changes):
    model = toy_model()
    config = CONFIG.model_copy(update={"steps": steps, **changes})
    runtime = (runtime or TrainRuntime()).model_copy(update={"checkpoint_every": every})
    loader = StepLoader(files, DATA, TOKENIZER, 32, 16)
    store = store or CheckpointStore(f"{folder}/checkpoints")
    fit(model, loader, config, Ranks(), store, f"{folder}/metrics.jsonl", on_step=on_step, runtime=runtime)
    return own_tensors(model)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return _fit(folder, shards), metrics_of(folder)


def _upload(uri, shards):
    """The shards in the store, as a job lists them."""
    files, listed = StoreFiles(uri), []
    for shard in shards:
        item = {}
        for name, path in (("media", shard.media), ("index", shard.index)):
            files.upload(path, path.name)
            item |= {name: f"{uri}/{path.name}", f"{name}_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        listed.append(item)
    return listed


@pytest.mark.parametrize("failure", ["refuse", "error", "hang"])
def test_an_outage_costs_no_step(store, shards, undisturbed, stalls, tmp_path, monkeypatch, caplog, failure):
    """Metrics, checkpoints, heartbeats and shards are in the store, which fails from step 4 on, while two saves fall
    due. The limit for a stall is below the outage."""
    monkeypatch.setattr(writer, "SAVE_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(watchdogs, "SLOW_SECONDS", 0.2)
    uri = f"s3://runs/{uuid.uuid4().hex}"
    cache = ShardCache(tmp_path / "cache")
    listed = _upload(uri, shards)
    ends = []

    def on_step(step):
        if step == 4:
            store.failure = failure
            threading.Timer(OUTAGE_SECONDS, setattr, (store, "failure", "")).start()
        ends.append((time.monotonic(), store.failure))
        time.sleep(0.15)

    runtime = TrainRuntime(stall_seconds=1.5, shard_cache=str(cache.folder))
    weights = _fit(uri, local_shards(listed, cache), on_step=on_step, runtime=runtime)
    assert {name: torch.equal(value, undisturbed[0][name]) for name, value in weights.items()} == dict.fromkeys(
        weights, True
    )
    lines = read_metrics(f"{uri}/metrics.jsonl")
    assert [{k: v for k, v in line.items() if k not in CLOCK_NAMES} for line in lines] == undisturbed[1]
    assert stalls == []
    during = [at for at, failing in ends if failing]
    assert len(during) >= 5  # training went on
    assert max(b - a for a, b in itertools.pairwise(during)) < 1.5
    steps = CheckpointStore(f"{uri}/checkpoints").steps()
    assert steps[-1] == STEPS
    assert len(steps) == 2
    assert "checkpoint_put_off" in caplog.text
    (beats,) = [name for name in StoreFiles(f"{uri}/heartbeats").names()]
    assert json.loads(StoreFiles(f"{uri}/heartbeats").read(beats))["step"] >= 4


@pytest.mark.slow
def test_an_outage_of_ten_minutes_costs_no_step(store, shards, undisturbed, stalls, tmp_path):
    """With the settings that a run has by itself: retries for 15 minutes, a stall after 5."""
    uri = f"s3://runs/{uuid.uuid4().hex}"
    cache = ShardCache(tmp_path / "cache")
    listed = _upload(uri, shards)
    began: list[float] = []

    def on_step(step):
        if step == 4:
            store.failure = "error"
            threading.Timer(600, setattr, (store, "failure", "")).start()
            began.append(time.monotonic())

    runtime = TrainRuntime(shard_cache=str(cache.folder))
    weights = _fit(uri, local_shards(listed, cache), on_step=on_step, runtime=runtime)
    assert time.monotonic() - began[0] > 599  # the last save waited for the store
    assert all(torch.equal(value, undisturbed[0][name]) for name, value in weights.items())
    lines = read_metrics(f"{uri}/metrics.jsonl")
    assert [{k: v for k, v in line.items() if k not in CLOCK_NAMES} for line in lines] == undisturbed[1]
    assert stalls == []
    assert CheckpointStore(f"{uri}/checkpoints").steps()[-1] == STEPS


def test_a_reader_that_waits_for_the_store_is_no_stall(store, shards, undisturbed, stalls, tmp_path):
    """The store is down before the first shard is read, for longer than the limit."""
    uri = f"s3://runs/{uuid.uuid4().hex}"
    listed = _upload(uri, shards)
    cache = ShardCache(tmp_path / "cache")
    files = local_shards(listed, cache)
    folder = tmp_path / "run"
    model, config = toy_model(), CONFIG.model_copy(update={"steps": 3})
    loader = StepLoader(files, DATA, TOKENIZER, 32, 16)
    (cache.folder / "gone").mkdir()
    for path in cache.folder.glob("*.tar"):
        path.unlink()
    store.failure = "error"
    threading.Timer(2.5, setattr, (store, "failure", "")).start()
    runtime = TrainRuntime(stall_seconds=0.3, shard_cache=str(cache.folder))
    fit(
        model,
        loader,
        config,
        Ranks(),
        CheckpointStore(f"{folder}/checkpoints"),
        f"{folder}/metrics.jsonl",
        runtime=runtime,
    )
    assert [line["loss"] for line in read_metrics(folder / "metrics.jsonl")] == [
        line["loss"] for line in undisturbed[1][:3]
    ]
    assert stalls == []


def test_the_excuse_of_a_failing_store_ends(store, stalls, monkeypatch):
    """Idle while every heartbeat fails: not given up at the limit, but after as long as calls are tried again."""
    monkeypatch.setattr(watchdogs, "SLOW_SECONDS", 0.2)
    store.failure = "error"
    with Watchdog(f"s3://runs/{uuid.uuid4().hex}", Ranks(), 0.6, store_retry_seconds=2.0) as watchdog:
        watchdog.beat(0, "train")
        watchdog.beat(1, "train")
        time.sleep(1.5)
        assert stalls == []
        time.sleep(2.5)
        assert stalls
        assert all(thread.is_alive() for thread in watchdog._threads)


@pytest.mark.parametrize("failure", ["refuse", "reset", "error", "hang"])
def test_the_watchdog_outlives_its_store(store, failure):
    uri = f"s3://runs/{uuid.uuid4().hex}"
    with Watchdog(uri, Ranks(), 100.0) as watchdog:
        watchdogs_alive = []
        store.failure = failure
        for step in range(8):
            watchdog.beat(step, "train")
            time.sleep(0.05)
            watchdogs_alive.append(all(thread.is_alive() for thread in watchdog._threads))
        store.failure = ""
    assert all(watchdogs_alive)


class FullDisk(CheckpointStore):
    """A disk on which the checkpoints from `first` on find no room."""

    first = 1

    def save(self, checkpoint):
        if checkpoint.step >= self.first:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().save(checkpoint)


@pytest.mark.parametrize("first", [1, 4])
def test_a_stop_that_could_not_save_does_not_say_saved(shards, tmp_path, first):
    store = FullDisk(f"{tmp_path}/checkpoints")
    store.first = first
    with pytest.raises(StageFailed, match=r"step \d+ was not written: OSError.*No space left on device"):
        _fit(
            tmp_path,
            shards,
            every=3,
            store=store,
            on_step=lambda step: step == 4 and os.kill(os.getpid(), signal.SIGTERM),
        )
    assert CheckpointStore(store.uri).steps() == ([] if first == 1 else [3])


def test_a_last_save_makes_up_for_one_that_failed(shards, tmp_path, caplog):
    """A disk that is full for a while: the run ends well if its last checkpoint is there."""

    class Once(CheckpointStore):
        def save(self, checkpoint):
            if checkpoint.step == 6:
                time.sleep(0.5)  # until the last one is due
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().save(checkpoint)

    store = Once(f"{tmp_path}/checkpoints")
    with pytest.raises(TrainingStopped, match="stopped as asked after 7 steps, which are saved"):
        _fit(tmp_path, shards, store=store, on_step=lambda step: step == 5 and os.kill(os.getpid(), signal.SIGTERM))
    assert CheckpointStore(store.uri).steps() == [3, 7]
    assert "checkpoint_failed step=6" in caplog.text
    assert "earlier_checkpoint_failed" in caplog.text


def test_processes_that_cannot_save_do_not_end_as_stopped(shards, tmp_path):
    """Two ranks, the folder of checkpoints is a file; both end as failed, and say why."""
    (tmp_path / "checkpoints").write_text("in the way")
    start = Start(
        str(tmp_path),
        tuple(str(shard.media) for shard in shards),
        world_size=2,
        train={"steps": 400},
        runtime={"checkpoint_every": 1000},
    )

    def terminate(processes):
        while not read_metrics(tmp_path / "metrics.jsonl"):
            time.sleep(0.02)
        os.kill(processes[-1].pid, signal.SIGTERM)

    assert run_processes(start, terminate, timeout=120) == [1, 1]
    for rank in range(2):
        assert "the checkpoint of step" in (tmp_path / f"start-rank-{rank}.log").read_text()


def test_a_slow_last_save_is_no_stall(shards, tmp_path, stalls):
    class Slow(CheckpointStore):
        def save(self, checkpoint):
            time.sleep(2.0)
            return super().save(checkpoint)

    _fit(
        tmp_path,
        shards,
        steps=4,
        every=100,
        store=Slow(f"{tmp_path}/checkpoints"),
        runtime=TrainRuntime(stall_seconds=0.4),
    )
    assert CheckpointStore(f"{tmp_path}/checkpoints").steps() == [4]
    assert stalls == []


def test_weights_that_are_not_finite_end_the_run_and_keep_the_checkpoints(shards, tmp_path):
    """A weight of the model becomes NaN behind the back of the loss (an entry no step reads)."""
    model = toy_model()
    config = CONFIG.model_copy(update={"steps": 12})
    store = CheckpointStore(f"{tmp_path}/checkpoints")

    def poison(step):
        if step == 6:
            name = next(n for n in own_tensors(model) if n.endswith("bias") and "text" in n)
            with torch.no_grad():
                own_tensors(model)[name].fill_(float("nan"))

    loader = StepLoader(shards, DATA, TOKENIZER, 32, 16)
    with pytest.raises(StageFailed, match=r"step \d+: .* not finite"):
        fit(model, loader, config, Ranks(), store, f"{tmp_path}/metrics.jsonl", on_step=poison, runtime=RUNTIME)
    assert CheckpointStore(f"{tmp_path}/checkpoints").steps() == [3, 6]


def _sent(rank, world_size):
    tensors = {"w/exp_avg": torch.arange(6.0).view(2, 3), "w/step": torch.tensor(7), "half": torch.ones(2).bfloat16()}
    from x2vlm.train.ranks import current_ranks

    return tensors_from_first(tensors if rank == 0 else {}, current_ranks())


def test_every_rank_gets_the_tensors_of_the_first():
    first, second = on_ranks(_sent, 2)
    assert list(first) == list(second) == ["w/exp_avg", "w/step", "half"]
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert tensor.dtype == second[name].dtype
    assert second["w/step"].item() == 7
