"""The frames of the asked seconds, in every container and for every shape of a time line."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.media.clips import CLIPS, clip_in, encode
from x2vlm.data.media.video import SampledClip, sample_clip
from x2vlm.errors import InvalidSample


def numbers_of(clip: SampledClip) -> list[float]:
    """The numbers of the frames, from their brightness."""
    return [float(np.asarray(frame)[4:28].mean()) / 2 for frame in clip.frames]


def nearest(times: Sequence[float], start: float, end: float, rate: float = 1.0) -> list[int]:
    """The oracle: the frame nearest to each target that lies before the last frame, the earlier one on a tie."""
    targets = [start + k / rate for k in range(1000) if start + k / rate < end and start + k / rate <= times[-1]]
    return [min(range(len(times)), key=lambda i: (abs(times[i] - target), i)) for target in targets]


@pytest.mark.parametrize("name", CLIPS)
def test_every_container_gives_the_frames_of_the_asked_seconds(name: str) -> None:
    """Keyframes lie 1.24 seconds apart; asked are places before, at and behind one, and the last second."""
    times = [number / 25 for number in range(127)]  # brighter ones would be taken for darker ones
    for start, end, rate in ((0.0, 5.0, 1.0), (1.0, 3.0, 2.0), (1.24, 1.5, 1.0), (2.51, 4.6, 1.0), (4.9, 5.0, 10.0)):
        clip = sample_clip(clip_in(name), rate, start, end)
        expected = nearest(times, start, end, rate)
        assert list(clip.timestamps) == pytest.approx([times[index] for index in expected], abs=0.011), (start, end)
        assert numbers_of(clip) == pytest.approx(expected, abs=1.9), (start, end)
    whole = sample_clip(clip_in(name))
    assert [round(time) for time in whole.timestamps] == list(range(6))
    with pytest.raises(InvalidSample, match="clip_out_of_range"):
        sample_clip(clip_in(name), start_seconds=6.0, end_seconds=7.0)


@pytest.mark.parametrize("name", ["ts", "fragmented mp4", "live webm", "program stream", "ogg"])
def test_one_keyframe_in_five_seconds_is_found_from_any_place(name: str) -> None:
    container, codec, options = CLIPS[name]
    video = encode(container, codec, 127, 25, 127, options)
    for start in (2.0, 4.6):
        clip = sample_clip(video, start_seconds=start, end_seconds=start + 0.5)
        assert numbers_of(clip) == pytest.approx([25 * start], abs=1.9)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx"), ("mov", "mpeg4")]
)
def test_sound_that_is_longer_is_no_broken_video(container: str, codec: str) -> None:
    assert len(sample_clip(encode(container, codec, 30, sound_seconds=9.0)).frames) == 3


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx")])
def test_a_first_frame_that_comes_late(container: str, codec: str) -> None:
    times = [5 + number / 10 for number in range(40)]
    alone = sample_clip(encode(container, codec, 40, times=times))
    assert alone.timestamps == pytest.approx([0, 1, 2, 3])  # nothing else says when the file begins
    with_sound = encode(container, codec, 40, times=times, sound_seconds=8.0)
    assert sample_clip(with_sound).timestamps == pytest.approx([5, 6, 7, 8], abs=0.05)
    clip = sample_clip(with_sound, start_seconds=6.0, end_seconds=8.0)
    assert numbers_of(clip) == pytest.approx([10, 20], abs=1.9)
    with pytest.raises(InvalidSample, match="clip_out_of_range"):
        sample_clip(with_sound, start_seconds=1.0, end_seconds=3.0)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("mov", "mpeg4")])
def test_slides_are_held(container: str, codec: str) -> None:
    video = encode(container, codec, 3, rate=1, times=[0, 10, 20])
    clip = sample_clip(video)
    assert sorted(set(clip.timestamps)) == pytest.approx([0, 10, 20])
    assert numbers_of(sample_clip(video, start_seconds=12.0, end_seconds=14.0)) == pytest.approx([1, 1], abs=1.9)


def test_the_last_slide_is_there_as_long_as_it_is_shown() -> None:
    video = encode("mov", "mpeg4", 3, rate=1, times=[0, 10, 20])
    where = video.index(b"stts") + 8  # entries of (frames, duration): the last frame's is made as long as the others'
    entries = int.from_bytes(video[where : where + 4], "big")
    last = where + 8 * entries
    first = video[where + 8 : where + 12]
    video = video[:last] + first + video[last + 4 :]
    assert sample_clip(video, start_seconds=25.0, end_seconds=28.0).timestamps == pytest.approx([20])
    with pytest.raises(InvalidSample, match="clip_out_of_range"):
        sample_clip(video, start_seconds=31.0, end_seconds=33.0)


@pytest.mark.parametrize("steps", [(0.04, 0.4), (0.1, 1.3), (0.02, 0.02, 2.0)])
@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264")])
def test_variable_frame_rates(container: str, codec: str, steps: tuple[float, ...]) -> None:
    times = [round(sum(steps[i % len(steps)] for i in range(number)), 3) for number in range(30)]
    clip = sample_clip(encode(container, codec, 30, times=times), start_seconds=2.0, end_seconds=6.0)
    assert numbers_of(clip) == pytest.approx(nearest(times, 2.0, 6.0), abs=1.9)


def test_frames_that_are_not_chosen_are_not_kept() -> None:
    for name in ("mp4", "ts", "avi", "raw MPEG-2"):
        every = sample_clip(clip_in(name))
        some = sample_clip(clip_in(name), choose=lambda count: [0, count // 2, count - 1, count - 1])
        chosen = [0, len(every.frames) // 2, len(every.frames) - 1, len(every.frames) - 1]
        assert some.timestamps == tuple(every.timestamps[index] for index in chosen)
        assert [frame.tobytes() for frame in some.frames] == [every.frames[index].tobytes() for index in chosen]
