"""What lineage says, before anybody is told: names, digests, contexts, limits."""

import hashlib
import json
import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.flow.lineage.edges import CONTEXTS, datasets_of, digest_of, source_type_of
from pipelines.flow.lineage.facts import LineageRecord, NodeFacts, facts_of
from pipelines.flow.lineage.run_fields import cut, metric_name, node_metrics, node_params, node_tags, sealed, tag_seal
from pipelines.flow.lineage.series import series_points
from pipelines.flow.store.artifact import CountRecord, FileRecord, InputRecord, Manifest
from pipelines.flow.store.manifests import paged
from tests.support.flow.store_parts import record

ROOTS = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(10)]


def artifact(slot: str, node: str, root: str, seal: str = "s") -> InputRecord:
    path = f"artifacts/{node}/{root[:8]}.json"
    return InputRecord(slot=slot, node=node, root=root, manifest_sha256=seal, manifest_path=path)


def upstream(slot: str, card: str, root: str) -> InputRecord:
    return InputRecord(slot=slot, node=f"source:{card}", root=root, uri=f"/data/{root[:4]}", bytes=3)


def facts(*inputs: InputRecord, **changes: object) -> NodeFacts:
    values: dict[str, object] = dict(
        node="filter/a",
        stage="filter",
        version=2,
        fingerprint="f" * 64,
        root=ROOTS[0],
        manifest_path="artifacts/filter/a/ffff.json",
        manifest_sha256="m" * 64,
        manifest_uri="/store/artifacts/filter/a/ffff.json",
        config={"rules": ["x"], "deep": {"size": 3}, "name": "n"},
        inputs=list(inputs),
        model_nodes=[],
        counts={"rows": CountRecord(num_in=3, num_out=2, dropped={"too small": 1})},
        metrics={},
        series_uris=[],
        model={},
        num_parts=1,
        num_bytes=10,
    )
    return NodeFacts.model_validate(values | changes)


def test_digest_is_the_first_32_hex_digits_of_the_root_and_fits_mlflow() -> None:
    assert digest_of(ROOTS[0]) == ROOTS[0][:32]
    assert len(digest_of(ROOTS[0])) == 32 <= 36


def test_each_artifact_is_one_dataset_with_its_full_hash_in_the_source() -> None:
    edges = {edge.name: edge for edge in datasets_of(facts(artifact("rows", "read/a", ROOTS[1], "seal")))}
    assert set(edges) == {"read/a", "filter/a"}
    source = json.loads(edges["read/a"].source)
    assert source["root"] == ROOTS[1]
    assert source["manifest_sha256"] == "seal"
    assert source["uri"] == f"/store/{source['manifest_path']}"
    assert edges["read/a"].context == "input"
    assert edges["filter/a"].context == "output"


def test_many_files_of_a_card_are_one_dataset() -> None:
    edges = datasets_of(facts(*(upstream("files", "laion", root) for root in ROOTS[1:9])))
    sources = [edge for edge in edges if edge.context == "source"]
    assert [edge.name for edge in sources] == ["source:laion"]
    assert sources[0].tags["x2.num_files"] == "8"
    assert sources[0].digest not in {digest_of(root) for root in ROOTS}


def test_one_artifact_read_through_two_slots_is_one_edge_that_names_both() -> None:
    edges = datasets_of(facts(artifact("rows", "download/a", ROOTS[1]), artifact("media", "download/a", ROOTS[1])))
    assert [edge.tags["x2.slot"] for edge in edges if edge.context == "input"] == ["rows,media"]


def test_content_that_is_read_and_emitted_gets_two_names() -> None:
    edges = datasets_of(facts(artifact("rows", "filter/a", ROOTS[0])))
    assert [(edge.name, edge.context) for edge in edges] == [("filter/a@in", "input"), ("filter/a@out", "output")]


@pytest.mark.parametrize(
    ("item", "changes", "context"),
    [
        (artifact("rows", "read/a", ROOTS[1]), {}, "input"),
        (artifact("shards", "pack/all", ROOTS[1]), {"model": {"name": "m"}}, "training"),
        (artifact("validation", "pack/val", ROOTS[1]), {"model": {"name": "m"}}, "validation"),
        (artifact("rows", "filter/b", ROOTS[1]), {"model_nodes": ["pretrain/x"]}, "evaluation"),
        (artifact("model", "pretrain/x", ROOTS[1]), {"model_nodes": ["pretrain/x"]}, "input"),
        (upstream("files", "coco", ROOTS[1]), {"model": {"name": "m"}}, "source"),
    ],
)
def test_contexts(item: InputRecord, changes: dict[str, object], context: str) -> None:
    found = datasets_of(facts(item, **changes))
    assert [edge.context for edge in found] == [context, "output"]
    assert {edge.context for edge in found} <= set(CONTEXTS)


