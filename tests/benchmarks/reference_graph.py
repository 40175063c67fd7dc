"""The graph of the X2-VLM reference as plain torch modules, with its redundant computations.

Written from the description of the reference, not from its code, and without any of our model code, so that "faster
than the reference" can be measured in one process. Its results are tested against recorded values of the
reference (`tests/benchmarks/test_reference_graph.py`); what makes it slow is kept on purpose: eager attention that
writes every score to memory, texts padded to `max_tokens`, keys and values of the image projected again for every row
of every pass. Parameters have the reference's names, so its checkpoints load with `load_state_dict(strict=True)`.

B rows, M images, R regions, F frames, P patches, N = P + 1, L text tokens, K masked slots, H heads, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, linear, scaled_dot_product_attention

PADDING_BIAS, OUTSIDE_BOX_BIAS = -10_000.0, -1e9  # added to the scores of padding and of patches outside the box


@dataclass(frozen=True)
class GraphSizes:
    """Sizes and dropout probabilities; the defaults are those of pre-training the base model.

    `attention`: "eager" is the reference's; "sdpa" the same scores and masks through torch's fused attention, to
    measure its effect alone.
    """

    image_res: int = 224
    patch: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    vision_inner: int = 3072
    vision_eps: float = 1e-6
    text_width: int = 768
    text_layers: int = 12
    fusion_layers: int = 6
    text_heads: int = 12
    text_inner: int = 3072
    text_eps: float = 1e-12
    vocab: int = 30522
    positions: int = 512
    types: int = 2
    embed: int = 256
    frames: int | None = None
    drop_path: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.1
    attention: Literal["eager", "sdpa"] = "eager"

    @property
    def grid(self) -> int:
        return self.image_res // self.patch


def attend(s: GraphSizes, query: Tensor, key: Tensor, value: Tensor, score_bias: Tensor, drop: float) -> Tensor:
    """(B, L, D) from (B, H, L, E) queries that are already scaled; `hidden` is added to the scores."""
    if s.attention == "sdpa":
        mask = (
            score_bias.to(query.dtype)
            .clamp_min(torch.finfo(query.dtype).min)
            .expand(len(query), -1, query.shape[2], -1)
        )
        mixed = scaled_dot_product_attention(query, key, value, mask, dropout_p=drop, scale=1.0)
    else:
        scores = query @ key.transpose(-1, -2) + score_bias
        mixed = dropout(scores.softmax(dim=-1), drop) @ value
    return mixed.transpose(1, 2).flatten(2)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, H, L, E) of (B, L, H E)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def relative_position_index(grid: int) -> Tensor:
    """(N, N) rows of the position table; the last three rows are for the class token as query, as key, as both."""
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"))
    side = 2 * grid - 1
    index = torch.zeros(grid * grid + 1, grid * grid + 1, dtype=torch.long)
    index[1:, 1:] = (row[:, None] - row + grid - 1) * side + (column[:, None] - column + grid - 1)
    index[0], index[:, 0], index[0, 0] = side * side, side * side + 1, side * side + 2
    return index


class VisionAttention(nn.Module):
    """Self-attention with a position table per block; keys have no bias."""

    relative_position_index: Tensor

    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.sizes = s
        self.qkv = nn.Linear(s.vision_width, 3 * s.vision_width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(s.vision_width))
        self.v_bias = nn.Parameter(torch.zeros(s.vision_width))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * s.grid - 1) ** 2 + 3, s.vision_heads))
        self.register_buffer("relative_position_index", relative_position_index(s.grid))
        self.proj = nn.Linear(s.vision_width, s.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        s = self.sizes
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        query, key, value = (
            split_heads(part, s.vision_heads) for part in linear(x, self.qkv.weight, bias).chunk(3, -1)
        )
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        position = table.view(*self.relative_position_index.shape, -1).permute(2, 0, 1)[None]
        return self.proj(attend(s, query * query.shape[-1] ** -0.5, key, value, position, 0.0))


class VisionMlp(nn.Module):
    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(s.vision_width, s.vision_inner)
        self.fc2 = nn.Linear(s.vision_inner, s.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    def __init__(self, s: GraphSizes, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.gamma_1 = nn.Parameter(torch.full((s.vision_width,), 0.1))
        self.gamma_2 = nn.Parameter(torch.full((s.vision_width,), 0.1))
        self.norm1 = nn.LayerNorm(s.vision_width, eps=s.vision_eps)
        self.attn = VisionAttention(s)
        self.norm2 = nn.LayerNorm(s.vision_width, eps=s.vision_eps)
        self.mlp = VisionMlp(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop(self.gamma_2 * self.mlp(self.norm2(x)))

    def drop(self, branch: Tensor) -> Tensor:
        """The branch with whole samples dropped at the block's rate."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = torch.empty(len(branch), 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.drop_path)
        return branch * (keep / (1 - self.drop_path))


class PatchEmbed(nn.Module):
    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, s.vision_width, s.patch, stride=s.patch)


class VisionEncoder(nn.Module):
    """Normalised patches (B, P, D); the class token's output is discarded."""

    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.vision_width))
        self.patch_embed = PatchEmbed(s)
        rates = [s.drop_path * i / max(s.vision_depth - 1, 1) for i in range(s.vision_depth)]
        self.blocks = nn.ModuleList(VisionBlock(s, rate) for rate in rates)
        self.fc_norm = nn.LayerNorm(s.vision_width, eps=s.vision_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:])


class Projections(nn.Module):
    def __init__(self, width: int, key_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)


class Residual(nn.Module):
    """LayerNorm of (linear map with dropout + residual)."""

    def __init__(self, s: GraphSizes, width_in: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, s.text_width)
        self.LayerNorm = nn.LayerNorm(s.text_width, eps=s.text_eps)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, branch: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(branch)) + before)


