"""A driver writes down which parts are done: resuming reads pages, and whatever they do not know is asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.flow.audit.audit import audit
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.store.manifests import journal, paged
from pipelines.flow.store.manifests.journal import HeldRecords, Journal
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import committed_tree, counting, roots, run_all
from tests.support.flow.store_parts import record
from x2vlm.errors import StageFailed
from x2vlm.stores.calls import StoreUnavailable

NUM_PARTS = 30


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PAGE_PARTS", 4)
    monkeypatch.setattr(paged, "INLINE_PARTS", 4)
    monkeypatch.setattr(paged, "CHUNK_PARTS", 4)


def many_parts(folder: Path, **options):
    """The toy graph with NUM_PARTS filter parts."""
    toy.write_source(folder, "a", [f"line {number}" for number in range(NUM_PARTS)])
    return toy.toy_graph(folder, ["a"], read_config=toy.ReadConfig(rows_per_file=1), **options)


def journal_paths(store: Store) -> list[str]:
    return store.blobs.find("journal")


def test_a_failed_node_leaves_a_journal_and_a_finished_one_none(tmp_path: Path, small_pages: None):
    store = Store(f"memory://{tmp_path.name}")
    with pytest.raises(StageFailed, match="stopped here"):
        run_all(many_parts(tmp_path, filter_stage=_failing_at(21)), store)
    assert len(journal_paths(store)) == 6  # 21 parts were done before the one that failed
    # Eight more were on their way when it failed: they are there, and no page tells of them.
    assert run_all(many_parts(tmp_path), store).num_parts_run == 1 + 1
    assert journal_paths(store) == []


def test_a_store_that_refuses_pages_costs_no_part(tmp_path: Path, small_pages: None, monkeypatch, caplog):
    """The journal saves time alone: a run goes on without it, and says so."""
    store = Store(f"memory://{tmp_path.name}")

    create, delete = store.blobs.create, store.blobs.delete

    def create_one_page(path: str, data: bytes) -> bool:
        if path.startswith("journal/") and journal_paths(store):
            raise StoreUnavailable(f"{path}: try later")
        return create(path, data)

    def delete_no_page(path: str) -> None:
        if path.startswith("journal/"):
            raise StoreUnavailable(f"{path}: try later")
        delete(path)

    monkeypatch.setattr(store.blobs, "create", create_one_page)
    monkeypatch.setattr(store.blobs, "delete", delete_no_page)
    found = run_all(many_parts(tmp_path), store).nodes["filter/a"].manifest
    assert len(found.parts) == NUM_PARTS
    assert "event=journal_page_not_written" in caplog.text
    assert "event=journal_not_removed" in caplog.text
    assert len(journal_paths(store)) == 1


def test_resuming_reads_pages_instead_of_parts(tmp_path: Path, small_pages: None):
    """Of 29 parts that were done, those of full pages and of the last one are not opened."""
    store = Store(tmp_path / "store")
    graph = many_parts(tmp_path / "sources", filter_stage=_failing_at(29))
    with pytest.raises(StageFailed):
        run_all(graph, store)
    graph = many_parts(tmp_path / "sources")
    planned = plan(graph, store, "exp")
    assert planned["filter/a"].num_done == 29
    counted, counts = counting(Store(store.uri))
    read: list[str] = []
    original = counted.blobs.read
    counted.blobs.read = lambda path: (read.append(path), original(path))[1]
    assert run(graph, planned, counted, InlineRunner()).num_parts_run == 2
    assert counts["read"] > 0
    assert len([path for path in read if path.startswith("journal/")]) == 8  # 29 parts, 4 a page
    parts = [path for path in read if path.startswith("parts/filter")]
    assert len(parts) == 1  # of the part that was missing


def _failing_at(number: int):
    from dataclasses import replace

    def fail(config, inputs, part, out):
        if part.name == f"{number:05d}":
            raise StageFailed("stopped here")
        return toy.filter_lines(config, inputs, part, out)

    return replace(toy.FILTER, run_part=fail)


def test_a_damaged_page_and_a_lost_part_cost_time_only(tmp_path: Path, small_pages: None):
    sources = tmp_path / "sources"
    expected = run_all(many_parts(sources), Store(tmp_path / "expected"))
    store = Store(tmp_path / "store")
    with pytest.raises(StageFailed):
        run_all(many_parts(sources, filter_stage=_failing_at(29)), store)
    first, second, *_ = (Path(store.uri_of(path)) for path in journal_paths(store))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    known = next(iter(_records_of(second)))
    folder = Path(store.uri_of(f"parts/filter/{known[:2]}/{known}"))
    (folder / "part.json").unlink()
    found = run_all(many_parts(sources), store)
    assert found.num_parts_run == 1 + 1 + 1  # the lost part, the one that had failed, join
    assert roots(found) == roots(expected)
    assert committed_tree(tmp_path / "store") == committed_tree(tmp_path / "expected")
    assert audit(store, "join/all").is_clean


def _records_of(page: Path) -> list[str]:
    import pyarrow.parquet as pq

    return [digest.hex() for digest in pq.read_table(page)["fingerprint"].to_pylist()]


def test_a_journal_that_tells_of_a_part_that_is_gone_forgets_it(tmp_path: Path, small_pages: None):
    """Made again it may be another one: a stale record would name files that nobody has."""
    store = Store(tmp_path / "store")
    book = Journal(store, "toy", "ab" * 32)
    records = [record(f"{number:064x}") for number in range(9)]
    for one in records:
        book.add(one)
    book.flush()
    there = [one.fingerprint for one in records[1:]]
    assert [one.fingerprint for one in journal.journalled(Journal(store, "toy", "ab" * 32), there)] == there
    assert [one.fingerprint for one in Journal(store, "toy", "ab" * 32).read()] == there


def test_held_records_are_what_was_held():
    held = HeldRecords([record(), record("cd" * 32, summary={"a": [1.5, "ü"]})])
    held.add(record(seconds=2.0))
    assert len(held) == 2
    assert held["cd" * 32] == record("cd" * 32, summary={"a": [1.5, "ü"]})
    assert held[record().fingerprint].seconds == 2.0
    assert held.get("00" * 32) is None


@pytest.mark.parametrize(
    ("point", "count"), [("journal:before", 3), ("journal:after", 3), ("manifest:table_written", 1)]
)
def test_a_driver_killed_at_its_journal_loses_nothing(tmp_path: Path, project_root: Path, point: str, count: int):
    sources = tmp_path / "sources"
    graph = many_parts(sources)
    expected = run_all(graph, Store(tmp_path / "expected"))
    store = Store(tmp_path / "store")
    command = [sys.executable, "-m", "tests.support.flow.crash", store.uri, str(sources), point, str(count), "a", "1"]
    killed = subprocess.run(
        command, cwd=project_root, check=False, capture_output=True, text=True, env={**os.environ, "JOURNAL_PAGE": "4"}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = [path for path in store.blobs.find("parts") if path.endswith("part.json")]
    found = run_all(graph, store)
    assert found.num_parts_run == 1 + NUM_PARTS + 1 - len(before)
    assert roots(found) == roots(expected)
    assert committed_tree(tmp_path / "store") == committed_tree(tmp_path / "expected")
