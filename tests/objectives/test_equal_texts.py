"""Rows with equal texts are no negatives of each other, where that is asked for."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.training.steps import mixed_step, step_model
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.losses import contrastive, text_keys
from x2vlm.objectives.negatives import draw_negatives
from x2vlm.objectives.step import step_losses


def naive(image, text, temperature, keys, ids):
    """Row by row, over the rows that count."""
    total, count = 0.0, len(keys)
    for first, second in ((image, text), (text, image)):
        for row in range(count):
            others = [other for other in range(count) if ids[other] == ids[row] or keys[other] != keys[row]]
            logits = {other: float(first[row] @ second[other]) / temperature for other in others}
            norm = math.log(sum(math.exp(value) for value in logits.values()))
            targets = [other for other in range(count) if ids[other] == ids[row]]
            total -= sum(logits[target] - norm for target in targets) / len(targets)
    return total / count / 2


@pytest.mark.parametrize("ids", [None, [0, 1, 1, 3, 4, 0]], ids=["rows", "images"])
def test_the_contrastive_loss_leaves_equal_texts_out(ids):
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 4), dim=1).requires_grad_() for _ in range(2))
    keys = [5, 7, 5, 5, 8, 7]
    numbers = None if ids is None else torch.tensor(ids)
    loss = contrastive(image, text, torch.tensor(0.2), image_ids_B=numbers, text_keys_B=torch.tensor(keys))
    expected = naive(image.detach().double(), text.detach().double(), 0.2, keys, ids or range(6))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert image.grad.isfinite().all()
    assert text.grad.isfinite().all()
    distinct = contrastive(image, text, torch.tensor(0.2), image_ids_B=numbers, text_keys_B=torch.arange(6))
    plain = contrastive(image, text, torch.tensor(0.2), image_ids_B=numbers)
    assert distinct.item() == pytest.approx(plain.item(), abs=1e-6)
    assert abs(loss.item() - plain.item()) > 1e-2


def test_keys_are_equal_for_equal_tokens_only():
    ids = torch.tensor([[2, 9, 8, 3, 0], [2, 9, 8, 3, 7], [2, 8, 9, 3, 0], [2, 9, 8, 0, 0], [2, 9, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]] * 3 + [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()
    keys = text_keys(ids, mask)
    assert keys[0] == keys[1]  # padding does not count, whatever is in it
    assert len(set(keys.tolist())) == 4
    longer = torch.nn.functional.pad(ids, (0, 9), value=1), torch.nn.functional.pad(mask, (0, 9))
    assert torch.equal(text_keys(*longer), keys)
    torch.manual_seed(0)
    many = torch.randint(0, 30000, (20000, 12)).unique(dim=0)
    assert len(text_keys(many, torch.ones_like(many)).unique()) == len(many)


def test_equal_texts_are_never_drawn_as_negatives():
    torch.manual_seed(1)
    image, text = torch.randn(8, 4), torch.randn(8, 4)
    keys = torch.tensor([1, 1, 1, 2, 2, 3, 4, 4])
    for _ in range(40):
        images, texts, has = draw_negatives(image, text, torch.tensor(0.5), text_keys_B=keys)
        assert has.all()
        assert (keys[images] != keys).all()
        assert (keys[texts] != keys).all()
    *_, has = draw_negatives(image, text, torch.tensor(0.5), text_keys_B=torch.ones(8))
    assert not has.any()


def test_the_setting_changes_a_step_with_equal_texts_only():
    images, model = mixed_step()[0]["images"], step_model()
    twice = torch.tensor([0, 0, 2, 3, 4, 5])
    repeated = replace(
        images,
        text_ids_BL=images.text_ids_BL[twice],
        text_mask_BL=images.text_mask_BL[twice],
        masked_ids_BL=images.masked_ids_BL[twice],
        masked_positions_BK=images.masked_positions_BK[twice],
        masked_labels_BK=images.masked_labels_BK[twice],
        lengths=tuple(images.lengths[row] for row in twice.tolist()),
        num_masked=None,
    )

    def loss(batch, exclude):
        objective = ObjectiveConfig(exclude_equal_texts=exclude)
        return step_losses(model, {"image": batch}, {"image": objective})["image"]["contrastive"]

    torch.testing.assert_close(loss(images, True), loss(images, False))
    assert loss(repeated, True) < loss(repeated, False) - 1e-3
