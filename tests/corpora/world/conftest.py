"""Two worlds that the tests of this folder look at: a noisy one with media, and a larger one without."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.world.build import Built, build_world
from pipelines.corpora.world.config import NoiseRates, WorldConfig

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


def load(config: WorldConfig, out: Path, built: Built) -> World:
    truth = pq.read_table(out / "truth.parquet").to_pylist()
    scenes = {row["scene"]: row for row in pq.read_table(out / "truth_scenes.parquet").to_pylist()}
    return World(config, out, built, truth, scenes)


@pytest.fixture(scope="session")
def noisy_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """160 scenes with much noise, with media."""
    config = WorldConfig(seed=3, scenes=160, noise=NOISY)
    out = tmp_path_factory.mktemp("noisy") / "world"
    return load(config, out, build_world(config, out))


@pytest.fixture(scope="session")
def plain_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """1,000 scenes with the default noise, annotations only."""
    config = WorldConfig(seed=5, scenes=1000, media="none")
    out = tmp_path_factory.mktemp("plain") / "world"
    return load(config, out, build_world(config, out))
