"""Classification: two images with a sentence, clips, answers outside of the list, weighted answers, submissions."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.support.models.learning import batch_of, learn, loss_of, new_model
from tests.support.models.tasks import COLOURS, context, ids_by_hand, load
from tests.support.naive_pixels import naive_pixels
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError
from x2vlm.inference.visuals import Visual
from x2vlm.models.downstream.config import DecoderConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.tasks.classification import CLASSIFICATION, SUBMISSION, check_classification, evaluate_classification
from x2vlm.tasks.config import ClassificationConfig

TRUE_FALSE = ("False", "True")
PAIRS = ClassificationConfig(num_images=2)
ONE = ClassificationConfig()
SEVERAL = ClassificationConfig(several_answers=True)
ANSWERS = ("red", "blue", "cat")


def pair(number, **fields):
    """Two photos and a sentence; pairs 0 and 1 share their sentence, 2 and 3 theirs."""
    values = {
        "split": "test-P", "media": (f"{number:x}", f"{number + 7:x}"), "texts": (f"{COLOURS[number // 2]} dog",),
        "answers": (TRUE_FALSE[number % 2],), "group": f"sentence-{number // 2}",
    }  # fmt: skip
    return Example(f"test1-{number}", **(values | fields))


def asked(number, answers, **fields):
    return Example(str(number), "val", (f"{number:x}",), (f"{COLOURS[number]} cat",), tuple(answers), **fields)


@pytest.fixture
def fresh(model):
    """A new classifier, which a test may change."""

    def build(options, labels):
        return new_model(copy.deepcopy(model), CLASSIFICATION, options, labels).eval()

    return build


def evaluate(model, examples, options, labels, **fields):
    return evaluate_classification(model, options, context(model, examples, labels=labels, **fields))


@torch.no_grad()
def naive_logits(model, example, num_images):
    """One example: token 0 of the fusion with each image, side by side, through the head."""
    ids, mask = ids_by_hand(example.texts[0])
    states = model.base.encode_text(ids, mask)
    first = []
    for name in example.media[:num_images]:
        vision = model.base.encode_image(naive_pixels(load(name).frames[0], 32)[None])
        first.append(model.base.fuse(states, mask, vision)[:, 0])
    return model.head.layers(torch.cat(first, dim=1))[0]


def test_pairs_agree_with_each_pair_alone(fresh):
    model, pairs = fresh(PAIRS, TRUE_FALSE), [pair(number) for number in range(4)]
    for batch_size in (1, 3):
        rows = evaluate(model, pairs, PAIRS, TRUE_FALSE, batch_size=batch_size).predictions.to_pylist()
        for example, row in zip(pairs, rows, strict=True):
            chances = naive_logits(model, example, 2).softmax(0)
            assert row["answer"] == TRUE_FALSE[int(chances.argmax())]
            assert row["probability"] == pytest.approx(float(chances.max()), abs=1e-5)
            assert row["right"] == (row["answer"] == example.answers[0])


def test_the_loss_of_pairs_reads_the_images_in_their_order(fresh):
    model = fresh(PAIRS, TRUE_FALSE)
    batch = batch_of(model, CLASSIFICATION, PAIRS, [pair(0), pair(1)], 2)
    swapped = replace(
        batch, tensors={**batch.tensors, "pixels0": batch.tensors["pixels1"], "pixels1": batch.tensors["pixels0"]}
    )
    found = loss_of(model, CLASSIFICATION, PAIRS, TRUE_FALSE, batch)
    assert not torch.allclose(found, loss_of(model, CLASSIFICATION, PAIRS, TRUE_FALSE, swapped))
    parts = CLASSIFICATION.training.chunks(batch, 2)
    summed = sum(loss_of(model, CLASSIFICATION, PAIRS, TRUE_FALSE, part) / 2 for part in parts)
    torch.testing.assert_close(found, summed)


def test_pairs_are_learned_and_consistency_counts_whole_sentences(fresh):
    pairs = [pair(number) for number in range(4)]
    model = fresh(PAIRS, TRUE_FALSE)
    losses = learn(model.train(), CLASSIFICATION, PAIRS, pairs, TRUE_FALSE, 40)
    assert losses[-1] < losses[0] / 3
    assert evaluate(model, pairs, PAIRS, TRUE_FALSE).metrics == {"accuracy": 100.0, "consistency": 100.0}
    wrong = [*pairs[:3], replace(pairs[3], answers=("False",))]  # two sentences of two pairs, one pair wrong
    assert evaluate(model, wrong, PAIRS, TRUE_FALSE).metrics == {"accuracy": 75.0, "consistency": 50.0}
    hidden = evaluate(model, [replace(item, answers=()) for item in pairs], PAIRS, TRUE_FALSE)
    assert hidden.metrics == {}
    assert hidden.submission[SUBMISSION] == "test1-0,False\ntest1-1,True\ntest1-2,False\ntest1-3,True\n"


def test_an_answer_outside_of_the_list_is_wrong_and_has_no_loss(fresh):
    model = fresh(ONE, ANSWERS)
    examples = [asked(0, ["red"]), asked(1, ["purple"])]
    result = evaluate(model, examples, ONE, ANSWERS)
    assert result.num_examples == 2
    assert result.predictions.column("right").to_pylist()[1] is False
    assert result.measured_as["unknown_answers"] == "1, counted as wrong"
    batch = batch_of(model, CLASSIFICATION, ONE, examples, 2)
    known = batch.keys.index("0")
    alone = batch_of(model, CLASSIFICATION, ONE, examples, 2).chunks(2)[known]
    torch.testing.assert_close(
        loss_of(model, CLASSIFICATION, ONE, ANSWERS, batch), loss_of(model, CLASSIFICATION, ONE, ANSWERS, alone)
    )


def test_equally_probable_classes_give_the_first(fresh):
    model = fresh(ONE, ANSWERS)
    with torch.no_grad():
        model.head.layers[3].weight.zero_()
        model.head.layers[3].bias.zero_()
    result = evaluate(model, [asked(number, ["red"]) for number in range(4)], ONE, ANSWERS)
    assert result.predictions.column("answer").to_pylist() == ["red"] * 4
    assert result.metrics["accuracy"] == 100.0


def test_clips_are_classified(fresh, monkeypatch):
    def clip(name):
        return Visual(name, tuple(load(f"{int(name, 16) + turn:x}").frames[0] for turn in range(2)), is_clip=True)

    monkeypatch.setattr("tests.support.models.tasks.load", clip)
    model = fresh(ONE, ANSWERS)
    example = asked(1, ["blue"], kind="video")
    (row,) = evaluate(model, [example], ONE, ANSWERS).predictions.to_pylist()
    pixels = torch.stack([naive_pixels(frame, 32) for frame in clip("1").frames])[None]
    with torch.no_grad():
        logits = model.head(model.base, model.base.encode_video(pixels), *ids_by_hand("green cat"))[0]
    assert row["probability"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)


def test_weighted_answers_are_learned_by_their_shares(fresh):
    """Three of four people say red, one blue; the fourth's answer is in no list and counts in nobody's loss."""
    model = fresh(SEVERAL, ANSWERS)
    examples = [asked(0, ["red", "red", "blue", "purple"]), asked(1, ["cat"], weight=0.5)]
    batch = batch_of(model, CLASSIFICATION, SEVERAL, examples, 2)
    pixels, masks = batch.pixels("pixels0"), (batch.tensors["ids"], batch.tensors["mask"])
    with torch.no_grad():
        logits = model.head(model.base, model.base.encode_image(pixels), *masks)
    row = {key: number for number, key in enumerate(batch.keys)}
    each = {
        label: cross_entropy(logits, torch.tensor([number] * 2), reduction="none")
        for number, label in enumerate(ANSWERS)
    }
    expected = 0.5 * each["red"][row["0"]] + 0.25 * each["blue"][row["0"]] + 0.5 * each["cat"][row["1"]]
    torch.testing.assert_close(loss_of(model, CLASSIFICATION, SEVERAL, ANSWERS, batch).detach(), expected / 2)
    nothing = batch_of(model, CLASSIFICATION, SEVERAL, [asked(2, ["purple"])], 1)
    loss = loss_of(model, CLASSIFICATION, SEVERAL, ANSWERS, nothing)
    loss.backward()
    assert loss.item() == 0


def test_weighted_answers_are_scored_as_vqa(fresh):
    model = fresh(SEVERAL, ANSWERS)
    with torch.no_grad():
        model.head.layers[3].weight.zero_()
        model.head.layers[3].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))  # always red
    result = evaluate(model, [asked(0, ["Red"] * 2 + ["blue"] * 8)], SEVERAL, ANSWERS)
    assert result.metrics["accuracy"] == pytest.approx(60.0)
    assert result.measured_as["vqa_variant"] == "official"


# ---- refusals


@pytest.mark.parametrize(
    ("examples", "labels", "options", "message"),
    [
        ([pair(0)], (), PAIRS, "needs the list of classes"),
        ([pair(0)], TRUE_FALSE, ONE, "example test1-0: 2 images and 1 texts; this task takes 1 and 1"),
        ([asked(0, ["red", "blue"])], ANSWERS, ONE, "example 0 has 2 answers.*several_answers: true"),
        ([asked(0, ["purple"])], ANSWERS, ONE, "none of the answers, such as 'purple', is in the list of classes of 3"),
        ([asked(0, ["red"], kind="video"), asked(1, ["red"])], ANSWERS, ONE, "example 1 shows a image, 0 a video"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples, labels, options, message):
    with pytest.raises(ConfigError, match=message):
        check_classification(examples, labels, options)


def test_a_model_of_other_classes_is_refused(fresh):
    with pytest.raises(ConfigError, match=r"has 2 classes for 2 image\(s\); the data have 3 and the options 1"):
        evaluate(fresh(PAIRS, TRUE_FALSE), [asked(0, ["red"])], ONE, ANSWERS)
    other = TaskModel(fresh(ONE, ANSWERS).base, DecoderConfig())
    with pytest.raises(ConfigError, match="no classifier"):
        evaluate(other, [asked(0, ["red"])], ONE, ANSWERS)


def test_data_without_any_answer_are_refused_with_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"the data name none: give rows with an answer .* --answers"):
        check_classification([], (), ClassificationConfig())
