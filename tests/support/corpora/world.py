"""A procedural world as tests see it, and what the read stage makes of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from pipelines.corpora.world.build import Built
from pipelines.corpora.world.config import NoiseRates, WorldConfig
from pipelines.corpora.world.drawing.clips import clip_size
from pipelines.flow.stage import Count
from pipelines.s1_download.read import READ, read_config
from tests.support.flow_helpers import read_rows, run_stage_part, upstream_input
from x2vlm.data.boxes import denormalise_boxes
from x2vlm.data.cards import file_paths, load_card
from x2vlm.samples import Drop, Media, Sample, samples_of

Reading = tuple[list[Sample], list[Drop], dict[str, Count]]

NOISY = NoiseRates(
    mismatched_caption=0.08,
    foreign_text=0.2,
    empty_text=0.08,
    dead_link=0.1,
    small_image=0.1,
    extreme_aspect=0.1,
    duplicate=0.2,
    test_leak=0.12,
    one_word_text=0.3,
    rotated=0.15,
    tiny_box=0.3,
    invalid_box=0.3,
    near_duplicate_region=0.4,
    crowd_box=0.3,
    depiction_box=0.3,
)


@dataclass(frozen=True)
class World:
    """A finished world and its truth."""

    config: WorldConfig
    out: Path
    built: Built
    truth: list[dict[str, Any]]
    scenes: dict[int, dict[str, Any]]

    def of(self, source: str, unit: str) -> list[dict[str, Any]]:
        return [row for row in self.truth if (row["source"], row["unit"]) == (source, unit)]


def read(world: Path, name: str, project_root: Path, out: Path) -> Reading:
    """Samples, drops and counts of the read stage for a card of the world."""
    path = world / "cards" / f"{name}.yaml"
    card = load_card(path)
    files = tuple(upstream_input(Path(file), name) for file in file_paths(card, project_root).values())
    config = read_config(card)
    [part] = READ.plan_parts(config, {"card": (upstream_input(path, name),), "files": files})
    result = run_stage_part(READ, config, part, out)
    samples = [sample for file in sorted(out.glob("rows-*")) for sample in samples_of(pq.read_table(file))]
    return samples, [Drop(**row) for row in read_rows(out, "drops.parquet")], dict(result.counts)


def media_path(world: World, sample: Sample) -> Path:
    """Where the world keeps the media of a sample."""
    return world.out / "media" / sample.url.removeprefix("http://world.invalid/")


def with_media(world: World, sample: Sample) -> Sample:
    """The sample as the download stage would hand it on, its boxes in pixels."""
    path = media_path(world, sample)
    if sample.kind == "video":
        size = clip_size(world.config)
    else:
        with Image.open(path) as image:
            size = image.size
        assert sample.claimed_width in (None, size[0])
        assert sample.claimed_height in (None, size[1])
    media = Media(sample.kind, "0" * 64, path.stat().st_size, *size, "jpeg")
    return denormalise_boxes(replace(sample, media=media), *size)
