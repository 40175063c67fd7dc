"""A trained model as two files: its sizes (config.json, key "model") and its weights (safetensors, our names)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from x2vlm.config import parse_config
from x2vlm.errors import CorruptArtifact
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import X2VLM, build_model


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without repeats: tensors that share memory appear once, under their first name."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def load_own_tensors(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Put what `own_tensors` gave into `model`; CorruptArtifact, naming `origin`, unless names and shapes fit."""
    expected = own_tensors(model)
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if missing or unexpected or wrong:
        raise CorruptArtifact(f"{origin}: weights of another model: {missing=}, {unexpected=}, other shapes: {wrong}")
    model.load_state_dict(dict(state), strict=False)


def save_pretrained(
    config: ModelConfig, state: Mapping[str, Tensor], folder: Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Write config.json and model.safetensors below `folder`. `extra` is JSON beside the key "model" in config.json."""
    values = {**(extra or {}), "model": config.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def load_pretrained(config_path: Path, weights_path: Path) -> X2VLM:
    """The model that `save_pretrained` wrote, in evaluation mode on the CPU. CorruptArtifact if the two do not fit."""
    values = json.loads(config_path.read_text(encoding="utf-8"))
    if "model" not in values:
        raise CorruptArtifact(f"{config_path}: no key `model` with the sizes of the model")
    config = parse_config(ModelConfig, values["model"], str(config_path))
    with torch.random.fork_rng(devices=[]):  # building draws start values that are overwritten at once
        model = build_model(config)
    load_own_tensors(model, load_file(weights_path), str(weights_path))
    return model.eval()
