"""The audit finds every changed byte, and nothing where nothing changed."""

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.flow.audit.audit import AuditReport, audit
from pipelines.flow.lineage.recorder import Lineage, replay
from pipelines.flow.store.artifact import Manifest, seal, unseal
from pipelines.flow.store.layout import manifest_path
from pipelines.flow.store.store import Store
from tests.support.flow.lineage_toy import EXPERIMENT, key_of, lineage_graph, run_graph
from x2vlm.errors import ConfigError

MODEL = "pretrain/base"
LEAF = "evaluate/base"
NUM_NODES = 4


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with upstream files and a store in which the graph has run."""
    folder = tmp_path_factory.mktemp("original")
    store = Store(folder / "store")
    recorder = Lineage(store, EXPERIMENT, "20260101T000000-a")
    run_graph(lineage_graph(folder / "upstream"), store, recorder)
    return folder


@pytest.fixture(scope="module")
def original_mlflow(original: Path, empty_mlflow: Path) -> Path:
    """The database that tells of `original`."""
    path = original / "mlflow.db"
    shutil.copy(empty_mlflow, path)
    replay(Store(original / "store"), f"sqlite:///{path}")
    run_graph(lineage_graph(original / "upstream"), Store(original / "store"), lambda event: None)
    return path


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Store:
    """A copy of the store that a test may damage. Upstream files stay where they were read."""
    shutil.copytree(original / "store", tmp_path / "store")
    return Store(tmp_path / "store")


def kinds(report: AuditReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def the_file(store: Store, pattern: str) -> Path:
    (found,) = Path(store.uri).glob(pattern)
    return found


def flip(path: Path, at: int, mask: int) -> bytes:
    """Change one byte; the bytes as they were."""
    before = path.read_bytes()
    data = bytearray(before)
    data[at] ^= mask
    path.write_bytes(data)
    return before


def reseal(path: Path, **changes: object) -> None:
    """A forger who knows the format: change fields of a manifest and seal it again."""
    manifest, _ = unseal(Manifest, path.read_bytes(), str(path))
    path.write_bytes(seal(Manifest.model_validate(manifest.model_dump(mode="json") | changes))[0])


def test_an_untouched_store_is_clean(store: Store) -> None:
    report = audit(store, LEAF)
    assert report.findings == ()
    assert report.exit_code == 0
    assert report.checked["manifests"] == NUM_NODES
    assert report.checked["files"] == 13
    text = report.text()
    assert all(node in text for node in ("read/a", "filter/a", MODEL, LEAF, "source:a", "source:vocab"))
    assert json.loads(json.dumps(report.to_json()))["clean"] is True


def test_every_random_flip_of_one_byte_is_found(store: Store, original: Path) -> None:
    """Over every kind of file; each file at least ten times, the first and the last byte included."""
    rng = random.Random(20260101)
    upstream = sorted((original / "upstream").iterdir())
    files = [*sorted(path for path in Path(store.uri).rglob("*") if path.is_file()), *upstream]
    files = [path for path in files if not _is_aside(path, store)]
    suffixes = {_kind_of(path, store) for path in files}
    assert suffixes == {"manifest", "part.json", "ref", "part file", "source"}
    missed, num_flips = [], 0
    for path in files:
        size = path.stat().st_size
        for at in {0, size - 1, *(rng.randrange(size) for _ in range(8))}:
            before = flip(path, at, 1 << rng.randrange(8))
            if audit(store, LEAF).is_clean:
                missed.append((path, at))
            path.write_bytes(before)
            num_flips += 1
    assert num_flips >= 100
    assert missed == []
    assert audit(store, LEAF).is_clean


def _is_aside(path: Path, store: Store) -> bool:
    """Spools, caches and leases are not part of any artifact."""
    return any(path.is_relative_to(Path(store.uri) / folder) for folder in ("lineage", "state", "leases", "tmp"))


def _kind_of(path: Path, store: Store) -> str:
    if not path.is_relative_to(store.uri):
        return "source"
    folder = path.relative_to(store.uri).parts[0]
    if folder == "parts":
        return "part.json" if path.name == "part.json" else "part file"
    return {"artifacts": "manifest", "refs": "ref"}[folder]


@pytest.mark.parametrize("pattern", ["parts/*/*/*/*", "artifacts/*/*/*.json"])
def test_every_missing_file_is_found(store: Store, pattern: str) -> None:
    for path in sorted(Path(store.uri).glob(pattern)):
        before = path.read_bytes()
        path.unlink()
        assert not audit(store, f"latest:{EXPERIMENT}").is_clean, path
        path.write_bytes(before)


def test_an_unexpected_file_is_found(store: Store) -> None:
    the_file(store, "parts/read/*/*/part.json").with_name("extra.parquet").write_bytes(b"smuggled")
    assert kinds(audit(store, LEAF)) == {"file_unexpected"}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"counts": {"rows": {"num_in": 12, "num_out": 11, "dropped": {}}}}, "rows_lost"),
        ({"counts": {"rows": {"num_in": 11, "num_out": 11, "dropped": {}}}}, "totals_differ"),
        ({"config": {"limit": 7}}, "part_fingerprint_differs"),
        ({"version": 2}, "fingerprint_differs"),
        ({"root": "0" * 64}, "root_differs"),
        ({"node": "read/other"}, "manifest_misplaced"),
        ({"provenance": {"git_sha": "forged"}}, "manifest_replaced"),
        ({"parts": []}, "root_differs"),
        ({"inputs": []}, "read_not_among_inputs"),
    ],
)
def test_a_forged_manifest_is_found_by_what_can_be_recomputed(
    store: Store, changes: dict[str, object], kind: str
) -> None:
    reseal(the_file(store, "artifacts/read/a/*.json"), **changes)
    assert kind in kinds(audit(store, LEAF))


def test_findings_say_what_where_and_what_to_do(store: Store) -> None:
    path = the_file(store, "parts/pretrain/*/*/model.bin")
    flip(path, 3, 1)
    report = audit(store, MODEL)
    (finding,) = report.findings
    assert finding.kind == "file_changed"
    assert finding.where == str(path)
    assert finding.expected.startswith("sha256 ")
    assert finding.expected != finding.found
    assert "force" in finding.remedy
    assert report.exit_code == 2
    assert str(path) in report.text()


def test_depth_manifests_looks_at_sizes_only(store: Store) -> None:
    path = the_file(store, "parts/pretrain/*/*/model.bin")
    flip(path, 3, 1)
    assert audit(store, MODEL, depth="manifests").is_clean
    path.write_bytes(path.read_bytes() + b"x")
    assert kinds(audit(store, MODEL, depth="manifests")) == {"file_changed"}


def test_damage_outside_the_ancestors_is_not_this_targets_matter(store: Store) -> None:
    flip(the_file(store, "parts/evaluate/*/*/result.json"), 0, 1)
    assert audit(store, MODEL).is_clean
    assert not audit(store, LEAF).is_clean


def test_targets(store: Store) -> None:
    stored = {path.split("/")[1]: store.read_manifest(path) for path in store.manifest_paths()}
    manifest, sha256 = stored["filter"] or pytest.fail("no manifest")
    path = manifest_path("filter", "a", manifest.fingerprint)
    targets = ["filter/a", path, store.uri_of(path), manifest.fingerprint[:12], manifest.root[:10], sha256[:16]]
    trees = [audit(store, target).tree for target in targets]
    assert all(tree == trees[0] for tree in trees)
    assert audit(store, f"latest:{EXPERIMENT}").checked["manifests"] == NUM_NODES
    assert audit(store, EXPERIMENT).tree == audit(store, LEAF).tree


@pytest.mark.parametrize("target", ["filter/nothing", "f" * 12, "f" * 32, "m-" + "0" * 32, "nothing", "a/b.json"])
def test_unknown_targets_are_named(store: Store, target: str) -> None:
    with pytest.raises(ConfigError, match=target):
        audit(store, target)


# ---- samples


def test_the_life_of_a_kept_sample(store: Store) -> None:
    report = audit(store, key_of("line 10"))
    assert report.is_clean
    assert [(trace.node, trace.verdict) for trace in report.traces] == [
        ("read/a", "kept"),
        ("filter/a", "kept"),
        (MODEL, "trained"),
    ]
    assert report.traces[0].values["url"] == "http://x/line 10"
    assert report.traces[-1].values["step"] == 2  # the eleventh of twelve samples, four steps
    assert "http://x/line 10" in report.text()


def test_the_life_of_a_dropped_sample(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run_graph(lineage_graph(tmp_path / "upstream", min_chars=7), store, lambda event: None)
    report = audit(store, key_of("line 3"))
    assert [(trace.node, trace.verdict) for trace in report.traces] == [("read/a", "kept"), ("filter/a", "dropped")]
    assert report.traces[1].values == {"key": key_of("line 3"), "rule": "too_short", "value": 6.0}


# ---- MLflow


@pytest.fixture
def uri(original_mlflow: Path, tmp_path: Path) -> str:
    """A copy of the database that a test may damage."""
    shutil.copy(original_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def told(original: Path) -> Store:
    """The undamaged store, at the place MLflow was told of."""
    return Store(original / "store")


def test_a_faithful_mlflow_is_clean(told: Store, uri: str) -> None:
    report = audit(told, LEAF, uri)
    assert report.findings == ()
    assert report.checked["MLflow runs"] == NUM_NODES


def test_mlflow_targets(told: Store, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", uri
    )  # its registry looks logged models up there, whatever the client says
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"x2vlm/{EXPERIMENT}")
    assert experiment is not None
    runs = {
        run.data.tags.get("x2.node", "job"): run.info.run_id for run in client.search_runs([experiment.experiment_id])
    }
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert audit(told, runs[MODEL], uri).tree == audit(told, MODEL).tree
    assert audit(told, runs["job"], uri).tree == audit(told, LEAF).tree
    assert audit(told, model.model_id, uri).tree == audit(told, MODEL).tree
    client.create_registered_model("toy")
    version = client.create_model_version("toy", f"models:/{model.model_id}", model_id=model.model_id)
    client.set_registered_model_alias("toy", "prod", version.version)
    assert audit(told, "models:/toy@prod", uri).tree == audit(told, MODEL).tree


def _rows(uri: str, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        return database.execute(query).fetchall()


def _edit(uri: str, statement: str, values: tuple[object, ...]) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        assert database.execute(statement, values).rowcount >= 1


def test_every_edited_tag_of_ours_is_found(told: Store, uri: str) -> None:
    tags = _rows(uri, "SELECT run_uuid, key, value FROM tags WHERE key LIKE 'x2.%'")
    assert len(tags) > 60
    missed = []
    for run_id, key, value in tags:
        _edit(uri, "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (f"{value}x", run_id, key))
        if audit(told, LEAF, uri, depth="manifests").is_clean:
            missed.append(key)
        _edit(uri, "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (value, run_id, key))
    assert missed == []


@pytest.mark.parametrize(
    ("table", "column", "ours"),
    [
        ("params", "value", "1 = 1"),
        ("latest_metrics", "value", "1 = 1"),
        ("input_tags", "value", "1 = 1"),
        ("datasets", "digest", "1 = 1"),
        ("datasets", "name", "1 = 1"),
        ("datasets", "dataset_source", "1 = 1"),
        ("logged_model_tags", "tag_value", "tag_key LIKE 'x2.%'"),
    ],
)
def test_every_other_edit_is_found(told: Store, uri: str, table: str, column: str, ours: str) -> None:
    rows = _rows(uri, f"SELECT rowid, {column} FROM {table} WHERE {ours}")
    assert rows
    missed = []
    for rowid, value in rows:
        edited = value + 1 if isinstance(value, float) else "f" * len(str(value)) if column == "digest" else f"{value}x"
        _edit(uri, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (edited, rowid))
        if audit(told, LEAF, uri, depth="manifests").is_clean:
            missed.append((table, column, value))
        _edit(uri, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rowid))
    assert missed == []


def test_deleted_runs_and_added_inputs_are_found(told: Store, uri: str) -> None:
    from mlflow.entities import Dataset, DatasetInput

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"x2vlm/{EXPERIMENT}")
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        client.delete_run(run.info.run_id)
        assert "mlflow_run_missing" in kinds(audit(told, LEAF, uri, depth="manifests"))
        client.restore_run(run.info.run_id)
    assert audit(told, LEAF, uri).is_clean
    run = next(run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get("x2.node") == MODEL)
    client.log_inputs(run.info.run_id, [DatasetInput(Dataset("secret", "0" * 32, "local", '{"uri": "/x"}'))])
    assert kinds(audit(told, LEAF, uri)) == {"mlflow_inputs_differ"}


def test_a_reused_node_whose_producer_is_another_is_found(told: Store, uri: str, original: Path) -> None:
    client = MlflowClient(uri)
    replay(told, uri)
    recorder = Lineage(told, EXPERIMENT, "20260102T000000-b")
    run_graph(lineage_graph(original / "upstream"), told, recorder)
    replay(told, uri)
    assert audit(told, LEAF, uri).is_clean
    experiment = client.get_experiment_by_name(f"x2vlm/{EXPERIMENT}")
    assert experiment is not None
    hits = client.search_runs([experiment.experiment_id], "tags.`x2.cache` = 'hit'")
    assert len(hits) == NUM_NODES
    client.set_tag(hits[0].info.run_id, "x2.produced_by", hits[1].info.run_id)
    assert {"mlflow_producer_differs", "mlflow_tags_edited"} <= kinds(audit(told, LEAF, uri))
