"""Decode bombs among good images through the whole stage: each is a named drop, and no other row pays for it."""

import logging
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.s1_download.loopback import serve_folder
from tests.hostile.image_bombs import BOMBS
from tests.hostile.payloads import jpeg
from tests.support.download.child_costs import peak_bytes
from tests.support.download.stage import Downloaded, download, make_samples

NUM_GOOD = 200
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A server of good images and bombs, bombs last in `urls` but asked first."""

    good: list[str]
    bombs: dict[str, str]  # kind -> URL
    port: int


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    for number in range(NUM_GOOD):
        (folder / f"good-{number}.jpg").write_bytes(jpeg(32 + number % 20, 32 + number // 20, "teal"))
    for kind, (_, make) in BOMBS.items():
        (folder / kind).write_bytes(make())
    with serve_folder(folder) as (address, port):
        base = f"http://{address}:{port}"
        good = [f"{base}/good-{number}.jpg" for number in range(NUM_GOOD)]
        yield Served(good, {kind: f"{base}/{kind}" for kind in BOMBS}, port)


def run_stage(folder: Path, served: Served, urls: list[str], check: str) -> tuple[Downloaded, float]:
    """The stage on these URLs, and the CPU seconds of its children."""
    folder.mkdir()
    config: dict[str, Any] = {"allow_ports": (served.port,), "store": {"kind": "original", "check": check}}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = download(folder, make_samples(urls), part_deadline_seconds=60.0, reads_robots=False, **config)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return run, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("check", ["header", "decode"])
def test_good_images_are_kept_and_every_bomb_is_a_named_drop(served: Served, tmp_path: Path, check: str) -> None:
    bombs = {kind: url for kind, url in served.bombs.items() if check == "decode" or BOMBS[kind][0] != "decode_failed"}
    clean, seconds = run_stage(tmp_path / "clean", served, served.good, check)
    hostile, hostile_seconds = run_stage(tmp_path / "hostile", served, [*bombs.values(), *served.good], check)
    assert clean.result.counts["rows"].num_out == NUM_GOOD
    verdicts = hostile.verdicts
    assert {kind: verdicts[url] for kind, url in bombs.items()} == {kind: BOMBS[kind][0] for kind in bombs}
    assert Counter(verdicts[url] for url in served.good) == {"kept": NUM_GOOD}
    logger.info("check=%s cpu_seconds_per_bomb=%.3f", check, (hostile_seconds - seconds) / len(bombs))
    assert (hostile_seconds - seconds) / len(bombs) < 0.5


def test_bombs_cost_a_child_little_memory(served: Served, tmp_path: Path) -> None:
    ordinary, _ = peak_bytes(tmp_path / "good", served.good, served.port)
    hostile, statuses = peak_bytes(tmp_path / "bombs", [*served.bombs.values()] * 2, served.port)
    assert statuses["kept"] == 2 * sum(rule == "decode_failed" for rule, _ in BOMBS.values())  # break behind the header
    logger.info("ordinary_mb=%.1f hostile_mb=%.1f", ordinary / 1e6, hostile / 1e6)
    assert hostile - ordinary < 150e6
