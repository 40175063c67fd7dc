"""Finding a row, telling what happened to it, and saying what other thresholds would do, against what they then do."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.experiment import Experiment
from pipelines.flow.audit import part_index
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.store import Store
from pipelines.s2_filter import FilterConfig
from pipelines.s4_materialize import PartitionConfig
from pipelines.s4_materialize.deduplicate import DeduplicateConfig
from pipelines.why import row_index
from pipelines.why.row_index import open_index
from pipelines.why.trace import RowTrace, manifests_in_order, trace_rows
from pipelines.why.what_if import parse_changes, what_if
from tests.support.why_store import experiment_of, filled, sample, write_corpus
from x2vlm.errors import ConfigError
from x2vlm.samples import sample_key, write_table

PARTITIONED = PartitionConfig(num_shards=2, min_clip_score=0.25)
CORPUS = {
    "web": [[sample("web", n) for n in range(40)], [sample("web", n) for n in range(40, 60)]],
    "web.retry1": [[sample("web", n) for n in range(60, 80)]],
    "other": [[sample("other", n) for n in range(30)]],
    "other.retry1": [[sample("other", n) for n in range(30, 36)]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, CORPUS)
    write_table(pa.table({"domain": ["host2.invalid"]}), folder / "flagged.parquet")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("store")))
    filled(store, folder, experiment_of(PARTITIONED))
    return store


def dropped_by_source(store: Store, experiment: Experiment) -> dict[str, tuple[int, Counter[str]]]:
    """Rows in, and dropped by rule, of every source in what `filter` and `partition` really wrote."""
    manifests = {one.manifest.node: one.manifest for one in manifests_in_order(store, "toy")}
    found: dict[str, tuple[int, Counter[str]]] = {source: (0, Counter()) for source in experiment.sources}
    branches = [node.removeprefix("filter/") for node in manifests if node.startswith("filter/")]
    order = [branch for source in experiment.sources for branch in sorted(branches) if branch.split(".")[0] == source]
    for number, branch in enumerate(order):
        source = branch.split(".")[0]
        counts = manifests[f"filter/{branch}"].counts["rows"]
        found[source][1].update(counts.dropped)
        found[source] = (found[source][0] + counts.num_in, found[source][1])
        for part in manifests["partition/toy"].parts:
            if part.name.startswith(f"{number:03d}-"):
                found[source][1].update(part.record.counts["rows"].dropped)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"min_clip_score": 0.6},
        {"min_clip_score": 0.6, "score": "max"},
        {"min_clip_score": 0.6, "score": "middle"},
        {"score": "middle", "image_min_clip_score": 0.3},
        {"min_clip_score": None},
        {"min_short_edge": 300},
        {"max_aspect_ratio": 1.4, "image_min_clip_score": 0.5},
        {"min_video_words": 8},
    ],
    ids=str,
)
def test_what_a_what_if_says_is_what_a_run_then_does(
    store: Store, folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    answer = what_if(store, experiment_of(PARTITIONED), changes)
    rules = FilterConfig.model_validate({name: v for name, v in changes.items() if name in FilterConfig.model_fields})
    scores = {name: value for name, value in changes.items() if name not in FilterConfig.model_fields}
    experiment = experiment_of(PartitionConfig.model_validate({**PARTITIONED.model_dump(), **scores}), rules)
    rerun = Store(str(tmp_path))
    filled(rerun, folder, experiment)
    expected = dropped_by_source(rerun, experiment)
    assert {one.source: (one.rows_in, one.dropped) for one in answer.then} == expected
    assert {one.source: (one.rows_in, one.dropped) for one in answer.now} == dropped_by_source(store, experiment)
    assert all(one.unscored == 0 for one in (*answer.now, *answer.then))
    assert sum(one.rows_out for one in answer.then) != sum(one.rows_out for one in answer.now)


def test_rows_that_were_never_scored_are_counted_apart(store: Store) -> None:
    answer = what_if(store, experiment_of(PARTITIONED), {"min_short_edge": 1})
    for now, then in zip(answer.now, answer.then, strict=True):
        images = [one.media for rows in CORPUS[then.source] for one in rows if one.kind == "image" and one.media]
        assert then.unscored == sum(min(media.width, media.height) < 224 for media in images) > 0
        assert now.dropped["min_short_edge"] == then.unscored
    text = "\n".join(answer.lines())
    assert f"{answer.then[0].unscored} rows would have to be scored first; they count as kept here" in text


def test_later_rounds_and_flagged_domains_are_part_of_the_answer(folder: Path, tmp_path: Path) -> None:
    experiment = experiment_of(PARTITIONED, rounds=2, drops=True)
    store = Store(str(tmp_path))
    filled(store, folder, experiment)
    answer = what_if(store, experiment, {"min_clip_score": 0.25})
    expected = dropped_by_source(store, experiment)
    assert {one.source: (one.rows_in, one.dropped) for one in answer.then} == expected
    assert [one.rows_in for one in answer.now] == [80, 36]
    assert all(one.dropped["flagged_domain"] > 0 for one in answer.now)


def test_fields_and_values_that_cannot_be_asked_about_are_refused(store: Store, tmp_path: Path) -> None:
    assert parse_changes(["min_clip_score=null", " score = max", "min_short_edge=256"]) == {
        **{"min_clip_score": None, "score": "max", "min_short_edge": 256}
    }
    for text in ("num_shards=4", "min_short_edge", "=3", "download.timeout=3"):
        with pytest.raises(ConfigError, match=r"give <field>=<value> .*: .*max_aspect_ratio, .*min_clip_score"):
            parse_changes([text])
    with pytest.raises(ConfigError, match=r"--what-if min_clip_score=\[: '\[' is not a YAML value"):
        parse_changes(["min_clip_score=["])
    experiment = experiment_of(PARTITIONED)
    with pytest.raises(ConfigError, match=r"--what-if: 1 problem\(s\)\n  min_short_edge: .*\(got -5\)"):
        what_if(store, experiment, {"min_short_edge": -5})
    with pytest.raises(ConfigError, match="score: Input should be 'mean', 'max' or 'middle'"):
        what_if(store, experiment, {"score": "median"})
    with pytest.raises(ConfigError, match=r"download/web\.retry1 is not in .*run `jobs/run_stage.py toy` first"):
        what_if(store, experiment_of(PARTITIONED, rounds=2), {"min_short_edge": 256})


def read_manifest(store: Store, source: str = "web") -> Manifest:
    (manifest,) = [one.manifest for one in manifests_in_order(store, "toy") if one.manifest.node == f"read/{source}"]
    return manifest


def file_of(manifest: Manifest, part: str) -> str:
    (found,) = [
        file.sha256
        for one in manifest.parts
        if one.name == part
        for file in one.record.files
        if file.path.startswith("rows")
    ]
    return found


def test_a_row_is_found_by_key_and_address_in_the_file_that_holds_it(store: Store) -> None:
    manifest = read_manifest(store)
    index = open_index(store, manifest)
    for number, part in ((0, "00000"), (39, "00000"), (40, "00001"), (59, "00001")):
        row = sample("web", number)
        assert index.files_with("key", row.key) == [file_of(manifest, part)]
        assert index.files_with("url", row.url) == [file_of(manifest, part)]
    assert index.files_with("key", sample_key("web", "60")) == []
    assert index.files_with("url", "http://host0.invalid/web/400") == []


def test_the_index_is_built_once_and_again_if_it_is_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(store)
    before = open_index(store, manifest).files_with("key", sample_key("web", "41"))
    assert store.local_root is not None
    folder = store.local_root / "index" / manifest.root
    with monkeypatch.context() as patch:
        patch.setattr(row_index, "_build", None)  # would be called
        assert open_index(store, manifest).files_with("key", sample_key("web", "41")) == before
    (folder / "index.json").unlink()  # a build that broke off: it comes last
    assert open_index(store, manifest).files_with("key", sample_key("web", "41")) == before
    for path in folder.iterdir():
        path.unlink()
    assert open_index(store, manifest).files_with("key", sample_key("web", "41")) == before
    assert {path.name for path in folder.iterdir()} == {"index.json", "files.npy", "key-00000.npy", "url-00000.npy"}


def test_a_row_is_found_in_many_buckets_built_in_many_groups(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_index, "BUCKET_ROWS", 4)
    monkeypatch.setattr(row_index, "GROUP_FILES", 1)
    monkeypatch.setattr(part_index, "FEW", 1)
    small = Store(str(tmp_path))
    filled(small, folder, experiment_of(PARTITIONED))
    for number in (0, 39, 40, 59):
        for query in (f"web:{number}", sample("web", number).url):
            assert trace_rows(small, "toy", query) == trace_rows(store, "toy", query)
    manifest = read_manifest(small)
    assert len(list((tmp_path / "index" / manifest.root).glob("key-*.npy"))) == 16
    assert len(list((tmp_path / "index" / "parts").iterdir())) > 2


def test_rows_whose_hashes_are_equal_are_told_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_index, "_hash", lambda column, text: 2**63 + len(column))  # all keys, all addresses
    store = Store(str(tmp_path))
    filled(store, folder, experiment_of(PARTITIONED))
    manifest = read_manifest(store)
    both = sorted(file_of(manifest, part) for part in ("00000", "00001"))
    assert sorted(open_index(store, manifest).files_with("key", sample_key("web", "41"))) == both
    for query in ("web:41", sample_key("web", "41"), sample("web", 41).url):
        (trace,) = trace_rows(store, "toy", query)
        assert (trace.source, trace.source_row, trace.url) == ("web", "41", sample("web", 41).url)
    with pytest.raises(ConfigError, match="no row of toy is called"):
        trace_rows(store, "toy", sample_key("web", "4711"))


def test_hashes_on_both_sides_of_the_sign_bit_are_found(store: Store) -> None:
    index = open_index(store, read_manifest(store))
    keys = [sample_key("web", str(number)) for number in range(60)]
    high = [int(key[:16], 16) >= 2**63 for key in keys]
    assert any(high)
    assert not all(high)
    assert all(index.files_with("key", key) for key in keys)


def test_a_remote_store_answers_like_a_local_one(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    remote = Store(f"memory://why-{tmp_path.name}")
    filled(remote, folder, experiment_of(PARTITIONED))
    for query in ("web:41", sample("other", 7).url):
        local_traces, remote_traces = (trace_rows(one, "toy", query) for one in (store, remote))
        assert [trace.to_json() for trace in remote_traces] == [trace.to_json() for trace in local_traces]
        assert len(remote_traces) == 1
    assert [path for path in remote.blobs.find("index") if path.endswith("index.json")]
    assert not list(tmp_path.glob("x2vlm-index-*/index/*"))  # where it was built
    answers = [what_if(one, experiment_of(PARTITIONED), {"min_clip_score": 0.5}).to_json() for one in (store, remote)]
    assert answers[0] == answers[1]


def step_of(trace: RowTrace, stage: str) -> list[tuple[str, dict[str, Any]]]:
    return [(step.verdict, dict(step.facts)) for step in trace.steps if step.node.startswith(f"{stage}/")]


def test_a_duplicate_and_its_keeper_are_told_what_was_decided(tmp_path: Path) -> None:
    numbers = [n for n in range(200) if int(sample_key("web", str(n))[8:12], 16) % 11 and n % 3 and n % 9 > 2 and n % 7]
    keeper, going = sorted((sample("web", n, media="shown") for n in numbers[:2]), key=_worth, reverse=True)
    write_corpus(tmp_path, {"web": [[keeper, going]], "other": [[sample("other", n) for n in range(10)]]})
    store = Store(str(tmp_path / "store"))
    free = PartitionConfig(num_shards=2, min_clip_score=None)
    filled(store, tmp_path, experiment_of(free), MERGE)
    (lost,) = trace_rows(store, "toy", going.key)
    reason = f"shows what {keeper.key} shows, by sha256"
    decided = {"rule": "duplicate", "value": 0.0, "threshold": 0.0, "reason": reason}
    assert ("dropped", decided) in step_of(lost, "deduplicate")
    assert {verdict for verdict, _ in step_of(lost, "deduplicate")} == {"dropped"}
    ((verdict, facts),) = step_of(lost, "partition")
    assert (verdict, facts["rule"]) == ("dropped", "duplicate")
    (stays,) = trace_rows(store, "toy", keeper.key)
    assert ("kept", {"captions_added": 1}) in step_of(stays, "deduplicate")
    assert {verdict for verdict, _ in step_of(stays, "deduplicate")} == {"kept"}
    assert [facts["captions"] for _, facts in step_of(stays, "partition")] == [2]


MERGE = DeduplicateConfig(merge_captions=True)


def _worth(one: Any) -> tuple[int, str]:
    return (one.media.width * one.media.height, one.key)


def test_a_query_that_names_nothing_says_what_it_may_be(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"Give a key \(32 hex digits\).*sources: other, web"):
        trace_rows(store, "toy", "nobody")
    with pytest.raises(ConfigError, match="holds no rows of unheard"):
        trace_rows(store, "unheard", "web:1")
    # A row alone may be one of several sources.
    assert {trace.source for trace in trace_rows(store, "toy", "7")} == {"web", "other"}
