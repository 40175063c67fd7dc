"""Stripping metadata from images: GPS, names, serial numbers, thumbnails, edit histories.

Nothing is decoded and no pixel changes: the file's segments are copied except those with metadata. Segments that affect
rendering (colour profile, gamma, transparency, animation) are kept, and so is the orientation, in an EXIF block of its
own. Data after the end of the image, such as the clip of a "motion photo", are removed too.
"""

import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from x2vlm.data.media.iso import read_items, with_hidden_metadata
from x2vlm.errors import InvalidSample

EXIF_HEADER = b"Exif\0\0"
# In entropy-coded data 0xFF 0x00 is a byte of data and D0 to D7 are restart marks.
# A pattern that begins with a literal byte is searched with memchr: 0.1 ms for a photo, not the 0.8 ms of `\xff+`.
MARKER = re.compile(rb"\xff\xff*([^\x00\xff])", re.DOTALL)
SOI, EOI, SOS, COM = 0xD8, 0xD9, 0xDA, 0xFE
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # which are tables and extensions
STANDALONE = {0x01, *range(0xD0, 0xD8)}
KEPT_APPLICATION_DATA = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
KEPT_PNG_CHUNKS = frozenset(b"tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD hIST sPLT pHYs acTL fcTL fdAT".split())
KEPT_WEBP_CHUNKS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
WEBP_EXIF_FLAG, WEBP_XMP_FLAG = 0x08, 0x04
MAX_STEPS = 1_000_000  # segments or blocks of a file that are walked through, 1 us each; a GIF of 32 MB has 130,000


def strip_metadata(data: bytes, image_format: str, orientation: int) -> bytes:
    """`data`, an image of one of x2vlm.data.media.formats.DECODED, without metadata except `orientation` (1 to 8).

    Files without metadata are returned unchanged. Raises InvalidSample with rule metadata_unreadable if the file's
    segments cannot be parsed, because metadata could remain, and with decode_budget_exceeded if there are too many.
    """
    strip: dict[str, Callable[[bytes, int], bytes]] = {
        "jpeg": _strip_jpeg,
        "png": _strip_png,
        "webp": _strip_webp,
        "gif": _strip_gif,
        "avif": _strip_avif,
        "bmp": _strip_bmp,
    }
    try:
        return strip[image_format](data, orientation)
    except (struct.error, IndexError) as error:
        raise InvalidSample("metadata_unreadable", f"{image_format}: {error}") from None


