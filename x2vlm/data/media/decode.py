"""Stored images as bytes (H, W, 3) in a tensor: what `open_image` sees, faster where that is safe.

torchvision decodes into the tensor, with no copy through Pillow's four-byte pixels and no parsing of metadata: 0.40
instead of 0.63 CPU ms for 256 pixels on the short edge. It only gets JPEGs whose header says that nothing but decoding
is to be done, which is what our stages store. Both libraries carry libjpeg-turbo and gave equal bytes for all of 730
JPEGs of every usual kind; whatever torchvision refuses is Pillow's to judge. So rules and pixels are the same.
"""

import functools
import importlib.machinery
import importlib.util
import logging
import struct
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from x2vlm.data.media.budget import MAX_SEGMENTS, check_pixels, check_scans
from x2vlm.data.media.images import draft_image, open_image
from x2vlm.errors import InvalidSample

log = logging.getLogger(__name__)

RGB = 3  # of torchvision.io.ImageReadMode
RGB_CHANNELS = 3
BASELINE, PROGRESSIVE, START_OF_SCAN = 0xC0, 0xC2, 0xDA
# Tables, restart interval, JFIF's own segment and comments say nothing about how the image is to be shown. EXIF and
# XMP (0xE1) may turn it, an ICC profile (0xE2) is ignored by both, Adobe's segment (0xEE) may change its colours.
HARMLESS = frozenset((0xC4, 0xDB, 0xDD, 0xE0, 0xE2, 0xFE))


def decode_image(data: bytes, least_size: tuple[int, int] | None = None) -> Tensor:
    """The image as bytes (H, W, 3): RGB, upright, transparency on white, first frame only.

    With `least_size` (width, height) a JPEG may come at a half, a quarter or an eighth of its size, never below that.
    Raises InvalidSample as `open_image` does.
    """
    if least_size is not None:
        return torch.from_numpy(np.array(draft_image(data, least_size)))
    if is_plain_jpeg(data) and (decode_jpeg := _torchvision_decoder()):
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), RGB, False).permute(1, 2, 0)
        except RuntimeError:
            pass  # broken; Pillow names the rule, or copes
    return torch.from_numpy(np.array(open_image(data)))


@functools.cache
def _torchvision_decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """The operator `image::decode_jpeg` that torchvision registers with torch; None (Pillow then) where there is none.

    Its extension module is found by Python's import system, as torchvision finds it itself, and loaded without
    torchvision: importing that takes every reader process 2.3 CPU seconds more (most of it for torch._dynamo), and
    0.005 this way. Should the module ever have another name, torchvision is imported and registers the operator.
    """
    package = importlib.util.find_spec("torchvision")
    if package is not None and not _has_operator():
        module = importlib.machinery.PathFinder.find_spec("image", package.submodule_search_locations)
        try:
            if module is not None and module.origin is not None:
                torch.ops.load_library(module.origin)  # type: ignore[no-untyped-call]
        except OSError as error:
            log.info("jpeg_decoder extension=%s reason=%r", module, str(error))
        if not _has_operator():
            importlib.import_module("torchvision.io")
    if not _has_operator():
        log.warning("jpeg_decoder=pillow torchvision=%s: the same pixels, a quarter slower", package is not None)
        return None
    decoder: Callable[[Tensor, int, bool], Tensor] = torch.ops.image.decode_jpeg
    return decoder


def _has_operator() -> bool:
    return hasattr(torch.ops.image, "decode_jpeg")


def is_plain_jpeg(data: bytes) -> bool:
    """True for an 8-bit JPEG of three channels, not too large, whose header leaves nothing to do but to decode it."""
    if data[:3] != b"\xff\xd8\xff":
        return False
    position, frame = 2, (0, 0, 0, 0)
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data):
            return False
        marker_start, marker, length = struct.unpack_from(">BBH", data, position)
        if marker_start != 0xFF:
            return False
        if marker == START_OF_SCAN:
            return frame[3] == RGB_CHANNELS and _is_within_budget(data, position, frame)
        if marker in (BASELINE, PROGRESSIVE) and position + 10 <= len(data):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            frame = marker, width, height, channels if bits == 8 else 0
        elif marker not in HARMLESS:
            return False
        position += 2 + length
    return False


def _is_within_budget(data: bytes, first_scan: int, frame: tuple[int, int, int, int]) -> bool:
    try:
        check_pixels(frame[1], frame[2])
        check_scans(data, first_scan, *frame)
    except InvalidSample:
        return False  # Pillow's path names the rule
    return True
