"""The download and read stages on cards of a copy that the user has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD
from pipelines.s1_download.read import READ, read_config
from tests.support.flow_helpers import artifact_input, run_stage_part, upstream_input
from x2vlm.data.cards import Card
from x2vlm.samples import Sample, sample_table, samples_of, write_table

Ledger = list[dict[str, Any]]


def download_by_route(folder: Path, samples: Sequence[Sample], **values: Any) -> tuple[Ledger, list[Sample], Any]:
    """Ledger, kept samples and result of the stage."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows").mkdir()
    write_table(sample_table(samples), folder / "rows" / "rows-00000.parquet")
    config = DownloadConfig.model_validate({"retries": 0, "host_requests_per_second": 0.0, **values})
    (part,) = DOWNLOAD.plan_parts(config, {"rows": (artifact_input("read/test", {"all": folder / "rows"}),)})
    result = run_stage_part(DOWNLOAD, config, part, folder / "out")
    kept = samples_of(pq.read_table(folder / "out" / "rows.parquet"))
    return pq.read_table(folder / "out" / "ledger.parquet").to_pylist(), kept, result


def read_card(folder: Path, card: Card, texts: dict[str, str]) -> list[Sample]:
    """The samples that a shipped card's reader makes of small files in upstream's format."""
    files = []
    for role, file in card.files.items():
        path = folder / "upstream" / Path(file.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[role], encoding="utf-8")
        files.append(upstream_input(path, card.id))
    config = read_config(card)
    inputs = {"card": (files[0],), "files": tuple(files)}
    run_stage_part(READ, config, READ.plan_parts(config, inputs)[0], folder / "read")
    return samples_of(pq.read_table(folder / "read" / "rows-00000.parquet"))
