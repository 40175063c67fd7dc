"""Which formats are read, which are dropped by name, and which still pictures look like clips."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.s1_download.media.metadata import strip_metadata
from tests.hostile.image_bombs import avif_grid, box, encode
from tests.hostile.payloads import clip
from tests.support.media.verdicts import rule_of
from x2vlm.data.media.formats import DECODED, RECOGNISED, sniff_image
from x2vlm.data.media.images import open_image, probe
from x2vlm.data.media.video import sample_clip, sniff_container
from x2vlm.errors import InvalidSample
from x2vlm.inference.visuals import Skipped, read_visual, read_visuals

COLOURS = ("red", "lime", "blue", "yellow", "black", "white")
PICTURE = Image.radial_gradient("L").resize((60, 40)).convert("RGB")


def near(left: Image.Image, right: Image.Image, difference: float = 4.0) -> bool:
    pixels = [np.asarray(one.convert("RGB"), dtype=float) for one in (left, right)]
    return left.size == right.size and float(np.abs(pixels[0] - pixels[1]).mean()) < difference


def heic(major: bytes = b"heic", brands: bytes = b"mif1heic") -> bytes:
    """As a phone writes it, up to where the picture would begin."""
    return box(b"ftyp", major, bytes(4), brands) + box(b"meta", bytes(200)) + box(b"mdat", bytes(500))


STILLS = {
    "avif": encode(PICTURE, "AVIF"),
    "avif with alpha": encode(Image.new("RGBA", (60, 40), (255, 0, 0, 0)), "AVIF"),
    "grid": avif_grid([Image.new("RGB", (64, 64), colour) for colour in COLOURS], 3),
    "grid of another major brand": avif_grid([PICTURE.resize((64, 64))] * 4, 2, b"mif1"),
    "grid in the brand of a clip": avif_grid([PICTURE.resize((64, 64))] * 4, 2, b"isom"),
    "animated avif": encode(PICTURE, "AVIF", save_all=True, append_images=[ImageOps.invert(PICTURE)] * 2),
    "heic": heic(),
    "heic of ten bits": heic(b"heix", b"mif1heix"),
    "heif": heic(b"mif1", b"mif1heic"),
    "heif sequence": heic(b"msf1", b"msf1hevc"),
    "burst of a phone": heic(b"hevc", b"msf1hevcisom"),
    "heif in the brand of a clip": heic(b"mp42", b"mp42mif1heic"),
}


@pytest.mark.parametrize("name", STILLS)
def test_a_still_picture_in_an_iso_file_is_never_a_clip(name: str) -> None:
    data = STILLS[name]
    assert sniff_container(data) == ""
    assert rule_of(sample_clip, data) == "not_a_video"
    is_read = sniff_image(data) == "avif"
    assert rule_of(open_image, data) == rule_of(probe, data) == ("ok" if is_read else "format_unsupported")
    (seen,) = read_visuals([data])
    if is_read:
        assert not isinstance(seen, Skipped)
        assert not seen.is_clip
    else:
        assert isinstance(seen, Skipped)
        assert (seen.rule, "HEIC" in seen.message) == ("format_unsupported", True)


def test_clips_stay_clips() -> None:
    for data in (clip(5), clip(5).replace(b"isom", b"mp42", 1), clip(5).replace(b"isom", b"qt  ", 1)):
        assert (sniff_container(data), sniff_image(data)) == ("mov", "")
        assert read_visual(data).is_clip
    # A motion photo's clip, or a camera's, may list a brand of pictures behind its own.
    start = clip(5)
    (size,) = struct.unpack_from(">I", start)
    listed = box(b"ftyp", start[8:size], b"mif1") + start[size:]
    assert sniff_container(listed) == "mov"


def test_a_grid_is_shown_whole_and_alpha_lies_on_white() -> None:
    image = open_image(STILLS["grid"])
    assert image.size == (192, 128)
    for number, colour in enumerate(COLOURS):
        left, top = 64 * (number % 3), 64 * (number // 3)
        tile = image.crop((left, top, left + 64, top + 64))
        assert near(tile, Image.new("RGB", (64, 64), colour)), colour
    assert near(open_image(STILLS["avif with alpha"]), Image.new("RGB", (60, 40), "white"))
    half = Image.new("RGBA", (60, 40), (0, 0, 0, 128))
    assert near(open_image(encode(half, "AVIF")), Image.new("RGB", (60, 40), (127, 127, 127)))
    assert near(open_image(STILLS["animated avif"]), PICTURE)
    assert near(
        open_image(STILLS["grid in the brand of a clip"]), open_image(STILLS["grid of another major brand"]), 0.1
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_and_mirrored(orientation: int) -> None:
    """Pillow writes an orientation as `irot` and `imir`; the oracle turns the pixels by EXIF's table."""
    exifs = [Image.Exif(), Image.Exif()]  # Pillow takes the orientation out of the one that it writes
    for exif in exifs:
        exif[0x0112] = orientation
    picture = Image.fromarray(np.indices((40, 60)).transpose(1, 2, 0).sum(axis=2).astype(np.uint8) * 2).convert("RGB")
    data = encode(picture, "AVIF", exif=exifs[0], quality=95)
    with Image.open(BytesIO(data)) as opened:
        assert near(open_image(data), ImageOps.exif_transpose(opened), 0.1)
    turned = encode(picture, "PNG", exif=exifs[1])
    assert near(open_image(data), open_image(turned))
    assert (probe(data).width, probe(data).height) == open_image(data).size
    # The EXIF item is not what turns it: without it nothing changes.
    assert open_image(strip_metadata(data, "avif", orientation)).tobytes() == open_image(data).tobytes()


