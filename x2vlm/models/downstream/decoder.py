"""The decoder of answers: BERT layers that write an answer and attend to a fused question (X2-VLM 4.3.2).

B questions, A answers, R rows of tokens (a multiple of B, those of a question adjacent), N new tokens, T tokens before
them, L tokens of a question, H heads, E width of a head, D text width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from x2vlm.models.blocks.masks import AttentionMask
from x2vlm.models.config import FusionConfig, ModelConfig
from x2vlm.models.downstream.config import DecoderConfig
from x2vlm.models.fusion import FusionEncoder, FusionLayer, VisionMemory
from x2vlm.models.heads import WordHead
from x2vlm.models.tokens import VisionTokens

KeysValues = tuple[Tensor, Tensor]  # (R, H, T, E) each, of one layer


class WordEmbeddings(nn.Module):
    """Words, positions and the first token type of BERT: added, normalised, dropped out."""

    def __init__(self, cfg: FusionConfig, width: int, vocab_size: int, num_positions: int, num_types: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(num_positions, width)
        self.types = nn.Embedding(num_types, width)
        self.norm = nn.LayerNorm(width, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)
        for table in (self.words, self.positions, self.types):
            nn.init.normal_(table.weight, std=cfg.init_std)

    def forward(self, ids_RN: Tensor, first: int) -> Tensor:
        """States (R, N, D) of tokens at the positions from `first` on."""
        positions_ND = self.positions.weight[first : first + ids_RN.shape[1]]
        states_RND: Tensor = self.dropout(self.norm(self.words(ids_RN) + positions_ND + self.types.weight[0]))
        return states_RND


class AnswerDecoder(nn.Module):
    """Layers of the shape of the fusion layers, with word embeddings and an MLM head of their own.

    Cross-attention reads the fused states of all question tokens but padding. Its parameters are `text_decoder.*` in
    the reference. `config` is as given, with its open sizes filled in.
    """

    reference_prefix = "text_decoder."

    def __init__(self, config: DecoderConfig, base: ModelConfig) -> None:
        super().__init__()
        text, width = base.text, base.text.width
        sizes = {
            "num_layers": config.num_layers or base.fusion.num_layers,
            "num_positions": config.num_positions or text.max_positions,
            "num_types": config.num_types or text.type_vocab_size,
        }
        self.config = config.model_copy(update=sizes)
        fusion = base.fusion.model_copy(update={"num_layers": sizes["num_layers"]})
        self.embeddings = WordEmbeddings(
            fusion, width, text.vocab_size, sizes["num_positions"], sizes["num_types"]
        )  # fmt: skip
        self.encoder = FusionEncoder(fusion, width, width)
        self.encoder.set_drop_paths(base.cross_drop_path, base.text_drop_path_parity)
        self.word_head = WordHead(width, text.vocab_size, fusion.layer_norm_eps, config.tie_words, fusion.init_std)

    @property
    def num_positions(self) -> int:
        """The most tokens of an answer, with its start and end."""
        return self.embeddings.positions.num_embeddings

    def question_memory(self, fused_BLD: Tensor, mask_BL: Tensor) -> VisionMemory:
        """Keys and values of questions for every layer, projected once for any number of answers."""
        # A question stands where the image stands in the fusion layers: [CLS], always real, is the summary.
        return self.encoder.image_memory(VisionTokens(fused_BLD[:, 0], fused_BLD[:, 1:], None, mask_BL[:, 1:].bool()))

    def forward(self, ids_AN: Tensor, mask_AN: Tensor, memory: VisionMemory) -> Tensor:
        """States (A, N, D) of whole answers; `memory` has one row per answer, or adjacent answers share one."""
        return self.extend(ids_AN, mask_AN, None, memory)[0]

    def extend(
        self, ids_RN: Tensor, mask_RN: Tensor, past: list[KeysValues] | None, memory: VisionMemory
    ) -> tuple[Tensor, list[KeysValues]]:
        """States (R, N, D) of tokens that follow those of `past`, and the keys and values of the new ones per layer.

        Tokens attend to themselves and to all real ones before them. With B questions in `memory`, R / B adjacent rows
        attend to each: its keys are not copied for them.
        """
        num_past = 0 if past is None else past[0][0].shape[2]
        num_rows, num_new = ids_RN.shape
        earlier = torch.ones(num_new, num_past + num_new, dtype=torch.bool, device=ids_RN.device).tril(num_past)
        seen = AttentionMask(earlier & pad(mask_RN.bool(), (num_past, 0), value=True)[:, None, None, :])
        question_mask = memory.mask_B11N()
        hidden: Tensor = self.embeddings(ids_RN, num_past)
        made: list[KeysValues] = []
        for number, layer in enumerate(self.encoder.layers):
            assert isinstance(layer, FusionLayer)
            attention = layer.self_attention
            keys, values = (attention.split_heads(part(hidden)) for part in (attention.key, attention.value))
            made.append((keys, values))
            if past is not None:
                keys, values = torch.cat([past[number][0], keys], dim=2), torch.cat([past[number][1], values], dim=2)
            hidden = attention(hidden, keys, values, seen)
            question = [part.expand(memory.image_of_B) for part in memory.layers[number]]
            by_question = hidden.reshape(question[0].shape[0], -1, hidden.shape[-1])
            crossed: Tensor = layer.cross_attention(by_question, question[0], question[1], question_mask)
            hidden = layer.feed_forward(crossed.reshape(num_rows, num_new, -1))
        return hidden, made

    def predict(self, states_XD: Tensor) -> Tensor:
        """Logits (..., V) of the token after each state."""
        logits_XV: Tensor = self.word_head(states_XD, self.embeddings.words.weight)
        return logits_XV