def _orientation_exif(orientation: int) -> bytes:
    """A TIFF block with one entry: tag 0x0112, one SHORT."""
    return struct.pack(">2sHI", b"MM", 42, 8) + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def size_of_stripped_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height, not yet upright, in the one frame header before the pixels of a JPEG that was stripped here.

    Its segments are contiguous, so any parser finds the same. None otherwise: no frame header or several, or truncated
    segments.
    """
    size, position = None, 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        code = data[position + 1]
        if code == SOS:
            return size
        if code == EOI or code in STANDALONE:
            return None
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if code in FRAME_HEADERS:
            if size is not None or length < 8:
                return None
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = width, height
        position += 2 + length
    return None


def _strip_jpeg(data: bytes, orientation: int) -> bytes:
    view = memoryview(data)  # kept segments are copied once, by the join
    kept: list[bytes | memoryview] = [view[:2]]
    num_leading = 1  # SOI and JFIF, which must come first
    position, has_pixels, num_steps = 2, False, 0
    while mark := MARKER.search(data, position):
        num_steps = _counted(num_steps)
        code, end = mark[1][0], mark.end()
        if code == EOI:
            kept.append(b"\xff\xd9")
            break
        if code in STANDALONE:
            position = end
            continue
        (length,) = struct.unpack_from(">H", data, end) if end + 2 <= len(data) else (0,)
        if length < 2 or end + length > len(data):
            if not has_pixels:
                raise InvalidSample("metadata_unreadable", f"jpeg: segment {code:#x} runs over the end")
            break  # garbage after the last scan
        position = end + length
        if _is_kept_in_jpeg(code, data[end + 2 : min(end + 14, position)]):
            num_leading += code == 0xE0 and len(kept) == num_leading
            kept.append(view[end - 2 : position])  # the last fill byte belongs to the marker
        if code == SOS:
            has_pixels = True
            stop = end_of_scan(data, position)
            kept.append(view[position:stop])
            position = stop
    if orientation != 1:
        body = EXIF_HEADER + _orientation_exif(orientation)
        kept.insert(num_leading, struct.pack(">HH", 0xFFE1, 2 + len(body)) + body)
    return b"".join(kept)


def end_of_scan(data: bytes, start: int, window_bytes: int = 64 << 10) -> int:
    """The start of the marker, with fill bytes, that ends the entropy-coded data from `start` on, or the end of `data`:
    as `\\xff\\xff*[^\\x00\\xff\\xd0-\\xd7]` finds it, in 20 us a photo instead of 40.
    """
    octets = np.frombuffer(data, np.uint8)
    for first in range(start, len(data) - 1, window_bytes):
        window = octets[first : first + window_bytes + 1]
        follows = window[1:]
        suspects = (window[:-1] == 0xFF) & (follows != 0)  # of 300 bytes 0xFF in a photo's data usually only the last
        where = int(suspects.argmax())
        if not suspects[where]:
            continue
        if not _ends_scan(data[first + where + 1]):  # a restart marker or a fill byte: more will follow
            found = np.flatnonzero(suspects)
            ends = found[_ends_scan(follows[found])]
            if not len(ends):
                continue
            where = int(ends[0])
        end = first + where
        if data[end - 1] == 0xFF:
            end = start + len(data[start:end].rstrip(b"\xff"))
        return end
    return len(data)


def _ends_scan(codes: Any) -> Any:
    """Whether a byte that is not 0 ends a scan when it follows 0xFF; of each byte of an array."""
    return (codes != 0xFF) & (codes & 0xF8 != 0xD0)


def _counted(num_steps: int) -> int:
    if num_steps >= MAX_STEPS:
        raise InvalidSample("decode_budget_exceeded", f"more than {MAX_STEPS} segments or blocks")
    return num_steps + 1


def _is_kept_in_jpeg(code: int, body: bytes) -> bool:
    if 0xE0 <= code <= 0xEF:
        return code in KEPT_APPLICATION_DATA and body.startswith(KEPT_APPLICATION_DATA[code])
    return code != COM


def _strip_png(data: bytes, orientation: int) -> bytes:
    kept, position = [data[:8]], 8
    where_exif_goes = None
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        position += 12 + length
        if kind == b"IDAT" and where_exif_goes is None:
            where_exif_goes = len(kept)
        is_critical = kind[:1].isupper()
        if is_critical or kind in KEPT_PNG_CHUNKS:
            kept.append(chunk)
        if kind == b"IEND":
            break
    if orientation != 1:
        if where_exif_goes is None:
            raise InvalidSample("metadata_unreadable", "png: no IDAT")
        body = b"eXIf" + _orientation_exif(orientation)
        kept.insert(where_exif_goes, struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return b"".join(kept)


def _strip_webp(data: bytes, orientation: int) -> bytes:
    (size,) = struct.unpack_from("<I", data, 4)
    end, position = min(len(data), 8 + size), 12
    kept: list[bytes] = []
    is_extended = False
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        chunk = data[position : position + 8 + length]
        chunk += b"\0" * (length % 2)
        position += 8 + length + length % 2
        if kind == b"VP8X":
            is_extended = True
            flags = chunk[8] & ~(WEBP_EXIF_FLAG | WEBP_XMP_FLAG) | (WEBP_EXIF_FLAG if orientation != 1 else 0)
            chunk = chunk[:8] + bytes([flags]) + chunk[9:]
        if kind in KEPT_WEBP_CHUNKS:
            kept.append(chunk)
    if orientation != 1:
        if not is_extended:
            raise InvalidSample("metadata_unreadable", "webp: turned, but its header knows no metadata")
        body = _orientation_exif(orientation)
        kept.append(struct.pack("<4sI", b"EXIF", len(body)) + body)
    body = b"WEBP" + b"".join(kept)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _strip_gif(data: bytes, orientation: int) -> bytes:
    """GIFs have no EXIF; comments and XMP are removed, whatever the `orientation`."""
    position, num_steps = 13 + _gif_table_bytes(data[10]), 0
    kept = [data[:position]]
    while position < len(data):
        num_steps = _counted(num_steps)
        start, block = position, data[position]
        if block == 0x3B:
            kept.append(b";")
            break
        if block == 0x2C:
            position = position + 11 + _gif_table_bytes(data[position + 9])
            position, num_steps = _end_of_gif_blocks(data, position, num_steps)
            kept.append(data[start:position])
        elif block == 0x21:
            position, num_steps = _end_of_gif_blocks(data, position + 2, num_steps)
            label, name = data[start + 1], data[start + 3 : start + 14]
            if label == 0xF9 or (label == 0xFF and name in (b"NETSCAPE2.0", b"ANIMEXTS1.0")):
                kept.append(data[start:position])
        else:
            position += 1  # decoders skip bytes that start no block
    return b"".join(kept)


def _gif_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_gif_blocks(data: bytes, position: int, num_steps: int) -> tuple[int, int]:
    while position < len(data) and data[position]:
        position += 1 + data[position]
        num_steps = num_steps + 1
        if num_steps >= MAX_STEPS:
            break
    return position + 1, _counted(num_steps)


def _strip_avif(data: bytes, orientation: int) -> bytes:
    """How an AVIF is turned is a property of its image, and kept with it."""
    return with_hidden_metadata(data, read_items(data), blanks_unused=True)


def _strip_bmp(data: bytes, orientation: int) -> bytes:
    """Header, palette and pixels; a profile and whatever lies between or behind them are left out."""
    (pixels, header_bytes) = struct.unpack_from("<II", data, 10)
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        palette_bytes, masks = 3 << bits if bits <= 8 else 0, 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        (num_colours,) = struct.unpack_from("<I", data, 46)
        palette_bytes = 4 * (num_colours or 1 << bits) if bits <= 8 else 0
        masks = 12 if compression == 3 and header_bytes == 40 else 0
    tables = 14 + header_bytes + masks + palette_bytes
    if pixels < tables:
        raise InvalidSample("metadata_unreadable", "bmp: the pixels begin inside the palette")
    end = pixels + (width * bits + 31) // 32 * 4 * abs(height)
    return data[:tables] + bytes(pixels - tables) + data[pixels:end]