class TextAttention(nn.Module):
    """Self-attention, or cross-attention that projects the keys and values of every row it is given."""

    def __init__(self, s: GraphSizes, key_width: int) -> None:
        super().__init__()
        self.sizes = s
        self.self = Projections(s.text_width, key_width)
        self.output = Residual(s, s.text_width)

    def forward(self, x: Tensor, keys: Tensor, score_bias: Tensor) -> Tensor:
        s = self.sizes
        # Divided before the product, as the reference does when it trains in half precision.
        query = split_heads(self.self.query(x), s.text_heads) / math.sqrt(s.text_width // s.text_heads)
        key, value = (split_heads(project(keys), s.text_heads) for project in (self.self.key, self.self.value))
        drop = s.attention_dropout if self.training else 0.0
        return self.output(attend(s, query, key, value, score_bias, drop), x)


class Intermediate(nn.Module):
    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(s.text_width, s.text_inner)


class TextLayer(nn.Module):
    def __init__(self, s: GraphSizes, has_cross_attention: bool) -> None:
        super().__init__()
        self.attention = TextAttention(s, s.text_width)
        if has_cross_attention:
            self.crossattention = TextAttention(s, s.vision_width)
        self.intermediate = Intermediate(s)
        self.output = Residual(s, s.text_inner)

    def forward(self, x: Tensor, score_bias: Tensor, image: Tensor | None, image_score_bias: Tensor | None) -> Tensor:
        x = self.attention(x, x, score_bias)
        if image is not None:
            assert image_score_bias is not None
            x = self.crossattention(x, image, image_score_bias)
        return self.output(gelu(self.intermediate.dense(x)), x)


class Embeddings(nn.Module):
    position_ids: Tensor

    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(s.vocab, s.text_width, padding_idx=0)
        self.position_embeddings = nn.Embedding(s.positions, s.text_width)
        self.token_type_embeddings = nn.Embedding(s.types, s.text_width)
        self.LayerNorm = nn.LayerNorm(s.text_width, eps=s.text_eps)
        self.dropout = nn.Dropout(s.dropout)
        self.register_buffer("position_ids", torch.arange(s.positions)[None])

    def forward(self, ids: Tensor) -> Tensor:
        position = self.position_ids[:, : ids.shape[1]]
        x = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        return self.dropout(self.LayerNorm(x + self.position_embeddings(position)))


class Layers(nn.Module):
    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        total = s.text_layers + s.fusion_layers
        self.layer = nn.ModuleList(TextLayer(s, has_cross_attention=i >= s.text_layers) for i in range(total))


class Bert(nn.Module):
    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(s)
        self.encoder = Layers(s)


class Transform(nn.Module):
    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(s.text_width, s.text_width)
        self.LayerNorm = nn.LayerNorm(s.text_width, eps=s.text_eps)


class Predictions(nn.Module):
    """Vocabulary logits; the matrix is the word embedding table, and both names of the bias are one vector."""

    def __init__(self, s: GraphSizes, words: nn.Parameter) -> None:
        super().__init__()
        self.transform = Transform(s)
        self.decoder = nn.Linear(s.text_width, s.vocab)
        self.decoder.weight = words
        self.bias = self.decoder.bias

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform.LayerNorm(gelu(self.transform.dense(states))))


class WordHead(nn.Module):
    def __init__(self, s: GraphSizes, words: nn.Parameter) -> None:
        super().__init__()
        self.predictions = Predictions(s, words)


class TextEncoder(nn.Module):
    """One stack: text layers, fusion layers, MLM head."""

    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.sizes = s
        self.bert = Bert(s)
        self.cls = WordHead(s, self.bert.embeddings.word_embeddings.weight)

    def encode(self, ids: Tensor, atts: Tensor) -> Tensor:
        """States (B, L, D) after the text layers; every token of the padded length is computed."""
        return self.run(self.bert.embeddings(ids), atts, 0, self.sizes.text_layers)

    def fuse(self, text: Tensor, atts: Tensor, image: Tensor | None, image_atts: Tensor | None) -> Tensor:
        """States (B, L, D) after the fusion layers; without an image their cross-attention is left out."""
        first = self.sizes.text_layers
        return self.run(text, atts, first, first + self.sizes.fusion_layers, image, image_atts)

    def run(
        self,
        x: Tensor,
        atts: Tensor,
        first: int,
        end: int,
        image: Tensor | None = None,
        image_atts: Tensor | None = None,
    ) -> Tensor:
        score_bias = (1.0 - atts[:, None, None, :].float()) * PADDING_BIAS
        image_score_bias = (
            None if image_atts is None else (1.0 - image_atts[:, None, None, :].float()) * OUTSIDE_BOX_BIAS
        )
        for layer in self.bert.encoder.layer[first:end]:
            x = layer(x, score_bias, image, image_score_bias)
        return x


def small_head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, out)
    )  # fmt: skip


class ReferenceGraph(nn.Module):
    """The whole model; `tests.benchmarks.reference_graph_losses` runs its passes."""

    def __init__(self, s: GraphSizes) -> None:
        super().__init__()
        self.sizes = s
        self.vision_encoder = VisionEncoder(s)
        self.text_encoder = TextEncoder(s)
        self.vision_proj = nn.Linear(s.vision_width, s.embed)
        self.text_proj = nn.Linear(s.text_width, s.embed)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.itm_head = small_head(s.text_width, 2)
        self.bbox_head = small_head(s.text_width, 4)
        if s.frames is not None:
            self.absolute_frame_pos_embed = nn.Parameter(torch.zeros(1, s.frames, 1, s.vision_width))
