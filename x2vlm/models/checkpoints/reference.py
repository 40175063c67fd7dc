"""Conversion between parameter names of the reference's checkpoints and ours: loading and exporting states.

Supported kinds: pre-training (`text_encoder.bert.*`, one stack of text and fusion layers, tied word embeddings),
fine-tuned (`text_encoder.*` without `bert.`), and separate encoders (`cross_encoder.*`, `mlm_head.*`, untied).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from x2vlm.errors import ConfigError
from x2vlm.models.blocks.position_bias import resize_position_bias, resize_window_bias
from x2vlm.models.checkpoints.task_parts import DECODER
from x2vlm.models.checkpoints.weights import without_wrappers

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.models.x2vlm import X2VLM

# Parts of one of our fusion layers and of one of the reference's BERT layers.
_LAYER_PARTS = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "feed_forward.inner": "intermediate.dense",
    "feed_forward.outer": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
_TOP_LEVEL = {
    "temperature": "temp",
    "frame_position": "absolute_frame_pos_embed",
    "vision.trunk.": "vision_encoder.",
    "vision.temporal.": "vision_temporal.",  # only in our model: the reference averages frames
    "vision_proj.": "vision_proj.",
    "text_proj.": "text_proj.",
    "match_head.": "itm_head.",
    "box_head.": "bbox_head.",
}
_WORD_HEAD = {
    "word_head.transform.": "transform.dense.",
    "word_head.norm.": "transform.LayerNorm.",
    "word_head.decoder.": "decoder.",
    "word_head.bias": "bias",
}
_EMBEDDINGS = {
    "embeddings.words.": "word_embeddings.",
    "embeddings.positions.": "position_embeddings.",
    "embeddings.types.": "token_type_embeddings.",
    "embeddings.norm.": "LayerNorm.",
}
# Integer constants the reference stores beside its parameters; ours are computed.
_CONSTANTS = re.compile(r"(relative_position_index|position_ids|attn_mask)$")
# Parts of fine-tuned checkpoints that this model does not have; downstream tasks build and load them.
_TASK_HEADS = re.compile(r"^(cls_head|text_decoder|crit_mask_lm_smoothed)\.")
_TABLE = "relative_position_bias_table"
_FRAME_TABLES = ("absolute_frame_pos_embed", "vision_temporal.frame_embedding")


@dataclass
class LoadReport:
    """The result of a load, in reference names: loaded, missing and unexpected entries.

    `origins`: the entry that each parameter was loaded from, by its name in the state or, as "<file>: <name>", in one
    of several files.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)


def reference_names(model: X2VLM) -> dict[str, str]:
    """Our parameter name -> the reference's, for every parameter once (tied ones under their first name)."""
    names = {}
    for name, _ in model.named_parameters():
        # A weight with a low-rank term (`x2vlm.tasks.training.lora`) and the two parameters of the term.
        plain, _, own = name.partition(".parametrizations.weight.")
        whole = f"{plain}.weight" if own else plain
        names[name] = _reference_name(model, whole) + (f".{own}" if own not in ("", "original") else "")
    return names


def trained_names(model: X2VLM | TaskModel) -> dict[str, str]:
    """`reference_names` of a model in training: a task's model has those of its base and of its head."""
    base = getattr(model, "base", None)
    if base is None:
        return reference_names(model)  # type: ignore[arg-type]
    names = {f"base.{name}": reference for name, reference in reference_names(base).items()}
    if isinstance(model.head, nn.Module):
        names |= {f"head.{name}": reference for name, reference in head_names(model.head).items()}
    return {name: names.get(name, name) for name, _ in model.named_parameters()}


def head_names(head: nn.Module) -> dict[str, str]:
    """Our parameter name within the head of a task -> the reference's; tied ones under their first name."""
    prefix = str(getattr(head, "reference_prefix", ""))
    rename = _decoder_name if prefix == DECODER else lambda name: prefix + name.removeprefix("layers.")
    return {name: rename(name) for name, _ in head.named_parameters()}


