"""The cache of shards, against an S3 server of our own: bytes that are checked, shared, and thrown away in turn."""

import hashlib
import multiprocessing
import uuid

import pytest
import torch

from tests.support.s3 import s3_client, s3_options, s3_server
from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_cache import CachedFile, ShardCache, local_shards
from x2vlm.data.shards.rows import ShardRows
from x2vlm.errors import ConfigError, CorruptArtifact


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(endpoint):
    """Puts bytes into a new bucket; gives back their address and sha256."""
    client = s3_client(endpoint)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)

    def put(key: str, data: bytes) -> tuple[str, str]:
        client.put_object(Bucket=name, Key=key, Body=data)
        return f"s3://{name}/{key}", hashlib.sha256(data).hexdigest()

    put.delete = lambda key: client.delete_object(Bucket=name, Key=key)
    return put


@pytest.fixture
def options(endpoint):
    return s3_options(endpoint)


def _kept(folder):
    return {path.name.split(".")[0] for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_file_is_fetched_once(bucket, options, tmp_path):
    uri, sha256 = bucket("shards/shard-00000.tar", b"payload" * 1000)
    cache = ShardCache(tmp_path / "cache", options=options)
    path = cache.fetch(uri, sha256)
    assert path.read_bytes() == b"payload" * 1000
    assert path.suffix == ".tar"
    bucket.delete("shards/shard-00000.tar")
    assert cache.fetch(uri, sha256) == path  # no store is asked


def test_other_bytes_than_recorded_are_refused_and_not_kept(bucket, options, tmp_path):
    uri, _ = bucket("shard-00000.tar", b"changed")
    cache = ShardCache(tmp_path / "cache", options=options)
    with pytest.raises(CorruptArtifact, match="rerun the pack stage"):
        cache.fetch(uri, hashlib.sha256(b"recorded").hexdigest())
    assert _kept(tmp_path / "cache") == set()


def test_the_least_recently_asked_for_is_thrown_away(bucket, options, tmp_path, monkeypatch):
    files = [bucket(f"shard-{number}.tar", bytes([number]) * 100) for number in range(4)]
    cache = ShardCache(tmp_path / "cache", max_bytes=300, options=options)
    paths = [cache.fetch(*file) for file in files[:3]]
    opened = paths[1].open("rb")
    cache.fetch(*files[0])
    cache.fetch(*files[3])
    assert _kept(tmp_path / "cache") == {files[number][1] for number in (0, 2, 3)}
    assert opened.read() == bytes([1]) * 100  # who had it open goes on reading
    opened.close()
    assert cache.fetch(*files[1]).read_bytes() == bytes([1]) * 100
    assert _kept(tmp_path / "cache") == {files[number][1] for number in (0, 1, 3)}


def test_a_file_larger_than_the_cache_is_refused(bucket, options, tmp_path):
    with pytest.raises(ConfigError, match="make it larger"):
        ShardCache(tmp_path / "cache", max_bytes=10, options=options).fetch(*bucket("shard-0.tar", b"x" * 11))


def test_what_a_killed_download_left_is_written_over(bucket, options, tmp_path):
    uri, sha256 = bucket("shard-0.tar", b"whole")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{sha256}.tar.partial").write_bytes(b"wh")
    assert ShardCache(tmp_path / "cache", options=options).fetch(uri, sha256).read_bytes() == b"whole"


def test_what_a_killed_download_left_takes_no_room(bucket, options, tmp_path):
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / f"{'0' * 64}.tar.partial"
    left.write_bytes(b"w" * 90)
    cache = ShardCache(tmp_path / "cache", max_bytes=100, options=options)
    cache.fetch(*bucket("shard-0.tar", b"x" * 50))
    assert not left.exists()
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def _fetch_all(folder, files, options, results):
    cache = ShardCache(folder, max_bytes=2500, options=options)
    results.put([hashlib.sha256(CachedFile(cache, *file).open().read()).hexdigest() for file in files])


def test_processes_share_a_cache_that_is_too_small_for_them(bucket, options, tmp_path):
    files = [bucket(f"shard-{number}.tar", bytes([number]) * 1000) for number in range(4)]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    orders = [files * 3, files[::-1] * 3]
    workers = [
        context.Process(target=_fetch_all, args=(tmp_path / "cache", order, options, results)) for order in orders
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(found) == sorted([sha256 for _, sha256 in order] for order in orders)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 2500


def test_a_local_store_is_read_in_place(tmp_path):
    (files,) = make_shards(tmp_path / "shards", num_images=3, num_videos=0, num_shards=1)
    shard = {
        "media": files.media.as_uri(),
        "media_sha256": "not looked at",
        "index": files.index.as_uri(),
        "index_sha256": hashlib.sha256(files.index.read_bytes()).hexdigest(),
    }
    assert local_shards([shard], ShardCache(tmp_path / "cache")) == [files]
    assert not (tmp_path / "cache").exists()
    with pytest.raises(CorruptArtifact, match="rerun the pack stage"):
        local_shards([shard | {"index_sha256": "0" * 64}])


def test_a_local_index_with_recorded_counts_is_checked_when_it_is_opened(tmp_path):
    """A start looks at no index then; a run on a damaged one ends as before."""
    (files,) = make_shards(tmp_path / "shards", num_images=6, num_videos=0, num_shards=1)
    counts = {"image/drawn": [[1, 0, 1, 6]]}
    shard = {"media": str(files.media), "index": str(files.index), "media_sha256": "", "rows": counts}
    good, bad = (hashlib.sha256(files.index.read_bytes()).hexdigest(), "0" * 64)
    for sha256 in (good, bad):
        (one,) = local_shards([shard | {"index_sha256": sha256}], ShardCache(tmp_path / "cache"))
        assert one.counts.to_json() == counts
        if sha256 == good:
            assert ShardRows(one.index).row(0) == ShardRows(files.index).row(0)
        else:
            with pytest.raises(CorruptArtifact, match=r"shard-00000.parquet: sha256 is .*; rerun the pack stage"):
                ShardRows(one.index)


def test_training_reads_through_a_cache_smaller_than_its_shards(bucket, options, tmp_path):
    local = make_shards(tmp_path / "shards")
    remote = []
    for files in local:
        (media, media_sha256), (index, index_sha256) = (
            bucket(path.name, path.read_bytes()) for path in (files.media, files.index)
        )
        remote.append({"media": media, "media_sha256": media_sha256, "index": index, "index_sha256": index_sha256})
    largest = max(path.stat().st_size for files in local for path in (files.media, files.index))
    cache = ShardCache(tmp_path / "cache", max_bytes=2 * largest, options=options)
    sides = [StepLoader(shards, DATA, TOKENIZER, 32, 16) for shards in (local, local_shards(remote, cache))]
    for step in range(3):
        expected, actual = (loader[step].batches for loader in sides)
        for name, batch in expected.items():
            assert batch.keys == actual[name].keys
            assert torch.equal(batch.pixels, actual[name].pixels)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 2 * largest
