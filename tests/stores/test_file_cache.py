"""Copies of remote files: within their limit, found again, and without a look at all of them for each one."""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from x2vlm.stores import file_cache
from x2vlm.stores.file_cache import LEDGER, FileCache


class Counted(FileCache):
    """A cache that counts how often it looks at all copies."""

    num_looks = 0

    def _copies(self):
        self.num_looks += 1
        return super()._copies()


def taken(cache: FileCache) -> int:
    """The bytes of all copies."""
    return sum(path.stat().st_size for path in cache.folder.glob("??/*"))


def entered(cache: FileCache) -> int:
    """The bytes that the ledger tells of."""
    return int((cache.folder / LEDGER).read_text().split()[0])


def file_of(folder: Path, data: bytes) -> tuple[Path, str]:
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"file-{sha256}"
    path.write_bytes(data)
    return path, sha256


def test_twenty_thousand_files_cost_a_few_looks(tmp_path: Path):
    """One look at the start, then one for each tenth of the limit that was added."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)
    cache = Counted(tmp_path / "cache", lambda: 100 * 5_000)
    for number in range(20_000):
        cache.keep(source, f"{number:016x}"[::-1])
        if number == 4_999:
            assert (cache.num_looks, taken(cache)) == (1, 500_000)
        if number % 2_500 == 0:
            assert taken(cache) <= entered(cache) <= 500_000
    assert 0.9 * 500_000 <= taken(cache) <= entered(cache) <= 500_000
    assert cache.num_looks <= 1 + 15_000 / 500 + 1


def test_the_longest_unused_go_first(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", lambda: 1000)
    files = [file_of(tmp_path, bytes([number]) * 100) for number in range(11)]
    for number, (path, sha256) in enumerate(files[:10]):
        os.utime(path, (0, number))
        cache.keep(path, sha256)
    assert cache.take(files[0][1], 100, tmp_path / "used")  # so it is the newest now
    cache.keep(*files[10])
    kept = {path.name for path in cache.folder.glob("??/*")}
    assert kept == {sha256 for _, sha256 in (files[0], *files[3:])}


def test_a_copy_that_was_damaged_is_no_copy(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", lambda: 1000)
    path, sha256 = file_of(tmp_path, b"right")
    cache.keep(path, sha256)
    assert cache.take(sha256, 5, tmp_path / "one")
    for wrong in (b"wrong", b"longer", b""):
        copy = cache.path(sha256)
        copy.unlink()
        copy.write_bytes(wrong)
        assert not cache.take(sha256, 5, tmp_path / "two")
        assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"5", b"00000000000000000000 -1\n", b"0 9999999999999\n"])
def test_a_ledger_that_says_nothing_true_is_made_again(tmp_path: Path, content):
    cache = Counted(tmp_path / "cache", lambda: 1000)
    files = [file_of(tmp_path, bytes([number]) * 400) for number in range(3)]
    for file in files[:2]:
        cache.keep(*file)
    ledger = cache.folder / LEDGER
    ledger.unlink() if content is None else ledger.write_bytes(content)
    cache.keep(*files[2])
    assert cache.num_looks == 2
    assert taken(cache) <= entered(cache) <= 1000
    assert cache.path(files[2][1]).exists()


def test_what_others_changed_is_counted_within_the_hour(tmp_path: Path, monkeypatch):
    cache = Counted(tmp_path / "cache", lambda: 10_000)
    files = [file_of(tmp_path, bytes([number]) * 100) for number in range(4)]
    cache.keep(*files[0])
    (cache.folder / "aa").mkdir()
    (cache.folder / "aa" / "added").write_bytes(b"x" * 500)
    cache.keep(*files[1])
    assert (cache.num_looks, entered(cache)) == (1, 200)
    later = time.time() + file_cache.COUNT_AGAIN_SECONDS + 1
    monkeypatch.setattr(file_cache.time, "time", lambda: later)
    cache.keep(*files[2])
    assert (cache.num_looks, entered(cache)) == (2, 800)


def test_a_file_above_the_limit_is_not_kept_and_pushes_nothing_out(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", lambda: 1000)
    small, large = file_of(tmp_path, b"small"), file_of(tmp_path, b"x" * 1001)
    cache.keep(*small)
    cache.keep(*large)
    assert cache.path(small[1]).exists()
    assert not cache.path(large[1]).exists()
    assert entered(cache) == 5


FILL = """
import sys
from pathlib import Path
from x2vlm.stores.file_cache import FileCache
source, folder, start = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cache = FileCache(folder, lambda: 20_000)
print("ready", flush=True)
for number in range(start, start + 1_000_000):
    cache.keep(source, f"{number:016x}"[::-1])
"""


def test_processes_share_a_limit_and_a_kill_leaves_it_true(tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)
    cache = FileCache(tmp_path / "cache", lambda: 20_000)
    command = [sys.executable, "-c", FILL, str(source), str(cache.folder)]
    writers = [
        subprocess.Popen([*command, str(number * 10_000_000)], stdout=subprocess.PIPE, cwd=Path.cwd())
        for number in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 300
        while not (cache.folder / LEDGER).exists() or entered(cache) < 18_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    assert taken(cache) <= entered(cache) <= 20_000


def test_a_ledger_that_another_holds_costs_only_the_copy(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(file_cache, "LOCK_SECONDS", 0.05)
    cache = FileCache(tmp_path / "cache", lambda: 1000)
    first, second = file_of(tmp_path, b"first"), file_of(tmp_path, b"second")
    cache.keep(*first)
    with cache._locked(), ThreadPoolExecutor(1) as pool:
        pool.submit(cache.keep, *second).result(10)
    assert not cache.path(second[1]).exists()
    cache.keep(*second)
    assert cache.take(second[1], 6, tmp_path / "taken")
