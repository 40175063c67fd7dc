"""Small image files that cost a decoder far more than images do, and good ones that only look strange."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image

from x2vlm.data.media.iso import read_items

# First column and row, and steps between columns and rows, of the passes of an interlaced PNG.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG_HEADER_BYTES = 33  # signature and IHDR


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    """`image` in a format of Pillow's."""
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour_type: int, row: bytes, interlaced: bool = False) -> bytes:
    """A PNG whose packed rows are all `row` (its filter byte first); one that is interlaced has rows of zeros."""
    pack = zlib.compressobj(1)
    if interlaced:
        bits, rows = 8 * (len(row) - 1) // width, []
        for left, top, right, down in ADAM7:
            columns = (width - left + right - 1) // right
            rows += [bytes(1 + (columns * bits + 7) // 8)] * ((height - top + down - 1) // down)
    else:
        rows = [row] * height
    packed = b"".join(pack.compress(b"".join(rows[first : first + 64])) for first in range(0, len(rows), 64))
    packed += pack.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def with_png_chunks(data: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """A PNG with more chunks behind its header, or before its end."""
    position = len(data) - 12 if last else PNG_HEADER_BYTES
    return data[:position] + b"".join(chunks) + data[position:]


def with_scans(data: bytes, number: int, components: int = 3) -> bytes:
    """A progressive JPEG with `number` more scans of no data: each refines the DC coefficients again."""
    scan = struct.pack(">HHB", 0xFFDA, 6 + 2 * components, components)
    scan += b"".join(bytes((one + 1, 0)) for one in range(components)) + bytes((0, 0, 0x10))
    return data[:-2] + scan * number + data[-2:]


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header names another size."""
    position = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: position + 5] + struct.pack(">HH", height, width) + data[position + 9 :]


def arithmetic_jpeg(width: int, height: int, num_scans: int) -> bytes:
    """A progressive JPEG in arithmetic coding, with next to no data: its scans refine the DC coefficients."""
    tables = struct.pack(">HHB", 0xFFDB, 67, 0) + bytes([1] * 64)
    frame = struct.pack(">HHBHHB", 0xFFCA, 17, 8, height, width, 3) + b"".join(
        bytes((one, 0x11, 0)) for one in (1, 2, 3)
    )
    first = struct.pack(">HHB", 0xFFDA, 12, 3) + bytes((1, 0, 2, 0, 3, 0, 0, 0, 0)) + bytes(20)
    return with_scans(b"\xff\xd8" + tables + frame + first + b"\xff\xd9", num_scans)


def exif_block(num_entries: int, num_bytes: int, orientation: int = 1) -> bytes:
    """A TIFF block whose entries all name the same `num_bytes`; the first is the orientation."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += b"".join(struct.pack(">HHII", 0x9000 + one, 7, num_bytes, 8) for one in range(num_entries - 1))
    head = b"MM\0*" + struct.pack(">IH", 8, num_entries) + entries + bytes(4)
    return head.ljust(8 + num_bytes, b"\0")


def gif_with_blocks(data: bytes, blocks: bytes) -> bytes:
    """A GIF with `blocks` before its first frame."""
    position = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:position] + blocks + data[position:]


def webp_with_frames(number: int, canvas: int = 16) -> bytes:
    """An animated WebP of `number` small frames on a square canvas."""
    still = encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)
    frame = struct.pack("<4sI", b"ANMF", 16 + len(still) - 12) + bytes(16) + still[12:]
    size = struct.pack("<I", canvas - 1)[:3] * 2
    body = b"WEBP" + struct.pack("<4sI", b"VP8X", 10) + bytes((2, 0, 0, 0)) + size
    body += struct.pack("<4sI", b"ANIM", 6) + bytes(6) + frame * number
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + kind + body


def av1_data(image: Image.Image) -> tuple[bytes, bytes]:
    """The AV1 data of an image, and their av1C box."""
    data = encode(image, "AVIF", quality=95, subsampling="4:4:4")
    items = read_items(data)
    ((first, end),) = items.extents[items.primary or 0]
    position = data.index(b"av1C") - 4
    return data[first:end], data[position : position + struct.unpack_from(">I", data, position)[0]]


def avif_grid(tiles: list[Image.Image], columns: int, major: bytes = b"avif", brands: bytes = b"avifmif1miaf") -> bytes:
    """An AVIF that is a grid of equal tiles, row by row."""
    payloads = [av1_data(tile) for tile in tiles]
    (width, height), rows = tiles[0].size, len(tiles) // columns
    grid = bytes((0, 0, rows - 1, columns - 1)) + struct.pack(">HH", width * columns, height * rows)
    contents = [grid, *(data for data, _ in payloads)]
    numbers = range(1, len(contents) + 1)
    infos = [
        box(b"infe", struct.pack(">IHH", 2 << 24, one, 0), b"grid" if one == 1 else b"av01", b"\0") for one in numbers
    ]
    sizes = [(width, height), (width * columns, height * rows)]
    properties = [payloads[0][1], *(box(b"ispe", struct.pack(">III", 0, *size)) for size in sizes)]
    links = b"".join(
        struct.pack(">HB", one, 1) + b"\x03" if one == 1 else struct.pack(">HB", one, 2) + b"\x81\x02"
        for one in numbers
    )

    def meta(start: int) -> bytes:
        places, position = b"", start
        for one, content in zip(numbers, contents, strict=True):
            places += struct.pack(">HHHII", one, 0, 1, position, len(content))
            position += len(content)
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">IH", 0, 1)),
            box(b"iloc", bytes(4), struct.pack(">BBH", 0x44, 0, len(contents)), places),
            box(b"iinf", struct.pack(">IH", 0, len(contents)), *infos),
            box(b"iref", bytes(4), box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *numbers[1:]))),
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">II", 0, len(contents)), links)),
        )

    head = box(b"ftyp", major, bytes(4), brands)
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *contents)


