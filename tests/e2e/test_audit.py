"""Auditing the model that the sample run made: clean as it is, and one changed byte anywhere is found."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from pipelines.flow.audit.audit import audit
from pipelines.flow.store.store import Store
from tests.e2e.conftest import ROOT, SampleRun, run_job

SEED = 7


def audited_files(store: Path) -> dict[str, list[Path]]:
    """Files of the finished store that the audit of the evaluations vouches for, by kind."""
    kinds = {
        "shard": list(store.glob("parts/pack/*/*/*.tar")),
        "index": list(store.glob("parts/pack/*/*/*.parquet")),
        "checkpoint": list(store.glob("parts/pretrain/*/*/*")),
        "media": list(store.glob("parts/download/*/*/*")),
        "table": [*store.glob("parts/filter/*/*/*"), *store.glob("parts/score/*/*/*"), *store.glob("parts/read/*/*/*")],
        "part record": list(store.glob("parts/*/*/*/part.json")),
        "manifest": [path for path in store.glob("artifacts/*/*/*.json")],
        "reference": [path for path in store.glob("refs/sample/*/*.json")],
    }
    return {kind: sorted(path for path in paths if path.stat().st_size) for kind, paths in kinds.items()}


def flip_one_byte(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    position = rng.randrange(len(data))
    data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_the_job_walks_from_the_model_to_every_card(sample_copy: Path) -> None:
    job = run_job("audit_lineage.py", "sample", "--store", str(sample_copy), "--json")
    assert job.returncode == 0, job.stdout[-3000:]
    assert job.json["clean"]
    tree = "\n".join(job.json["tree"])
    experiment = yaml.safe_load((ROOT / "pipelines/experiments/sample.yaml").read_text())
    for source in experiment["sources"].values():
        assert f"datasets/{source['card']}.yaml" in tree
    assert "pretrain/sample" in tree


@pytest.mark.parametrize("num_flips", [16, pytest.param(120, marks=pytest.mark.slow)])
def test_a_flipped_byte_is_found(sample_copy: Path, num_flips: int) -> None:
    rng = random.Random(SEED)
    kinds = audited_files(sample_copy)
    assert all(kinds.values()), {kind: len(paths) for kind, paths in kinds.items()}
    missed = []
    for turn in range(num_flips):
        kind = sorted(kinds)[turn % len(kinds)]
        path = rng.choice(kinds[kind])
        original = path.read_bytes()
        flip_one_byte(path, rng)
        if audit(Store(str(sample_copy)), "sample").is_clean:
            missed.append((kind, path.name))
        path.write_bytes(original)
    assert not missed
    assert audit(Store(str(sample_copy)), "sample").is_clean


def test_a_changed_mlflow_tag_is_found(sample_copy: Path) -> None:
    database = sample_copy / "mlflow.db"
    backup = sample_copy / "backup.db"
    shutil.copy(database, backup)
    uri = f"sqlite:///{database}"
    assert audit(Store(str(sample_copy)), "pretrain/sample", uri, "manifests").is_clean
    with sqlite3.connect(database) as connection:
        tags = connection.execute(
            "select tags.run_uuid, tags.key, tags.value from tags join tags as node on node.run_uuid = tags.run_uuid "
            "where tags.key like 'x2.%' and length(tags.value) > 8 "
            "and node.key = 'x2.node' and node.value = 'pretrain/sample'"
        ).fetchall()
    assert tags
    for run, key, value in random.Random(SEED).sample(tags, k=min(5, len(tags))):
        changed = value[:4] + ("0" if value[4] != "0" else "1") + value[5:]
        with sqlite3.connect(database) as connection:
            connection.execute("update tags set value = ? where run_uuid = ? and key = ?", (changed, run, key))
        assert not audit(Store(str(sample_copy)), "pretrain/sample", uri, "manifests").is_clean, key
        shutil.copy(backup, database)


def test_a_sample_can_be_followed_from_its_row_to_the_steps_that_used_it(sample_run: SampleRun) -> None:
    import pyarrow.parquet as pq

    (samples,) = sample_run.store.glob("parts/pretrain/*/*/samples.parquet")
    row = pq.read_table(samples).to_pylist()[0]
    job = run_job("audit_lineage.py", row["key"], "--store", str(sample_run.store), "--depth", "manifests")
    assert job.returncode == 0, job.stdout[-3000:]
    for stage in ("read/", "download/", "filter/", "pack/sample", "pretrain/sample"):
        assert stage in job.stdout, stage
