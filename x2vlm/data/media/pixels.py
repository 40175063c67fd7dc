"""From the modes that Pillow decodes to, to RGB in 8 bits.

Pixels that are converted in several steps are taken in bands of rows, so that an image of 64 million pixels needs the
memory of what was decoded and of the result (0.5 GB at most), not of every step between.
"""

import io
import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Colour = Literal["ignore", "srgb"]

BAND_PIXELS = 4_000_000
MAX_PROFILE_BYTES = 4 << 20
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
PROFILE_SPACES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}  # of the profile: modes it describes

log = logging.getLogger(__name__)


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as RGB: transparency composed on white, 16 bits reduced to the upper 8."""
    if image.mode.startswith("I"):
        return _by_bands(image, _upper_eight_bits)  # convert() would clip every value above 255 to white
    if image.mode in TRANSPARENT or "transparency" in image.info:
        return _by_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy: 0.5 ms for a megapixel


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if image.width * image.height <= BAND_PIXELS:
        return convert(image)
    whole = Image.new("RGB", image.size)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(convert(band), (0, top))
    return whole


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")


def _upper_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = (np.clip(values, 0, 0xFFFF) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def correct_transparency(image: Image.Image) -> None:
    """Make a PNG's transparent colour one of its values as Pillow decodes them, before they are decoded.

    Pillow keeps the value of the file, which counts from 0 to 3 or 15 for grey of 2 or 4 bits, and in 16 bits for RGB.
    """
    colour = image.info.get("transparency")
    tiles: list[Any] = getattr(image, "tile", [])
    raw_mode = tiles[0].args if len(tiles) == 1 else ""
    if isinstance(colour, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = colour * (85 if raw_mode == "L;2" else 17) & 255
    elif isinstance(colour, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def in_srgb(image: Image.Image) -> Image.Image:
    """A decoded image with its colours converted from its embedded ICC profile to sRGB, relative colorimetric.

    The image itself if it has no profile, or one that is broken, too large or for other channels than its own.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= MAX_PROFILE_BYTES:
        return image
    if image.mode in ("P", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode not in PROFILE_SPACES.get(profile[16:20].decode("latin-1"), ()):
        return image
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGBA" if image.mode == "RGBA" else "RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.info("colour_profile=ignored reason=%r", str(error))
        return image
    return converted if converted is not None else image
