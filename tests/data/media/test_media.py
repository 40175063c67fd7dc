"""Images nobody vouches for: real broken files, generated bombs, and the images that must come out right."""

import csv
import struct
from dataclasses import astuple
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.hostile.payloads import gif_bomb, jpeg, png_header_bomb
from tests.support.media.verdicts import rule_of
from x2vlm.data.media.images import TRANSPOSE_OF_ORIENTATION, Header, open_image, probe

RULES = {"empty_body", "not_an_image", "format_unsupported", "too_many_pixels", "too_many_scans", "decode_failed"}
RULES |= {"decode_budget_exceeded"}
UNSUPPORTED = {".heif", ".tif", ".tiff", ".jp2"}


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_every_tricky_file_is_an_image_or_a_named_refusal(excerpts_dir: Path) -> None:
    with (excerpts_dir / "tricky_observed.csv").open() as stream:
        observed = {Path(row["file"]).name: row for row in csv.DictReader(stream)}
    verdicts = {}
    for path in sorted((excerpts_dir / "tricky").iterdir()):
        data = path.read_bytes()
        verdict = verdicts[path.name] = rule_of(open_image, data)
        assert verdict == "ok" or verdict in RULES, path.name
        if path.suffix != ".bmp":  # one that is broken may look like one of run lengths
            assert (verdict == "format_unsupported") == (path.suffix in UNSUPPORTED), path.name
        if verdict == "ok":
            image = open_image(data)
            assert image.mode == "RGB"
            assert (probe(data).width, probe(data).height) == image.size, path.name
    # Whatever Pillow loads without complaint in a format we take must not be lost.
    lost = [
        name
        for name, row in observed.items()
        if row["load_and_rgb"] == "ok"
        and row["format"] in ("JPEG", "MPO", "PNG", "GIF", "WEBP", "AVIF")
        and verdicts.get(name) != "ok"
    ]
    assert lost == []
    assert verdicts["empty_0_bytes.jpeg"] == "empty_body"
    assert verdicts["text_in_jpg.JPG"] == "not_an_image"
    assert sum(verdict == "ok" for verdict in verdicts.values()) >= 55


def test_every_other_file_of_the_samples_is_refused_by_name(excerpts_dir: Path) -> None:
    for path in (excerpts_dir / "videos").iterdir():
        assert rule_of(open_image, path.read_bytes()) == "not_an_image"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_as_pillow_applies_it(orientation: int, image_format: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, image_format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(expected.convert("RGB")))
    assert astuple(probe(data))[:3] == (image_format.lower(), *expected.size)


def test_the_transposes_are_those_of_the_standard() -> None:
    # EXIF: value -> (row 0 is at, column 0 is at); the upper left pixel of the stored image ends up there.
    corner = {2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    image = Image.new("L", (3, 2), 0)
    image.putpixel((0, 0), 255)
    for orientation, (row, column) in corner.items():
        pixels = np.asarray(image.transpose(TRANSPOSE_OF_ORIENTATION[orientation]))
        assert pixels[row, column] == 255
        assert pixels.sum() == 255
        assert pixels.shape == ((3, 2) if orientation >= 5 else (2, 3))


def test_the_shipped_rotations_end_upright(excerpts_dir: Path) -> None:
    upright = np.asarray(open_image((excerpts_dir / "tricky/jpeg_exif_orientation_3.jpg").read_bytes()).resize((8, 8)))
    for value in (4, 6, 7, 8):
        data = (excerpts_dir / f"tricky/jpeg_exif_orientation_{value}.jpg").read_bytes()
        other = np.asarray(open_image(data).resize((8, 8)))
        assert np.abs(upright.astype(int) - other.astype(int)).mean() < 12, value


@pytest.mark.parametrize(
    "data", [png_header_bomb(20_000), png_header_bomb(8_001), gif_bomb()], ids=["png", "64MP", "gif"]
)
def test_bombs_are_refused_by_their_header(data: bytes) -> None:
    assert rule_of(open_image, data) == rule_of(probe, data) == "too_many_pixels"


def test_the_pixel_limit_keeps_what_is_exactly_on_it() -> None:
    assert probe(png_header_bomb(8_000)) == Header("png", 8_000, 8_000, 1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_refused_at_every_length(image_format: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), image_format)
    assert rule_of(open_image, data) == "ok"
    for length in (1, 10, 30, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        assert rule_of(open_image, data[:length]) in ("decode_failed", "not_an_image"), length


@settings(max_examples=200, deadline=None)
@given(
    position=st.integers(0, 2000),
    value=st.integers(0, 255),
    image_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]),
)
def test_no_changed_byte_gets_another_exception_out(position: int, value: int, image_format: str) -> None:
    data = bytearray(encode(Image.radial_gradient("L").resize((40, 30)).convert("RGB"), image_format))
    data[position % len(data)] = value
    assert rule_of(open_image, bytes(data)) in RULES | {"ok"}
    assert rule_of(probe, bytes(data)) in RULES | {"ok"}


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP"]),
)
def test_no_bytes_at_all_get_another_exception_out(tail: bytes, head: bytes) -> None:
    assert rule_of(open_image, head + tail) in RULES


def test_transparency_lies_on_white() -> None:
    for mode, colour in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        assert open_image(encode(Image.new(mode, (4, 4), colour), "PNG")).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert open_image(encode(palette, "GIF", transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    assert open_image(encode(palette, "PNG")).getpixel((1, 1)) == (0, 0, 0)


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = open_image(encode(Image.fromarray(values), "PNG"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for image_format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
        assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    data = jpeg()
    segment = b"Exif\0\0MM\0*" + b"\xff" * 40
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert open_image(broken).size == (64, 48)
    assert probe(broken) == Header("jpeg", 64, 48, 1)
