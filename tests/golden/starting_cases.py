"""Golden cases of starting weights: resized tables, image towers after loading, origins of text parameters."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.differences import Difference, arrays, equal
from x2vlm.errors import ConfigError
from x2vlm.models.blocks.position_bias import resize_position_bias
from x2vlm.models.checkpoints.initialize import initialize, text_state
from x2vlm.models.checkpoints.reference import export_reference_state
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.x2vlm import build_model

_TABLE = "relative_position_bias_table"


def check_table_resize(folder: Path) -> list[Difference]:
    """Every `in.A_to_B` table resized to the rows of its `out.A_to_B`."""
    recorded = load_file(folder / "tensors.safetensors")
    found = []
    for name in sorted(name for name in recorded if name.startswith("out.")):
        grid = int(re.search(r"_to_(\d+)$", name)[1])
        ours = resize_position_bias(recorded["in." + name.removeprefix("out.")], (2 * grid - 1) ** 2 + 3)
        found.append(arrays(name, ours, recorded[name]))
    return found


def check_vision_start(folder: Path) -> list[Difference]:
    """The image tower after starting from the raw backbone file, against the tower the reference loaded."""
    loaded = {_bare(name): value for name, value in load_file(folder / "loaded.safetensors").items()}
    torch.manual_seed(0)
    model = build_model(ModelConfig(vision=_vision_sizes(loaded), text=_TINY_TEXT, fusion=_TINY_FUSION, embed_dim=4))
    report = initialize(model, vision=folder / "raw.safetensors")
    ours = {_bare(name): value for name, value in export_reference_state(model).items() if "vision_encoder" in name}
    left_out = [name for name in report.missing if name.startswith("vision_encoder.") and _bare(name) in loaded]
    found = [equal("parameters without a start value", left_out, [])]
    return found + [_entry(name, ours, value) for name, value in loaded.items()]


_TINY_TEXT = TextConfig(width=8, num_layers=1, num_heads=2, intermediate=8, vocab_size=10, max_positions=8)
_TINY_FUSION = FusionConfig(num_layers=1, num_heads=2, intermediate=8)


def _bare(name: str) -> str:
    return name.removeprefix("vision_encoder.")


def _entry(name: str, ours: dict[str, Tensor], recorded: Tensor) -> Difference:
    if name not in ours:
        return equal(f"{name} exists", False, True)
    return arrays(name, ours[name].float(), recorded.float())


def _vision_sizes(state: dict[str, Tensor]) -> VisionConfig:
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    rows, num_heads = state[f"blocks.0.attn.{_TABLE}"].shape
    grid = (round((rows - 3) ** 0.5) + 1) // 2
    return VisionConfig(
        image_res=grid * patch_size,
        patch_size=patch_size,
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        num_heads=num_heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )


def check_text_origins(path: Path) -> list[Difference]:
    """For every recorded depth: the raw entry that each text parameter starts from (null: from none)."""
    found = []
    for name, origins in _origin_tables(json.loads(path.read_text())):
        recorded = {
            _plain(key): None if value is None else _plain(value)
            for key, value in origins.items()
            if not key.endswith("position_ids")
        }
        ours = _our_origins(recorded)
        wrong = sorted(key for key, value in recorded.items() if ours.get(key) != value)
        found.append(equal(f"{name}: entries from elsewhere", {k: (ours.get(k), recorded[k]) for k in wrong}, {}))
    return found


def _origin_tables(values: Any, name: str = "origins") -> Iterator[tuple[str, dict[str, str | None]]]:
    """Every mapping of text parameters to raw entries in the file, however deep, with the keys that lead to it."""
    if not isinstance(values, dict):
        return
    if values and all(value is None or isinstance(value, str) for value in values.values()):
        if any("encoder.layer." in key for key in values):
            yield name, values
        return
    for key, value in values.items():
        yield from _origin_tables(value, key)


def _our_origins(recorded: dict[str, str | None]) -> dict[str, str | None]:
    """Where our rule takes each of the recorded parameters from, for a raw BERT deep enough for what was recorded."""
    layers = {int(m[1]) for key in recorded if (m := re.match(r"encoder\.layer\.(\d+)\.", key))}
    fusion = {int(m[1]) for key in recorded if (m := re.match(r"encoder\.layer\.(\d+)\.crossattention\.", key))}
    used = {int(m[1]) for value in recorded.values() if (m := re.match(r"encoder\.layer\.(\d+)\.", value or ""))}
    names = {value for value in recorded.values() if value is not None}
    parts = {re.sub(r"^encoder\.layer\.\d+\.", "", name) for name in names if name.startswith("encoder.layer.")}
    for num_raw in range(max(used) + 1, 3 * len(layers) + 1):
        raw_names = [name for name in names if not name.startswith("encoder.layer.")]
        raw_names += [f"encoder.layer.{index}.{part}" for index in range(num_raw) for part in sorted(parts)]
        raw = {
            f"bert.{name}" if not name.startswith("cls.") else name: torch.tensor(i) for i, name in enumerate(raw_names)
        }
        try:
            state, _ = text_state(raw, len(layers) - len(fusion), len(fusion))
        except ConfigError:
            continue
        return {key: None for key in recorded} | {_plain(name): raw_names[value] for name, value in state.items()}
    return {}


def _plain(name: str) -> str:
    """A parameter's name without the prefixes that differ between raw files and models."""
    name = name.removeprefix("text_encoder.").removeprefix("bert.").removeprefix("roberta.")
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return _TIED.get(name, name)


# Second names of parameters that BERT shares.
_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
