"""Training a model that looks over time: it starts as the averaging model, what is new moves, and it resumes."""

import pytest
import torch

from tests.support.training.corpus import MODEL, make_shards
from tests.support.training.runs import CONFIG as TOY_CONFIG
from tests.support.training.runs import run
from x2vlm.models.x2vlm import build_model
from x2vlm.train.config import TrainRuntime

CONFIG = TOY_CONFIG.model_copy(update={"steps": 5, "warmup_steps": 0})
RUNTIME = TrainRuntime(checkpoint_every=2)


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"))


def train(folder, shards, temporal, on_step=None, drop=0.0):
    """Weights and metrics of the toy; without dropout and dropped paths nothing but the model itself is random."""
    vision = MODEL.vision.model_copy(update={"temporal": temporal, "drop_path": drop})
    text, fusion = (
        part.model_copy(update={"dropout": drop, "attention_dropout": drop}) for part in (MODEL.text, MODEL.fusion)
    )

    torch.manual_seed(0)
    model = build_model(MODEL.model_copy(update={"vision": vision, "text": text, "fusion": fusion}))
    return run(folder, shards, CONFIG, on_step, model, RUNTIME)


def test_the_first_step_is_that_of_the_averaging_model_and_then_what_is_new_moves(shards, tmp_path):
    _, mean = train(tmp_path / "mean", shards, "mean")
    weights, attention = train(tmp_path / "attention", shards, "attention")
    names = [name for name in mean[0] if name.endswith(("masked_lm", "contrastive", "matching", "box_l1", "box_giou"))]
    assert len(names) == 3 * 3 + 2
    assert {name: attention[0][name] for name in names} == pytest.approx({name: mean[0][name] for name in names}, 1e-5)
    moved = {name for name, value in weights.items() if ".temporal." in name and name.endswith("proj.weight")}
    assert len(moved) == MODEL.vision.depth
    assert all(weights[name].abs().max() > 0 for name in moved)  # they start at zero
    assert weights["vision.temporal.frame_embedding"].abs().amax(dim=-1).min() > 0


def test_stopped_and_resumed_equals_undisturbed(shards, tmp_path):
    def stop(step):
        if step == 3:
            raise StopError

    expected, expected_metrics = train(tmp_path / "straight", shards, "attention", drop=0.1)
    with pytest.raises(StopError):
        train(tmp_path / "stopped", shards, "attention", stop, drop=0.1)
    weights, metrics = train(tmp_path / "stopped", shards, "attention", drop=0.1)
    assert metrics == expected_metrics
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
