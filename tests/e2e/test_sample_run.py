"""The main job on the shipped sample, through a real cluster: what came out, and what a second run does."""

import csv
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.store import Store
from tests.e2e.conftest import ROOT, SampleRun, run_job
from tests.support.flow.sample_store import DECIDING

GRAINS_OF_A_STEP = {"image", "region", "video"}


@pytest.fixture(scope="module")
def manifests(sample_run: SampleRun) -> dict[str, Manifest]:
    store = Store(str(sample_run.store))
    found = {}
    for ref in store.refs_of_experiment("sample"):
        stored = store.read_manifest(ref.manifest_path)
        assert stored is not None
        found[ref.node] = stored[0]
    return found


def part_files(sample_run: SampleRun, manifest: Manifest, name: str) -> list[Path]:
    """Local paths of the file called `name` in every part of an artifact."""
    store = Store(str(sample_run.store))
    return [
        Path(store.file_uri(part.record, file).removeprefix("file://"))
        for part in manifest.parts
        for file in part.record.files
        if file.path == name
    ]


def packed_rows(sample_run: SampleRun, manifests: dict[str, Manifest]) -> list[dict[str, Any]]:
    """The rows of all shard indexes."""
    names = {f"shard-{part.name}.parquet" for part in manifests["pack/sample"].parts}
    paths = [path for name in names for path in part_files(sample_run, manifests["pack/sample"], name)]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_every_node_of_the_flow_has_an_artifact(manifests: dict[str, Manifest]) -> None:
    stages = {manifest.stage for manifest in manifests.values()}
    curation = {"read", "download", "domains", "filter", "score", *DECIDING, "partition", "pack"}
    assert stages == {*curation, "pretrain", "evaluate"}
    assert {"evaluate/retrieval", "evaluate/grounding", "pretrain/sample"} <= set(manifests)


def test_every_part_and_total_obeys_the_conservation_law(manifests: dict[str, Manifest]) -> None:
    for key, manifest in manifests.items():
        for counts in [manifest.counts, *(part.record.counts for part in manifest.parts)]:
            for unit, count in counts.items():
                assert count.num_in == count.num_out + sum(count.dropped.values()), (key, unit)
        for unit, total in manifest.counts.items():
            parts = [part.record.counts[unit] for part in manifest.parts if unit in part.record.counts]
            assert total.num_in == sum(part.num_in for part in parts), (key, unit)


def test_rows_are_handed_on_without_loss(manifests: dict[str, Manifest]) -> None:
    sources = [key.split("/")[1] for key in manifests if key.startswith("filter/")]
    for source in sources:
        assert (
            manifests[f"download/{source}"].counts["rows"].num_in == manifests[f"read/{source}"].counts["rows"].num_out
        )
        assert (
            manifests[f"filter/{source}"].counts["rows"].num_in
            == manifests[f"download/{source}"].counts["rows"].num_out
        )
    train = [source for source in sources if source != "coco_heldout"]
    filtered = sum(manifests[f"filter/{source}"].counts["rows"].num_out for source in train)
    assert manifests["partition/sample"].counts["rows"].num_in == filtered
    assert manifests["pack/sample"].counts["rows"].num_in == manifests["partition/sample"].counts["rows"].num_out


def test_every_planted_row_got_its_listed_verdict(sample_run: SampleRun, manifests: dict[str, Manifest]) -> None:
    drops: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for key, manifest in manifests.items():
        for path in part_files(sample_run, manifest, "drops.parquet"):
            for row in pq.read_table(path).to_pylist():
                if row["rule"] == "row_dropped":  # of a concept or caption: says nothing of its own
                    continue
                name = f"concept:{row['item']}" if row["unit"] == "concept" else row["source_row"]
                drops.setdefault((row["source"], name), set()).add((key.split("/")[0], row["rule"]))
    with (ROOT / "datasets/sample/planted.csv").open(newline="") as stream:
        planted = list(csv.DictReader(stream))
    assert len(planted) >= 20
    wrong = []
    for row in planted:
        verdicts = drops.get((row["source"], row["row_key"]), set())
        expected = set() if row["rule"] == "kept" else {(row["stage"], row["rule"])}
        if verdicts != expected:
            wrong.append((row["source"], row["row_key"], row["what"], sorted(expected), sorted(verdicts)))
    assert not wrong, "\n".join(map(str, wrong))


def test_planted_rows_that_must_be_kept_reach_the_shards(sample_run: SampleRun, manifests: dict[str, Manifest]) -> None:
    with (ROOT / "datasets/sample/planted.csv").open(newline="") as stream:
        kept = {
            (row["source"], row["row_key"])
            for row in csv.DictReader(stream)
            if row["rule"] == "kept" and not row["row_key"].startswith("concept:")
        }
    assert kept
    packed = {(row["source"], row["source_row"]) for row in packed_rows(sample_run, manifests)}
    assert kept <= packed


