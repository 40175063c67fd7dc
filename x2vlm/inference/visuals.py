"""Images and clips from wherever a person has them: a path, bytes, an opened image, a folder.

Whatever a file is, the answer is a Visual or an InvalidSample that names it; for folders a bad file is a `Skipped`.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


Source = str | os.PathLike[str] | bytes | Image.Image | Visual


def read_visual(source: Source, frames_per_clip: int = 3, frames_per_second: float = 1.0) -> Visual:
    """The image or clip in `source`; a clip is sampled at a fixed rate, then thinned out evenly, as in evaluation.

    MissingPackage for a clip where PyAV is not installed; else InvalidSample, naming the source, with rule unreadable,
    too_many_bytes, not_media, or one of
    `x2vlm.data.media.images.open_image` and `x2vlm.data.media.video.sample_clip`.
    """
    if isinstance(source, Visual):
        return source
    name = _name_of(source)
    try:
        if isinstance(source, Image.Image):
            return Visual(name, (upright_rgb(source),))
        data = source if isinstance(source, bytes) else _read_bytes(Path(source))
        return _decode(name, data, frames_per_clip, frames_per_second)
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


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InvalidSample("unreadable", "no such file; addresses are not fetched, download them first")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise InvalidSample("too_many_bytes", f"{size} bytes, at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidSample("unreadable", str(error)) from None


def _name_of(source: Source) -> str:
    match source:
        case Visual():
            return source.name
        case bytes():
            return f"{len(source)} bytes"
        case Image.Image():
            return str(getattr(source, "filename", "")) or "picture"
        case _:
            return os.fspath(source)
