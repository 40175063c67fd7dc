"""Our numbers beside published ones: what is compared, what must not be, and the same rows in every format."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

from pipelines.report.comparison import NOT_TUNED, comparison_table
from pipelines.report.comparison_formats import FORMATS, as_csv, as_html, as_json, as_markdown, as_text
from pipelines.report.page import render_report
from x2vlm.errors import CorruptArtifact

MODEL = "X2-VLM large 1B"


def result(**changes: Any) -> Mapping[str, Any]:
    """As an evaluation of the whole test split of NLVR2 by a fine-tuned model writes it."""
    return {
        "task": "classification",
        "headline": "accuracy",
        "card": "downstream/nlvr2",
        "split": "test",
        "selection": {"label": "best epoch on the validation split", "splits": ["val"], "epoch": 7},
        "metrics": {"accuracy": 87.5, "consistency": 60.0},
        "interval_95": {"accuracy": [86.7, 88.3]},
        "num_examples": 6967,
        "measured_as": {"unknown_answers": "0, counted as wrong"},
        "data_digest": "a",
        "contamination": None,
    } | changes


def test_a_whole_split_of_a_fine_tuned_model_gets_a_difference_to_every_published_model() -> None:
    rows = comparison_table({"nlvr2": result()}).rows
    found = {row.published.model: row.difference for row in rows if row.published}
    assert found == pytest.approx(
        {"X-VLM 4M": 87.5 - 84.21, "X-VLM 16M": 87.5 - 84.76, "X2-VLM base 1B": 0.5, MODEL: 87.5 - 89.4}
    )
    assert {row.interval for row in rows} == {(86.7, 88.3)}
    assert {row.metric for row in rows} == {"accuracy"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_examples": 200}, "not comparable: 200 examples, the split has 6,967"),
        ({"selection": None}, NOT_TUNED),
        ({"split": "train"}, "nothing is published on split 'train'"),
    ],
)
def test_other_data_or_an_untuned_model_get_no_difference_and_the_reason(changes: Any, reason: str) -> None:
    rows = comparison_table({"nlvr2": result(**changes)}).rows
    assert rows
    assert all(row.difference is None for row in rows)
    assert all(any(reason in note for note in row.notes) for row in rows)


@pytest.mark.parametrize("card", ["", "world/nlvr2", "downstream/other"])
def test_own_data_are_never_beside_published_numbers(card: str) -> None:
    rows = comparison_table({"mine": result(card=card)}).rows
    assert [(row.metric, row.ours, row.published, row.benchmark) for row in rows] == [("accuracy", 87.5, None, "")]


def test_the_card_counts_for_its_own_task_only() -> None:
    assert {row.published for row in comparison_table({"x": result(task="retrieval")}).rows} == {None}


def test_zero_shot_benchmarks_need_no_fine_tuning() -> None:
    metrics = {"mean_ap": 29.0, "mean_ap_head": 50.0}
    changes = {"task": "attributes", "card": "downstream/ovad", "split": "test", "num_examples": 14300}
    one = result(**changes, metrics=metrics, headline="mean_ap", interval_95={}, selection=None)
    rows = comparison_table({"ovad": one}, models=["X-VLM 16M"]).rows
    assert [(row.metric, row.difference) for row in rows] == [
        ("mean_ap", pytest.approx(29.0 - 27.99)),
        ("mean_ap_head", pytest.approx(50.0 - 49.7)),
    ]


def test_the_split_goes_by_the_name_that_the_card_gives_it() -> None:
    one = result(split="final", card_split="val", num_examples=6982)
    rows = comparison_table({"nlvr2": one}, models=[MODEL]).rows
    assert [(row.split, row.difference) for row in rows] == [("val", pytest.approx(87.5 - 88.7))]


def test_models_can_be_named() -> None:
    rows = comparison_table({"nlvr2": result()}, models=[MODEL]).rows
    assert [row.published and row.published.model for row in rows] == [MODEL]
    assert [row.published for row in comparison_table({"nlvr2": result()}, models=[]).rows] == [None]


def test_conditions_are_told() -> None:
    leaked = {"policy": "strict", "sets": {"nlvr2": {"test": {"still_in_training": 7, "pictures": 50}}}}
    (row,) = comparison_table({"nlvr2": result(contamination=leaked)}, models=[MODEL]).rows
    assert row.notes == (
        "unknown_answers: 0, counted as wrong",
        "weights: best epoch on the validation split",
        "7 of 50 test images are in the training set",
    )
    assert row.difference is not None


def test_two_evaluations_of_other_questions_are_told_apart() -> None:
    table = comparison_table({"one": result(), "two": result(data_digest="b"), "three": result()}, models=[])
    assert [[note for note in row.notes if "other examples" in note] for row in table.rows] == [
        [],
        ["other examples than one"],
        ["other examples than two"],
    ]


def test_a_split_of_a_test_server_names_its_submission_file() -> None:
    one = result(metrics={}, submission={"results.json": "[]"}, card="downstream/vqa2", task="vqa", split="test")
    (row,) = comparison_table({"vqa": one | {"num_examples": 447793}}).rows
    assert row.ours is None
    assert row.notes[0] == "for the test server: results.json"


def test_nan_is_shown_and_never_compared() -> None:
    table = comparison_table({"nlvr2": result(metrics={"accuracy": float("nan")})}, models=[MODEL])
    assert table.rows[0].difference is None
    assert " nan " in as_text(table)
    assert json.loads(as_json(table))[0]["ours"] is None


def test_a_result_without_metrics_is_an_error() -> None:
    with pytest.raises(CorruptArtifact, match="result of nlvr2"):
        comparison_table({"nlvr2": {"task": "vqa"}})


def test_every_format_has_the_same_rows() -> None:
    table = comparison_table({"nlvr2": result(), "mine": result(card="")})
    values = json.loads(as_json(table))
    read = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(values) == len(read) == len(table.rows) == 5
    assert [row["difference"] for row in read] == [
        "" if one["difference"] is None else str(one["difference"]) for one in values
    ]
    lines = as_text(table).splitlines()
    assert " ".join(lines[0].split()) == "evaluation split metric ours 95 % published model source difference notes"
    assert "  87.50  86.70 to 88.30      89.40  X2-VLM large 1B  leaderboard pages" in lines[4]
    assert lines[4].endswith("-1.90  [1] [2]")
    assert lines[-2:] == ["[1] unknown_answers: 0, counted as wrong", "[2] weights: best epoch on the validation split"]
    assert as_markdown(table).count("\n") == 2 + 5
    assert as_html(table).count("<tr>") == 1 + 5
    assert set(FORMATS) == {"text", "markdown", "csv", "json", "html"}


def test_names_cannot_write_markup_or_control_characters() -> None:
    table = comparison_table({"<script>|\x1b[31m": result()}, models=[MODEL])
    assert "<script>" not in as_html(table)
    assert "<script>" not in as_markdown(table)
    assert "\\|" in as_markdown(table)
    assert "\x1b" not in as_text(table)


def test_the_report_shows_the_table_only_beside_published_numbers() -> None:
    shown = render_report("e", {}, [], [], comparison_table({"nlvr2": result()}))
    assert "Beside published numbers" in shown
    assert "87.50" in shown
    assert "Beside published" not in render_report("e", {}, [], [], comparison_table({"mine": result(card="")}))
    assert as_text(comparison_table({})) == "nothing was evaluated"
    assert as_html(comparison_table({})) == ""
