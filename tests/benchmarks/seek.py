"""The time to the first batch of a run that starts in the middle of its data: `python -m tests.benchmarks.seek`.

Indexes of 10,000 rows a shard are written once; payloads are one small JPEG that all rows share. Every figure is of a
separate process, from `StepLoader(...)` to the batch of the step at half of the first epoch, without imports.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from x2vlm.data.shards.shard import SHARD_SCHEMA
from x2vlm.samples import write_table

ROWS_PER_SHARD = 10_000
BATCH_SIZE = 32


def write_indexes(folder: Path, num_shards: int) -> None:
    """Shards of one payload each, which every row of the index refers to: only indexes matter here."""
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    payload = buffer.getvalue()
    sha256 = hashlib.sha256(payload).hexdigest()
    for shard in range(num_shards):
        (folder / f"shard-{shard:05d}.tar").write_bytes(payload)
        write_table(_index(shard, payload, sha256), folder / f"shard-{shard:05d}.parquet")


def _index(shard: int, payload: bytes, sha256: str) -> pa.Table:
    numbers = range(shard * ROWS_PER_SHARD, (shard + 1) * ROWS_PER_SHARD)
    keys = sorted(hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in numbers)
    concept = {"grain": "object", "text": "dog", "box": {"x": 5.0, "y": 5.0, "w": 30.0, "h": 40.0}, "attributes": []}
    rows = [
        {
            "key": key,
            "source": "web" if number % 5 else "clean",
            "source_row": str(number),
            "split": "train",
            "kind": "image",
            "url": f"https://web.example/{key}.jpg",
            "captions": [{"text": f"picture {key[:6]} of a dog", "language": "en", "origin": "alt"}],
            "concepts": [concept | {"annotation_id": str(number)}] * (number % 4),
            "licence": "",
            "author": "",
            "published_hash": "",
            "media": {
                "kind": "image", "sha256": hashlib.sha256(key.encode()).hexdigest(), "bytes": len(payload),
                "width": 64, "height": 64, "format": "jpeg", "num_frames": 1, "phash": key[:16],
            },
            "payload_offset": 0,
            "payload_bytes": len(payload),
            "payload_sha256": sha256,
        }
        for number, key in enumerate(keys)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)


def seek(folder: Path, num_shards: int) -> dict[str, float]:
    """Seconds to the first batch at half of the data, in this process."""
    from tests.support.training.corpus import TOKENIZER
    from x2vlm.data.loading.config import DataConfig, StreamConfig
    from x2vlm.data.loading.loader import StepLoader
    from x2vlm.data.loading.shard_set import ShardFiles

    paths = [folder / f"shard-{shard:05d}.tar" for shard in range(num_shards)]
    files = [ShardFiles(path, path.with_suffix(".parquet")) for path in paths]
    streams = (
        StreamConfig(kind="image", batch_size=BATCH_SIZE, sources=("web",), aux_sources=("clean",), aux_share=0.2),
        StreamConfig(kind="region", batch_size=BATCH_SIZE, num_images=BATCH_SIZE // 2),
    )
    step = num_shards * ROWS_PER_SHARD // BATCH_SIZE // 2
    wall, cpu = time.perf_counter(), time.process_time()
    data = StepLoader(files, DataConfig(streams=streams), TOKENIZER, 64, 16)[step]
    spent = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    assert {batch.num_rows for batch in data.batches.values()} == {BATCH_SIZE}
    return {"samples": num_shards * ROWS_PER_SHARD, "step": step, **spent}


def cold(folder: Path, num_shards: int) -> dict[str, float]:
    """`seek` in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.seek", "--folder", str(folder), "--shards", str(num_shards)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=int, default=100)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(seek(options.folder, options.shards)))
        return
    with tempfile.TemporaryDirectory(prefix="x2vlm-seek-") as folder:
        write_indexes(Path(folder), options.shards)
        for number in sorted({1, max(1, options.shards // 10), options.shards}):
            found = cold(Path(folder), number)
            print(" ".join(f"{name}={value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
