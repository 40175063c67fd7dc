"""Tars as untrusted input: what is in them, where they break, and what a hostile one can do."""

import gzip
import hashlib
import io
import random
import resource
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from tests.support.sets.files import pairs, picture, write_tar
from x2vlm.data.readers.own.tar import Break, TarMember, scan_tar


def scan(data: bytes, name: str = "a.tar") -> list[TarMember | Break]:
    return list(scan_tar(io.BytesIO(data), name, lambda member: "text" if member.endswith("txt") else "media"))


def tar_bytes(tmp_path: Path, members: list[tuple[str, bytes]]) -> bytes:
    return write_tar(tmp_path / "made.tar", members).read_bytes()


def test_places_and_hashes_are_those_of_tarfile(tmp_path: Path) -> None:
    long_name = "a/" * 60 + "x.jpg"
    data = tar_bytes(tmp_path, [("a.jpg", picture(1)), (long_name, picture(2)), ("a.txt", b"text"), ("e.jpg", b"")])
    found = scan(data)
    assert [item.name for item in found if isinstance(item, TarMember)] == ["a.jpg", long_name, "a.txt", "e.jpg"]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for item, info in zip(found, tar, strict=True):
            assert isinstance(item, TarMember)
            content = tar.extractfile(info).read()  # type: ignore[union-attr]
            assert data[item.offset : item.offset + item.size] == content
            assert (
                item.data == content
                if item.name.endswith("txt")
                else item.sha256 == hashlib.sha256(content).hexdigest()
            )


@pytest.mark.parametrize("keep", [0.3, 0.55, 0.8, 0.99])
@pytest.mark.parametrize("is_packed", [False, True])
def test_rows_before_a_cut_are_kept_and_the_rest_is_one_drop(tmp_path: Path, keep: float, is_packed: bool) -> None:
    noise = [(name, random.Random(name).randbytes(900) if "jpg" in name else text) for name, text in pairs(range(20))]
    data = tar_bytes(tmp_path, noise)
    data = data[: len(data.rstrip(b"\0")) + 1024]  # without the padding after the mark of the end
    data = gzip.compress(data, mtime=0) if is_packed else data
    name = "00000.tar.gz" if is_packed else "00000.tar"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(data[: int(len(data) * keep)])
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert [sample.source_row for sample in samples] == [f"00000/{n:06d}" for n in range(len(samples))]
    assert len(samples) >= int(20 * keep) - 2
    assert [rule for _, _, _, rule in rules(drops) if rule != "no_caption"] == ["truncated_shard"]
    assert f"of {int(len(data) * keep)}: " in drops[-1].reason


@pytest.mark.parametrize("damage", ["header", "not_a_tar", "empty", "no_end"])
def test_damage_is_told_where_it_is(tmp_path: Path, damage: str) -> None:
    data = bytearray(tar_bytes(tmp_path, [("a.jpg", picture(1)), ("a.txt", b"one"), ("b.jpg", picture(2))]))
    second = 512 + -(-len(picture(1)) // 512) * 512
    if damage == "header":
        data[second : second + 100] = b"\xff" * 100
    elif damage == "not_a_tar":
        data = bytearray(b"<html>not found</html>" * 100)
    elif damage == "empty":
        data = bytearray()
    else:
        del data[second + 1024 :]
    found = scan(bytes(data))
    assert isinstance(found[-1], Break)
    assert found[-1].offset == {"header": second, "not_a_tar": 0, "empty": 0, "no_end": second + 1024}[damage]
    assert [item.name for item in found[:-1] if isinstance(item, TarMember)] == {
        "header": ["a.jpg"],
        "not_a_tar": [],
        "empty": [],
        "no_end": ["a.jpg", "a.txt"],
    }[damage]


def test_tars_written_one_after_the_other_are_read_as_one(tmp_path: Path) -> None:
    parts = [tar_bytes(tmp_path, pairs([n])) for n in range(3)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "all.tar").write_bytes(b"".join(parts))
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert [sample.source_row for sample in samples] == ["all/000000", "all/000001", "all/000002"]
    assert not drops


def _special(kind: bytes, name: str = "x.jpg", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


HOSTILE: dict[str, tuple[tarfile.TarInfo, str]] = {
    "symbolic link": (_special(tarfile.SYMTYPE), "not_a_plain_file"),
    "hard link": (_special(tarfile.LNKTYPE), "not_a_plain_file"),
    "character device": (_special(tarfile.CHRTYPE), "not_a_plain_file"),
    "block device": (_special(tarfile.BLKTYPE), "not_a_plain_file"),
    "pipe": (_special(tarfile.FIFOTYPE), "not_a_plain_file"),
    "upwards": (tarfile.TarInfo("../../x.jpg"), "unsafe_name"),
    "upwards inside": (tarfile.TarInfo("a/../../x.jpg"), "unsafe_name"),
    "absolute": (tarfile.TarInfo("/etc/x.jpg"), "unsafe_name"),
    "other system": (tarfile.TarInfo("..\\x.jpg"), "unsafe_name"),
    "not UTF-8": (tarfile.TarInfo("caf\udce9.jpg"), "name_not_utf8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_counted_and_touch_nothing(tmp_path: Path, case: str) -> None:
    info, rule = HOSTILE[case]
    good, path = pairs([1, 2]), tmp_path / "set" / "0.tar"
    write_tar(path, good[:2])
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, data in good[:2]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.addfile(info)
        for name, data in good[2:]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert [sample.source_row for sample in samples] == ["0/000001", "0/000002"]
    assert [found for _, _, _, found in rules(drops)] == [rule]
    drops[0].source_row.encode("utf-8")
    assert sorted(tmp_path.rglob("*")) == before


def _huge_name() -> bytes:
    """A GNU header of a name of 4 GB, of which gzip needs 4 MB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20), mtime=0)


def _chain_of_headers() -> bytes:
    """5,000 extension headers, each of which would be parsed inside the one before."""
    body = b"30 mtime=1350244992.023960108\n"
    info = tarfile.TarInfo("h")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return gzip.compress((info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(512, b"\0")) * 5000, mtime=0)


def _negative_size() -> bytes:
    header = bytearray(tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 4 + struct.pack(">q", -5000)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(5120), mtime=0)


@pytest.mark.parametrize("make", [_huge_name, _chain_of_headers, _negative_size])
def test_header_tricks_cost_nothing_and_are_a_break(tmp_path: Path, make: Callable[[], bytes]) -> None:
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = make()
    made = time.process_time() - began
    found = scan(data, "x.tar.gz")
    assert isinstance(found[-1], Break)
    assert time.process_time() - began - made < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400 << 10  # KiB
