"""The simulator: its object store counts as a real one is asked, its parts are planned by the real stages."""

import json
from pathlib import Path

import pytest

from pipelines.experiment import load_experiment
from pipelines.flow.run.planner import plan
from pipelines.simulation import measure
from pipelines.simulation.growth import fitted
from pipelines.simulation.measure import Measurement
from pipelines.simulation.outputs import Outputs
from pipelines.simulation.report import Prices, extrapolate, text
from pipelines.simulation.scenario import Scenario, large_source
from tests.e2e.conftest import run_job
from tests.support.experiments import experiment_file
from tests.support.flow.store_parts import FP, commit_texts
from x2vlm.errors import ConfigError

PRICES = Prices(writes=5.0, reads=0.4)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """130 parts of a large source: enough for several groups, and for one bucket."""
    path = experiment_file(tmp_path_factory.mktemp("experiment"), deduplicate={})
    return Scenario(load_experiment(str(path)), "laion", parts=130, rows_per_part=10_000, parts_in_all=1_300)


@pytest.fixture(scope="module")
def driven(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurement, Path]:
    folder = tmp_path_factory.mktemp("store")
    return measure.drive(scenario, folder), folder


def test_every_curation_node_is_driven_and_a_second_plan_finds_nothing_to_do(scenario: Scenario, driven):
    found, folder = driven
    by_node = {node.node: node for node in found.nodes}
    stages = {node.partition("/")[0] for node in by_node}
    assert stages >= {"sort", "download", "score", "evidence", "exact", "leaks", "stars", "deduplicate", "partition"}
    assert by_node["download/laion"].parts == 130
    assert by_node["pack/changed"].parts == scenario.num_shards == found.shards == round(8 * 130 / 1_300)
    assert plan(scenario.graph(), measure.store_of(folder), measure.NAME).is_noop
    again = measure.rerun(scenario, folder)
    assert again["rerun_requests"].get("PUT", 0) == 0
    assert again["rerun_seconds"] > 0


def test_requests_are_those_that_a_store_is_asked(driven):
    """A part asks for its record and its inputs, and puts its files and its record: `docs/engine.md`."""
    found, _ = driven
    asked = next(node for node in found.nodes if node.node == "filter/laion").worker_requests
    assert asked["GET"] == 130 * 2
    assert asked["PUT"] == 130 * (2 + 1)
    assert not {"LIST", "HEAD"} & set(asked)


def test_the_store_counts_what_the_client_asks_and_keeps_no_content_of_holes(tmp_path: Path):
    store = measure.store_of(tmp_path)
    fs = store.blobs.fs
    commit_texts(store, {"a.txt": "text"}, FP)
    assert fs.requests == {"PUT": 2}
    part = store.read_part("toy", FP)
    assert part is not None
    assert store.blobs.read(store.file_uri(part, part.files[0]).removeprefix(f"{store.uri}/")) == b"text"
    assert fs.requests == {"PUT": 2, "GET": 2}
    assert store.has_parts("toy", {FP}) == {FP}
    assert fs.requests == {"PUT": 2, "GET": 2, "HEAD": 1}
    hole = tmp_path / "hole"
    with hole.open("wb") as stream:
        stream.truncate(300 << 20)
    store.blobs.upload(hole, "large")
    assert fs.requests["PUT"] == 2 + 6 + 2  # six pieces of 50 MiB, and a request before and after them
    assert store.blobs.read_range("large", 5, 3) == bytes(3)
    assert (tmp_path / "objects.sqlite").stat().st_size < 1 << 20
    assert store.blobs.create("large", b"") is False
    assert store.blobs.find("parts") == sorted(store.blobs.find("parts"))


def test_no_stage_of_a_graph_is_without_made_up_parts(scenario: Scenario):
    assert {node.stage.name for node in scenario.graph().values()} <= Outputs({}, {}).stages


def test_growth_is_the_power_that_the_costs_have():
    quadratic = fitted([10, 20, 40], [3.0, 12.0, 48.0])
    assert quadratic.exponent == pytest.approx(2.0)
    assert quadratic.at(80) == pytest.approx(192.0)
    assert fitted([10], [5.0]).exponent is None
    assert fitted([10], [5.0]).at(30) == pytest.approx(15.0)
    assert fitted([10, 20], [0.01, 0.04], least=0.2).exponent is None
    assert fitted([10, 20], [0.0, 0.0]).at(30) == 0.0


def test_the_report_says_what_is_measured_and_what_is_extrapolated(driven):
    found, _ = driven
    told = text("changed", "laion", [found], 1_300, PRICES, True)
    assert "MEASURED at 130 parts (1,300,000 rows, 1 shards)" in told
    assert "EXTRAPOLATED to 1,300 parts from one size" in told
    download = next(one for one in extrapolate([found], 1_300) if one.node == "download/laion")
    assert download.costs["parts"] == pytest.approx(1_300)
    assert PRICES.of({"PUT": 1e6, "LIST": 1e6, "GET": 1e6, "DELETE": 1e6}) == pytest.approx(10.4)


def test_sizes_and_sources_that_cannot_be_are_refused(scenario: Scenario):
    with pytest.raises(ConfigError, match="no source nowhere"):
        large_source(scenario.experiment, "nowhere")
    assert large_source(load_experiment("base_1b_paper"), None) == "laion_en"


def test_the_job_prints_figures(tmp_path: Path):
    out = tmp_path / "figures.json"
    job = run_job("simulate.py", "sample", "--source", "laion", "--rows", "50000", "--sizes", "2,5", "--out", str(out))
    assert job.returncode == 0, job.stderr
    assert "MEASURED at 5 parts" in job.stdout
    assert [one["parts"] for one in json.loads(out.read_text())["measured"]] == [2, 5]
    refused = run_job("simulate.py", "sample", "--rows", "50000", "--sizes", "6")
    assert refused.returncode == 3
    assert "1 to 5 parts" in refused.stdout + refused.stderr
    refused = run_job("simulate.py", "sample", "--rows", "50000", "--out", str(tmp_path / "none" / "figures.json"))
    assert refused.returncode == 3
    assert "there is no folder" in refused.stdout + refused.stderr
    refused = run_job("simulate.py", "sample", "--sizes", "2,x")
    assert refused.returncode == 3
    assert "'2,x' is not whole numbers with commas between them" in refused.stdout + refused.stderr
