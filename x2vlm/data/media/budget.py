"""What decoding an image may cost, judged by its bytes before any decoder sees them.

The bound for a file of 32 MiB, the download's limit: 6 CPU seconds and 1.1 GB, of which ordinary images of the 64
million pixels that are allowed take most (a lossy WebP 2.3 s and 1.0 GB, a progressive JPEG with full colour 3.1 s and
0.6 GB). `tests/data/media/test_budget.py` measures it. Beyond pixels there is what headers can ask for: scans that each
pass over all pixels, millions of segments that Pillow walks through in Python, directories that name the same bytes
again and again. Each kind has a limit far above what any camera or encoder writes.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from x2vlm.data.media import iso
from x2vlm.data.media.exif import first_orientation, is_small_directory
from x2vlm.errors import InvalidSample

MAX_DECODED_PIXELS = 64_000_000  # 192 MB as RGB
MAX_SCANS = 100  # of a JPEG; encoders write 10 to 20
MAX_SCAN_SAMPLES = 2_000_000_000  # of all scans together, 0.3 ns each: twice the largest ordinary image
MAX_SEGMENTS = 4000  # of a JPEG before its pixels; 32 MB of extended XMP are 500
MAX_JUNK_BYTES = 64 << 10  # between the segments of a JPEG, which Pillow skips byte by byte
MAX_CHUNKS = 50_000  # of a PNG or WebP; a PNG of 32 MB in parts of 8 kB has 4,000
MAX_BLOCKS = 50_000  # of a GIF before its first frame
MAX_AVIF_PIXELS = 4 * MAX_DECODED_PIXELS  # of colour, alpha, thumbnails and the padding of tiles together

EXCEEDED = "decode_budget_exceeded"
SOF_OF_SCANS = frozenset((0xC2, 0xC6, 0xCA, 0xCE))  # progressive: the coefficients of all pixels are kept in memory
WITH_LENGTH = frozenset(range(0xC0, 0xD0)) - {0xC8} | frozenset(range(0xDA, 0xF0)) | {0xFE}  # for Pillow
WITHOUT_LENGTH = frozenset(range(0xD0, 0xDA)) | {0xC8} | frozenset(range(0xF0, 0xFE))
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SOS, APP1, APP2, COM = 0xDA, 0xE1, 0xE2, 0xFE
ICC = b"ICC_PROFILE\0"
PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
FILL = re.compile(rb"\xff+")


@dataclass(frozen=True)
class Decodable:
    """What Pillow may open. `orientation` (1 to 8) is given where Pillow shall not read it."""

    data: bytes
    orientation: int | None = None


def decodable(data: bytes, image_format: str) -> Decodable:
    """`data`, an image of a decoded format, or a copy of it without metadata that would cost too much to read.

    Raises InvalidSample with rule too_many_pixels, too_many_scans, decode_budget_exceeded (segments, chunks, blocks,
    items) or format_unsupported (kinds of BMP and AVIF).
    """
    judge: dict[str, Callable[[bytes], Decodable]] = {
        "jpeg": _judge_jpeg,
        "png": _judge_png,
        "webp": _judge_webp,
        "gif": _judge_gif,
        "avif": _judge_avif,
        "bmp": _judge_bmp,
    }
    return judge[image_format](data)


def check_pixels(width: int, height: int) -> None:
    """InvalidSample with rule decode_failed or too_many_pixels unless the size can be decoded."""
    if width <= 0 or height <= 0:
        raise InvalidSample("decode_failed", f"size {width} x {height}")
    if width * height > MAX_DECODED_PIXELS:
        raise InvalidSample("too_many_pixels", f"{width} x {height}, at most {MAX_DECODED_PIXELS} are decoded")


def check_scans(data: bytes, first_scan: int, frame_code: int, width: int, height: int, num_components: int) -> None:
    """InvalidSample with rule too_many_scans unless the scans of a JPEG are few enough for its size.

    `first_scan` is where the marker of the first one starts. A baseline JPEG whose first scan has all components is
    decoded in one pass, whatever follows. In data of pixels 0xFF is followed by 0 or a restart mark, so counting the
    two bytes of the marker never counts too few; at most thumbnails behind the pixels are counted in addition.
    """
    if frame_code not in SOF_OF_SCANS and data[first_scan + 4 : first_scan + 5] == bytes((num_components,)):
        return
    num_scans = _count_scans(data, first_scan)
    if num_scans > MAX_SCANS:
        raise InvalidSample("too_many_scans", f"{num_scans} scans of a JPEG, at most {MAX_SCANS}")
    if num_scans * num_components * width * height <= MAX_SCAN_SAMPLES:
        return
    samples, position = 0, first_scan
    while position >= 0:
        samples += width * height * min(max(1, data[position + 4] if position + 4 < len(data) else 1), num_components)
        position = data.find(b"\xff\xda", position + 2)
    if samples > MAX_SCAN_SAMPLES:
        raise InvalidSample(
            "too_many_scans", f"{num_scans} scans of {width} x {height}: {samples} samples, at most {MAX_SCAN_SAMPLES}"
        )


def _count_scans(data: bytes, start: int, window_bytes: int = 64 << 10) -> int:
    """How often the marker of a scan occurs: 0.3 ms a megabyte, a quarter of what bytes.count takes."""
    octets = np.frombuffer(data, np.uint8)
    count = 0
    for first in range(start, len(data) - 1, window_bytes):
        window = octets[first : first + window_bytes + 1]
        count += int(np.count_nonzero((window[:-1] == 0xFF) & (window[1:] == SOS)))
    return count


def _judge_jpeg(data: bytes) -> Decodable:
    """Walks through the segments before the pixels as Pillow does."""
    position, num_junk = 2, 0
    frame: tuple[int, int, int, int] | None = None
    segments: list[tuple[int, int, int]] = []  # code, start, end
    while position + 2 <= len(data):
        code = data[position + 1]
        if data[position] != 0xFF or code == 0xFF or code == 0:
            stop = _end_of_junk(data, position)
            num_junk += stop - position
            if num_junk > MAX_JUNK_BYTES:
                raise InvalidSample(EXCEEDED, f"more than {MAX_JUNK_BYTES} stray bytes before the pixels of a JPEG")
            position = stop
            continue
        if len(segments) >= MAX_SEGMENTS:
            raise InvalidSample(EXCEEDED, f"more than {MAX_SEGMENTS} segments before the pixels of a JPEG")
        if code in WITHOUT_LENGTH:
            segments.append((code, position, position + 2))
            position += 2
            continue
        if code not in WITH_LENGTH:
            break  # no marker: Pillow refuses it at once
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append((code, position, end))
        if code in FRAME_HEADERS and position + 10 <= len(data):
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            frame = code, width, height, components
        elif code == SOS:
            if frame is not None:
                check_pixels(frame[1], frame[2])
                check_scans(data, position, *frame)
            break
        position = max(end, position + 4)
    return _with_cheap_metadata(data, segments)


def _end_of_junk(data: bytes, position: int) -> int:
    """Where the next marker may start: behind other bytes, behind fill bytes but the last, behind 0xFF 0."""
    if data[position] != 0xFF:
        found = data.find(b"\xff", position)
        return len(data) if found < 0 else found
    if data[position + 1] == 0:
        return position + 2
    fill = FILL.match(data, position)
    return fill.end() - 1 if fill else position + 1


def _with_cheap_metadata(data: bytes, segments: list[tuple[int, int, int]]) -> Decodable:
    """`data`, or without its application data where Pillow would take long over them (EXIF, multi-image index)."""
    exif = [
        data[start + 4 : end]
        for code, start, end in segments
        if code == APP1 and data[start + 4 : start + 10] == b"Exif\0\0"
    ]
    index = [
        data[start + 8 : end]
        for code, start, end in segments
        if code == APP2 and data[start + 4 : start + 8] == b"MPF\0"
    ]
    if len(exif) <= 8 and all(map(is_small_directory, [b"".join(one[6:] for one in exif), *index])):
        return Decodable(data)
    kept, position = [], 0
    for code, start, end in segments:
        is_metadata = code == COM or (code in range(0xE1, 0xEE) and not data.startswith(ICC, start + 4))
        if is_metadata:
            kept.append(data[position:start])
            position = end
    return Decodable(b"".join([*kept, data[position:]]), first_orientation(exif[0]) if exif else 1)


def _judge_png(data: bytes) -> Decodable:
    position, num_chunks = 8, 0
    while position + 8 <= len(data):
        num_chunks += 1
        if num_chunks > MAX_CHUNKS:
            raise InvalidSample(EXCEEDED, f"more than {MAX_CHUNKS} chunks in a PNG")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return Decodable(data)


def png_of_pixels(data: bytes) -> Decodable:
    """A PNG with nothing but what its pixels depend on: for one whose texts or profile Pillow refuses."""
    kept, position, orientation = [data[:8]], 8, 1
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in PIXEL_CHUNKS:
            kept.append(data[position:end])
        elif kind == b"eXIf":
            orientation = first_orientation(data[position + 8 : end - 4])
        if kind == b"IEND":
            break
        position = end
    return Decodable(b"".join(kept), orientation)


def _judge_webp(data: bytes) -> Decodable:
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        check_pixels(width, height)  # libwebp allocates the canvas twice when it is opened
    position, num_chunks, hidden, orientation = 12, 0, bytearray(), None
    while position + 8 <= len(data):
        num_chunks += 1
        if num_chunks > MAX_CHUNKS:
            raise InvalidSample(EXCEEDED, f"more than {MAX_CHUNKS} chunks in a WebP")
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            exif = data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
            if not is_small_directory(exif):
                hidden, orientation = hidden or bytearray(data), first_orientation(exif)
                hidden[position : position + 4] = b"SKIP"
        position += 8 + length + length % 2
    return Decodable(bytes(hidden) or data, orientation)


def _judge_gif(data: bytes) -> Decodable:
    """Counts what lies before the first frame; Pillow reads no further."""
    if len(data) < 13:
        return Decodable(data)
    position, num_blocks = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0), 0
    while position < len(data) and data[position] not in b",;":
        num_blocks += 1
        if data[position] == 0x21:
            position += 2
            while position < len(data) and data[position] and num_blocks <= MAX_BLOCKS:
                position += 1 + data[position]
                num_blocks += 1
        position += 1
        if num_blocks > MAX_BLOCKS:
            raise InvalidSample(EXCEEDED, f"more than {MAX_BLOCKS} blocks before the first frame of a GIF")
    return Decodable(data)


def _judge_avif(data: bytes) -> Decodable:
    items = iso.read_items(data)
    if items.primary is None or items.primary not in items.types:
        raise InvalidSample("format_unsupported", "an AVIF without a still image (an image sequence)")
    pixels = iso.av1_pixels(data, items)
    if pixels > MAX_AVIF_PIXELS:
        raise InvalidSample("too_many_pixels", f"{pixels} in the AV1 data of an AVIF, at most {MAX_AVIF_PIXELS}")
    return Decodable(iso.with_hidden_metadata(data, items))


def _judge_bmp(data: bytes) -> Decodable:
    header_bytes = int.from_bytes(data[14:18], "little")
    compression = int.from_bytes(data[30:34], "little") if header_bytes >= 40 else 0
    if compression not in (0, 3):
        raise InvalidSample("format_unsupported", "a BMP with compression; run-length coding is not read")
    return Decodable(data)
