"""Pairs of sentences in two languages: three losses, no image weights, no negatives of equal meaning."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from tests.support.models.tiny import tiny_batch, tiny_model, tiny_text
from x2vlm.errors import ConfigError
from x2vlm.models.config import VisionConfig
from x2vlm.objectives.parallel_text import parallel_text_losses


def sentences(model, seed=5):
    torch.manual_seed(seed)
    ids, mask = tiny_text()
    return tiny_batch("text"), torch.randint(5, 50, ids.shape) * mask.roll(1, 0), mask.roll(1, 0)


def equal_widths():
    return tiny_model(vision=VisionConfig(image_res=64, width=16, depth=1, num_heads=2), num_frames=None)


def test_sentence_pairs_have_all_three_losses_and_reach_no_image_weights():
    model = equal_widths()
    batch, other_ids, other_mask = sentences(model)
    losses = parallel_text_losses(model, batch, other_ids, other_mask)
    assert set(losses) == {"contrastive", "matching", "masked_lm"}
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in model.vision.parameters())
    assert model.fusion.layers[0].cross_attention.key.weight.grad.abs().sum() > 0


def test_padding_of_either_sentence_changes_nothing():
    model = equal_widths()
    batch, other_ids, other_mask = sentences(model)
    negatives = (torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))
    first = parallel_text_losses(model, batch, other_ids, other_mask, negatives)
    pad = torch.nn.functional.pad
    longer = replace(
        batch,
        text_ids_BL=pad(batch.text_ids_BL, (0, 3), value=9),
        masked_ids_BL=pad(batch.masked_ids_BL, (0, 3), value=9),
        text_mask_BL=pad(batch.text_mask_BL, (0, 3)),
    )
    second = parallel_text_losses(model, longer, pad(other_ids, (0, 2), value=8), pad(other_mask, (0, 2)), negatives)
    for name, value in first.items():
        assert_close(second[name], value, atol=1e-5, rtol=0, msg=name)


def test_sentence_pairs_need_equal_widths():
    model = tiny_model()
    batch, other_ids, other_mask = sentences(model)
    with pytest.raises(ConfigError, match="equal widths"):
        parallel_text_losses(model, batch, other_ids, other_mask)


def test_equal_meanings_are_never_negatives_of_each_other():
    model = equal_widths()
    batch, other_ids, other_mask = sentences(model)
    losses = parallel_text_losses(model, replace(batch, image_ids_B=torch.tensor([3, 3, 3])), other_ids, other_mask)
    assert losses["matching"].item() == 0
