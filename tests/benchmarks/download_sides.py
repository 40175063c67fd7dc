"""The two systems that `tests.benchmarks.download` compares, each as a process that does one complete download.

`python -m tests.benchmarks.download_sides SIDE JOB.json`; the job is a `Job`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

THREADS = 16
if sys.argv[1:2] == ["peer"]:
    # As in an environment with img2dataset alone. Its three processes would import torch and ray if installed, for 15
    # more CPU seconds; both are optional.
    for absent in ("torch", "ray", "pyspark"):
        sys.modules[absent] = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Job:
    """The job of both sides: fetch `urls` into `folder`. Modes: original, reencoded (256 px, quality 95), scaled."""

    urls: list[str]
    folder: str
    mode: str
    short_edge: int = 256
    quality: int = 95


def run_peer(job: Job) -> int:
    """How many photos img2dataset stores through its one public function: tar shards, sha256, 16 threads."""
    from img2dataset import download

    folder = Path(job.folder)
    (folder / "urls.txt").write_text("\n".join(job.urls))
    resized: dict[str, Any] = {"resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    download(
        url_list=str(folder / "urls.txt"),
        output_folder=str(folder / "out"),
        output_format="webdataset",
        processes_count=1,
        thread_count=THREADS,
        number_sample_per_shard=len(job.urls),
        image_size=job.short_edge,
        encode_quality=job.quality,
        compute_hash="sha256",
        extract_exif=False,
        timeout=20,
        disable_all_reencoding=job.mode == "original",
        **({"resize_mode": "no"} if job.mode == "original" else resized),
    )
    (stats,) = (folder / "out").glob("*_stats.json")
    return int(json.loads(stats.read_text())["successes"])


def run_ours(job: Job) -> int:
    """How many photos our stage stores, all its guards on and its part hashed as a commit hashes it."""
    from pipelines.flow.store.commit import hash_files
    from pipelines.s1_download.config import DownloadConfig
    from pipelines.s1_download.download import DOWNLOAD
    from tests.support.flow_helpers import artifact_input, run_stage_part
    from x2vlm.samples import Sample, sample_key, sample_table, write_table

    folder = Path(job.folder)
    (folder / "rows").mkdir()
    samples = [
        Sample(sample_key("photos", str(row)), "photos", str(row), "train", "image", url)
        for row, url in enumerate(job.urls)
    ]
    write_table(sample_table(samples), folder / "rows" / "rows-00000.parquet")
    ports = sorted({int(url.split(":")[2].split("/")[0]) for url in job.urls})
    config = DownloadConfig.model_validate(
        {
            "allow_networks": ["127.0.0.1/32"],
            "allow_ports": ports,
            "threads": THREADS,
            "host_connections": 2 * THREADS,  # all origins are one host here, which must not limit the rate
            "host_requests_per_second": 1e6,
            **store_of(job),
        }
    )
    (part,) = DOWNLOAD.plan_parts(config, {"rows": (artifact_input("read/photos", {"all": folder / "rows"}),)})
    result = run_stage_part(DOWNLOAD, config, part, folder / "out")
    hash_files(folder / "out", result.file_rows)
    return result.counts["rows"].num_out


def store_of(job: Job) -> dict[str, Any]:
    """The `store` config of a mode."""
    if job.mode == "original":
        return {"store": {"kind": "original"}}
    size = {"short_edge": job.short_edge, "quality": job.quality}
    return {"store": {"kind": "reencoded", **size, "scaled_decode": job.mode == "scaled"}}


def main() -> None:
    side, job = sys.argv[1], Job(**json.loads(Path(sys.argv[2]).read_text()))
    num_stored = {"peer": run_peer, "ours": run_ours}[side](job)
    if num_stored != len(job.urls):
        raise SystemExit(f"{side}: {num_stored} of {len(job.urls)} photos were stored")


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # no network access in the timed part
    os.environ["WANDB_MODE"] = "disabled"
    main()
