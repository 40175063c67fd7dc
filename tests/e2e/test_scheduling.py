"""Filter to pack with 1, 2 and 4 workers and in shuffled order: the same roots from the captured fetch.

Run by `make slow`.
"""

import shutil
from pathlib import Path

import pytest
import torch

from pipelines.experiment import load_experiment
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from tests.e2e.conftest import SampleRun, run_job
from tests.support.flow.sample_store import DECIDING, forget, roots

STAGES = ["filter", "score", *DECIDING, "partition", "pack"]
TARGETS = [f"{stage}/*" for stage in STAGES]


def fetched_only(source: Path, folder: Path) -> Path:
    """A copy of a finished store with nothing but what read and download wrote."""
    store = Path(shutil.copytree(source, folder / "store"))
    forget(store, "s4")
    for stage in ("filter", "score", *DECIDING):
        for kind in ("parts", "artifacts", "refs/sample"):
            shutil.rmtree(store / kind / stage, ignore_errors=True)
    return store


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_roots_do_not_depend_on_the_number_of_workers(num_workers: int, sample_run: SampleRun, tmp_path: Path) -> None:
    store = fetched_only(sample_run.store, tmp_path)
    only = [word for target in TARGETS for word in ("--only", target)]
    job = run_job("run_stage.py", "sample", "--store", str(store), "--num-cpus", str(num_workers), *only)
    assert job.returncode == 0, job.stderr[-4000:]
    assert roots(store, STAGES) == roots(sample_run.store, STAGES)


@pytest.mark.slow
def test_roots_do_not_depend_on_the_order(sample_run: SampleRun, tmp_path: Path) -> None:
    store = fetched_only(sample_run.store, tmp_path)
    experiment = load_experiment("sample", str(store))
    graph = build_graph(experiment)
    opened, num_threads = Store(str(store)), torch.get_num_threads()
    torch.set_num_threads(1)  # as jobs and their workers have it: sums of several threads differ in the last bits
    try:
        run(graph, plan(graph, opened, "sample", TARGETS), opened, InlineRunner(shuffle_seed=7))
    finally:
        torch.set_num_threads(num_threads)
    assert roots(store, STAGES) == roots(sample_run.store, STAGES)
