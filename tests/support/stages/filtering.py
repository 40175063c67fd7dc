"""The filter stage on made samples: what goes in, and what came out."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.flow.stage import PartResult
from pipelines.s2_filter import FILTER, FilterConfig
from tests.support.flow_helpers import artifact_input, read_rows, run_stage_part
from x2vlm.samples import (
    Box,
    Caption,
    Concept,
    Grain,
    Media,
    Sample,
    sample_table,
    samples_of,
    write_table,
)


def filter_samples(folder: Path, samples: Iterable[Sample], **changes: object) -> PartResult:
    """Runs the stage on samples as if they had been downloaded; output in `folder`/out."""
    (folder / "in").mkdir(parents=True)
    write_table(sample_table(samples), folder / "in" / "rows.parquet")
    config = FilterConfig(**changes)
    [part] = FILTER.plan_parts(config, {"rows": (artifact_input("download/test", {"00000": folder / "in"}),)})
    assert part.name == "00000"
    return run_stage_part(FILTER, config, part, folder / "out")


def kept(folder: Path) -> list[Sample]:
    return samples_of(pq.read_table(folder / "out" / "rows.parquet"))


def dropped(folder: Path) -> list[tuple[str, str, str, str]]:
    rows = read_rows(folder / "out", "drops.parquet")
    return [(row["source_row"], row["unit"], row["item"], row["rule"]) for row in rows]


def image(
    row: str = "1", size: tuple[int, int] = (448, 448), captions: Iterable[str] = ("a dog",), **more: object
) -> Sample:
    media = Media("image", "0" * 64, 1, *size, "jpeg")
    texts = tuple(Caption(text) for text in captions)
    return replace(Sample(row.rjust(32, "0"), "test", row, "train", "image", "http://x", texts, media=media), **more)


def video(row: str, *captions: str) -> Sample:
    media = Media("video", "0" * 64, 1, 64, 640, "frames", 3)
    texts = tuple(Caption(text) for text in captions)
    return Sample(row.rjust(32, "0"), "test", row, "train", "video", "http://x", texts, media=media)


def concept(item: str, box: tuple[float, ...], text: str = "dog", grain: Grain = Grain.OBJECT) -> Concept:
    return Concept(grain, text, Box(*box), (), item)
