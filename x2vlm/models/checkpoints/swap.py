"""Another text encoder below a pre-trained model: the start of the multilingual models (X2-VLM 4.5).

Image tower, fusion layers, projections, heads, temperature and the transform of the MLM head (its weights are between
fusion layers and vocabulary) are those of the checkpoint. Text layers, embeddings, and what depends on the vocabulary
go: the output matrix and the bias of the MLM head start anew, as in the reference.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from torch import Tensor

from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.backbones import Backbone
from x2vlm.models.checkpoints.initialize import checked_text_state, entry_origins
from x2vlm.models.checkpoints.reference import LoadReport, load_reference_state
from x2vlm.models.checkpoints.weights import without_wrappers
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import X2VLM

log = logging.getLogger(__name__)

_STACK_LAYER = re.compile(r"text_encoder\.(?:bert\.|roberta\.)?encoder\.layer\.(\d+)\.(.*)")
_TRANSFORM = re.compile(r"(?:text_encoder\.cls|mlm_head)\.predictions\.(transform\..*)")
# The answer decoder of a fine-tuned model is a copy of the fusion layers made for another task.
_LEFT = ("text_encoder.", "mlm_head.", "text_decoder.", "cls_head.", "crit_mask_lm_smoothed.")


def swapped_config(config: ModelConfig, text: Backbone) -> ModelConfig:
    """The sizes of a model of `config` with the encoder `text`, as its description (config.json) says them.

    ConfigError for another architecture than XLM-R, another width, and a description that lacks a size.
    """
    found = text.config
    if found.get("model_type") != "xlm-roberta":
        raise ConfigError(f"{text.where}: its config.json says model_type {found.get('model_type')!r}, not xlm-roberta")
    if found.get("hidden_size") != config.text.width:
        raise ConfigError(
            f"{text.where}: has a width of {found.get('hidden_size')}, the fusion layers take {config.text.width}; "
            "take the encoder of the model's size (XLM-R base for base, large for large)"
        )
    if missing := [theirs for theirs in _SIZES if theirs not in found]:
        raise ConfigError(f"{text.where}: its config.json lacks {', '.join(missing)}")
    sizes = {ours: found[theirs] for theirs, ours in _SIZES.items()}
    changed = config.text.model_dump() | sizes | {"architecture": "xlm-roberta"}
    return ModelConfig.model_validate(config.model_dump() | {"text": changed, "tie_words": False})


_SIZES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab_size",
    "pad_token_id": "pad_id",
    "layer_norm_eps": "layer_norm_eps",
}


def load_swapped(model: X2VLM, checkpoint: Backbone, text: Backbone) -> LoadReport:
    """Fills `model`, whose text tower has the sizes of `text`, from a checkpoint under reference names and from `text`.

    The checkpoint may have any number of text layers and be of any kind with fusion layers. The report names both
    files' entries; what was left of the checkpoint is under `unexpected`. ConfigError as in `load_reference_state` and
    `checked_text_state`, and if the checkpoint has no layer with cross-attention.
    """
    kept, left = state_without_text(checkpoint.state, checkpoint.where)
    transform = model.word_head.transform.weight.shape
    if kept.get(_TRANSFORM_WEIGHT, model.word_head.transform.weight).shape != transform:
        log.warning("swap_text transform_shape=%s: another width, it starts anew", tuple(transform))
        dropped = {name for name in kept if name.startswith(_TRANSFORM_PREFIX)}
        kept = {name: value for name, value in kept.items() if name not in dropped}
    found, unused = checked_text_state(text, model.config, num_fusion=0)
    found = {name: value for name, value in found.items() if ".cls." not in name}
    origins = entry_origins(kept, checkpoint) | entry_origins(found, text)
    report = load_reference_state(model, kept | found)
    report.unexpected += left + unused
    report.origins = {name: origins[key] for name, key in report.origins.items()}
    log.info(
        "swapped_text checkpoint=%s text=%s loaded=%d new=%d",
        checkpoint.origin, text.origin, len(report.loaded), len(report.missing),
    )  # fmt: skip
    return report


_TRANSFORM_PREFIX = "mlm_head.predictions."
_TRANSFORM_WEIGHT = f"{_TRANSFORM_PREFIX}transform.dense.weight"


def state_without_text(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The part of a reference state that outlives a swap, fusion layers as `cross_encoder.*`, and the names left out.

    In a stack the fusion layers are those from the first with cross-attention on. ConfigError if there is none.
    """
    names = {without_wrappers(key): key for key in state}
    is_separate = any(name.startswith("cross_encoder.") for name in names)
    stack = {name: found for name in names if (found := _STACK_LAYER.match(name))}
    crossing = {int(found[1]) for found in stack.values() if found[2].startswith("crossattention.")}
    if not is_separate and not crossing:
        raise ConfigError(
            f"{where}: no layer has cross-attention: not a checkpoint of an X2-VLM whose text encoder could be swapped"
        )
    kept: dict[str, Tensor] = {}
    left: list[str] = []
    for name, key in names.items():
        transform = _TRANSFORM.match(name)
        if transform:
            kept[_TRANSFORM_PREFIX + transform[1]] = state[key]
        elif not is_separate and name in stack and int(stack[name][1]) >= min(crossing):
            index = int(stack[name][1]) - min(crossing)
            kept[f"cross_encoder.encoder.layer.{index}.{stack[name][2]}"] = state[key]
        elif name.startswith(_LEFT):
            left.append(key)
        else:
            kept[name] = state[key]
    return kept, sorted(left)
