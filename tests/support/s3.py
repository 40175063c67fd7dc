"""An S3 server of our own, which a test may reach by options or, as a user would, by the environment."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import fsspec
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

CREDENTIALS = {"key": "test", "secret": "test"}  # as fsspec names them


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of a running server.

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
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        S3Response.put_object = put_object  # type: ignore[method-assign]


def s3_client(endpoint: str) -> Any:
    """A boto3 client of that server."""
    keys = {"aws_access_key_id": CREDENTIALS["key"], "aws_secret_access_key": CREDENTIALS["secret"]}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


def s3_options(endpoint: str) -> dict[str, Any]:
    """fsspec options to reach that server."""
    return {**CREDENTIALS, "client_kwargs": {"endpoint_url": endpoint}}


@contextmanager
def s3_in_environment(endpoint: str) -> Iterator[None]:
    """`s3://` without options means that server. fsspec keeps file systems by their options, so it forgets them."""
    values = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    values |= {"AWS_ACCESS_KEY_ID": CREDENTIALS["key"], "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret"]}
    system = fsspec.get_filesystem_class("s3")
    system.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield
    system.clear_instance_cache()
