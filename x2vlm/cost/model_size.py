"""Parameter count and training memory of a model, in closed form and without torch.

Parameters are exact (`tests/cost/test_model_size.py` counts real models). Memory is an estimate: an inventory of the
tensors that a step keeps for its backward pass, in bytes per token and unit of width. It leaves out the CUDA context,
communication buffers and fragmentation: allow 3 to 5 GB more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from x2vlm.cost.flops import EXECUTED, REFERENCE, SWIN_PATCH, BatchShape, Graph, num_image_tokens
from x2vlm.models.config import SWIN_OUTER_BLOCKS, ModelConfig, VisionConfig, stem_layers

# Per parameter: its fp32 value, gradient and two averages of Adam, and a bf16 copy for the matrix products.
STATE_BYTES = 18
# In a checkpoint: the fp32 value and the two averages.
CHECKPOINT_BYTES = 12
_BF16 = 2


@dataclass(frozen=True)
class _Kept:
    """Bytes kept for the backward pass, per token and unit of width of a block, and per logit of the MLM head."""

    vision: float
    text: float
    fusion: float
    logit: float


# Fused attention and activations: twelve bf16 tensors of a block's width (sixteen with cross-attention).
_FUSED = _Kept(vision=24, text=24, fusion=32, logit=6)
# Attention scores, dropout masks and float32 softmax kept as well, at 197 image tokens and 40 of text.
_EAGER = _Kept(vision=68.7, text=51, fusion=98, logit=10)
# Temporal attention, per token of a clip's frames: input and output of its norm, queries, keys, values and the
# attention output, in bf16. Its scores are 5 % of one of these at 3 frames.
_OVER_TIME = 12


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step by part."""

    vision: float
    text: float
    fusion: float
    image_keys: float
    words: float
    states: float

    @property
    def total(self) -> float:
        return self.vision + self.text + self.fusion + self.image_keys + self.words + self.states


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the model, tied ones once."""
    text, width, fusion = config.text, config.text.width, config.fusion
    embeddings = (text.vocab_size + text.max_positions + text.type_vocab_size) * width + 2 * width
    layer = 4 * (width**2 + width) + 2 * width * text.intermediate + text.intermediate + width + 4 * width
    crossed = 2 * (width**2 + width) + 2 * (config.vision.width + 1) * width + 2 * width
    fused = 4 * (width**2 + width) + 2 * width * fusion.intermediate + fusion.intermediate + width + 4 * width + crossed
    words = width**2 + width + 2 * width + text.vocab_size + (0 if config.tie_words else width * text.vocab_size)
    heads = _mlp_parameters(width, 2) + _mlp_parameters(width, 4)
    compare = config.embed_dim * (config.vision.width + width + 2) + 1
    frames = (config.num_frames or 0) * config.vision.width
    if config.vision.temporal == "attention":
        frames += _temporal_parameters(config.vision, config.num_frames or 0)
    stacks = text.num_layers * layer + fusion.num_layers * fused
    return _vision_parameters(config.vision) + embeddings + stacks + words + heads + compare + frames


def peak_memory(
    config: ModelConfig,
    shapes: Sequence[BatchShape],
    graph: Graph = "executed",
    max_tokens: int = 40,
    max_masks: int = 12,
    attention: Literal["fused", "eager"] | None = None,
    checkpoint_vision_blocks: int = 0,
) -> Memory:
    """Bytes at the peak of a step of one process, all batches in one graph.

    "reference" pads texts and keeps keys and values of every pass; it uses eager attention by default.
    `checkpoint_vision_blocks` blocks of the image tower keep only their input and are recomputed.
    """
    use = {"executed": EXECUTED, "reference": REFERENCE}[graph]
    kept = _EAGER if (attention or ("fused" if graph == "executed" else "eager")) == "eager" else _FUSED
    tokens = num_image_tokens(config.vision)
    images = sum(shape.num_images for shape in shapes)
    text_tokens = fusion_tokens = key_rows = masked = 0
    for shape in shapes:
        lengths = shape.text_lengths if use.pack_texts else (max_tokens,) * len(shape.text_lengths)
        passes = (0 if shape.kind == "text" else 3 * shape.matching) + (shape.kind == "region") + 1
        text_tokens += (1 if shape.kind == "text" else 2) * sum(lengths)
        fusion_tokens += passes * sum(lengths)
        masked += sum(shape.num_masked) if use.only_masked_words else max_masks * len(lengths)
        if shape.kind != "text":
            rows_of_keys = shape.num_visuals + len(lengths) / tokens * (shape.kind == "region")
            key_rows += rows_of_keys if use.share_image_keys else passes * len(lengths)  # type: ignore[assignment]
    width, block = config.text.width, images * tokens * config.vision.width
    depth, again = config.vision.depth, min(checkpoint_vision_blocks, config.vision.depth)
    held = depth - again + (again > 0)
    blocks = held * kept.vision + again * _BF16
    over_time = 0.0
    if config.vision.temporal == "attention":
        frames = sum(shape.num_images for shape in shapes if shape.num_frames > 1)
        over_time = held * _OVER_TIME * frames * tokens * config.vision.width
    return Memory(
        vision=blocks * block + over_time,
        text=kept.text * text_tokens * config.text.num_layers * width,
        fusion=kept.fusion * fusion_tokens * config.fusion.num_layers * width,
        image_keys=2 * _BF16 * key_rows * tokens * config.fusion.num_layers * width,
        words=kept.logit * masked * config.text.vocab_size,
        states=STATE_BYTES * num_parameters(config),
    )


def checkpoint_bytes(config: ModelConfig) -> int:
    """Bytes of one training checkpoint: weights and both Adam averages in float32."""
    return CHECKPOINT_BYTES * num_parameters(config)


def _mlp_parameters(width: int, outputs: int) -> int:
    return 2 * width**2 + 2 * width + 4 * width + 2 * width * outputs + outputs


def _vision_parameters(cfg: VisionConfig) -> int:
    if cfg.backbone == "swin":
        return _swin_parameters(cfg)
    width, inner = cfg.width, int(cfg.width * cfg.mlp_ratio)
    embed = 3 * cfg.patch_size**2 * width if cfg.stem == "patch" else _stem_parameters(cfg)
    embed += width  # with the class token; a bias is added below where there is one
    block = 4 * width**2 + 2 * width * inner + inner + width + 4 * width + width  # one bias per map but queries' etc.
    if cfg.backbone == "clip_vit":
        # Biases of queries, keys and values; absolute positions; a norm before the blocks and one after them.
        return embed + cfg.depth * (block + 3 * width) + (cfg.grid**2 + 1) * width + 4 * width
    # Biases of queries and values only, two layer scales, one position table per block; one norm after them.
    table = ((2 * cfg.grid - 1) ** 2 + 3) * cfg.num_heads
    return embed + width + cfg.depth * (block + 4 * width + table) + 2 * width


def _stem_parameters(cfg: VisionConfig) -> int:
    """Convolutions without biases, a scale and a shift for each of their channels, and a projection."""
    layers = stem_layers(cfg)
    convolutions = sum(9 * channels_in * channels + 2 * channels for channels_in, channels, _ in layers)
    return convolutions + layers[-1][1] * cfg.width + (cfg.width if cfg.backbone == "clip_vit" else 0)


def _temporal_parameters(cfg: VisionConfig, num_frames: int) -> int:
    """A norm, queries, keys and values, and an output projection in every block; one embedding per frame."""
    width = cfg.width
    return cfg.depth * (2 * width + 3 * (width**2 + width) + width**2 + width) + num_frames * width


def _swin_parameters(cfg: VisionConfig) -> int:
    width, heads = cfg.width // 8, cfg.num_heads // 8
    total = 3 * SWIN_PATCH**2 * width + width + 2 * width
    for stage, depth in enumerate((2, 2, cfg.depth - SWIN_OUTER_BLOCKS, 2)):
        if stage:
            total += 2 * (4 * width) + 4 * width * 2 * width
            width, heads = 2 * width, 2 * heads
        inner = int(width * cfg.mlp_ratio)
        block = 4 * width**2 + 4 * width + 2 * width * inner + inner + width + 4 * width
        total += depth * (block + (2 * cfg.grid - 1) ** 2 * heads)
    return total + 2 * width
