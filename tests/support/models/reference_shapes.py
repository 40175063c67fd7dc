"""Names, shapes and types of the reference's checkpoints, written down from its description, not from our code.

Every kind of file is a function of a few sizes, so the same tables give the released sizes and tiny ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

TIED = {
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
    "mlm_head.predictions.decoder.bias": "mlm_head.predictions.bias",
}


# Label smoothing 0.1 over all tokens but two, and 0 at the start token; a buffer of the captioning loss.
SMOOTHED_TARGETS = "crit_mask_lm_smoothed.one_hot"
START_ID = 7


@dataclass(frozen=True)
class Sizes:
    """Sizes of a released model; the defaults are the base model."""

    vision: int = 768
    depth: int = 12
    vision_heads: int = 12
    grid: int = 14
    patch: int = 16
    vision_inner: int = 3072
    text: int = 768
    text_layers: int = 12
    fusion_layers: int = 6
    inner: int = 3072
    vocab: int = 30522
    positions: int = 512
    types: int = 2
    # Positions and types of a decoder made from the cross encoder's description; None: those of the text tower.
    cross_positions: int | None = None
    cross_types: int | None = None
    embed: int = 256
    frames: int | None = None


# Reference models of a few kilobytes: one stack of layers, and separate encoders with XLM-R's text.
TINY = Sizes(
    vision=24, depth=2, vision_heads=3, grid=4, vision_inner=96, text=16, text_layers=2, fusion_layers=2, inner=40,
    vocab=50, positions=20, embed=8,
)  # fmt: skip
TINY_XLM = replace(TINY, positions=22, types=1, cross_positions=20, cross_types=2)


BASE = Sizes()
BASE_FRAMES = Sizes(frames=3)
LARGE = Sizes(vision=1024, depth=24, vision_heads=16, vision_inner=4096, text=1024, inner=4096)
LARGE_FRAMES = Sizes(vision=1024, depth=24, vision_heads=16, vision_inner=4096, text=1024, inner=4096, frames=3)
MULTILINGUAL_BASE = Sizes(vocab=250002, positions=514, types=1, cross_positions=512, cross_types=2)
MULTILINGUAL_LARGE = Sizes(
    vision=1024, depth=24, vision_heads=16, vision_inner=4096, text=1024, inner=4096, text_layers=24, vocab=250002,
    positions=514, types=1, cross_positions=512, cross_types=2,
)  # fmt: skip


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vision_encoder(s: Sizes) -> Shapes:
    shapes: Shapes = {"vision_encoder.cls_token": (1, 1, s.vision)}
    shapes["vision_encoder.patch_embed.proj.weight"] = (s.vision, 3, s.patch, s.patch)
    shapes["vision_encoder.patch_embed.proj.bias"] = (s.vision,)
    for i in range(s.depth):
        block = f"vision_encoder.blocks.{i}"
        shapes |= {f"{block}.gamma_1": (s.vision,), f"{block}.gamma_2": (s.vision,)}
        shapes |= norm(f"{block}.norm1", s.vision) | norm(f"{block}.norm2", s.vision)
        shapes |= {f"{block}.attn.q_bias": (s.vision,), f"{block}.attn.v_bias": (s.vision,)}
        shapes[f"{block}.attn.relative_position_bias_table"] = ((2 * s.grid - 1) ** 2 + 3, s.vision_heads)
        shapes[f"{block}.attn.relative_position_index"] = (s.grid**2 + 1, s.grid**2 + 1)
        shapes[f"{block}.attn.qkv.weight"] = (3 * s.vision, s.vision)
        shapes |= linear(f"{block}.attn.proj", s.vision, s.vision)
        shapes |= linear(f"{block}.mlp.fc1", s.vision_inner, s.vision)
        shapes |= linear(f"{block}.mlp.fc2", s.vision, s.vision_inner)
    return shapes | norm("vision_encoder.fc_norm", s.vision)


def embeddings(prefix: str, s: Sizes) -> Shapes:
    return {
        f"{prefix}.position_ids": (1, s.positions),
        f"{prefix}.word_embeddings.weight": (s.vocab, s.text),
        f"{prefix}.position_embeddings.weight": (s.positions, s.text),
        f"{prefix}.token_type_embeddings.weight": (s.types, s.text),
    } | norm(f"{prefix}.LayerNorm", s.text)


def attention(name: str, s: Sizes, key_width: int) -> Shapes:
    shapes = linear(f"{name}.self.query", s.text, s.text)
    shapes |= linear(f"{name}.self.key", s.text, key_width) | linear(f"{name}.self.value", s.text, key_width)
    return shapes | linear(f"{name}.output.dense", s.text, s.text) | norm(f"{name}.output.LayerNorm", s.text)


def layers(prefix: str, s: Sizes, plain: Iterable[int], fused: Iterable[int], key_width: int) -> Shapes:
    shapes: Shapes = {}
    fused = set(fused)
    for i in sorted({*plain, *fused}):
        layer = f"{prefix}.layer.{i}"
        shapes |= attention(f"{layer}.attention", s, s.text)
        if i in fused:
            shapes |= attention(f"{layer}.crossattention", s, key_width)
        shapes |= linear(f"{layer}.intermediate.dense", s.inner, s.text)
        shapes |= linear(f"{layer}.output.dense", s.text, s.inner) | norm(f"{layer}.output.LayerNorm", s.text)
    return shapes


def words(prefix: str, s: Sizes) -> Shapes:
    shapes = {f"{prefix}.bias": (s.vocab,), f"{prefix}.decoder.weight": (s.vocab, s.text)}
    shapes |= {f"{prefix}.decoder.bias": (s.vocab,)}
    return shapes | linear(f"{prefix}.transform.dense", s.text, s.text) | norm(f"{prefix}.transform.LayerNorm", s.text)


def contrast(s: Sizes) -> Shapes:
    return {"temp": ()} | linear("vision_proj", s.embed, s.vision) | linear("text_proj", s.embed, s.text)


def mlp(name: str, width: int, out: int) -> Shapes:
    return linear(f"{name}.0", 2 * width, width) | norm(f"{name}.1", 2 * width) | linear(f"{name}.3", out, 2 * width)


def stack(prefix: str, s: Sizes) -> Shapes:
    """Text and fusion layers in one stack, with embeddings."""
    split, end = s.text_layers, s.text_layers + s.fusion_layers
    return embeddings(f"{prefix}embeddings", s) | layers(
        f"{prefix}encoder", s, range(split), range(split, end), s.vision
    )


def pretrained(s: Sizes) -> Shapes:
    shapes = vision_encoder(s) | stack("text_encoder.bert.", s) | words("text_encoder.cls.predictions", s)
    shapes |= contrast(s) | mlp("itm_head", s.text, 2) | mlp("bbox_head", s.text, 4)
    return shapes | ({} if s.frames is None else {"absolute_frame_pos_embed": (1, s.frames, 1, s.vision)})


def separate(s: Sizes) -> Shapes:
    """Text encoder and fusion layers of the multilingual models."""
    shapes = embeddings("text_encoder.embeddings", s) | layers("text_encoder.encoder", s, range(s.text_layers), [], 0)
    return shapes | layers("cross_encoder.encoder", s, [], range(s.fusion_layers), s.vision)


def multilingual(s: Sizes) -> Shapes:
    shapes = vision_encoder(s) | separate(s) | words("mlm_head.predictions", s)
    return shapes | contrast(s) | mlp("itm_head", s.text, 2) | mlp("bbox_head", s.text, 4)


def retrieval(s: Sizes) -> Shapes:
    return vision_encoder(s) | stack("text_encoder.", s) | contrast(s) | mlp("itm_head", s.text, 2)


def grounding(s: Sizes) -> Shapes:
    return vision_encoder(s) | stack("text_encoder.", s) | mlp("bbox_head", s.text, 4)


def classification(s: Sizes) -> Shapes:
    return vision_encoder(s) | stack("text_encoder.", s) | mlp("cls_head", s.text, 11)


def two_images(s: Sizes) -> Shapes:
    return vision_encoder(s) | stack("text_encoder.", s) | mlp("cls_head", 2 * s.text, 2)


def captioning(s: Sizes) -> Shapes:
    shapes = vision_encoder(s) | stack("text_encoder.bert.", s) | words("text_encoder.cls.predictions", s)
    return shapes | {SMOOTHED_TARGETS: (1, s.vocab)}


def decoder(s: Sizes) -> Shapes:
    s = replace(s, positions=s.cross_positions or s.positions, types=s.cross_types or s.types)
    shapes = embeddings("text_decoder.bert.embeddings", s) | words("text_decoder.cls.predictions", s)
    return shapes | layers("text_decoder.bert.encoder", s, [], range(s.fusion_layers), s.text)


def question_answering(s: Sizes) -> Shapes:
    return vision_encoder(s) | stack("text_encoder.", s) | decoder(s)


def multilingual_retrieval(s: Sizes) -> Shapes:
    return vision_encoder(s) | separate(s) | contrast(s) | mlp("itm_head", s.text, 2)


def multilingual_question_answering(s: Sizes) -> Shapes:
    return vision_encoder(s) | separate(s) | decoder(s)


def multilingual_classification(s: Sizes) -> Shapes:
    return vision_encoder(s) | separate(s) | mlp("cls_head", s.text, 3)


def multilingual_two_images(s: Sizes) -> Shapes:
    return vision_encoder(s) | separate(s) | mlp("cls_head", 2 * s.text, 2)


def random_state(shapes: Shapes, s: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Random values for every entry; constants as the reference stores them, tied entries equal."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
        elif name.endswith("relative_position_index"):
            state[name] = relative_position_index(s.grid)
        elif name == "temp":
            state[name] = torch.tensor(0.0625)
        elif name == SMOOTHED_TARGETS:
            state[name] = torch.full(shape, 0.1 / (s.vocab - 2))
            state[name][0, START_ID] = 0
        else:
            state[name] = torch.randn(shape, generator=generator)
    return {name: state[TIED.get(name, name)].clone() for name in state}


def relative_position_index(grid: int) -> Tensor:
    """(N, N) int64, N = grid squared + 1: the table row of each query and key, token 0 being the class token."""
    rows = torch.arange(grid).repeat_interleave(grid)
    columns = torch.arange(grid).repeat(grid)
    side = 2 * grid - 1
    size = side * side + 3
    index = torch.empty(grid**2 + 1, grid**2 + 1, dtype=torch.long)
    index[1:, 1:] = (rows[:, None] - rows[None] + grid - 1) * side + columns[:, None] - columns[None] + grid - 1
    index[0, :], index[:, 0], index[0, 0] = size - 3, size - 2, size - 1
    return index
