"""The listing of shards: equal to the shards it was made of, whatever is asked, and checked when it is read."""

import hashlib
import pickle

import numpy as np
import pytest

from x2vlm.data.loading.shard_cache import ShardCache, fetch_listing, listed_shards, local_shards
from x2vlm.data.loading.shard_set import CountedShards, ShardSet
from x2vlm.data.shards.listing import ShardListing
from x2vlm.data.shards.row_counts import CountTable, ShardCounts
from x2vlm.errors import CorruptArtifact

COUNTS = [
    {"image/web": [[1, 0, 0, 7]], "image/vg": [[0, 3, 1, 2], [0, 9, 0, 1]]},
    {},
    {"video/clips": [[2, 0, 0, 4]], "image/web": [[1, 0, 0, 5], [0, 0, 1, 6]]},
]
QUESTIONS = [("image", ()), ("image", ("web",)), ("region", ()), ("region", ("vg", "web")), ("video", ())]


def entry(number, counts):
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    files = {"media": f"memory://shards/{number}.tar", "index": f"memory://shards/{number}.parquet"}
    rows = {} if counts is None else {"rows": counts}
    return {**files, "media_sha256": digest, "index_sha256": digest[::-1], **rows}


@pytest.fixture(scope="module")
def entries():
    return [entry(number, counts) for number, counts in enumerate(COUNTS)]


@pytest.fixture
def listing(entries, tmp_path):
    data = ShardListing.of_shards(entries).to_bytes()
    (tmp_path / "shards.parquet").write_bytes(data)
    return fetch_listing(str(tmp_path / "shards.parquet"), hashlib.sha256(data).hexdigest())


def test_a_listing_gives_back_its_shards_and_equal_ones_equal_bytes(listing, entries):
    assert [listing.shard(number) for number in range(len(listing))] == entries
    assert listing.to_bytes() == ShardListing.of_shards(entries).to_bytes()


@pytest.mark.parametrize("span", [slice(None), slice(1, 3), slice(0, 1), slice(2, -1)])
def test_the_table_of_counts_says_what_each_shard_says(listing, span, tmp_path):
    """`split_shards` takes parts of a listing; the shards of a part are numbered from 0."""
    each = [ShardCounts.from_json(counts) for counts in COUNTS[span]]
    cache = ShardCache(tmp_path)
    found = listed_shards(listing, cache)[span]
    assert isinstance(found, CountedShards)
    for table in (found.counts, CountTable.of_shards(each)):
        assert [table.shard(number) for number in range(len(each))] == each
        assert table.sources() == sorted({source for counts in each for source in counts.sources()})
        for kind, sources in QUESTIONS:
            for grains in ((), ("object",), ("region",)):
                assert table.of(kind, sources, grains).tolist() == [one.of(kind, sources, grains) for one in each]
            texts = table.texts_of(kind, sources, {"vg": 4})
            assert texts.tolist() == [one.texts_of(kind, sources, {"vg": 4}) for one in each]
    assert list(found) == local_shards([listing.shard(number) for number in range(*span.indices(3))], cache)


def test_a_set_of_listed_shards_travels_to_reader_processes(listing, tmp_path):
    shards = ShardSet(listed_shards(listing, ShardCache(tmp_path)))
    there = pickle.loads(pickle.dumps(shards))
    np.testing.assert_array_equal(there.counts("image", ()), shards.counts("image", ()))
    assert [str(files.media) for files in there.files] == [str(files.media) for files in shards.files]
    assert there.files[2].counts == shards.files[2].counts


def test_shards_of_an_earlier_release_without_counts_are_taken_one_by_one(entries, tmp_path):
    listing = ShardListing.of_shards([*entries[:2], entry(2, None)])
    assert listing.counts is None
    cache = ShardCache(tmp_path)
    assert listed_shards(listing, cache) == local_shards([*entries[:2], entry(2, None)], cache)


def test_a_changed_listing_is_refused_with_its_remedy(entries, tmp_path):
    data = ShardListing.of_shards(entries).to_bytes()
    (tmp_path / "shards.parquet").write_bytes(data[:-1] + b"?")
    with pytest.raises(CorruptArtifact, match=r"shards\.parquet: the listing.*run the training again"):
        fetch_listing(str(tmp_path / "shards.parquet"), hashlib.sha256(data).hexdigest())
