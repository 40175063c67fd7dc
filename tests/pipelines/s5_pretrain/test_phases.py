"""Two phases in one experiment, run on the shipped sample: what the second starts from, and what makes which due."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.experiment import Experiment, load_experiment
from pipelines.flow.run.planner import plan
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.s4_materialize import PartitionConfig
from tests.support.experiments import experiment_file
from tests.support.training.two_phases import Run, run_inline, two_phases
from x2vlm.errors import ConfigError

FIRST, LAST = "pretrain/phases.phase1", "pretrain/phases"


def _actions(experiment: Experiment) -> dict[str, str]:
    store = Store(experiment.store_uri)
    return {node.key: str(node.action) for node in plan(build_graph(experiment), store, experiment.name).selected}


@pytest.fixture(scope="module")
def done(phase_run: Run) -> Run:
    return phase_run


def _folder(done: Run, key: str) -> Path:
    (part,) = done.nodes[key].manifest.parts
    fingerprint = part.record.fingerprint
    return Path(done.experiment.store) / "parts/pretrain" / fingerprint[:2] / fingerprint


def _start_of(done: Run, key: str) -> dict[str, torch.Tensor]:
    """The weights that a training started with, as it laid them down."""
    (part,) = done.nodes[key].manifest.parts
    (path,) = Path(done.experiment.store).glob(f"state/**/{part.record.fingerprint}*/start.safetensors")
    return load_file(path)


def test_phases_know_their_sources_by_the_places_that_decisions_have_them_at(done: Run) -> None:
    """With the clips first, which the first phase does not read."""
    sources = dict(reversed(done.experiment.sources.items()))
    graph = build_graph(done.experiment.model_copy(update={"sources": sources}))
    for name, places in (("phases.phase1", (1, 2)), ("phases", (0, 1, 2))):
        node = graph[f"partition/{name}"]
        assert isinstance(node.config, PartitionConfig)
        assert node.config.decided_as == places
        assert node.inputs["rows"] == tuple(f"filter/{list(sources)[place]}" for place in places)


def test_the_first_phase_starts_from_the_files_of_backbones_and_lineage_has_their_hashes(done: Run) -> None:
    folder = Path(done.experiment.store).parent
    started = _start_of(done, FIRST)
    vision, text = load_file(folder / "beit.safetensors"), load_file(folder / "bert/model.safetensors")
    assert torch.equal(started["vision.trunk.blocks.2.mlp.fc1.weight"], vision["blocks.2.mlp.fc1.weight"])
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(started[f"text.encoder.{word}"], text[f"bert.{word}"])
    inputs = {record.node: record.root for record in done.nodes[FIRST].manifest.inputs if record.slot == "start_vision"}
    assert inputs == {"source:start.vision": hashlib.sha256((folder / "beit.safetensors").read_bytes()).hexdigest()}
    slots = [record.slot for record in done.nodes[FIRST].manifest.inputs]
    assert slots.count("start_text") == 2  # its config and its weights, nothing else of the folder


def test_the_second_phase_starts_from_the_weights_of_the_first(done: Run) -> None:
    (part,) = done.nodes[LAST].manifest.parts
    trained, started = load_file(_folder(done, FIRST) / "model.safetensors"), _start_of(done, LAST)
    assert set(started) - set(trained) == {"frame_position"}
    for name, value in trained.items():
        assert torch.equal(started[name], value), name
    start = part.record.summary["start"]
    assert (start["num_missing"], start["num_resized"]) == (1, 0)
    ended = load_file(_folder(done, LAST) / "model.safetensors")
    assert not torch.equal(ended["frame_position"], started["frame_position"])


def test_lineage_has_the_edge_between_the_phases(done: Run) -> None:
    manifest = done.nodes[LAST].manifest
    (edge,) = [record for record in manifest.inputs if record.slot == "start_model"]
    assert (edge.node, edge.root) == (FIRST, done.nodes[FIRST].manifest.root)


def test_each_phase_reads_shards_of_its_own_sources(done: Run) -> None:
    counts = {key: done.nodes[key].manifest.counts["rows"].num_out for key in ("pack/phases.phase1", "pack/phases")}
    assert counts["pack/phases"] - counts["pack/phases.phase1"] == 6  # the clips of the sample
    graph = build_graph(done.experiment)
    assert graph["partition/phases.phase1"].inputs["rows"] == ("filter/coco", "filter/visual_genome")
    assert graph["partition/phases"].inputs["rows"] == ("filter/coco", "filter/visual_genome", "filter/webvid")


def test_a_change_of_the_second_phase_leaves_the_first_alone(done: Run) -> None:
    actions = _actions(two_phases(Path(done.experiment.store).parent, phase2={"clip_norm": 2.0}))
    assert actions[LAST] == "RUN"
    assert {key for key, action in actions.items() if action != "REUSE"} == {LAST}


def test_another_backbone_makes_both_phases_due(done: Run, tmp_path: Path) -> None:
    experiment = two_phases(tmp_path)
    vision = load_file(tmp_path / "beit.safetensors")
    save_file({**vision, "cls_token": vision["cls_token"] + 1}, tmp_path / "beit.safetensors")
    actions = _actions(experiment.model_copy(update={"store": done.experiment.store}))
    assert {key for key, action in actions.items() if action != "REUSE"} == {FIRST, LAST}


def test_a_change_of_the_first_phase_makes_both_due_and_gives_the_second_another_identity(done: Run) -> None:
    folder = Path(done.experiment.store).parent
    changed = two_phases(folder, phase1={"optimizer": {"lr": 1e-3}})
    actions = _actions(changed)
    assert (actions[FIRST], actions[LAST]) == ("RUN", "RUN")
    assert {key for key, action in actions.items() if action != "REUSE"} == {FIRST, LAST}
    again = run_inline(changed)
    assert again.nodes[LAST].manifest.fingerprint != done.nodes[LAST].manifest.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"start": {"node": "phase_1"}}}, "'phase_1' is no phase before this one; did you mean `phase1`"),
        ({"pretrain": {}}, "nothing starts from phase1"),
        ({"phases": {"pretrain": {}}}, "that is not `pretrain`"),
    ],
)
def test_phases_that_do_not_follow_each_other_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = experiment_file(tmp_path, **{"phases": {"phase1": {}}, **changes})
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(path))


def test_a_stream_of_a_phase_that_names_no_source_of_the_experiment_is_refused(tmp_path: Path) -> None:
    experiment = two_phases(tmp_path)
    (first, *others) = experiment.pretrain.data.streams
    streams = (first.model_copy(update={"sources": ("webvit",)}), *others)
    pretrain = experiment.pretrain.model_copy(
        update={"data": experiment.pretrain.data.model_copy(update={"streams": streams})}
    )
    with pytest.raises(ConfigError, match="`webvit`: did you mean `webvid`"):
        build_graph(experiment.model_copy(update={"pretrain": pretrain}))


def test_a_start_that_is_not_there_is_told_while_planning(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, pretrain={"start": {"vision": "no/such.pth"}})
    with pytest.raises(ConfigError, match=r"start.vision: no file .*no/such.pth.*owner/name@<40 hex digits>"):
        build_graph(load_experiment(str(path)))
