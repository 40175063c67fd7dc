"""Decoding and measuring untrusted images.

Whatever the bytes are, the result is an image or an InvalidSample with a rule name; no other exception leaves this
file. Sizes are read from the header and checked before anything is decoded, so a decompression bomb costs only its
header.
"""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from x2vlm.errors import InvalidSample

MAX_DECODED_PIXELS = 64_000_000  # 192 MB as RGB

# What Pillow's parsers and decoders were seen to raise on broken files (85 of them in the tests), beside OSError.
# DecompressionBombError derives from none of the others; MemoryError is raised when a false header exceeds the address
# space limit.
BROKEN_FILE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

ORIENTATION_TAG = 0x0112
TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """The header of an image, read before anything is decoded. Width and height are of the upright image."""

    format: str  # "jpeg", "png", "webp" or "gif"
    width: int
    height: int
    orientation: int  # EXIF (or XMP) orientation 1 to 8; 1 where that is absent or broken


def open_image(data: bytes) -> Image.Image:
    """The image in `data` as RGB, upright (EXIF orientation applied), transparency on white, first frame only.

    Raises InvalidSample with rule empty_body, not_an_image (not JPEG, PNG, WebP or GIF), too_many_pixels (more than
    64 million, judged by the header) or decode_failed (truncated or broken).
    """
    image, _ = _open_header(data)
    return upright_rgb(image)


def draft_image(data: bytes, least_size: tuple[int, int]) -> Image.Image:
    """`open_image`, but a JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves `least_size` (upright)."""
    image, image_format = _open_header(data)
    _check_pixels(image)
    if image_format == "jpeg":
        _skip_pixels(image, least_size[::-1] if _orientation(image) >= 5 else least_size)
    return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened, as `open_image` gives it.

    Raises InvalidSample with rule too_many_pixels or decode_failed.
    """
    _check_pixels(image)
    orientation = _orientation(image)
    return _upright(_decoded(image), orientation)


def reencode_image(
    data: bytes,
    short_edge: int,
    quality: int,
    scaled_decode: bool = False,
    original: tuple[int, int] | None = None,
) -> bytes:
    """The upright image in `data` as a JPEG whose short edge is `short_edge` pixels or, if it was smaller, unchanged.

    The aspect ratio is kept up to rounding (see `shrunk_size`): that of `original`, the upright size of the image that
    this is a smaller copy of, or its own. Metadata are dropped. Equal bytes give equal bytes under one release of
    Pillow and libjpeg. Raises InvalidSample as `open_image` does.

    Hamming with a gap of 1.5 costs 3.5 CPU ms for 1200 x 800 pixels, bicubic 8, and is as close to bicubic (39 dB at
    worst of 71 photos) as OpenCV's area filter does (38.5 dB). `scaled_decode` has libjpeg decode at a half, a quarter
    or an eighth where that is still large enough: the whole then costs 4.2 instead of 6.3 CPU ms, but of 19 real photos
    that it applied to half were below 35 dB against full decoding, the worst 28.5 dB, so it is off by default.
    """
    image, image_format = _open_header(data)
    _check_pixels(image)
    orientation = _orientation(image)
    size = _stored_size(image.size, orientation, short_edge, original)
    if scaled_decode and image_format == "jpeg":
        _skip_pixels(image, size)
        decoded = _decoded(image)
    else:
        decoded = _decoded(image)
        # Again: a GIF frame may be larger than its screen.
        size = _stored_size(decoded.size, orientation, short_edge, original)
    try:
        if decoded.size != size:
            decoded = decoded.resize(size, Image.Resampling.HAMMING, reducing_gap=1.5)
        decoded.info = {}  # Pillow would save a comment found there
        buffer = BytesIO()
        _upright(decoded, orientation).save(buffer, "JPEG", quality=quality)
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"re-encoding: {type(error).__name__}: {error}") from None
    return buffer.getvalue()


def _stored_size(
    size: tuple[int, int], orientation: int, short_edge: int, original: tuple[int, int] | None
) -> tuple[int, int]:
    """`shrunk_size` of an image that is not upright yet, or of the original that it is a copy of."""
    if original is None:
        return shrunk_size(*size, short_edge)
    width, height = shrunk_size(*original, short_edge)
    return (height, width) if orientation >= 5 else (width, height)


def shrunk_size(width: int, height: int, short_edge: int) -> tuple[int, int]:
    """Width and height in pixels, rounded, when the shorter is made `short_edge`; unchanged if that would enlarge."""
    if min(width, height) <= short_edge:
        return width, height
    scale = short_edge / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def probe(data: bytes) -> Header:
    """The header of an image; a file that is broken after its header passes.

    Raises InvalidSample as `open_image` does.
    """
    image, image_format = _open_header(data)
    _check_pixels(image)
    (width, height), orientation = image.size, _orientation(image)
    return Header(image_format, *((height, width) if orientation >= 5 else (width, height)), orientation)


def sniff_format(data: bytes) -> str:
    """The image format by its first bytes, "" if it is none of those allowed."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return ""


