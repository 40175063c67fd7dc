"""Stores to test against (a local folder, memory, a real S3 protocol server on this machine)."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.flow.store.store import Store
from tests.support.s3 import s3_client, s3_options, s3_server


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server of our own."""
    with s3_server() as endpoint:
        yield endpoint


def s3_store(endpoint: str, bucket: str = "") -> Store:
    bucket = bucket or f"bucket-{uuid.uuid4().hex[:12]}"
    s3_client(endpoint).create_bucket(Bucket=bucket)
    return Store(f"s3://{bucket}/store", s3_options(endpoint))


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of every kind."""
    if request.param == "local":
        return Store(tmp_path / "store")
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return s3_store(request.getfixturevalue("s3_endpoint"))


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, float], None]:
    """Makes a file look as if it had been written some seconds earlier."""
    import os

    def make_older(path: Path, seconds: float) -> None:
        stat = path.stat()
        os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))

    return make_older
