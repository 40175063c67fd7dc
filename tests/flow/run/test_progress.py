"""A run as lines of a log."""

import logging

import pytest

from pipelines.flow.run.counters import NodeCounters
from pipelines.flow.run.progress import Progress
from pipelines.flow.store.artifact import CountRecord, PartRecord
from tests.support.flow import toy
from tests.support.flow.helpers import run_all
from x2vlm.errors import StageFailed


def test_every_node_has_its_lines(tmp_path, local_store, caplog):
    graph = toy.toy_graph(tmp_path)
    with caplog.at_level(logging.INFO):
        run_all(graph, local_store, on_event=Progress())
    assert "event=node_started node=filter/a action=RUN parts=4 done=0" in caplog.text
    assert "event=node_finished node=filter/a parts=4 rows_in=10 rows_out=7" in caplog.text
    assert "event=run_finished ok=True" in caplog.text
    with caplog.at_level(logging.INFO):
        run_all(graph, local_store, on_event=Progress())
    assert "event=node_reused node=filter/a" in caplog.text


def test_a_failure_names_node_and_part(tmp_path, local_store, caplog):
    toy.write_source(tmp_path, "a", ["boom"])
    with caplog.at_level(logging.INFO), pytest.raises(StageFailed):
        run_all(toy.toy_graph(tmp_path), local_store, on_event=Progress())
    assert "event=node_failed node=filter/a part=00000 error=ValueError: a line says boom" in caplog.text
    assert "event=node_blocked node=join/all by=filter/a" in caplog.text


@pytest.mark.parametrize("late", [{"rows": 3.0}, {"rows": 8.0, "kept": 8.0}, {"rows": 0.0, "dropped.short": 1.0}])
def test_what_a_finished_part_reported_comes_too_late(late):
    """Reports travel on their own, from another machine: the counts of the part's record are the last word."""
    counters = NodeCounters()
    counters.report("00000", {"rows": 3.0, "bytes": 40.0})
    count = CountRecord(num_in=8, num_out=7, dropped={"short": 1})
    record = PartRecord(
        stage="filter", version=1, fingerprint="f", spec={}, reads=[], files=[], counts={"rows": count}, summary={}
    )
    counters.finish("00000", record)
    counters.report("00000", late)
    assert counters.totals() == {"rows": 8, "kept": 7, "bytes": 40.0, "dropped.short": 1.0}
