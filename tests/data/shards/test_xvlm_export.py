"""What the exporter writes is what a reader built from the reference's description takes, and nothing is refused."""

import hashlib
import json
import random
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.xvlm_reader import Accepted, read_folder
from x2vlm.data.media.video import encode_frames
from x2vlm.data.shards.xvlm_export import LINE_KINDS, whole_pixels, xvlm_lines
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key

WIDTH, HEIGHT = 96, 64


def image(orientation: int = 1) -> bytes:
    """An image whose upright form is blue with a red rectangle at x 30-50, y 20-40, stored in any orientation."""
    upright = Image.new("RGB", (WIDTH, HEIGHT), "blue")
    upright.paste("red", (30, 20, 50, 40))
    back = {1: None, 6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}
    stored = upright if back[orientation] is None else upright.transpose(back[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    stored.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    return buffer.getvalue()


def sample(payload: bytes, captions: list[str], concepts: list[Concept] = [], kind: str = "image") -> Sample:  # noqa: B006
    media = Media(kind, hashlib.sha256(payload).hexdigest(), len(payload), WIDTH, HEIGHT, "jpeg")
    return Sample(
        sample_key("test", "1"),
        "test",
        "1",
        "train",
        kind,
        "http://a.example/1",
        captions=tuple(Caption(text) for text in captions),
        concepts=tuple(concepts),
        media=media,
    )


def exported(folder: Path, *pairs: tuple[Sample, bytes]) -> tuple[Accepted, Counter[str]]:
    left_out: Counter[str] = Counter()
    for one, payload in pairs:
        for kind, line in xvlm_lines(one, payload, left_out):
            (folder / kind).mkdir(exist_ok=True)
            with (folder / kind / "shard.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
    return read_folder(folder, random.Random(1)), left_out


RED = Concept(Grain.OBJECT, "square", Box(30.9, 20.2, 19.0, 19.7), ("red", "made of paint"), "a")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_lie_on_their_object_for_a_reader_that_ignores_orientation(tmp_path: Path, orientation: int) -> None:
    payload = image(orientation)
    accepted, left_out = exported(tmp_path, (sample(payload, ["A red square."], [RED]), payload))
    assert not accepted.refused
    assert not left_out
    (crop,) = accepted.crops
    assert crop.shape[:2] == (19, 19)
    red, _, blue = crop.reshape(-1, 3).mean(axis=0)
    assert red > 240 > 20 > blue
    assert accepted.region_texts == ["red square made of paint"]
    assert accepted.captions == ["a red square"] * 2  # of the image, and as the whole-image row of its boxes


def test_a_smaller_stored_image_gets_smaller_boxes(tmp_path: Path) -> None:
    half = Image.open(BytesIO(image())).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BOX)
    buffer = BytesIO()
    half.save(buffer, "PNG")
    accepted, _ = exported(tmp_path, (sample(buffer.getvalue(), [], [RED]), buffer.getvalue()))
    (crop,) = accepted.crops
    assert crop.shape[:2] == (9, 9)
    assert crop[1:, 1:, 0].min() > 200


def test_what_would_make_the_reference_refuse_a_line_is_left_out_and_counted(tmp_path: Path) -> None:
    payload = image()
    sliver = Concept(Grain.REGION, "a thin line", Box(3, 3, 0.9, 20), (), "b")
    mute = Concept(Grain.REGION, "...", Box(3, 3, 9, 9), (), "c")
    broken = payload[:-400]
    accepted, left_out = exported(
        tmp_path,
        (sample(payload, ["!!", "two squares"], [sliver, RED, mute]), payload),
        (sample(payload, ["?"], [sliver]), payload),
        (sample(broken, ["cut off"], [RED]), broken),
    )
    assert not accepted.refused
    assert accepted.captions == ["two squares"] * 2
    assert len(accepted.crops) == 1
    assert left_out == {
        "caption_without_words": 2,
        "no_usable_caption": 1,
        "box_under_one_pixel": 2,
        "box_without_words": 1,
        "no_usable_box": 1,
        "decode_failed": 1,
    }


def test_clips_keep_their_frames_in_order(tmp_path: Path) -> None:
    jpegs = []
    for level in (0, 100, 200):
        buffer = BytesIO()
        Image.new("RGB", (32, 32), (level, level, level)).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    blob = encode_frames(jpegs, [0.0, 1.0, 2.0])
    accepted, left_out = exported(tmp_path, (sample(blob, ["it gets lighter"], kind="video"), blob))
    assert not left_out
    assert [round(float(frame.mean())) for frame in accepted.clips[0]] == [0, 100, 200]
    assert {path.parent.name for path in tmp_path.rglob("*.jsonl")} <= set(LINE_KINDS)


@given(
    st.tuples(*[st.floats(0, 1) for _ in range(4)]),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
)
def test_whole_pixels_never_leave_the_stored_image(
    fractions: tuple[float, ...], original: tuple[int, int], stored: tuple[int, int]
) -> None:
    x, y = fractions[0] * original[0], fractions[1] * original[1]
    box = Box(x, y, fractions[2] * (original[0] - x), fractions[3] * (original[1] - y))
    cut = whole_pixels(box, stored[0] / original[0], stored[1] / original[1], *stored)
    if cut is not None:
        left, top, w, h = cut
        assert min(left, top) >= 0
        assert min(w, h) >= 1
        assert left + w <= stored[0]
        assert top + h <= stored[1]
        assert np.allclose([left, top], [x * stored[0] / original[0], y * stored[1] / original[1]], atol=1.0001)
