"""`pack` out of a remote store: what a shard costs in requests and bytes, and what happens while the store fails."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.flow.run.part_task import run_one_part
from pipelines.flow.segments import SEGMENTS, segments_name
from pipelines.flow.stage import (
    Count,
    Graph,
    Input,
    Inputs,
    Node,
    Part,
    PartReader,
    PartResult,
    PartWriter,
    Stage,
    part_fingerprint,
)
from pipelines.flow.store import layout
from pipelines.flow.store.artifact import PartRecord
from pipelines.flow.store.store import Store
from pipelines.s3_score.stage import SCORE_SCHEMA
from pipelines.s4_materialize import PACK, PARTITION, PackConfig, PartitionConfig
from pipelines.s4_materialize.slices import ROWS
from tests.support.flow.helpers import run_all
from tests.support.s3 import s3_client, s3_options, s3_server
from tests.support.training.faulty_store import FaultyStore, faulty_store
from x2vlm.config import FrozenConfig
from x2vlm.data.shards.packs import PACK_NAME, Payload, write_media_pack
from x2vlm.data.shards.payload_ranges import MAX_GAP_BYTES, MAX_RANGE_BYTES
from x2vlm.errors import CorruptArtifact, SourceUnavailable
from x2vlm.samples import Caption, Media, Sample, sample_key, sample_table, write_table
from x2vlm.stores import calls

ROWS_OF_A_SOURCE, NUM_SHARDS = 6000, 4
NUM_PARTS = {"ranges": 12, "plain": 20}  # of download: ranges of keys, or slices of the source in its own order
# Payloads have a sixteenth of the bytes that photos of 256 pixels have, and so have the ranges that are read.
CONFIG = PackConfig(max_gap_bytes=MAX_GAP_BYTES // 16, max_range_bytes=MAX_RANGE_BYTES // 16)


class GivenConfig(FrozenConfig):
    """Where the files of every part lie, a folder each."""

    folder: str


def plan_given(config: GivenConfig, inputs: Inputs) -> list[Part]:
    return [Part(path.name, spec={"folder": str(path)}) for path in sorted(Path(config.folder).iterdir())]


def give(config: GivenConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    shutil.copytree(part.spec["folder"], out.path, dirs_exist_ok=True)
    return PartResult({"rows": Count(1, 1)})


def write_source(folder: Path, source: str) -> None:
    """Rows, scores and media packs of a source, as filter, score and download write them; a media in twenty comes
    again in the next row."""
    draw, spool = random.Random(source), folder / f"{source}.bin"
    samples, at, data = [], [], b""
    with spool.open("wb") as stream:
        for number in range(ROWS_OF_A_SOURCE):
            if number % 20 != 1:
                data = draw.randbytes(draw.randint(500, 3500))
                at.append((stream.tell(), len(data)))
                stream.write(data)
            else:
                at.append(at[-1])
            media = Media("image", f"{draw.getrandbits(256):064x}", len(data), 64, 48, "jpeg")
            media = samples[-1].media if number % 20 == 1 and samples else media
            text = (Caption(f"row {number}"),)
            names = (sample_key(source, str(number)), source, str(number), "train", "image", f"http://x/{number}")
            samples.append(Sample(*names, captions=text, media=media))
    order = list(range(ROWS_OF_A_SOURCE))
    if source == "ranges":
        order.sort(key=lambda number: samples[number].key)
    size = ROWS_OF_A_SOURCE // NUM_PARTS[source]
    for part in range(NUM_PARTS[source]):
        own = order[part * size : (part + 1) * size]
        rows, scores, media_folder = (folder / kind / source / f"{part:05d}" for kind in ("rows", "scores", "media"))
        for one in (rows, scores, media_folder):
            one.mkdir(parents=True)
        write_table(sample_table([samples[number] for number in own]), rows / "rows.parquet")
        values = [{"key": samples[n].key, "clip_score": draw.random(), "missing": ""} for n in own]
        write_table(pa.Table.from_pylist(values, schema=SCORE_SCHEMA), scores / "scores.parquet")
        # By key, as `s1_download.download` gives them, whatever the order of the rows.
        by_key = sorted(own, key=lambda number: samples[number].key)
        media_of = {number: samples[number].media for number in by_key}
        write_media_pack(
            media_folder, (Payload(one.sha256, "jpeg", spool, *at[n]) for n, one in media_of.items() if one)
        )


@dataclass
class Corpus:
    """A curated corpus in a local store, and a copy of what `pack` needs of it on an S3 server behind a proxy."""

    local: Store
    remote: Store
    proxy: FaultyStore
    endpoint: str
    manifests: dict[str, str]  # node -> path of its manifest

    def artifact(self, store: Store, node: str) -> Input:
        found = store.read_manifest(self.manifests[node])
        assert found is not None
        return store.as_input(*found)

    def part(self, store: Store, shard: int) -> Part:
        media = tuple(self.artifact(store, f"download/{source}") for source in NUM_PARTS)
        inputs = {"buckets": (self.artifact(store, "partition/toy"),), "media": media}
        return list(PACK.plan_parts(CONFIG, inputs))[shard]

    def pack(self, part: Part) -> PartRecord:
        """The record of the part after it was run in the remote store, also if it had been run there before."""
        self.remote.blobs.delete(layout.record_path(PACK.name, part_fingerprint(PACK, CONFIG, part)))
        self.proxy.counts()
        return run_one_part(self.remote, PACK, CONFIG, part)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    folder = tmp_path_factory.mktemp("corpus")
    nodes, slots = [], {"filter": "rows", "score": "scores", "download": "media"}
    for source in NUM_PARTS:
        write_source(folder, source)
        for name, slot in slots.items():
            stage = Stage(name, 1, GivenConfig, (), plan_given, give)
            nodes.append(Node(f"{name}/{source}", stage, GivenConfig(folder=str(folder / slot / source)), {}))
    inputs = {slot: tuple(f"{name}/{source}" for source in NUM_PARTS) for name, slot in slots.items()}
    partition = PartitionConfig(num_shards=NUM_SHARDS, min_clip_score=0.3)
    nodes.append(Node("partition/toy", PARTITION, partition, {**inputs, "decisions": ()}))
    local = Store(folder / "store")
    result = run_all(Graph(nodes), local)
    paths = {
        key: (one.manifest.stage, key.split("/")[1], one.manifest.fingerprint) for key, one in result.nodes.items()
    }
    manifests = {key: layout.manifest_path(*path) for key, path in paths.items()}
    with s3_server() as endpoint, faulty_store(endpoint) as proxy:
        client = s3_client(endpoint)
        client.create_bucket(Bucket="packs")
        for path in sorted((folder / "store").rglob("*")):
            relative = path.relative_to(folder / "store").as_posix()
            if relative in manifests.values() or path.name in (ROWS, segments_name(ROWS), PACK_NAME):
                client.put_object(Bucket="packs", Key=f"store/{relative}", Body=path.read_bytes())
        # What tries again is the store's own code alone.
        options = {"config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 300, "connect_timeout": 300}}
        remote = Store("s3://packs/store", s3_options(proxy.endpoint) | options)
        remote.blobs.fs.retries = 1
        yield Corpus(local, remote, proxy, endpoint, manifests)


@pytest.fixture(autouse=True)
def short_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X2VLM_CACHE", str(tmp_path))
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(calls, "LONGEST_PAUSE", 0.1)


def test_a_shard_takes_few_requests_and_its_own_bytes(corpus: Corpus) -> None:
    """From 20 parts in the order of their source and 3 or 4 ranges of keys, a third of their rows dropped."""
    part = corpus.part(corpus.remote, 1)
    made = corpus.pack(part)
    requests = list(corpus.proxy.requests)
    counts = corpus.proxy.counts()
    assert made.counts["rows"].num_out > 1500
    assert len(part.reads[0].file.detail[SEGMENTS]) >= 20 + 3
    assert counts.keys() == {"GET", "PUT"}
    assert counts["PUT"] == len(made.files) + 1
    assert counts["GET"] <= 120
    expected = run_one_part(corpus.local, PACK, CONFIG, corpus.part(corpus.local, 1))
    assert made.content_sha256 == expected.content_sha256
    index = next(file for file in expected.files if file.path.endswith(".parquet") and file.path.startswith("shard-"))
    payloads = sum(pq.read_table(corpus.local.file_uri(expected, index))["payload_bytes"].to_pylist())
    ranges = [one for one in requests if one.kind == "GET" and PACK_NAME in one.path]
    assert len(ranges) < made.counts["rows"].num_out / 20
    # Those of dropped rows between are read along, and a header of 512 bytes each; a quarter of every pack would be
    # four times as much if payloads did not lie in the order of the keys.
    assert payloads < sum(one.answered for one in ranges) < 2.2 * payloads


@pytest.mark.parametrize("seed", [1, 2])
def test_a_store_that_fails_now_and_then_gives_the_same_shard(corpus: Corpus, seed: int) -> None:
    """5 % of all requests fail: before their effect, after it, or in the middle of the answer."""
    expected = run_one_part(corpus.local, PACK, CONFIG, corpus.part(corpus.local, 1))
    part = corpus.part(corpus.remote, 1)
    corpus.proxy.num_failed = 0
    corpus.proxy.fail_share(0.05, seed)
    try:
        made = corpus.pack(part)
    finally:
        corpus.proxy.fail_share(0.0, 0)
    assert corpus.proxy.num_failed > 0
    assert made.content_sha256 == expected.content_sha256


@pytest.mark.parametrize("name", [PACK_NAME, ROWS])
def test_what_a_store_forgot_or_damaged_since_the_plan_is_named(corpus: Corpus, name: str) -> None:
    """The first range of keys is in shard 0."""
    part, client = corpus.part(corpus.remote, 0), s3_client(corpus.endpoint)
    node, holder = ("download/ranges", "00000") if name == PACK_NAME else ("partition/toy", "000-00000")
    assert part.reads[0].file.detail[SEGMENTS][0][0] == "000-00000"
    uri = corpus.artifact(corpus.remote, node).part(holder).file(name).uri
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    try:
        client.delete_object(Bucket=bucket, Key=key)
        with pytest.raises(SourceUnavailable, match=rf"{name}: read as .* by part 00000: .*rerun"):
            corpus.pack(part)
        for damaged in (b"", data[:600] + bytes(len(data) - 600)):  # cut short, other bytes
            client.put_object(Bucket=bucket, Key=key, Body=damaged)
            with pytest.raises(CorruptArtifact, match=rf"{name}: .*[Rr]erun"):
                corpus.pack(part)
    finally:
        client.put_object(Bucket=bucket, Key=key, Body=data)
