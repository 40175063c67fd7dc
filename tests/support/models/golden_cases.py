"""Reads golden cases (numbers made by running the reference) into our own types."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.models.checkpoints.reference import load_reference_state
from x2vlm.models.config import model_config_from_reference
from x2vlm.models.x2vlm import X2VLM, build_model

LOSS_NAMES = {
    "contrastive": "loss_itc",
    "matching": "loss_itm",
    "masked_lm": "loss_mlm",
    "box_l1": "loss_bbox",
    "box_giou": "loss_giou",
}


@dataclass(frozen=True)
class Case:
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def negatives(self) -> tuple[Tensor, Tensor]:
        return self.tensors["out.image_neg_idx"], self.tensors["out.text_neg_idx"]


def read_case(folder: Path) -> Case:
    """The case in `folder`; one without arrays has no tensors.safetensors."""
    arrays = folder / "tensors.safetensors"
    return Case(json.loads((folder / "case.json").read_text()), load_file(arrays) if arrays.exists() else {})


def read_model(folder: Path) -> X2VLM:
    """The small model of the golden cases, in evaluation mode."""
    model = build_model(model_config_from_reference(json.loads((folder / "config.json").read_text())))
    report = load_reference_state(model, load_file(folder / "model.safetensors"))
    assert not report.missing
    assert not report.unexpected
    return model.eval()


def to_batch(case: Case) -> Batch:
    """The case's inputs as a Batch, its kind seen from which arrays there are."""
    arrays = {name.removeprefix("in."): value for name, value in case.tensors.items() if name.startswith("in.")}
    pixels = arrays.get("image")
    common = {
        "keys": [str(row) for row in range(len(arrays["text_ids"]))],
        "text_ids_BL": arrays["text_ids"],
        "text_mask_BL": arrays["text_atts"],
        "masked_ids_BL": arrays["text_ids_masked"],
        "masked_positions_BK": arrays["masked_pos"],
        "masked_labels_BK": arrays["masked_ids"],
        "pixels": pixels,
    }
    if pixels is None:
        return Batch(kind="text", **common)
    if pixels.ndim == 5:
        return Batch(kind="video", **common)
    if "idx_to_group_img" not in arrays:
        return Batch(kind="image", **common)
    rows = len(arrays["text_ids"])
    return Batch(
        kind="region",
        image_of_R=arrays["idx_to_group_img"],
        patch_mask_RP=arrays["image_atts"][:, 1:].bool(),
        box_cxcywh_R4=arrays["target_bbox"],
        is_whole_image_R=arrays.get("is_image", torch.zeros(rows)).bool(),
        **common,
    )
