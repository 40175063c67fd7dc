"""Requests by arithmetic against those that the simulator counts with the real store client."""

from pathlib import Path

import pytest

from pipelines.experiment import load_experiment
from pipelines.simulation import measure
from pipelines.simulation.scenario import Scenario
from tests.support.experiments import experiment_file
from x2vlm.cost.requests import Curation, curation_requests, gets_of, puts_of, request_lines


def test_files_are_put_and_read_in_pieces() -> None:
    assert [puts_of(size << 20) for size in (0, 99, 100, 101, 300)] == [1, 1, 4, 5, 8]
    assert [gets_of(size << 20) for size in (0, 64, 65, 300)] == [1, 1, 2, 5]


def test_what_is_computed_is_what_is_counted(tmp_path: Path) -> None:
    path = experiment_file(tmp_path, deduplicate={}, partition={"num_shards": 100})
    scenario = Scenario(load_experiment(str(path)), "laion", 130, 10_000, 130)
    counted = measure.drive(scenario, tmp_path)
    nodes = {node.node.partition("/")[0]: node for node in counted.nodes if node.node != "other sources"}
    for stage in curation_requests(Curation(rows=1_300_000, num_shards=100)):
        node = nodes[stage.stage]
        puts, gets = (node.worker_requests[kind] for kind in ("PUT", "GET"))
        # Other sources have a part each, and a group each where parts are in groups. Made-up rows of a part lie evenly
        # in the shards that its range meets, so some shards are put whole and others in pieces.
        slack = 0.35 if stage.stage == "pack" else 0.15
        assert puts / node.parts == pytest.approx(stage.puts / stage.parts, rel=slack), stage
        if stage.stage == "pack":  # their rows go into every shard; and the plan reads listings
            gets += node.driver_requests["GET"] - (len(scenario.experiment.sources) - 2) * (100 + 1)
        assert gets == pytest.approx(stage.gets, rel=slack), stage


def test_the_lines_name_what_was_assumed() -> None:
    text = "\n".join(request_lines(Curation(1_300_000_000, 100_000), 5.0, 0.4))
    assert "81% of addresses answer, 72% of these rows are kept, 30,000 bytes an image" in text
    assert "130,000" in text
    assert "$5 a million PUT" in text
