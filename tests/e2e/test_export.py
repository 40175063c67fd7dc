"""The sample's shards as X-VLM JSON lines, read by a reader that shares no code with the writer."""

import random
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.e2e.conftest import SampleRun, run_job
from tests.support.xvlm_reader import read_folder


def test_every_exported_line_is_taken_by_the_reference_format_and_nothing_is_lost(
    sample_run: SampleRun, tmp_path: Path
) -> None:
    arguments = ("sample", "--store", str(sample_run.store), "--format", "xvlm", "--out", str(tmp_path / "export"))
    job = run_job("export.py", *arguments, "--json")
    assert job.returncode == 0, job.stderr
    said = job.json
    accepted = read_folder(tmp_path / "export", random.Random(7))
    assert accepted.refused == []
    rows = [pq.read_table(path) for path in sorted(sample_run.store.glob("parts/pack/*/*/shard-*.parquet"))]
    images = sum(pc.sum(pc.equal(table["kind"], "image")).as_py() or 0 for table in rows)
    captioned = sum(pc.sum(pc.greater(pc.list_value_length(table["captions"]), 0)).as_py() or 0 for table in rows)
    boxes = sum(len(pc.list_flatten(table["concepts"])) for table in rows)
    assert said["samples"] == sum(table.num_rows for table in rows)
    assert images > 0
    # The shipped rows have words in every caption: what has a caption is a line of its own.
    assert said["lines"]["image_text"] + said["lines"]["videos"] == captioned
    assert len(accepted.clips) == said["lines"]["videos"] > 0
    assert len(accepted.crops) + said["left_out"].get("box_under_one_pixel", 0) == boxes
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "export").rglob("*.jsonl")}
    assert run_job("export.py", *arguments).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "export").rglob("*.jsonl")} == before
