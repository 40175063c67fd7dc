"""Shards: what is in the tar, that it never changes by itself, and that damage is noticed."""

import hashlib
import io
import json
import multiprocessing
import pickle
import random
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from pyarrow import dataset

from tests.support.shard_samples import make_sample, payload, payloads, scored
from x2vlm.data.shards import media_files
from x2vlm.data.shards.shard import SHARD_SCHEMA, ShardReader, index_path, write_shard
from x2vlm.errors import CorruptArtifact, InvalidSample
from x2vlm.samples import Sample, sample_table

# sha256 of the tar of SAMPLES. A new value means that shards of the same samples change for everybody: bump
# Stage.version of pack, then pin the new value.
GOLDEN_TAR = "13f18a90bbfe3a1b819f40245414b6c33168aa0e2f4ce5471528871c5e01bc57"

SAMPLES = [make_sample(n) for n in range(4)] + [
    make_sample(4, kind="video", stored="frames"),
    make_sample(5, stored="png"),
]


def write(folder: Path, samples: list[Sample], name: str = "shard-00000.tar") -> Path:
    folder.mkdir(exist_ok=True)
    write_shard(folder / name, scored(samples), payloads(samples).__getitem__)
    return folder / name


def test_members_lie_in_key_order_with_fixed_headers(tmp_path: Path) -> None:
    expected = []
    for sample in sorted(SAMPLES, key=lambda sample: (sample.kind, sample.key)):
        suffix = "jpg" if sample.kind == "image" else "frames"
        expected += [f"{sample.key}.{end}" for end in (suffix, "json", "txt")]
    path = write(tmp_path, SAMPLES)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        contents = [tar.extractfile(member).read() for member in members]
    assert [member.name for member in members] == expected
    for member in members:
        assert member.isreg()
        assert not member.pax_headers
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert member.mode == 0o644
    # webdataset asks for the newer pax format; what it writes for us is plain ustar, byte for byte.
    ustar = io.BytesIO()
    with tarfile.open(fileobj=ustar, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in zip(members, contents, strict=True):
            plain = tarfile.TarInfo(member.name)
            plain.size = len(content)
            tar.addfile(plain, io.BytesIO(content))
    assert path.read_bytes() == ustar.getvalue()


def test_row_order_does_not_change_a_byte(tmp_path: Path) -> None:
    first = write(tmp_path / "a", SAMPLES)
    for seed in range(3):
        shuffled = random.Random(seed).sample(SAMPLES, len(SAMPLES))
        again = write(tmp_path / f"b{seed}", shuffled)
        assert again.read_bytes() == first.read_bytes()
        assert index_path(again).read_bytes() == index_path(first).read_bytes()


def test_bytes_are_the_pinned_ones(tmp_path: Path) -> None:
    assert hashlib.sha256(write(tmp_path, SAMPLES).read_bytes()).hexdigest() == GOLDEN_TAR


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    by_key = {sample.key: sample for sample in SAMPLES}
    seen = {}
    for item in webdataset.WebDataset(str(write(tmp_path, SAMPLES)), shardshuffle=False):
        sample = by_key[item["__key__"]]
        assert sample.media is not None
        assert item["jpg" if sample.kind == "image" else "frames"] == payload(int(sample.source_row))
        assert item["txt"].decode() == (sample.captions[0].text if sample.captions else "")
        seen[item["__key__"]] = json.loads(item["json"])
    assert seen.keys() == by_key.keys()
    for key, facts in seen.items():
        row, media = json.loads(facts.pop("row")), asdict(by_key[key])["media"]
        assert row.pop("clip_score") is None
        assert row == json.loads(json.dumps(asdict(by_key[key])))
        assert {name: facts.pop(name) for name in ("width", "height", "num_frames", "format", "sha256")} == {
            name: media[name] for name in ("width", "height", "num_frames", "format", "sha256")
        }
        assert facts == {name: row[name] for name in facts}


def test_index_finds_every_payload_and_sample(tmp_path: Path) -> None:
    path = write(tmp_path, SAMPLES)
    assert pq.read_schema(index_path(path)).equals(SHARD_SCHEMA)
    reader = ShardReader(path)
    assert len(reader) == len(SAMPLES)
    ordered = sorted(SAMPLES, key=lambda sample: sample.key)
    assert list(reader.samples()) == ordered
    raw = path.read_bytes()
    for row, sample in enumerate(ordered):
        expected = payload(int(sample.source_row))
        offset = reader.table["payload_offset"][row].as_py()
        assert raw[offset : offset + len(expected)] == expected
        assert reader.payload(row) == expected
        assert reader.sample(row) == sample
        assert reader.row_of(sample.key) == row
    reader.verify()
    with pytest.raises(KeyError):
        reader.row_of("0" * 32)


def test_reader_survives_pickling_after_use(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path, SAMPLES))
    before = reader.payload(2)
    assert pickle.loads(pickle.dumps(reader)).payload(2) == before


def test_workers_forked_after_use_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A file position survives a fork: readers that share one fetch each other's bytes."""
    big = {sha256: data * 400 for sha256, data in payloads(SAMPLES).items()}  # beyond any buffer of the stream
    write_shard(tmp_path / "shard.tar", scored(SAMPLES), big.__getitem__)
    reader = ShardReader(tmp_path / "shard.tar")
    expected = [hashlib.sha256(reader.payload(row)).hexdigest() for row in range(len(reader))]
    with multiprocessing.get_context("fork").Pool(4, initializer=_share, initargs=(reader,)) as pool:
        found = pool.map(_read_shared, [row % len(SAMPLES) for row in range(1200)], chunksize=1)
    assert found == [expected[row % len(SAMPLES)] for row in range(1200)]


