"""A store that fails on command, as `s3://` without options."""

import fsspec
import pytest

from tests.support.s3 import s3_client, s3_in_environment, s3_server
from tests.support.training.faulty_store import faulty_store
from x2vlm.stores import calls

FAST = {"config_kwargs": {"read_timeout": 0.5, "connect_timeout": 0.5, "retries": {"max_attempts": 1}}}


@pytest.fixture(scope="package")
def server():
    with s3_server() as address:
        s3_client(address).create_bucket(Bucket="runs")
        yield address


@pytest.fixture
def store(server, monkeypatch):
    """Pauses and time-outs are a fraction of the real ones."""
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(calls, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(calls, "MAX_TRIES", 100_000)
    monkeypatch.setattr(calls, "_last_failure", -float("inf"))
    monkeypatch.setitem(fsspec.config.conf, "s3", FAST)
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    with faulty_store(server) as proxy, s3_in_environment(proxy.endpoint):
        yield proxy
