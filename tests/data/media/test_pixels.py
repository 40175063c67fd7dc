"""Modes of pixels that are not RGB in 8 bits: depths, palettes, transparency, CMYK, colour profiles."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.hostile.image_bombs import encode, png, png_chunk, with_png_chunks
from x2vlm.data.media import pixels
from x2vlm.data.media.images import open_image, reencode_image

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", [0, 1])
def test_the_transparent_grey_of_every_depth_is_white(depth: int, transparent: int) -> None:
    """Two pixels, of values 0 and 1 as the file counts; the oracle scales values to 8 bits as the standard does."""
    row = b"\0" + {1: b"\x40", 2: b"\x10", 4: b"\x01", 8: b"\0\1", 16: b"\0\0\0\1"}[depth]
    data = with_png_chunks(png(2, 1, depth, 0, row), png_chunk(b"tRNS", struct.pack(">H", transparent)))
    values = [0, 255 // (2**depth - 1) if depth <= 8 else 0]
    values[transparent] = 255
    assert [open_image(data).getpixel((x, 0)) for x in (0, 1)] == [(value,) * 3 for value in values]


def test_the_transparent_colour_of_eight_and_sixteen_bits_is_white() -> None:
    eight = with_png_chunks(png(2, 1, 8, 2, b"\0\x10\x20\x30\x40\x50\x60"), png_chunk(b"tRNS", b"\0\x40\0\x50\0\x60"))
    sixteen = with_png_chunks(
        png(2, 1, 16, 2, b"\0\x10\1\x20\2\x30\3\x40\4\x50\5\x60\6"), png_chunk(b"tRNS", b"\x40\4\x50\5\x60\6")
    )
    opaque = with_png_chunks(
        png(2, 1, 16, 2, b"\0\x10\1\x20\2\x30\3\x40\4\x50\5\x60\6"), png_chunk(b"tRNS", b"\x41\4\x50\5\x60\6")
    )
    for data in (eight, sixteen):
        assert [open_image(data).getpixel((x, 0)) for x in (0, 1)] == [(16, 32, 48), (255, 255, 255)]
    assert open_image(opaque).getpixel((1, 0)) == (64, 80, 96)


def test_a_palette_with_alpha_and_grey_with_alpha_lie_on_white() -> None:
    palette = with_png_chunks(
        png(3, 1, 8, 3, b"\0\0\1\2"),
        png_chunk(b"PLTE", bytes((200, 0, 0, 0, 200, 0, 0, 0, 200))),
        png_chunk(b"tRNS", bytes((255, 128, 0))),
    )
    image = open_image(palette)
    assert [image.getpixel((x, 0)) for x in range(3)] == [(200, 0, 0), (127, 227, 127), (255, 255, 255)]
    grey = open_image(png(2, 1, 8, 4, b"\0\x64\x80\x64\xff"))
    assert [grey.getpixel((x, 0)) for x in (0, 1)] == [(177, 177, 177), (100, 100, 100)]
    deep = open_image(png(2, 1, 16, 4, b"\0\x64\x11\x80\x22\x64\x33\xff\x44"))
    assert [deep.getpixel((x, 0)) for x in (0, 1)] == [(177, 177, 177), (100, 100, 100)]


def test_cmyk_is_read_as_adobe_writes_it() -> None:
    """Pillow writes inverted values with Adobe's segment, as Photoshop does."""
    for ink, colour in (((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))):
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert b"Adobe" in data
        assert np.abs(np.subtract(open_image(data).getpixel((8, 8)), colour)).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "P"])
def test_bands_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = Image.fromarray(RNG.integers(0, 255, (61, 37, 4), dtype=np.uint8), "RGBA")
    image = {
        "RGBA": lambda: rgba,
        "LA": lambda: rgba.convert("LA"),
        "I;16": lambda: Image.fromarray(RNG.integers(0, 65535, (61, 37), dtype=np.uint16)),
        "P": lambda: rgba.convert("RGB").quantize(32),
    }[mode]()
    data = encode(image, "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = open_image(data)
    monkeypatch.setattr(pixels, "BAND_PIXELS", 37 * 7)
    assert open_image(data).tobytes() == whole.tobytes()
    assert len(set(whole.getdata())) > 20


def profiles() -> dict[str, bytes]:
    """sRGB itself, one with red and blue changed places (colours as far apart as can be), and linear grey."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * struct.unpack_from(">I", srgb, 128)[0], 12)}
    swapped = bytearray(srgb)
    red, blue = (srgb[tags[name] + 4 : tags[name] + 12] for name in (b"rXYZ", b"bXYZ"))
    swapped[tags[b"rXYZ"] + 4 : tags[b"rXYZ"] + 12] = blue
    swapped[tags[b"bXYZ"] + 4 : tags[b"bXYZ"] + 12] = red
    return {"srgb": srgb, "swapped": bytes(swapped), "broken": srgb[:200], "none": b""}


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_profiles_are_ignored_unless_they_are_asked_for(image_format: str) -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 20))
    for name, profile in profiles().items():
        data = encode(red, image_format, **({"icc_profile": profile} if profile else {}))
        as_stored = open_image(encode(red, image_format))
        assert open_image(data).tobytes() == as_stored.tobytes(), name
        converted = open_image(data, colour="srgb").getpixel((8, 8))
        expected = as_stored.getpixel((8, 8))[::-1] if name == "swapped" else as_stored.getpixel((8, 8))
        assert np.abs(np.subtract(converted, expected)).max() <= 3, name
        stored = open_image(reencode_image(data, 16, 95, colour="srgb")).getpixel((8, 8))
        assert np.abs(np.subtract(stored, expected)).max() <= 6, name
