"""A branch: a training that goes on from a checkpoint of another one, with other settings.

    start: {run: pretrain/base_4m, step: 100000, keep_optimizer: true}

`run` is a pretrain node of the same store, a state folder, or the folder of a checkpoint; a path or a URI. The branch
is a run of its own with a state folder of its own, into which the checkpoint is copied before the first step; from then
on it is resumed like any other, and no longer needs the run it came from.

* The step counter goes on: the first step of the branch is step `step`, and it ends at its own `train.steps`. The
  learning rate is that of its own schedule at the counter's step.
* The data of step s are what its own `data` give for step s: with equal streams, batches and seed it goes on with the
  very next samples; with another batch size B it goes on at row `step * B` of the order of its seed.
* Weights, and with `keep_optimizer` the moments and step counts of AdamW, are those of the checkpoint. Without them the
  moments start at zero, as for a new run.
* Which parameters count as new (`lr_multiplier`) is inherited.

What is read is the checkpoint's COMMITTED marker, which names its files by sha256; so the content of the checkpoint is
in the fingerprint. A copy of the marker stays with the branch: the other run may remove the checkpoint meanwhile.
"""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from pipelines.flow.stage import InputFile, Inputs, Read
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.runs import (
    BRANCH,
    CHECKPOINTS,
    COMMITTED,
    MARKER,
    TrainingRun,
    all_runs,
    run_at,
    runs_of,
    step_of,
)
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable

log = logging.getLogger(__name__)

SLOT = "start_run"
START_REPORT = "start.json"  # of a run that started from published weights: `start_weights.REPORT`
_NODE = re.compile(r"pretrain/[\w.-]+$")


def marker_of(run: str, step: int | None, store: Store) -> str:
    """The URI of the marker of the checkpoint that `start: {run, step}` names; `run` is a node or an absolute place.

    ConfigError with the steps there are if there is none.
    """
    if is_node(run):
        named = runs_of(store, run)
        runs = [one for one in named if not _came_from(one, run, step)]
        what = f"{run}, of which {store.uri} has {len(runs)} training(s)"
    elif step_of(run) >= 0:
        if step not in (None, step_of(run)):
            raise ConfigError(
                f"start.step: {step}, but start.run is the checkpoint of step {step_of(run)}; drop `step`"
            )
        parent, _, name = run.rstrip("/").rpartition("/")
        if Store(parent).blobs.exists(f"{name}/{COMMITTED}"):
            return f"{run.rstrip('/')}/{COMMITTED}"
        step, runs, what = step_of(run), [], run
    else:
        runs, what = [run_at(Store(run), "")], run
    if step is None:
        there = {one.uri: sorted(one.checkpoints()) for one in runs}
        raise ConfigError(f"start.step: say which checkpoint of {what}; there are {_listed(there)}")
    holders = {one.uri: one.checkpoints()[step] for one in runs if step in one.checkpoints()}
    if len(holders) > 1:
        raise ConfigError(
            f"start.run: {what}, and several of them have a checkpoint of step {step}; give one of the state folders: "
            f"{', '.join(holders)}"
        )
    for one in runs:
        if one.uri in holders:
            return one.store.uri_of(f"{holders[one.uri]}/{COMMITTED}")
    for one in all_runs(store):  # a branch that is under way keeps the marker after the checkpoint is gone
        if _came_from(one, run, step) and one.store.blobs.exists(one.file(MARKER)):
            return one.store.uri_of(one.file(MARKER))
    there = {one.uri: sorted(one.checkpoints()) for one in runs}
    raise ConfigError(f"start.run: {what}, has no checkpoint of step {step}; there are {_listed(there)}")


def is_node(run: str) -> bool:
    """Whether `start.run` names a node rather than a place."""
    return _NODE.match(run) is not None


def _listed(there: Mapping[str, list[int]]) -> str:
    return "; ".join(f"{', '.join(map(str, steps)) or 'none'} in {uri}" for uri, steps in there.items()) or "none"


