"""What becomes of a run whose part fails, loses rows, fills the disk or reads damaged input."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.flow.run.events import (
    Action,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    PartDone,
)
from pipelines.flow.stage import Count, Graph, Node, PartResult, SourceFile
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import Recorder, run_all
from x2vlm.errors import ConfigError, StageFailed


def test_lost_rows_fail_the_node(tmp_path: Path, local_store: Store):
    toy.write_source(tmp_path, "a", ["first", "lose", "third"])
    with pytest.raises(StageFailed, match=r"filter/a, part 00000: .*3 in, but 2 out \+ 0 dropped = 2"):
        run_all(toy.toy_graph(tmp_path), local_store)
    assert local_store.read_ref("exp", "filter/a") is None
    assert local_store.read_ref("exp", "filter/b") is not None


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"rows": Count(1, 2, {"x": -1})}, "1 in, but 2 out"),
        ({"boxes": Count(1, 1)}, "not its rows"),
        ({"rows": Count(1, 1), "boxes": Count(2, 1)}, "boxes: 2 in, but 1 out"),
        (None, "not a PartResult"),
    ],
)
def test_counts_that_cannot_be_are_caught(tmp_path: Path, local_store: Store, counts, words: str):
    def lie(config, inputs, part, out):
        return None if counts is None else PartResult(counts)

    graph = toy.toy_graph(tmp_path, ["a"], filter_stage=replace(toy.FILTER, run_part=lie))
    with pytest.raises(StageFailed, match=words):
        run_all(graph, local_store)
    assert local_store.blobs.find("parts/filter") == []


def test_zero_rows_fail_unless_allowed(tmp_path: Path, local_store: Store):
    config = toy.FilterConfig(min_chars=100)
    with pytest.raises(StageFailed, match=r"filter/a: of 10 rows in, none came out \(too_short 10\)"):
        run_all(toy.toy_graph(tmp_path, ["a"], filter_config=config), local_store)
    graph = toy.toy_graph(tmp_path, ["a"], filter_config=config, filter_stage=replace(toy.FILTER, allow_zero_rows=True))
    result = run_all(graph, local_store, targets=["read/a", "filter/a"])
    assert result.nodes["filter/a"].manifest.counts["rows"].num_out == 0


def test_a_node_without_parts_has_zero_rows(tmp_path: Path, local_store: Store):
    stage = replace(toy.READ, plan_parts=lambda config, inputs: [])
    source = SourceFile(str(toy.write_source(tmp_path, "a", ["x"])), card="a")
    for allowed in (False, True):
        graph = Graph([Node("read/a", replace(stage, allow_zero_rows=allowed), toy.ReadConfig(), {"files": (source,)})])
        if allowed:
            assert run_all(graph, local_store).nodes["read/a"].manifest.parts == []
        else:
            with pytest.raises(StageFailed, match="its inputs are empty"):
                run_all(graph, local_store)


def test_a_failing_part_lets_others_finish_and_blocks_what_reads_it(tmp_path: Path, local_store: Store):
    toy.write_source(tmp_path, "a", ["first", "second", "third", "boom", "fifth"])
    recorder = Recorder()
    with pytest.raises(StageFailed, match="filter/a, part 00001: ValueError: a line says boom") as caught:
        run_all(toy.toy_graph(tmp_path), local_store, on_event=recorder)
    assert "in filter_lines" in caught.value.__notes__[0]  # the original traceback
    assert [(event.node, event.part) for event in recorder.of(NodeFailed)] == [("filter/a", "00001")]
    assert "in filter_lines" in recorder.of(NodeFailed)[0].error
    assert [(event.node, event.by) for event in recorder.of(NodeBlocked)] == [("join/all", "filter/a")]
    assert {event.node for event in recorder.of(NodeFinished)} == {"read/a", "filter/b", "read/b"}
    assert recorder.events[-1].ok is False
    assert "boom" in recorder.events[-1].error
    # The good part of the failed node is kept for the next run.
    toy.write_source(tmp_path, "a", ["first", "second", "third", "fourth", "fifth"])
    recorder = Recorder()
    run_all(toy.toy_graph(tmp_path), local_store, on_event=recorder)
    assert [event.part for event in recorder.of(PartDone) if event.node == "filter/a"] == ["00001"]


def test_the_first_of_several_failures_is_raised(tmp_path: Path, local_store: Store):
    for name in "ab":
        toy.write_source(tmp_path, name, ["boom"])
    recorder = Recorder()
    with pytest.raises(StageFailed, match="filter/a"):
        run_all(toy.toy_graph(tmp_path, ["a", "b", "c"]), local_store, on_event=recorder)
    assert [event.node for event in recorder.of(NodeFailed)] == ["filter/a", "filter/b"]
    assert local_store.read_ref("exp", "filter/c") is not None


def test_a_failing_finish_fails_the_node(tmp_path: Path, local_store: Store):
    def broken(config, parts):
        raise ZeroDivisionError("no parts")

    def unhappy(config, parts):
        raise ConfigError("too few parts")

    for function, words in ((broken, "finish failed: ZeroDivisionError"), (unhappy, "too few parts")):
        graph = toy.toy_graph(tmp_path, ["a"], filter_stage=replace(toy.FILTER, finish=function))
        with pytest.raises(StageFailed, match=words):
            run_all(graph, local_store)


def test_a_full_disk_inside_a_stage_is_explained(tmp_path: Path, local_store: Store):
    def full(config, inputs, part, out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    graph = toy.toy_graph(tmp_path, ["a"], filter_stage=replace(toy.FILTER, run_part=full))
    with pytest.raises(StageFailed, match=r"ENOSPC\): the disk is full: free some space, then rerun"):
        run_all(graph, local_store)
    assert local_store.blobs.find("tmp") == local_store.blobs.find("parts/filter") == []


def test_a_damaged_input_is_named_and_a_forced_run_mends_it(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    first = run_all(graph, local_store, targets=["read/a"])
    record = first.nodes["read/a"].manifest.parts[0].record
    path = Path(local_store.file_uri(record, record.files[1]))
    right = path.read_bytes()
    path.write_bytes(right.replace(b"line", b"LINE", 1))
    with pytest.raises(
        StageFailed, match=r"filter/a, part 00001: CorruptArtifact: .*rows-00001.txt.*--force"
    ) as caught:
        run_all(graph, local_store)
    assert record.files[1].sha256 in str(caught.value)
    run_all(graph, local_store, targets=["read/a"], force={"read/a"})
    assert path.read_bytes() == right
    result = run_all(graph, local_store)
    assert result.nodes["read/a"].produced is False
    assert result.nodes["filter/a"].action is Action.RESUME
