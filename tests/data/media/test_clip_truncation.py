"""A file that breaks off is found in every container, by evidence; a whole one is kept, whatever its times say."""

import struct
from fractions import Fraction
from functools import partial

import pytest

from tests.support.media.clips import CLIPS, clip_in, encode
from tests.support.media.verdicts import rule_of as rule_of_media
from x2vlm.data.media.video import sample_clip

rule_of = partial(rule_of_media, sample_clip, max_short_edge=32)


@pytest.mark.parametrize("name", CLIPS)
def test_a_cut_is_found_anywhere_and_harms_no_clip_before_it(name: str) -> None:
    video = clip_in(name)
    assert rule_of(video) == "ok"
    found = [rule_of(video[: int(fraction * len(video))]) for fraction in (0.3, 0.6, 0.777, 0.9)]
    # Without a container nothing but the picture is missing: not even FFmpeg sees a cut in its last row.
    assert found.count("decode_failed") >= (2 if name.startswith("raw") else 4), found
    header_lost = name in ("mp4", "mov")  # the index lies at the end
    assert rule_of(video[: int(0.9 * len(video))], end_seconds=1.0) == ("decode_failed" if header_lost else "ok")


@pytest.mark.parametrize("name", ["ts", "m2ts", "ts, MPEG-2"])
def test_a_cut_between_two_packets_shows_in_the_last_frame(name: str) -> None:
    video, size = clip_in(name), 192 if name == "m2ts" else 188
    found = [rule_of(video[: int(fraction * len(video)) // size * size]) for fraction in (0.31, 0.52, 0.73, 0.94)]
    assert found.count("decode_failed") >= 3  # it may fall between two frames: then the file is whole


def test_what_lies_behind_the_frames_may_be_missing() -> None:
    matroska, avi, flash = clip_in("mkv"), clip_in("avi"), clip_in("flv")
    cues = matroska.rindex(b"\x1c\x53\xbb\x6b")
    assert rule_of(matroska[: cues + 8]) == "ok"
    assert rule_of(avi[: avi.rindex(b"idx1") + 30]) == "ok"
    assert rule_of(flash + bytes(64)) == "ok"
    assert rule_of(clip_in("program stream") + bytes(64)) == "ok"
    assert rule_of(clip_in("mp4, index first") + b"\0\0\0\x40free" + bytes(10)) == "ok"


def test_an_index_may_name_what_is_not_there_only_for_the_video() -> None:
    video = encode("mp4", "libx264", 30, options={"movflags": "faststart"}, sound_seconds=6.0)
    assert rule_of(video[:-200]) == "ok"  # sound, written last
    assert rule_of(video[: len(video) // 3]) == "decode_failed"


def test_a_segment_index_names_segments_that_are_missing() -> None:
    video = encode(
        "mp4",
        "libx264",
        60,
        keyframe_every=20,
        options={"movflags": "frag_keyframe+empty_moov+default_base_moof+global_sidx"},
    )
    assert rule_of(video) == "ok"
    last = video.rindex(b"moof") - 4
    assert rule_of(video[:last]) == "decode_failed"


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(2), Fraction(60)])
def test_a_declared_end_proves_nothing(rate: Fraction) -> None:
    for container, codec in (("mp4", "libx264"), ("matroska", "libx264"), ("mov", "mpeg4")):
        video = bytearray(encode(container, codec, 8, rate=rate))  # type: ignore[arg-type]
        if container == "mov":
            where = video.index(b"mdhd") + 20
            struct.pack_into(
                ">I", video, where, 50 * struct.unpack_from(">I", video, where)[0] // max(1, int(8 / rate))
            )
        assert rule_of(bytes(video)) == "ok", container
