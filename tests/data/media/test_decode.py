"""Decoding for training: the pixels and the verdicts of `open_image`, whichever library decodes."""

import random
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks.photos import SHIPPED
from x2vlm.data.media.decode import decode_image, is_plain_jpeg
from x2vlm.data.media.images import open_image
from x2vlm.errors import InvalidSample

KINDS = [
    {"quality": 90},
    {"quality": 75, "subsampling": 0},
    {"quality": 80, "subsampling": 1},
    {"quality": 85, "progressive": True},
    {"quality": 30, "optimize": True, "restart_marker_rows": 2},
]


def _photos(number=8):
    return [path.read_bytes() for path in sorted(SHIPPED.glob("*.jpg"))[:number]]


def _jpeg(image, **settings):
    buffer = BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def _verdict(decode, data):
    try:
        return np.asarray(decode(data))
    except InvalidSample as error:
        return error.rule


@pytest.mark.parametrize("settings", KINDS)
def test_pixels_are_those_of_pillow(settings):
    for number, data in enumerate(_photos()):
        image = open_image(data)
        odd = _jpeg(image.resize((101 + 7 * number, 87 + number)), **settings)
        for jpeg in (_jpeg(image, **settings), odd):
            assert is_plain_jpeg(jpeg)
            pixels = decode_image(jpeg)
            assert pixels.dtype == torch.uint8
            assert pixels.is_contiguous()
            assert (pixels.numpy() == np.asarray(open_image(jpeg))).all()


@pytest.mark.parametrize("kind", ["turned", "grey", "cmyk", "png", "gif", "webp"])
def test_what_needs_more_than_decoding_goes_to_pillow(kind):
    image = open_image(_photos(1)[0]).resize((90, 60))
    buffer = BytesIO()
    match kind:
        case "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(buffer, "JPEG", exif=exif)
        case "grey" | "cmyk":
            image.convert({"grey": "L", "cmyk": "CMYK"}[kind]).save(buffer, "JPEG")
        case _:
            image.save(buffer, kind.upper())
    assert not is_plain_jpeg(buffer.getvalue())
    pixels = decode_image(buffer.getvalue())
    assert (pixels.numpy() == np.asarray(open_image(buffer.getvalue()))).all()
    assert pixels.shape == ((90, 60, 3) if kind == "turned" else (60, 90, 3))


PRINTS_DECODED = """
import importlib.machinery, sys
if "hidden" in sys.argv:  # as after a release that calls its extension module something else
    finder = importlib.machinery.PathFinder
    find = finder.find_spec
    finder.find_spec = lambda name, *rest: None if name == "image" else find(name, *rest)
from x2vlm.data.media.decode import _torchvision_decoder
import torch
early = "torchvision" in sys.modules
decoder = _torchvision_decoder()
print(early, "torchvision" in sys.modules, decoder is torch.ops.image.decode_jpeg)
"""


@pytest.mark.parametrize(("arguments", "imports_torchvision"), [([], False), (["hidden"], True)])
def test_the_decoder_comes_without_torchvision_and_with_it_if_it_must(arguments, imports_torchvision):
    command = [sys.executable, "-c", PRINTS_DECODED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(imports_torchvision), "True"]


def test_broken_files_get_the_same_verdict():
    """Cut off anywhere or with flipped bits: equal pixels, or the same rule."""
    rng, seen = random.Random(0), {"pixels": 0, "refused": 0}
    photos = [_jpeg(open_image(data).resize((120, 80)), quality=85) for data in _photos()]
    for number in range(600):
        data = bytearray(photos[number % len(photos)])
        if rng.random() < 0.4:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(200 if rng.random() < 0.4 else len(data))] ^= 1 << rng.randrange(8)
        ours, pillows = _verdict(decode_image, bytes(data)), _verdict(open_image, bytes(data))
        assert np.array_equal(ours, pillows), number
        seen["refused" if isinstance(ours, str) else "pixels"] += 1
    assert min(seen.values()) > 100


def test_a_bomb_is_refused_before_it_is_decoded():
    data = bytearray(_jpeg(Image.new("RGB", (64, 64))))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = b"\xff\xff\xff\xff"  # 65535 x 65535
    assert not is_plain_jpeg(bytes(data))
    with pytest.raises(InvalidSample) as refused:
        decode_image(bytes(data))
    assert refused.value.rule == "too_many_pixels"


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_scaled_image_is_large_enough_and_shows_the_same(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(_photos(1)[0])
    data = _jpeg(image, quality=95, exif=exif)
    whole = decode_image(data)
    least = (whole.shape[1] // 3, whole.shape[0] // 3)
    scaled = decode_image(data, least)
    height, width = scaled.shape[:2]
    assert least[0] <= width < whole.shape[1]
    assert least[1] <= height < whole.shape[0]
    expected = Image.fromarray(whole.numpy()).resize((width, height), Image.Resampling.BOX)
    assert np.abs(scaled.numpy().astype(int) - np.asarray(expected).astype(int)).mean() < 3
