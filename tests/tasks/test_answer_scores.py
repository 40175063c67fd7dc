"""VQA accuracy in both variants by hand-made cases and a naive version, exact match, and broken predictions."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.errors import InvalidSample
from x2vlm.tasks.scoring.answers import (
    MOST_PERIODS,
    answer_weights,
    exact_match,
    in_order,
    mean_of_languages,
    means_of_parts,
    nlvr2_submission,
    normalised,
    predictions_of_json,
    vqa_accuracy,
    vqa_submission,
)


def people(*groups):
    """Ten answers from (count, answer) pairs."""
    answers = [answer for count, answer in groups for _ in range(count)]
    assert len(answers) == 10
    return answers


@pytest.mark.parametrize(
    ("answers", "prediction", "official", "x2vlm"),
    [
        (people((10, "2")), "two", 0, 100),
        (people((10, "a dog")), "a dog", 100, 0),
        (people((5, "dont know"), (5, "no")), "don't know", 100, 0),
        (people((9, "St. Louis"), (1, "chicago")), "st louis", 100, 0),
        (people((9, "Yes"), (1, "no")), "yes", 100, 0),
        (people((10, "Yes")), "yes", 0, 0),
        (people((9, "2"), (1, "3")), "two", 100, 100),
        (people((9, "dog"), (1, "cat")), "a dog", 100, 100),
        (people((9, "1,000"), (1, "2")), "1000", 100, 100),
        (people((9, "t-shirt"), (1, "shirt")), "t shirt", 100, 100),
        (people((10, "dog")), "dog", 100, 100),
        (people((10, "dog")), "cat", 0, 0),
        (people((9, "none"), (1, "0")), "0", 100, 30),  # x2vlm: the people's "none" stays a word
    ],
)  # fmt: skip
def test_variants_by_hand(answers, prediction, official, x2vlm):
    assert vqa_accuracy(prediction, answers, "official") == pytest.approx(official)
    assert vqa_accuracy(prediction, answers, "x2vlm") == pytest.approx(x2vlm)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100)])
@pytest.mark.parametrize("variant", ["official", "x2vlm"])
def test_agreement_of_a_few_counts_in_part(matches, expected, variant):
    answers = people((matches, "dog"), *[(1, f"other{number}") for number in range(10 - matches)])
    assert vqa_accuracy("dog", answers, variant) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The Dogs", "dogs"),
        ("an  apple\ta day", "apple day"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("shouldnt've", "shouldn't've"),
        ("shouldn'tve", "shouldn't've"),
        ("shouldntve", "shouldntve"),  # two apostrophes are missing
        ("yall'd've", "y'all'd've"),
        ("'ows'at", "'ow's'at"),
        ("hell", "hell"),  # no "he'll" in the official table
        ("somebody'd", "somebodyd"),
        ("well-known", "well known"),
        ("well- known", "well known"),
        ("a/b", "b"),
        ("what?", "what"),
        ("what ?", "what"),
        ("1,000", "1000"),
        ("red,blue", "red blue"),
        ("1,000 red-blue", "1000 redblue"),  # a comma between digits makes every sign go
        ("2.5", "2.5"),
        ("St.5", "st.5"),  # a period before a digit stays even after a letter
        ("3. item", "3 item"),
        ("u.s.a.", "usa"),
        ("." * MOST_PERIODS + "a..b", "a..b"),  # only so many go
        ("#1", "#1"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalising_by_hand(raw, expected):
    assert normalised(raw) == expected


def naive_official(prediction, answers):
    """Mean over the people of min(1, matches among the others / 3), by comparing everybody with everybody."""
    if len({answer.strip() for answer in answers}) > 1:
        prediction, answers = normalised(prediction), [normalised(answer) for answer in answers]
    total = 0.0
    for left_out in range(len(answers)):
        others = [answer for number, answer in enumerate(answers) if number != left_out]
        total += min(1, others.count(prediction) / 3)
    return 100 * total / len(answers)


@given(st.lists(st.sampled_from(["dog", "a dog", "two", "2", "Dog", "cat"]), min_size=1, max_size=10), st.randoms())
def test_official_accuracy_agrees_with_comparing_everybody(answers, rng: random.Random):
    prediction = rng.choice(["dog", "2", "cat", "the dog"])
    found = vqa_accuracy(prediction, answers)
    assert found == pytest.approx(naive_official(prediction, answers))
    shuffled = rng.sample(answers, len(answers))
    assert vqa_accuracy(prediction, shuffled) == pytest.approx(found)


def test_blanks_around_answers_do_not_count():
    assert vqa_accuracy(" dog\n", people((10, "dog "))) == 100


def test_exact_match_is_to_the_letter():
    assert exact_match("traffic light", ["traffic light"]) == 100
    assert exact_match("Traffic light", ["traffic light"]) == 0


@pytest.mark.parametrize("score", [exact_match, vqa_accuracy])
def test_a_question_without_answers_has_no_score(score):
    with pytest.raises(InvalidSample, match="no_right_answer"):
        score("dog", [])


def test_predictions_are_put_in_order_and_none_may_be_missing():
    assert in_order([("b", "2"), ("a", "1")], ["a", "b"], "x.json") == ["1", "2"]
    for rows, rule, named in (
        ([("a", "1")], "missing_predictions", "b"),
        ([("a", "1"), ("b", "2"), ("c", "3")], "unknown_predictions", "c"),
        ([("a", "1"), ("a", "1"), ("b", "2")], "duplicate_id", "a"),
    ):
        with pytest.raises(InvalidSample, match=rf"x\.json.*\b{named}\b") as error:
            in_order(rows, ["a", "b"], "x.json")
        assert error.value.rule == rule


def test_submissions_come_back_and_have_numbers_as_ids():
    text = vqa_submission(["458752000", "x7"], ["net", "Übergröße"])
    assert json.loads(text) == [
        {"question_id": 458752000, "answer": "net"},
        {"question_id": "x7", "answer": "Übergröße"},
    ]
    assert predictions_of_json(text) == [("458752000", "net"), ("x7", "Übergröße")]
    assert nlvr2_submission(["test2-0-0-0", "test2-0-0-1"], ["True", "False"]) == (
        "test2-0-0-0,True\ntest2-0-0-1,False\n"
    )
    for broken in ("{", "[1]", '[{"question_id": 1}]'):
        with pytest.raises(InvalidSample, match="not_predictions"):
            predictions_of_json(broken)


def test_means_of_languages_and_types():
    scores, languages = [100.0, 0.0, 50.0, 100.0], ["en", "de", "de", "ko"]
    found = mean_of_languages(scores, languages, "accuracy")
    assert found == {
        "accuracy_de": 25.0, "accuracy_en": 100.0, "accuracy_ko": 100.0, "accuracy_mean_of_other_languages": 62.5
    }  # fmt: skip
    assert mean_of_languages(scores, ["en"] * 4, "accuracy") == {}
    parts = means_of_parts(scores, [["yes/no"], ["number"], [], ["number"]], "accuracy")
    assert parts == {"accuracy_number": 50.0, "accuracy_yes/no": 100.0}


def test_weights_of_answers():
    ten = people((3, "net"), (6, "netting"), (1, "mesh"))
    assert answer_weights(ten, ()) == pytest.approx({"net": 0.3, "netting": 0.6, "mesh": 0.1})
    assert answer_weights(["net"], (), 0.5) == {"net": 0.5}  # a question of Visual Genome
    assert answer_weights(["a", "b", "a"], (0.5, 0.25, 0.25)) == {"a": 0.75, "b": 0.25}
