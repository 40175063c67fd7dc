"""The initial model of a run: built, loaded, checked and written once, where every worker finds it."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.start import HUB_NAME, StartConfig, is_hub_name
from x2vlm.data.randomness import derive_seed
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable
from x2vlm.inference.hub import locate_model
from x2vlm.inference.pretrained import load_pretrained
from x2vlm.models.checkpoints.backbones import Backbone, read_text_files, read_vision_file
from x2vlm.models.checkpoints.initialize import entry_origins, initialize
from x2vlm.models.checkpoints.reference import LoadReport, load_reference_state, named_state, reference_names
from x2vlm.models.checkpoints.swap import load_swapped
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors, read_tensors, shown_file
from x2vlm.models.files import CONFIG_FILE, MODEL_FILES, WEIGHTS_FILE
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.optim import NEW_HEADS

log = logging.getLogger(__name__)

# Local copies of the input files: slot -> file name -> path, possibly with another name.
Files = Mapping[str, Mapping[str, Path]]

REPORT = "start.json"
WEIGHTS = "start.safetensors"
# Parameters that may stay random beside NEW_HEADS; no others of a tower or of the fusion layers. Reference names.
_WORD_HEADS = ("text_encoder.cls.", "mlm_head.")
_FINAL_NORM = "vision_encoder.fc_norm."  # a merely pre-trained tower has the norm of its class token instead


def random_model(config: PretrainConfig) -> X2VLM:
    """The randomly initialised model of a run without `start`."""
    torch.manual_seed(derive_seed(config.data.seed, "initial weights"))
    return build_model(config.model)


def started_model(config: PretrainConfig, files: Files) -> tuple[X2VLM, LoadReport]:
    """The model that `config.start` describes, and its load report; `files` are local copies by slot.

    ConfigError if a tower or a fusion layer would stay random or a file is of another model, CorruptArtifact if one is
    damaged, SourceUnavailable if one is not there or the hub lacks a name; all of them name the file.
    """
    start = config.start
    assert start is not None
    model = random_model(config)
    if start.vision or start.text:
        report = initialize(model, _vision(start.vision, files), _text(start.text, "text", files))
    else:
        report = _from_model(model, start, files)
    _require_filled(report, start)
    return model, report


def lay_down_start(config: PretrainConfig, files: Files, state_uri: str) -> dict[str, Any]:
    """Writes initial weights and report below `state_uri` unless they exist; returns the facts for workers as JSON.

    The report is written last: a folder with it is complete.
    """
    report_uri, weights_uri = f"{state_uri}/{REPORT}", f"{state_uri}/{WEIGHTS}"
    found = _read(report_uri)
    if found is None:
        model, report = started_model(config, files)
        content = save({name: tensor.detach().contiguous() for name, tensor in own_tensors(model).items()})
        _write(weights_uri, content)
        found = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), **asdict(report)}, indent=1).encode()
        _write(report_uri, found)
    report_values = json.loads(found)
    return {"weights": weights_uri, "sha256": report_values["sha256"], "new": report_values["missing"]}


def load_start(model: X2VLM, start: Mapping[str, Any] | None, is_first: bool) -> Collection[str] | None:
    """Loads the first process's `model`; returns the names of new parameters, None for random initialisation.

    The other processes get the weights from the first, but each needs the learning rate of every parameter.
    """
    if start is None:
        return None
    if is_first:
        content = _read(start["weights"])
        if content is None or hashlib.sha256(content).hexdigest() != start["sha256"]:
            raise CorruptArtifact(f"{start['weights']}: missing or changed since it was written; rerun with force")
        load_own_tensors(model, load(content), start["weights"])
    new: list[str] = start["new"]
    return new


def summary_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a report for lineage: loaded, new and resized parameters."""
    numbers = {f"num_{name}": len(report[name]) for name in ("loaded", "missing", "resized", "unexpected")}
    return {"weights_sha256": report["sha256"], **numbers}


