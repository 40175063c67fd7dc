"""What moves how in clips, from their tracks and from the pixels that come back from the MP4."""

import io
import itertools
import math
from dataclasses import replace

import av
import numpy as np
import pytest

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.clips import (
    FRAMES_PER_SECOND,
    Clip,
    encode_clip,
    make_clip,
    render_clip,
    to_yuv420,
)
from pipelines.corpora.world.drawing.render import paint, render_background
from pipelines.corpora.world.drawing.words import MOTIONS

CONFIG = WorldConfig(seed=4)
CLIPS = [make_clip(CONFIG, index) for index in range(60)]


def distances(clip: Clip) -> list[float]:
    return [math.dist(one, other) for one, other in zip(clip.tracks[0], clip.tracks[1], strict=True)]


def test_all_motions_occur() -> None:
    assert {clip.motion for clip in CLIPS} == set(MOTIONS)
    assert all(4 <= clip.seconds <= 8 for clip in CLIPS)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: f"{clip.index}-{clip.motion}")
def test_motion_is_what_it_is_called(clip: Clip) -> None:
    gaps = distances(clip)
    mover, other = clip.tracks[0], clip.tracks[1]
    steps = np.diff(np.array(mover), axis=0)
    match clip.motion:
        case "towards":
            assert all(after < before for before, after in itertools.pairwise(gaps))
        case "away_from":
            assert all(after > before for before, after in itertools.pairwise(gaps))
        case "past":
            sides = [x - other[0][0] for x, _ in mover]
            assert sides[0] * sides[-1] < 0
            assert min(gaps) < gaps[0] / 1.3
            assert min(gaps) < gaps[-1] / 1.3
        case "after":
            ahead = np.array(other) - np.array(mover)
            assert ((steps * ahead[:-1]).sum(axis=1) >= 0).all(), "the mover heads for the other"
            assert max(gaps) == min(gaps)
            assert math.dist(other[0], other[-1]) > clip.width / 4
        case "circling":
            angles = np.unwrap([math.atan2(y - other[0][1], x - other[0][0]) for x, y in mover])
            assert abs(angles[-1] - angles[0]) > math.radians(300)
            assert max(gaps) - min(gaps) < 3
    if clip.motion != "after":
        assert set(other) == {other[0]}, "only the mover moves"
    radius = clip.things[0].radius
    for track in clip.tracks:
        assert all(radius <= x < clip.width - radius and radius <= y < clip.height - radius for x, y in track)


def test_frames_come_back_as_they_were_drawn() -> None:
    clip = CLIPS[0]
    data = encode_clip(CONFIG, clip)
    assert encode_clip(CONFIG, clip) == data
    with av.open(io.BytesIO(data)) as container:
        decoded = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == FRAMES_PER_SECOND
    drawn = [to_yuv420(pixels) for pixels in render_clip(CONFIG, clip)]
    assert len(decoded) == clip.num_frames == clip.seconds * FRAMES_PER_SECOND
    for frame, original in zip(decoded, drawn, strict=True):
        error = np.mean((frame.astype(float) - original) ** 2)
        assert 10 * math.log10(255**2 / error) > 28


def test_the_mover_is_where_its_track_says() -> None:
    clip = next(clip for clip in CLIPS if clip.motion == "circling")
    ground = render_background(CONFIG.seed, clip.index, clip.width, clip.height, clip.background)
    for thing, track in zip(clip.things[1:], clip.tracks[1:], strict=True):
        paint(ground, replace(thing, x=track[0][0], y=track[0][1]))
    for frame, pixels in enumerate(render_clip(CONFIG, clip)):
        y, x = np.nonzero((pixels != ground).any(axis=2))
        centre_x, centre_y = clip.tracks[0][frame]
        assert abs((x.min() + x.max()) / 2 - centre_x) < clip.things[0].radius
        assert abs((y.min() + y.max()) / 2 - centre_y) < clip.things[0].radius