@pytest.mark.parametrize("image_format", ["AVIF", "BMP"])
def test_what_is_kept_of_other_formats_has_no_metadata(image_format: str) -> None:
    canary = b"CANARY-51.5N"
    if image_format == "AVIF":
        exif = Image.Exif()
        exif[0x010F] = canary.decode()
        data = encode(PICTURE, "AVIF", exif=exif, xmp=b"<x>" + canary + b"</x>") + box(b"uuid", canary)
        others = [
            encode(PICTURE.quantize(), "AVIF", xmp=canary),
            avif_grid([PICTURE.resize((64, 64))] * 2, 2) + box(b"free", canary),
        ]
    else:
        data = encode(PICTURE, "BMP") + canary
        plain = bytearray(encode(PICTURE.convert("L"), "BMP"))
        (offset,) = struct.unpack_from("<I", plain, 10)
        plain[10:14] = struct.pack("<I", offset + len(canary))
        others = [bytes(plain[:offset]) + canary + bytes(plain[offset:]), encode(PICTURE.convert("1"), "BMP") + canary]
    for one in (data, *others):
        assert canary in one
        stripped = strip_metadata(one, image_format.lower(), 1)
        assert canary not in stripped
        assert open_image(stripped).tobytes() == open_image(one).tobytes()
        assert strip_metadata(stripped, image_format.lower(), 1) == stripped


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_bitmap_is_read(mode: str) -> None:
    picture = PICTURE.quantize(64) if mode == "P" else PICTURE.convert(mode)
    assert open_image(encode(picture, "BMP")).tobytes() == picture.convert("RGB").tobytes()


OTHERS = {
    "tiff": [encode(PICTURE, "TIFF"), encode(PICTURE, "TIFF", compression="tiff_lzw"), b"MM\0*\0\0\0\x08" + bytes(99)],
    "jp2": [encode(PICTURE, "JPEG2000"), encode(PICTURE, "JPEG2000", no_jp2=True), encode(PICTURE, "JPEG2000")[:60]],
    "jxl": [b"\xff\x0a\xfa\x7f\x01" + bytes(90), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), b"\xff\x0a" + bytes(20)],
    "ico": [encode(PICTURE, "ICO"), encode(PICTURE, "ICO", sizes=[(16, 16)]), encode(PICTURE.convert("L"), "ICO")],
    "psd": [b"8BPS\0\1" + bytes(90), b"8BPS\0\2" + bytes(90), b"8BPS\0\1\0\0\0\0\0\0\0\3"],
    "svg": [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg />",
            b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN'>\n<svg:svg >"],
    "pnm": [encode(PICTURE, "PPM"), encode(PICTURE.convert("L"), "PPM"), encode(PICTURE.convert("1"), "PPM")],
    "icns": [encode(PICTURE.resize((64, 64)), "ICNS"), b"icns" + bytes(90), b"icns\0\0\0\x10"],
    "dds": [encode(PICTURE, "DDS"), b"DDS \x7c\0\0\0" + bytes(120), encode(PICTURE.convert("L"), "DDS")],
}  # fmt: skip


@pytest.mark.parametrize("image_format", OTHERS)
def test_a_picture_of_another_format_is_dropped_by_that_name(image_format: str) -> None:
    assert image_format in RECOGNISED
    for data in OTHERS[image_format]:
        assert sniff_image(data) == image_format
        assert rule_of(open_image, data) == rule_of(probe, data) == rule_of(read_visual, data) == "format_unsupported"
        with pytest.raises(InvalidSample, match=f"{image_format.upper()}.*convert it"):
            open_image(data)


PAGES = (
    b"<!DOCTYPE html><html><svg></svg></html>",
    b"<html><body>404",
    b'{"error": 404}',
    b"BM is a text that begins so",
    b"<?xml version='1.0'?><rss/>",
    b"P1 is a mailbox, too",
    b"\0\0\1\0" + bytes(60),
    bytes(64),
)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_no_picture_is_not_called_one(page: bytes) -> None:
    assert rule_of(open_image, page) == "not_an_image"


def test_formats_that_are_read_and_those_that_are_only_known_are_apart() -> None:
    assert set(DECODED) == {"jpeg", "png", "webp", "gif", "avif", "bmp"}
    assert set(DECODED).isdisjoint(RECOGNISED)
