"""What `partition` costs where a part has a row or two of each of very many shards: CPU seconds, bytes and files.

    python -m tests.benchmarks.partitioning [--rows 10000] [--shards 99999]

One part of made-up rows; making them is not counted. The CPU seconds are the smallest of three runs in one process.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from pipelines.flow.segments import read_segment, segments_name
from pipelines.flow.stage import Input
from pipelines.s4_materialize import PARTITION, PartitionConfig
from pipelines.s4_materialize.slices import ROWS
from tests.benchmarks.filter_rows import synthetic_rows
from tests.benchmarks.shuffle import index_of, scores_of
from tests.support.parts import Reader, Writer, as_part
from x2vlm.samples import write_table


def measure(num_rows: int, num_shards: int, folder: Path) -> dict[str, float]:
    """CPU seconds, bytes and files of one part, and how many slices and shards it has rows of."""
    rows = synthetic_rows(num_rows, first=0)
    for name, table in {"rows": rows, "scores": scores_of(rows, 0), "media": index_of(rows)}.items():
        (folder / name).mkdir()
        write_table(table, folder / name / f"{name}.parquet")
    inputs = {
        name: (Input(f"{name}/synthetic", "", (as_part("00000", folder / name),)),)
        for name in ("rows", "scores", "media")
    }
    config = PartitionConfig(num_shards=num_shards)
    (part,) = PARTITION.plan_parts(config, {**inputs, "decisions": ()})
    spent, out = [], folder / "out"
    for _ in range(3):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        began = time.process_time()
        result = PARTITION.run_part(config, Reader(part), part, Writer(out))
        spent.append(time.process_time() - began)
    listing = read_segment((out / segments_name(ROWS)).open("rb"))
    return {
        "rows": result.counts["rows"].num_out,
        "shards_with_rows": sum(map(len, listing["groups"].to_pylist())),
        "slices": listing.num_rows,
        "files": len(list(out.iterdir())),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
        "bytes_of_rows_parquet": (folder / "rows" / "rows.parquet").stat().st_size,
        "cpu_seconds": round(min(spent), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=99_999)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options.rows, options.shards, Path(folder))))


if __name__ == "__main__":
    main()
