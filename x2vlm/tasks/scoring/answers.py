"""How right an answer is: VQA accuracy against ten people's answers in two variants, and exact match.

Two programs that both say "VQA accuracy" differ by up to 100 points a question: what is normalised before comparing is
part of the metric, so results name the variant. Mistakes of the official program that scores depend on are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal

from x2vlm.errors import InvalidSample

# "official": question and people alike, as the VQA server. "x2vlm": the older rule in X2-VLM's files, which cleans the
# prediction wholly and always, of the people's answers only the punctuation, and that unless all are equal.
VqaVariant = Literal["official", "x2vlm"]
FULL_AGREEMENT = 3  # so many equal answers of the other people make an answer wholly right
MOST_PERIODS = 32  # the official program passes a flag where the number of replacements belongs

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Meant to spare periods between digits, it spares those before one: its look-behind is mistyped and always true.
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
# Words that are written right if one of their apostrophes is missing: "dont", "shouldnt've", "shouldn'tve".
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_WRITTEN_RIGHT = {short: word for word in _CONTRACTIONS for short in _without_one_apostrophe(word)}
_WRITTEN_RIGHT["somebody'd"] = "somebodyd"  # the wrong way round in the official table


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: VqaVariant = "official") -> float:
    """Percent: the mean over the people of min(1, equal answers of the other people / 3).

    InvalidSample ("no_right_answer") without answers.
    """
    if not answers:
        raise InvalidSample("no_right_answer", "a question without answers has no VQA accuracy")
    given, predicted = [_one_line(answer) for answer in answers], _one_line(prediction)
    differ = len(set(given)) > 1
    if variant == "official" and differ:
        given, predicted = [normalised(answer) for answer in given], normalised(predicted)
    elif variant == "x2vlm":
        predicted = normalised(predicted)
        given = [_without_punctuation(answer) for answer in given] if differ else given
    equal = [answer == predicted for answer in given]
    total = sum(equal)
    return 100.0 * sum(min(1.0, (total - own) / FULL_AGREEMENT) for own in equal) / len(given)


def normalised(answer: str) -> str:
    """An answer as the official program compares it: punctuation, case, articles, numbers in words, apostrophes."""
    words = [_DIGITS.get(word, word) for word in _without_punctuation(answer).lower().split()]
    return " ".join(_WRITTEN_RIGHT.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """A sign next to a blank goes, one within a word becomes a blank; all go if a comma is between two digits."""
    cleaned, has_number = text, _COMMA_IN_NUMBER.search(text) is not None
    for sign in _PUNCTUATION:
        goes = has_number or f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if goes else " ")
    return _PERIOD.sub("", cleaned, count=MOST_PERIODS)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Percent: 100 if the prediction is one of the answers to the letter (xGQA), else 0."""
    if not answers:
        raise InvalidSample("no_right_answer", "a question without answers cannot be answered right")
    return 100.0 * (prediction in answers)


def in_order(predictions: Sequence[tuple[str, str]], example_ids: Sequence[str], origin: str) -> list[str]:
    """The answers of (example id, answer) rows in the order of `example_ids`.

    InvalidSample, naming `origin` and an id, for a missing prediction (it does not count as wrong), one of an unknown
    example, and two of one example.
    """
    found: dict[str, str] = {}
    for example_id, answer in predictions:
        if example_id in found:
            raise InvalidSample("duplicate_id", f"{origin}: two predictions for example {example_id}")
        found[example_id] = answer
    if missing := [example_id for example_id in example_ids if example_id not in found]:
        raise InvalidSample(
            "missing_predictions", f"{origin}: {len(missing)} examples have no prediction, such as {missing[0]}"
        )
    if unknown := sorted(set(found) - set(example_ids)):
        raise InvalidSample(
            "unknown_predictions",
            f"{origin}: {len(unknown)} predictions are of no example of the split, such as {unknown[0]}",
        )
    return [found[example_id] for example_id in example_ids]


def mean(values: Sequence[float]) -> float:
    """The plain mean; InvalidSample for nothing."""
    if not values:
        raise InvalidSample("empty_split", "no examples to average over")
    return sum(values) / len(values)


def means_of_parts(scores: Sequence[float], parts: Sequence[Sequence[str]], name: str) -> dict[str, float]:
    """`<name>_<part>`: the mean over the examples of every part (language, type of answer) that one belongs to."""
    by_part: dict[str, list[float]] = {}
    for score, of in zip(scores, parts, strict=True):
        for part in of:
            by_part.setdefault(part, []).append(score)
    return {f"{name}_{part}": mean(values) for part, values in sorted(by_part.items())}


def mean_of_languages(scores: Sequence[float], languages: Sequence[str], name: str) -> dict[str, float]:
    """Where several languages are asked, the mean of each, and of those but English (as xGQA's results are given)."""
    if len(set(languages)) < 2:
        return {}
    found = means_of_parts(scores, [[language] for language in languages], name)
    others = [value for key, value in found.items() if key != f"{name}_en"]
    return found | {f"{name}_mean_of_other_languages": mean(others)}


def answer_weights(answers: Sequence[str], weights: Sequence[float], of_example: float = 1.0) -> dict[str, float]:
    """Weight of every distinct answer in the training loss, in the order in which they first occur.

    Without `weights` each answer counts 1 / len(answers), so that one given by three of ten people has 0.3; equal
    answers are added. All are multiplied by the example's own weight.
    """
    each = list(weights) or [1.0 / len(answers)] * len(answers)
    found: dict[str, float] = {}
    for answer, weight in zip(answers, each, strict=True):
        found[answer] = found.get(answer, 0.0) + weight * of_example
    return found


def vqa_submission(example_ids: Sequence[str], answers: Sequence[str]) -> str:
    """The file that the VQA server takes: [{question_id, answer}], ids as numbers where they are."""
    rows = [
        {
            "question_id": int(example_id) if example_id.isascii() and example_id.isdigit() else example_id,
            "answer": answer,
        }
        for example_id, answer in zip(example_ids, answers, strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False)


def nlvr2_submission(example_ids: Sequence[str], answers: Sequence[str]) -> str:
    """The file that NLVR2's program takes: one `identifier,label` a line, no header."""
    return "".join(f"{example_id},{answer}\n" for example_id, answer in zip(example_ids, answers, strict=True))


def predictions_of_json(text: str) -> list[tuple[str, str]]:
    """(question id, answer) of the content of a file in the form of `vqa_submission`; InvalidSample if it is not."""
    try:
        rows = json.loads(text)
        return [(str(row["question_id"]), str(row["answer"])) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidSample(
            "not_predictions", f"no list of objects with question_id and answer ({type(error).__name__}: {error})"
        ) from None
