"""A model as a folder, in the layout the Hugging Face hub expects.

`config.json` and `model.safetensors` are the model; `preprocessor_config.json` and `vocab.txt` or `tokenizer.json` are
its processor (`x2vlm.inference.processor`), `README.md` is its card (`x2vlm.inference.card`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from x2vlm.config import parse_config
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.inference.card import CardFacts, render_card
from x2vlm.inference.hub import locate_model
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors
from x2vlm.models.config import ModelConfig
from x2vlm.models.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:  # writing weights down need not import timm and transformers
    from x2vlm.inference.processor import Processor
    from x2vlm.models.x2vlm import X2VLM

MODEL_TYPE = "x2vlm"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".th", ".pkl", ".ckpt")


def save_pretrained(
    model: X2VLM,
    folder: Path,
    training: Mapping[str, Any] | None = None,
    processor: Processor | None = None,
    card: CardFacts | None = None,
) -> None:
    """Writes the model, with `processor` its input side, with `card` its README.md.

    Every parameter once, under our own names. `training` is JSON about how it was made. ConfigError, before anything is
    written, if the processor does not fit the model.
    """
    save_weights(model.config, own_tensors(model), folder, training, processor, card)


def save_weights(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    folder: Path,
    training: Mapping[str, Any] | None = None,
    processor: Processor | None = None,
    card: CardFacts | None = None,
) -> None:
    """`save_pretrained` for weights without a model around them, such as those of a training checkpoint."""
    if processor is not None:
        from x2vlm.inference.processor import check_fit, save_processor

        check_fit(config, processor, str(folder))
        save_processor(processor, folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    values = {"model_type": MODEL_TYPE, "model": config.model_dump(mode="json"), "training": dict(training or {})}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if card is not None:
        text = render_card(config, sum(tensor.numel() for tensor in tensors.values()), card)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")


def from_pretrained(name: str | Path, revision: str | None = None) -> X2VLM:
    """The model that `save_pretrained` wrote, in evaluation mode on the CPU; `name` is a folder or a hub name.

    ConfigError if the folder has no usable config, CorruptArtifact if its weights are unreadable or not that model's,
    SourceUnavailable if the hub does not give it.
    """
    folder = locate_model(name, revision)
    return load_pretrained(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def load_pretrained(config_path: Path, weights_path: Path) -> X2VLM:
    """`from_pretrained` for two files that lie apart."""
    from x2vlm.models.x2vlm import build_model

    config = _read_config(config_path)
    try:
        state = load_file(weights_path)
    except (OSError, SafetensorError) as error:
        advice = _pickle_advice(weights_path) or "copy the folder again"
        raise CorruptArtifact(f"{weights_path}: {error}; {advice}") from error
    with torch.random.fork_rng(devices=[]):  # building draws start values that are overwritten at once
        model = build_model(config)
    load_own_tensors(model, state, str(weights_path))
    return model.eval()


def _pickle_advice(path: Path) -> str:
    """What to say if unreadable weights are a pickle, or if pickles lie in their place; empty otherwise."""
    advice = (
        "a pickle can run code and is never loaded; "
        "x2vlm.models.checkpoints.released reads the reference's own files safely"
    )
    if path.is_file():
        with path.open("rb") as file:
            return f"it is a pickle: {advice}" if file.read(2).startswith((b"PK", b"\x80")) else ""
    pickles = sorted(other.name for other in path.parent.glob("*") if other.suffix in PICKLE_SUFFIXES)
    return f"the folder has {', '.join(pickles)}, but {advice}" if pickles else ""


def _read_config(path: Path) -> ModelConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable model config: {error}") from error
    if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f'{path}: model_type is not "{MODEL_TYPE}"; load others with x2vlm.models.checkpoints.reference'
        )
    if not isinstance(values.get("model"), dict):
        raise ConfigError(f"{path}: no key `model` with the sizes of the model")
    return parse_config(ModelConfig, values["model"], str(path))