def _share(reader: ShardReader) -> None:
    global _shared
    _shared = reader


def _read_shared(row: int) -> str:
    return hashlib.sha256(_shared.payload(row)).hexdigest()


def test_one_changed_payload_byte_is_noticed_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, SAMPLES)
    reader = ShardReader(path)
    offset = reader.table["payload_offset"][1].as_py()
    data = bytearray(path.read_bytes())
    data[offset + 7] ^= 1
    path.write_bytes(data)
    tampered = ShardReader(path)
    assert tampered.payload(0)
    key = tampered.table["key"][1].as_py()
    with pytest.raises(CorruptArtifact, match=rf"shard-00000\.tar.*{key}.*rerun"):
        tampered.payload(1)
    with pytest.raises(CorruptArtifact, match=key):
        tampered.verify()


def test_truncated_or_missing_shard_is_corrupt(tmp_path: Path) -> None:
    path = write(tmp_path, SAMPLES)
    reader = ShardReader(path)
    path.write_bytes(path.read_bytes()[: reader.table["payload_offset"][5].as_py() + 3])
    with pytest.raises(CorruptArtifact):
        reader.payload(5)
    path.unlink()
    with pytest.raises(CorruptArtifact, match="missing"):
        ShardReader(path).payload(0)
    index_path(path).write_bytes(b"no parquet")
    with pytest.raises(CorruptArtifact, match="not a Parquet index"):
        ShardReader(path)
    index_path(path).unlink()
    with pytest.raises(CorruptArtifact, match="index is missing"):
        ShardReader(path)


def test_a_parquet_shard_is_read_like_a_tar_and_by_any_parquet_tool(tmp_path: Path) -> None:
    samples = [make_sample(n) for n in range(150)] + SAMPLES[4:]  # three row groups
    samples = list({sample.key: sample for sample in samples}.values())
    # Payloads of all sizes, many beyond a Parquet page; equal ones and ones that look like page headers too.
    rng = random.Random(3)
    media = {sha256: rng.randbytes(rng.choice([1, 3, 900, 70_000, 3_000_000])) for sha256 in payloads(samples)}
    parquet, tar = tmp_path / "shard-00007.media.parquet", tmp_path / "tar" / "shard-00007.tar"
    tar.parent.mkdir()
    write_shard(parquet, scored(samples), media.__getitem__)
    write_shard(tar, scored(samples), media.__getitem__)
    ours, theirs = ShardReader(parquet), ShardReader(tar)
    ours.verify()
    assert list(ours.samples()) == list(theirs.samples())
    plain = pq.read_table(parquet)
    assert plain["key"].to_pylist() == ours.table["key"].to_pylist()
    for row in range(len(ours)):
        assert ours.payload(row) == theirs.payload(row) == plain["payload"][row].as_py()
    assert plain.select(sample_table(samples).column_names).equals(sample_table(samples).sort_by("key"))
    before = parquet.read_bytes()
    write_shard(parquet, scored(rng.sample(samples, len(samples))), media.__getitem__)
    assert parquet.read_bytes() == before


def test_payloads_in_parquet_are_found_however_many_row_groups_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with more than 1 MB (a page of Parquet's default size) and more than 1,024 rows (a batch) in a group."""
    monkeypatch.setattr(media_files, "GROUP_ROWS", 3000)
    samples = [make_sample(n) for n in range(2500)]
    rng = random.Random(5)
    media = {sha256: rng.randbytes(rng.choice([0, 4, 40_000])) for sha256 in payloads(samples)}
    path = tmp_path / "shard-00000.media.parquet"
    write_shard(path, scored(samples), media.__getitem__)
    assert pq.read_metadata(path).num_row_groups == 2
    assert max(map(len, media.values())) == 40_000
    ShardReader(path).verify()


def test_a_folder_of_parquet_shards_holds_every_row_once(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, SAMPLES[number::2], f"shard-{number:05d}.media.parquet")
    assert len(list(tmp_path.iterdir())) == 4
    assert dataset.dataset(tmp_path).count_rows() == len(SAMPLES)
    assert sorted(pq.read_table(tmp_path)["key"].to_pylist()) == sorted(sample.key for sample in SAMPLES)


def test_a_parquet_shard_may_be_empty(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-00000.media.parquet", scored([]), {}.__getitem__)
    assert len(ShardReader(tmp_path / "shard-00000.media.parquet")) == 0
    assert pq.read_table(tmp_path / "shard-00000.media.parquet").num_rows == 0


def test_bucket_in_place_of_an_index_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SAMPLES)
    pq.write_table(sample_table(SAMPLES), index_path(path))
    with pytest.raises(CorruptArtifact, match=r"lacks .*payload_offset"):
        ShardReader(path)


@pytest.mark.parametrize(
    ("samples", "rule"),
    [
        ([SAMPLES[0], SAMPLES[0]], "duplicate_key"),
        ([replace(SAMPLES[0], media=None)], "missing_media"),
        ([make_sample(1, stored="tiff")], "unknown_media_format"),
    ],
)
def test_rows_that_cannot_be_packed_are_refused_by_name(tmp_path: Path, samples: list[Sample], rule: str) -> None:
    with pytest.raises(InvalidSample) as caught:
        write(tmp_path, samples)
    assert caught.value.rule == rule
