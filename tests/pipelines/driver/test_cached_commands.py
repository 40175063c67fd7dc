"""A command with nothing to do: quick, without Ray and MLflow, and no trace of it in MLflow."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.experiment import load_experiment
from pipelines.flow.lineage.spool import spools
from pipelines.flow.run.planner import plan
from pipelines.flow.store.lease import acquire
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from tests.e2e.conftest import run_job
from tests.support.processes.jobs import ROOT

ONLY = ("--only", "read/coco", "--only", "read/laion", "--only", "read/cc3m")
# A job in a process of its own that says afterwards what it had imported, which processes it started, and its CPU time.
WATCHED = """
import json, resource, runpy, subprocess, sys
started = []
popen = subprocess.Popen.__init__
def noting(self, args, *rest, **options):
    started.append(list(args))
    popen(self, args, *rest, **options)
subprocess.Popen.__init__ = noting
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
heavy = [name for name in ("torch", "ray", "mlflow", "transformers", "pandas", "rich", "tqdm") if name in sys.modules]
used = resource.getrusage(resource.RUSAGE_SELF)
seconds = used.ru_utime + used.ru_stime
print(json.dumps({"code": code, "imported": heavy, "started": started, "cpu": seconds}))
"""


def watched_job(script: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", WATCHED, f"jobs/{script}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    found["stdout"] = done.stdout
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A store in which three sources are read, and MLflow knows it."""
    store = tmp_path_factory.mktemp("cached") / "store"
    store.mkdir()
    shutil.copy(empty_mlflow, store / "mlflow.db")
    job = run_job("run_stage.py", "sample", "--store", str(store), "--inline", *ONLY)
    assert job.returncode == 0, job.stderr[-3000:]
    assert all(spool.is_settled(f"sqlite:///{store}/mlflow.db") for spool in spools(Store(str(store))))
    return store


def num_runs(store: Path) -> int:
    with sqlite3.connect(store / "mlflow.db") as database:
        return int(database.execute("select count(*) from runs").fetchone()[0])


def test_a_cached_command_imports_and_starts_nothing_heavy(finished: Path) -> None:
    before = num_runs(finished)
    assert before == 4  # the job and its three nodes
    found = watched_job("run_stage.py", "sample", "--store", str(finished), *ONLY)
    assert (found["code"], found["imported"], found["started"]) == (0, [], [])
    assert found["cpu"] < 6, "2 s on a quiet machine"
    assert "read/laion  REUSE" in str(found["stdout"])
    assert str(finished / "reports/sample/report.html") in str(found["stdout"])
    assert num_runs(finished) == before
    assert not list((finished / "logs").glob("*-c-*")), "nothing ran, so there is nothing to log"


def test_what_mlflow_lacks_is_still_brought(finished: Path, tmp_path: Path, tracking_uri: str) -> None:
    """Another server, which has nothing yet: the earlier runs come, and none is added for the command itself."""
    store = Path(shutil.copytree(finished, tmp_path / "store"))
    run = ("run_stage.py", "sample", "--store", str(store), "--tracking-uri", tracking_uri, *ONLY)
    assert run_job(*run).returncode == 0
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from runs").fetchone() == (4,)
    assert watched_job(*run)["started"] == []


def test_a_new_name_for_finished_work_is_written_down(finished: Path, tmp_path: Path) -> None:
    """An experiment of another name that needs nothing new: its references are made, and MLflow hears of it."""
    store = Path(shutil.copytree(finished, tmp_path / "store"))
    other = Path(shutil.copy(ROOT / "pipelines/experiments/sample.yaml", tmp_path / "twin.yaml"))
    job = run_job("run_stage.py", str(other), "--store", str(store), *ONLY, "--json")
    assert job.returncode == 0, job.stderr[-3000:]
    assert {node["action"] for node in job.json["nodes"]} == {"REUSE"}
    assert Store(str(store)).read_ref("twin", "read/coco") is not None
    assert num_runs(store) == 8
    assert "ray_started" not in job.stderr


def test_a_command_on_some_nodes_leaves_the_others_in_the_report(finished: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "store"))
    page = store / "reports" / "sample" / "report.html"
    whole = page.read_text()
    assert "wrong_column_count" in whole
    for only in (["read/coco"], ["read/laion"], ["read/coco", "read/laion"]):
        words = [word for name in only for word in ("--only", name)]
        job = run_job("run_stage.py", "sample", "--store", str(store), *words)
        assert job.returncode == 0, job.stderr[-3000:]
        assert "read/cc3m" not in job.stdout
        assert page.read_text() == whole


def test_nothing_to_retry_is_said(finished: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "store"))
    run = ("run_stage.py", "sample", "--store", str(store), "--inline", "--only", "download/coco*")
    assert run_job(*run, "--only", "read/coco_heldout", "--only", "read/coco").returncode == 0
    for classes in ("dns", "timeout,5xx"):
        job = run_job(*run, "--retry", classes)
        assert job.returncode == 0, job.stdout + job.stderr[-3000:]
        told = ", ".join(sorted(classes.split(",")))
        assert f"nothing to retry in coco, coco_heldout: no row there failed by {told}" in job.stdout
        assert "retries  " not in job.stdout


def test_who_finds_the_plan_busy_starts_no_ray_and_no_sink(finished: Path, tmp_path: Path) -> None:
    store = Store(str(shutil.copytree(finished, tmp_path / "store")))
    key = "read/openimages"
    planned = plan(build_graph(load_experiment("sample", store.uri)), store, "sample", [key])
    with acquire(store, planned.lease_name):
        found = watched_job("run_stage.py", "sample", "--store", store.uri, "--only", key)
    assert found["code"] == 5
    assert [name for name in ("ray", "mlflow", "torch") if name in found["imported"]] == []
    assert not [command for command in found["started"] if "sink" in str(command)]
