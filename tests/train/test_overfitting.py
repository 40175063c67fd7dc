"""What can be learned by heart is: every loss of one batch, trained on again and again, comes near its least value."""

from dataclasses import replace

import pytest
import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from x2vlm.data.loading.loader import StepLoader
from x2vlm.models.x2vlm import build_model
from x2vlm.train.config import OptimizerConfig, TrainConfig
from x2vlm.train.optim import build_optimizer
from x2vlm.train.ranks import Ranks
from x2vlm.train.step import Trainer, train_step

STEPS = 300


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, list[float]]:
    """The losses of every step by name, all on one batch of each stream."""
    shards = make_shards(tmp_path_factory.mktemp("shards"))
    data = StepLoader(shards, DATA, TOKENIZER, 32, 16)[0]
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    parts = {
        "vision": MODEL.vision.model_copy(update={"drop_path": 0.0}),
        "text": MODEL.text.model_copy(update=still),
        "fusion": MODEL.fusion.model_copy(update=still),
    }
    torch.manual_seed(0)
    model = build_model(MODEL.model_copy(update=parts))
    settings = TrainConfig(steps=STEPS, warmup_steps=20, precision="float32", optimizer=OptimizerConfig(lr=3e-3))
    streams = {name: (1.0, True) for name in data.batches}
    trainer = Trainer(model, build_optimizer(model, settings.optimizer), settings, Ranks(), 0, streams)
    found: dict[str, list[float]] = {}
    for step in range(STEPS):
        for name, value in train_step(trainer, replace(data, step=step)).read().items():
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize(
    "name",
    [
        *(f"{stream}/{loss}" for stream in ("image", "video") for loss in ("contrastive", "matching", "masked_lm")),
        *("region/masked_lm", "region/box_l1", "region/box_giou"),
    ],
)
def test_a_batch_is_learned_by_heart_in_every_loss(losses, name):
    assert losses[name][0] > 0.5
    assert max(losses[name][-10:]) < 0.02


def test_boxes_over_equal_patches_or_with_equal_texts_are_told_apart_as_far_as_they_can_be(losses):
    """Of four patches an image has few different boxes, and of eight texts some are equal: the loss has a floor."""
    for name in ("region/contrastive", "region/matching"):
        assert sum(losses[name][-10:]) / 10 < 0.6 * losses[name][0]