def with_av1_size(data: bytes, bits: int = 16) -> bytes:
    """A still AVIF whose AV1 sequence header allows frames of 2^bits x 2^bits, whatever the file says of its size."""
    items = read_items(data)
    ((first, _),) = items.extents[items.primary or 0]
    header = first + 2 if data[first] >> 3 & 15 == 1 else first + 4  # behind a temporal delimiter
    # profile 0, no still picture, no reduced header, no timing, no delay, one operating point of level 0
    fields = "000" + "0" + "0" + "0" + "0" + "00000" + "0" * 12 + "00000" + f"{bits - 1:04b}" * 2 + "1" * (2 * bits)
    packed = int(fields.ljust(80, "0"), 2).to_bytes(10, "big")
    return data[:header] + packed + data[header + 10 :]


def _small() -> Image.Image:
    return Image.radial_gradient("L").resize((96, 64)).convert("RGB")


# A bomb of each kind, and the rule that drops it.
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg-scans": ("too_many_scans", lambda: with_scans(encode(_small(), "JPEG", progressive=True), 15_000)),
    "jpeg-large-scans": (
        "too_many_scans",
        lambda: with_scans(with_jpeg_size(encode(_small(), "JPEG", progressive=True), 8000, 8000), 30, 1),
    ),
    "jpeg-arithmetic-scans": ("too_many_scans", lambda: arithmetic_jpeg(4000, 4000, 2000)),
    "jpeg-segments": ("decode_budget_exceeded", lambda: _in_jpeg(b"\xff\xe5\0\2" * 500_000)),
    "jpeg-fill-bytes": ("decode_budget_exceeded", lambda: _in_jpeg(b"\xff" * 2_000_000)),
    "jpeg-dimensions": ("too_many_pixels", lambda: with_jpeg_size(encode(_small(), "JPEG"), 65_500, 65_500)),
    "png-16-bits": ("too_many_pixels", lambda: png(8100, 8100, 16, 0, bytes(16_201))),
    "png-interlaced": ("too_many_pixels", lambda: png(8100, 8100, 16, 4, bytes(32_401), interlaced=True)),
    "png-palette": ("decode_failed", lambda: with_png_chunks(_palette_png(), png_chunk(b"PLTE", bytes(3_000_000)))),
    "png-chunks": ("decode_budget_exceeded", lambda: with_png_chunks(_grey_png(), png_chunk(b"prVt", b"") * 200_000)),
    "png-late-chunks": (
        "decode_budget_exceeded",
        lambda: with_png_chunks(_grey_png(), png_chunk(b"prVt", b"") * 200_000, last=True),
    ),
    "apng-frames": ("decode_budget_exceeded", lambda: _apng(100_000)),
    "webp-frames": ("decode_budget_exceeded", lambda: webp_with_frames(100_000)),
    "webp-canvas": ("too_many_pixels", lambda: webp_with_frames(2, 16_384)),
    "gif-screen": ("too_many_pixels", lambda: _gif_screen()),
    "gif-blocks": (
        "decode_budget_exceeded",
        lambda: gif_with_blocks(encode(_small(), "GIF"), b"\x21\xfe\0" * 1_000_000),
    ),
    "avif-frame": ("too_many_pixels", lambda: with_av1_size(encode(_small(), "AVIF"))),
    "avif-grid": ("too_many_pixels", lambda: with_grid_of_giants()),
    "avif-boxes": ("decode_budget_exceeded", lambda: _in_avif(box(b"free") * 300_000)),
    "bmp-run-lengths": ("format_unsupported", lambda: _bmp_of_run_lengths()),
}


