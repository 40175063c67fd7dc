"""The header of an ordinary JPEG without Pillow, in a fifth of the time.

This is `x2vlm.data.media.images.probe` for regular files: contiguous segments up to the first scan, one frame header of
8 bits and one or three components, at most one EXIF block that contains its directory. All other files are left to
Pillow, so that it alone decides what is broken, a decompression bomb or rotated.
"""

import struct

from x2vlm.data.media.budget import MAX_DECODED_PIXELS, MAX_SEGMENTS, check_scans
from x2vlm.data.media.images import Header

SOF_OF_PLAIN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
DHT, SOS, DQT, DRI, COM = 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
EXIF, XMP, ORIENTATION_IN_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"
# Pillow parses the contents of these, and may fail: multi-picture files, FlashPix, Photoshop's resources.
LEFT_TO_PILLOW = (b"MPF\0", b"FPXR\0", b"Photoshop 3.0\0")
TAG_ORIENTATION, TAG_RESOLUTION, TAG_RESOLUTION_UNIT = 0x0112, 0x011A, 0x0128
SHORT, RATIONAL = 3, 5
UNIT_BYTES = {1: 1, 2: 1, SHORT: 2, 4: 4, RATIONAL: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def plain_jpeg_header(data: bytes) -> Header | None:
    """The result of `probe` for `data`, or None where it must be called. InvalidSample (too_many_scans) as there."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    position, size = 2, len(data)
    frame: tuple[int, int] | None = None
    frame_code, num_components, num_segments, orientation, turned_by_xmp = 0, 0, 0, 0, False
    while position + 4 <= size and data[position] == 0xFF and num_segments < MAX_SEGMENTS:
        num_segments += 1
        code = data[position + 1]
        body = position + 4
        position = end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if end < body or end > size:
            return None
        if code == DQT:
            if not _holds_whole_tables(data, body, end):
                return None
        elif code in SOF_OF_PLAIN:
            if frame is not None or (frame := _frame_size(data, body, end)) is None:
                return None
            frame_code, num_components = code, data[body + 5]
        elif 0xE0 <= code <= 0xEF:
            start = data[body : min(end, body + 29)]
            if start.startswith(LEFT_TO_PILLOW) or (start.startswith((b"JFIF", b"Adobe")) and end - body < 12):
                return None
            if code == 0xE1 and start.startswith(EXIF):
                if orientation or not (orientation := _exif_orientation(data[body + 6 : end])):
                    return None
            elif code == 0xE1 and start == XMP:
                turned_by_xmp = turned_by_xmp or data.find(ORIENTATION_IN_XMP, body, end) >= 0
        elif code == SOS:
            if frame is None or turned_by_xmp:
                return None
            width, height = frame
            check_scans(data, body - 4, frame_code, width, height, num_components)
            return Header("jpeg", *((height, width) if 5 <= orientation <= 8 else frame), _valid(orientation))
        elif code not in (DHT, DRI, COM):
            return None
    return None


def _valid(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _holds_whole_tables(data: bytes, position: int, end: int) -> bool:
    """Whether a segment has only complete quantisation tables: 64 values of one byte or of two."""
    while position < end:
        position += 65 if data[position] < 16 else 129
    return position == end


def _frame_size(data: bytes, body: int, end: int) -> tuple[int, int] | None:
    """Width and height of a frame that Pillow supports, within the decoding limits."""
    if end - body < 9 or data[body] != 8:
        return None
    height, width, num_components = struct.unpack_from(">HHB", data, body + 1)
    is_plain = num_components in (1, 3) and end - body == 6 + 3 * num_components
    return (width, height) if is_plain and 0 < width * height <= MAX_DECODED_PIXELS else None


def _exif_orientation(tiff: bytes) -> int:
    """The orientation tag of an EXIF block, 1 without one; 0 if Pillow should read it."""
    order = {b"MM\0*": ">", b"II*\0": "<"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 0
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 0
    (num_entries,) = struct.unpack_from(order + "H", tiff, start)
    stop = start + 2 + 12 * num_entries
    if stop + 4 > len(tiff):
        return 0
    found, num_bytes, seen = 0, 0, set()
    for tag, kind, count, value in struct.iter_unpack(order + "HHI4s", tiff[start + 2 : stop]):
        length = count * UNIT_BYTES.get(kind, 0)
        if not length or tag in seen:
            return 0
        seen.add(tag)
        if length > 4:
            num_bytes += length
            (offset,) = struct.unpack(order + "I", value)
            if offset + length > len(tiff) or num_bytes > len(tiff):
                return 0
        if tag == TAG_ORIENTATION:
            found = struct.unpack(order + "H", value[:2])[0] if (kind, count) == (SHORT, 1) else 0
            if not found:
                return 0
        elif (tag == TAG_RESOLUTION and (kind, count) != (RATIONAL, 1)) or (
            tag == TAG_RESOLUTION_UNIT and (kind, count) != (SHORT, 1)
        ):
            return 0
    return found or 1
