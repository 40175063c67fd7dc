"""Where a golden case's model comes from: the nearest description and weights at or above its folder."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.support.models.golden_cases import Case
from x2vlm.models.checkpoints.reference import load_reference_state
from x2vlm.models.config import ModelConfig, model_config_from_reference
from x2vlm.models.x2vlm import X2VLM, build_model

FRAME_POSITION = "absolute_frame_pos_embed"
UNTIED_WORDS = "mlm_head.predictions.decoder.weight"
XLM_PAD_ID = 1


def nearest(folder: Path, name: str) -> Path:
    """The file of that name in `folder` or the nearest folder above it."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"{folder}: no {name} here or in a folder above")


def case_config(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """The reference's description of the case's model: a config.json of its own wins, then its case.json."""
    own = folder / "config.json"
    if own.is_file():
        return json.loads(own.read_text())
    return info["config"] if info.get("config") else json.loads(nearest(folder, "config.json").read_text())


def case_model(folder: Path, case: Case) -> X2VLM:
    """The case's model in evaluation mode, at the resolution of its images; every entry of the weights must fit."""
    state = load_file(nearest(folder, "model.safetensors"))
    norms = case.info.get("grad_norms")
    # Weights may hold frame positions that the case's model was built without, as with another resolution.
    if norms is not None and FRAME_POSITION not in norms:
        state.pop(FRAME_POSITION, None)
    model = build_model(_config(case_config(folder, case.info), case, state))
    report = load_reference_state(model, state)
    if report.missing or report.unexpected:
        raise ValueError(f"weights: {report.missing=}, {report.unexpected=}")
    return model.eval()


def _layers(state: dict[str, Tensor], part: str) -> int:
    prefix = f"{part}_encoder.encoder.layer."
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _is_padded_like_xlm(case: Case) -> bool:
    """Captions padded with 1 were written for XLM-R, whose positions start after that number."""
    name = "in.question" if "in.question_ids" in case.tensors else "in.text"
    padding = case.tensors[f"{name}_ids"][case.tensors[f"{name}_atts"] == 0]
    return len(padding) > 0 and bool((padding == XLM_PAD_ID).all())


def _config(values: dict[str, Any], case: Case, state: dict[str, Tensor]) -> ModelConfig:
    pixels = case.tensors.get("in.image")
    if pixels is not None:
        values = values | {"image_res": pixels.shape[-1]}
    if UNTIED_WORDS in state:  # two modules, whose descriptions may count their layers in another way: count ourselves
        values = values | {"text_only_layers": _layers(state, "text"), "fusion_layers": _layers(state, "cross")}
    num_frames = state[FRAME_POSITION].shape[1] if FRAME_POSITION in state else None
    config = model_config_from_reference(values, num_frames=num_frames, tie_words=UNTIED_WORDS not in state)
    if UNTIED_WORDS in state and (config.text.type_vocab_size == 1 or _is_padded_like_xlm(case)):
        text = config.text.model_copy(update={"architecture": "xlm-roberta", "pad_id": XLM_PAD_ID})
        config = config.model_copy(update={"text": text})
    return config
