"""What the reference's downstream models hold beside the pre-trained model: a classifier, a decoder, a constant.

V vocabulary, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.errors import ConfigError

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.x2vlm import X2VLM

DECODER = "text_decoder."
# Buffer of the captioning loss: the label-smoothed distribution of a target before the target itself is set.
SMOOTHED_TARGETS = "crit_mask_lm_smoothed.one_hot"
LABEL_SMOOTHING = 0.1
BERT_START_ID = 101  # [CLS] in BERT's uncased vocabulary


def smoothed_targets(
    vocab_size: int, start_id: int = BERT_START_ID, label_smoothing: float = LABEL_SMOOTHING
) -> Tensor:
    """(1, V) float32: `label_smoothing` spread over all tokens but the target and the start token, which is never one.

    ConfigError if the start token is not in the vocabulary.
    """
    if not 0 <= start_id < vocab_size:
        raise ConfigError(f"start token {start_id} is not in a vocabulary of {vocab_size}; give the tokenizer's cls_id")
    targets = torch.full((1, vocab_size), label_smoothing / (vocab_size - 2))
    targets[0, start_id] = 0.0
    return targets


def is_smoothed_targets(value: Tensor) -> bool:
    """Whether `value` is a result of `smoothed_targets` for any start token and any label smoothing in (0, 1]."""
    if not value.is_floating_point() or value.ndim != 2 or value.shape[0] != 1 or value.shape[1] < 3:
        return False
    kept = value[value != 0]
    return (
        len(kept) == value.shape[1] - 1
        and bool((kept == kept[0]).all())
        and 0 < kept[0].item() * (value.shape[1] - 2) <= 1.001  # the largest smoothing, in half precision as well
    )


def classifier_shapes(width: int, state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """A perceptron on one fused state, or on two side by side (NLVR2), with as many labels as its last bias has."""
    first, last = state.get("cls_head.0.weight"), state.get("cls_head.3.bias")
    into = 2 * width if first is not None and first.ndim == 2 and first.shape[1] == 2 * width else width
    labels = last.shape[0] if last is not None and last.ndim == 1 else 0
    shapes = {"0.weight": (2 * into, into), "0.bias": (2 * into,), "1.weight": (2 * into,), "1.bias": (2 * into,)}
    shapes |= {"3.weight": (labels, 2 * into), "3.bias": (labels,)}
    return {f"cls_head.{name}": torch.Size(shape) for name, shape in shapes.items()}


def decoder_shapes(bare: X2VLM, whole: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The answer decoder: word embeddings and MLM head again, and fusion layers that attend to fused text.

    With one stack its positions and token types are those of the text layers. With separate encoders it is built from
    the description of the cross encoder, a BERT: their numbers are its own and read from its tables.
    """
    prefixes = {name.split(".")[4] for name in state if name.startswith(f"{DECODER}bert.encoder.layer.")}
    numbers = range(len(prefixes))  # any other number than these is an unexpected entry
    shapes: dict[str, torch.Size] = {}
    separate = bare.word_head.decoder is not None
    prefix, words = ("text_encoder.", "mlm_head.") if separate else ("text_encoder.bert.", "text_encoder.cls.")
    first = "cross_encoder.encoder.layer.0." if separate else f"{prefix}encoder.layer.{bare.config.text.num_layers}."
    width = bare.config.text.width
    for name, value in whole.items():
        if name.startswith(f"{prefix}embeddings."):
            shapes[f"{DECODER}bert." + name.removeprefix(prefix)] = value.shape
        elif name.startswith(words):
            shapes[f"{DECODER}cls." + name.removeprefix(words)] = value.shape
        elif name.startswith(first):
            part = name.removeprefix(first)
            is_key = part in ("crossattention.self.key.weight", "crossattention.self.value.weight")
            for number in numbers:
                shape = torch.Size((width, width)) if is_key else value.shape
                shapes[f"{DECODER}bert.encoder.layer.{number}.{part}"] = shape
    return shapes | (_own_tables(width, state) if separate else {})


def _own_tables(width: int, state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes of the decoder's tables: rows as in the file, where another width or rank is an error."""
    embeddings = f"{DECODER}bert.embeddings."
    shapes = {}
    for table in ("position_embeddings", "token_type_embeddings"):
        value = state.get(f"{embeddings}{table}.weight")
        if value is not None and value.ndim == 2 and value.shape[0]:
            shapes[f"{embeddings}{table}.weight"] = torch.Size((value.shape[0], width))
    if f"{embeddings}position_embeddings.weight" in shapes:
        num_positions = shapes[f"{embeddings}position_embeddings.weight"][0]
        shapes[f"{embeddings}position_ids"] = torch.Size((1, num_positions))
    return shapes
