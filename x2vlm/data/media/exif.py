"""Orientation of an image: the one thing that is read of its metadata.

Pillow reads all entries of an EXIF directory, warns about each that is false, and in releases before 13 copies what
each points at: 65,535 entries that point at the same megabyte are 64 GB. So it gets a directory only if that is small,
and the others are read here.
"""

import struct

from PIL import Image

ORIENTATION_TAG = 0x0112
SHORT = 3
HEADER = b"Exif\0\0"
UNIT_BYTES = {1: 1, 2: 1, SHORT: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MAX_ENTRIES = 1000  # a camera writes about 50
TIFF_ORDERS = {b"MM": ">", b"II": "<"}


def is_small_directory(tiff: bytes) -> bool:
    """Whether the first directory of a TIFF block is cheap to read as a whole: few entries, and little that they name.

    True for a block that is no directory at all: whoever reads it fails at once.
    """
    order = TIFF_ORDERS.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return True
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return True
    (num_entries,) = struct.unpack_from(order + "H", tiff, start)
    if num_entries > MAX_ENTRIES:
        return False
    stop = min(start + 2 + 12 * num_entries, start + 2 + (len(tiff) - start - 2) // 12 * 12)
    lengths = (
        count * UNIT_BYTES.get(kind, 0)
        for _, kind, count, _ in struct.iter_unpack(order + "HHI4s", tiff[start + 2 : stop])
    )
    named: int = sum(length for length in lengths if length <= len(tiff))
    return named <= 4 * len(tiff) + (64 << 10)


def first_orientation(exif: bytes) -> int:
    """Orientation 1 to 8 of an EXIF block, read without the rest of it; 1 where that is absent or broken."""
    tiff = exif.removeprefix(HEADER)
    order = TIFF_ORDERS.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (num_entries,) = struct.unpack_from(order + "H", tiff, start)
    for position in range(start + 2, min(start + 2 + 12 * num_entries, len(tiff) - 11), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, position)
        if tag == ORIENTATION_TAG:
            return valid(value) if (kind, count) == (SHORT, 1) else 1
    return 1


def orientation_of(image: Image.Image, errors: tuple[type[Exception], ...]) -> int:
    """EXIF (or XMP) orientation 1 to 8 of an opened image; 1 where the metadata is absent or broken, as viewers do.

    `errors`: what Pillow raises on broken metadata.
    """
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and not is_small_directory(exif.removeprefix(HEADER)):
        return first_orientation(exif)
    try:
        # PngImageFile.getexif would decode the whole image first to look for a late chunk.
        value = Image.Image.getexif(image).get(ORIENTATION_TAG)
    except errors:
        return 1
    return valid(value)


def valid(value: object) -> int:
    """`value` if it is an orientation, else 1."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
