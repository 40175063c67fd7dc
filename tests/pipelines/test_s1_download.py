"""The download stage against a server that misbehaves in every way it knows, on a real loopback connection."""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from pipelines.flow.stage import Input, InputFile, InputPart, Part, PartResult, part_fingerprint
from pipelines.s1_download.download import DOWNLOAD, DownloadConfig
from tests.hostile_server import HostileServer, hostile_server, jpeg
from x2vlm.data.packs import MediaPack
from x2vlm.data.video import decode_frames
from x2vlm.errors import ConfigError
from x2vlm.samples import Caption, Sample, sample_key, sample_table, samples_of, write_table


@dataclass
class Folder:
    """Reader and writer of one part, on local folders."""

    path: Path
    state_uri: str = ""

    def local_path(self, file: InputFile) -> Path:
        return Path(file.uri)

    def open(self, file: InputFile) -> BinaryIO:
        return Path(file.uri).open("rb")


@dataclass
class Downloaded:
    """What one run of the stage left."""

    result: PartResult
    path: Path

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return pq.read_table(self.path / "ledger.parquet").to_pylist()

    @property
    def verdicts(self) -> dict[str, str]:
        return {row["url"]: row["status"] for row in self.ledger}

    @property
    def kept(self) -> list[Sample]:
        return samples_of(pq.read_table(self.path / "rows.parquet"))

    @property
    def pack(self) -> MediaPack:
        return MediaPack(self.path / "media.tar", self.path / "media.parquet")


def make_samples(urls: Sequence[str], kind: str = "image", **values: Any) -> list[Sample]:
    return [
        Sample(sample_key("test", str(i)), "test", str(i), "train", kind, url, captions=(Caption("a test"),), **values)
        for i, url in enumerate(urls)
    ]


def download(tmp_path: Path, samples: Sequence[Sample], **config: Any) -> Downloaded:
    rows, out = tmp_path / "rows-00000.parquet", tmp_path / "out"
    write_table(sample_table(samples), rows)
    out.mkdir()
    config = {"allow_networks": ("127.0.0.1/32",), "host_requests_per_second": 0.0, "retries": 0} | config
    file = InputFile("rows-00000.parquet", rows.stat().st_size, "0" * 64, str(rows))
    rows_input = Input("read/test", "root", (InputPart("all", (file,)),))
    parsed = DownloadConfig.model_validate(config)
    (part,) = DOWNLOAD.plan_parts(parsed, {"rows": (rows_input,)})
    result = DOWNLOAD.run_part(parsed, Folder(tmp_path), part, Folder(out))
    for unit, count in result.counts.items():
        count.check(unit)
    assert len(Downloaded(result, out).ledger) == len(samples)
    return Downloaded(result, out)


EXPECTED = {
    "good": "kept",
    "png-as-jpeg": "kept",
    "no-length": "kept",
    "gzip": "kept",
    "recovers": "kept",
    "noai-other": "kept",
    "hops/5": "kept",
    "hops/6": "too_many_redirects",
    "nowhere": "http_404",
    "gone": "http_410",
    "busy": "http_429",
    "broken": "http_500",
    "no-location": "http_302",
    "loop": "too_many_redirects",
    "to-metadata": "address_forbidden",
    "to-file": "scheme_forbidden",
    "to-user": "userinfo_forbidden",
    "drip": "too_slow",
    "header-drip": "too_slow",
    "hang": "deadline_exceeded",
    "lying-long": "truncated_body",
    "lying-short": "decode_failed",
    "huge": "body_too_large",
    "endless": "body_too_large",
    "cut-chunk": "truncated_body",
    "bad-chunk": "truncated_body",
    "gzip-bomb": "compression_ratio",
    "gzip-cut": "truncated_body",
    "gzip-lie": "bad_response",
    "brotli": "encoding_unsupported",
    "gif-bomb": "too_many_pixels",
    "png-bomb": "too_many_pixels",
    "html": "not_an_image",
    "svg": "not_an_image",
    "truncated": "decode_failed",
    "empty": "empty_body",
    "no-content": "empty_body",
    "reset": "connection_reset",
    "hang-up": "connection_reset",
    "not-http": "bad_response",
    "many-headers": "bad_response",
    "long-header": "bad_response",
    "noai": "opted_out",
    "noai-dated": "opted_out",
    "noai-us": "opted_out",
    "tdm": "opted_out",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stage run once over every behaviour, and over URLs that must not be contacted at all."""
    with hostile_server() as server, hostile_server("127.0.0.2") as forbidden:
        urls = [f"{server.base}/{path}" for path in EXPECTED]
        urls += [f"{forbidden.base}/good", f"{server.base}/to/{forbidden.base}/good", f"{server.base}/good"]
        urls += ["file:///etc/hostname", "ftp://example.invalid/x.jpg", "not a url", "", "http://user:pw@127.0.0.1/"]
        port = server.endpoint[1]
        run = download(
            tmp_path_factory.mktemp("hostile"),
            make_samples(urls),
            allow_ports=(80, 443, port, forbidden.endpoint[1]),
            max_image_bytes=4 << 20,
            image_deadline_seconds=2.0,
            rate_grace_seconds=0.5,
            retries=1,
            threads=8,
            host_connections=50,
        )
        yield run, server, forbidden


@pytest.mark.parametrize("path", EXPECTED)
def test_every_behaviour_ends_as_kept_or_as_its_rule(hostile: Any, path: str) -> None:
    run, server, _ = hostile
    assert run.verdicts[f"{server.base}/{path}"] == EXPECTED[path]
