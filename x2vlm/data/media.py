"""Decoding and measuring pictures that nobody vouches for.

Whatever the bytes are, the answer is a picture or an InvalidSample with a rule name; no other exception leaves this
file. Sizes are read from the header and checked before anything is decoded, so a bomb costs its header.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from x2vlm.errors import InvalidSample

REJECT_PIXELS = 178_956_970  # Pillow's own error limit: twice its MAX_IMAGE_PIXELS
MAX_DECODED_PIXELS = 64_000_000  # 192 MB as RGB

# What Pillow's parsers and decoders were seen to raise on broken files (85 of them in the tests), beside OSError.
# DecompressionBombError derives from none of the others; MemoryError is how a lying header meets an address limit.
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


def open_image(data: bytes) -> Image.Image:
    """The picture in `data` as RGB, upright (EXIF orientation applied), transparency on white, first frame only.

    Raises InvalidSample with rule empty_body, not_an_image (not JPEG, PNG, WebP or GIF), too_many_pixels (more than
    64 million, judged by the header) or decode_failed (truncated or broken).
    """
    image, _ = _open_header(data)
    _check_pixels(image)
    orientation = _orientation(image)
    try:
        image.load()
        _check_pixels(image)  # a GIF frame may be larger than its screen
        picture = _as_rgb(image)
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None
    transpose = TRANSPOSE_OF_ORIENTATION.get(orientation)
    return picture if transpose is None else picture.transpose(transpose)


def probe_image(data: bytes) -> tuple[str, int, int]:
    """Format ("jpeg", "png", "webp" or "gif"), width and height in upright pixels, from the header alone.

    Raises InvalidSample as `open_image` does; a file that is broken behind its header passes.
    """
    image, image_format = _open_header(data)
    _check_pixels(image)
    width, height = image.size
    return (image_format, height, width) if _orientation(image) >= 5 else (image_format, width, height)


def probe_orientation(data: bytes) -> int:
    """EXIF (or XMP) orientation 1 to 8 of a picture, from its metadata alone; 1 where that is absent or broken.

    Raises InvalidSample as `open_image` does, where even the header is no good.
    """
    image, _ = _open_header(data)
    return _orientation(image)


def sniff_format(data: bytes) -> str:
    """The picture format that the first bytes announce, "" if none of those allowed."""
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
        # The format is pinned so that no other parser of Pillow ever sees foreign bytes.
        image = Image.open(BytesIO(data), formats=(image_format.upper(),))
        if image_format == "png" and "exif" not in image.info and (exif := _late_png_exif(data)):
            image.info["exif"] = exif
    except Image.DecompressionBombError as error:
        raise InvalidSample("too_many_pixels", str(error)) from None
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"header: {type(error).__name__}: {error}") from None
    return image, image_format


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width <= 0 or height <= 0:
        raise InvalidSample("decode_failed", f"size {width} x {height}")
    if width * height > MAX_DECODED_PIXELS:
        raise InvalidSample("too_many_pixels", f"{width} x {height}, at most {MAX_DECODED_PIXELS} are decoded")


def _orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation 1 to 8; 1 where the metadata is absent or broken, as viewers do."""
    try:
        # PngImageFile.getexif would decode the whole picture first to look for a late chunk.
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
    return image.convert("RGB")
