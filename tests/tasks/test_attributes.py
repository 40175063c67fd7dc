"""OVAD with given boxes: average precision against another implementation, prompts, crops, and a model's scores."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models.tasks import context, ids_by_hand, picture
from tests.support.naive_pixels import naive_pixels
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.samples import Box
from x2vlm.tasks.attributes import crop_of, evaluate_attributes, prompts
from x2vlm.tasks.config import AttributesConfig
from x2vlm.tasks.scoring import average_precisions, mean_average_precision


def naive_precision(scores: list[float], present: list[int]) -> float:
    """The sum over distinct scores, from the highest, of (gain in recall) x precision; ties come in together."""
    total, found, gained = sum(present), 0.0, 0
    for level in sorted(set(scores), reverse=True):
        chosen = [p for s, p in zip(scores, present, strict=True) if s >= level]
        found += (sum(chosen) - gained) / total * sum(chosen) / len(chosen)
        gained = sum(chosen)
    return found


def test_known_numbers() -> None:
    assert average_precisions(np.array([[0.9], [0.8], [0.7]]), np.array([[1], [0], [1]]), clip=False)[
        0
    ] == pytest.approx(83.33333333)
    tied = average_precisions(np.full((5, 1), 0.3), np.array([[1], [0], [1], [0], [0]]), clip=False)
    assert tied[0] == pytest.approx(40.0)
    scores = np.array([[0.9, 0.2, 0.1], [0.8, 0.9, 0.2], [0.7, 0.1, 0.3]])
    present = np.array([[1, 0, 0], [0, 1, -1], [1, -1, 0]])
    found = average_precisions(scores, present, clip=False)
    assert found == pytest.approx([83.33333333, 100.0, np.nan], nan_ok=True)
    assert mean_average_precision(found, ["head", "tail", "tail"]) == pytest.approx(
        {"all": 91.66666667, "head": 83.33333333, "tail": 100.0}
    )


@given(st.integers(1, 12), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_average_precision_agrees_with_loops(boxes: int, attributes: int, rng: random.Random) -> None:
    scores = np.array([[rng.randrange(-3, 4) / 4 for _ in range(attributes)] for _ in range(boxes)])  # many ties
    present = np.array([[rng.choice((-1, 0, 1)) for _ in range(attributes)] for _ in range(boxes)])
    order = list(range(boxes))
    rng.shuffle(order)
    for clip in (False, True):
        found = average_precisions(scores, present, clip)
        for number in range(attributes):
            known = [row for row in range(boxes) if present[row, number] >= 0]
            used = [max(0.0, float(scores[row, number])) if clip else float(scores[row, number]) for row in known]
            right = [int(present[row, number]) for row in known]
            if sum(right):
                assert found[number] == pytest.approx(100 * naive_precision(used, right))
            else:
                assert np.isnan(found[number])
        assert average_precisions(scores[order], present[order], clip) == pytest.approx(found, nan_ok=True)
    assert average_precisions(np.exp(scores), present, False) == pytest.approx(
        average_precisions(scores, present, False), nan_ok=True
    )


def test_clipping_ties_all_negative_cosines() -> None:
    scores, present = np.array([[-0.1], [-0.2], [-0.3]]), np.array([[1], [0], [0]])
    assert average_precisions(scores, present, clip=False)[0] == 100.0
    assert average_precisions(scores, present, clip=True)[0] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("scores", "present", "rule"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2), dtype=int), "empty_split"),
        (np.zeros((2, 2)), np.zeros((2, 1), dtype=int), "missing_predictions"),
        (np.full((1, 1), np.nan), np.ones((1, 1), dtype=int), "nan_score"),
        (np.zeros((1, 1)), np.full((1, 1), 2), "malformed_row"),
    ],
)
def test_broken_tables_are_refused(scores: np.ndarray, present: np.ndarray, rule: str) -> None:
    with pytest.raises(InvalidSample) as error:
        average_precisions(scores, present, clip=False)
    assert error.value.rule == rule


def test_no_attribute_in_any_box_is_an_error() -> None:
    with pytest.raises(InvalidSample, match="no_right_answer"):
        mean_average_precision(np.array([np.nan]), ["head"])


def test_prompts_of_words_and_articles() -> None:
    options = AttributesConfig()
    assert prompts("cleanliness:clean/neat", False, "object", options)[:5] == [
        "a clean object", "a object is clean", "the clean object", "the object is clean", "clean object",
    ]  # fmt: skip
    assert len(prompts("cleanliness:clean/neat", False, "object", options)) == 10
    only = AttributesConfig(prompts=("the",))
    assert prompts("hair tone:dark", True, "cat", only) == ["the dark hair cat", "the cat has dark hair"]
    assert [text.split()[1] for text in prompts("maturity:young/baby", False, "object", only)][::2] == [
        "young", "baby", "kid", "kids", "child", "toddler", "boy", "girl",
    ]  # fmt: skip


LABELS = ["color:red", "color:green/blue", "kind:dog"]
TAGS = [("head",), ("tail",), ("tail", "has")]


def boxed() -> list[Example]:
    boxes = [Box(0, 0, 20, 10), Box(10.4, 5.6, 30, 20), Box(-3, 20, 20, 30), Box(40, 30, 0.3, 0.4)]
    present = [(1, 0, 0), (0, 1, 1), (1, -1, 0), (0, 1, -1)]
    return [
        Example(str(n), "test", (f"{n:x}",), (("cat", "bus")[n % 2],), box=boxes[n], attributes=present[n])
        for n in range(4)
    ]


def test_crops_are_the_whole_pixels_of_the_box_within_the_image() -> None:
    examples, images = boxed(), [picture(n) for n in range(4)]
    sizes = [crop_of(image, example).size for image, example in zip(images, examples, strict=True)]
    assert sizes == [(20, 10), (30, 20), (17, 12), (1, 1)]
    outside = Example("9", "test", ("0",), ("cat",), box=Box(60, 2, 4, 4))
    with pytest.raises(InvalidSample, match="example 9"):
        crop_of(images[0], outside)


@pytest.mark.parametrize("synonyms", ["max", "mean"])
@pytest.mark.parametrize("noun", ["object", "category"])
def test_scores_are_cosines_of_the_crop_with_each_prompt(task_model: TaskModel, synonyms: str, noun: str) -> None:
    options = AttributesConfig(synonyms=synonyms, noun=noun, prompts=("none",))
    examples, base = boxed(), task_model.base.eval()
    seen: list[int] = []
    handle = base.text_proj.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    ctx = context(task_model, examples, 3, labels=LABELS, label_tags=TAGS)
    result = evaluate_attributes(task_model, options, ctx)
    handle.remove()
    assert sum(seen) == 4 * (1 if noun == "object" else 2)  # prompts of all labels, once for each noun
    for example, row in zip(examples, result.predictions.to_pylist(), strict=True):
        word = "object" if noun == "object" else example.texts[0]
        crop = naive_pixels(crop_of(picture(int(example.media[0], 16)), example), 32)[None]
        for label, has, found in zip(LABELS, (False, False, True), row["scores"], strict=True):
            cosines = []
            for text in prompts(label, has, word, options):
                ids, mask = _ids(text)
                with torch.no_grad():
                    image, words = base.project(base.encode_image(crop), base.encode_text(ids, mask))
                cosines.append((image @ words.T).item())
            assert found == pytest.approx(max(cosines) if synonyms == "max" else np.mean(cosines), abs=1e-5)
    assert {"map_all", "map_head", "map_tail", "unclipped/map_all"} <= result.metrics.keys()
    assert result.measured_as["attributes"].startswith("3 of 3")


def _ids(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Words that the vocabulary lacks are unknown tokens."""
    known = {"red", "green", "blue", "dog", "cat", "bus"}
    return ids_by_hand(" ".join(word if word in known else "[UNK]" for word in text.split()))


def test_the_variant_names_the_main_metrics(task_model: TaskModel) -> None:
    ctx = context(task_model, boxed(), labels=LABELS, label_tags=TAGS)
    official = evaluate_attributes(task_model, AttributesConfig(), ctx)
    unclipped = evaluate_attributes(task_model, AttributesConfig(variant="unclipped"), ctx)
    assert unclipped.metrics["map_all"] == official.metrics["unclipped/map_all"]
    assert official.metrics["map_all"] == unclipped.metrics["ovad-official/map_all"]


def test_annotations_that_do_not_fit_the_labels_are_named(task_model: TaskModel) -> None:
    ctx = context(task_model, boxed(), labels=LABELS[:2])
    with pytest.raises(ConfigError, match=r"example 0: 1 images, 1 nouns, 3 annotations and a box; .* 1, 1, 2"):
        evaluate_attributes(task_model, AttributesConfig(), ctx)
    with pytest.raises(ConfigError, match="name no attributes"):
        evaluate_attributes(task_model, AttributesConfig(), context(task_model, boxed()))