def with_grid_of_giants() -> bytes:
    """A grid of 16 x 16 tiles that are all the same AV1 data of 4,096 x 4,096 pixels: 4.3 gigapixels in 20 kB."""
    data = avif_grid([Image.new("RGB", (64, 64), "teal")] * 256, 16)
    items = read_items(data)
    changed = bytearray(data)
    for number, kind in items.types.items():
        if kind == b"av01":
            ((first, _),) = items.extents[number]
            header = first + 2 if data[first] >> 3 & 15 == 1 else first + 4
            # profile 1 (4:4:4), still picture, reduced header, level 0, two times 12 bits, 4,096 less one
            fields = "001" + "1" + "1" + "00000" + "1011" * 2 + "1" * 24
            changed[header : header + 6] = int(fields.ljust(48, "0"), 2).to_bytes(6, "big")
    return bytes(changed)


def _in_jpeg(segments: bytes) -> bytes:
    data = encode(_small(), "JPEG")
    return data[:2] + segments + data[2:]


def _grey_png() -> bytes:
    return encode(_small().convert("L"), "PNG")


def _palette_png() -> bytes:
    return png(64, 64, 8, 3, bytes(65))


def _apng(num_frames: int) -> bytes:
    control = png_chunk(b"acTL", struct.pack(">II", num_frames, 0))
    frame = png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 96, 64, 0, 0, 1, 10, 0, 0)) + png_chunk(b"fdAT", bytes(8))
    return with_png_chunks(with_png_chunks(_grey_png(), control), frame * num_frames, last=True)


def _gif_screen() -> bytes:
    data = bytearray(encode(_small(), "GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    return bytes(data)


def _in_avif(boxes: bytes) -> bytes:
    data = encode(_small(), "AVIF")
    (size,) = struct.unpack_from(">I", data)
    return data[:size] + boxes + data[size:]


def _bmp_of_run_lengths() -> bytes:
    pixels = b"\1\0" * 3_000_000
    head = struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return (
        b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(pixels), 0, 0, 14 + 40 + 1024) + head + bytes(1024) + pixels
    )
