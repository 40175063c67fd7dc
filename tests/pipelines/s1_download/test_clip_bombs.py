"""Clips that are dear to decode, among 200 good ones, through the download stage: each is a drop of its own."""

import resource
import time
from pathlib import Path

import av
import pytest

from pipelines.s1_download.loopback import serve_folder
from tests.hostile.payloads import clip
from tests.support.download.stage import download, make_samples
from tests.support.media.clip_bombs import clip_bombs
from x2vlm.data.media.video import sample_clip
from x2vlm.errors import InvalidSample

LATE = "a late clip behind one keyframe"
MAX_CPU_SECONDS = 30.0  # seen: 3 to 10 for the GIF, below 3 for the others
MAX_MEMORY = 2 << 30  # of address space of the child, beyond its imports, with two clips at a time


@pytest.mark.parametrize("name", list(clip_bombs()))
def test_each_bomb_costs_little_and_has_a_rule(name: str) -> None:
    data, rules = clip_bombs()[name]
    asked = {"start_seconds": 490.0, "end_seconds": 492.0} if name == LATE else {}
    av.logging.set_level(av.logging.PANIC)
    before = time.thread_time()
    try:
        sample_clip(data, max_short_edge=256, **asked)
        rule = "ok"
    except InvalidSample as error:
        rule = error.rule
    assert rule in rules
    assert time.thread_time() - before < MAX_CPU_SECONDS


def test_200_good_clips_are_kept_among_the_bombs(tmp_path: Path) -> None:
    """The child may map no more than `MAX_MEMORY`: what takes more would be `out_of_memory`."""
    served = tmp_path / "served"
    served.mkdir()
    bombs = {name: found for name, found in clip_bombs().items() if name != LATE and "ok" not in found[1]}
    assert len(bombs) >= 12
    good = [f"good{number}.mp4" for number in range(200)]
    for number, name in enumerate(good):
        (served / name).write_bytes(clip(3 + number % 3))
    names = list(good)
    for number, (data, _) in enumerate(bombs.values()):
        (served / f"bomb{number}").write_bytes(data)
        names.insert(7 * number, f"bomb{number}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with serve_folder(served) as (address, port):
        samples = make_samples([f"http://{address}:{port}/{name}" for name in names], kind="video")
        run = download(
            tmp_path,
            samples,
            allow_ports=(port,),
            reads_robots=False,
            address_space_headroom_bytes=MAX_MEMORY,
            part_deadline_seconds=400.0,
        )
    verdicts = {url.rsplit("/", 1)[1]: status for url, status in run.verdicts.items()}
    assert {name: verdicts[name] for name in good if verdicts[name] != "kept"} == {}
    for number, (name, (_, rules)) in enumerate(bombs.items()):
        assert verdicts[f"bomb{number}"] in rules, name
    assert run.result.counts["rows"].num_in == 200 + len(bombs)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < len(bombs) * MAX_CPU_SECONDS
