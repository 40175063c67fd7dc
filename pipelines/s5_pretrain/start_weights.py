"""The initial model of a run: built, loaded, checked and written once, where every worker finds it."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.start import HUB_NAME, StartConfig, is_hub_name
from x2vlm.data.randomness import derive_seed
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.inference.hub import locate_model
from x2vlm.inference.pretrained import load_pretrained
from x2vlm.models.checkpoints.initialize import initialize
from x2vlm.models.checkpoints.reference import LoadReport, load_reference_state, named_state
from x2vlm.models.checkpoints.released import read_checkpoint
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors
from x2vlm.models.files import MODEL_FILES
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.optim import NEW_HEADS

log = logging.getLogger(__name__)

# Local copies of the input files: slot -> file name -> path, possibly with another name.
Files = Mapping[str, Mapping[str, Path]]

HUB_WEIGHTS = "model.safetensors"  # of a timm model on the hub
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

    ConfigError if a tower or a fusion layer would stay random, SourceUnavailable if the hub lacks a name.
    """
    start = config.start
    assert start is not None
    model = random_model(config)
    if start.vision or start.text:
        report = _from_backbones(model, start, files)
    else:
        report = _from_model(model, files["start_model"])
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


def _from_backbones(model: X2VLM, start: StartConfig, files: Files) -> LoadReport:
    with tempfile.TemporaryDirectory() as scratch:
        vision, text = (
            _locate(given, files[slot], Path(scratch) / slot)
            for given, slot in ((start.vision, "start_vision"), (start.text, "start_text"))
        )
        if vision is not None:
            vision = vision / HUB_WEIGHTS if is_hub_name(str(start.vision)) else next(iter(vision.iterdir()))
        report = initialize(model, vision, text)
    for used, name in ((vision, "vision"), (text, "text")):
        report.origins = {key: origin.replace(str(used), name) for key, origin in report.origins.items()}
    return report


def _from_model(model: X2VLM, files: Mapping[str, Path]) -> LoadReport:
    """From a folder of ours (config and weights) or a reference checkpoint."""
    if set(MODEL_FILES) <= set(files):
        saved = load_pretrained(*(files[name] for name in MODEL_FILES))
        return load_reference_state(model, named_state(saved))
    with tempfile.TemporaryDirectory() as scratch:
        (path,) = _folder_of(files, Path(scratch) / "checkpoint").iterdir()
        return load_reference_state(model, read_checkpoint(path).state)


def _locate(given: str | None, files: Mapping[str, Path], folder: Path) -> Path | None:
    """The folder of a backbone: the hub's, or `folder` with links to all its files."""
    if given is None:
        return None
    if found := HUB_NAME.match(given):
        log.info("start_from_hub name=%s revision=%s", found["name"], found["revision"])
        return locate_model(found["name"], found["revision"])
    return _folder_of(files, folder)


def _folder_of(files: Mapping[str, Path], folder: Path) -> Path:
    folder.mkdir()
    for name, path in files.items():
        (folder / name).symlink_to(path.resolve())
    return folder


def _require_filled(report: LoadReport, start: StartConfig) -> None:
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