def _came_from(run: TrainingRun, origin: str, step: int | None) -> bool:
    """Whether a training is a branch off `origin` (a node, a state folder or a checkpoint) at `step`."""
    if run.branch is None or run.branch.get("step") != step:
        return False
    checkpoint, place = str(run.branch.get("checkpoint")), origin.rstrip("/")
    return run.branch.get("node") == origin or checkpoint == place or checkpoint.startswith(f"{place}/{CHECKPOINTS}/")


def branch_reads(inputs: Inputs) -> list[Read]:
    """The marker that a branch reads; nothing for other runs."""
    return [Read(SLOT, file) for item in inputs.get(SLOT, ()) for part in item.parts for file in part.files]


def lay_down_branch(config: PretrainConfig, marker: InputFile, local_marker: Path, state_uri: str) -> dict[str, Any]:
    """Copy the checkpoint that `marker` names into the state folder, unless that was done; the facts of the branch.

    The file BRANCH is written last: a folder with it has its first checkpoint. SourceUnavailable if the checkpoint is
    gone, CorruptArtifact if a file is not what the marker says.
    """
    store = Store(state_uri)
    if (found := run_at(store, "").branch) is not None:
        return dict(found)
    assert config.start is not None
    place = _absolute(marker.uri).rpartition("/")[0]
    facts = _copy(config, json.loads(local_marker.read_bytes()), place, marker.sha256, state_uri)
    store.blobs.write(MARKER, local_marker.read_bytes())
    store.blobs.write(BRANCH, json.dumps(facts, indent=1).encode())
    log.info("event=branched step=%d from=%s sha256=%s", facts["step"], place, marker.sha256)
    return facts


def _copy(config: PretrainConfig, told: Mapping[str, Any], place: str, sha256: str, state_uri: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    from x2vlm.train.checkpoint import Checkpoint, CheckpointStore

    start = config.start
    assert start is not None
    with tempfile.TemporaryDirectory(prefix="x2vlm-branch-") as folder:
        wanted = ["model.safetensors", "state.json", *(["optimizer.safetensors"] if start.keep_optimizer else [])]
        for name in wanted:
            _fetch(f"{place}/{name}", Path(folder, name), str(told["files"][name]))
        state = json.loads(Path(folder, "state.json").read_bytes())
        source = run_at(Store(place.rpartition(f"/{CHECKPOINTS}/")[0] or place), "")
        facts: dict[str, Any] = {
            "checkpoint": place,
            "node": source.node,
            "step": int(told["step"]),
            "sha256": sha256,
            "keep_optimizer": start.keep_optimizer,
            "new_parameters": _inherited(source, state["facts"], place),
        }
        saved = {
            "world_sizes": state["facts"].get("world_sizes", []),
            "skipped_in_a_row": 0,
            "branch": {name: facts[name] for name in ("checkpoint", "node", "step", "sha256")},
        }
        optimizer = load_file(Path(folder, "optimizer.safetensors")) if start.keep_optimizer else {}
        model = load_file(Path(folder, "model.safetensors"))
        CheckpointStore(f"{state_uri}/{CHECKPOINTS}").save(Checkpoint(facts["step"], model, optimizer, saved))
    return facts


def _inherited(source: TrainingRun, facts: Mapping[str, Any], place: str) -> list[str] | None:
    """The parameters that were new in the run that is branched from; None: the default ones."""
    if source.branch is not None:
        inherited: list[str] | None = source.branch["new_parameters"]
        return inherited
    if "start_sha256" not in facts:
        return None
    report = source.store.blobs.read(START_REPORT)
    if report is None:
        raise ConfigError(
            f"start.run: the run of {place} began with published weights, and which of its parameters were new is in "
            f"{START_REPORT} of its state folder, which is not there; name the whole state folder in start.run"
        )
    missing: list[str] = json.loads(report)["missing"]
    return missing


def _fetch(uri: str, target: Path, sha256: str) -> None:
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        fs.get_file(path, str(target))
    except FileNotFoundError:
        raise SourceUnavailable(
            f"start.run: {uri} is gone. Branch off a checkpoint that is there, or raise train_runtime.keep_checkpoints "
            "of the other run"
        ) from None
    with target.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise CorruptArtifact(f"start.run: {uri} does not have its recorded sha256; branch off another checkpoint")


def _absolute(uri: str) -> str:
    local = local_path_of(uri)
    return uri if local is None else str(local)
