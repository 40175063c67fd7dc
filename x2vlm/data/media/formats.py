"""Image formats by the first bytes of a file: those that are decoded, and those that are recognised and dropped.

A format is decoded if browsers show it, and its decoder in Pillow is either small or the one that browsers use, and its
cost can be told from the header (`budget.py`). TIFF and JPEG 2000 are not: no current browser but Safari shows either,
and their decoders in Pillow (libtiff, OpenJPEG) take almost any layout of strips, tiles and codecs, so that neither
CPU nor memory can be bounded from the header. Pillow's plugins for all other formats never see untrusted bytes.
"""

import functools
import re
from collections.abc import Mapping

from x2vlm.data.media.iso import still_format
from x2vlm.errors import InvalidSample

UNSUPPORTED = "format_unsupported"
NAMES = {"webp": "WebP"}  # for people; the others in capitals

# Format -> what of it is decoded. The names are Pillow's in lower case, and those of stored media.
DECODED: Mapping[str, str] = {
    "jpeg": "baseline, progressive and arithmetic, 8 bits; grey, YCbCr, RGB and CMYK (Adobe's inverted CMYK too)",
    "png": "all colour types and depths, interlaced or not; of an APNG the default image",
    "webp": "lossy, lossless and alpha; of an animation the first frame",
    "gif": "the first frame",
    "avif": "still images with alpha, grids, irot and imir; of an animation its still image, if it has one",
    "bmp": "uncompressed (no run-length coding)",
}

# Recognised by their first bytes and dropped as `format_unsupported`. HEIC and others in ISO files: `iso.py`.
_SIGNATURES: tuple[tuple[str, bytes], ...] = (
    ("jpeg", rb"\xff\xd8\xff"),
    ("png", rb"\x89PNG\r\n\x1a\n"),
    ("gif", rb"GIF8[79]a"),
    ("webp", rb"RIFF....WEBP"),
    # the size of one of the known headers as well: a text may begin with "BM"
    ("bmp", rb"BM.{12}(?:\x0c|[\x28\x34\x38\x40\x6c\x7c])\0\0\0"),
    ("tiff", rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),  # DNG, CR2, NEF and ARW too; "+" is BigTIFF
    ("jp2", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("jxl", rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"),
    ("jxr", rb"II\xbc"),
    ("ico", rb"\0\0[\x01\x02]\0[^\0]\0.{3}\0.{4}(?!\0\0\0\0)"),  # CUR too
    ("icns", rb"icns"),
    ("psd", rb"8BPS\0[\x01\x02]"),
    ("xcf", rb"gimp xcf "),
    ("dds", rb"DDS \x7c\0\0\0"),
    ("exr", rb"v/1\x01"),
    ("hdr", rb"#\?RADIANCE|#\?RGBE"),
    ("qoi", rb"qoif"),
    ("flif", rb"FLIF[1-9a-z]"),
    ("bpg", rb"BPG\xfb"),
    ("pnm", rb"P[1-6][ \t\r\n]+(?:#|\d)|P7\nWIDTH|P[Ff]\n"),
    ("djvu", rb"AT&TFORM....DJV[UM]"),
    ("jng", rb"\x8bJNG\r\n\x1a\n"),
    ("mng", rb"\x8aMNG\r\n\x1a\n"),
    ("fits", rb"SIMPLE  =  "),
    ("wmf", rb"\xd7\xcd\xc6\x9a"),
    ("emf", rb"\x01\0\0\0.{36} EMF"),
    ("eps", rb"%!PS-Adobe|\xc5\xd0\xd3\xc6"),
)
_SIGNATURE = re.compile(b"|".join(b"(?P<%s>%s)" % (name.encode(), form) for name, form in _SIGNATURES), re.DOTALL)
_SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml|<!--|<!DOCTYPE\s+svg|<svg|<svg:svg)", re.IGNORECASE)
_SVG_ROOT = re.compile(rb"<(?:svg:)?svg[\s>]", re.IGNORECASE)
_SVG_BYTES = 4096  # in which the root element has to begin
RECOGNISED = (*(name for name, _ in _SIGNATURES if name not in DECODED), "heic", "cr3", "svg")


def sniff_image(data: bytes) -> str:
    """The image format by the first bytes: one of DECODED or RECOGNISED, "" for anything else, clips included."""
    if match := _SIGNATURE.match(data):
        return str(match.lastgroup)
    if found := still_format(data):
        return found
    if _SVG.match(data[:_SVG_BYTES]):
        text = data[:_SVG_BYTES]
        if _SVG_ROOT.search(text) and not re.search(rb"<(?:html|body)[\s>]", text, re.IGNORECASE):
            return "svg"
    return ""


def sniff_format(data: bytes) -> str:
    """The image format by the first bytes, "" if it is none of those decoded."""
    found = sniff_image(data)
    return found if found in DECODED else ""


def decoded_format(data: bytes) -> str:
    """The format of an image that is to be decoded.

    Raises InvalidSample with rule empty_body, format_unsupported (an image, but none that is decoded) or not_an_image.
    """
    if not data:
        raise InvalidSample("empty_body", "0 bytes")
    found = sniff_image(data)
    if not found:
        raise InvalidSample("not_an_image", f"starts with {data[:12]!r}; {readable_formats()} are read")
    if found not in DECODED:
        raise InvalidSample(UNSUPPORTED, f"an image in {found.upper()}; {readable_formats()} are read: convert it")
    if found == "avif" and not _has_avif():
        raise InvalidSample(
            UNSUPPORTED, "an image in AVIF, which this build of Pillow does not read: pip install pillow"
        )
    return found


def readable_formats() -> str:
    """The decoded formats, for people: "JPEG, PNG, ... and BMP"."""
    *most, last = (NAMES.get(name, name.upper()) for name in DECODED)
    return f"{', '.join(most)} and {last}"


@functools.cache
def _has_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


def format_table() -> tuple[str, str]:
    """For docs/data.md: the rows of decoded formats, and the names of those that are only recognised."""
    rows = [f"  | {NAMES.get(name, name.upper())} | {what} |" for name, what in DECODED.items()]
    return "\n".join(rows), ", ".join(name.upper() for name in RECOGNISED)
