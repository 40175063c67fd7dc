"""Decoding and measuring untrusted images.

Whatever the bytes are, the result is an image or an InvalidSample with a rule name; no other exception leaves this
file. What decoding would cost is judged by the bytes before anything is decoded (`budget.py`), so a decompression bomb
costs only its header.
"""

import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO

from PIL import AvifImagePlugin, Image

from x2vlm.data.media.budget import MAX_DECODED_PIXELS as MAX_DECODED_PIXELS  # of a clip's frames too
from x2vlm.data.media.budget import Decodable, check_pixels, decodable, png_of_pixels
from x2vlm.data.media.exif import HEADER, orientation_of
from x2vlm.data.media.formats import decoded_format
from x2vlm.data.media.jpeg_end import without_end_only
from x2vlm.data.media.pixels import Colour, as_rgb, correct_transparency, in_srgb
from x2vlm.errors import InvalidSample

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

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads are counted where images are decoded: by readers, by scores
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

    format: str  # one of x2vlm.data.media.formats.DECODED
    width: int
    height: int
    orientation: int  # EXIF (or XMP) orientation 1 to 8; 1 where that is absent or broken


@dataclass
class _Opened:
    """An image whose header was read: its bytes as Pillow got them, format and orientation."""

    image: Image.Image
    format: str
    data: bytes
    orientation: int
    draft_size: tuple[int, int] | None = field(default=None)  # stored width and height that are enough


def open_image(data: bytes, colour: Colour = "ignore") -> Image.Image:
    """The image in `data` as RGB, upright (EXIF orientation applied), transparency on white, first frame only.

    An embedded colour profile is ignored, as by the released recipe, or with "srgb" its colours are converted.

    Raises InvalidSample with rule empty_body, not_an_image, format_unsupported (an image of a format that is not
    decoded), too_many_pixels (more than 64 million, judged by the header), too_many_scans or decode_budget_exceeded
    (see `budget.py`), or decode_failed (truncated or broken).
    """
    opened = _open_header(data)
    return _upright(_decoded(opened, colour), opened.orientation)


def draft_image(data: bytes, least_size: tuple[int, int]) -> Image.Image:
    """`open_image`, but a JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves `least_size` (upright)."""
    opened = _open_header(data)
    if opened.format == "jpeg":
        opened.draft_size = least_size[::-1] if opened.orientation >= 5 else least_size
    return _upright(_decoded(opened), opened.orientation)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened, as `open_image` gives it.

    Raises InvalidSample with rule too_many_pixels or decode_failed.
    """
    check_pixels(*image.size)
    orientation = orientation_of(image, BROKEN_FILE_ERRORS)
    try:
        image.load()
        return _upright(as_rgb(image), orientation)
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None


def reencode_image(
    data: bytes,
    short_edge: int,
    quality: int,
    scaled_decode: bool = False,
    original: tuple[int, int] | None = None,
    colour: Colour = "ignore",
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
    opened = _open_header(data)
    size = _stored_size(opened.image.size, opened.orientation, short_edge, original)
    if scaled_decode and opened.format == "jpeg":
        opened.draft_size = size
        decoded = _decoded(opened, colour)
    else:
        decoded = _decoded(opened, colour)
        # Again: a GIF frame may be larger than its screen.
        size = _stored_size(decoded.size, opened.orientation, short_edge, original)
    try:
        if decoded.size != size:
            decoded = decoded.resize(size, Image.Resampling.HAMMING, reducing_gap=1.5)
        decoded.info = {}  # Pillow would save a comment found there
        buffer = BytesIO()
        _upright(decoded, opened.orientation).save(buffer, "JPEG", quality=quality)
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
    opened = _open_header(data)
    (width, height), orientation = opened.image.size, opened.orientation
    return Header(opened.format, *((height, width) if orientation >= 5 else (width, height)), orientation)


def _open_header(data: bytes) -> _Opened:
    image_format = decoded_format(data)
    judged = decodable(data, image_format)
    try:
        image = _pillow_image(judged.data, image_format)
    except BROKEN_FILE_ERRORS as error:
        if isinstance(error, Image.DecompressionBombError):
            raise InvalidSample("too_many_pixels", str(error)) from None
        if image_format != "png":
            raise InvalidSample("decode_failed", f"header: {type(error).__name__}: {error}") from None
        judged = png_of_pixels(data)  # texts and profiles beyond Pillow's limits must not cost a good image
        try:
            image = _pillow_image(judged.data, image_format)
        except BROKEN_FILE_ERRORS:
            raise InvalidSample("decode_failed", f"header: {type(error).__name__}: {error}") from None
    check_pixels(*image.size)
    orientation = judged.orientation or orientation_of(image, BROKEN_FILE_ERRORS)
    return _Opened(image, image_format, judged.data, orientation)


def _pillow_image(data: bytes, image_format: str) -> Image.Image:
    # The format is pinned so that no other parser of Pillow ever sees untrusted bytes.
    image = Image.open(BytesIO(data), formats=(image_format.upper(),))
    if image_format == "png":
        correct_transparency(image)
        if "exif" not in image.info and (exif := _late_png_exif(data)):
            image.info["exif"] = exif
    return image


def _decoded(opened: _Opened, colour: Colour = "ignore") -> Image.Image:
    """The opened image as RGB, decoded to its end, not yet upright; InvalidSample if it is broken or too large."""
    image = opened.image
    try:
        if opened.draft_size is not None:
            image.draft(None, opened.draft_size)  # in its own mode
        try:
            image.load()
        except BROKEN_FILE_ERRORS:
            image = _decoded_again(opened)
        check_pixels(*image.size)  # a GIF frame may be larger than its screen
        return as_rgb(in_srgb(image) if colour == "srgb" else image)
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None


def _decoded_again(opened: _Opened) -> Image.Image:
    """The pixels of an image that failed to decode but lacks none of them; else the error that is being handled.

    A JPEG without its end marker, or a PNG with texts behind its pixels that Pillow refuses.
    """
    judged: Decodable | None = None
    if opened.format == "png":
        judged = png_of_pixels(opened.data)
    elif opened.format == "jpeg" and (ended := without_end_only(opened.data, _pixels_of_jpeg)) is not None:
        judged = Decodable(ended)
    if judged is None or judged.data == opened.data:
        raise  # noqa: PLE0704 (called while an error is handled)
    image = _pillow_image(judged.data, opened.format)
    if opened.draft_size is not None:
        image.draft(None, opened.draft_size)
    image.load()
    return image


def _pixels_of_jpeg(data: bytes) -> Image.Image:
    image = _pillow_image(data, "jpeg")
    image.load()
    return image


def _upright(decoded: Image.Image, orientation: int) -> Image.Image:
    transpose = TRANSPOSE_OF_ORIENTATION.get(orientation)
    return decoded if transpose is None else decoded.transpose(transpose)


def _late_png_exif(data: bytes) -> bytes:
    """The eXIf chunk of a PNG that puts it after the pixels, which is allowed."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return HEADER + data[position + 8 : position + 8 + length]
        if kind == b"IEND":
            break
        position += 12 + length
    return b""