def _decoder_name(name: str) -> str:
    for ours, theirs in _WORD_HEAD.items():
        if name.startswith(ours):
            return f"{DECODER}cls.predictions.{theirs}{name.removeprefix(ours)}"
    for ours, theirs in _EMBEDDINGS.items():
        if name.startswith(ours):
            return f"{DECODER}bert.embeddings.{theirs}{name.removeprefix(ours)}"
    _, _, index, rest = name.split(".", 3)
    part, leaf = rest.rsplit(".", 1)
    return f"{DECODER}bert.encoder.layer.{index}.{_LAYER_PARTS[part]}.{leaf}"


@torch.no_grad()
def load_reference_state(model: X2VLM, state: Mapping[str, Tensor]) -> LoadReport:
    """Fills `model` from a reference checkpoint's `model` entry and reports what was loaded.

    Position tables of another resolution are resized, frame positions and frame embeddings cut to the common count, all
    listed under `resized`. Heads of downstream tasks are listed under `unexpected`, parameters without a value under
    `missing`. Prefixes of wrappers (`module.`) are no part of a name.
    ConfigError, before anything is changed, for unknown keys, values that are no finite numbers, shapes that do not
    fit, and entries of one parameter that differ.
    """
    ours = {reference: name for name, reference in reference_names(model).items()}
    keys = _keys_by_name(model, state)
    named = {name: state[key] for name, key in keys.items()}
    report = LoadReport(unexpected=sorted(key for key in named if _TASK_HEADS.match(key)))
    unexplained = sorted(set(named) - set(ours) - set(report.unexpected))
    if unexplained:
        raise ConfigError(f"reference state: {len(unexplained)} key(s) this model has no place for: {unexplained}")
    parameters = dict(model.named_parameters())
    fitted = {}
    for reference, name in ours.items():
        if reference not in named:
            report.missing.append(reference)
            continue
        value, target = named[reference], parameters[name]
        fitted[name] = _fit(reference, value, target)
        report.loaded.append(reference)
        report.origins[reference] = keys[reference]
        if value.shape != target.shape:
            report.resized.append(reference)
    for name, value in fitted.items():
        parameters[name].copy_(value)
    return report


def export_reference_state(model: X2VLM) -> dict[str, Tensor]:
    """The model's state under the reference's names, constants and tied duplicates included.

    Tied word embeddings give the pre-training layout, untied ones the layout with separate encoders. Tensors share
    memory with the model where possible. ConfigError if the reference's code cannot run the model: it can only average
    frames.
    """
    if model.vision.temporal is not None:
        raise ConfigError(
            "vision.temporal is attention: the reference has no attention over time and would silently average frames; "
            "save this model with x2vlm.inference.pretrained.save_pretrained, or export one with vision.temporal: mean"
        )
    return named_state(model)


def named_state(model: X2VLM) -> dict[str, Tensor]:
    """`export_reference_state`, including parts the reference lacks: the input of `load_reference_state`."""
    parameters = dict(model.named_parameters())
    state = {reference: parameters[name].detach() for name, reference in reference_names(model).items()}
    for name, buffer in model.vision.trunk.named_buffers():
        if name.endswith("relative_position_index"):
            state[f"vision_encoder.{name}"] = buffer
    embeddings, words = _text_prefix(model) + "embeddings.", _words_prefix(model)
    positions = model.config.text.max_positions
    state[embeddings + "position_ids"] = torch.arange(positions, device=model.temperature.device).expand(1, -1)
    if model.word_head.decoder is None:
        state[words + "decoder.weight"] = state[embeddings + "word_embeddings.weight"]
    state[words + "decoder.bias"] = state[words + "bias"]
    return state


def _text_prefix(model: X2VLM) -> str:
    return "text_encoder.bert." if model.word_head.decoder is None else "text_encoder."


def _words_prefix(model: X2VLM) -> str:
    return "text_encoder.cls.predictions." if model.word_head.decoder is None else "mlm_head.predictions."


