"""A branch: what it starts from, that it resumes, what is recorded of it, and how its origin is found."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.flow.stage import Input, InputFile, InputPart, SourceFile, part_fingerprint
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.runs import run_at, runs_of
from pipelines.s5_pretrain.stage import PRETRAIN, plan_pretrain, pretrain_part
from pipelines.s5_pretrain.start import StartConfig
from pipelines.s5_pretrain.start_run import marker_of
from tests.support.training.corpus import DATA, MODEL
from tests.support.training.pretrain_part import LocalInputs, Out, toy_inputs
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.metrics import read_metrics
from x2vlm.train.progress import CLOCK_NAMES

TRAIN = {"steps": 4, "warmup_steps": 1, "precision": "float32", "optimizer": {"lr": 2e-3}}
CONFIG = PretrainConfig(model=MODEL, data=DATA, train=TrainConfig.model_validate(TRAIN), world_size=1)
KEEP = TrainRuntime(checkpoint_every=1, keep_checkpoints=9)
NODE = "pretrain/origin"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def origin(inputs, tmp_path_factory) -> Path:
    """The state folder of a finished run with a checkpoint of every step, in a store; not to be changed."""
    state = tmp_path_factory.mktemp("store") / "state/pretrain/aa"
    train(CONFIG, inputs, state, node=NODE)
    return state


def train(config, inputs, state: Path, runtime=KEEP, node="pretrain/branch"):
    out = Out(state.parent / f"{state.name}-out", str(state))
    shutil.rmtree(out.path, ignore_errors=True)
    out.path.mkdir(parents=True)
    (part,) = plan_pretrain(config, inputs)
    return pretrain_part(config, LocalInputs(), part, out, runtime, node=node), out.path


def branch_inputs(inputs, state: Path, step: int):
    """The inputs of a branch, with the marker as the planner would hash it."""
    store = Store(str(state.parents[2]))
    marker = marker_of(str(state), step, store)
    found = SourceHashes(store).fingerprint(SourceFile(marker, "start.run"))
    return {**inputs, "start_run": (found,)}


def branch(step: int = 2, keep_optimizer: bool = True, **train) -> PretrainConfig:
    start = StartConfig(run="anywhere", step=step, keep_optimizer=keep_optimizer)
    return PretrainConfig(
        model=MODEL,
        data=DATA,
        train=TrainConfig.model_validate(TRAIN | train),
        world_size=1,
        start=start.recorded(),
    )


def lines_of(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK_NAMES} for line in read_metrics(path / "metrics.jsonl")]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_a_branch_without_a_change_is_the_rest_of_its_origin(inputs, origin, tmp_path):
    result, path = train(branch(), branch_inputs(inputs, origin, 2), tmp_path / "state/pretrain/bb")
    assert lines_of(path) == lines_of(origin)[2:]
    expected = load_file(origin / "checkpoints/step-00000004/model.safetensors")
    assert all(torch.equal(weights(path)[name], value) for name, value in expected.items())
    assert result.counts["rows"].num_out == result.file_rows["metrics.jsonl"] == 2
    told = json.loads((path / "start.json").read_text())
    checkpoint = origin / "checkpoints/step-00000002"
    assert (told["checkpoint"], told["node"], told["step"]) == (str(checkpoint), NODE, 2)
    assert result.summary["start"]["sha256"] == told["sha256"]
    facts = CheckpointStore(str(tmp_path / "state/pretrain/bb/checkpoints")).load_newest().facts
    assert facts["branch"] == {name: told[name] for name in ("checkpoint", "node", "step", "sha256")}
    assert facts["world_sizes"] == [[0, 1]]


def test_a_changed_rate_and_more_steps_take_effect_at_the_step_of_the_branch(inputs, origin, tmp_path):
    config = branch(steps=6, optimizer={"lr": 1e-3})
    _, path = train(config, branch_inputs(inputs, origin, 2), tmp_path / "state/pretrain/bb")
    lines = lines_of(path)
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    assert lines[0]["lr"] == pytest.approx(1e-3 * (6 - 2) / (6 - 1))  # its own schedule at the counter's step
    before = {name: value for name, value in lines_of(origin)[2].items() if "/" in name}
    assert before == {name: value for name, value in lines[0].items() if "/" in name}  # losses before the update
    assert lines[1]["image/contrastive"] != lines_of(origin)[3]["image/contrastive"]


def test_without_the_optimizer_its_moments_begin_at_zero(inputs, origin, tmp_path):
    _, path = train(branch(keep_optimizer=False), branch_inputs(inputs, origin, 2), tmp_path / "state/pretrain/bb")
    first = tmp_path / "state/pretrain/bb/checkpoints"
    assert load_file(first / "step-00000002/optimizer.safetensors") == {}
    moments = load_file(first / "step-00000004/optimizer.safetensors")
    assert {int(value) for name, value in moments.items() if name.endswith("/step")} == {2}
    expected = load_file(origin / "checkpoints/step-00000004/model.safetensors")
    assert any(not torch.equal(weights(path)[name], value) for name, value in expected.items())


def test_it_resumes_when_its_origin_has_removed_the_checkpoint(inputs, origin, tmp_path):
    """And keeps its fingerprint: the planner finds the marker that the branch has kept."""
    shutil.copytree(origin, own := tmp_path / "state/pretrain/aa")
    state, store = tmp_path / "state/pretrain/bb", Store(str(tmp_path))
    before = branch_inputs(inputs, own, 2)
    _, path = train(branch(), before, state)
    expected = weights(path)
    shutil.rmtree(own / "checkpoints/step-00000002")
    shutil.rmtree(state / "checkpoints/step-00000004")
    after = branch_inputs(inputs, own, 2)
    assert [item.root for item in after["start_run"]] == [item.root for item in before["start_run"]]
    assert marker_of(NODE, 2, store).startswith(str(state))
    _, path = train(branch(), after, state)
    assert all(torch.equal(weights(path)[name], value) for name, value in expected.items())
    assert [line["step"] for line in lines_of(path)] == [2, 3]
    shutil.rmtree(state)
    with pytest.raises(ConfigError, match="no checkpoint of step 2; there are 1, 3, 4 in "):
        marker_of(NODE, 2, store)


def test_a_checkpoint_that_vanishes_after_planning_is_named(inputs, origin, tmp_path):
    shutil.copytree(origin, own := tmp_path / "state/pretrain/aa")
    planned = branch_inputs(inputs, own, 3)
    shutil.copy(own / "checkpoints/step-00000003/COMMITTED", tmp_path / "COMMITTED")
    (own / "checkpoints/step-00000003/model.safetensors").unlink()
    with pytest.raises(SourceUnavailable, match=r"step-00000003/model.safetensors is gone.*keep_checkpoints"):
        train(branch(3), planned, tmp_path / "state/pretrain/bb")


@pytest.mark.parametrize("way", ["node", "state folder", "checkpoint", "checkpoint without a step"])
def test_the_origin_is_a_node_a_state_folder_or_a_checkpoint(origin, way):
    store = Store(str(origin.parents[2]))
    checkpoint = origin / "checkpoints/step-00000003"
    run = {"node": NODE, "state folder": str(origin)}.get(way, str(checkpoint))
    step = None if way.endswith("without a step") else 3
    assert marker_of(run, step, store) == f"{checkpoint}/COMMITTED"


@pytest.mark.parametrize(
    ("run", "step", "message"),
    [
        (NODE, None, r"start.step: say which checkpoint of pretrain/origin.*; there are 1, 2, 3, 4 in "),
        (NODE, 9, r"has no checkpoint of step 9; there are 1, 2, 3, 4 in "),
        ("pretrain/other", 1, r"pretrain/other, of which .* has 0 training\(s\), has no checkpoint of step 1"),
        ("CHECKPOINT", 2, r"start.step: 2, but start.run is the checkpoint of step 3"),
        ("/nowhere/step-00000003", 3, r"/nowhere/step-00000003, has no checkpoint of step 3"),
    ],
    ids=["no step", "no such step", "no such node", "two steps", "no such place"],
)
def test_an_origin_that_is_not_there_is_refused_with_what_is(origin, run, step, message):
    place = str(origin / "checkpoints/step-00000003") if run == "CHECKPOINT" else run
    with pytest.raises(ConfigError, match=message):
        marker_of(place, step, Store(str(origin.parents[2])))


def test_two_runs_of_one_node_with_that_step_are_told_apart_by_their_folders(origin, tmp_path):
    for name in ("aa", "cc"):
        shutil.copytree(origin, tmp_path / "state/pretrain" / name)
    store = Store(str(tmp_path))
    assert len(runs_of(store, NODE)) == 2
    with pytest.raises(ConfigError, match="several of them have a checkpoint of step 2; give one of the state folders"):
        marker_of(NODE, 2, store)
    assert marker_of(str(tmp_path / "state/pretrain/cc"), 2, store).startswith(str(tmp_path / "state/pretrain/cc"))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"step": 3}, "no effect without `run`"),
        ({"vision": "a", "keep_optimizer": False}, "no effect without `run`"),
        ({"run": "a", "node": "b"}, "exactly one of these"),
        ({"run": "a", "step": 0}, "greater than or equal to 1"),
    ],
    ids=str,
)
def test_a_start_says_one_thing(start, message):
    with pytest.raises(ValueError, match=message):
        StartConfig.model_validate({"vision": None, **({"vision": "v"} if start == {"step": 3} else {}), **start})


def test_a_branch_must_have_steps_left():
    with pytest.raises(ValueError, match=r"start.step \(4\) must be below train.steps \(4\)"):
        PretrainConfig.model_validate({**CONFIG.model_dump(), "start": {"run": NODE, "step": 4}})


def test_new_parameters_are_those_of_the_origin(inputs, origin, tmp_path):
    """An origin that began with published weights says so in its checkpoints; which were new is beside them."""
    shutil.copytree(origin, own := tmp_path / "state/pretrain/aa")
    for folder in (own / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        state["facts"]["start_sha256"] = "ab"
        (folder / "state.json").write_text(json.dumps(state))
        marker = json.loads((folder / "COMMITTED").read_text())
        marker["files"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
        (folder / "COMMITTED").write_text(json.dumps(marker))
    with pytest.raises(ConfigError, match=r"name the whole state folder in start\.run"):
        train(branch(), branch_inputs(inputs, own, 2), tmp_path / "state/pretrain/bb")
    (own / "start.json").write_text(json.dumps({"missing": ["temp"]}))
    train(branch(), branch_inputs(inputs, own, 2), tmp_path / "state/pretrain/bb")
    assert run_at(Store(str(tmp_path / "state/pretrain/bb")), "").branch["new_parameters"] == ["temp"]


def test_a_branch_of_another_origin_is_another_training(inputs, origin):
    """The marker's content counts, not where it lies."""

    def fingerprint(step: int) -> str:
        (part,) = plan_pretrain(branch(step), branch_inputs(inputs, origin, step))
        return part_fingerprint(PRETRAIN, branch(step), part)

    assert fingerprint(2) == fingerprint(2) != fingerprint(3)
    elsewhere = InputFile("x", 1, branch_inputs(inputs, origin, 2)["start_run"][0].root, "s3://elsewhere/x")
    moved = {**inputs, "start_run": (Input("source:start.run", "r", (InputPart("x", (elsewhere,)),)),)}
    (part,) = plan_pretrain(branch(2), moved)
    assert part_fingerprint(PRETRAIN, branch(2), part) == fingerprint(2)
