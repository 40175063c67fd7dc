"""Live counters: they arrive while a part runs, cost nothing where nobody listens, and can be lost without harm."""

import logging
from pathlib import Path

import pytest

from pipelines.flow.run.counters import NodeCounters, log_line
from pipelines.flow.run.events import PartDone, PartProgress
from pipelines.flow.run.progress import Progress
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import Recorder, committed_tree, roots, run_all
from tests.support.flow.live_parts import BOMB, TWICE
from x2vlm.errors import StageFailed


def test_reports_reach_the_listener_and_change_nothing(tmp_path: Path) -> None:
    silent, heard, recorder = Store(tmp_path / "silent"), Store(tmp_path / "heard"), Recorder()
    expected = run_all(toy.toy_graph(tmp_path, filter_stage=TWICE), silent)
    result = run_all(toy.toy_graph(tmp_path, filter_stage=TWICE), heard, on_event=recorder)
    assert roots(result) == roots(expected)
    assert committed_tree(Path(heard.uri)) == committed_tree(Path(silent.uri))
    seen = [event for event in recorder.of(PartProgress) if event.node == "filter/a"]
    parts = {event.part for event in recorder.of(PartDone) if event.node == "filter/a"}
    assert sorted((event.part, event.counters["rows"]) for event in seen) == sorted(
        (p, n) for p in parts for n in (1, 3)
    )


def test_nothing_is_counted_where_nobody_listens(tmp_path: Path, local_store: Store) -> None:
    graph = toy.toy_graph(tmp_path, filter_stage=BOMB)
    with pytest.raises(StageFailed, match="nobody counts"):
        run_all(graph, local_store, on_event=Recorder())
    run_all(graph, local_store)


def test_a_log_gets_a_line_now_and_then_and_a_funnel_at_the_end(
    tmp_path: Path, local_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    graph = toy.toy_graph(tmp_path, filter_stage=TWICE)
    with caplog.at_level(logging.INFO):
        run_all(graph, local_store, on_event=Progress(seconds_between_lines=3600))
    lines = [line for line in caplog.messages if "event=node_progress node=filter/a" in line]
    assert len(lines) == 1
    assert "rows=1 kept=0 success_rate=0.000 dropped.short=1" in lines[0]
    (funnel,) = [line for line in caplog.messages if "event=node_funnel node=filter/a" in line]
    numbers = dict(word.split("=") for word in funnel.split())
    kept_and_dropped = {name: int(value) for name, value in numbers.items() if name not in ("event", "node", "rows_in")}
    assert int(numbers["rows_in"]) == sum(kept_and_dropped.values()) == 10
    assert kept_and_dropped["kept"] == 7


def test_totals_grow_and_end_with_the_true_counts(tmp_path: Path, local_store: Store) -> None:
    recorder = Recorder()
    run_all(toy.toy_graph(tmp_path), local_store, on_event=recorder)
    record = next(event.record for event in recorder.of(PartDone) if event.node == "filter/a")
    counters = NodeCounters()
    counters.report("a", {"rows": 1, "bytes": 100, "dropped.wrong": 1})
    assert counters.look(10.0) == ({"bytes": 100, "rows": 1, "dropped.wrong": 1}, {})
    counters.report("b", {"rows": 5, "bytes": 300})
    totals, rates = counters.look(12.0)
    assert (totals["rows"], rates) == (6, {"rows": 2.5, "bytes": 150.0})
    assert log_line(totals, rates) == "rows=6 bytes=400 rows_per_second=2.5 bytes_per_second=150.0 dropped.wrong=1"
    counters.finish("a", record)
    assert counters.totals()["rows"] == record.counts["rows"].num_in + 5
    assert "dropped.wrong" not in counters.totals()