@given(
    st.lists(
        st.tuples(st.sampled_from(["rows", "media", "training"]), st.integers(0, 3), st.integers(0, 3)), max_size=8
    )
)
def test_no_two_edges_of_a_run_share_name_and_digest(items: list[tuple[str, int, int]]) -> None:
    inputs = [artifact(slot, f"filter/{'abcd'[node]}", ROOTS[root]) for slot, node, root in items]
    edges = datasets_of(facts(*inputs))
    assert len({(edge.name, edge.digest) for edge in edges}) == len(edges)


@given(st.text(max_size=300), st.integers(130, 200))
def test_cut_keeps_short_text_and_marks_long(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short) <= limit
    assert short == text if len(text) <= limit else hashlib.sha256(text.encode()).hexdigest() in short


@given(st.text(max_size=400))
def test_metric_names_are_ones_mlflow_takes(name: str) -> None:
    made = metric_name(name)
    assert re.fullmatch(r"[\w\-. /]{1,250}", made, flags=re.ASCII)
    assert posixpath.normpath(made) == made
    assert not made.startswith(("/", ".."))


def test_long_metric_names_stay_apart() -> None:
    assert metric_name("x" * 300 + "a") != metric_name("x" * 300 + "b")


def test_metric_names_that_look_alike_stay_apart() -> None:
    values = node_metrics(facts(metrics={"tr@1": 0.5, "tr_1": 0.25}))
    assert values["tr_1"] == 0.5
    assert 0.25 in values.values()


def test_params_hold_the_flattened_config_and_metrics_the_counts() -> None:
    assert node_params(facts()) == {
        "stage_version": "2",
        "config.rules": '["x"]',
        "config.deep.size": "3",
        "config.name": "n",
    }
    metrics = node_metrics(facts(metrics={"tr@1": 0.5}))
    assert metrics == {"tr_1": 0.5, "parts": 1, "bytes": 10, "rows.in": 3, "rows.out": 2, "rows.dropped.too small": 1}


def test_a_step_written_twice_counts_once() -> None:
    lines = '{"step": 1, "loss": 2.0}\n{"step": 1, "loss": 1.5, "note": "x"}\n{"step": 2, "loss": NaN}\n'
    assert series_points(lines) == {"loss": {1: 1.5}}


def test_seal_changes_with_any_tag_or_param_of_ours() -> None:
    record = LineageRecord(
        type="node_finished", dag_run="d", experiment="e", time_ms=1, node="filter/a", cache="miss", facts=facts()
    )
    tags, params = node_tags(record), node_params(facts())
    seal = sealed(tags, params)["x2.seal"]
    assert tag_seal(sealed(tags, params), params) == seal
    assert tag_seal(tags | {"mlflow.user": "somebody"}, params) == seal
    assert all(tag_seal(tags | {key: "edited"}, params) != seal for key in tags)
    assert all(tag_seal(tags, params | {key: "edited"}) != seal for key in params)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [("/a/b.json", "local"), ("file:///a", "local"), ("s3://b/k", "s3"), ("gs://b/k", "gs"), ("https://h/x", "http")],
)
def test_source_types_resolve_without_plugins(uri: str, kind: str) -> None:
    assert source_type_of(uri) == kind


@pytest.mark.parametrize("is_paged", [False, True])
def test_a_node_of_many_parts_has_few_metrics(is_paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three keys of each of 130,000 parts would be 390,000 keys in one run."""
    monkeypatch.setattr(paged, "INLINE_PARTS", 4 if is_paged else 1000)
    monkeypatch.setattr(paged, "CHUNK_PARTS", 4)
    builder = paged.PartsBuilder()
    for number in range(10):
        metrics = {"rate": number + 0.5, "same": 7, "success": 0.5}
        files = [FileRecord(path="a", bytes=number, sha256="ab" * 32)]
        builder.add(f"{number:05d}", record(f"{number:064x}", summary={"metrics": metrics}, files=files))
    parts, root = builder.close("toy/a", "ab" * 32)
    assert isinstance(parts, paged.PagedParts) == is_paged
    manifest = Manifest(
        node="toy/a",
        stage="toy",
        version=1,
        fingerprint="ab" * 32,
        config={},
        inputs=[],
        parts=parts,
        counts={},
        summary={"metrics": {"success": 0.25}},
        root=root,
    )
    found = facts_of(manifest, "path", "seal", "/store", ())
    spread = {f"rate/parts_{what}": number for what, number in dict(mean=5.0, sum=50.0, min=0.5, max=9.5).items()}
    other = {f"success/parts_{what}": number for what, number in dict(mean=0.5, sum=5.0, min=0.5, max=0.5).items()}
    assert found.metrics == {"success": 0.25, "same": 7.0, **spread, **other}
    assert (found.num_parts, found.num_bytes, found.series_uris, found.model) == (10, 45, [], {})
