"""The box losses against the reference and at boxes that are none."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close

from x2vlm.objectives.box_losses import box_losses, generalised_iou, to_xyxy

TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


def test_boxes_equal_the_reference(golden_dir):
    folder = golden_dir / "data" / "boxes"
    case, arrays = json.loads((folder / "case.json").read_text()), load_file(folder / "tensors.safetensors")
    predicted, target = arrays["pred_cxcywh"].float(), arrays["target_cxcywh"].float()
    assert_close(to_xyxy(predicted), arrays["pred_xyxy"].float(), **TOLERANCE)
    giou = generalised_iou(arrays["pred_xyxy"].float(), arrays["target_xyxy"].float())
    assert_close(giou, arrays["giou_diag"].float(), **TOLERANCE)
    everything = torch.ones(len(predicted), dtype=torch.bool)
    assert_close(torch.stack(box_losses(predicted, target, everything)), torch.tensor(case["loss_all"]), **TOLERANCE)
    regions = box_losses(predicted, target, ~arrays["is_image"].bool())
    assert_close(torch.stack(regions), torch.tensor(case["loss_without_images"]), **TOLERANCE)
    predicted[3, 2] = -0.1
    *_, switched_off = box_losses(predicted, target, everything, "reference")
    *_, kept = box_losses(predicted, target, everything)
    assert switched_off.item() == case["loss_when_row_3_has_negative_width"][1] == 0
    others = (1 - giou)[torch.arange(len(giou)) != 3].sum() / len(giou)
    assert_close(kept, others, **TOLERANCE)


@given(st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8))
def test_box_losses_and_their_gradients_are_always_finite(numbers):
    predicted = torch.tensor([numbers[:4]], requires_grad=True)
    l1, giou = box_losses(predicted, torch.tensor([numbers[4:]]), torch.ones(1, dtype=torch.bool))
    (l1 + giou).backward()
    assert 0 <= giou.item() <= 2 + 1e-5
    assert predicted.grad.isfinite().all()
