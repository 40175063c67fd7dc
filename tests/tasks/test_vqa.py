"""Question answering: learned from weighted answers, scored in its variants, submitted where answers are not public."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from tests.support.models.learning import batch_of, learn, loss_of, new_model
from tests.support.models.tasks import COLOURS, VOCABULARY, context, ids_by_hand, load
from tests.support.naive_pixels import naive_pixels
from x2vlm.data.task_examples import Example
from x2vlm.data.text.tokenizer import WordPieceTokenizer
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.inference.visuals import Visual
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.tasks.answering.vqa import SUBMISSION, VQA, answer_table, check_vqa, evaluate_vqa
from x2vlm.tasks.config import VqaConfig
from x2vlm.tasks.training.rows import RowPreparation

ANSWERS = ("red", "red dog", "blue", "cat bus dog", "white")
OPTIONS = VqaConfig(shortlist=3)


def example(number, **fields):
    """Everybody gives the same answer to it but one of ten people."""
    people = (ANSWERS[number % 5],) * 9 + (ANSWERS[(number + 1) % 5],)
    values = {"split": "val", "media": (f"{number:x}",), "texts": (f"{COLOURS[number % 5]} dog",), "answers": people}
    return Example(str(number), **(values | fields))


EXAMPLES = [example(number) for number in range(5)]


@pytest.fixture
def fresh(model):
    """A new model for question answering, which a test may change."""
    return new_model(copy.deepcopy(model), VQA, OPTIONS, ANSWERS)


def evaluate(model, examples=EXAMPLES, options=OPTIONS, **fields):
    return evaluate_vqa(model, options, context(model, examples, **({"labels": ANSWERS} | fields)))


@pytest.fixture(scope="module")
def learned(model):
    fitted = new_model(copy.deepcopy(model), VQA, OPTIONS, ANSWERS)
    losses = learn(fitted, VQA, OPTIONS, EXAMPLES, ANSWERS, 50)
    assert losses[-1] < losses[0] / 3
    return fitted.eval()


def test_what_was_learned_is_answered_and_scored(learned):
    result = evaluate(learned)
    assert result.metrics == {"accuracy": 100.0}
    rows = result.predictions.to_pylist()
    assert [row["answer"] for row in rows] == list(ANSWERS)
    assert [row["accuracy"] for row in rows] == [100.0] * 5
    assert result.measured_as == {
        "answer_score": "released", "shortlist": "3", "answers": "5", "metric": "vqa", "vqa_variant": "official"
    }  # fmt: skip
    assert result.intervals["accuracy"] == (100.0, 100.0)


def test_answers_agree_with_each_question_alone(learned):
    """Without the processor, batches, shortlists and caches: every listed answer on its own."""
    rows = evaluate(learned, options=VqaConfig(shortlist=5, answer_score="chain")).predictions.to_pylist()
    decoder = learned.head
    for asked, row in zip(EXAMPLES, rows, strict=True):
        ids, mask = ids_by_hand(asked.texts[0])
        with torch.no_grad():
            vision = learned.base.encode_image(naive_pixels(load(asked.media[0]).frames[0], 32)[None])
            states = learned.base.fuse(learned.base.encode_text(ids, mask), mask, vision)
            scores = []
            for answer in ANSWERS:
                tokens, real = ids_by_hand(answer)
                logits = decoder.predict(decoder(tokens, real, decoder.question_memory(states, mask)))[0]
                chosen = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])
                scores.append(chosen.sum())
        best = torch.stack(scores).softmax(0).max(0)
        assert row["answer"] == ANSWERS[int(best.indices)]
        assert row["probability"] == pytest.approx(float(best.values), abs=1e-5)


def test_batch_size_changes_nothing(learned):
    one, many = evaluate(learned, batch_size=1), evaluate(learned, batch_size=64)
    assert one.metrics == many.metrics
    assert one.data_digest == many.data_digest
    assert one.predictions.column("answer") == many.predictions.column("answer")


def test_a_split_without_answers_gives_a_submission(learned):
    result = evaluate(learned, [replace(item, answers=()) for item in EXAMPLES])
    assert result.metrics == {}
    rows = json.loads(result.submission[SUBMISSION])
    assert rows == [{"question_id": number, "answer": answer} for number, answer in enumerate(ANSWERS)]


def test_one_answer_each_is_exact_match_with_a_mean_of_languages(learned):
    asked = [
        example(number, answers=(ANSWERS[number] if number != 4 else "Blue",), language=language)
        for number, language in enumerate(["en", "de", "de", "ko", "ko"])
    ]
    result = evaluate(learned, asked)
    assert result.measured_as["metric"] == "exact"
    assert result.metrics == {
        "accuracy": 80.0, "accuracy_de": 100.0, "accuracy_en": 100.0, "accuracy_ko": 50.0,
        "accuracy_mean_of_other_languages": 75.0,
    }  # fmt: skip


def test_types_of_answers_are_averaged_apart(learned):
    tags = ["yes/no", "number", "number", "other", "other"]
    asked = [example(number, tags=(tag, "what is")) for number, tag in enumerate(tags)]
    asked[1] = replace(asked[1], answers=("white",) * 10)
    found = evaluate(learned, asked).metrics
    assert found == {"accuracy": 80.0, "accuracy_number": 50.0, "accuracy_other": 100.0, "accuracy_yes/no": 100.0}


def test_the_variant_changes_the_score(learned):
    asked = [example(0, answers=("Red",) * 9 + ("blue",))]
    assert evaluate(learned, asked).metrics["accuracy"] == 100.0
    older = evaluate(learned, asked, VqaConfig(shortlist=3, vqa_variant="x2vlm"))
    assert older.metrics["accuracy"] == 0.0
    assert older.measured_as["vqa_variant"] == "x2vlm"


def test_clips_are_answered(fresh, monkeypatch):
    def clip(name):
        return Visual(name, tuple(load(f"{int(name, 16) + turn:x}").frames[0] for turn in range(3)), is_clip=True)

    monkeypatch.setattr("tests.support.models.tasks.load", clip)
    monkeypatch.setattr("tests.support.models.learning.load", clip)
    asked = [example(number, kind="video") for number in range(3)]
    assert evaluate(fresh, asked).num_examples == 3
    batch = batch_of(fresh, VQA, OPTIONS, asked, 3)
    assert batch.tensors["pixels"].shape == (3, 3, 3, 32, 32)
    assert loss_of(fresh, VQA, OPTIONS, ANSWERS, batch).isfinite()


# ---- the loss


def test_a_batch_has_every_answer_once_with_its_share(fresh):
    batch = batch_of(fresh, VQA, OPTIONS, [example(1, weight=0.5), example(1, answers=("blue",))], 2)
    order = batch.notes["num_answers"]
    assert sorted(order) == ["1", "2"]
    weights = batch.tensors["answer_weights"].tolist()
    assert sorted(weights) == pytest.approx([0.05, 0.45, 1.0])
    assert batch.tensors["answer_ids"].shape == (3, 4)  # [CLS] red dog [SEP]
    rows = batch.tensors["row_of_answer"].tolist()
    assert rows == ([0, 0, 1] if order == ["2", "1"] else [0, 1, 1])


@pytest.mark.parametrize("number", [2, 3, 5, 9])
def test_chunks_add_up_to_the_batch(fresh, number):
    asked = [example(index, answers=ANSWERS[: index + 1]) for index in range(5)]
    batch = batch_of(fresh.eval(), VQA, OPTIONS, asked, 5)
    whole = loss_of(fresh, VQA, OPTIONS, ANSWERS, batch)
    parts = VQA.training.chunks(batch, number)
    assert sum(part.num_rows for part in parts) == 5
    summed = sum(part.num_rows / 5 * loss_of(fresh, VQA, OPTIONS, ANSWERS, part) for part in parts)
    torch.testing.assert_close(summed, whole)


def test_a_picture_is_not_mirrored_where_an_answer_names_a_side(fresh, monkeypatch):
    seen, plan = [], RowPreparation.plan

    def watched(self, visual, texts):
        seen.append(list(texts))
        return plan(self, visual, texts)

    monkeypatch.setattr(RowPreparation, "plan", watched)
    batch_of(fresh, VQA, OPTIONS, [example(0, answers=("left",))], 1)
    assert seen == [["red dog", "left"]]


def test_punctuation_of_answers_is_kept():
    tokenizer = WordPieceTokenizer([*VOCABULARY, "t", "-"])
    table = answer_table(["t-dog", "Red"], tokenizer, 10)
    assert table.ids_NL.tolist() == [[2, 13, 14, 10, 3], [2, 5, 3, 0, 0]]
    assert table.mask_NL.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"media": ("1", "2")}, "example 0: 2 images and 1 texts; this task takes 1 and 1"),
        ({"texts": ()}, "example 0: 1 images and 0 texts"),
        ({"texts": ("?!",)}, r"example 0: nothing is left of '\?!' after cleaning"),
        ({"answers": ("red", " ")}, "example 0: a blank answer"),
        ({"answer_weights": (0.5,)}, "example 0: 1 weights, 10 answers"),
        ({"answers": ("purple",)}, "none of the answers, such as 'purple', is in the list of answers of 5"),
    ],
)
def test_examples_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_vqa([example(0, **fields)], ANSWERS, OPTIONS)


def test_images_and_clips_are_not_mixed():
    with pytest.raises(ConfigError, match="example 1 shows a video, 0 a image"):
        check_vqa([example(0), example(1, kind="video")], ANSWERS, OPTIONS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [((), "needs the list of answers"), (("red", "red"), "'red' occurs twice"), (("red", ""), "entry 1 of the list")],
)
def test_lists_of_answers_that_cannot_be_meant_are_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        check_vqa(EXAMPLES, labels, OPTIONS)


def test_evaluation_refuses_what_it_cannot_score(fresh):
    with pytest.raises(ConfigError, match="example 1 has no answer and others of the split have"):
        evaluate(fresh, [example(0), example(1, answers=())])
    with pytest.raises(ConfigError, match=r"2 answers, and VQA accuracy needs at least 4.*metric: exact"):
        evaluate(fresh, [example(0, answers=("red", "blue"))])
    with pytest.raises(InvalidSample, match="duplicate_id"):
        evaluate(fresh, [example(0), example(0)])
    with pytest.raises(InvalidSample, match="empty_split"):
        evaluate(fresh, [])
    with pytest.raises(ConfigError, match="no decoder"):
        evaluate(TaskModel(fresh.base))
    with torch.no_grad():
        fresh.head.word_head.bias.fill_(torch.nan)
    with pytest.raises(InvalidSample, match="nan_score"):
        evaluate(fresh)


def test_training_examples_need_answers(fresh):
    with pytest.raises(ConfigError, match="1 training examples have no answer, such as 3"):
        batch_of(fresh, VQA, OPTIONS, [example(0), example(3, answers=())], 2)
