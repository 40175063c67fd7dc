"""Stores to test against (a local folder, memory, a real S3 protocol server on this machine)."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from pipelines.flow.store.store import Store

S3_CREDENTIALS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server of our own.

    S3 decides about a conditional PUT (`If-None-Match: *`) and does it in one step; moto looks first and writes then,
    so of several at a time more than one may win. Here its PUTs go one after the other.
    """
    lock, put_object = threading.Lock(), S3Response.put_object

    def put_one_at_a_time(self: S3Response) -> Any:
        with lock:
            return put_object(self)

    S3Response.put_object = put_one_at_a_time  # type: ignore[method-assign]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    S3Response.put_object = put_object  # type: ignore[method-assign]


def s3_store(endpoint: str, bucket: str = "") -> Store:
    bucket = bucket or f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=bucket)
    return Store(f"s3://{bucket}/store", {**S3_CREDENTIALS, "client_kwargs": {"endpoint_url": endpoint}})


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
