"""What a training of 1.29 million steps has read, from its order: `python -m tests.benchmarks.record`.

Streams, batches, steps and lanes are those of an experiment's first phase; rows of each source are spread over
synthetic shards as the experiment's header counts them, web pairs with one caption and others with more. One index of
13,000 keys stands for that of every shard, so no figure has the time of fetching one. Measured: `drawn` as a table
of all steps, `seen` for one key of the web and one of a clean source, and a list of some steps, sample by sample.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.experiment import load_experiment
from pipelines.s5_pretrain.samples import DRAWS_SCHEMA, consumed_samples, draws_tables
from tests.support.training.captioned import TOKENIZER, image_of, indexes_of
from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.record import seen
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.shards.row_counts import ShardCounts
from x2vlm.samples import sample_key

# By source: rows of all shards, captions and region phrases of a row, and whether it has objects.
ROWS = {
    "laion_en": (1_323_042_683, (1, 0, False)),
    "cc12m": (11_100_000, (1, 0, False)),
    "cc3m": (2_900_000, (1, 0, False)),
    "sbu": (860_000, (1, 0, False)),
    "coco": (110_000, (5, 0, True)),
    "visual_genome": (100_000, (0, 50, True)),
    "openimages": (1_700_000, (0, 0, True)),
    "objects365": (580_000, (0, 0, True)),
}


def synthetic_shards(num_shards: int, folder: Path) -> list[ShardFiles]:
    """Shards with equal parts of these rows, and one index for all of them."""
    counts = {source: max(1, round(rows / num_shards)) for source, (rows, _) in ROWS.items()}
    (files,) = indexes_of(
        folder,
        [
            replace(of_source, key=sample_key(source, str(number)))
            for source, (_, (captions, phrases, _)) in ROWS.items()
            for of_source in [image_of(source, 0, (captions, phrases))[0]]
            for number in range(counts[source])
        ],
        num_shards=1,
    )
    of_each = ShardCounts({("image", source): {texts: counts[source]} for source, (_, texts) in ROWS.items()})
    return [ShardFiles(files.media, files.index, of_each)] * num_shards


def timed(name: str, call: object) -> object:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()  # type: ignore[operator]
    spent = {"wall": round(time.perf_counter() - wall, 2), "cpu": round(time.process_time() - cpu, 2)}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"what": name, **spent, "peak_mib": memory}), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="base_1b_paper")
    parser.add_argument("--shards", type=int, default=99_999)
    parser.add_argument("--lanes", type=int, help="instead of the experiment's")
    parser.add_argument("--listed-steps", type=int, default=200)
    options = parser.parse_args()
    phase = load_experiment(options.experiment).phases["phase1"]
    data = phase.data.model_copy(update={"lanes": options.lanes} if options.lanes else {})
    steps = phase.train.steps
    with tempfile.TemporaryDirectory(prefix="x2vlm-record-") as scratch:
        shards = synthetic_shards(options.shards, Path(scratch))
        loader = timed("loader", lambda: StepLoader(shards, DataConfig.model_validate(data), TOKENIZER, 224, 16))
        assert isinstance(loader, StepLoader)

        def record() -> int:
            with pq.ParquetWriter(Path(scratch) / "draws.parquet", DRAWS_SCHEMA, compression="zstd") as writer:
                rows = 0
                for table in draws_tables(loader, 0, steps):
                    writer.write_table(table)
                    rows += table.num_rows
            return rows

        rows = timed(f"drawn by {steps} steps", record)
        size = (Path(scratch) / "draws.parquet").stat().st_size
        print(json.dumps({"rows": rows, "megabytes": round(size / 1e6, 1)}))
        for source in ("laion_en", "objects365"):
            key = sample_key(source, "0")
            found = timed(f"steps that saw a key of {source}", lambda key=key: seen(loader, 7, key, 0, steps))
            assert isinstance(found, list)
            print(json.dumps({"draws": len(found)}))
        middle = steps // 2
        number = options.listed_steps
        timed(
            f"list of the samples of {number} steps",
            lambda: sum(table.num_rows for table in consumed_samples(loader, middle, middle + number, {})),
        )


if __name__ == "__main__":
    main()
