"""Initialisation from published backbones: BEiT-2 (or CLIP's ViT, or Swin) for the image tower, BERT or XLM-R for text.

BERT layers are used twice: text layer i takes layer i, and the fusion layers take the last layers again, so that base
(12 text + 6 fusion) reads BERT layers 0-11 and 6-11. Cross-attention, projections, heads and temperature are not
pretrained: the report lists them as missing, and they are trained with the larger learning rate.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import timm
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.models.checkpoints.reference import LoadReport, load_reference_state
from x2vlm.models.checkpoints.weights import read_tensors
from x2vlm.models.x2vlm import X2VLM

log = logging.getLogger(__name__)

# Entries of backbones that this model does not use. BEiT's `norm` is for its class token, that of others for all.
_VISION_LEFTOVERS = {
    "beit2": re.compile(r"^(head|lm_head|norm)\.|^mask_token$|relative_position_index$"),
    "clip_vit": re.compile(r"^(head|fc_norm)\."),
    "swin": re.compile(r"^head\.|(relative_position_index|attn_mask)$"),
}
_TEXT_LEFTOVERS = re.compile(r"^(pooler|cls\.seq_relationship|lm_head)\.|position_ids$")
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


def initialize(model: X2VLM, vision: str | Path | None = None, text: str | Path | None = None) -> LoadReport:
    """Fills `model` from an image and a text backbone; the report lists loaded and missing entries by reference name.

    `vision` is a timm model name or a weight file (.safetensors, .pth), `text` a hub name or a local folder of a
    transformers model. None leaves that side at its random initialisation. Position tables of another resolution are
    resized. SourceUnavailable if a backbone cannot be read, ConfigError if its shapes do not match the model.
    """
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    origins: dict[str, str] = {}
    if vision is not None:
        raw = read_vision_backbone(vision)
        found, left = vision_state(raw, model.config.vision.depth, model.config.vision.backbone)
        state, unused = state | found, unused + left
        origins |= _origins(found, raw, str(vision))
    if text is not None:
        cfg = model.config
        # A multilingual model takes its fusion layers from an X2-VLM checkpoint, not from its text encoder.
        num_fusion = cfg.fusion.num_layers if cfg.text.architecture == "bert" else 0
        raw = read_text_backbone(text)
        found, left = text_state(raw, cfg.text.num_layers, num_fusion)
        if not cfg.tie_words:
            found = {name: value for name, value in found.items() if ".cls." not in name}
        state, unused = state | found, unused + left
        origins |= _origins(found, raw, str(text))
    report = load_reference_state(model, state)
    report.unexpected += unused
    report.origins = {name: origins[name] for name in report.loaded if name in origins}
    log.info(
        "initialized vision=%s text=%s loaded=%d new=%d resized=%d unused=%d",
        vision, text, len(report.loaded), len(report.missing), len(report.resized), len(report.unexpected),
    )  # fmt: skip
    return report


def _origins(state: Mapping[str, Tensor], raw: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """The entry of `source` behind each entry of `state`; they are the same tensors."""
    names = {id(value): name for name, value in raw.items()}
    return {name: f"{source}: {names[id(value)]}" for name, value in state.items()}


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
    """A BERT-like state as the reference's stack of `num_text` + `num_fusion` layers, and the names left out."""
    named = {_modern_text_name(key): value for key, value in raw.items()}
    state: dict[str, Tensor] = {}
    by_layer: dict[int, dict[str, Tensor]] = {}
    unused: list[str] = []
    for key, value in named.items():
        layer = re.match(r"encoder\.layer\.(\d+)\.(.*)", key)
        if layer:
            by_layer.setdefault(int(layer[1]), {})[layer[2]] = value
        elif _TEXT_LEFTOVERS.search(key):
            unused.append(key)
        else:
            state[f"text_encoder.{'' if key.startswith('cls.') else 'bert.'}{key}"] = value
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


def read_vision_backbone(source: str | Path) -> dict[str, Tensor]:
    """The state of a weight file or of a pretrained timm model."""
    path = Path(source)
    if path.is_file():
        return read_tensors(path)[0]
    if not timm.is_model(str(source)):
        raise SourceUnavailable(f"vision backbone {source}: neither a weight file nor a model name that timm knows")
    return dict(timm.create_model(str(source), pretrained=True).state_dict())


def read_text_backbone(source: str | Path) -> dict[str, Tensor]:
    """The state of a transformers model, with its MLM head if it has one."""
    try:
        return dict(AutoModelForMaskedLM.from_pretrained(source).state_dict())
    except ValueError:  # this architecture has no masked-token variant
        return dict(AutoModel.from_pretrained(source).state_dict())
    except OSError as error:
        raise SourceUnavailable(f"text backbone {source}: {error}") from error


def _modern_text_name(key: str) -> str:
    for prefix in ("bert.", "roberta."):
        key = key.removeprefix(prefix)
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
