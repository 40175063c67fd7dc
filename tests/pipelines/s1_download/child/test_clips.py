"""Turns and the watch of the child's decoding of clips."""

import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.s1_download.child.clips import ClipDecoder
from pipelines.s1_download.child.protocol import Item
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.loopback import serve_folder
from tests.hostile.payloads import clip
from tests.support.download.stage import download, make_samples
from tests.support.media.clips import encode, remux


def slow_frame() -> bytes:
    """A clip of one frame that takes about a second of CPU time inside one call of its decoder."""
    noise = np.random.default_rng(0).integers(0, 255, (2_000, 2_000, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG2000")
    return remux([buffer.getvalue()], encode("mov", "jpeg2000", 2), "mov")


def test_a_decoder_that_does_not_come_back_costs_its_own_row_alone(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    names = [f"{number}.mp4" for number in range(6)]
    for number, name in enumerate(names):
        (served / name).write_bytes(slow_frame() if number == 2 else clip(5))
    with serve_folder(served) as (address, port):
        samples = make_samples([f"http://{address}:{port}/{name}" for name in names], kind="video")
        limits = {"max_clip_cpu_seconds": 0.1, "clip_grace_seconds": 0.05}
        run = download(tmp_path, samples, allow_ports=(port,), reads_robots=False, **limits)
    rules = [row["status"] for row in run.ledger]
    assert rules == ["kept", "kept", "decode_budget_exceeded", "kept", "kept", "kept"]
    assert "did not come back" in run.ledger[2]["reason"]


@pytest.mark.parametrize("num_threads", [2, 4, 8])
def test_a_clip_that_lacks_memory_is_decoded_again_alone(num_threads: int) -> None:
    decoder = ClipDecoder(DownloadConfig(), lambda item, reason: None)
    inside: list[int] = []
    seen: list[int] = []

    def work(alone: bool) -> None:
        with decoder._taking_turns(alone):
            inside.append(1)
            if alone:
                seen.append(len(inside))
            assert decoder._decode(Item(0, "video", ""), clip(5)).frames
            inside.pop()

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * (num_threads // 2)
