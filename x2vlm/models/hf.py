"""A model as a folder: `config.json` and `model.safetensors`, the layout the Hugging Face hub expects."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from x2vlm.config import parse_config
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import X2VLM, build_model

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_pretrained(model: X2VLM, folder: Path) -> None:
    """Writes the two files; every parameter once, under our own names, on the host."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {"model_type": "x2vlm", **model.config.model_dump(mode="json")}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def from_pretrained(folder: Path) -> X2VLM:
    """The model that `save_pretrained` wrote, in evaluation mode.

    ConfigError if the folder has no usable config, CorruptArtifact if its weights are unreadable or not that model's.
    """
    config = _read_config(folder / CONFIG_FILE)
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{folder / WEIGHTS_FILE}: {error}; copy the folder again") from error
    model = build_model(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CorruptArtifact(f"{folder / WEIGHTS_FILE}: does not fit {CONFIG_FILE} beside it: {error}") from error
    return model.eval()


def _read_config(path: Path) -> ModelConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable model config: {error}") from error
    if not isinstance(values, dict) or values.pop("model_type", None) != "x2vlm":
        raise ConfigError(f'{path}: model_type is not "x2vlm"; load other checkpoints with x2vlm.models.reference')
    return parse_config(ModelConfig, values, str(path))
