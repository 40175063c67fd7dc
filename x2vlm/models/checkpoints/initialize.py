"""Initialisation from published backbones: BEiT-2 (or CLIP's ViT, or Swin) for the image tower, BERT or XLM-R for text.

BERT layers are used twice: text layer i takes layer i, and the fusion layers take the last layers again, so that base
(12 text + 6 fusion) reads BERT layers 0-11 and 6-11. Cross-attention, projections, heads and temperature are not
pretrained: the report lists them as missing, and they are trained with the larger learning rate.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.backbones import (
    TEXT_HEADS,
    Backbone,
    missing_text_entries,
    read_text_backbone,
    read_vision_backbone,
    text_names,
    unexplained_text_entries,
)
from x2vlm.models.checkpoints.reference import LoadReport, load_reference_state
from x2vlm.models.checkpoints.weights import without_wrappers
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import X2VLM

log = logging.getLogger(__name__)

# Entries of backbones that this model does not use. BEiT's `norm` is for its class token, that of others for all.
_VISION_LEFTOVERS = {
    "beit2": re.compile(r"^(head|lm_head|norm)\.|^mask_token$|relative_position_index$"),
    "clip_vit": re.compile(r"^(head|fc_norm)\."),
    "swin": re.compile(r"^head\.|(relative_position_index|attn_mask)$"),
}
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
# Descriptions of transformers that compute what a text tower of ours computes.
_MODEL_TYPES = {"bert": ("bert",), "xlm-roberta": ("xlm-roberta", "roberta", "camembert")}


def initialize(
    model: X2VLM, vision: str | Path | Backbone | None = None, text: str | Path | Backbone | None = None
) -> LoadReport:
    """Fills `model` from an image and a text backbone; the report lists loaded and missing entries by reference name.

    `vision` is a timm model name or a weight file (.safetensors, .pth), `text` a hub name or a local folder of a
    transformers model. None leaves that side at its random initialisation. Position tables of another resolution are
    resized. SourceUnavailable if a backbone cannot be read, CorruptArtifact if its files are damaged; ConfigError if
    its shapes or its description do not match the model, or its file lacks or has entries that the encoder of a text
    backbone has not.
    """
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    origins: dict[str, str] = {}
    read: list[str] = []
    if vision is not None:
        image = vision if isinstance(vision, Backbone) else read_vision_backbone(vision)
        raw = {without_wrappers(key): value for key, value in image.state.items()}
        found, left = vision_state(raw, model.config.vision.depth, model.config.vision.backbone)
        state, unused = state | found, unused + left
        origins |= entry_origins(found, image)
        read.append(image.where)
    if text is not None:
        words = text if isinstance(text, Backbone) else read_text_backbone(text)
        # A multilingual model takes its fusion layers from an X2-VLM checkpoint, not from its text encoder.
        num_fusion = model.config.fusion.num_layers if model.config.text.architecture == "bert" else 0
        found, left = checked_text_state(words, model.config, num_fusion)
        if not model.config.tie_words:
            found = {name: value for name, value in found.items() if ".cls." not in name}
        state, unused = state | found, unused + left
        origins |= entry_origins(found, words)
        read.append(words.where)
    try:
        report = load_reference_state(model, state)
    except ConfigError as error:
        raise ConfigError(f"start from {' and '.join(read)}: {error}") from error
    report.unexpected += unused
    report.origins = {name: origins[key] for name, key in report.origins.items()}
    log.info(
        "initialized vision=%s text=%s loaded=%d new=%d resized=%d unused=%d",
        *(part.origin if isinstance(part, Backbone) else part for part in (vision, text)),
        len(report.loaded), len(report.missing), len(report.resized), len(report.unexpected),
    )  # fmt: skip
    return report


def entry_origins(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, str]:
    """The entry of `backbone` behind each entry of `state`; they are the same tensors."""
    # Of several names of one tensor the first: tied parameters come again at the end.
    names = {id(value): backbone.entries.get(name, name) for name, value in reversed(backbone.state.items())}
    return {name: f"{backbone.origin}: {names[id(value)]}" for name, value in state.items()}


def checked_text_state(backbone: Backbone, config: ModelConfig, num_fusion: int) -> tuple[dict[str, Tensor], list[str]]:
    """`text_state` of a backbone that has every entry of its encoder and no other, and computes what our tower does.

    ConfigError, naming the entries or the settings, if it does not.
    """
    named = text_names(backbone.state, backbone.where)
    problems = []
    if missing := missing_text_entries(named, backbone.config):
        problems.append(f"{len(missing)} entries of its encoder are missing: {', '.join(missing[:8])}")
    if unexplained := unexplained_text_entries(named):
        problems.append(f"{len(unexplained)} entries are none of a text encoder's: {', '.join(unexplained[:8])}")
    if problems:
        raise ConfigError(
            f"{backbone.where}: {'; '.join(problems)}. A text tower starts from the weights of a BERT or XLM-R as "
            "transformers names them; nothing is filled in for what a file lacks"
        )
    _check_description(backbone, config, num_fusion)
    return text_state(backbone.state, config.text.num_layers, num_fusion)


def _check_description(backbone: Backbone, config: ModelConfig, num_fusion: int) -> None:
    """ConfigError if the folder's description says that the same weights are another function than our tower's.

    Shapes do not tell it: the number of heads, the activation, and where positions start.
    """
    text, described = config.text, backbone.config
    expected = {"num_attention_heads": (text.num_heads, "model.text.num_heads")}
    if text.architecture == "xlm-roberta":  # positions are counted from behind the padding token
        expected["pad_token_id"] = (text.pad_id, "model.text.pad_id")
    wrong = [
        f"{key} is {described[key]!r}, {setting} is {value}"
        for key, (value, setting) in expected.items()
        if key in described and described[key] != value
    ]
    if num_fusion and described.get("num_attention_heads", config.fusion.num_heads) != config.fusion.num_heads:
        wrong.append(
            f"num_attention_heads is {described['num_attention_heads']!r}, model.fusion.num_heads is "
            f"{config.fusion.num_heads}"
        )
    types = _MODEL_TYPES[text.architecture]
    if described.get("model_type", types[0]) not in types:
        wrong.append(f"model_type is {described['model_type']!r}, model.text.architecture is {text.architecture!r}")
    for key, value in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if described.get(key) not in (None, value):
            wrong.append(f"{key} is {described[key]!r}, the text tower has {value!r}")
    if wrong:
        raise ConfigError(
            f"{backbone.where}: the config.json beside it describes another model: {'; '.join(wrong)}; change the "
            "settings, or take another text encoder"
        )
    if (eps := described.get("layer_norm_eps", text.layer_norm_eps)) != text.layer_norm_eps:
        log.warning("text_start layer_norm_eps=%s model.text.layer_norm_eps=%s", eps, text.layer_norm_eps)


def vision_state(raw: Mapping[str, Tensor], depth: int, backbone: str = "beit2") -> tuple[dict[str, Tensor], list[str]]:
    """An image backbone's state under the reference's names, and the names left out.

    One table shared by all blocks is copied into each of them, so that every block can train its own.
    """
    leftovers = _VISION_LEFTOVERS[backbone]
    state = {f"vision_encoder.{key}": value for key, value in raw.items() if not leftovers.search(key)}
    shared = state.pop(f"vision_encoder.{_SHARED_TABLE}", None)
    if shared is not None:
        for index in range(depth):
            state[f"vision_encoder.blocks.{index}.attn.relative_position_bias_table"] = shared
    return state, sorted(key for key in raw if leftovers.search(key))


def text_state(raw: Mapping[str, Tensor], num_text: int, num_fusion: int) -> tuple[dict[str, Tensor], list[str]]:
    """A BERT-like state as the reference's stack of `num_text` + `num_fusion` layers, and the names left out.

    ConfigError if the layers are not numbered from 0 without gaps, or their number fits none of the rules.
    """
    state: dict[str, Tensor] = {}
    by_layer: dict[int, dict[str, Tensor]] = {}
    unused: list[str] = []
    for name, key in text_names(raw, "text backbone").items():
        layer = re.match(r"encoder\.layer\.(\d+)\.(.*)", name)
        if layer:
            by_layer.setdefault(int(layer[1]), {})[layer[2]] = raw[key]
        elif TEXT_HEADS.search(name) and not name.startswith("cls.predictions."):
            unused.append(key)
        else:
            state[f"text_encoder.{'' if name.startswith('cls.') else 'bert.'}{name}"] = raw[key]
    if sorted(by_layer) != list(range(len(by_layer))):
        raise ConfigError(f"text backbone: its layers must count 0, 1, 2, ...; found {sorted(by_layer)[:40]}")
    sources = layer_sources(len(by_layer), num_text, num_fusion)
    for target, source in enumerate(sources):
        for part, value in by_layer[source].items():
            state[f"text_encoder.bert.encoder.layer.{target}.{part}"] = value
    dropped = set(by_layer) - set(sources)
    return state, sorted(unused) + [f"encoder.layer.{index}" for index in sorted(dropped)]


def layer_sources(num_raw: int, num_text: int, num_fusion: int) -> list[int]:
    """Which raw layer each of the text and then fusion layers starts from.

    Equal to all of them: one to one. Twice all of them: every second one (1, 3, 5, ...). Equal to the text layers:
    fusion repeats the last ones. Twice the text layers: every second one, fusion repeats the last of those.
    ConfigError for anything else.
    """
    if num_raw == num_text + num_fusion:
        return list(range(num_raw))
    if num_raw == 2 * (num_text + num_fusion):
        return list(range(1, num_raw, 2))
    if num_raw == num_text and num_fusion <= num_text:
        text = list(range(num_raw))
    elif num_raw == 2 * num_text and num_fusion <= num_text:
        text = list(range(1, num_raw, 2))
    else:
        depths = sorted({num_text, 2 * num_text, num_text + num_fusion, 2 * (num_text + num_fusion)})
        raise ConfigError(
            f"a text backbone of {num_raw} layers cannot start {num_text} text and {num_fusion} fusion layers; "
            f"one of {', '.join(map(str, depths[:-1]))} or {depths[-1]} layers can"
        )
    return text + text[num_text - num_fusion :]
