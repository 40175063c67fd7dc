"""What a start on an object store costs before its first step: `python -m tests.benchmarks.training_start`.

The pretrain stage's own functions write the job and the listing of synthetic shards, with the counts that the pack
stage recorded, to the S3 test server. It has a few shards, each of which answers under many names, and every request
waits 5 ms there. Printed, without imports: what the driver spends on the listing; what the first process of a machine
spends from reading the job to a loader that knows the order of all steps; what a second process of that machine spends;
then the batches of the first step. At last the start of a few shards of an earlier release, whose counts are read from
their indexes.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.flow.stage import InputFile, Part, Read
from pipelines.s5_pretrain.shards import listing_of, write_listing
from tests.support.s3 import s3_client, s3_in_environment, s3_server
from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from tests.support.training.faulty_store import FaultyStore, faulty_store
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_cache import ShardCache, fetch_listing, listed_shards
from x2vlm.data.shards.listing import ShardListing, read_listing
from x2vlm.data.shards.row_counts import ROW_COUNTS, count_of
from x2vlm.data.shards.shard import read_index
from x2vlm.stores.calls import StoreFiles

NUM_DISTINCT = 64
LATENCY_SECONDS = 0.005
BUCKET = "shards"


Spent = dict[str, float]


def publish(endpoint: str, folder: Path, num_shards: int, with_counts: bool) -> Part:
    """Put NUM_DISTINCT shards into the store; a part that reads `num_shards` names for them."""
    client = s3_client(endpoint)
    distinct: list[tuple[str, str, dict[str, Any]]] = []
    for number, files in enumerate(make_shards(folder, 6 * NUM_DISTINCT, 4 * NUM_DISTINCT, NUM_DISTINCT)):
        digests = []
        for path, suffix in ((files.media, "tar"), (files.index, "parquet")):
            content = path.read_bytes()
            client.put_object(Bucket=BUCKET, Key=f"shard-{number:05d}.{suffix}", Body=content)
            digests.append(hashlib.sha256(content).hexdigest())
        counts = {ROW_COUNTS: count_of(read_index(files.index)).to_json()} if with_counts else {}
        distinct.append((digests[0], digests[1], counts))
    reads = []
    for number in range(num_shards):
        media, index, recorded = distinct[number % NUM_DISTINCT]
        name = f"shard-{number:05d}"
        both = (InputFile(f"{name}.tar", 0, media, ""), InputFile(f"{name}.parquet", 0, index, "", detail=recorded))
        reads += [Read("shards", replace(file, uri=f"s3://{BUCKET}/{file.path}")) for file in both]
    return Part("train", tuple(reads))


def one_of_few(path: str) -> str:
    """The path under which the store has the shard that is asked for."""
    name = path.partition("?")[0].rsplit("/", 1)[-1]
    if not name.startswith("shard-"):
        return path
    return path.replace(name[:11], f"shard-{int(name[6:11]) % NUM_DISTINCT:05d}")


def measure(store: FaultyStore, part: Part, cache: Path) -> dict[str, Spent]:
    """Requests, bytes and seconds of each step of a start."""
    state = f"s3://{BUCKET}/state"
    found: dict[str, Spent] = {}

    def drive() -> None:
        job = {"shards": write_listing(listing_of(part), state)}
        StoreFiles(state).write("job.json", json.dumps(job).encode())

    def start() -> StepLoader:
        job = json.loads(StoreFiles(state).read("job.json") or b"")
        kept = ShardCache(cache)
        return StepLoader(listed_shards(fetch_listing(**job["shards"], cache=kept), kept), DATA, TOKENIZER, 32, 16)

    _, found["driver"] = spent(store, drive)
    loader, found["first process"] = spent(store, start)
    _, found["second process"] = spent(store, start)
    data, found["first step"] = spent(store, lambda: loader[0])
    assert data.batches
    return found


def spent(store: FaultyStore, call: Callable[[], Any]) -> tuple[Any, Spent]:
    """The result of a call, and what it cost."""
    store.requests.clear()
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    counted = {
        "requests": len(store.requests),
        "gets": sum(request.kind == "GET" for request in store.requests),
        "megabytes": round(sum(request.answered + request.sent for request in store.requests) / 1e6, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }
    return result, counted


def run(num_shards: int, with_counts: bool, latency: float = LATENCY_SECONDS) -> dict[str, Spent]:
    """`measure` with a server, a proxy and a cache of its own."""
    with tempfile.TemporaryDirectory() as scratch, s3_server() as server, faulty_store(server) as store:
        s3_client(server).create_bucket(Bucket=BUCKET)
        part = publish(server, Path(scratch) / "made", num_shards, with_counts)
        store.latency, store.rewrite = latency, one_of_few
        with s3_in_environment(store.endpoint):
            return measure(store, part, Path(scratch) / "cache")


def size_of_listing(num_shards: int) -> Spent:
    """Bytes of a listing in which no two digests are equal, as in a run, and seconds to read it."""
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2 * num_shards)]
    listing = ShardListing.of_shards(
        [
            {
                **{
                    "media": f"s3://bucket/parts/pack/{media[:2]}/{media}/shard-{number:05d}.tar",
                    "media_sha256": media,
                },
                "index": f"s3://bucket/parts/pack/{media[:2]}/{media}/shard-{number:05d}.parquet",
                **{"index_sha256": index, "rows": {"image/web": [[1, 0, 0, 13_000 + number % 500]]}},
            }
            for number, (media, index) in enumerate(zip(digests[::2], digests[1::2], strict=True))
        ]
    )
    data = listing.to_bytes()
    began = time.perf_counter()
    assert len(read_listing(data, hashlib.sha256(data).hexdigest(), "here")) == num_shards
    return {"megabytes": round(len(data) / 1e6, 2), "seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--shards-without-counts", type=int, default=NUM_DISTINCT)
    given = parser.parse_args()
    for num_shards, with_counts in ((given.shards, True), (given.shards_without_counts, False)):
        for what, found in run(num_shards, with_counts).items():
            counts = "recorded" if with_counts else "from indexes"
            print(json.dumps({"shards": num_shards, "counts": counts, "what": what, **found}), flush=True)
    print(
        json.dumps({"shards": given.shards, "what": "a listing of different shards", **size_of_listing(given.shards)})
    )


if __name__ == "__main__":
    main()
