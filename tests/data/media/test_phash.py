"""Fingerprints: the hash of the imagehash library, and what survives what."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.support.media.imagehash_values import IMAGEHASH_4_3_2
from x2vlm.data.media.images import open_image
from x2vlm.data.media.phash import (
    THUMBNAIL_BYTES,
    Fingerprint,
    fingerprint,
    thumbnail_correlation,
    thumbnail_matrix,
    variants,
)

PHOTOS = Path(__file__).parents[3] / "datasets/sample/media/photos"


def photo(name: str) -> Image.Image:
    return open_image((PHOTOS / name).read_bytes())


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return open_image(buffer.getvalue())


def bits(left: Fingerprint, right: Fingerprint) -> int:
    return (left.phash ^ right.phash).bit_count()


@pytest.mark.parametrize(("name", "expected"), sorted(IMAGEHASH_4_3_2.items()))
def test_the_hash_is_that_of_imagehash(name: str, expected: str) -> None:
    assert f"{fingerprint([photo(name)]).phash:016x}" == expected


def test_every_shipped_photo_has_a_reference_hash() -> None:
    assert {path.name for path in PHOTOS.glob("*.jpg")} == set(IMAGEHASH_4_3_2)


def test_the_pixel_hash_is_over_size_and_rgb_bytes() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    expected = hashlib.sha256(b"2 x 1\n" + bytes([1, 2, 3, 4, 5, 6])).hexdigest()
    assert fingerprint([image]).pixel_sha256 == expected
    standing = Image.new("RGB", (1, 2))
    standing.putdata([(1, 2, 3), (4, 5, 6)])
    assert fingerprint([standing]).pixel_sha256 != expected


def test_the_container_does_not_change_the_pixel_hash() -> None:
    image = photo("000000000785.jpg")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert fingerprint([open_image(buffer.getvalue())]) == fingerprint([image])


def test_re_encoding_and_halving_stay_within_six_bits_and_alike() -> None:
    for path in sorted(PHOTOS.glob("*.jpg"))[::4]:
        image = open_image(path.read_bytes())
        own = fingerprint([image])
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
        for copy in (jpeg(image, 50), jpeg(half, 88)):
            other = fingerprint([copy])
            assert bits(own, other) <= 6, path.name
            assert other.pixel_sha256 != own.pixel_sha256
            alike = thumbnail_correlation(*(np.frombuffer(one.thumbnail, np.uint8)[None] for one in (own, other)))
            assert alike[0] > 0.97, path.name


def test_a_mirror_image_is_found_by_its_variant_only() -> None:
    for path in sorted(PHOTOS.glob("*.jpg"))[::8]:
        image = open_image(path.read_bytes())
        mirrored = jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90)
        assert bits(fingerprint([image]), fingerprint([mirrored])) > 6, path.name
        assert bits(fingerprint([dict(variants(image))["mirrored"]]), fingerprint([mirrored])) <= 6, path.name


def test_cropped_variants_leave_out_a_twentieth_of_each_side_in_five_places() -> None:
    image = Image.fromarray(np.arange(80 * 120 * 3, dtype=np.uint32).astype(np.uint8).reshape(80, 120, 3))
    found = list(variants(image))
    assert [name for name, _ in found] == ["mirrored", *["cropped"] * 5]
    windows = [(0, 0), (6, 0), (0, 4), (6, 4), (3, 2)]
    for (_, cropped), (left, top) in zip(found[1:], windows, strict=True):
        assert cropped.size == (114, 76)
        assert cropped.tobytes() == image.crop((left, top, left + 114, top + 76)).tobytes()


@pytest.mark.parametrize(("contrast", "flat"), [(0, True), (3.9, True), (4.1, False), (60, False)])
def test_an_image_without_contrast_is_flagged(contrast: float, flat: bool) -> None:
    """Left half 128 - c, right half 128 + c: a standard deviation of c, but for the resize of whole grey levels."""
    values = np.full((320, 320, 3), 128, np.uint8)
    ends = np.linspace(-1, 1, 320) * contrast * np.sqrt(3)  # a ramp of that standard deviation
    values[:] = np.clip(128 + ends, 0, 255).round().astype(np.uint8)[None, :, None]
    assert fingerprint([Image.fromarray(values)]).phash_flat is flat


def test_a_clip_is_represented_by_its_middle_frame_that_shows_something() -> None:
    black = Image.new("RGB", (64, 64))
    first, second = photo("000000000785.jpg"), photo("000000000790.jpg")
    clip = fingerprint([black, first, black, second, black])
    assert clip.phash == fingerprint([first]).phash  # the earlier of two as near to the middle
    assert clip.thumbnail == fingerprint([first]).thumbnail
    assert not clip.phash_flat
    assert clip.frame_phashes == (None, fingerprint([first]).phash, None, fingerprint([second]).phash, None)
    assert fingerprint([black, black]).phash_flat
    backwards = fingerprint([black, second, black, first, black])
    assert backwards.pixel_sha256 != clip.pixel_sha256


def test_refuses_what_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        fingerprint([])
    with pytest.raises(ValueError, match="this frame is L"):
        fingerprint([Image.new("L", (4, 4))])


def test_correlation_agrees_with_numpy() -> None:
    draws = np.random.default_rng(1)
    left, right = draws.integers(0, 256, (2, 5, THUMBNAIL_BYTES)).astype(np.uint8)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(left, right, strict=True)]
    assert thumbnail_correlation(left, right) == pytest.approx(expected, abs=1e-12)
    flat = np.full_like(left, 7)
    assert thumbnail_correlation(left, flat).tolist() == [0.0] * 5
    assert thumbnail_correlation(flat, flat).tolist() == [0.0] * 5


def test_thumbnails_of_a_sliced_column() -> None:
    values = [bytes([number]) * THUMBNAIL_BYTES for number in range(5)]
    column = pa.array(values, pa.binary(THUMBNAIL_BYTES))
    assert thumbnail_matrix(column.slice(2, 2))[:, 0].tolist() == [2, 3]
    assert thumbnail_matrix(pa.chunked_array([column[:1], column[3:]]))[:, 0].tolist() == [0, 3, 4]
    assert thumbnail_matrix(column[:0]).shape == (0, THUMBNAIL_BYTES)
    with pytest.raises(ValueError, match="1 of 2 thumbnails are missing"):
        thumbnail_matrix(pa.array([values[0], None], pa.binary(THUMBNAIL_BYTES)))
