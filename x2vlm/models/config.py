"""Sizes and dropout probabilities of an X2-VLM model; the defaults are the base model of the paper."""

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig, parse_config
from x2vlm.errors import ConfigError

log = logging.getLogger(__name__)

Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

SWIN_STRIDE = 32
# Blocks of the first, second and fourth stage together; the third takes the rest.
SWIN_OUTER_BLOCKS = 6
LARGEST_STRIDE = 3  # of a convolution of 3 x 3 that sees every pixel


def _require_divisible(name: str, value: int, by_name: str, by: int) -> None:
    if by < 1 or value % by:
        raise ValueError(f"{name} ({value}) must be a multiple of {by_name} ({by})")


class VisionConfig(FrozenConfig):
    """An image tower; by default BEiT-2: pre-norm blocks with one relative position table each, no absolute positions.

    `clip_vit` is the ViT of CLIP (absolute positions, quick GELU). In `swin`, `width` and `num_heads` are those of the
    last of four stages, `depth` counts all blocks (24 is Swin-B: 2, 2, 18, 2) and `patch_size` is the stride of its
    output, 32; it has neither layer scale nor a class token, and takes `image_res / 32` as its window.

    `stem: conv` makes patches by 3 x 3 convolutions (`stem_layers`) instead of one as large as a patch, `deep_conv` by
    twice as many of twice the width: a small tower without pre-trained weights learns from far fewer images then. Not
    for `swin`, and no released weights fit it.

    `position_init: sincos` starts the absolute positions of `clip_vit` as sines and cosines of row and column, as large
    as the patches (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"), instead of near zero. They are
    learned from there. A tower without pre-trained weights learns to locate boxes much sooner (docs/learning.md).

    Frames of a clip are averaged after the tower. With `temporal: attention` its blocks have temporal attention as well
    (`x2vlm.models.blocks.temporal`, BEiT-2 only), which needs the model's `num_frames`.
    """

    backbone: Literal["beit2", "clip_vit", "swin"] = "beit2"
    image_res: Size = 224
    patch_size: Size = 16
    width: Size = 768
    depth: Size = 12
    num_heads: Size = 12
    mlp_ratio: Positive = 4.0
    layer_norm_eps: Positive = 1e-6
    layer_scale_init: Positive = 0.1
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    temporal: Literal["mean", "attention"] = "mean"
    stem: Literal["patch", "conv", "deep_conv"] = "patch"
    position_init: Literal["normal", "sincos"] = "normal"

    @model_validator(mode="after")
    def _has_positions(self) -> "VisionConfig":
        if self.position_init == "sincos" and self.backbone != "clip_vit":
            raise ValueError(
                f"position_init: sincos is for backbone clip_vit; {self.backbone} has no absolute positions"
            )
        if self.position_init == "sincos" and self.width % 4:
            raise ValueError(f"position_init: sincos needs a width that is a multiple of 4, not {self.width}")
        return self

    @model_validator(mode="after")
    def _stem_fits(self) -> "VisionConfig":
        if self.stem == "patch":
            return self
        if self.backbone == "swin":
            raise ValueError(f"stem: {self.stem} is for backbone beit2 or clip_vit; swin has stages of its own")
        if any(stride > LARGEST_STRIDE for _, _, stride in stem_layers(self)):
            raise ValueError(
                f"stem: {self.stem} needs a patch_size whose prime factors are 2 and 3, not {self.patch_size}"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> "VisionConfig":
        _require_divisible("image_res", self.image_res, "patch_size", self.patch_size)
        _require_divisible("width", self.width, "num_heads", self.num_heads)
        if self.backbone == "swin":
            _require_divisible("width", self.width, "8 (stages double it)", 8)
            _require_divisible("num_heads", self.num_heads, "8 (stages double them)", 8)
            if self.patch_size != SWIN_STRIDE or self.depth < SWIN_OUTER_BLOCKS + 1:
                raise ValueError(f"a Swin tower has patch_size {SWIN_STRIDE} and at least 7 blocks")
        if self.temporal == "attention" and self.backbone != "beit2":
            raise ValueError(f"temporal: attention is for backbone beit2 only, {self.backbone} can only take the mean")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_res // self.patch_size


def stem_layers(cfg: VisionConfig) -> list[tuple[int, int, int]]:
    """Channels in, channels out and stride of each convolution of a `conv` or `deep_conv` stem.

    The strides are the prime factors of the patch size, the largest first; channels double up to half the width. In a
    deep stem they double up to the width, each convolution is followed by one of stride 1, and the smallest stride
    comes first: fine detail lasts longer.
    """
    strides, rest = [], cfg.patch_size
    for factor in range(cfg.patch_size, 1, -1):
        while rest % factor == 0 and all(factor % smaller for smaller in range(2, factor)):
            strides.append(factor)
            rest //= factor
    deep = cfg.stem == "deep_conv"
    strides.sort(reverse=not deep)
    channels = [max(8, cfg.width >> (len(strides) - number - deep)) for number in range(len(strides))]
    layers = list(zip([3, *channels], channels, strides, strict=False))
    if deep:
        return [layer for first in layers for layer in (first, (first[1], first[1], 1))]
    return layers


class TextConfig(FrozenConfig):
    """The self-attention-only text layers, built as a transformers encoder of this architecture."""

    architecture: Literal["bert", "xlm-roberta"] = "bert"
    width: Size = 768
    num_layers: Size = 12
    num_heads: Size = 12
    intermediate: Size = 3072
    vocab_size: Size = 30522
    max_positions: Size = 512
    type_vocab_size: Size = 2
    pad_id: int = Field(default=0, ge=0)
    layer_norm_eps: Positive = 1e-12
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    init_std: Positive = 0.02

    @model_validator(mode="after")
    def _divides(self) -> "TextConfig":
        _require_divisible("width", self.width, "num_heads", self.num_heads)
        if self.pad_id >= self.vocab_size:
            raise ValueError(f"pad_id ({self.pad_id}) must be below vocab_size ({self.vocab_size})")
        return self


class FusionConfig(FrozenConfig):
    """The layers with cross-attention to image tokens; their width is the text width."""

    num_layers: Size = 6
    num_heads: Size = 12
    intermediate: Size = 3072
    layer_norm_eps: Positive = 1e-12
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    init_std: Positive = 0.02


class ModelConfig(FrozenConfig):
    """Everything that determines the shapes of an X2-VLM model; the frame position exists iff `num_frames` is set.

    `text_drop_path` and `cross_drop_path` are the stochastic depth of the text and the fusion layers in training,
    growing from 0 in the first layer; drawn per text. With `text_drop_path_parity: reference` it is drawn as there, per
    token position for the whole batch; both rates are needed, and in these layers states have no dropout.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()
    embed_dim: Size = 256
    temperature: Positive = 0.07
    num_frames: int | None = Field(default=None, ge=1)
    text_drop_path: float = Field(default=0.0, ge=0, lt=1)
    cross_drop_path: float = Field(default=0.0, ge=0, lt=1)
    text_drop_path_parity: Literal["fixed", "reference"] = "fixed"
    # False in the multilingual models of the reference: their MLM head has a matrix of its own, randomly initialised.
    tie_words: bool = True

    @model_validator(mode="after")
    def _divides(self) -> "ModelConfig":
        _require_divisible("text.width", self.text.width, "fusion.num_heads", self.fusion.num_heads)
        is_dropped = self.text_drop_path > 0, self.cross_drop_path > 0
        if self.text_drop_path_parity == "reference" and not all(is_dropped):
            raise ValueError("text_drop_path_parity: reference has no effect unless both rates are above 0, as there")
        if self.vision.temporal == "attention" and (self.num_frames is None or self.num_frames < 2):
            raise ValueError(
                f"vision.temporal: attention learns an embedding per frame: set num_frames to 2 or more, "
                f"it is {self.num_frames}"
            )
        return self


# Values that a reference config must have for this implementation to be the same function.
_REFERENCE_FACTS: dict[str, Any] = {
    "vision_layer_scale": True,
    "vision_rel_pos_bias": "per block",
    "vision_abs_pos": False,
    "vision_qkv_bias": "q and v only",
    "text_act": "gelu (erf)",
}
_REFERENCE_SIZES = {
    "image_res", "patch_size", "vision_embed", "vision_depth", "vision_heads", "vision_mlp_ratio",
    "vision_layernorm_eps", "text_hidden", "text_heads", "text_intermediate", "text_only_layers", "fusion_layers",
    "text_layers_total", "text_fusion_starts_at", "text_layernorm_eps", "vocab_size", "max_position_embeddings",
    "type_vocab_size", "embed_dim", "temp", "frame_len", "num_frames", "add_frame_pos",
}  # fmt: skip


def model_config_from_reference(values: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """The ModelConfig of a reference model described by the keys of a golden `config.json`.

    `changes` replace top-level fields afterwards (for example `num_frames=3`). ConfigError if the description
    has a setting that this model does not support, or lacks a size. Other keys are logged and ignored.
    """
    for key, expected in _REFERENCE_FACTS.items():
        if values.get(key, expected) != expected:
            raise ConfigError(f"reference config: {key} is {values[key]!r}, this model only does {expected!r}")
    ignored = sorted(set(values) - _REFERENCE_SIZES - set(_REFERENCE_FACTS))
    if ignored:
        log.warning("reference_config ignored_keys=%s", ",".join(ignored))
    try:
        parsed = _nested_sizes(values)
    except KeyError as error:
        raise ConfigError(f"reference config: key {error.args[0]!r} is missing") from None
    return parse_config(ModelConfig, parsed | changes, "reference config")


def _nested_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    text_layers = values["text_only_layers"] if "text_only_layers" in values else values["text_fusion_starts_at"]
    fusion_layers = values["fusion_layers"] if "fusion_layers" in values else values["text_layers_total"] - text_layers
    shared = {
        "num_heads": values["text_heads"],
        "intermediate": values["text_intermediate"],
        "layer_norm_eps": values["text_layernorm_eps"],
    }
    frames = values.get("num_frames", values.get("frame_len"))
    return {
        "vision": {
            "image_res": values["image_res"],
            "patch_size": values["patch_size"],
            "width": values["vision_embed"],
            "depth": values["vision_depth"],
            "num_heads": values["vision_heads"],
            "mlp_ratio": values["vision_mlp_ratio"],
            "layer_norm_eps": values["vision_layernorm_eps"],
        },
        "text": shared
        | {
            "width": values["text_hidden"],
            "num_layers": text_layers,
            "vocab_size": values["vocab_size"],
            "max_positions": values["max_position_embeddings"],
            "type_vocab_size": values["type_vocab_size"],
        },
        "fusion": shared | {"num_layers": fusion_layers},
        "embed_dim": values["embed_dim"],
        "temperature": values["temp"],
        "num_frames": frames if values.get("add_frame_pos", frames is not None) else None,
    }
