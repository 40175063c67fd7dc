"""The sizes of a reference model, read from the shapes of its state and checked against its training config."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.models.config import ModelConfig

HEAD_WIDTH = 64
XLM_PAD_ID = 1
_FRAME_POSITION = "absolute_frame_pos_embed"


class _Shapes:
    """Shapes of a state by name; records which entry each size was read from, for error messages."""

    def __init__(self, state: Mapping[str, Tensor], origin: str) -> None:
        self.state = state
        self.origin = origin
        self.read_from: dict[str, str] = {}

    def size(self, label: str, name: str, axis: int, num_axes: int) -> int:
        if name not in self.state:
            raise ConfigError(f"{self.origin}: missing {name}, which tells {label}")
        shape = self.state[name].shape
        if len(shape) != num_axes or not shape[axis]:
            raise ConfigError(f"{self.origin}: {name} has shape {tuple(shape)}, which cannot tell {label}")
        self.read_from[f"{label} {shape[axis]}"] = name
        return shape[axis]

    def count(self, pattern: str, label: str) -> int:
        """How many consecutive numbers from 0 `pattern` captures; ConfigError for none or gaps."""
        numbers = sorted({int(found[1]) for name in self.state if (found := re.match(pattern, name))})
        if not numbers or numbers != list(range(len(numbers))):
            raise ConfigError(f"{self.origin}: entries that tell {label} must count 0, 1, 2, ...; found {numbers[:40]}")
        return len(numbers)


def read_sizes(
    state: Mapping[str, Tensor], layout: str, config: Mapping[str, Any], text_heads: int | None, origin: str
) -> tuple[ModelConfig, dict[str, str]]:
    """The ModelConfig of a state with text layers named as in `layout`, and the entry each size was read from.

    ConfigError if an entry that a size is read from is missing, or the training config contradicts a size.
    """
    shapes = _Shapes(state, origin)
    prefix = "text_encoder.bert." if layout == "bert" else "text_encoder."
    text = _text_sizes(shapes, prefix, layout, text_heads)
    first_fused = (
        "cross_encoder.encoder.layer.0" if layout == "separate" else f"{prefix}encoder.layer.{text['num_layers']}"
    )
    fusion = {
        "num_layers": _num_fused(shapes, prefix, layout) - (0 if layout == "separate" else text["num_layers"]),
        "num_heads": text["num_heads"],
        "intermediate": shapes.size("fusion inner width", f"{first_fused}.intermediate.dense.bias", 0, 1),
    }
    embed_dim = config.get("embed_dim", 256)
    if any(name.startswith(("vision_proj.", "text_proj.", "temp")) for name in state):
        embed_dim = shapes.size("width of the comparison space", "vision_proj.bias", 0, 1)
    position = state.get(_FRAME_POSITION)
    if position is None and config.get("add_frame_pos"):
        raise ConfigError(
            f"{origin}: missing {_FRAME_POSITION}, though the training config in the file has add_frame_pos"
        )
    values = {
        "vision": _vision_sizes(shapes),
        "text": text,
        "fusion": fusion,
        "embed_dim": embed_dim,
        "num_frames": None if position is None else shapes.size("frames", _FRAME_POSITION, 1, 4),
        "tie_words": layout != "separate",
        "temperature": float(config.get("temp", 0.07)),
    }
    try:
        model = parse_config(ModelConfig, values, origin)
    except ConfigError as error:
        sizes = "; ".join(f"{size} from {name}" for size, name in shapes.read_from.items())
        raise ConfigError(f"{error}. Sizes were read as follows: {sizes}") from None
    _check_config(model, layout, config, origin)
    return model, shapes.read_from


def _vision_sizes(shapes: _Shapes) -> dict[str, Any]:
    table = "vision_encoder.blocks.0.attn.relative_position_bias_table"
    width = shapes.size("image width", "vision_encoder.cls_token", 2, 3)
    patch_size = shapes.size("patch size", "vision_encoder.patch_embed.proj.weight", 3, 4)
    side = round(max(shapes.size("position rows", table, 0, 2) - 3, 0) ** 0.5)
    return {
        "image_res": (side + 1) // 2 * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": shapes.count(r"vision_encoder\.blocks\.(\d+)\.", "the number of image blocks"),
        "num_heads": shapes.size("image heads", table, 1, 2),
        "mlp_ratio": shapes.size("image inner width", "vision_encoder.blocks.0.mlp.fc1.bias", 0, 1) / width,
    }


def _text_sizes(shapes: _Shapes, prefix: str, layout: str, text_heads: int | None) -> dict[str, Any]:
    embeddings = f"{prefix}embeddings."
    width = shapes.size("text width", f"{embeddings}LayerNorm.weight", 0, 1)
    types = shapes.size("token types", f"{embeddings}token_type_embeddings.weight", 0, 2)
    is_xlm = layout == "separate" and types == 1
    num_layers = shapes.count(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.", "the number of text layers")
    if layout != "separate":
        num_layers = _first_fused(shapes, prefix)
    return {
        "architecture": "xlm-roberta" if is_xlm else "bert",
        "width": width,
        "num_layers": num_layers,
        "num_heads": text_heads or max(1, width // HEAD_WIDTH),
        "intermediate": shapes.size("text inner width", f"{prefix}encoder.layer.0.intermediate.dense.bias", 0, 1),
        "vocab_size": shapes.size("vocabulary", f"{embeddings}word_embeddings.weight", 0, 2),
        "max_positions": shapes.size("text positions", f"{embeddings}position_embeddings.weight", 0, 2),
        "type_vocab_size": types,
        "pad_id": XLM_PAD_ID if is_xlm else 0,
        "layer_norm_eps": 1e-5 if is_xlm else 1e-12,
    }


def _first_fused(shapes: _Shapes, prefix: str) -> int:
    pattern = rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.crossattention\."
    numbers = {int(found[1]) for name in shapes.state if (found := re.match(pattern, name))}
    if not numbers:
        raise ConfigError(f"{shapes.origin}: no text layer has cross-attention")
    return min(numbers)


def _num_fused(shapes: _Shapes, prefix: str, layout: str) -> int:
    """One more than the number of the last fusion layer."""
    stack = r"cross_encoder\." if layout == "separate" else re.escape(prefix)
    return shapes.count(rf"{stack}encoder\.layer\.(\d+)\.", "the number of fusion layers")


def _check_config(model: ModelConfig, layout: str, config: Mapping[str, Any], origin: str) -> None:
    """ConfigError where the training config in the file contradicts its shapes."""
    found: dict[str, Any] = {"image_res": model.vision.image_res, "patch_size": model.vision.patch_size}
    found["embed_dim"] = model.embed_dim
    if layout != "separate":
        found["text_fusion_start_at"] = model.text.num_layers
        found["text_num_hidden_layers"] = model.text.num_layers + model.fusion.num_layers
    if config.get("add_frame_pos"):
        found["frame_len"] = model.num_frames
    wrong = [
        f"{key}: {config[key]}, shapes say {value}" for key, value in found.items() if config.get(key, value) != value
    ]
    if wrong:
        raise ConfigError(f"{origin}: the training config in the file contradicts its tensors: {'; '.join(wrong)}")
