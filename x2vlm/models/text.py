"""The text tower: any transformers encoder that takes ids and a mask and has only self-attention.

B captions, L tokens.
"""

from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

from x2vlm.errors import ConfigError
from x2vlm.models.config import TextConfig


class TextEncoder(nn.Module):
    """Runs the text-only layers; `encoder` is the transformers model and is never asked for its pooler."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    @property
    def word_embeddings(self) -> nn.Embedding:
        embeddings = self.encoder.get_input_embeddings()
        if not isinstance(embeddings, nn.Embedding):
            raise ConfigError(f"text encoder {type(self.encoder).__name__} has no plain word embedding table")
        return embeddings

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """States (B, L, width) after the last text-only layer; padding never reaches real tokens."""
        length = ids_BL.shape[1]
        # A ready 4-D mask: given a 2-D one, transformers asks on the host whether anything is padded, every step.
        mask_B1LL = mask_BL.bool()[:, None, None, :].expand(-1, 1, length, -1)
        return self.encoder(input_ids=ids_BL, attention_mask=mask_B1LL).last_hidden_state


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
        attn_implementation="sdpa",
    )
    return TextEncoder(model_type(config, add_pooling_layer=False))
