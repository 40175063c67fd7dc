"""The spool survives crashes and says what it lost."""

import logging
import uuid
from pathlib import Path

import pytest

from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.lineage.spool import Spool, spools
from pipelines.flow.store.store import Store

URI = "http://localhost:1"


def record(number: int) -> LineageRecord:
    return LineageRecord(type="node_started", dag_run="20260101T000000-a", experiment="e", time_ms=number, node="a/b")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_records_come_back_in_order(store: Store) -> None:
    spool = Spool(store, "20260101T000000-a")
    for number in range(12):
        spool.append(record(number))
    again = Spool(store, "20260101T000000-a")
    again.append(record(12))
    assert [r.time_ms for r in again.read()] == list(range(13))
    assert [s.dag_run for s in spools(store)] == ["20260101T000000-a"]


def test_markers_are_per_server_and_a_damaged_one_means_nothing_delivered(store: Store) -> None:
    spool = Spool(store, "20260101T000000-a")
    spool.append(record(0))
    spool.mark_delivered(URI, 1)
    assert spool.num_delivered(URI) == 1
    assert spool.num_delivered("http://elsewhere") == 0
    marker = next(path for path in store.blobs.find("lineage") if "delivered" in path)
    store.blobs.write(marker, b"{")
    assert spool.num_delivered(URI) == 0
    assert len(spools(store)) == 1


def test_a_line_torn_by_a_crash_takes_no_other_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(Store(tmp_path), "20260101T000000-a")
    spool.append(record(0))
    path = tmp_path / "lineage" / "20260101T000000-a.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    spool.append(record(1))
    with caplog.at_level(logging.WARNING):
        assert [r.time_ms for r in spool.read()] == [0, 1]
    assert "line=2" in caplog.text


def test_one_deliverer_at_a_time(tmp_path: Path) -> None:
    spool = Spool(Store(tmp_path), "20260101T000000-a")
    with spool.exclusive() as first, Spool(Store(tmp_path), "20260101T000000-a").exclusive() as second:
        assert (first, second) == (True, False)
    with spool.exclusive() as again:
        assert again


def test_no_spools_in_an_empty_store(store: Store) -> None:
    assert spools(store) == []
