"""Media packs: plain tars, found by hash, verified on every read."""

import hashlib
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.shards import packs
from x2vlm.data.shards.packs import MediaPack, Payload, write_media_pack
from x2vlm.errors import CorruptArtifact


def write(folder: Path, payloads: list[bytes]) -> list[Payload]:
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for payload in payloads:
        digest = hashlib.sha256(payload).hexdigest()
        path = folder / f"{digest}.payload"
        path.write_bytes(payload)
        items.append(Payload(digest, "jpeg", path))
    return items


@settings(max_examples=20, deadline=None)
@given(payloads=st.lists(st.binary(max_size=3000), max_size=12))
def test_what_went_in_comes_out_by_hash(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("pack")
    write_media_pack(folder, write(folder / "in", payloads))
    with MediaPack(folder / "media.tar", folder / "media.parquet") as pack:
        expected = {hashlib.sha256(payload).hexdigest(): payload for payload in payloads}
        assert {sha256: pack.read(sha256) for sha256 in pack} == expected
        assert len(pack) == len(expected)
    with tarfile.open(folder / "media.tar") as tar:  # the standard reader sees the same
        assert {m.name: tar.extractfile(m).read() for m in tar} == {f"{k}.jpeg": v for k, v in expected.items()}  # type: ignore[union-attr]


def test_payloads_lie_in_their_order_and_the_first_of_equal_ones_counts(tmp_path: Path) -> None:
    payloads = [bytes([index]) * (index * 300) for index in range(9)]
    for name, order in (("a", payloads), ("b", payloads + payloads[::-1])):
        items = write(tmp_path / name / "in", order)
        entries = write_media_pack(tmp_path / name, items)
        assert [entry.sha256 for entry in entries] == [hashlib.sha256(payload).hexdigest() for payload in payloads]
        offsets = [entry.offset for entry in entries]
        assert offsets == sorted(offsets)
    for file in ("media.tar", "media.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_payloads_out_of_one_file_are_those_in_files_of_their_own(tmp_path: Path) -> None:
    payloads = [bytes([index]) * (index * 300) for index in range(9)]
    (tmp_path / "b").mkdir()
    spool, offset, ranges = tmp_path / "spool", 0, []
    spool.write_bytes(b"".join(payloads) + b"half of one")
    for payload in payloads:
        digest = hashlib.sha256(payload).hexdigest()
        ranges.append(Payload(digest, "jpeg", spool, offset, len(payload), digest))
        offset += len(payload)
    write_media_pack(tmp_path / "b", ranges)
    (tmp_path / "a").mkdir()
    write_media_pack(tmp_path / "a", write(tmp_path / "a" / "in", payloads))
    for file in ("media.tar", "media.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_payload_that_breaks_off_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"half")
    with pytest.raises(CorruptArtifact, match="spool: 3 bytes from 1"):
        write_media_pack(tmp_path, [Payload("ab" * 32, "jpeg", tmp_path / "spool", 1, 9, "cd" * 32)])


def test_a_changed_byte_is_found_and_an_absent_hash_is_a_key_error(tmp_path: Path) -> None:
    write_media_pack(tmp_path, write(tmp_path / "in", [b"first" * 100, b"second" * 100]))
    pack = MediaPack(tmp_path / "media.tar", tmp_path / "media.parquet")
    sha256 = hashlib.sha256(b"first" * 100).hexdigest()
    offset = pack.entry(sha256).offset
    data = bytearray((tmp_path / "media.tar").read_bytes())
    data[offset + 7] ^= 1
    (tmp_path / "media.tar").write_bytes(data)
    with pytest.raises(CorruptArtifact, match=sha256):
        pack.read(sha256)
    assert pack.read(hashlib.sha256(b"second" * 100).hexdigest()) == b"second" * 100
    assert "0" * 64 not in pack
    with pytest.raises(KeyError):
        pack.read("0" * 64)
    (tmp_path / "media.tar").write_bytes(data[: offset + 10])
    with pytest.raises(CorruptArtifact):
        pack.read(sha256)


def test_an_index_that_is_none_is_named(tmp_path: Path) -> None:
    write_media_pack(tmp_path, [])
    (tmp_path / "media.parquet").write_bytes(b"not parquet")
    with pytest.raises(CorruptArtifact, match=r"media\.parquet"):
        MediaPack(tmp_path / "media.tar", tmp_path / "media.parquet")


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 30_000), max_size=30, unique=True))
def test_the_tar_is_the_one_that_tarfile_writes(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("pack")
    items = write(folder / "in", [bytes([size % 251]) * size for size in sizes])
    write_media_pack(folder, items)
    with tarfile.open(folder / "expected.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            member = tarfile.TarInfo(f"{item.sha256}.jpeg")
            member.size, member.mode = item.path.stat().st_size, 0o644
            with item.path.open("rb") as stream:
                tar.addfile(member, stream)
    assert (folder / "media.tar").read_bytes() == (folder / "expected.tar").read_bytes()


def test_more_files_than_are_kept_open_are_packed_all_the_same(tmp_path: Path) -> None:
    payloads = [bytes([index]) * 9 for index in range(150)]
    entries = write_media_pack(tmp_path, write(tmp_path / "in", payloads))
    assert len(entries) == 150
    with MediaPack(tmp_path / "media.tar", tmp_path / "media.parquet") as pack:
        assert sorted(pack.read(entry.sha256) for entry in entries) == sorted(payloads)


@pytest.mark.parametrize(("name", "num_bytes"), [("x" * 101, 1), ("x", 8**11)])
def test_what_a_tar_header_cannot_say_is_refused(name: str, num_bytes: int) -> None:
    with pytest.raises(ValueError, match="more than a tar header can hold"):
        packs._tar_header(name, num_bytes)
