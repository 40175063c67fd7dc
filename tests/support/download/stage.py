"""The download stage on a few addresses, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.flow.stage import PartResult
from pipelines.s1_download.download import DOWNLOAD, DownloadConfig
from tests.support.flow_helpers import artifact_input, run_stage_part
from x2vlm.data.shards.packs import MediaPack
from x2vlm.samples import Caption, Sample, sample_key, sample_table, samples_of, write_table


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
    rows = tmp_path / "rows"
    rows.mkdir()
    write_table(sample_table(samples), rows / "rows-00000.parquet")
    config = {"allow_networks": ("127.0.0.1/32",), "host_requests_per_second": 0.0, "retries": 0} | config
    parsed = DownloadConfig.model_validate(config)
    (part,) = DOWNLOAD.plan_parts(parsed, {"rows": (artifact_input("read/test", {"all": rows}),)})
    run = Downloaded(run_stage_part(DOWNLOAD, parsed, part, tmp_path / "out"), tmp_path / "out")
    assert len(run.ledger) == len(samples)
    return run
