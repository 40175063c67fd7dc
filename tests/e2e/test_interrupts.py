"""Ctrl-C at any moment of a run: one paragraph, exit code 130 in seconds, nothing left, and the rerun finishes."""

import random
import re
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from pipelines.flow.store.artifact import unseal
from pipelines.flow.store.lease import LeaseRecord
from pipelines.flow.store.store import Store
from tests.e2e.conftest import run_job
from tests.support.processes.jobs import Ended, processes_with, start, stop

SEED = 20261130
MOMENTS = 10
AFTER = ("", "event=ray_started", "event=node_started")  # what a run says before it is left alone for a while
LIMIT_SECONDS = 5.0
BUSY_SECONDS = 5.0  # what a machine under load may add until the signal is looked at, and the process is gone
PARAGRAPH = re.compile(r"Stopped by Ctrl-C after \d+ s\. .* To go on: .*python\S* jobs/\w+\.py sample .*\n")


def interrupt(store: Path, words: list[str], after: str, delay: float = 0.0) -> Ended:
    """Start a job, press Ctrl-C `delay` seconds after its stderr has said `after`, and check how it ends.

    With exit code 0 it was done before.
    """
    mark = f"x2vlm-test-{secrets.token_hex(6)}"
    process = start([sys.executable, *words, "--store", str(store)], X2VLM_TEST_MARK=mark)
    assert process.stderr is not None
    said = ""
    while after and after not in said:
        line = process.stderr.readline()
        if not line:  # nothing was left to do
            assert process.wait() == 0, f"ended without {after!r}:\n{said[-3000:]}"
            return Ended(0, "", "", 0.0)
        said += line
    time.sleep(delay)
    is_running = process.poll() is None
    ended = stop(process, signal.SIGINT) if is_running else Ended(process.wait(), "", process.stderr.read(), 0.0)
    assert not processes_with(mark)
    if is_running and ended.returncode != 0:  # a signal in the last moment of a process comes too late
        assert ended.returncode == 130, (ended.returncode, said[-2000:] + ended.stderr[-3000:])
        assert ended.seconds < LIMIT_SECONDS + BUSY_SECONDS
        assert len(PARAGRAPH.findall(ended.stderr)) == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        assert all(lease.released for lease in leases(store))
    return ended


def leases(store: Path) -> list[LeaseRecord]:
    return [unseal(LeaseRecord, path.read_bytes(), str(path))[0] for path in store.glob("leases/*/*.json")]


def test_two_moments_of_a_run_and_the_rerun(tmp_path: Path) -> None:
    """While a part is fetched, and while the end of the run waits for MLflow."""
    store = tmp_path / "store"
    words = ["jobs/run_stage.py", "sample", "--inline", "--only", "read/coco", "--only", "download/coco"]
    ended = interrupt(store, words, "event=node_started node=download/coco", 0.2)
    assert ended.returncode == 130
    assert "Parts finished in this run: 1. They and all earlier ones are kept" in ended.stderr
    assert Store(str(store)).read_ref("sample", "read/coco") is not None
    ended = interrupt(store, words, "event=run_finished")
    assert ended.returncode == 130
    job = run_job("run_stage.py", "sample", "--store", str(store), "--json", *words[2:])
    assert job.returncode == 0, job.stderr[-3000:]
    assert {node["action"] for node in job.json["nodes"]} == {"REUSE"}
    assert (store / "mlflow.db").exists(), "the rerun brought what MLflow lacked"


@pytest.mark.slow
def test_ten_random_moments_on_ray(tmp_path: Path) -> None:
    """From the imports to the training: what is finished is kept, so later moments fall into later stages."""
    rng = random.Random(SEED)
    store = tmp_path / "store"
    words = ["jobs/full_pretrain.py", "sample"]
    moments: list[str] = []
    for _ in range(3 * MOMENTS):
        after = AFTER[len(moments) % len(AFTER)]
        ended = interrupt(store, words, after, rng.uniform(0.5, 30))
        if ended.returncode == 130:
            moments.append(after)
        else:  # this machine was done sooner: again from the beginning
            shutil.rmtree(store)
        if len(moments) == MOMENTS:
            break
    assert len(moments) == MOMENTS
    job = run_job("full_pretrain.py", "sample", "--store", str(store), "--json")
    assert job.returncode == 0, job.stderr[-4000:]
    assert len(job.json["nodes"]) == 41
