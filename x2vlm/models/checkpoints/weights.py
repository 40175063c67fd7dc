"""The state of a model without duplicates, loading it with checked names and shapes, and reading untrusted files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from x2vlm.errors import CorruptArtifact

_WRAPPERS = ("module.", "_orig_mod.")


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without duplicates: tensors that share memory appear once, under their first name."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def load_own_tensors(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load the result of `own_tensors` into `model`; CorruptArtifact, naming `origin`, unless names and shapes fit."""
    expected = own_tensors(model)
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and expected[name].shape != state[name].shape
    ]
    if missing or unexpected or wrong:
        found = {"missing": missing, "unexpected": unexpected, "other shapes": wrong}
        problems = [f"{len(names)} {what}: {', '.join(names[:10])}" for what, names in found.items() if names]
        raise CorruptArtifact(f"{origin}: weights of another model than its config says; {'; '.join(problems)}")
    model.load_state_dict(dict(state), strict=False)


def read_tensors(path: Path, name: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in an untrusted weight file, and the training config beside them (empty: none). Executes no code.

    Tensors are those under the key `model` or `module`, or the file's own; `.safetensors` holds no config. `name`: what
    the file is called where it comes from, if `path` is a copy under another name; its suffix tells the format.
    CorruptArtifact if the file is damaged, holds anything but tensors and plain values, or requires code to be
    executed.
    """
    where = shown_file(path, name or path.name)
    try:
        if (name or path.name).endswith(".safetensors"):
            return load_file(path), {}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{where}: not a readable file of tensors ({error}); download it again") from error
    except Exception as error:  # a malicious or truncated file may make the reader raise anything
        raise CorruptArtifact(
            f"{where}: not a file of tensors and plain values ({type(error).__name__}: {_reason(error)}); "
            "download it again, and do not load it by other means: it may hold code"
        ) from error
    if not isinstance(content, Mapping):
        raise CorruptArtifact(f"{where}: holds a {type(content).__name__}, not a mapping of names to tensors")
    state, config = content.get("model", content.get("module", content)), content.get("config") or {}
    if not isinstance(state, Mapping) or not isinstance(config, Mapping):
        raise CorruptArtifact(f"{where}: `model` and `config` must be mappings")
    invalid_entries = [
        str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if invalid_entries or not state:
        raise CorruptArtifact(f"{where}: entries of the model that are no named tensors: {invalid_entries[:10]}")
    return dict(state), dict(config)


def _reason(error: Exception) -> str:
    """What a reader said, without torch's advice to load the file with code."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    if found := re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", text, re.IGNORECASE):
        return f"it needs {found[1]}, which is no tensor and no plain value"
    return "no pickle of tensors" if text.startswith("Weights only load failed") else " ".join(text.split())[:200]


def shown_file(path: Path, name: str) -> str:
    """As messages name a file: a copy may lie under another name than its own."""
    return str(path) if path.name == name else f"{name} ({path})"


def without_wrappers(key: str) -> str:
    """`key` without what wrappers of a whole model (data parallel training, torch.compile) put before its names."""
    while key.startswith(_WRAPPERS):
        for wrapper in _WRAPPERS:
            key = key.removeprefix(wrapper)
    return key
