"""The fusion layers: self-attention, cross-attention to image tokens, feed-forward; each followed by a LayerNorm.

B rows, M images, L text tokens, P patches, N = P + 1, H heads, E width of a head, D text width; of a plan T tokens,
S slots of image keys, K tokens that are read.
The layers run in two ways. `forward` takes padded texts, each with its row of image tokens, for tasks and generation;
keys and values of the image side are projected once (`image_memory`) for any number of calls. `run` executes a
FusionPlan for training: packed tokens of many passes together, each image's keys once.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from x2vlm.models.blocks.fusion_plan import CrossLayout, FusionPlan
from x2vlm.models.blocks.masks import AttentionMask, additive_or_none
from x2vlm.models.blocks.packing import SelfLayout, attend
from x2vlm.models.blocks.rows import take_rows
from x2vlm.models.blocks.text_paths import PackedRows, PathParity, TextDropPath, rates_of_layers, rows_of_counts
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

    def mask_B11N(self) -> AttentionMask | None:
        """The image tokens that a text may attend to; None: all."""
        if self.patch_mask_BP is None:
            return None
        return AttentionMask(with_summary(self.patch_mask_BP)[:, None, None, :])

    def select(self, rows_K: Tensor) -> "VisionMemory":
        """The given rows, in that order, without projecting keys again."""
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
        self.drop_path = TextDropPath(0.0, "fixed")
        self.norm = nn.LayerNorm(width, eps=cfg.layer_norm_eps)

    def split_heads(self, states_BND: Tensor) -> Tensor:
        return states_BND.reshape(*states_BND.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def forward(
        self, hidden_BLD: Tensor, keys_BHNE: Tensor, values_BHNE: Tensor, mask: AttentionMask | Tensor | None
    ) -> Tensor:
        queries_BHLE = self.split_heads(self.query(hidden_BLD))
        attended_BHLE = scaled_dot_product_attention(
            queries_BHLE,
            keys_BHNE,
            values_BHNE,
            attn_mask=additive_or_none(mask, queries_BHLE),
            dropout_p=self._dropout_now(),
        )
        return self._finish(attended_BHLE.transpose(1, 2).flatten(2), hidden_BLD, None)

    def with_map(self, hidden_BLD: Tensor, keys_BHNE: Tensor, values_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward` in evaluation, of all keys; and the attention (B, H, L, N), which the states depend on.

        A gradient with respect to the attention reaches no further back.
        """
        queries_BHLE = self.split_heads(self.query(hidden_BLD))
        logits_BHLN = queries_BHLE @ keys_BHNE.transpose(2, 3) / math.sqrt(queries_BHLE.shape[-1])
        map_BHLN = logits_BHLN.softmax(dim=-1).detach().requires_grad_()
        attended_BHLE = map_BHLN @ values_BHNE
        return self._finish(attended_BHLE.transpose(1, 2).flatten(2), hidden_BLD, None), map_BHLN

    def within(self, hidden_TD: Tensor, query_states_KD: Tensor, layout: SelfLayout, rows: PackedRows | None) -> Tensor:
        """States (K, D) of the query tokens after self-attention within their texts."""
        keys, values = self.key(hidden_TD), self.value(hidden_TD)
        attended = layout.attend(self.query(query_states_KD), keys, values, self.num_heads, self._dropout_now())
        return self._finish(attended, query_states_KD, rows)

    def across(
        self, query_states_KD: Tensor, memory_SD: Tensor, layout: CrossLayout, rows: PackedRows | None
    ) -> Tensor:
        """States (K, D) of the query tokens after cross-attention to their images, whose states are in their slots."""
        keys_values = self.key(memory_SD), self.value(memory_SD)
        attended = attend(
            self.query(query_states_KD), layout.queries, keys_values, layout.key_shapes, layout.masks, self.num_heads,
            self._dropout_now(),
        )  # fmt: skip
        return self._finish(attended, query_states_KD, rows)

    def _dropout_now(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def _finish(self, attended: Tensor, hidden: Tensor, rows: PackedRows | None) -> Tensor:
        branch = _dropped(self.drop_path, self.dropout(self.output(attended)), rows)
        normed: Tensor = self.norm(branch + hidden)
        return normed


class FeedForward(nn.Module):
    """Two linear maps around an exact GELU, with residual and LayerNorm."""

    def __init__(self, cfg: FusionConfig, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, cfg.intermediate)
        self.outer = nn.Linear(cfg.intermediate, width)
        self.dropout = nn.Dropout(cfg.dropout)
        self.drop_path = TextDropPath(0.0, "fixed")
        self.norm = nn.LayerNorm(width, eps=cfg.layer_norm_eps)

    def forward(self, hidden_BLD: Tensor, rows: PackedRows | None = None) -> Tensor:
        branch_BLD = _dropped(self.drop_path, self.dropout(self.outer(gelu(self.inner(hidden_BLD)))), rows)
        normed_BLD: Tensor = self.norm(branch_BLD + hidden_BLD)
        return normed_BLD


def _dropped(drop_path: TextDropPath, branch: Tensor, rows: PackedRows | None) -> Tensor:
    factors = drop_path.factors(branch, rows)
    return branch if factors is None else branch * factors


class FusionLayer(nn.Module):
    def __init__(self, cfg: FusionConfig, width: int, vision_width: int) -> None:
        super().__init__()
        self.self_attention = Attention(cfg, width, width)
        self.cross_attention = Attention(cfg, width, vision_width)
        self.feed_forward = FeedForward(cfg, width)

    def image_memory(self, vision: VisionTokens) -> tuple[SharedKeys, SharedKeys]:
        attention = self.cross_attention
        return _project(attention, attention.key, vision), _project(attention, attention.value, vision)

    def forward(
        self,
        hidden_BLD: Tensor,
        mask_B1LL: AttentionMask,
        memory: tuple[Tensor, Tensor] | None,
        memory_mask_B11N: AttentionMask | None,
    ) -> Tensor:
        attention = self.self_attention
        keys = attention.split_heads(attention.key(hidden_BLD))
        values = attention.split_heads(attention.value(hidden_BLD))
        return self.finish(hidden_BLD, (keys, values), mask_B1LL, memory, memory_mask_B11N)

    def finish(
        self,
        hidden_BLD: Tensor,
        own: tuple[Tensor, Tensor],
        own_mask: AttentionMask | Tensor,
        memory: tuple[Tensor, Tensor] | None,
        memory_mask_B11N: AttentionMask | None,
    ) -> Tensor:
        """The layer with the given keys and values of the text, which may have more tokens than `hidden_BLD`."""
        hidden_BLD = self.self_attention(hidden_BLD, *own, own_mask)
        if memory is not None:
            hidden_BLD = self.cross_attention(hidden_BLD, *memory, memory_mask_B11N)
        fed_BLD: Tensor = self.feed_forward(hidden_BLD)
        return fed_BLD

    def run(
        self,
        hidden_TD: Tensor,
        query_states_KD: Tensor,
        num_crossing: int,
        memory_SD: Tensor | None,
        within: SelfLayout,
        across: CrossLayout | None,
        rows: PackedRows | None = None,
    ) -> Tensor:
        """States (K, D) of the query tokens after the layer; the first `num_crossing` of them have an image."""
        query_states_KD = self.self_attention.within(hidden_TD, query_states_KD, within, rows)
        if across is not None and memory_SD is not None:
            crossing, others = query_states_KD.split_with_sizes([num_crossing, len(query_states_KD) - num_crossing])
            crossed = self.cross_attention.across(
                crossing, memory_SD, across, None if rows is None else rows.first(num_crossing)
            )
            query_states_KD = torch.cat([crossed, others]) if len(others) else crossed
        fed_KD: Tensor = self.feed_forward(query_states_KD, rows)
        return fed_KD


class FusionEncoder(nn.Module):
    """A stack of fusion layers; without image tokens the cross-attention parts are skipped, as in the reference."""

    def __init__(self, cfg: FusionConfig, width: int, vision_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(cfg, width, vision_width) for _ in range(cfg.num_layers))
        self._drops_paths = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=cfg.init_std)
                nn.init.zeros_(module.bias)

    def set_drop_paths(self, rate: float, parity: PathParity) -> None:
        """Stochastic depth of the three branches of every layer; see `x2vlm.models.blocks.text_paths`."""
        self._drops_paths = rate > 0
        for layer, of_layer in zip(self._layers(), rates_of_layers(rate, len(self.layers)), strict=True):
            for branch in (layer.self_attention, layer.cross_attention, layer.feed_forward):
                branch.drop_path = TextDropPath(of_layer, parity)
                if parity == "reference" and rate > 0:
                    branch.dropout = nn.Dropout(0.0)

    def image_memory(self, vision: VisionTokens) -> VisionMemory:
        """Image keys and values of every layer, projected once per image and once per summary token."""
        layers = tuple(layer.image_memory(vision) for layer in self._layers())
        return VisionMemory(layers, vision.image_of_B, vision.patch_mask_BP)

    def forward(self, hidden_BLD: Tensor, mask: Tensor, memory: VisionMemory | None, causal: bool) -> Tensor:
        """States (B, L, D); with `causal` a token attends to itself and earlier tokens.

        `mask`: (B, L), true on real tokens, or (B, L, L), true where a token (second dimension) may attend.
        """
        length = hidden_BLD.shape[1]
        seen_B1LL = mask.bool()[:, None] if mask.ndim == 3 else mask.bool()[:, None, None, :]
        if causal:
            seen_B1LL = seen_B1LL & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        mask_B1LL = AttentionMask(seen_B1LL)
        memory_mask = None if memory is None else memory.mask_B11N()
        for index, layer in enumerate(self._layers()):
            keys_values = None
            if memory is not None:
                keys, values = memory.layers[index]
                keys_values = keys.expand(memory.image_of_B), values.expand(memory.image_of_B)
            hidden_BLD = layer(hidden_BLD, mask_B1LL, keys_values, memory_mask)
        return hidden_BLD

    @torch.enable_grad()
    def forward_with_map(
        self, hidden_BLD: Tensor, mask_BL: Tensor, memory: VisionMemory, map_layer: int
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the attention (B, H, L, N) of layer `map_layer` to the image tokens, all of them visible."""
        mask_B1LL, map_BHLN = AttentionMask(mask_BL.bool()[:, None, None, :]), hidden_BLD.new_zeros(0)
        for index, layer in enumerate(self._layers()):
            keys, values = (side.expand(memory.image_of_B) for side in memory.layers[index])
            if index != map_layer:
                hidden_BLD = layer(hidden_BLD, mask_B1LL, (keys, values), None)
                continue
            own = layer.self_attention
            own_keys, own_values = own.split_heads(own.key(hidden_BLD)), own.split_heads(own.value(hidden_BLD))
            hidden_BLD = own(hidden_BLD, own_keys, own_values, mask_B1LL)
            hidden_BLD, map_BHLN = layer.cross_attention.with_map(hidden_BLD, keys, values)
            hidden_BLD = layer.feed_forward(hidden_BLD)
        return hidden_BLD, map_BHLN

    def run(
        self, texts_XD: Tensor, images_XD: Tensor | None, plan: FusionPlan, prune_last_layer: bool
    ) -> tuple[Tensor, ...]:
        """The states that the plan reads, for each of its passes (reads, D).

        `texts_XD` and `images_XD` are the states of its two tables. With `prune_last_layer` the last layer is
        computed only for tokens that are read; all others are only keys and values there.
        """
        hidden_TD = take_rows(texts_XD, plan.tokens_T)
        memory_SD = None
        if plan.memory is not None and images_XD is not None:
            memory_SD = plan.memory.spread(images_XD)
        rows = rows_of_counts(plan.held, hidden_TD.device) if self.training and self._drops_paths else None
        *layers, last = self._layers()
        for layer in layers:
            hidden_TD = layer.run(hidden_TD, hidden_TD, plan.num_crossing, memory_SD, plan.within, plan.across, rows)
        if prune_last_layer:
            query_states_KD = take_rows(hidden_TD, plan.reads_K)
            read_KD = last.run(
                hidden_TD,
                query_states_KD,
                plan.num_crossing_reads,
                memory_SD,
                plan.within_reads,
                plan.across_reads,
                None if rows is None else rows.select(plan.reads_K),
            )
        else:
            hidden_TD = last.run(hidden_TD, hidden_TD, plan.num_crossing, memory_SD, plan.within, plan.across, rows)
            read_KD = take_rows(hidden_TD, plan.reads_K)
        return tuple(plan.order.spread(read_KD).split_with_sizes(plan.reads_per_pass))

    def _layers(self) -> list[FusionLayer]:
        return [layer for layer in self.layers if isinstance(layer, FusionLayer)]


def _project(attention: Attention, linear: nn.Module, vision: VisionTokens) -> SharedKeys:
    return SharedKeys(
        summary_BH1E=attention.split_heads(linear(vision.summary_BD[:, None])),
        patches_MHPE=attention.split_heads(linear(vision.patches_MPD)),
    )
