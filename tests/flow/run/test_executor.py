"""A run does what is due and nothing else, loses no row without saying so, and stops where it must."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.flow.fingerprint import sha256_of
from pipelines.flow.run.events import (
    Action,
    NodePlanned,
    NodeStarted,
    PartDone,
    RunFinished,
    RunStarted,
)
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Count, Graph, Node, Part, PartResult, Read, Runtime, SourceFile
from pipelines.flow.store.lease import acquire
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import Recorder, actions, committed_tree, roots, run_all, snapshot
from x2vlm.errors import PlanBusy, StageFailed


def joined(store: Store, result) -> list[str]:
    record = result.nodes["join/all"].manifest.parts[0].record
    relative = store.file_uri(record, record.files[0]).removeprefix(f"{store.uri}/")
    return store.blobs.read(relative).decode().splitlines()


def test_the_rows_that_should_come_out_do_on_every_store(tmp_path: Path, store: Store):
    result = run_all(toy.toy_graph(tmp_path), store)
    expected = [line for name in "ab" for line in toy.lines_of(name, 10) if len(line) >= 3]
    assert joined(store, result) == expected
    counts = result.nodes["filter/a"].manifest.counts["rows"].to_count()
    assert counts == Count(10, 7, {"too_short": 3})
    assert result.num_parts_run == 2 + 8 + 1


def test_a_second_run_does_nothing(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    run_all(graph, local_store)
    before = snapshot(Path(local_store.uri), "parts", "artifacts", "refs")
    again = run_all(graph, local_store)
    assert again.is_noop
    assert again.num_parts_run == 0
    assert snapshot(Path(local_store.uri), "parts", "artifacts", "refs") == before
    assert list((Path(local_store.uri) / "tmp").iterdir()) == []


def test_manifests_can_be_checked_without_code(tmp_path: Path, local_store: Store):
    config = toy.FilterConfig(min_chars=4)
    result = run_all(toy.toy_graph(tmp_path, ["a"], filter_config=config), local_store, provenance={"git_sha": "abc"})
    manifest = result.nodes["filter/a"].manifest
    assert manifest.provenance["git_sha"] == "abc"
    assert manifest.provenance["effective_config"] == {"min_chars": 4, "upper": False}
    assert manifest.summary == {"metrics": {"longest": len("a line 9")}}
    upstream = result.nodes["read/a"]
    assert [(i.slot, i.node, i.root, i.manifest_sha256, i.manifest_path) for i in manifest.inputs] == [
        ("rows", "read/a", upstream.manifest.root, upstream.manifest_sha256, upstream.manifest_path)
    ]
    parts = [[part.name, part.record.fingerprint] for part in manifest.parts]
    identity = {"stage": "filter", "version": 1, "config": manifest.config}
    assert manifest.fingerprint == sha256_of({**identity, "parts": parts})
    for part in manifest.parts:
        reads = [[read.slot, read.sha256] for read in part.record.reads]
        assert part.record.fingerprint == sha256_of({**identity, "spec": part.record.spec, "reads": reads})
    source = result.nodes["read/a"].manifest.inputs[0]
    assert (source.node, source.uri, source.bytes) == (
        "source:a",
        str(tmp_path / "a.txt"),
        (tmp_path / "a.txt").stat().st_size,
    )


def test_references_name_what_was_finished(tmp_path: Path, store: Store):
    result = run_all(toy.toy_graph(tmp_path), store)
    for key, event in result.nodes.items():
        ref = store.read_ref("exp", key)
        assert (ref.manifest_path, ref.manifest_sha256, ref.root) == (
            event.manifest_path,
            event.manifest_sha256,
            event.manifest.root,
        )
        assert store.read_manifest(ref.manifest_path) == (event.manifest, event.manifest_sha256)


def test_another_experiment_gets_its_own_references_and_no_work(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    first = run_all(graph, local_store, "one")
    second = run_all(graph, local_store, "two")
    assert second.is_noop
    assert local_store.read_ref("two", "join/all").manifest_path == first.nodes["join/all"].manifest_path


def test_equal_bytes_upstream_stop_a_change(tmp_path: Path, local_store: Store):
    run_all(toy.toy_graph(tmp_path), local_store)
    # Every line is either "no" or longer than four characters: min_chars=4 drops the same lines as min_chars=3.
    changed = toy.toy_graph(tmp_path, filter_config=toy.FilterConfig(min_chars=4))
    assert actions(plan(changed, local_store, "exp"))["join/all"] == "RUN"
    result = run_all(changed, local_store)
    assert result.nodes["filter/a"].action is Action.RUN
    assert result.nodes["join/all"].action is Action.REUSE
    assert result.num_parts_run == 8


def test_growth_runs_only_the_new_parts(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    run_all(graph, local_store)
    toy.write_source(tmp_path, "a", [*toy.lines_of("a", 10)[:9], *toy.lines_of("more", 6)])
    recorder = Recorder()
    run_all(graph, local_store, on_event=recorder)
    assert [event.part for event in recorder.of(PartDone) if event.node == "filter/a"] == ["00003", "00004"]
    started = next(event for event in recorder.of(NodeStarted) if event.node == "filter/a")
    assert (started.action, started.num_parts, started.num_done) == (Action.RESUME, 5, 3)


def test_scheduling_order_does_not_show(tmp_path: Path):
    found, trees = [], []
    for seed in (None, 1, 2, 3):
        store = Store(tmp_path / f"store-{seed}")
        for bound in (1, 3, 512):
            result = run_all(toy.toy_graph(tmp_path), store, runner=InlineRunner(seed), max_in_flight=bound)
            found.append(roots(result))
        trees.append(committed_tree(Path(store.uri)))
    assert all(item == found[0] for item in found)
    assert all(tree == trees[0] for tree in trees)


class WatchingRunner(InlineRunner):
    """Remembers how many parts were submitted and unfinished at a time, per node."""

    def __init__(self) -> None:
        super().__init__(shuffle_seed=0)
        self.open: dict[int, str] = {}
        self.most: dict[str, int] = {}

    def submit(self, node, function, *args):
        handle = super().submit(node, function, *args)
        self.open[handle] = node.key
        for key in (node.key, "all"):
            now = sum(1 for other in self.open.values() if key in (other, "all"))
            self.most[key] = max(self.most.get(key, 0), now)
        return handle

    def result(self, handle):
        del self.open[handle]
        return super().result(handle)


def test_bounds_on_parts_in_flight_hold(tmp_path: Path, local_store: Store):
    toy.write_source(tmp_path, "a", toy.lines_of("a", 60))
    runner = WatchingRunner()
    run_all(toy.toy_graph(tmp_path, runtime=Runtime(max_in_flight=4)), local_store, runner=runner, max_in_flight=6)
    assert runner.most["filter/a"] == 4
    assert runner.most["all"] == 6


def test_equal_parts_of_a_node_run_once(tmp_path: Path, local_store: Store):
    toy.write_source(tmp_path, "a", ["same"] * 12)
    result = run_all(toy.toy_graph(tmp_path, ["a"]), local_store)
    manifest = result.nodes["filter/a"].manifest
    assert len(manifest.parts) == 4
    assert len({part.record.fingerprint for part in manifest.parts}) == 1
    assert manifest.counts["rows"].num_out == 12
    assert result.num_parts_run == 3


def test_force_runs_again_and_keeps_equal_results(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    first = run_all(graph, local_store)
    before = snapshot(Path(local_store.uri), "parts", "artifacts", "refs")
    again = run_all(graph, local_store, force={"filter/*"})
    assert again.num_parts_run == 8
    assert (again.nodes["filter/a"].forced, again.nodes["filter/a"].produced) == (True, True)
    assert again.nodes["join/all"].produced is False
    assert roots(again) == roots(first)
    assert snapshot(Path(local_store.uri), "parts", "artifacts", "refs") == before


def test_force_of_a_stage_that_is_not_pure_keeps_the_first_result(tmp_path: Path, local_store: Store, caplog):
    answers = iter(["first", "second"])

    def ask(config, inputs, part, out):
        (out.path / "answer.txt").write_text(next(answers))
        return PartResult({"rows": Count(1, 1)})

    source = SourceFile(str(toy.write_source(tmp_path, "a", ["x"])), card="a")
    graph = Graph([Node("read/a", replace(toy.READ, run_part=ask), toy.ReadConfig(), {"files": (source,)})])
    first = run_all(graph, local_store)
    with caplog.at_level(logging.WARNING):
        again = run_all(graph, local_store, force={"read/a"})
    assert roots(again) == roots(first)
    assert "event=commit_differs" in caplog.text
    # A part that was lost and comes out different gets a new manifest.
    for path in local_store.blobs.find("parts"):
        local_store.blobs.delete(path)
    answers = iter(["third"])
    third = run_all(graph, local_store)
    assert roots(third) != roots(first)
    assert local_store.read_manifest(third.nodes["read/a"].manifest_path)[0] == third.nodes["read/a"].manifest


def test_events_tell_the_whole_story_in_order(tmp_path: Path, local_store: Store):
    graph, recorder = toy.toy_graph(tmp_path, ["a"]), Recorder()
    run_all(graph, local_store, on_event=recorder, provenance={"git_sha": "abc"})
    assert isinstance(recorder.events[0], RunStarted)
    assert recorder.events[0].nodes == tuple(graph)
    assert recorder.events[0].provenance == {"git_sha": "abc"}
    assert [event.node for event in recorder.of(NodePlanned)] == list(graph)
    story = [type(event).__name__ for event in recorder.events if getattr(event, "node", "") == "filter/a"]
    assert story == ["NodePlanned", "NodeStarted", *["PartDone"] * 4, "NodeFinished"]
    assert isinstance(recorder.events[-1], RunFinished)
    assert recorder.events[-1].ok is True
    assert [event.num_done for event in recorder.of(PartDone) if event.node == "filter/a"] == [1, 2, 3, 4]


def test_the_state_of_a_plan_does_not_bind_the_run(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    stale = plan(graph, local_store, "exp")
    run_all(graph, local_store)
    assert run(graph, stale, local_store, InlineRunner()).is_noop


def test_a_busy_plan_is_left_alone(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    planned = plan(graph, local_store, "exp")
    with acquire(local_store, planned.lease_name), pytest.raises(PlanBusy):
        run(graph, planned, local_store, InlineRunner())
    assert local_store.blobs.find("parts") == []
    assert not run(graph, planned, local_store, InlineRunner()).is_noop


def test_a_driver_that_lost_its_lease_stops(tmp_path: Path, local_store: Store, monkeypatch):
    graph, leases = toy.toy_graph(tmp_path), []
    planned = plan(graph, local_store, "exp")

    def remembered(*args):
        leases.append(acquire(*args))
        return leases[-1]

    class LeaseTakenOver(InlineRunner):
        def wait(self, handles):
            local_store.blobs.write(f"leases/{planned.lease_name}/{9:010d}.json", b"somebody else")
            leases[0].renew()
            return super().wait(handles)

    monkeypatch.setattr("pipelines.flow.run.executor.acquire", remembered)
    with pytest.raises(PlanBusy, match="took over"):
        run(graph, planned, local_store, LeaseTakenOver())
    assert local_store.blobs.find("refs") == []
    assert local_store.blobs.read(f"leases/{planned.lease_name}/{9:010d}.json") == b"somebody else"


def test_a_part_may_read_the_state_of_an_earlier_attempt(tmp_path: Path, local_store: Store):
    def count_attempts(config, inputs, part, out):
        state = Path(out.state_uri) / "attempts"
        attempts = int(state.read_text()) + 1 if state.exists() else 1
        state.write_text(str(attempts))
        if attempts < 3:
            raise RuntimeError(f"attempt {attempts}")
        (out.path / "attempts").write_text(str(attempts))
        return PartResult({"rows": Count(1, 1)})

    source = SourceFile(str(toy.write_source(tmp_path, "a", ["x"])), card="a")
    stage = replace(toy.READ, run_part=count_attempts, plan_parts=lambda config, inputs: [Part("all")])
    graph = Graph([Node("read/a", stage, toy.ReadConfig(), {"files": (source,)})])
    for attempt in (1, 2):
        with pytest.raises(StageFailed, match=f"attempt {attempt}"):
            run_all(graph, local_store)
    assert run_all(graph, local_store).num_parts_run == 1


def test_lookups_can_be_read_but_do_not_count(tmp_path: Path, local_store: Store):
    def plan_with_lookup(config, inputs):
        files = [file for item in inputs["rows"] for part in item.parts for file in part.files]
        return [Part("all", reads=(Read("rows", files[0]),), lookups=(Read("rows", files[-1]),))]

    def copy_lookup(config, inputs, part, out):
        (out.path / "copy").write_bytes(inputs.local_path(part.lookups[0].file).read_bytes())
        return PartResult({"rows": Count(1, 1)})

    stage = replace(toy.FILTER, plan_parts=plan_with_lookup, run_part=copy_lookup, finish=None)
    first = run_all(toy.toy_graph(tmp_path, ["a"], filter_stage=stage), local_store)
    toy.write_source(tmp_path, "a", [*toy.lines_of("a", 9), "another last row"])
    second = run_all(toy.toy_graph(tmp_path, ["a"], filter_stage=stage), local_store)
    assert first.nodes["filter/a"].manifest.root == second.nodes["filter/a"].manifest.root
    assert second.nodes["filter/a"].produced is False
