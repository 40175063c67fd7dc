"""Two worlds that the tests of this folder look at: a noisy one with media, and a larger one without."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.world.build import Built, build_world
from pipelines.corpora.world.config import WorldConfig
from tests.support.corpora.world import NOISY, World


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
