"""The text tower: any transformers encoder that takes ids and a mask and has only self-attention.

B captions, L tokens of a padded caption, T concatenated tokens of all captions, H heads, E width of a head.
Architectures with known position numbering run packed, with our attention registered in transformers by name.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from x2vlm.errors import ConfigError
from x2vlm.models.blocks.packing import SelfLayout
from x2vlm.models.blocks.text_paths import PathParity, TextDropPath, rates_of_layers, rows_of_offsets
from x2vlm.models.config import TextConfig

# Attention over padded captions as in transformers' own "sdpa", and over packed ones if a layout is passed.
ATTENTION = "x2vlm_packed"
# Architectures that number positions from 0, and from one after that of the padding.
_FROM_ZERO = ("bert", "electra")
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


class TextEncoder(nn.Module):
    """Runs the text-only layers; `encoder` is the transformers model, whose pooler is not used."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self._paths: list[TextDropPath] = []
        if self.can_pack:
            encoder.set_attn_implementation(ATTENTION)

    @property
    def can_pack(self) -> bool:
        """True for architectures whose captions may be concatenated (`forward_packed`)."""
        return self.encoder.config.model_type in (*_FROM_ZERO, *_AFTER_PADDING)

    def add_drop_paths(self, rate: float, parity: PathParity) -> None:
        """Stochastic depth of both branches of every layer; see `x2vlm.models.blocks.text_paths`.

        ConfigError for an encoder whose layers are not those of BERT.
        """
        if rate <= 0:
            return
        layers = getattr(getattr(self.encoder, "encoder", None), "layer", None)
        if layers is None:
            raise ConfigError(
                f"text_drop_path is for layers of BERT; {type(self.encoder).__name__} has others: set it to 0"
            )
        for layer, of_layer in zip(layers, rates_of_layers(rate, len(layers)), strict=True):
            for branch in (layer.attention.output, layer.output):
                path = TextDropPath(of_layer, parity)
                dropout = nn.Dropout(0.0) if parity == "reference" else branch.dropout
                branch.dropout = nn.Sequential(dropout, path)
                self._paths.append(path)

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    @property
    def word_embeddings(self) -> nn.Embedding:
        embeddings = self.encoder.get_input_embeddings()
        if not isinstance(embeddings, nn.Embedding):
            raise ConfigError(f"text encoder {type(self.encoder).__name__} has no plain word embedding table")
        return embeddings

    def forward(self, ids_BL: Tensor, mask: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """States (B, L, width) after the last text-only layer; padding never reaches real tokens.

        `mask`: (B, L), true on real tokens, or (B, L, L), true where a token (second dimension) may attend. `positions`
        count from 0 in a text; None: 0, 1, 2, ...
        """
        length = ids_BL.shape[1]
        # A 4-D mask: for a 2-D one, transformers checks on the host whether anything is padded, in every step.
        seen_BXL = mask.bool() if mask.ndim == 3 else mask.bool()[:, None, :]
        placed = {}
        if positions_BL is not None:  # types as well: those of transformers end with its table of positions
            placed = {"position_ids": positions_BL + self._first_position, "token_type_ids": torch.zeros_like(ids_BL)}
        states_BLD: Tensor = self.encoder(
            input_ids=ids_BL, attention_mask=seen_BXL[:, None].expand(-1, 1, length, -1), **placed
        ).last_hidden_state
        return states_BLD

    @property
    def _first_position(self) -> int:
        """RoBERTa counts from one after its padding token."""
        config = self.encoder.config
        return config.pad_token_id + 1 if config.model_type in _AFTER_PADDING else 0

    def forward_packed(self, ids_T: Tensor, offsets_T: Tensor, layout: SelfLayout) -> Tensor:
        """States (T, width) of concatenated captions; `offsets_T` counts from 0 within each caption."""
        rows = rows_of_offsets(offsets_T) if self._paths else None
        try:
            for path in self._paths:
                path.rows = rows
            states_1TD: Tensor = self.encoder(
                input_ids=ids_T[None],
                position_ids=offsets_T[None] + self._first_position,
                token_type_ids=torch.zeros_like(ids_T)[None],
                packed_layout=layout,
            ).last_hidden_state
        finally:
            for path in self._paths:
                path.rows = None
        return states_1TD[0]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: SelfLayout | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention called by transformers: (B, H, L, E) to (B, L, H, E), packed captions as one row of T tokens."""
    if packed_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **options)
    num_heads = query.shape[1]
    query_TD, key_TD, value_TD = (states.transpose(1, 2).flatten(2)[0] for states in (query, key, value))
    attended_TD = packed_layout.attend(query_TD, key_TD, value_TD, num_heads, dropout)
    return attended_TD.reshape(1, len(attended_TD), num_heads, -1), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def build_text_encoder(cfg: TextConfig) -> TextEncoder:
    """A randomly initialised text tower of the configured architecture."""
    config_type = {"bert": BertConfig, "xlm-roberta": XLMRobertaConfig}[cfg.architecture]
    model_type = {"bert": BertModel, "xlm-roberta": XLMRobertaModel}[cfg.architecture]
    config = config_type(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        intermediate_size=cfg.intermediate,
        hidden_act="gelu",
        hidden_dropout_prob=cfg.dropout,
        attention_probs_dropout_prob=cfg.attention_dropout,
        max_position_embeddings=cfg.max_positions,
        type_vocab_size=cfg.type_vocab_size,
        initializer_range=cfg.init_std,
        layer_norm_eps=cfg.layer_norm_eps,
        pad_token_id=cfg.pad_id,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    return TextEncoder(model_type(config, add_pooling_layer=False))
