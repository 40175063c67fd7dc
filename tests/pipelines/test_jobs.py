"""What people get who type something wrong, or whose files are broken: a clear message and the right exit code."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.experiment import load_experiment
from pipelines.flow.run.planner import plan
from pipelines.flow.store.lease import acquire
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from tests.e2e.conftest import ROOT, run_job
from tests.support.experiments import experiment_file


def broken_source(folder: Path, file: str, content: bytes | None) -> Path:
    """An experiment on CC3M alone, whose TSV is replaced or missing."""
    data = folder / "data" / "cc3m"
    data.mkdir(parents=True)
    if content is not None:
        (data / file).write_bytes(content)
    sources = {
        "cc3m": {"card": "pretrain/cc3m", "data_root": str(folder / "data")},
        "coco_heldout": {"card": "sample/coco_heldout", "role": "held_out"},
    }
    return experiment_file(folder, sources=sources)


def test_an_unknown_key_is_answered_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, filter={"min_short_egde": 200})
    job = run_job("full_pretrain.py", str(path), "--store", str(tmp_path / "store"), "--dry-run")
    assert job.returncode == 3
    assert "filter.min_short_egde" in job.stdout
    assert "did you mean `min_short_edge`" in job.stdout


def test_wrong_usage_is_3_and_not_work_due() -> None:
    assert run_job("run_stage.py", "sample").returncode == 3
    assert run_job("full_pretrain.py", "no_such_experiment", "--json").json["exit_code"] == 3


def test_without_an_experiment_it_is_the_sample_and_says_so(tmp_path: Path) -> None:
    job = run_job("full_pretrain.py", "--dry-run", "--store", str(tmp_path / "store"))
    assert job.returncode == 2
    assert job.stdout.startswith("No experiment was named: this is `sample`")
    assert "experiment sample: work is due" in job.stdout
    assert f"event=store uri={tmp_path / 'store'}" in job.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_a_job_can_be_started_by_its_name(path: Path) -> None:
    """As `ray job submit --working-dir . -- jobs/full_pretrain.py` does; git keeps the bit."""
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python\n")
    assert path.stat().st_mode & 0o111 == 0o111


def test_a_missing_upstream_file_names_card_and_file_before_anything_runs(tmp_path: Path) -> None:
    path = broken_source(tmp_path, "unused", None)
    job = run_job("full_pretrain.py", str(path), "--store", str(tmp_path / "store"))
    assert job.returncode == 4
    assert "card cc3m" in job.stdout
    assert "Train_GCC-training.tsv" in job.stdout
    assert not (tmp_path / "store" / "parts").exists()


def test_a_broken_parquet_is_told_before_anything_runs(tmp_path: Path) -> None:
    data = tmp_path / "data" / "laion_en"
    data.mkdir(parents=True)
    card = yaml.safe_load((ROOT / "datasets/pretrain/laion_en.yaml").read_text())
    for file in card["files"].values():
        (data / file["path"]).write_bytes(b"PAR1 but not for long")
    sources = {
        "laion": {"card": "pretrain/laion_en", "data_root": str(tmp_path / "data")},
        "coco_heldout": {"card": "sample/coco_heldout", "role": "held_out"},
    }
    path = experiment_file(tmp_path, sources=sources)
    job = run_job("full_pretrain.py", str(path), "--store", str(tmp_path / "store"))
    assert job.returncode == 4
    assert "laion_en" in job.stdout
    assert not (tmp_path / "store" / "parts").exists()


def test_a_second_driver_is_told_who_holds_the_plan(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    experiment = load_experiment("sample", store.uri)
    planned = plan(build_graph(experiment), store, "sample", ["read/coco"])
    with acquire(store, planned.lease_name):
        job = run_job("run_stage.py", "sample", "--store", store.uri, "--only", "read/coco", "--inline")
    assert job.returncode == 5
    assert "PlanBusy" in job.stdout


def test_selected_nodes_need_finished_ancestors(tmp_path: Path) -> None:
    job = run_job("run_stage.py", "sample", "--store", str(tmp_path / "store"), "--only", "filter/coco", "--inline")
    assert job.returncode == 3
    assert "read/coco is not finished" in job.stdout
    assert "--only 'read/coco'" in job.stdout


def test_a_damaged_part_is_named(tmp_path: Path, tracking_uri: str) -> None:
    store = tmp_path / "store"
    run = ("run_stage.py", "sample", "--store", str(store), "--inline", "--tracking-uri", tracking_uri)
    assert run_job(*run, "--only", "read/coco").returncode == 0
    (record,) = store.glob("parts/read/*/*/part.json")
    rows = next(record.parent.glob("rows-*.parquet"))
    rows.write_bytes(rows.read_bytes()[:-1] + b"?")
    job = run_job("audit_lineage.py", "read/coco", "--store", str(store))
    assert job.returncode == 2
    assert rows.name in job.stdout
    job = run_job(*run, "--only", "download/coco")
    assert job.returncode == 1
    assert rows.name in job.stdout


def test_an_empty_mlflow_is_filled_from_the_manifests(tmp_path: Path, tracking_uri: str) -> None:
    store = tmp_path / "store"
    other = tmp_path / "other.db"
    shutil.copy(tracking_uri.removeprefix("sqlite:///"), other)
    run = ("run_stage.py", "sample", "--store", str(store), "--inline", "--only", "read/coco")
    assert run_job(*run, "--tracking-uri", tracking_uri).returncode == 0
    audit = ("audit_lineage.py", "read/coco", "--store", str(store), "--tracking-uri", f"sqlite:///{other}")
    job = run_job(*audit)
    assert job.returncode == 2
    assert "mlflow_run_missing" in job.stdout
    assert "--rebuild" in job.stdout
    job = run_job(*audit, "--rebuild", "nothing")
    assert job.returncode == 3
    assert "sample" in job.stdout
    job = run_job(*audit, "--rebuild", "sample")
    assert job.returncode == 0, job.stdout
    assert "1 MLflow runs" in job.stdout


def test_a_folder_in_place_of_the_store_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    job = run_job("run_stage.py", "sample", "--store", str(tmp_path / "store"), "--only", "read/coco", "--inline")
    assert job.returncode == 3
    assert "Traceback" not in job.stdout + job.stderr
    assert str(tmp_path / "store") in job.stdout


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount to make a small disk")
def test_a_full_disk_is_a_clear_error_and_leaves_no_half_part(tmp_path: Path) -> None:
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        job = run_job("run_stage.py", "sample", "--store", str(disk / "store"), "--only", "read/*", "--inline")
        assert job.returncode == 1
        assert "the disk is full" in job.stdout
        visible = [path for path in disk.glob("store/parts/*/*/*") if not (path / "part.json").exists()]
        assert not visible
    finally:
        subprocess.run(["umount", str(disk)], check=False)
