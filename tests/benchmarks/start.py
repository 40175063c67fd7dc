"""What a start on an object store costs before its first step: `python -m tests.benchmarks.start`.

The state folder's job lists synthetic shards with the counts that the pack stage recorded, as a run would; the S3 test
server has a few shards, each of which answers under many names, and every request waits 5 ms there. Measured is a
process of one rank from reading the job to holding the batches of its first step, without imports: requests and
seconds, then the same for a few shards of an earlier release, whose counts are read from their indexes.
"""

import argparse
import hashlib
import json
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec

from tests.support.s3 import s3_client, s3_in_environment, s3_server
from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from tests.support.training.faulty_store import FaultyStore, faulty_store
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_cache import ShardCache, local_shards
from x2vlm.data.shards.row_counts import count_of
from x2vlm.data.shards.shard import read_index

NUM_DISTINCT = 64
LATENCY_SECONDS = 0.005
BUCKET = "shards"


def publish(endpoint: str, folder: Path, num_shards: int, with_counts: bool) -> list[dict[str, Any]]:
    """Put NUM_DISTINCT shards into the store; the entries of `num_shards` names for them in a job."""
    client, distinct = s3_client(endpoint), []
    for number, files in enumerate(make_shards(folder, 6 * NUM_DISTINCT, 4 * NUM_DISTINCT, NUM_DISTINCT)):
        entry: dict[str, Any] = {}
        for name, suffix in (("media", "tar"), ("index", "parquet")):
            content = getattr(files, name).read_bytes()
            client.put_object(Bucket=BUCKET, Key=f"shard-{number:05d}.{suffix}", Body=content)
            entry[f"{name}_sha256"] = hashlib.sha256(content).hexdigest()
        if with_counts:
            entry["rows"] = count_of(read_index(files.index)).to_json()
        distinct.append(entry)
    return [
        {
            "media": f"s3://{BUCKET}/shard-{number:05d}.tar",
            "index": f"s3://{BUCKET}/shard-{number:05d}.parquet",
            **distinct[number % NUM_DISTINCT],
        }
        for number in range(num_shards)
    ]


def one_of_few(path: str) -> str:
    """The path under which the store has the shard that is asked for."""
    name = path.partition("?")[0].rsplit("/", 1)[-1]
    if not name.startswith("shard-"):
        return path
    return path.replace(name[:11], f"shard-{int(name[6:11]) % NUM_DISTINCT:05d}")


def measure(store: FaultyStore, job_uri: str, cache: Path) -> dict[str, float]:
    """Requests, bytes and seconds from the job to the first step's batches."""
    store.requests.clear()
    began, cpu = time.perf_counter(), time.process_time()
    with fsspec.open(job_uri, "rb") as stream:
        job = json.load(stream)
    loader = StepLoader(local_shards(job["shards"], ShardCache(cache)), DATA, TOKENIZER, 32, 16)
    data = loader[0]
    assert data.batches
    return {
        "shards": len(job["shards"]),
        "requests": len(store.requests),
        "megabytes": round(sum(request.answered for request in store.requests) / 1e6, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def run(num_shards: int, with_counts: bool, latency: float = LATENCY_SECONDS) -> dict[str, float]:
    """`measure` with a server, a proxy and a cache of its own."""
    with tempfile.TemporaryDirectory() as scratch, s3_server() as server, faulty_store(server) as store:
        s3_client(server).create_bucket(Bucket=BUCKET)
        shards = publish(server, Path(scratch) / "made", num_shards, with_counts)
        key = f"job-{uuid.uuid4().hex}.json"
        s3_client(server).put_object(Bucket=BUCKET, Key=key, Body=json.dumps({"shards": shards}).encode())
        store.latency, store.rewrite = latency, one_of_few
        with s3_in_environment(store.endpoint):
            return measure(store, f"s3://{BUCKET}/{key}", Path(scratch) / "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--shards-without-counts", type=int, default=NUM_DISTINCT)
    given = parser.parse_args()
    print("counts from the manifest:", json.dumps(run(given.shards, True)))
    print("counts from the indexes: ", json.dumps(run(given.shards_without_counts, False)))


if __name__ == "__main__":
    main()
