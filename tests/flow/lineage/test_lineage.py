"""Runs of a real graph in a real MLflow: complete, once, whatever dies."""

import json
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.flow.audit.audit import audit
from pipelines.flow.lineage.delivery import Delivery
from pipelines.flow.lineage.readback import LineageMismatch
from pipelines.flow.lineage.recorder import Lineage, default_tracking_uri, rebuild, replay
from pipelines.flow.lineage.spool import Spool, spools
from pipelines.flow.run.events import Event, NodeBlocked, NodeFailed
from pipelines.flow.stage import Graph
from pipelines.flow.store.store import Store
from tests.support.flow.lineage_runs import NODES, by_key, contexts, everything, record_run, runs_of
from tests.support.flow.lineage_toy import EXPERIMENT, NUM_STEPS, lineage_graph, run_graph
from x2vlm.errors import ConfigError, StageFailed

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return lineage_graph(tmp_path / "upstream")


def test_a_run_is_one_parent_and_one_child_per_node(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    assert replay(store, tracking_uri) > 0
    runs = by_key(runs_of(tracking_uri))
    job = runs.pop("20260101T000000-a:job")
    assert sorted(run.data.tags["x2.node"] for run in runs.values()) == NODES
    assert job.data.tags["x2.git_sha"] == "0" * 40
    assert job.data.tags["x2.git_dirty"] == "false"
    assert job.data.tags["x2.ray_job_id"] == "01000000"
    for run in [job, *runs.values()]:
        assert run.info.status == "FINISHED"
        assert run.data.tags["x2.dag_run"] == "20260101T000000-a"
        assert run.data.tags["x2.plan_sha"] == job.data.tags["x2.plan_sha"] != ""
    for run in runs.values():
        tags = run.data.tags
        manifest, seal = store.read_manifest(tags["x2.manifest_path"]) or pytest.fail("no manifest")
        assert tags["mlflow.parentRunId"] == job.info.run_id
        assert (tags["x2.cache"], tags["x2.manifest_sha"]) == ("miss", seal)
        assert (tags["x2.stage_key"], tags["x2.root"]) == (manifest.fingerprint, manifest.root)
        assert run.data.metrics["rows.in"] == manifest.counts["rows"].num_in


def test_datasets_lead_from_model_to_source(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    replay(store, tracking_uri)
    runs = {run.data.tags.get("x2.node"): run for run in runs_of(tracking_uri)}
    assert contexts(runs["read/a"]) == {"source:a": "source", "read/a": "output"} | contexts(runs["read/a"])
    assert contexts(runs["filter/a"]) == {"read/a": "input", "filter/a": "output"}
    assert contexts(runs["pretrain/base"]) == {
        "filter/a": "training",
        "source:vocab": "source",
        "pretrain/base": "output",
    }
    assert contexts(runs["evaluate/base"]) == {
        "filter/a": "evaluation",
        "pretrain/base": "input",
        "evaluate/base": "output",
    }
    for run in (runs[node] for node in NODES):
        for item in run.inputs.dataset_inputs:
            source = json.loads(item.dataset.source)
            assert len(item.dataset.digest) == 32
            assert source["root"].startswith(item.dataset.digest)
            if path := source.get("manifest_path"):
                manifest, seal = store.read_manifest(path) or pytest.fail("no manifest")
                assert (manifest.root, seal) == (source["root"], source["manifest_sha256"])


def test_dataset_sources_resolve_without_plugins(graph: Graph, store: Store, tracking_uri: str) -> None:
    from mlflow.data import get_source

    record_run(graph, store, "20260101T000000-a")
    replay(store, tracking_uri)
    for run in runs_of(tracking_uri):
        for item in run.inputs.dataset_inputs:
            assert Path(get_source(item).to_dict()["uri"]).is_file()


def test_the_model_is_an_output_and_carries_the_evaluation(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    replay(store, tracking_uri)
    client = MlflowClient(tracking_uri)
    runs = {run.data.tags.get("x2.node"): run for run in runs_of(tracking_uri)}
    train = runs["pretrain/base"]
    (model,) = client.search_logged_models([train.info.experiment_id])
    assert [output.model_id for output in train.outputs.model_outputs] == [model.model_id]
    assert (model.source_run_id, str(model.status)) == (train.info.run_id, "READY")
    assert model.tags["x2.artifact_sha"] == train.data.tags["x2.root"]
    evaluation = client.get_run(runs["evaluate/base"].info.run_id)  # a search leaves model inputs out
    assert [item.model_id for item in evaluation.inputs.model_inputs] == [model.model_id]
    measured = {metric.key: metric for metric in client.get_logged_model(model.model_id).metrics}
    assert measured["retrieval/tr_r1"].value == 0.5
    assert measured["retrieval/tr_r1"].dataset_name == "filter/a"


def test_a_curve_has_every_step_once(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    replay(store, tracking_uri)
    (train,) = (run for run in runs_of(tracking_uri) if run.data.tags.get("x2.node") == "pretrain/base")
    history = MlflowClient(tracking_uri).get_metric_history(train.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(n, 1 / (n + 1)) for n in range(NUM_STEPS)]
    assert train.data.metrics["final loss"] == 0.25


def test_reused_nodes_point_at_their_producer(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    record_run(graph, store, "20260102T000000-b")
    replay(store, tracking_uri)
    runs = by_key(runs_of(tracking_uri))
    assert len(runs) == 2 * (1 + len(NODES))
    for node in NODES:
        first, second = (runs[f"{run}:{node}"] for run in ("20260101T000000-a", "20260102T000000-b"))
        assert second.data.tags["x2.cache"] == "hit"
        assert second.data.tags["x2.produced_by"] == first.info.run_id
        assert contexts(second) == contexts(first)
    assert everything(tracking_uri)[2] == 1  # one model


def test_a_forced_node_says_so(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    record_run(graph, store, "20260102T000000-b", force=("filter/a",))
    replay(store, tracking_uri)
    runs = by_key(runs_of(tracking_uri))
    assert runs["20260102T000000-b:filter/a"].data.tags["x2.cache"] == "forced"
    assert runs["20260102T000000-b:read/a"].data.tags["x2.cache"] == "hit"


def test_a_forced_model_with_equal_bytes_stays_one_model(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    record_run(graph, store, "20260102T000000-b", force=("pretrain/base",))
    replay(store, tracking_uri)
    _, _, models, outputs = everything(tracking_uri)
    assert (models, sum(outputs)) == (1, 2)  # type: ignore[call-overload]
    assert audit(store, "evaluate/base", tracking_uri).findings == ()


def test_replay_is_idempotent_even_without_its_marker(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    num_records = len(Spool(store, "20260101T000000-a").read())
    assert replay(store, tracking_uri) == num_records
    before = everything(tracking_uri)
    assert replay(store, tracking_uri) == 0
    Spool(store, "20260101T000000-a").mark_delivered(tracking_uri, 0)
    assert replay(store, tracking_uri) == num_records
    assert everything(tracking_uri) == before


def test_a_delivery_that_dies_anywhere_is_completed_not_repeated(
    graph: Graph, store: Store, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every client call in turn is the last one whose answer is lost; then everything is delivered again."""
    record_run(graph, store, "20260101T000000-a")
    spool = Spool(store, "20260101T000000-a")
    writes = ("create_run", "log_batch", "log_inputs", "create_logged_model", "log_outputs", "set_terminated")
    for fatal in range(1, 200):
        delivery = Delivery(store, tracking_uri, spool)
        calls = 0

        def dying(name: str, delivery: Delivery = delivery, fatal: int = fatal) -> None:
            original = getattr(delivery.client, name)

            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                answer = original(*args, **kwargs)
                calls += 1
                if calls == fatal:
                    raise ConnectionResetError("the answer was lost")
                return answer

            setattr(delivery.client, name, call)

        for name in writes:
            dying(name)
        try:
            delivery.deliver()
            break
        except ConnectionResetError:
            continue
    assert fatal > 15
    by_key(runs_of(tracking_uri))
    points, _, models, outputs = everything(tracking_uri)
    assert max(points.values()) == 1  # type: ignore[attr-defined]
    assert (models, sum(outputs)) == (1, 1)  # type: ignore[call-overload]


def test_runs_that_a_repeated_request_made_twice_are_reduced_to_one(
    graph: Graph, store: Store, tracking_uri: str
) -> None:
    record_run(graph, store, "20260101T000000-a")
    replay(store, tracking_uri)
    (run,) = (run for run in runs_of(tracking_uri) if run.data.tags.get("x2.node") == "read/a")
    MlflowClient(tracking_uri).create_run(
        run.info.experiment_id, start_time=run.info.start_time + 1, tags=dict(run.data.tags)
    )
    Spool(store, "20260101T000000-a").mark_delivered(tracking_uri, 0)
    replay(store, tracking_uri)
    assert run.info.run_id in {run.info.run_id for run in by_key(runs_of(tracking_uri)).values()}


def test_what_mlflow_gives_back_differently_is_an_error(graph: Graph, store: Store, tracking_uri: str) -> None:
    record_run(graph, store, "20260101T000000-a")
    spool = Spool(store, "20260101T000000-a")
    delivery = Delivery(store, tracking_uri, spool)
    original = delivery.client.log_inputs
    delivery.client.log_inputs = lambda run_id, datasets, models: original(run_id, datasets[:-1], models)  # type: ignore[method-assign]
    with pytest.raises(LineageMismatch, match="datasets"):
        delivery.deliver()
    assert spool.num_delivered(tracking_uri) == 0


def test_failures_and_blocked_nodes_are_told(store: Store, tmp_path: Path, tracking_uri: str) -> None:
    recorder = Lineage(store, EXPERIMENT, "20260101T000000-a")
    with pytest.raises(StageFailed):
        run_graph(lineage_graph(tmp_path / "upstream", min_chars=99), store, recorder)
    replay(store, tracking_uri)
    runs = by_key(runs_of(tracking_uri))
    states = {key.split(":")[1]: run.info.status for key, run in runs.items()}
    assert states == {
        "job": "FAILED",
        "read/a": "FINISHED",
        "filter/a": "FAILED",
        "pretrain/base": "KILLED",
        "evaluate/base": "KILLED",
    }
    assert "none came out" in runs["20260101T000000-a:filter/a"].data.tags["x2.message"]


def test_long_errors_are_cut_with_a_mark(store: Store, tracking_uri: str) -> None:
    recorder = Lineage(store, EXPERIMENT, "20260101T000000-a")
    events: list[Event] = [
        NodeFailed(node="read/a", part="all", error="x" * 20_000),
        NodeBlocked(node="filter/a", by="read/a"),
    ]
    for event in events:
        recorder(event)
    replay(store, tracking_uri)
    (message,) = (r.data.tags["x2.message"] for r in runs_of(tracking_uri) if r.data.tags["x2.node"] == "read/a")
    assert len(message) <= 5_000
    assert "[cut, 20010 characters, sha256" in message


def test_rebuild_from_manifests_alone(graph: Graph, store: Store, tracking_uri: str) -> None:
    run_graph(graph, store, lambda event: None)
    assert rebuild(store, EXPERIMENT, tracking_uri) == len(NODES)
    first = everything(tracking_uri)
    nodes = Counter(r.data.tags["x2.node"] for r in runs_of(tracking_uri) if r.data.tags.get("x2.producer") == "true")
    assert nodes == Counter(NODES)
    assert rebuild(store, EXPERIMENT, tracking_uri) == 0
    assert everything(tracking_uri) == first


def test_rebuild_into_an_emptied_mlflow_gives_the_same_history(
    graph: Graph, store: Store, tracking_uri: str, tmp_path: Path, empty_mlflow: Path
) -> None:
    record_run(graph, store, "20260101T000000-a")
    record_run(graph, store, "20260102T000000-b")
    replay(store, tracking_uri)
    emptied = f"sqlite:///{tmp_path / 'emptied.db'}"
    (tmp_path / "emptied.db").write_bytes(empty_mlflow.read_bytes())
    for spool in spools(store):
        spool.mark_delivered(emptied, len(spool.read()))  # as it was before someone emptied it
    assert replay(store, emptied) == 0
    assert rebuild(store, EXPERIMENT, emptied) == 0
    assert everything(emptied) == everything(tracking_uri)


def test_a_remote_store_needs_to_be_told_where_mlflow_is() -> None:
    with pytest.raises(ConfigError, match="--tracking-uri"):
        default_tracking_uri(Store("memory://x"))


# ---- the sink process


# ---- a real server
