"""Fingerprints of images and clips, equal or near for copies of one image whose bytes differ.

| field | equal or near for | not for |
|---|---|---|
| pixel_sha256 | the same pixels in another container | anything that changes a pixel |
| phash | re-encoding, resizing, most crops of 5 % | mirror images, larger crops |
| thumbnail | as phash; separates images with equal phash by chance | |

The hash is that of the `imagehash` library, bit for bit: the 8 x 8 lowest frequencies of a 32 x 32 greyscale image
(DCT-II), a bit each, 1 above their median. The hash of a near-flat image is noise, so it is flagged and never matched
by hash.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

GREY_SIDE = 32
HASH_SIDE = 8
THUMBNAIL_SIDE = 8
THUMBNAIL_BYTES = THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3

# Grey levels (standard deviation of the 32 x 32 image). Of 191 tiles of photos below it, JPEG of quality 50 moved
# more than 6 bits in 3 of 4; of 4063 above 10 grey levels in 1 of 50.
FLAT_CONTRAST = 4.0

CROP_FRACTION = 0.05  # of width and height that a `cropped` variant leaves out

# The cosine transform without its scale, which does not affect the comparison with the median.
_COSINES = np.cos(np.pi * np.outer(np.arange(HASH_SIDE), 2 * np.arange(GREY_SIDE) + 1) / (2 * GREY_SIDE))
_BIT_VALUES = (np.uint64(1) << np.arange(63, -1, -1, dtype=np.uint64)).reshape(HASH_SIDE, HASH_SIDE)

FINGERPRINT_FIELDS: list[pa.Field] = [
    pa.field("pixel_sha256", pa.string()),
    pa.field("phash", pa.uint64()),
    pa.field("phash_flat", pa.bool_()),
    pa.field("thumbnail", pa.binary(THUMBNAIL_BYTES)),
    pa.field("frame_phashes", pa.list_(pa.uint64())),
]


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of an image or clip: a row of FINGERPRINT_FIELDS."""

    pixel_sha256: str  # over size and RGB bytes; of a clip over those of its frames
    phash: int  # 64 bits; of a clip that of its representative frame
    phash_flat: bool  # the hash is noise
    thumbnail: bytes  # 8 x 8 RGB, row by row; of a clip that of its representative frame
    frame_phashes: tuple[int | None, ...]  # of all frames, None for flat ones; one for an image


def fingerprint(frames: Sequence[Image.Image]) -> Fingerprint:
    """The fingerprint of an image (one frame) or of a clip's sampled frames, all of mode RGB.

    A clip's representative frame is the one nearest to its middle that is not flat (titles and black frames open and
    close most clips), the earlier on a tie. ValueError without a frame or for another mode.
    """
    if not frames:
        raise ValueError("a fingerprint needs at least one frame")
    for frame in frames:
        if frame.mode != "RGB":
            raise ValueError(f"a fingerprint is of RGB pixels, this frame is {frame.mode}; use media.open_image")
    greys = [_grey(frame) for frame in frames]
    flat = [_is_flat(grey) for grey in greys]
    middle = (len(frames) - 1) / 2
    chosen = min(range(len(frames)), key=lambda number: (flat[number], abs(number - middle)))
    hashes = [_bits(_low_frequencies(grey)) for grey in greys]
    # The hash of a flat frame is noise, and that of all black frames, which most clips have, is equal.
    informative = tuple(None if is_flat else value for value, is_flat in zip(hashes, flat, strict=True))
    return Fingerprint(_pixel_sha256(frames), hashes[chosen], flat[chosen], _thumbnail(frames[chosen]), informative)


def variants(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Typical altered copies of `image`: `mirrored` once, and `cropped` by CROP_FRACTION in five places.

    Test images are searched for in these variants too. No hash survives mirroring, and a crop of 5 % at a corner moves
    more than six bits in 6 of 7 photos, one at the centre in 1 of 6; against the five windows, in none of 154.
    """
    yield "mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    right, down = (math.floor(side * CROP_FRACTION) for side in image.size)
    for left, top in ((0, 0), (right, 0), (0, down), (right, down), (right // 2, down // 2)):
        yield "cropped", image.crop((left, top, image.width - right + left, image.height - down + top))


def thumbnail_correlation(left_NP: NDArray[Any], right_NP: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson's correlation of each pair of thumbnails, in [-1, 1]; 0 where one of them is constant.

    N pairs of P = THUMBNAIL_BYTES bytes. Invariant to brightness and contrast, which re-encoding may change.
    """
    left_NP, right_NP = (one.astype(np.float64) for one in (left_NP, right_NP))
    left_NP = left_NP - left_NP.mean(axis=1, keepdims=True)
    right_NP = right_NP - right_NP.mean(axis=1, keepdims=True)
    scale_N = np.linalg.norm(left_NP, axis=1) * np.linalg.norm(right_NP, axis=1)
    product_N = (left_NP * right_NP).sum(axis=1)
    correlation_N: NDArray[np.float64] = np.divide(product_N, scale_N, out=np.zeros(len(scale_N)), where=scale_N > 0)
    return correlation_N


def thumbnail_matrix(column: pa.Array | pa.ChunkedArray) -> NDArray[np.uint8]:
    """A column of thumbnails as bytes of shape (rows, THUMBNAIL_BYTES), not copied; ValueError if one is null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} thumbnails are missing; leave out rows without pixels")
    flat = np.frombuffer(array.buffers()[1], dtype=np.uint8) if len(array) else np.empty(0, np.uint8)
    start = array.offset * THUMBNAIL_BYTES
    return flat[start : start + len(array) * THUMBNAIL_BYTES].reshape(len(array), THUMBNAIL_BYTES)


def _grey(image: Image.Image) -> NDArray[np.float64]:
    small = image.convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64)


def _is_flat(grey: NDArray[np.float64]) -> bool:
    return bool(grey.std() < FLAT_CONTRAST)


def _low_frequencies(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    return _COSINES @ grey @ _COSINES.T


def _bits(frequencies: NDArray[np.float64]) -> int:
    return int(_BIT_VALUES[frequencies > np.median(frequencies)].sum(dtype=np.uint64))


def _thumbnail(image: Image.Image) -> bytes:
    return image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()


def _pixel_sha256(frames: Sequence[Image.Image]) -> str:
    digests = [hashlib.sha256(f"{one.width} x {one.height}\n".encode() + one.tobytes()) for one in frames]
    return (
        digests[0].hexdigest()
        if len(digests) == 1
        else hashlib.sha256(b"".join(d.digest() for d in digests)).hexdigest()
    )
