"""Downstream tasks added to an experiment that is trained already: only their own nodes are due."""

import json
from pathlib import Path

import yaml

from pipelines.experiment import load_experiment
from pipelines.flow.run.planner import plan
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from tests.support.stages.task_files import write_labels
from tests.support.training.two_phases import run_inline, two_phases


def test_tasks_are_learned_and_measured_without_new_pre_training(tmp_path):
    experiment = two_phases(tmp_path)
    before = run_inline(experiment).nodes
    tables = write_labels(tmp_path / "data")
    data = {"reader": "own_labels", "files": {name: str(path) for name, path in tables.items()}}
    data |= {"media_root": str(tmp_path / "data")}
    settings = {"epochs": 1, "batch_size": 4, "precision": "float32"}
    evaluate = {
        "colours": {"task": "classification", "data": data, "finetune": settings},
        "again": {"task": "classification", "data": data, "split": ["val", "test"], "model": "colours"},
    }
    path = tmp_path / "phases.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "evaluate": evaluate}))
    grown = load_experiment(str(path), experiment.store)
    store = Store(grown.store_uri)
    due = {node.key for node in plan(build_graph(grown), store, grown.name).selected if node.finished is None}
    own = {"task_data/colours", "task_data/again", "finetune/colours", "evaluate/colours"}
    assert due == own | {"evaluate/again.val", "evaluate/again.test"}
    nodes = run_inline(grown).nodes
    pretrain = f"pretrain/{grown.name}"
    assert nodes[pretrain].manifest.root == before[pretrain].manifest.root
    results = {}
    for key in ("evaluate/colours", "evaluate/again.test", "evaluate/again.val"):
        (part,) = nodes[key].manifest.parts
        folder = store.uri_of(part_folder("evaluate", part.record.fingerprint))
        results[key] = json.loads(Path(folder, "result.json").read_text())
    first, again = results["evaluate/colours"], results["evaluate/again.test"]
    for name in ("metrics", "data_digest", "model_sha256", "head_sha256", "selection"):
        assert first[name] == again[name], name
    assert (results["evaluate/again.val"]["split"], first["split"]) == ("val", "test")
    assert first["selection"]["splits"] == ["val"]
