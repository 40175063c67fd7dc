"""Exported shards: names without gaps, equal bytes however they came, and clear refusals."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.experiment import load_experiment
from pipelines.export import FORMATS
from pipelines.export.export import export_shards
from pipelines.export.packed import packed_shards
from pipelines.flow.audit.sample_history import trace_sample
from pipelines.flow.stage import PartResult
from pipelines.flow.store.store import Store
from pipelines.report.text_lengths import ASSUMED, text_lengths
from pipelines.s4_materialize import PACK, PackConfig
from pipelines.s4_materialize.pack import pack_part
from pipelines.why.trace import manifests_in_order
from tests.support.packed_store import experiment_file, job_json, packed_store, rows_of_every_format
from x2vlm.data.loading.config import ExampleConfig
from x2vlm.data.shards.media_files import is_media_file
from x2vlm.errors import ConfigError

ROWS = rows_of_every_format(26, 4, without_caption=5)
# Rows fall into shards by key; with this many some shards have none, and are there all the same.
NUM_SHARDS = 60


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The same rows, packed as tars and as Parquet."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: packed_store(folder / name, ROWS, PackConfig.model_validate({"format": name}), NUM_SHARDS)
        for name in ("webdataset", "parquet")
    }


def files_of(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


@pytest.mark.parametrize(("as_format", "suffix"), [("webdataset", ".tar"), ("parquet", ".parquet")])
def test_shards_are_linked_under_names_without_gaps(
    stores: dict[str, Store], tmp_path: Path, as_format: str, suffix: str
) -> None:
    shards = packed_shards(stores[as_format], "toy")
    assert [part.name for part in shards.parts] == [f"{number:05d}" for number in range(NUM_SHARDS)]
    summary = export_shards(stores[as_format], "toy", tmp_path / "out", as_format)
    stored = [Path(file.uri) for part in shards.parts for file in part.files if is_media_file(file.path)]
    exported = files_of(tmp_path / "out", suffix)
    assert [path.name for path in exported] == [f"{number:05d}{suffix}" for number in range(len(stored))]
    assert [path.stat().st_ino for path in exported] == [path.stat().st_ino for path in stored]
    assert (summary["linked"], summary["copied"], summary["rewritten"]) == (len(stored), 0, 0)
    assert (summary["samples"], summary["images"], summary["with_caption"]) == (30, 26, 25)
    copied = export_shards(stores[as_format], "toy", tmp_path / "copy", as_format, copy=True)
    assert copied["copied"] == len(stored)
    for path, source in zip(files_of(tmp_path / "copy", suffix), stored, strict=True):
        assert path.stat().st_ino != source.stat().st_ino
        assert path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("packed", "as_format", "suffix"), [("webdataset", "parquet", ".parquet"), ("parquet", "webdataset", ".tar")]
)
def test_the_other_format_has_the_bytes_that_packing_in_it_gives(
    stores: dict[str, Store], tmp_path: Path, packed: str, as_format: str, suffix: str
) -> None:
    summary = export_shards(stores[packed], "toy", tmp_path / "rewritten", as_format)
    assert summary["rewritten"] == summary["shards"] > 1
    export_shards(stores[as_format], "toy", tmp_path / "linked", as_format)
    rewritten, linked = (files_of(tmp_path / name, suffix) for name in ("rewritten", "linked"))
    assert [path.name for path in rewritten] == [path.name for path in linked]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(rewritten, linked, strict=True))
    assert not [path for path in (tmp_path / "rewritten").iterdir() if path.name.startswith(".")]


def test_sizes_are_images_per_tar(stores: dict[str, Store], tmp_path: Path) -> None:
    export_shards(stores["webdataset"], "toy", tmp_path, "webdataset")
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert list(sizes) == [path.name for path in files_of(tmp_path, ".tar")]
    indexes = [pq.read_table(path) for path in sorted(Path(stores["webdataset"].uri).rglob("shard-*.parquet"))]
    images = [pc.sum(pc.equal(table["kind"], "image"), min_count=0).as_py() for table in indexes]
    assert 0 in images
    assert sorted(sizes.values()) == sorted(images)
    assert sum(sizes.values()) == 26


@pytest.mark.parametrize("as_format", FORMATS)
def test_a_finished_export_is_left_alone_and_nothing_else_is_written_over(
    stores: dict[str, Store], tmp_path: Path, as_format: str
) -> None:
    out, store = tmp_path / "out", stores["webdataset"]
    summary = export_shards(store, "toy", out, as_format)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert export_shards(store, "toy", out, as_format) == summary
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ConfigError, match=r"holds an export of other shards .*name another folder"):
        export_shards(stores["parquet"], "toy", out, as_format)
    (foreign := tmp_path / "foreign").mkdir()
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"foreign is not empty .*name another folder"):
        export_shards(store, "toy", foreign, as_format)
    with pytest.raises(ConfigError, match="is a file"):
        export_shards(store, "toy", foreign / "mine.txt", as_format)
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_an_experiment_without_shards_names_the_stage_to_run(stores: dict[str, Store], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no shards of other; run `jobs/run_stage.py other --only 'pack/\*'`"):
        export_shards(stores["webdataset"], "other", tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()


def test_shards_of_an_earlier_release_are_packed_again_first(tmp_path: Path) -> None:
    store = packed_store(tmp_path, ROWS[:6], stage=replace(PACK, version=2))
    with pytest.raises(ConfigError, match=r"version 2 of the pack stage.*run `jobs/run_stage.py toy --only 'pack/\*'`"):
        export_shards(store, "toy", tmp_path / "out", "webdataset")


def test_a_trace_names_the_shard_of_a_row_in_both_kinds(stores: dict[str, Store]) -> None:
    """And reads no payload for it: of a Parquet shard it opens the index alone."""
    for name, suffix in (("webdataset", ".tar"), ("parquet", ".media.parquet")):
        packed = [one for one in manifests_in_order(stores[name], "toy") if one.manifest.node == "pack/toy"]
        for one in (ROWS[0], ROWS[-1]):
            (trace,) = trace_sample(stores[name], packed, one.sample.key)
            assert trace.verdict == "packed"
            assert trace.shard == f"shard-{trace.part}{suffix}"
            assert "payload" not in trace.values


def pack_as_before(*arguments: Any) -> PartResult:
    """A part with the names that version 2 gave: an index of Parquet shards was called `shard-00000.parquet`."""
    result, out = pack_part(*arguments), arguments[-1].path
    (index,) = out.glob("_shard-*.index")
    name = index.name.removeprefix("_").replace(".index", ".parquet")
    index.rename(out / name)
    rows = {name if path == index.name else path: number for path, number in result.file_rows.items()}
    return replace(result, file_rows=rows)


def test_a_plan_over_parquet_shards_of_an_earlier_release_measures_no_texts(tmp_path: Path) -> None:
    stage = replace(PACK, version=2, run_part=pack_as_before)
    store = packed_store(tmp_path, ROWS[:6], PackConfig(format="parquet"), stage=stage)
    experiment = load_experiment(str(experiment_file(tmp_path, store)))
    found = text_lengths(experiment, "pack/toy", ExampleConfig(), store)
    assert found.mean == ASSUMED
    assert found.source.endswith("image, video, region assumed")


def test_phrases_that_are_captions_count_among_the_texts_of_images(tmp_path: Path) -> None:
    """Six images, two with a phrase and no caption; each image holds one phrase at most."""
    store = packed_store(tmp_path, rows_of_every_format(6, 0, without_caption=2))
    experiment = load_experiment(str(experiment_file(tmp_path, store)))
    plain, with_phrases = (
        text_lengths(experiment, "pack/toy", ExampleConfig(), store, phrases) for phrases in (None, {"toy": 8})
    )
    num_phrases = sum(len(row.sample.concepts) for row in rows_of_every_format(6, 0, without_caption=2))
    counts = [int(re.search(r"(\d+) image", found.source)[1]) for found in (plain, with_phrases)]
    assert counts[1] - counts[0] == num_phrases == 4
    assert plain.mean["region"] == with_phrases.mean["region"]
    assert plain.mean["image"] != with_phrases.mean["image"]


def test_the_job_says_what_it_wrote(stores: dict[str, Store], tmp_path: Path, project_root: Path) -> None:
    experiment = experiment_file(tmp_path, stores["webdataset"])

    def export(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "jobs/export.py", str(experiment), "--out", str(tmp_path / "out"), *arguments]
        return subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)

    done = export("--format", "webdataset", "--json")
    assert done.returncode == 0, done.stderr
    assert job_json(done.stdout) == {**json.loads((tmp_path / "out" / "summary.json").read_text()), "exit_code": 0}
    told = export("--format", "webdataset")
    assert "30 samples of toy" in told.stdout
    assert str(tmp_path / "out" / "README.md") in told.stdout
    refused = export("--format", "xvlm", "--json")
    assert refused.returncode == job_json(refused.stdout)["exit_code"] == 3
    assert "name another folder" in job_json(refused.stdout)["error"]
    assert export("--format", "tar").returncode == 3
