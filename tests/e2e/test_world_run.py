"""The `world` experiment through a real Ray: what three stages say about every row is what the world's truth says."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import SOURCES, WorldConfig
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.store import Store
from tests.e2e.conftest import ROOT, run_job
from tests.support.corpora.world import NOISY

STAGES = ("read", "download", "filter")
Verdict = tuple[str, str, str, str, str, str]  # source, row key, unit, item, stage, rule


def truth_verdicts(world: Path) -> set[Verdict]:
    """What the three stages must drop. Texts in another language under an English label take a detector: they stay."""
    rows = pq.read_table(world / "truth.parquet").to_pylist()
    foreign = {(row["source"], row["row_key"]) for row in rows if row["expected_rule"] == "language"}
    return {
        (row["source"], row["row_key"], row["unit"], row["item"], row["expected_stage"], row["expected_rule"])
        for row in rows
        if row["unit"] != "media" and row["expected_stage"] in STAGES
        if not (row["expected_stage"] == "filter" and (row["source"], row["row_key"]) in foreign)
    }


def files(store: Store, manifest: Manifest, name: str) -> list[Path]:
    return [
        Path(store.file_uri(part.record, file).removeprefix("file://"))
        for part in manifest.parts
        for file in part.record.files
        if file.path == name
    ]


@pytest.mark.slow
def test_every_row_of_fifteen_sources_gets_the_verdict_of_the_truth(tmp_path: Path) -> None:
    world = tmp_path / "world"
    build_world(WorldConfig(seed=17, scenes=300, noise=NOISY), world, workers=2)
    experiment = tmp_path / "world.yaml"
    text = (ROOT / "pipelines/experiments/world.yaml").read_text()
    experiment.write_text(text.replace("../runs/world/", f"{world}/"))
    only = [argument for stage in STAGES for argument in ("--only", f"{stage}/*")]
    store = Store(str(tmp_path / "store"))
    job = run_job(
        "run_stage.py", str(experiment), "--store", str(tmp_path / "store"), *only, "--num-cpus", "2", "--json"
    )
    assert job.returncode == 0, f"{job.stdout[-4000:]}\n{job.stderr[-4000:]}"

    manifests = {}
    for ref in store.refs_of_experiment("world"):
        stored = store.read_manifest(ref.manifest_path)
        assert stored is not None
        manifests[ref.node] = stored[0]
    assert set(manifests) == {f"{stage}/{source}" for stage in STAGES for source in (*SOURCES, "coco_heldout")}
    found: set[Verdict] = set()
    drops: Counter[str] = Counter()
    for source in SOURCES:
        for stage in STAGES:
            for path in files(store, manifests[f"{stage}/{source}"], "drops.parquet"):
                for row in pq.read_table(path).to_pylist():
                    drops[stage] += 1
                    found.add((source, row["source_row"], row["unit"], row["item"], row["stage"], row["rule"]))
    verdicts = truth_verdicts(world)
    # The download stage counts what hangs on a row that it drops, and writes the row's drop alone.
    hanging = {verdict for verdict in verdicts if verdict[4:] == ("download", "row_dropped")}
    expected = verdicts - hanging
    for source in SOURCES:
        for unit in ("caption", "concept"):
            counted = manifests[f"download/{source}"].counts[f"{unit}s"].dropped
            number = sum(verdict[0] == source and verdict[2] == unit for verdict in hanging)
            assert counted == ({"row_dropped": number} if number else {}), (source, unit)
    assert sorted(found - expected) == []
    assert sorted(expected - found) == []
    assert sum(drops.values()) == len(found)  # nothing is dropped twice
    assert min(drops[stage] for stage in STAGES) > 20
    rows = pq.read_table(world / "truth.parquet", filters=[("unit", "=", "row")]).to_pylist()
    dropped = {verdict[:2] for verdict in expected if verdict[2] == "row"}
    for source in SOURCES:
        wanted = sorted(
            row["row_key"] for row in rows if row["source"] == source and (source, row["row_key"]) not in dropped
        )
        kept = [
            key
            for path in files(store, manifests[f"filter/{source}"], "rows.parquet")
            for key in pq.read_table(path)["source_row"].to_pylist()
        ]
        assert sorted(kept) == wanted
