"""Stored images carry no metadata but their orientation, and not a pixel changes."""

import contextlib
import re
import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.s1_download.media.encoding import without_metadata
from pipelines.s1_download.media.metadata import end_of_scan, size_of_stripped_jpeg, strip_metadata
from tests.hostile.payloads import gif_bomb, jpeg
from x2vlm.data.media.images import BROKEN_FILE_ERRORS, open_image, probe
from x2vlm.errors import InvalidSample

SECRET = b"secret-place"
ORIENTATION, ARTIST, GPS, LATITUDE = 0x0112, 0x013B, 0x8825, 2


def exif(orientation: int | None) -> bytes:
    """EXIF as a telephone writes it: where, by whom, and which way up."""
    tags = Image.Exif()
    if orientation is not None:
        tags[ORIENTATION] = orientation
    tags[ARTIST] = SECRET.decode()
    tags.get_ifd(GPS)[LATITUDE] = (48.0, 51.0, 24.1234)
    return tags.tobytes()


def sample_image(image_format: str, orientation: int | None) -> bytes:
    """A small image with every kind of metadata that Pillow can write into its format."""
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRET + b"</x:xmpmeta>"
    buffer = BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "png":
        text = PngInfo()
        text.add_text("Comment", SECRET.decode())
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(buffer, "PNG", exif=exif(orientation), pnginfo=text)
    elif image_format == "jpeg":
        image.save(buffer, "JPEG", exif=exif(orientation), comment=SECRET, xmp=xmp, icc_profile=b"a profile")
    elif image_format == "webp":
        image.save(buffer, "WEBP", lossless=True, exif=exif(orientation), xmp=xmp, icc_profile=b"a profile")
    else:
        image.save(buffer, "GIF", comment=SECRET)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "gif"])
def test_only_the_orientation_stays(image_format: str, orientation: int | None) -> None:
    data = sample_image(image_format, orientation)
    found = probe(data).orientation
    assert found == (1 if image_format == "gif" else orientation or 1)
    assert SECRET in data
    stripped = strip_metadata(data, image_format, found)
    assert SECRET not in stripped
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(open_image(stripped)))
    with Image.open(BytesIO(stripped)) as image:
        assert dict(image.getexif()) == ({} if found == 1 else {ORIENTATION: found})
        assert not image.getexif().get_ifd(GPS)
        assert not image.info.keys() & {"xmp", "comment", "Comment", "XML:com.adobe.xmp"}
        assert image.info.get("icc_profile") == (b"a profile" if image_format in ("jpeg", "webp") else None)
    assert strip_metadata(stripped, image_format, found) == stripped


def real_images(excerpts_dir: Path) -> list[Path]:
    return [path for path in sorted((excerpts_dir / "tricky").iterdir()) if path.is_file()]


def test_every_tricky_image_that_decodes_keeps_its_pixels_and_loses_its_metadata(excerpts_dir: Path) -> None:
    num_with_exif = num_with_gps = 0
    for path in real_images(excerpts_dir):
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                before = np.asarray(open_image(data))
            except InvalidSample:
                continue
            header = probe(data)
            with contextlib.suppress(*BROKEN_FILE_ERRORS), Image.open(BytesIO(data)) as image:  # some are broken
                num_with_exif += "exif" in image.info
                num_with_gps += GPS in image.getexif()
            stripped = strip_metadata(data, header.format, header.orientation)
            assert np.array_equal(before, np.asarray(open_image(stripped))), path.name
            assert probe(stripped) == header, path.name
            with Image.open(BytesIO(stripped)) as image:
                assert set(image.getexif()) <= {ORIENTATION}, path.name
            assert b"<x:xmpmeta" not in stripped, path.name
            assert strip_metadata(stripped, header.format, header.orientation) == stripped, path.name
    assert num_with_exif >= 10
    assert num_with_gps >= 1


def test_a_file_without_metadata_comes_back_as_it_is() -> None:
    assert strip_metadata(jpeg(), "jpeg", 1) == jpeg()


def test_what_lies_behind_the_image_goes() -> None:
    for image_format in ("jpeg", "png", "webp", "gif"):
        data = strip_metadata(sample_image(image_format, 1), image_format, 1)
        assert strip_metadata(data + b"motion photo" + SECRET, image_format, 1) == data


def test_metadata_between_scans_and_in_other_segments_goes() -> None:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, "JPEG", progressive=True, quality=95
    )
    data = buffer.getvalue()
    assert data.count(b"\xff\xda") >= 3
    with_metadata = data
    for code in (0xE1, 0xE3, 0xED, 0xEF, 0xFE):
        segment = struct.pack(">BBH", 0xFF, code, 2 + len(SECRET)) + SECRET
        last_scan = with_metadata.rindex(b"\xff\xda")
        with_metadata = with_metadata[:2] + segment + with_metadata[2:last_scan] + segment + with_metadata[last_scan:]
    assert strip_metadata(with_metadata, "jpeg", 1) == data


