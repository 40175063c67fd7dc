"""`kill -9` of the driver and of workers at seeded random moments: the same command finishes, with the same result.

20 moments over download (s1), partition and pack (s4) and pre-training (s5). Run by `make slow`.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.flow.store.store import Store
from tests.e2e.conftest import ROOT, SampleRun, descendants
from tests.support.flow.sample_store import DECIDING, forget, roots

pytestmark = pytest.mark.slow

SEED = 20261123
MOMENTS = {"s1": 7, "s4": 6, "s5": 7}
TARGETS = {"s1": ["read/*", "download/*"], "s4": ["partition/*", "pack/*"], "s5": ["pretrain/*"]}
# Longest wait before a kill, in seconds after the first process of the phase's own work was seen.
LONGEST_WAIT = {"s1": 30.0, "s4": 6.0, "s5": 30.0}
# How the processes that do the phase's work are called; Ray's own agents are not among them.
WORK = {"s1": ("s1_download.worker",), "s4": ("ray::partition", "ray::pack"), "s5": ("RayTrainWorker",)}


def command(targets: list[str], store: Path) -> list[str]:
    only = [word for target in targets for word in ("--only", target)]
    return [sys.executable, "jobs/run_stage.py", "sample", "--store", str(store), "--json", *only]


def workers(driver: int, phase: str) -> list[int]:
    lines = descendants(driver)
    return [pid for pid, line in lines.items() if any(name in line for name in WORK[phase])]


def kill_once(phase: str, store: Path, rng: random.Random, killed_process: str) -> bool:
    """Start the phase, kill the driver or one of its workers at a random moment; True if something was killed."""
    driver = subprocess.Popen(
        command(TARGETS[phase], store),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    killed = False
    try:
        while driver.poll() is None and not workers(driver.pid, phase):
            time.sleep(0.05)  # watching another process
        until = time.monotonic() + rng.uniform(0, LONGEST_WAIT[phase])
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if driver.poll() is None:
            if killed_process == "driver":
                os.kill(driver.pid, signal.SIGKILL)
                killed = True
            elif alive := workers(driver.pid, phase):
                os.kill(rng.choice(alive), signal.SIGKILL)
                killed = True
                driver.wait(timeout=600)
                assert driver.returncode == 0, "a lost worker must not fail the run"
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.wait()
    return killed


def finish(targets: list[str], store: Path) -> None:
    done = subprocess.run(command(targets, store), cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


def fetched(store: Path) -> dict[str, str]:
    """sha256 of everything the download stage wrote but the times in its ledger, by node, part and file."""
    opened = Store(str(store))
    found = {}
    for ref in opened.refs_of_experiment("sample"):
        if not ref.node.startswith("download/"):
            continue
        stored = opened.read_manifest(ref.manifest_path)
        assert stored is not None
        for part in stored[0].parts:
            for file in part.record.files:
                path = Path(opened.file_uri(part.record, file).removeprefix("file://"))
                if file.path == "ledger.parquet":
                    text = json.dumps(pq.read_table(path).drop_columns("fetched_at").to_pylist())
                    found[f"{ref.node}/{part.name}/{file.path}"] = hashlib.sha256(text.encode()).hexdigest()
                else:
                    found[f"{ref.node}/{part.name}/{file.path}"] = file.sha256
    return found


def curve(store: Path) -> list[dict[str, float]]:
    """The losses of every step, without what depends on the clock."""
    (path,) = store.glob("parts/pretrain/*/*/metrics.jsonl")
    keep = ("step", "loss", "image/", "region/", "video/", "grad_norm", "lr")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name.startswith(keep)} for row in rows]


@pytest.mark.parametrize("phase", ["s1", "s4", "s5"])
def test_same_result_after_kills(phase: str, sample_run: SampleRun, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {phase}")
    store = Path(shutil.copytree(sample_run.store, tmp_path / "store"))
    num_killed = 0
    for moment in range(MOMENTS[phase]):
        if phase != "s4" or moment % 2 == 0:  # some kills hit a fresh start, some what an earlier kill left behind
            forget(store, phase)
        num_killed += kill_once(phase, store, rng, "driver" if moment % 2 == 0 else "worker")
    assert num_killed >= MOMENTS[phase] // 2, "most moments must fall into the work"
    finish(TARGETS[phase], store)
    if phase == "s1":
        assert fetched(store) == fetched(sample_run.store)
        assert roots(store, ["read"]) == roots(sample_run.store, ["read"])
        stages = ["filter", "score", *DECIDING, "partition", "pack"]
        finish([f"{stage}/*" for stage in stages], store)
        assert roots(store, stages) == roots(sample_run.store, stages)
    if phase == "s4":
        assert roots(store, ["partition", "pack"]) == roots(sample_run.store, ["partition", "pack"])
    if phase == "s5":
        assert curve(store) == curve(sample_run.store)
        (weights,) = store.glob("parts/pretrain/*/*/model.safetensors")
        (expected,) = sample_run.store.glob("parts/pretrain/*/*/model.safetensors")
        assert weights.read_bytes() == expected.read_bytes()
