"""Winoground: the truth table of its definition, chance, and a model's scores pair by pair."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models.tasks import context, ids_by_hand, picture
from tests.support.naive_pixels import naive_pixels
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.tasks.config import WinogroundConfig
from x2vlm.tasks.scoring import winoground_answers
from x2vlm.tasks.winoground import evaluate_winoground


def answers(c0_i0: float, c0_i1: float, c1_i0: float, c1_i1: float) -> tuple[bool, bool]:
    texts, images = winoground_answers(np.array([[[c0_i0, c0_i1], [c1_i0, c1_i1]]]))
    return bool(texts[0]), bool(images[0])


def test_the_truth_table_of_the_four_comparisons() -> None:
    """Of sixteen outcomes of the comparisons two contradict themselves: a > c >= d > b >= a, and its mirror image."""
    seen: dict[tuple[bool, ...], tuple[bool, bool]] = {}
    for a, b, c, d in {*permutations(range(4)), *permutations((0, 0, 1, 2)), *permutations((0, 1, 1, 2))}:
        outcome = (a > c, d > b, a > b, d > c)  # image 0, image 1, caption 0, caption 1
        expected = (outcome[0] and outcome[1], outcome[2] and outcome[3])
        assert answers(a, b, c, d) == expected
        seen[outcome] = expected
    every = {(w, x, y, z) for w in (True, False) for x in (True, False) for y in (True, False) for z in (True, False)}
    assert every - seen.keys() == {(True, True, False, False), (False, False, True, True)}
    assert sum(expected == (True, True) for expected in seen.values()) == 1


def test_the_sixteen_orderings_of_two_and_two_by_hand() -> None:
    assert answers(1, 0, 0, 1) == (True, True)
    assert answers(2, 0, 1, 1) == (True, False)  # caption 1 does not know its image
    assert answers(2, 1, 0, 1) == (False, True)
    assert answers(0, 1, 1, 0) == (False, False)


def test_a_tie_is_wrong_where_an_argmax_calls_it_right() -> None:
    scores = np.array([[[0.5, 0.5], [0.4, 0.6]]])
    texts, images = winoground_answers(scores)
    assert (texts[0], images[0]) == (True, False)
    assert scores[0, 0].argmax() == 0  # an argmax over images lets caption 0 count
    assert scores[0, 1].argmax() == 1


def test_chance_is_a_quarter_a_quarter_and_a_sixth() -> None:
    texts, images = winoground_answers(np.random.default_rng(0).random((200_000, 2, 2)))
    assert texts.mean() == pytest.approx(1 / 4, abs=0.004)
    assert images.mean() == pytest.approx(1 / 4, abs=0.004)
    assert (texts & images).mean() == pytest.approx(1 / 6, abs=0.004)


@given(st.lists(st.integers(-3, 3), min_size=4, max_size=4))
def test_swapping_captions_with_images_swaps_the_scores(values: list[int]) -> None:
    scores = np.array(values, dtype=float).reshape(1, 2, 2)
    texts, images = winoground_answers(scores)
    assert [x.tolist() for x in winoground_answers(scores.transpose(0, 2, 1))] == [images.tolist(), texts.tolist()]
    assert [x.tolist() for x in winoground_answers(np.exp(scores))] == [texts.tolist(), images.tolist()]


@pytest.mark.parametrize(
    ("scores", "rule"), [(np.zeros((0, 2, 2)), "empty_split"), (np.full((1, 2, 2), np.nan), "nan_score")]
)
def test_broken_scores_are_refused(scores: np.ndarray, rule: str) -> None:
    with pytest.raises(InvalidSample) as error:
        winoground_answers(scores)
    assert error.value.rule == rule


EXAMPLES = [
    Example("0", "test", ("0", "1"), ("red dog", "dog red"), tags=("Object",)),
    Example("1", "test", ("2", "3"), ("cat green bus", "bus green cat"), tags=("Both",)),
    Example("2", "test", ("4", "5"), ("white", "black"), tags=("Object",)),
]


@pytest.mark.parametrize("score", ["match", "odds", "cosine"])
def test_scores_are_those_of_every_pair_alone(task_model: TaskModel, score: str) -> None:
    result = evaluate_winoground(task_model, WinogroundConfig(score=score), context(task_model, EXAMPLES, 2))
    base = task_model.base.eval()
    for example, row in zip(EXAMPLES, result.predictions.to_pylist(), strict=True):
        expected = []
        for text in example.texts:
            ids, mask = ids_by_hand(text)
            for name in example.media:
                with torch.no_grad():
                    vision = base.encode_image(naive_pixels(picture(int(name)), 32)[None])
                    states = base.encode_text(ids, mask)
                    logits = base.match(base.fuse(states, mask, vision))[0]
                    image, words = base.project(vision, states)
                expected.append(
                    {"match": logits[1], "odds": logits[1] - logits[0], "cosine": (image @ words.T)[0, 0]}[score].item()
                )
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
        a, b, c, d = row["scores"]
        assert row["group_right"] == (a > c and d > b and a > b and d > c)
    assert result.metrics["group_score/Both"] == 100.0 * result.predictions["group_right"][1].as_py()
    assert result.measured_as == {"score": score, "ties": "wrong"}


def test_an_example_of_another_shape_is_named(task_model: TaskModel) -> None:
    wrong = Example("7", "test", ("0",), ("a", "b"))
    with pytest.raises(ConfigError, match="example 7: 1 images and 2 captions; Winoground takes 2 images"):
        evaluate_winoground(task_model, WinogroundConfig(), context(task_model, [wrong]))
