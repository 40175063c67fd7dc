"""Heads of downstream tasks under the reference's names: their state, filling them, and where a new decoder starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.reference import head_names, reference_names
from x2vlm.models.checkpoints.task_parts import DECODER

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.models.x2vlm import X2VLM

_LAYER = f"{DECODER}bert.encoder.layer."
_EMBEDDINGS = f"{DECODER}bert.embeddings."
_WORDS = f"{DECODER}cls.predictions."
# Their inputs are image tokens in a fusion layer and text in a decoder.
_READS_OTHERS = ("crossattention.self.key.", "crossattention.self.value.")


def head_state(head: nn.Module) -> dict[str, Tensor]:
    """Every entry that a reference checkpoint has for this head: constants and tied duplicates included."""
    parameters = dict(head.named_parameters())
    state = {reference: parameters[name].detach() for name, reference in head_names(head).items()}
    positions = state.get(f"{_EMBEDDINGS}position_embeddings.weight")
    if positions is None:
        return state
    state[f"{_EMBEDDINGS}position_ids"] = torch.arange(len(positions), device=positions.device)[None]
    state.setdefault(f"{_WORDS}decoder.weight", state[f"{_EMBEDDINGS}word_embeddings.weight"])
    state[f"{_WORDS}decoder.bias"] = state[f"{_WORDS}bias"]
    return state


@torch.no_grad()
def load_head_state(head: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Fills a head from entries under the reference's names. Of tied entries one is enough.

    ConfigError, naming `origin` and the entries, unless they are exactly those of this head, of its shapes.
    """
    own = head_state(head)
    tied = {f"{_WORDS}decoder.bias": f"{_WORDS}bias"}
    if own.get(f"{_WORDS}decoder.weight") is own.get(f"{_EMBEDDINGS}word_embeddings.weight"):
        tied[f"{_WORDS}decoder.weight"] = f"{_EMBEDDINGS}word_embeddings.weight"
    given = {name: value for name, value in state.items() if name not in tied}
    given |= {first: state[second] for second, first in tied.items() if second in state and first not in state}
    parameters = dict(head.named_parameters())
    ours = {reference: name for name, reference in head_names(head).items()}
    problems = [f"missing {name}" for name in sorted(set(ours) - set(given))]
    problems += [f"unexpected {name}" for name in sorted(set(state) - set(own))]
    problems += [
        f"{name} has shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in given.items()
        if name in own and value.shape != own[name].shape
    ]
    problems += [
        f"{second} differs from {first}, with which it is one parameter"
        for second, first in tied.items()
        if second in state and first in state and not torch.equal(state[second], state[first])
    ]
    if problems:
        raise ConfigError(f"{origin}: not the head that was expected: {'; '.join(problems[:20])}")
    for reference, name in ours.items():
        parameters[name].copy_(given[reference])


@torch.no_grad()
def start_decoder(model: TaskModel) -> dict[str, str | None]:
    """Fills a new decoder from the pre-trained model below it, as the reference does; returns `decoder_origins`."""
    assert model.head is not None
    origins = decoder_origins(model)
    sources = {reference: name for name, reference in reference_names(model.base).items()}
    of_base, of_head = dict(model.base.named_parameters()), dict(model.head.named_parameters())
    for name, reference in head_names(model.head).items():
        source = origins[reference]
        if source is not None:
            of_head[name].copy_(of_base[sources[source]])
    return origins


def decoder_origins(model: TaskModel) -> dict[str, str | None]:
    """The pre-trained entry that every parameter of the decoder starts from, None if it starts anew.

    Layers are the fusion layers (`decoder_layer_sources`). Their keys and values of cross-attention read image tokens
    there and text here: where the two differ in width, these four parameters start anew. With one stack of layers the
    decoder has the word, position and type embeddings of the text tower and its whole MLM head. With separate encoders
    (the multilingual models) embeddings and MLM head start anew.
    """
    base = model.base
    names = set(reference_names(base).values())
    is_stack = base.word_head.decoder is None
    origins: dict[str, str | None] = {}
    assert model.head is not None
    references = list(head_names(model.head).values())
    num_layers = len({name.split(".")[4] for name in references if name.startswith(_LAYER)})
    sources = decoder_layer_sources(base.config.text.num_layers, base.config.fusion.num_layers, num_layers)
    changes_width = base.config.vision.width != base.config.text.width
    for name in references:
        if name.startswith(_LAYER):
            number, part = name.removeprefix(_LAYER).split(".", 1)
            is_new = changes_width and part.startswith(_READS_OTHERS)
            origins[name] = None if is_new else _fusion_entry(base, sources[int(number)], part)
        else:
            source = name.replace(DECODER, "text_encoder.", 1)
            origins[name] = source if is_stack and source in names else None
    return origins


def _fusion_entry(base: X2VLM, number: int, part: str) -> str:
    if base.word_head.decoder is None:
        return f"text_encoder.bert.encoder.layer.{base.config.text.num_layers + number}.{part}"
    return f"cross_encoder.encoder.layer.{number}.{part}"


def decoder_layer_sources(num_text: int, num_fusion: int, num_layers: int) -> list[int]:
    """The number of the fusion layer that each layer of a decoder starts from.

    As many layers as there are fusion layers: one to one. Half of them: those whose number in the whole stack of text
    and fusion layers is odd (13, 15, 17 of 12 to 17), in that order; of an odd number of fusion layers that may be one
    more than half. ConfigError for any other depth.
    """
    if num_layers == num_fusion:
        return list(range(num_fusion))
    odd = [number for number in range(num_fusion) if (num_text + number) % 2]
    if num_layers in (num_fusion // 2, len(odd)) and 0 < num_layers <= len(odd):
        return odd[:num_layers]
    depths = f"{num_fusion} layers" + (f" or half of them, {num_fusion // 2}" if num_fusion > 1 else "")
    raise ConfigError(
        f"a decoder of {num_layers} layers cannot start from {num_fusion} fusion layers: it has {depths}; change "
        "decoder_layers"
    )
