"""Broken media, made from good ones or byte by byte, and crops exactly on the limits of the size rules."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.corpora.sample.photos import CROPS, Crop
from pipelines.corpora.sample.upstream import Upstream

BOMB_SIDE = 20_000
TRUNCATED_PHOTO = 405279
CORRUPT_CLIP = "videos/moviepy_chaplin.mp4"

HTML_PAGE = b"""<!DOCTYPE html>
<html><head><title>Photo unavailable</title></head>
<body><h1>This photo is no longer available</h1></body></html>
"""


@dataclass(frozen=True)
class MadeFile:
    """A file of the corpus that is not an unmodified copy: its bytes, its source and its changes."""

    name: str
    data: bytes
    sample: str | None
    changes: str


def made_files(upstream: Upstream, scratch: Path) -> Iterator[MadeFile]:
    """Every crop and every broken file, in the order of their names' folders. `scratch` must exist."""
    for crop in CROPS:
        yield _crop(upstream, crop, scratch)
    photo = upstream.photo_path(TRUNCATED_PHOTO)
    data = photo.read_bytes()
    sample = str(photo.relative_to(upstream.root))
    yield MadeFile("bad/truncated.jpg", data[: len(data) // 2], sample, "second half of the file cut off")
    clip = upstream.checked(CORRUPT_CLIP).read_bytes()
    yield MadeFile("bad/corrupt.mp4", _without_index(clip)[:40_000], CORRUPT_CLIP, "index removed, first 40 kB kept")
    side = f"{BOMB_SIDE} x {BOMB_SIDE}"
    yield MadeFile("bad/bomb.png", bomb_png(BOMB_SIDE), None, f"made: a PNG header that claims {side} pixels")
    yield MadeFile("bad/page.jpg", HTML_PAGE, None, "made: an HTML page with an image's name")
    yield MadeFile("bad/empty.jpg", b"", None, "made: no bytes at all")


def _crop(upstream: Upstream, crop: Crop, scratch: Path) -> MadeFile:
    sample = f"openimages/images/{crop.photo}"
    path = scratch / "crop.jpg"
    with Image.open(upstream.checked(sample)) as photo:
        photo.convert("RGB").crop(crop.box).save(path, quality=88)
    left, top, right, bottom = crop.box
    changes = f"cropped to {right - left} x {bottom - top} pixels at ({left}, {top}), saved again as JPEG"
    return MadeFile(crop.name, path.read_bytes(), sample, changes)


def _without_index(mp4: bytes) -> bytes:
    """The file with its `moov` box renamed to `free`, so that no player finds a track."""
    at = mp4.index(b"moov")
    return mp4[:at] + b"free" + mp4[at + 4 :]


def bomb_png(side: int) -> bytes:
    """A PNG of a few dozen bytes whose header claims side x side pixels. Written by hand: zlib builds differ."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = b"\x00\x00\x00\x00"
    stored = b"\x01" + struct.pack("<HH", len(pixels), 0xFFFF ^ len(pixels)) + pixels
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(pixels))
    chunks = [(b"IHDR", header), (b"IDAT", stream), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