def test_segments_that_cannot_be_told_apart_are_a_named_drop() -> None:
    for data, image_format, orientation in [
        (b"\xff\xd8\xff\xe1\xff\xff", "jpeg", 1),
        (b"\x89PNG\r\n\x1a\n", "png", 6),
        (b"RIFF", "webp", 1),
        (strip_metadata(sample_image("webp", 1), "webp", 1)[:12], "webp", 6),
        (b"GIF89a", "gif", 1),
    ]:
        with pytest.raises(InvalidSample) as caught:
            strip_metadata(data, image_format, orientation)
        assert caught.value.rule == "metadata_unreadable"


@given(st.sampled_from(["jpeg", "png", "webp", "gif"]), st.binary(max_size=200), st.integers(1, 8))
def test_any_bytes_are_stripped_or_refused(image_format: str, data: bytes, orientation: int) -> None:
    start = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF", "gif": gif_bomb()[:13]}
    try:
        strip_metadata(start[image_format] + data, image_format, orientation)
    except InvalidSample as error:
        assert error.rule == "metadata_unreadable"  # noqa: PT017 (either outcome is fine, nothing else is)


def stripped_or_none(data: bytes) -> bytes | None:
    """A JPEG as it would be stored, None if it would not."""
    try:
        header = probe(data)
        return strip_metadata(data, header.format, header.orientation) if header.format == "jpeg" else None
    except InvalidSample:
        return None


def assert_size_is_that_of_pillow(stripped: bytes) -> bool:
    """Whether our own reading gives a size, which must be the one that Pillow finds in the same bytes."""
    if (size := size_of_stripped_jpeg(stripped)) is None:
        return False
    header = probe(stripped)
    assert (header.width, header.height) == (size[::-1] if header.orientation >= 5 else size)
    return True


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_of_a_stripped_jpeg_is_the_one_that_pillow_finds(options: dict[str, bool], orientation: int) -> None:
    buffer = BytesIO()
    Image.new("RGB", (37, 21)).save(buffer, "JPEG", exif=exif(orientation), comment=SECRET, **options)
    stripped = stripped_or_none(buffer.getvalue())
    assert stripped
    assert size_of_stripped_jpeg(stripped) == (37, 21)
    assert assert_size_is_that_of_pillow(stripped)


@given(
    st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_of_a_jpeg_with_bytes_changed_it_is_the_size_that_pillow_finds_or_none(
    changes: list[tuple[int, bytes]], orientation: int
) -> None:
    data = bytearray(sample_image("jpeg", orientation))
    for position, piece in changes:
        data[position : position + len(piece)] = piece
    if stripped := stripped_or_none(bytes(data)):
        assert_size_is_that_of_pillow(stripped)


def test_a_second_frame_header_is_no_size() -> None:
    data = strip_metadata(sample_image("jpeg", 1), "jpeg", 1)
    start = data.index(b"\xff\xc0")
    segment = data[start : start + 2 + struct.unpack_from(">H", data, start + 2)[0]]
    other = segment[:5] + struct.pack(">HH", 5, 7) + segment[9:]
    assert size_of_stripped_jpeg(data[:start] + segment + data[start:]) is None
    assert size_of_stripped_jpeg(data[:start] + other + data[start:]) is None
    assert size_of_stripped_jpeg(data[:start] + other + data[start + len(segment) :]) == (7, 5)


def test_a_stored_jpeg_has_the_size_that_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should stripping ever take a frame header for metadata, nothing is stored."""
    data = sample_image("jpeg", 6)
    stripped = strip_metadata(data, "jpeg", 6)
    start = stripped.index(b"\xff\xc0")
    broken = stripped[: start + 5] + struct.pack(">HH", 5, 7) + stripped[start + 9 :]
    monkeypatch.setattr("pipelines.s1_download.media.encoding.strip_metadata", lambda *_: broken)
    with pytest.raises(InvalidSample, match="another size"):
        without_metadata(data, probe(data))


SCAN_BYTES = st.lists(st.sampled_from([0xFF, 0xFF, 0x00, 0xD0, 0xD7, 0xD8, 0xD9, 0x01, 0xCF, 0xFE]), max_size=40).map(
    bytes
)


@given(SCAN_BYTES, st.integers(0, 40), st.integers(1, 9))
def test_a_scan_ends_at_its_first_marker(data: bytes, start: int, window_bytes: int) -> None:
    start = min(start, len(data))
    marker = re.compile(rb"\xff\xff*[^\x00\xff\xd0-\xd7]", re.DOTALL).search(data, start)
    assert end_of_scan(data, start, window_bytes) == (marker.start() if marker else len(data))


def test_the_end_of_a_scan_far_away_is_found() -> None:
    data = b"\xff\xda" + b"\xff\x00\xff\xd3" * 100_000 + b"\xff" * 300_000 + b"\xd9behind it"
    assert end_of_scan(data, 2) == 2 + 400_000
