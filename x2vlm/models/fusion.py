"""The fusion layers: self-attention, cross-attention to image tokens, feed-forward; each followed by a LayerNorm.

B rows, M images, L text tokens, P patches, N = P + 1, H heads, E width of a head, D text width.
Keys and values of the image side depend on no text, so they are projected once (`remember`) and looked at by every
pass: positives, negatives, masked words, boxes. Patches are projected once per image, summary tokens once per row.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from x2vlm.models.config import FusionConfig
from x2vlm.models.tokens import VisionTokens, with_summary


@dataclass(frozen=True)
class SharedKeys:
    """Keys or values of one layer: `summary_BH1E` per row, `patches_MHPE` per image."""

    summary_BH1E: Tensor
    patches_MHPE: Tensor

    def expand(self, image_of_B: Tensor | None) -> Tensor:
        """(B, H, N, E), one copy per row."""
        patches = self.patches_MHPE if image_of_B is None else self.patches_MHPE[image_of_B]
        return torch.cat([self.summary_BH1E, patches], dim=2)

    def select(self, rows_K: Tensor) -> "SharedKeys":
        return replace(self, summary_BH1E=self.summary_BH1E[rows_K])


@dataclass(frozen=True)
class VisionMemory:
    """Image tokens as the cross-attention of every fusion layer reads them: a (keys, values) pair per layer."""

    layers: tuple[tuple[SharedKeys, SharedKeys], ...]
    image_of_B: Tensor | None
    patch_mask_BP: Tensor | None

    def mask_B1LN(self, length: int) -> Tensor | None:
        """Which image tokens each of `length` text tokens may look at; None: all."""
        if self.patch_mask_BP is None:
            return None
        return with_summary(self.patch_mask_BP)[:, None, None, :].expand(-1, 1, length, -1)

    def select(self, rows_K: Tensor) -> "VisionMemory":
        """The given rows, in that order, without projecting anything again."""
        return VisionMemory(
            layers=tuple((keys.select(rows_K), values.select(rows_K)) for keys, values in self.layers),
            image_of_B=rows_K if self.image_of_B is None else self.image_of_B[rows_K],
            patch_mask_BP=None if self.patch_mask_BP is None else self.patch_mask_BP[rows_K],
        )


class Attention(nn.Module):
    """Multi-head attention with output projection, residual and LayerNorm; keys may come from another width."""

    def __init__(self, cfg: FusionConfig, width: int, key_width: int) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        self.attention_dropout = cfg.attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(cfg.dropout)
        self.norm = nn.LayerNorm(width, eps=cfg.layer_norm_eps)

    def split_heads(self, states_BND: Tensor) -> Tensor:
        return states_BND.reshape(*states_BND.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def forward(self, hidden_BLD: Tensor, keys_BHNE: Tensor, values_BHNE: Tensor, mask: Tensor | None) -> Tensor:
        attended_BHLE = scaled_dot_product_attention(
            self.split_heads(self.query(hidden_BLD)),
            keys_BHNE,
            values_BHNE,
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        attended_BLD = attended_BHLE.transpose(1, 2).flatten(2)
        normed_BLD: Tensor = self.norm(self.dropout(self.output(attended_BLD)) + hidden_BLD)
        return normed_BLD


class FeedForward(nn.Module):
    """Two linear maps around an exact GELU, with residual and LayerNorm."""

    def __init__(self, cfg: FusionConfig, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, cfg.intermediate)
        self.outer = nn.Linear(cfg.intermediate, width)
        self.dropout = nn.Dropout(cfg.dropout)
        self.norm = nn.LayerNorm(width, eps=cfg.layer_norm_eps)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        normed_BLD: Tensor = self.norm(self.dropout(self.outer(gelu(self.inner(hidden_BLD)))) + hidden_BLD)
        return normed_BLD


class FusionLayer(nn.Module):
    def __init__(self, cfg: FusionConfig, width: int, vision_width: int) -> None:
        super().__init__()
        self.self_attention = Attention(cfg, width, width)
        self.cross_attention = Attention(cfg, width, vision_width)
        self.feed_forward = FeedForward(cfg, width)

    def remember(self, vision: VisionTokens) -> tuple[SharedKeys, SharedKeys]:
        attention = self.cross_attention
        return _project(attention, attention.key, vision), _project(attention, attention.value, vision)

    def forward(
        self,
        hidden_BLD: Tensor,
        mask_B1LL: Tensor,
        memory: tuple[Tensor, Tensor] | None,
        memory_mask_B1LN: Tensor | None,
    ) -> Tensor:
        attention = self.self_attention
        keys = attention.split_heads(attention.key(hidden_BLD))
        values = attention.split_heads(attention.value(hidden_BLD))
        return self.finish(hidden_BLD, (keys, values), mask_B1LL, memory, memory_mask_B1LN)

    def finish(
        self,
        hidden_BLD: Tensor,
        own: tuple[Tensor, Tensor],
        own_mask: Tensor,
        memory: tuple[Tensor, Tensor] | None,
        memory_mask_B1LN: Tensor | None,
    ) -> Tensor:
        """The layer with keys and values of the text given, which may hold more tokens than `hidden_BLD`."""
        hidden_BLD = self.self_attention(hidden_BLD, *own, own_mask)
        if memory is not None:
            hidden_BLD = self.cross_attention(hidden_BLD, *memory, memory_mask_B1LN)
        fed_BLD: Tensor = self.feed_forward(hidden_BLD)
        return fed_BLD


class FusionEncoder(nn.Module):
    """A stack of fusion layers; without image tokens the cross-attention parts are skipped, as in the reference."""

    def __init__(self, cfg: FusionConfig, width: int, vision_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(cfg, width, vision_width) for _ in range(cfg.num_layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=cfg.init_std)
                nn.init.zeros_(module.bias)

    def remember(self, vision: VisionTokens) -> VisionMemory:
        """Image keys and values of every layer, projected once per image and once per summary token."""
        layers = tuple(layer.remember(vision) for layer in self._layers())
        return VisionMemory(layers, vision.image_of_B, vision.patch_mask_BP)

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor, memory: VisionMemory | None, causal: bool) -> Tensor:
        """States (B, L, D); with `causal` a token sees itself and what stands before it."""
        length = hidden_BLD.shape[1]
        mask_B1LL = mask_BL.bool()[:, None, None, :].expand(-1, 1, length, -1)
        if causal:
            mask_B1LL = mask_B1LL & torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
        memory_mask = None if memory is None else memory.mask_B1LN(length)
        for index, layer in enumerate(self._layers()):
            keys_values = None
            if memory is not None:
                keys, values = memory.layers[index]
                keys_values = keys.expand(memory.image_of_B), values.expand(memory.image_of_B)
            hidden_BLD = layer(hidden_BLD, mask_B1LL, keys_values, memory_mask)
        return hidden_BLD

    def _layers(self) -> list[FusionLayer]:
        return [layer for layer in self.layers if isinstance(layer, FusionLayer)]


def _project(attention: Attention, linear: nn.Module, vision: VisionTokens) -> SharedKeys:
    return SharedKeys(
        summary_BH1E=attention.split_heads(linear(vision.summary_BD[:, None])),
        patches_MHPE=attention.split_heads(linear(vision.patches_MPD)),
    )
