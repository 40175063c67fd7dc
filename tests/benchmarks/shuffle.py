"""The cost of assigning rows to shards at scale: `partition` over ten million scored rows, part by part.

    python -m tests.benchmarks.shuffle [--rows-per-part 200000] [--shards 64]

Each total runs in a separate process, so that its peak memory is its own; generating the rows is not counted.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.flow.stage import Input
from pipelines.s3_score import SCORE_SCHEMA
from pipelines.s4_materialize import PARTITION, PartitionConfig
from tests.benchmarks.filter_rows import synthetic_rows
from tests.support.parts import Reader, Writer, as_part
from x2vlm.data.shards.packs import PACK_SCHEMA
from x2vlm.samples import write_table


def scores_of(rows: pa.Table, number: int) -> pa.Table:
    """A CLIP score for every row."""
    score = pa.array(np.random.default_rng(number).normal(0.28, 0.05, rows.num_rows), pa.float32())
    missing = pa.array([""] * rows.num_rows)
    columns = {"key": rows["key"], "clip_score": score, "missing": missing}
    filled = [columns.get(field.name, pa.nulls(rows.num_rows, field.type)) for field in SCORE_SCHEMA]
    return pa.table(filled, schema=SCORE_SCHEMA)


def index_of(rows: pa.Table) -> pa.Table:
    """The index of a media pack with an image of a hundred kilobytes for every row, stored as it came."""
    sha256 = pc.struct_field(rows["media"], "sha256")
    offsets = pa.array(np.arange(rows.num_rows, dtype=np.int64) * 100_000)
    columns = {
        "sha256": sha256,
        "payload_sha256": sha256,
        "offset": offsets,
        "bytes": pa.array([90_000] * rows.num_rows),
    }
    filled = [columns.get(field.name, pa.array(["jpeg"] * rows.num_rows)) for field in PACK_SCHEMA]
    return pa.table(filled, schema=PACK_SCHEMA)


def at_scale(total_rows: int, rows_per_part: int, shards: int, folder: Path) -> dict[str, float]:
    """CPU microseconds a row (median and mean over the parts), rows kept, and peak memory."""
    config = PartitionConfig(num_shards=shards, image_min_clip_score=0.25)
    spent, kept = [], 0
    for number in range(total_rows // rows_per_part):
        rows = synthetic_rows(rows_per_part, first=number * rows_per_part)
        for name, table in {"rows": rows, "scores": scores_of(rows, number), "media": index_of(rows)}.items():
            (folder / name).mkdir(exist_ok=True)
            write_table(table, folder / name / f"{name}.parquet")
        inputs = {
            name: (Input(f"{name}/synthetic", "", (as_part(f"{number:05d}", folder / name),)),)
            for name in ("rows", "scores", "media")
        }
        (part,) = PARTITION.plan_parts(config, {**inputs, "decisions": ()})
        (folder / "out").mkdir()
        began = time.process_time()
        result = PARTITION.run_part(config, Reader(part), part, Writer(folder / "out"))
        spent.append((time.process_time() - began) / rows_per_part * 1e6)
        kept += result.counts["rows"].num_out
        shutil.rmtree(folder / "out")
    return {
        "rows": total_rows,
        "kept": kept,
        "microseconds_a_row": round(statistics.median(spent), 3),
        "mean_microseconds_a_row": round(statistics.mean(spent), 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-per-part", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(at_scale(options.one, options.rows_per_part, options.shards, Path(folder))))
        return
    for total in (1_000_000, 10_000_000, 1_000_000):
        command = [sys.executable, "-m", "tests.benchmarks.shuffle", "--one", str(total)]
        command += ["--rows-per-part", str(options.rows_per_part), "--shards", str(options.shards)]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