def _reference_name(model: X2VLM, name: str) -> str:
    for ours, theirs in _TOP_LEVEL.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    for ours, theirs in _WORD_HEAD.items():
        if name.startswith(ours):
            return _words_prefix(model) + theirs + name.removeprefix(ours)
    if name.startswith("text.encoder."):
        return _text_prefix(model) + name.removeprefix("text.encoder.")
    _, _, index, rest = name.split(".", 3)
    part, leaf = rest.rsplit(".", 1)
    if model.word_head.decoder is not None:
        return f"cross_encoder.encoder.layer.{index}.{_LAYER_PARTS[part]}.{leaf}"
    depth = model.config.text.num_layers + int(index)
    return f"text_encoder.bert.encoder.layer.{depth}.{_LAYER_PARTS[part]}.{leaf}"


def _canonical_name(model: X2VLM, key: str) -> str:
    """`key` of any kind of checkpoint, as this model's own export names it."""
    words = re.match(r"(text_encoder\.cls|mlm_head)\.predictions\.(.*)", key)
    if words:
        return _words_prefix(model) + words[2]
    layer = re.match(r"(text|cross)_encoder\.(?:bert\.|roberta\.)?encoder\.layer\.(\d+)\.(.*)", key)
    if layer:
        num_text = model.config.text.num_layers
        depth = int(layer[2]) + (num_text if layer[1] == "cross" else 0)
        if depth >= num_text and model.word_head.decoder is not None:
            return f"cross_encoder.encoder.layer.{depth - num_text}.{layer[3]}"
        return f"{_text_prefix(model)}encoder.layer.{depth}.{layer[3]}"
    embeddings = re.match(r"text_encoder\.(?:bert\.|roberta\.)?embeddings\.(.*)", key)
    return f"{_text_prefix(model)}embeddings.{embeddings[1]}" if embeddings else key


def _keys_by_name(model: X2VLM, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The key in `state` of each parameter's name, constants left out; ConfigError if two of one parameter differ."""
    words = _words_prefix(model)
    tied = {words + "decoder.bias": words + "bias"}
    if model.word_head.decoder is None:
        tied[words + "decoder.weight"] = _text_prefix(model) + "embeddings.word_embeddings.weight"
    keys: dict[str, str] = {}
    # Second names of tied parameters come last, so that a parameter is known by its first.
    named = [(_canonical_name(model, without_wrappers(key)), key) for key in state if not _CONSTANTS.search(key)]
    for name, key in sorted(named, key=lambda pair: pair[0] in tied):
        first = keys.setdefault(tied.get(name, name), key)
        if first != key and not torch.equal(state[first], state[key]):
            raise ConfigError(f"reference state: {key} and {first} are one parameter but hold different values")
    return keys


def _fit(key: str, value: Tensor, target: Tensor) -> Tensor:
    """`value` in the shape of `target`: tables resized, frame positions cut; ConfigError for any other difference."""
    if not value.is_floating_point() or not bool(value.float().isfinite().all()):
        raise ConfigError(f"reference state: {key} ({value.dtype}) does not hold finite floating-point numbers")
    if value.shape == target.shape:
        return value
    if key.endswith(_TABLE) and value.ndim == 2 and value.shape[1] == target.shape[1]:
        # Only BEiT tables end in rows for a class token; those of Swin windows are full squares.
        if math.isqrt(len(value)) ** 2 == len(value) and math.isqrt(len(target)) ** 2 == len(target):
            return resize_window_bias(value, num_rows=target.shape[0])
        return resize_position_bias(value, num_rows=target.shape[0])
    if key.endswith("pos_embed") and value.shape[-1] == target.shape[-1] and key.startswith("vision_encoder."):
        from timm.layers.pos_embed import resample_abs_pos_embed  # seconds to import, and only CLIP towers need it

        grids = [math.isqrt(x.shape[1] - 1) for x in (target, value)]
        resized: Tensor = resample_abs_pos_embed(value, [grids[0]] * 2, [grids[1]] * 2)
        return resized
    if key in _FRAME_TABLES and value.shape[-1] == target.shape[-1]:
        common = min(value.shape[1], target.shape[1])
        return torch.cat([value[:, :common].to(target), target[:, common:]], dim=1)
    raise ConfigError(f"reference state: {key} has shape {tuple(value.shape)}, the model needs {tuple(target.shape)}")
