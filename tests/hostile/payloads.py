"""Images and clips, good ones and such as no encoder would make."""

import functools
import struct
import zipfile
import zlib
from io import BytesIO

import av
import numpy as np
from PIL import Image


def jpeg(width: int = 64, height: int = 48, colour: str = "teal") -> bytes:
    """A small valid JPEG."""
    buffer = BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@functools.cache
def photo(seed: int = 0, width: int = 1024, height: int = 768) -> bytes:
    """A valid JPEG as large as photographs on the web are: about 150 kB."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@functools.cache
def clip(num_frames: int = 25, rate: int = 10) -> bytes:
    """A small valid video whose frame k is grey, of brightness 4 k."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        for index in range(num_frames):
            pixels = np.full((48, 64, 3), 4 * index % 256, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def _png(width: int, height: int, depth: int, colour_type: int, packed: bytes) -> bytes:
    """A PNG with this header and these packed rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png_header_bomb(edge: int) -> bytes:
    """A valid little PNG whose header announces `edge` x `edge` pixels."""
    return _png(edge, edge, 8, 2, zlib.compress(b""))


@functools.cache
def png_bomb(edge: int = 20_000) -> bytes:
    """A whole PNG of `edge` x `edge` black pixels, one bit each: 49 kB for 20,000, and 1.2 GB once it is RGB."""
    pack = zlib.compressobj(9)
    row = bytes(1 + (edge + 7) // 8)
    packed = b"".join(pack.compress(row * 100) for _ in range(edge // 100)) + pack.flush()
    return _png(edge, edge, 1, 0, packed)


def jpeg_giant() -> bytes:
    """A JPEG whose frame header announces 65,500 x 65,500 pixels."""
    data = bytearray(jpeg())
    position = data.index(b"\xff\xc0") + 5  # marker, length, precision
    data[position : position + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def webp_giant() -> bytes:
    """A lossless WebP whose header announces 16,384 x 16,384 pixels, the most there can be."""
    buffer = BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    position = data.index(b"VP8L") + 9  # chunk name, size, signature byte
    bits = int.from_bytes(data[position : position + 4], "little") | 0xFFFFFFF  # two times 14 bits, less one each
    data[position : position + 4] = bits.to_bytes(4, "little")
    return bytes(data)


def zip_file() -> bytes:
    """A small ZIP archive."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("payload.txt", "a second file")
    return buffer.getvalue()


def gif(comment: bytes = b"") -> bytes:
    """A small valid GIF with a comment."""
    buffer = BytesIO()
    Image.new("P", (32, 24), 3).save(buffer, "GIF", comment=comment)
    return buffer.getvalue()


def gif_bomb() -> bytes:
    """44 bytes of GIF that announce 65,535 x 65,535 pixels."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + b"\0" * 6 + b"," + b"\0" * 9 + b"\x02\x02L\x01\0;"
    )


def transparent_png() -> bytes:
    """A small valid PNG with transparency."""
    buffer = BytesIO()
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()
