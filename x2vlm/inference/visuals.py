"""Images and clips from wherever a person has them: a path, bytes, an open file, an opened image, an array, a folder.

Whatever a file is, the answer is a Visual or an InvalidSample that names it; for folders a bad file is a `Skipped`.
A NumPy array is an image as OpenCV, imageio and Pillow lay it out, (H, W, channels), a torch tensor one as torchvision
does, (channels, H, W); both with 1, 3 (RGB) or 4 (RGBA) channels or without that dimension (grey), as bytes from 0 to
255 or as floating-point numbers from 0 to 1. OpenCV's order BGR cannot be told from RGB: convert it first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.media.formats import readable_formats, sniff_image
from x2vlm.data.media.images import open_image, upright_rgb
from x2vlm.data.media.video import sample_clip, sniff_container
from x2vlm.errors import InvalidSample, SourceUnavailable
from x2vlm.extras import needs

MAX_FILE_BYTES = 2**30  # a clip is read into memory; one of ten minutes in 4K is about half of this


@dataclass(frozen=True)
class Visual:
    """An image (one frame) or the chosen frames of a clip: RGB, upright, in the size of the original."""

    name: str
    frames: tuple[Image.Image, ...]
    is_clip: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the oriented original in pixels."""
        return self.frames[0].size


@dataclass(frozen=True)
class Skipped:
    """A file that is neither image nor clip, or is broken: its name, the rule, and what was seen."""

    name: str
    rule: str
    message: str


if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = Union[  # "Tensor" in quotes: torch need not be imported
    str, os.PathLike[str], bytes, bytearray, memoryview, BinaryIO, Image.Image, NDArray[Any], "Tensor", Visual
]


def is_source(value: object) -> TypeGuard[Source]:
    """Whether `value` is of a type that `read_visual` takes."""
    known = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Visual)
    return isinstance(value, known) or _is_tensor(value) or callable(getattr(value, "read", None))


def read_visual(source: Source, frames_per_clip: int = 3, frames_per_second: float = 1.0) -> Visual:
    """The image or clip in `source`; a clip is sampled at a fixed rate, then thinned out evenly, as in evaluation.

    MissingPackage for a clip where PyAV is not installed; else InvalidSample, naming the source, with rule unreadable,
    too_many_bytes, not_media, not_a_source, array_shape, array_values, or one of
    `x2vlm.data.media.images.open_image` and `x2vlm.data.media.video.sample_clip`.
    """
    if isinstance(source, Visual):
        return source
    name = _name_of(source)
    try:
        if not is_source(source):
            raise InvalidSample("not_a_source", "give a path, bytes, an open file, a PIL image, an array or a tensor")
        if isinstance(source, Image.Image):
            return Visual(name, (upright_rgb(source),))
        if isinstance(source, np.ndarray) or _is_tensor(source):
            return Visual(name, (upright_rgb(_image_of_array(source)),))
        return _decode(name, _read_bytes(source), frames_per_clip, frames_per_second)
    except InvalidSample as error:
        raise InvalidSample(error.rule, f"{name}: {error.message}") from None


def read_visuals(
    sources: Iterable[Source], frames_per_clip: int = 3, frames_per_second: float = 1.0
) -> Iterator[Visual | Skipped]:
    """Every source in turn, one in memory at a time; one that cannot be read is a Skipped."""
    for source in sources:
        try:
            yield read_visual(source, frames_per_clip, frames_per_second)
        except InvalidSample as error:
            yield Skipped(_name_of(source), error.rule, error.message)


def list_files(folder: Path) -> list[Path]:
    """Every file below `folder` in the order of its path; hidden ones (a leading dot) are left out.

    SourceUnavailable if there is no such folder.
    """
    if not folder.is_dir():
        raise SourceUnavailable(f"{folder}: no such folder; give one with images or clips")
    found = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _decode(name: str, data: bytes, frames_per_clip: int, frames_per_second: float) -> Visual:
    if not data:
        raise InvalidSample("empty_body", "0 bytes")
    if sniff_image(data):  # of a format that is not decoded: format_unsupported
        return Visual(name, (open_image(data),))
    if sniff_container(data):
        with needs(f"the clip {name}"):
            clip = sample_clip(data, frames_per_second, choose=lambda count: choose_frames(count, frames_per_clip))
        return Visual(name, clip.frames, is_clip=True)
    raise InvalidSample("not_media", f"starts with {data[:12]!r}; {readable_formats()} and video files are read")


def _read_bytes(source: Any) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    try:
        if not isinstance(source, str | os.PathLike):
            return _read_file(source)
        path = Path(source)
        if not path.is_file():
            raise InvalidSample("unreadable", "no such file; addresses are not fetched, download them first")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise InvalidSample("too_many_bytes", f"{size} bytes, at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, a closed file
        raise InvalidSample("unreadable", str(error)) from None


def _read_file(file: BinaryIO) -> bytes:
    """What is left of an open file."""
    data = file.read(MAX_FILE_BYTES + 1)
    if not isinstance(data, bytes):
        raise InvalidSample("unreadable", "the file is open as text; open it in binary mode ('rb')")
    if len(data) > MAX_FILE_BYTES:
        raise InvalidSample("too_many_bytes", f"more than {MAX_FILE_BYTES} bytes")
    return data


def _is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _image_of_array(source: Any) -> Image.Image:
    """The image in an array (H, W[, C]) or a tensor ([C,] H, W)."""
    is_array = isinstance(source, np.ndarray)
    array = source if is_array else source.detach().cpu()
    if not is_array:
        array = (array.float() if array.is_floating_point() else array).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        wanted = "(H, W), (H, W, 3) or (H, W, 4)" if is_array else "(H, W), (3, H, W) or (4, H, W)"
        raise InvalidSample("array_shape", f"an image is {wanted}, the shape here is {tuple(source.shape)}")
    if np.issubdtype(array.dtype, np.floating):
        lowest, highest = float(array.min()), float(array.max())
        if not (lowest >= 0 and highest <= 1):  # so written, NaN is refused too
            raise InvalidSample(
                "array_values",
                f"from {lowest:.4g} to {highest:.4g}; floating-point values are from 0 to 1, before normalisation",
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise InvalidSample("array_values", f"of type {array.dtype}; give uint8, or floating-point numbers from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array))


def _name_of(source: object) -> str:
    match source:
        case Visual():
            return source.name
        case bytes() | bytearray() | memoryview():
            return f"{len(source)} bytes"
        case Image.Image():
            return str(getattr(source, "filename", "")) or "picture"
        case str() | os.PathLike():
            return os.fspath(source)
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return f"{type(source).__name__} of shape {tuple(getattr(source, 'shape', ()))}"
    return str(getattr(source, "name", "")) or type(source).__name__
