"""An edit that would abandon a training is told before anything runs, and a branch is the way that it names."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.driver import job
from pipelines.driver.abandoned import abandoned_trainings
from pipelines.driver.experiment import run_experiment
from pipelines.driver.job import Outcome
from pipelines.experiment import load_experiment
from pipelines.flow.run.planner import plan
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.s5_pretrain.runs import runs_of
from tests.support.training.two_phases import Run, run_inline

KEY = "pretrain/phases"


@pytest.fixture
def unfinished(phase_run: Run, tmp_path: Path) -> Path:
    """The experiment of two phases in a folder of its own, whose last training has two steps and is not finished."""
    folder = tmp_path / "phases"
    shutil.copytree(Path(phase_run.experiment.store).parent, folder)
    (part,) = phase_run.nodes[KEY].manifest.parts
    fingerprint = part.record.fingerprint
    shutil.rmtree(folder / "store/parts/pretrain" / fingerprint[:2] / fingerprint)
    text = (folder / "phases.yaml").read_text().replace(str(Path(phase_run.experiment.store).parent), str(folder))
    (folder / "phases.yaml").write_text(text)
    return folder


def edited(folder: Path, section: str = "pretrain", **changes) -> str:
    """The experiment's file after an edit of one section; `train` is merged."""
    path = folder / "phases.yaml"
    values = yaml.safe_load(path.read_text())
    target = values[section] if section == "pretrain" else values.setdefault(section, {})
    if "train" in changes:
        changes["train"] = target["train"] | changes["train"]
    target |= changes
    path.write_text(yaml.safe_dump(values))
    return str(path)


def warnings_of(path: str, folder: Path) -> list[str]:
    experiment = load_experiment(path, str(folder / "store"))
    graph, store = build_graph(experiment), Store(experiment.store_uri)
    return abandoned_trainings(graph, plan(graph, store, experiment.name), store)


def dry_run(path: str, folder: Path) -> Outcome:
    names = ("gpu", "num_gpus", "measured", "dollars_per_gpu_hour", "network", "tracking_uri", "num_cpus")
    options = argparse.Namespace(
        experiment=path, store=str(folder / "store"), estimate=False, dry_run=True, explain=False, inline=True,
        **dict.fromkeys(names),
    )  # fmt: skip
    return run_experiment(options)


def test_what_would_be_gone_on_with_needs_no_warning(unfinished):
    path = str(unfinished / "phases.yaml")
    assert warnings_of(path, unfinished) == []
    path = edited(unfinished, "train_runtime", max_skipped_steps=99, checkpoint_every=7)
    assert warnings_of(path, unfinished) == []
    assert dry_run(path, unfinished).warnings == []


def test_an_edit_of_the_rate_is_told_with_steps_and_both_remedies(unfinished):
    path = edited(unfinished, train={"optimizer": {"lr": 1.0e-3}, "steps": 4})
    (warning,) = dry_run(path, unfinished).warnings
    (run,) = runs_of(Store(str(unfinished / "store")), KEY)
    assert f"{KEY} would begin at step 0 and abandon its training of 2 steps ({run.uri})" in warning
    assert "train.optimizer.lr 0.003 -> 0.001, train.steps 2 -> 4" in warning
    assert "undo the edit" in warning
    assert f"`start: {{run: {KEY}, step: 2}}`" in warning


def test_so_is_an_edit_before_whose_training_others_must_run(unfinished):
    """Its inputs are not known then; that its settings differ is."""
    path = edited(unfinished, train={"optimizer": {"lr": 1.0e-3}})
    edited(unfinished, "partition", num_shards=9)
    (warning,) = warnings_of(path, unfinished)
    assert "train.optimizer.lr 0.003 -> 0.001" in warning


def test_a_finished_training_is_not_abandoned(phase_run, tmp_path):
    folder = tmp_path / "phases"
    shutil.copytree(Path(phase_run.experiment.store).parent, folder)
    path = edited(folder, train={"optimizer": {"lr": 1.0e-3}})
    assert warnings_of(path, folder) == []


def test_the_branch_that_the_warning_names_goes_on_and_lineage_knows_its_origin(unfinished):
    path = edited(unfinished, train={"optimizer": {"lr": 1.0e-3}, "steps": 4}, start={"run": KEY, "step": 2})
    assert warnings_of(path, unfinished) == []
    done = run_inline(load_experiment(path, str(unfinished / "store")))
    manifest = done.nodes[KEY].manifest
    (part,) = manifest.parts
    start = part.record.summary["start"]
    assert (start["node"], start["step"], start["keep_optimizer"]) == (KEY, 2, True)
    assert [record.root for record in manifest.inputs if record.slot == "start_run"] == [start["sha256"]]
    folder = unfinished / "store/parts/pretrain" / part.record.fingerprint[:2] / part.record.fingerprint
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3]
    assert json.loads((folder / "start.json").read_text())["sha256"] == start["sha256"]
    again = plan(build_graph(done.experiment), Store(done.experiment.store_uri), done.experiment.name)
    assert again.is_noop


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "is_red"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_a_warning_is_red_on_a_terminal_only(is_terminal, no_color, is_red, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    text = job._in_red("it would begin at step 0 \x1b[2J")
    assert ("\x1b[1;31m" in text) == is_red
    assert "WARNING: it would begin at step 0" in text
    assert "\x1b[2J" not in text