def _open_header(data: bytes) -> tuple[Image.Image, str]:
    if not data:
        raise InvalidSample("empty_body", "0 bytes")
    image_format = sniff_format(data)
    if not image_format:
        raise InvalidSample("not_an_image", f"starts with {data[:12]!r}; JPEG, PNG, WebP and GIF are read")
    try:
        # The format is pinned so that no other parser of Pillow ever sees untrusted bytes.
        image = Image.open(BytesIO(data), formats=(image_format.upper(),))
        if image_format == "png" and "exif" not in image.info and (exif := _late_png_exif(data)):
            image.info["exif"] = exif
    except Image.DecompressionBombError as error:
        raise InvalidSample("too_many_pixels", str(error)) from None
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"header: {type(error).__name__}: {error}") from None
    return image, image_format


def _decoded(image: Image.Image) -> Image.Image:
    """The opened `image` as RGB, decoded to its end, not yet upright; InvalidSample if it is broken or too large."""
    try:
        image.load()
        _check_pixels(image)  # a GIF frame may be larger than its screen
        return _as_rgb(image)
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None


def _skip_pixels(image: Image.Image, size: tuple[int, int]) -> None:
    """Have the JPEG decoder decode at the smallest scale that is enough for `size`."""
    try:
        image.draft(None, size)  # in its own mode
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"header: {type(error).__name__}: {error}") from None


def _upright(decoded: Image.Image, orientation: int) -> Image.Image:
    transpose = TRANSPOSE_OF_ORIENTATION.get(orientation)
    return decoded if transpose is None else decoded.transpose(transpose)


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width <= 0 or height <= 0:
        raise InvalidSample("decode_failed", f"size {width} x {height}")
    if width * height > MAX_DECODED_PIXELS:
        raise InvalidSample("too_many_pixels", f"{width} x {height}, at most {MAX_DECODED_PIXELS} are decoded")


def _orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation 1 to 8; 1 where the metadata is absent or broken, as viewers do."""
    try:
        # PngImageFile.getexif would decode the whole image first to look for a late chunk.
        value = Image.Image.getexif(image).get(ORIENTATION_TAG)
    except BROKEN_FILE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _late_png_exif(data: bytes) -> bytes:
    """The eXIf chunk of a PNG that puts it after the pixels, which is allowed."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return b"Exif\0\0" + data[position + 8 : position + 8 + length]
        if kind == b"IEND":
            break
        position += 12 + length
    return b""


def _as_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB: transparency composed on white, 16 bits reduced to the upper 8."""
    if image.mode.startswith("I"):
        # convert() would clip every value above 255 to white.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        canvas.alpha_composite(rgba)
        return canvas.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy: 0.5 ms for a megapixel
