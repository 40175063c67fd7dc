"""The head of an ordinary JPEG, read without Pillow: never another answer than Pillow's, and ordinary ones are read."""

import random
import struct
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from pipelines.s1_download.media.jpeg_head import plain_jpeg_header
from tests.hostile.payloads import gif, jpeg, jpeg_giant, transparent_png
from x2vlm.data.media.images import Header, probe
from x2vlm.errors import InvalidSample

PHOTOS = Path(__file__).resolve().parents[4] / "datasets/sample/media/photos"


def saved(mode: str = "RGB", orientation: int = 0, **options: object) -> bytes:
    """A JPEG of 24 x 16 pixels; `orientation` 0 writes no EXIF."""
    exif = Image.Exif()
    exif[0x010F] = "a camera of some length"
    exif[0x011A] = 72.0
    exif[0x0128] = 2
    exif[0x0112] = orientation
    buffer = BytesIO()
    if orientation:
        options["exif"] = exif
    Image.new(mode, (24, 16), "teal" if mode == "RGB" else 90).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_segment(data: bytes, code: int, body: bytes) -> bytes:
    """`data` with a segment more, first of all."""
    return data[:2] + struct.pack(">BBH", 0xFF, code, 2 + len(body)) + body + data[2:]


def exif(entries: Sequence[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """An EXIF block of (tag, type, count, first number of its four bytes)."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    packed = [
        struct.pack(order + "HHI", tag, kind, count) + struct.pack(order + ("HH" if kind == 3 else "I"), *value)
        for tag, kind, count, first in entries
        for value in [(first, 0) if kind == 3 else (first,)]
    ]
    return b"Exif\0\0" + head + b"".join(packed) + struct.pack(order + "I", 0)


def judged(data: bytes) -> Header | str:
    """What Pillow says, or the rule by which it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return probe(data)
        except InvalidSample as error:
            return error.rule


ORDINARY = {
    "plain": saved(),
    "grey": saved("L"),
    "progressive": saved(progressive=True),
    "optimised": saved(optimize=True, quality=95, subsampling=0),
    "with a comment": saved(comment=b"hello"),
    "with a profile": saved(icc_profile=b"profile" * 100),
    "with restart marks": saved(restart_marker_blocks=1),
    "resolution in cm": with_segment(saved(), 0xE1, exif([(0x0128, 3, 1, 3)])),
    **{f"turned {number}": saved(orientation=number) for number in range(1, 9)},
    **{f"turned {number}, {order}": with_segment(saved(), 0xE1, exif([(0x0112, 3, 1, number)], order))
       for number in (1, 6, 9, 65535) for order in "<>"},
    "EXIF without orientation": with_segment(saved(), 0xE1, exif([(0x0128, 3, 1, 2)])),
    "XMP that says nothing of it": with_segment(saved(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
}  # fmt: skip
XMP_TURNED = b'http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation="6"/>'
UNUSUAL = {
    "four components": saved("CMYK"),
    "sideways in XMP": with_segment(saved(), 0xE1, XMP_TURNED),
    "two EXIF blocks": with_segment(saved(orientation=6), 0xE1, exif([(0x0112, 3, 1, 3)])),
    "orientation twice": with_segment(saved(), 0xE1, exif([(0x0112, 3, 1, 6), (0x0112, 3, 1, 3)])),
    "orientation as a long": with_segment(saved(), 0xE1, exif([(0x0112, 4, 1, 6)])),
    "orientation 0": with_segment(saved(orientation=0), 0xE1, exif([(0x0112, 3, 1, 0)])),
    "a value beyond the end before it": with_segment(saved(), 0xE1, exif([(0x010F, 2, 99, 999), (0x0112, 3, 1, 6)])),
    "a type that is none": with_segment(saved(), 0xE1, exif([(0x010F, 99, 1, 1), (0x0112, 3, 1, 6)])),
    "EXIF that is cut off": with_segment(saved(), 0xE1, exif([(0x0112, 3, 1, 6)])[:-9]),
    "EXIF that is none": with_segment(saved(), 0xE1, b"Exif\0\0nothing"),
    "Photoshop": with_segment(saved(), 0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
    "several pictures": with_segment(saved(), 0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"),
    "a short JFIF": with_segment(saved(), 0xE0, b"JFIF"),
    "twelve bits": saved().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "no width": saved().replace(b"\x00\x10\x00\x18", b"\x00\x10\x00\x00"),
    "a table that is cut off": with_segment(saved(), 0xDB, b"\0" * 30),
    "two frames": with_segment(saved(), 0xC0, saved().partition(b"\xff\xc0\x00\x11")[2][:15]),
    "fill bytes": b"\xff\xd8\xff\xff" + saved()[3:],
    "no scan": saved().partition(b"\xff\xda")[0],
    "a giant": jpeg_giant(),
    "nothing": b"",
    "no JPEG": transparent_png(),
    "a GIF": gif(),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_head_is_read_as_pillow_reads_it(name: str) -> None:
    assert plain_jpeg_header(ORDINARY[name]) == judged(ORDINARY[name])


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_left_to_pillow(name: str) -> None:
    assert plain_jpeg_header(UNUSUAL[name]) is None


def test_most_real_photos_are_ordinary() -> None:
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    read = [(plain_jpeg_header(photo), judged(photo)) for photo in photos]
    assert all(ours in (None, theirs) for ours, theirs in read)
    assert sum(ours is not None for ours, _ in read) >= 0.9 * len(photos)


def broken_heads(number: int) -> Iterator[bytes]:
    """Heads that were ordinary or unusual until bytes of them were changed, taken out or put in."""
    dice = random.Random(4)
    whole = [data for data in (*ORDINARY.values(), *UNUSUAL.values(), jpeg()) if 100 < len(data) < 5000]
    for _ in range(number):
        data = bytearray(dice.choice(whole))
        head = data.find(b"\xff\xda") + 14
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(2, max(head, 3))
            kind = dice.randrange(4)
            if kind == 3:
                del data[at : at + dice.randint(1, 4)]
            elif kind == 2:
                data[at:at] = dice.randbytes(dice.randint(1, 4))
            else:
                data[at : at + 1] = [dice.choice([0, 1, 2, 3, 4, 8, 65, 254, 255, dice.randrange(256)])]
        yield bytes(data)


def test_a_broken_head_is_read_as_pillow_reads_it_or_not_at_all() -> None:
    num_read = 0
    for data in broken_heads(12_000):
        if (ours := plain_jpeg_header(data)) is not None:
            num_read += 1
            assert ours == judged(data)
    assert num_read > 1500
