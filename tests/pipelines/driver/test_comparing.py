"""`jobs/evaluate.py <experiment> --table`: the finished evaluations of a store, in every format."""

import argparse
import json
from pathlib import Path

import pytest

from pipelines import driver
from pipelines.driver.arguments import TABLE_FORMATS
from pipelines.flow.stage import Count, Graph, Inputs, Node, Part, PartReader, PartResult, PartWriter, Stage
from pipelines.flow.store.store import Store
from pipelines.report.comparison_formats import FORMATS
from tests.support.flow.helpers import run_all
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError


class Measured(FrozenConfig):
    accuracy: float
    num_examples: int


def plan_one(config: Measured, inputs: Inputs) -> list[Part]:
    return [Part(name="grounding")]


def write_result(config: Measured, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    result = {
        "task": "grounding",
        "headline": "accuracy",
        "card": "downstream/refcoco_plus",
        "card_split": "testA",
        "selection": {"label": "last epoch"},
        "metrics": {"accuracy": config.accuracy},
        "num_examples": config.num_examples,
    }
    (out.path / "result.json").write_text(json.dumps(result))
    return PartResult(counts={"rows": Count(1, 1)})


STAGE = Stage(name="evaluate", version=1, config_type=Measured, slots=(), plan_parts=plan_one, run_part=write_result)


def node(name: str, accuracy: float, num_examples: int) -> Node:
    return Node(f"evaluate/{name}", STAGE, Measured(accuracy=accuracy, num_examples=num_examples), {})


@pytest.fixture
def store(tmp_path: Path) -> str:
    nodes = [node("whole", 90.0, 5726), node("part", 95.0, 100)]
    run_all(Graph(nodes), Store(str(tmp_path)), "sample")
    return str(tmp_path)


def asked(store: str, table: str) -> driver.Outcome:
    return driver.compare_evaluations(argparse.Namespace(experiment="sample", store=store, table=table))


def test_whole_splits_are_compared_and_parts_are_not(store: str) -> None:
    rows = json.loads(asked(store, "json").text)
    differences = {(row["evaluation"], row["model"]): row["difference"] for row in rows}
    assert differences["whole", "X2-VLM large 1B"] == pytest.approx(-2.1)
    assert {key: value for key, value in differences.items() if key[0] == "part" and value is not None} == {}
    assert len(rows) == 2 * 4


@pytest.mark.parametrize("name", TABLE_FORMATS)
def test_every_format_that_is_offered_is_made(store: str, name: str) -> None:
    assert set(TABLE_FORMATS) == set(FORMATS)
    text = asked(store, name).text
    assert "90.00" in text or "90.0" in text
    assert "X2-VLM large 1B" in text


def test_without_an_evaluation_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no evaluation of sample is finished .* run --tasks: retrieval, grounding"):
        asked(str(tmp_path / "empty"), "text")
