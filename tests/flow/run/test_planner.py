"""A plan says what would run and why, and writes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.flow.run.events import Action
from pipelines.flow.run.planner import explain, plan
from pipelines.flow.stage import Graph, Node, Part, SourceFile
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import actions, counting, run_all, snapshot
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable, StageFailed


def test_a_new_graph_runs_from_its_sources(tmp_path: Path, store: Store):
    planned = plan(toy.toy_graph(tmp_path, ["a"]), store, "exp")
    assert actions(planned) == {"read/a": "RUN", "filter/a": "PENDING", "join/all": "PENDING"}
    assert [node.reason for node in planned.nodes] == [
        "no earlier run",
        "inputs unknown until read/a has run",
        "inputs unknown until filter/a has run",
    ]
    assert not planned.is_noop


def test_a_finished_graph_is_reused_with_few_reads_and_no_write(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    run_all(graph, local_store)
    before = snapshot(Path(local_store.uri), "parts", "artifacts", "refs")
    counted, counts = counting(Store(local_store.uri))
    planned = plan(graph, counted, "exp")
    assert set(actions(planned).values()) == {"REUSE"}
    assert planned.is_noop
    assert counts["read"] == len(graph) + 1  # a manifest per node, and the remembered hashes of sources
    assert counts.get("write", 0) == counts.get("create", 0) == counts.get("find", 0) == 0
    assert snapshot(Path(local_store.uri), "parts", "artifacts", "refs") == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"filter_config": toy.FilterConfig(min_chars=9)}, "config field min_chars 3 -> 9"),
        (
            {"filter_config": toy.FilterConfig(min_chars=9, upper=True)},
            "config field min_chars 3 -> 9; config field upper false -> true",
        ),
        ({"filter_stage": replace(toy.FILTER, version=2)}, "stage version 1 -> 2"),
    ],
)
def test_reasons_name_what_changed(tmp_path: Path, local_store: Store, changes: dict, reason: str):
    run_all(toy.toy_graph(tmp_path), local_store)
    planned = plan(toy.toy_graph(tmp_path, **changes), local_store, "exp")
    assert planned["read/a"].action is Action.REUSE
    assert (planned["filter/a"].action, planned["filter/a"].reason) == (Action.RUN, reason)
    assert planned["join/all"].action is Action.RUN
    assert planned["join/all"].reason == "input filter/a will be rerun; parts whose input bytes stay equal are kept"


def test_a_changed_source_file_is_named(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    run_all(graph, local_store)
    toy.write_source(tmp_path, "a", toy.lines_of("changed", 10))
    planned = plan(graph, local_store, "exp")
    assert planned["read/a"].reason == "input files of source:a changed"
    assert planned["read/b"].action is Action.REUSE


def test_growth_keeps_the_parts_whose_inputs_stayed(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    run_all(graph, local_store)
    toy.write_source(tmp_path, "a", [*toy.lines_of("a", 10)[:9], *toy.lines_of("more", 6)])
    run_all(graph, local_store, targets=["read/a"])
    planned = plan(graph, local_store, "exp")["filter/a"]
    assert planned.action is Action.RESUME
    assert planned.reason == "input rows of read/a changed; 3 of 5 parts are there"
    assert [part.done for part in planned.parts] == [True, True, True, False, False]


def test_added_and_removed_inputs_are_named(tmp_path: Path, local_store: Store):
    run_all(toy.toy_graph(tmp_path, ["a", "b"]), local_store)
    run_all(toy.toy_graph(tmp_path, ["a", "b", "c"]), local_store, targets=["read/*", "filter/*"])
    more = plan(toy.toy_graph(tmp_path, ["a", "b", "c"]), local_store, "exp")
    assert more["join/all"].reason == "input rows of filter/c added"
    less = plan(toy.toy_graph(tmp_path, ["b"]), local_store, "exp")
    assert less["join/all"].reason == "input rows of filter/a removed"


def test_parts_cut_differently_are_a_reason(tmp_path: Path, local_store: Store):
    run_all(toy.toy_graph(tmp_path, ["a"]), local_store)

    def renamed(config, inputs):
        return [replace(part, name=f"x{part.name}") for part in toy.plan_filter(config, inputs)]

    planned = plan(
        toy.toy_graph(tmp_path, ["a"], filter_stage=replace(toy.FILTER, plan_parts=renamed)), local_store, "exp"
    )
    assert planned["filter/a"].reason == "its parts are cut differently than before; 4 of 4 parts are there"


def test_the_nearest_manifest_of_other_experiments_explains_a_new_one(tmp_path: Path, local_store: Store):
    for name, config in (
        ("far", toy.FilterConfig(min_chars=1, upper=True)),
        ("near", toy.FilterConfig(min_chars=4)),
        ("nowhere", toy.FilterConfig(min_chars=8, upper=True)),
    ):
        run_all(toy.toy_graph(tmp_path, ["a"], filter_config=config), local_store, name)
    planned = plan(toy.toy_graph(tmp_path, ["a"], filter_config=toy.FilterConfig(min_chars=5)), local_store, "new")
    assert planned["read/a"].action is Action.REUSE
    assert planned["filter/a"].reason == "config field min_chars 4 -> 5"


def test_deleted_parts_are_noticed_and_come_back_byte_for_byte(tmp_path: Path, store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    first = run_all(graph, store)
    record = first.nodes["filter/a"].manifest.parts[1].record
    folder = part_folder("filter", record.fingerprint)
    before = {path: store.blobs.read(path) for path in store.blobs.find(folder)}
    for path in before:
        store.blobs.delete(path)
    planned = plan(graph, store, "exp")
    assert (planned["filter/a"].action, planned["filter/a"].reason) == (
        Action.RESUME,
        "1 of its 4 parts are gone from the store",
    )
    second = run_all(graph, store)
    assert {path: store.blobs.read(path) for path in store.blobs.find(folder)} == before
    assert second.num_parts_run == 1
    assert second.nodes["filter/a"].manifest_sha256 == first.nodes["filter/a"].manifest_sha256
    assert second.nodes["join/all"].produced is False


def test_targets_choose_nodes_and_need_finished_ancestors(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    with pytest.raises(ConfigError, match=r"read/a is not finished .*--only 'read/a'"):
        plan(graph, local_store, "exp", targets=["filter/*"])
    run_all(graph, local_store, targets=["read/*"])
    planned = plan(graph, local_store, "exp", targets=["filter/a"])
    assert actions(planned) == {"filter/a": "RUN"}
    assert [node.key for node in planned.nodes] == ["read/a", "filter/a"]
    with pytest.raises(ConfigError, match="matches no node"):
        plan(graph, local_store, "exp", targets=["nothing/*"])


def test_force_reruns_what_is_finished(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    run_all(graph, local_store)
    planned = plan(graph, local_store, "exp", force={"filter/a"})
    assert actions(planned) == {
        "read/a": "REUSE",
        "filter/a": "RUN",
        "read/b": "REUSE",
        "filter/b": "REUSE",
        "join/all": "RUN",
    }
    assert planned["filter/a"].reason == "forced"
    with pytest.raises(ConfigError, match="leave out"):
        plan(graph, local_store, "exp", targets=["join/all"], force={"filter/a"})


def test_a_missing_source_stops_the_plan(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(SourceUnavailable, match=r"card b: .*b\.txt: No such file"):
        plan(graph, local_store, "exp")
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(SourceUnavailable, match="is a folder"):
        plan(graph, local_store, "exp")


def test_a_source_that_is_not_the_published_one_stops_the_plan(tmp_path: Path, local_store: Store):
    path = toy.write_source(tmp_path, "a", ["hello"])
    for digest in ("00" * 32, None):
        source = SourceFile(str(path), card="a", sha256=digest)
        graph = Graph([Node("read/a", toy.READ, toy.ReadConfig(), {"files": (source,)})])
        if digest:
            with pytest.raises(SourceUnavailable, match=f"expects {digest}"):
                plan(graph, local_store, "exp")
        else:
            assert plan(graph, local_store, "exp")["read/a"].action is Action.RUN


def test_a_damaged_manifest_in_use_stops_the_plan(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    path = Path(local_store.uri) / run_all(graph, local_store).nodes["filter/a"].manifest_path
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2', 1))
    with pytest.raises(CorruptArtifact, match="seal"):
        plan(graph, local_store, "exp")


def test_a_damaged_earlier_manifest_costs_only_the_reason(tmp_path: Path, local_store: Store, caplog):
    graph = toy.toy_graph(tmp_path, ["a"])
    path = Path(local_store.uri) / run_all(graph, local_store).nodes["filter/a"].manifest_path
    path.write_bytes(path.read_bytes()[:-3])
    planned = plan(toy.toy_graph(tmp_path, ["a"], filter_config=toy.FilterConfig(min_chars=9)), local_store, "exp")
    assert planned["filter/a"].reason == "no earlier run"
    assert "event=earlier_manifest_damaged" in caplog.text


def test_stages_that_plan_wrongly_are_named(tmp_path: Path, local_store: Store):
    def twice(config, inputs):
        return [Part("same"), Part("same")]

    def broken(config, inputs):
        raise KeyError("oops")

    def unhappy(config, inputs):
        raise SourceUnavailable("no rows")

    for function, error, words in (
        (twice, StageFailed, "same"),
        (broken, StageFailed, "KeyError"),
        (unhappy, SourceUnavailable, "no rows"),
    ):
        source = SourceFile(str(toy.write_source(tmp_path, "a", ["x"])), card="a")
        stage = replace(toy.READ, plan_parts=function)
        with pytest.raises(error, match=f"read/a: .*{words}"):
            plan(Graph([Node("read/a", stage, toy.ReadConfig(), {"files": (source,)})]), local_store, "exp")


def test_the_plans_fingerprint_follows_what_would_run(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path)
    new = plan(graph, local_store, "exp")
    assert plan(graph, local_store, "exp").fingerprint == new.fingerprint
    run_all(graph, local_store)
    done = plan(graph, local_store, "exp")
    assert done.fingerprint != new.fingerprint
    assert plan(graph, local_store, "other").fingerprint != done.fingerprint
    assert plan(graph, local_store, "exp", targets=["read/*"]).lease_name != done.lease_name


def test_explain_has_a_line_per_node(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    run_all(graph, local_store, targets=["read/a"])
    assert [line.split() for line in explain(plan(graph, local_store, "exp"))] == [
        ["REUSE", "read/a", "1/1", "parts", "finished,", "and", "nothing", "it", "depends", "on", "has", "changed"],
        ["RUN", "filter/a", "0/4", "parts", "no", "earlier", "run"],
        ["PENDING", "join/all", "?", "parts", "inputs", "unknown", "until", "filter/a", "has", "run"],
    ]
