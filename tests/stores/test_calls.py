"""Calls to a store that fails: which are tried again, for how long, and what they come to."""

import errno
import hashlib
import random
import threading
import time
import uuid

import pytest

from x2vlm.data.loading.shard_cache import ShardCache, seconds_since_wait
from x2vlm.errors import ConfigError
from x2vlm.stores import calls
from x2vlm.stores.calls import StoreFiles, StoreUnavailable, is_final, retrying, seconds_since_failure

FAILURES = ["refuse", "reset", "error", "throttle", "hang"]


@pytest.fixture
def uri():
    return f"s3://runs/{uuid.uuid4().hex}"


def _fail_once(store, failure):
    """Let the store fail until a call has noticed it: so that call must be tried again to succeed."""
    began = time.monotonic()
    store.failure = failure

    def restore():
        while time.monotonic() - began < 60 and calls._last_failure < began:
            time.sleep(0.02)
        store.failure = ""

    threading.Thread(target=restore, daemon=True).start()


@pytest.mark.parametrize("failure", FAILURES)
def test_an_outage_is_waited_for(store, uri, failure, tmp_path):
    files = StoreFiles(uri)
    files.write("a.json", b"old")
    (tmp_path / "b").write_bytes(b"b" * 100_000)
    for call, expected in (
        (lambda: files.write("a.json", b"new"), None),
        (lambda: files.upload(tmp_path / "b", "b"), None),
        (lambda: files.names(), ["a.json", "b"]),
        (lambda: files.read("a.json"), b"new"),
        (lambda: files.remove("a.json"), None),
    ):
        _fail_once(store, failure)
        assert call() == expected
        assert store.failure == ""
    assert files.names() == ["b"]
    assert files.read("b") == b"b" * 100_000


def test_half_an_answer_is_no_answer(store, uri, tmp_path):
    files = StoreFiles(uri)
    content = bytes(range(256)) * 400
    files.write("shard-00000.tar", content)
    _fail_once(store, "cut")
    assert files.read("shard-00000.tar") == content
    _fail_once(store, "cut")
    cache = ShardCache(tmp_path / "cache")
    path = cache.fetch(f"{uri}/shard-00000.tar", hashlib.sha256(content).hexdigest())
    assert path.read_bytes() == content


def test_a_reader_that_waits_for_a_shard_leaves_a_sign(store, uri, tmp_path):
    StoreFiles(uri).write("shard-00000.tar", b"content")
    cache = ShardCache(tmp_path / "cache", max_bytes=1000)
    assert seconds_since_wait(tmp_path / "cache") == float("inf")
    _fail_once(store, "error")
    cache.fetch(f"{uri}/shard-00000.tar", hashlib.sha256(b"content").hexdigest())
    assert seconds_since_wait(tmp_path / "cache") < 10


def test_an_outage_beyond_the_stated_time_is_told(store, uri):
    store.failure = "error"
    began = time.monotonic()
    with pytest.raises(
        StoreUnavailable, match=r"write runs/.*/a: the store failed \d+ times in .* last with .*: .*same"
    ):
        StoreFiles(uri, retry_seconds=1.0).write("a", b"")
    assert 1.0 <= time.monotonic() - began < 10
    store.failure = ""
    assert StoreFiles(uri).names() == []


def test_what_is_not_there_is_not_waited_for(store, uri):
    files = StoreFiles(uri)
    assert files.read("none") is None
    assert files.names("none") == []
    files.remove("none")
    assert seconds_since_failure() == float("inf")
    with pytest.raises(FileNotFoundError):  # no such bucket
        StoreFiles(f"s3://none-{uuid.uuid4().hex}").write("a", b"")


FINAL = [
    FileNotFoundError(2, "x"), PermissionError(13, "x"), OSError(errno.ENOSPC, "x"), ConfigError("x"), ValueError("x"),
    KeyboardInterrupt(),
]  # fmt: skip


@pytest.mark.parametrize("error", FINAL, ids=[type(error).__name__ for error in FINAL])
def test_final_errors_are_raised_at_once(error):
    tries = []

    def call():
        tries.append(0)
        raise error

    assert is_final(error)
    with pytest.raises(type(error)):
        retrying(call, "test")
    assert len(tries) == 1


def test_pauses_grow_and_leave_the_global_random_numbers_alone(monkeypatch):
    pauses, tries = [], []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(calls, "_jitter", random.Random(1))
    random.seed(3)
    expected = random.Random(3).random()

    def call():
        tries.append(0)
        if len(tries) < 12:
            raise ConnectionResetError("reset by peer")
        return "there"

    assert retrying(call, "test") == "there"
    assert random.random() == expected
    assert len(pauses) == 11
    for number, pause in enumerate(pauses):
        assert 0.0 <= pause <= min(0.5 * 2**number, 20.0)
    assert sum(pauses) > 20.0  # 66 in the mean: a store is not stormed