def _vision(given: str | None, files: Files) -> Backbone | None:
    if given is None:
        return None
    found = _of_hub(given) or files["start_vision"]
    if is_hub_name(given) and WEIGHTS_FILE not in found:
        raise SourceUnavailable(f"start.vision: {given} has no {WEIGHTS_FILE} on the hub; name a timm model")
    ((name, path),) = [(WEIGHTS_FILE, found[WEIGHTS_FILE])] if is_hub_name(given) else list(found.items())
    return read_vision_file(path, name, "vision")


def _text(given: str | None, setting: str, files: Files) -> Backbone | None:
    return None if given is None else read_text_files(_of_hub(given) or files["start_text"], setting)


def _of_hub(given: str) -> dict[str, Path] | None:
    """The files of a hub name by their names; None for what is no hub name."""
    found = HUB_NAME.match(given)
    if found is None:
        return None
    log.info("start_from_hub name=%s revision=%s", found["name"], found["revision"])
    return {path.name: path for path in locate_model(found["name"], found["revision"]).iterdir()}


def _trained(model: X2VLM, files: Mapping[str, Path], origin: str, swaps_text: bool) -> Backbone:
    """A folder of ours (config and weights) or a reference checkpoint, under reference names.

    ConfigError if a folder's model has other heads than `model`, which no shape would tell.
    """
    if not set(MODEL_FILES) <= set(files):
        ((name, path),) = files.items()
        return Backbone(read_tensors(path, name)[0], origin, shown_file(path, name))
    config, weights = (files[name] for name in (CONFIG_FILE, WEIGHTS_FILE))
    saved = load_pretrained(config, weights)
    parts = ("vision", "fusion") if swaps_text else ("vision", "text", "fusion")
    for part in parts:
        theirs, ours = (getattr(one.config, part).num_heads for one in (saved, model))
        if theirs != ours:
            raise ConfigError(
                f"{shown_file(config, CONFIG_FILE)}: {part}.num_heads is {theirs}, pretrain.model.{part}.num_heads is "
                f"{ours}: the same weights would be another function; set it to {theirs}"
            )
    entries = {reference: name for name, reference in reference_names(saved).items()}
    where = shown_file(weights, WEIGHTS_FILE)
    return Backbone(named_state(saved), origin, where, entries=entries)


def _from_model(model: X2VLM, start: StartConfig, files: Files) -> LoadReport:
    """From a trained model, with another text tower if the start says so."""
    text = _text(start.swap_text, "swap_text", files)
    origin = "checkpoint" if start.node is None else "node"
    trained = _trained(model, files["start_model"], origin, text is not None)
    try:
        if text is not None:
            return load_swapped(model, trained, text)
        report = load_reference_state(model, trained.state)
    except ConfigError as error:
        raise ConfigError(f"start from {trained.where}: {error}") from error
    origins = entry_origins(trained.state, trained)
    report.origins = {name: origins[key] for name, key in report.origins.items()}
    return report


def _require_filled(report: LoadReport, start: StartConfig) -> None:
    """ConfigError if a layer of a tower or of the fusion layers would stay at random."""
    missing = [name for name in report.missing if not name.startswith((*NEW_HEADS, *_WORD_HEADS, _FINAL_NORM))]
    if start.vision or start.text:
        missing = [name for name in missing if "crossattention." not in name]
        if start.vision is None:
            missing = [name for name in missing if not name.startswith("vision_encoder.")]
        if start.text is None:
            missing = [name for name in missing if name.startswith("vision_encoder.")]
    if missing:
        raise ConfigError(
            f"start: {len(missing)} parameters of the towers would stay at random, for example "
            f"{', '.join(missing[:5])}. Does `pretrain.model` have the sizes of what it starts from?"
        )


def _read(uri: str) -> bytes | None:
    folder, _, name = uri.rpartition("/")
    return StoreFiles(folder).read(name)


def _write(uri: str, content: bytes) -> None:
    folder, _, name = uri.rpartition("/")
    StoreFiles(folder).write(name, content)
