"""Weakly supervised grounding: the map against finite differences, scores of boxes against loops, and its errors."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from tests.support.models.tasks import COLOURS, context, small_task_model
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.samples import Box
from x2vlm.tasks.config import WeakGroundingConfig
from x2vlm.tasks.grounding import batch_of
from x2vlm.tasks.scoring import box_iou
from x2vlm.tasks.weak_grounding import WEAK_GROUNDING, best_of, evaluate_weak_grounding, matching_maps, proposal_scores

PROPOSALS = (Box(0, 0, 20, 16), Box(24, 8, 20, 20), Box(4.5, 3.5, 40, 28))


def proposed(count: int = 4) -> list[Example]:
    return [
        Example(str(n), "val", (f"{n % 2:x}",), (f"{COLOURS[n]} dog",), box=PROPOSALS[n % 3], proposals=PROPOSALS)
        for n in range(count)
    ]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_map_is_attention_times_the_gradient_by_finite_differences(layer: int) -> None:
    """Every attention weight is changed a little by hand, in a fusion written out here."""
    model = small_task_model().eval().double()
    base, examples = model.base, proposed(2)
    (pixels, image_of, ids, mask), _ = batch_of(examples, context(model, examples))
    found = matching_maps(model, pixels.double(), image_of, ids, mask, layer)
    with torch.no_grad():
        vision, states = base.encode_image(pixels.double()), base.encode_text(ids, mask)

        def run(text: int, change: tuple[int, int, int] | None, step: float) -> tuple[float, torch.Tensor]:
            hidden = states[text : text + 1]
            tokens = vision.tokens_BND[image_of[text]][None]
            for number, part in enumerate(base.fusion.layers):
                own, cross = part.self_attention, part.cross_attention
                keys, values = own.split_heads(own.key(hidden)), own.split_heads(own.value(hidden))
                hidden = own(hidden, keys, values, None)
                q, k = cross.split_heads(cross.query(hidden)), cross.split_heads(cross.key(tokens))
                weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
                if number == layer:
                    kept = weights.clone()
                    if change is not None:
                        weights[0, *change] += step
                out = (weights @ cross.split_heads(cross.value(tokens))).transpose(1, 2).flatten(2)
                hidden = part.feed_forward(cross.norm(cross.output(out) + hidden))
            return base.match(hidden)[0, 1].item(), kept

        for text in range(2):
            weights = run(text, None, 0.0)[1][0]
            heads, length, width = weights.shape
            expected = torch.zeros(width - 1)
            for head in range(heads):
                for token in range(length):
                    for place in range(1, width):
                        up, down = (run(text, (head, token, place), step)[0] for step in (1e-4, -1e-4))
                        gradient = max(0.0, (up - down) / 2e-4)
                        expected[place - 1] += weights[head, token, place].item() * gradient / heads / length
            assert found[text].flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-8)
    assert (found >= 0).all()
    assert found.max() > 0


def test_padding_of_a_text_changes_nothing() -> None:
    model = small_task_model().eval()
    short, long = proposed(2)
    long = Example("long", "val", ("0",), ("red green blue black white dog",), box=PROPOSALS[0], proposals=PROPOSALS)
    (pixels, image_of, ids, mask), _ = batch_of([short, long], context(model, []))
    together = matching_maps(model, pixels, image_of, ids, mask, 1)[0]
    (pixels, image_of, ids, mask), _ = batch_of([short], context(model, []))
    torch.testing.assert_close(together, matching_maps(model, pixels, image_of, ids, mask, 1)[0], rtol=1e-4, atol=1e-9)


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_scores_of_boxes_are_sums_over_pixels(rng: random.Random) -> None:
    width, height = rng.randint(3, 20), rng.randint(3, 20)
    map_GG = torch.tensor([[rng.random() for _ in range(3)] for _ in range(3)])
    boxes = [
        Box(rng.uniform(-2, width), rng.uniform(-2, height), rng.uniform(0.5, 9), rng.uniform(0.5, 9)) for _ in range(4)
    ]
    whole = interpolate(map_GG[None, None], (height, width), mode="bicubic")[0, 0].tolist()
    for box, found in zip(boxes, proposal_scores(map_GG, (width, height), boxes, 0.5), strict=True):
        inside = [
            whole[y][x]
            for y in range(max(0, int(box.y)), min(height, max(0, int(box.y + box.h))))
            for x in range(max(0, int(box.x)), min(width, max(0, int(box.x + box.w))))
        ]
        assert found == pytest.approx(sum(inside) / (box.w * box.h) ** 0.5, abs=1e-5)


def test_the_first_of_equal_proposals_is_taken() -> None:
    assert best_of([0.1, 0.3, 0.3]) == 1
    assert best_of([-0.2, -0.1]) == 1


def test_accuracy_and_what_the_proposals_allow(task_model: TaskModel) -> None:
    examples = [*proposed(), Example("hopeless", "val", ("1",), ("dog",), box=Box(0, 0, 3, 3), proposals=PROPOSALS)]
    result = evaluate_weak_grounding(task_model, WeakGroundingConfig(), context(task_model, examples, 2))
    rows = result.predictions.to_pylist()
    assert [row["example_id"] for row in rows] == [example.example_id for example in examples]
    for row in rows:
        assert tuple(row["box_xywh"]) in [(b.x, b.y, b.w, b.h) for b in PROPOSALS]
        assert row["iou"] == pytest.approx(box_iou(Box(*row["box_xywh"]), Box(*row["target_xywh"])))
    assert result.metrics["accuracy"] == pytest.approx(100 * np.mean([row["iou"] >= 0.5 for row in rows]))
    assert result.metrics["proposal_recall"] == 80.0
    assert result.measured_as["map"] == "fusion layer 1 of 2"
    one = evaluate_weak_grounding(task_model, WeakGroundingConfig(), context(task_model, examples, 1))
    assert one.metrics == pytest.approx(result.metrics)


def test_what_does_not_fit_is_named(task_model: TaskModel) -> None:
    examples = proposed()
    with pytest.raises(ConfigError, match="map_layer is 2, the model has fusion layers 0 to 1"):
        evaluate_weak_grounding(task_model, WeakGroundingConfig(map_layer=2), context(task_model, examples))
    for changed, message in (
        ({"proposals": ()}, "a box and 0 proposals"),
        ({"proposals": (Box(0, 0, 0, 4),)}, "proposal Box.* is empty"),
    ):
        wrong = Example("7", "val", ("0",), ("dog",), box=PROPOSALS[0], **changed)
        with pytest.raises(ConfigError, match=f"example 7: .*{message}"):
            evaluate_weak_grounding(task_model, WeakGroundingConfig(), context(task_model, [wrong]))


def test_training_needs_no_box() -> None:
    assert WEAK_GROUNDING.training is not None
    bare = Example("7", "train", ("0",), ("dog",))
    WEAK_GROUNDING.check([bare], (), WeakGroundingConfig())
    assert WEAK_GROUNDING.training.rows([bare], WeakGroundingConfig()) == [(0, 0)]
