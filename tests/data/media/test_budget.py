"""What an image costs is bounded before it is decoded: a bomb of each kind, and the most that a good image may take."""

import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.s1_download.media.encoding import OriginalBytes, media_to_store
from tests.hostile import image_bombs
from tests.hostile.image_bombs import BOMBS, encode, png, png_chunk, with_png_chunks, with_scans
from x2vlm.data.media.budget import MAX_SCANS
from x2vlm.data.media.decode import decode_image
from x2vlm.data.media.images import draft_image, open_image, probe, reencode_image
from x2vlm.errors import InvalidSample

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((200, 150), Image.Resampling.BICUBIC)
DECODES = {
    "open": open_image,
    "probe": probe,
    "draft": lambda data: draft_image(data, (8, 8)),
    "reencode": lambda data: reencode_image(data, 64, 90),
    "loader": decode_image,
    "download": lambda data: media_to_store(data, OriginalBytes(), strips_metadata=True),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_dropped_by_name_wherever_images_are_decoded_and_costs_little(kind: str) -> None:
    rule, make = BOMBS[kind]
    data = make()
    assert len(data) < 7e6
    # A palette that is too long is found by Pillow when it decodes; the header check keeps what breaks behind it.
    decodes = {name: one for name, one in DECODES.items() if kind != "png-palette" or name not in ("probe", "download")}
    for name, decode in decodes.items():
        began = time.process_time()
        with pytest.raises(InvalidSample) as refused:
            decode(data)
        assert refused.value.rule == rule, name
        assert time.process_time() - began < 1.0, name


def test_scans_are_limited_by_number_and_by_the_pixels_that_they_pass_over() -> None:
    data = encode(PHOTO, "JPEG", progressive=True, quality=90)
    num_scans = data.count(b"\xff\xda")
    expected = open_image(data)
    most = with_scans(data, MAX_SCANS - num_scans)
    for decode in (open_image, lambda one: Image.fromarray(decode_image(one).numpy())):
        assert decode(most).size == expected.size
    for one_more in (MAX_SCANS - num_scans + 1, 200, 3000):
        with pytest.raises(InvalidSample, match="scans"):
            open_image(with_scans(data, one_more))
    # The scans of a baseline JPEG follow each other only if each has some of its components.
    with pytest.raises(InvalidSample) as refused:
        open_image(with_scans(encode(PHOTO, "JPEG", quality=90), 50))
    assert refused.value.rule == "decode_failed"


@pytest.mark.parametrize("kind", ["iCCP", "zTXt", "iTXt", "many zTXt", "late zTXt", "tEXt", "eXIf"])
def test_a_png_is_not_lost_for_its_metadata(kind: str) -> None:
    data = encode(PHOTO, "PNG")
    large = zlib.compress(bytes(5_000_000))
    chunks = {
        "iCCP": [png_chunk(b"iCCP", b"profile\0\0" + large)],
        "zTXt": [png_chunk(b"zTXt", b"Comment\0\0" + large)],
        "iTXt": [png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + large)],
        "many zTXt": [png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))] * 80,
        "late zTXt": [png_chunk(b"zTXt", b"Comment\0\0" + large)],
        "tEXt": [png_chunk(b"tEXt", b"Comment\0" + b"a" * 3_000_000)],
        "eXIf": [png_chunk(b"eXIf", image_bombs.exif_block(5000, 1_000_000, orientation=6))],
    }[kind]
    changed = with_png_chunks(data, *chunks, last=kind.startswith("late"))
    began = time.process_time()
    image = open_image(changed)
    assert time.process_time() - began < 1.5
    assert np.array_equal(
        np.asarray(image), np.asarray(PHOTO.transpose(Image.Transpose.ROTATE_270) if kind == "eXIf" else PHOTO)
    )
    stored = media_to_store(changed, OriginalBytes(), strips_metadata=True)[1]
    assert open_image(stored).tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_an_exif_directory_that_names_everything_again_is_read_for_its_orientation(
    image_format: str, orientation: int
) -> None:
    block = image_bombs.exif_block(2000, 30_000, orientation)
    data = encode(PHOTO, image_format, exif=b"Exif\0\0" + block)
    plain = Image.Exif()
    plain[0x0112] = orientation
    expected = open_image(encode(PHOTO, image_format, exif=plain))
    assert open_image(data).tobytes() == expected.tobytes()
    assert probe(data).orientation == orientation


PEAK = """
import re, sys, time
from pathlib import Path
from x2vlm.data.media.images import open_image
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
data, before, began = Path(sys.argv[1]).read_bytes(), peak(), time.process_time()
image = open_image(data)
print(image.width * image.height, peak() - before, time.process_time() - began)
"""
SIDE = 8000
LARGEST = {
    "grey 16": lambda: png(SIDE, SIDE, 16, 0, bytes(2 * SIDE + 1)),
    "grey and alpha 16": lambda: png(SIDE, SIDE, 16, 4, bytes(4 * SIDE + 1)),
    "rgba 16 interlaced": lambda: png(SIDE, SIDE, 16, 6, bytes(8 * SIDE + 1), interlaced=True),
    "arithmetic": lambda: image_bombs.arithmetic_jpeg(SIDE, SIDE, 9),
    "jpeg": lambda: image_bombs.with_jpeg_size(encode(PHOTO, "JPEG", subsampling=0), SIDE, SIDE),
    "webp": lambda: encode(Image.new("RGB", (SIDE, SIDE), "teal"), "WEBP", lossless=True, method=0),
    "avif": lambda: encode(Image.new("RGB", (SIDE, SIDE), "teal"), "AVIF", speed=10),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_image_takes_at_most_the_stated_memory_and_time(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(LARGEST[kind]())
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    pixels, peak, seconds = map(float, done.stdout.split())
    assert pixels == SIDE * SIDE
    assert peak < (1.1e9 if kind == "webp" else 0.7e9)
    assert seconds < 6


def test_sixteen_bits_of_grey_need_little_more_memory_than_the_result(tmp_path: Path) -> None:
    """4,000 x 4,000 pixels: 64 MB as Pillow holds RGB, and 32 MB of 16-bit values."""
    path = tmp_path / "grey.png"
    path.write_bytes(png(4000, 4000, 16, 0, bytes(8001)))
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    _, peak, _ = map(float, done.stdout.split())
    assert peak < 200e6  # 400 MB with one copy of 8 bytes a pixel and its clipped double


def test_a_file_that_names_no_more_than_it_has_is_not_refused() -> None:
    """Many segments, chunks and blocks, but no more than encoders write."""
    jpeg = encode(PHOTO, "JPEG", quality=95)
    segments = struct.pack(">HH", 0xFFE2, 1002) + b"ICC_PROFILE\0" + bytes(988)
    tiny = png_chunk(b"IDAT", b"")
    files = {
        "jpeg": jpeg[:2] + segments * 255 + b"\xff" * 1000 + jpeg[2:],
        "png": with_png_chunks(encode(PHOTO, "PNG"), tiny * 4000),
        "gif": image_bombs.gif_with_blocks(
            encode(PHOTO.quantize(64), "GIF"), b"\x21\xfe" + (b"\xff" + bytes(255)) * 300 + b"\0"
        ),
        "webp": image_bombs.webp_with_frames(3000),
    }
    for name, data in files.items():
        assert re.fullmatch("jpeg|png|gif|webp", probe(data).format), name
        assert open_image(data).size in ((200, 150), (16, 16))
