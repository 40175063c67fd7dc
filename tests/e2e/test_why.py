"""Asking what happened to a row: every planted defect is told with its stage and rule, and what-ifs come true."""

import csv
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipelines.experiment import load_experiment
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.why.trace import trace_rows
from pipelines.why.what_if import what_if
from tests.e2e.conftest import ROOT, SampleRun, run_job
from x2vlm.errors import ConfigError


def planted() -> list[dict[str, str]]:
    with (ROOT / "datasets/sample/planted.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if not row["row_key"].startswith("concept:")]


def test_every_planted_row_is_told_with_its_stage_and_rule(sample_run: SampleRun) -> None:
    store = Store(str(sample_run.store))
    for row in planted():
        (trace,) = trace_rows(store, "sample", f"{row['source']}:{row['row_key']}")
        assert (trace.source, trace.source_row) == (row["source"], row["row_key"])
        # A caption or concept that names no listed image is told under the row it names.
        drops = [step for step in trace.steps if step.facts.get("rule") not in (None, "row_dropped")]
        if row["rule"] == "kept":
            of_rows = [step for step in drops if step.facts.get("unit") == "row"]
            assert not [step for step in of_rows if step.node.startswith(f"{row['stage']}/")], row
        else:
            assert {(step.node.split("/")[0], step.facts["rule"]) for step in drops} == {(row["stage"], row["rule"])}
            assert not any(step.verdict in ("packed", "trained") for step in trace.steps)


def test_a_row_is_found_by_key_address_and_row_and_compared_values_are_told(sample_run: SampleRun) -> None:
    store = Store(str(sample_run.store))
    (trace,) = trace_rows(store, "sample", "laion:7")
    assert trace_rows(store, "sample", trace.key) == [trace]
    assert trace in trace_rows(store, "sample", trace.url)
    (kept,) = [step for step in trace.steps if step.node == "filter/laion"]
    assert kept.facts["min_short_edge"] == "224 against 224"
    assert kept.facts["max_aspect_ratio"] == "1.33929 against 3"
    with pytest.raises(ConfigError, match=r"no row of sample is called 'nobody'.*sources: .*laion"):
        trace_rows(store, "sample", "nobody")


def test_the_job_answers_in_json(sample_run: SampleRun) -> None:
    job = run_job("why.py", "sample", "coco:401416", "--store", str(sample_run.store), "--json")
    assert job.returncode == 0, job.stderr
    (row,) = job.json["rows"]
    small = [step["facts"] for step in row["steps"] if step["facts"].get("rule") == "box_too_small"]
    assert len(small) == 5
    assert all(facts["value"] < facts["threshold"] == 256.0 for facts in small)
    assert run_job("why.py", "sample", "--store", str(sample_run.store)).returncode == 3


def test_what_a_what_if_says_is_what_a_run_then_does(sample_copy: Path, tmp_path: Path) -> None:
    changes = {"min_short_edge": 256, "max_aspect_ratio": 2.0}
    store = Store(str(sample_copy))
    answer = what_if(store, load_experiment("sample", str(sample_copy)), changes)
    values = yaml.safe_load((ROOT / "pipelines/experiments/sample.yaml").read_text())
    (tmp_path / "sample.yaml").write_text(yaml.safe_dump({**values, "filter": changes}))
    experiment = load_experiment(str(tmp_path / "sample.yaml"), str(sample_copy))
    graph = build_graph(experiment)
    result = run(graph, plan(graph, store, "sample", ["filter/*"]), store, InlineRunner(), lambda event: None, {})
    assert sum(funnel.rows_out for funnel in answer.then) < sum(funnel.rows_out for funnel in answer.now)
    for funnel in answer.then:
        rows = result.nodes[f"filter/{funnel.source}"].manifest.counts["rows"]
        expected = Counter(rows.dropped)
        assert (funnel.rows_in, Counter(funnel.dropped)) == (rows.num_in, expected), funnel.source
        assert funnel.unscored == 0  # both thresholds are stricter than those that were scored under