def test_losses_fall_and_every_step_mixes_the_grains(sample_run: SampleRun, manifests: dict[str, Manifest]) -> None:
    (path,) = part_files(sample_run, manifests["pretrain/sample"], "metrics.jsonl")
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(len(steps)))
    total = [row["loss"] for row in steps]
    fifth = len(total) // 5
    assert sum(total[-fifth:]) < 0.9 * sum(total[:fifth])
    (samples,) = part_files(sample_run, manifests["pretrain/sample"], "samples.parquet")
    seen: dict[int, set[str]] = {}
    for row in pq.read_table(samples).to_pylist():
        seen.setdefault(row["step"], set()).add(row["stream"])
    assert len(seen) == len(steps)
    assert all(streams == GRAINS_OF_A_STEP for streams in seen.values())


def test_held_out_photos_were_never_trained_on(sample_run: SampleRun, manifests: dict[str, Manifest]) -> None:
    held_out = set()
    for path in part_files(sample_run, manifests["filter/coco_heldout"], "rows.parquet"):
        held_out |= {row["media"]["sha256"] for row in pq.read_table(path).to_pylist()}
    trained = {row["media"]["sha256"] for row in packed_rows(sample_run, manifests)}
    assert held_out
    assert trained
    assert not held_out & trained


def test_the_job_says_what_a_user_needs(sample_run: SampleRun) -> None:
    text = sample_run.submission.stdout
    for word in [
        "retrieval/mean_recall",
        "grounding/accuracy",
        "report.html",
        "mlflow",
        "pretrain/sample",
        "region/box_l1",
    ]:
        assert word in text, word
    report = next(sample_run.store.rglob("report.html"))
    page = report.read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_second_run_executes_nothing(sample_copy: Path) -> None:
    before = {path for path in sample_copy.rglob("part.json")}
    job = run_job("full_pretrain.py", "sample", "--store", str(sample_copy), "--json")
    assert job.returncode == 0, job.stderr[-4000:]
    assert {node["action"] for node in job.json["nodes"]} == {"REUSE"}
    assert {path for path in sample_copy.rglob("part.json")} == before


def test_a_changed_threshold_is_named_and_redoes_only_what_it_touches(sample_copy: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "pipelines/experiments/sample.yaml").read_text())
    values["filter"] = {**values.get("filter", {}), "min_short_edge": 240}
    copy = tmp_path / "sample_strict.yaml"
    copy.write_text(yaml.safe_dump(values))

    dry = run_job("full_pretrain.py", str(copy), "--store", str(sample_copy), "--dry-run", "--json")
    assert dry.returncode == 2, dry.stderr[-4000:]
    nodes = {node["key"]: node for node in dry.json["nodes"]}
    untouched = ("read/", "download/", "domains/")
    assert {node["action"] for key, node in nodes.items() if key.startswith(untouched)} == {"REUSE"}
    for key, node in nodes.items():
        if key.startswith("filter/"):
            assert node["action"] == "RUN"
            assert "config field min_short_edge 224 -> 240" in node["reason"]
        elif not key.startswith(untouched):
            assert node["action"] in {"RUN", "PENDING"}, key

    before = {path.parent.name for path in sample_copy.glob("parts/*/*/*/part.json")}
    only = ("--only", "filter/*", "--only", "score/*")
    with tempfile.TemporaryDirectory(prefix="x2-") as temporary:  # a short name, as Ray's sockets need it
        run = run_job("run_stage.py", str(copy), "--store", str(sample_copy), *only, "--json", TMPDIR=temporary)
        assert os.listdir(temporary) == [], "a clean run on a Ray of its own leaves nothing"
    assert run.returncode == 0, run.stderr[-4000:]
    chatter = [word for word in ("Token authentication", "pid=", "PreemptionWatcher", "\x1b[") if word in run.stderr]
    assert not chatter, run.stderr[-4000:]
    new = [path for path in sample_copy.glob("parts/*/*/*/part.json") if path.parent.name not in before]
    redone = [path.parts[-4] for path in new]
    store = Store(str(sample_copy))
    old = {ref.node: ref.root for ref in store.refs_of_experiment("sample")}
    now = {ref.node: ref.root for ref in store.refs_of_experiment("sample_strict")}
    filters = [key for key in now if key.startswith("filter/")]
    unchanged = [key for key in filters if now[key] == old[key]]
    assert unchanged, "a source without small images must give the same bytes"
    assert len(unchanged) < len(filters), "a source with small images must not"
    for key in unchanged:
        score = key.replace("filter/", "score/")
        assert now.get(score) == old.get(score)
    assert "download" not in redone
    num_score_parts = sum(len(list(sample_copy.glob("parts/score/*/*/part.json"))) for _ in [0])
    assert 0 < redone.count("score") < num_score_parts - redone.count("score")


def test_a_result_says_how_many_of_its_images_were_trained_on(sample_run: SampleRun) -> None:
    (result,) = [json.loads(path.read_text()) for path in sample_run.store.glob("parts/evaluate/*/*/result.json")][:1]
    found = result["contamination"]
    assert found["policy"] == "strict"
    numbers = found["sets"]["coco_heldout"]["held_out"]
    assert (numbers["pictures"], numbers["leaked"], numbers["still_in_training"]) == (16, 0, 0)
    assert "0 of 16 test images in training (policy strict, 0 found)" in sample_run.submission.stdout
