"""Media of a task's examples: found below a folder or bucket or inside the annotation files, checked, and packed."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.project import project_path
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.errors import ConfigError, InvalidSample

MAX_FILE_BYTES = 2**30


class MediaRoom:
    """Media by name: those that the files of the task hold, and files below `root` (a folder or a bucket's URI)."""

    def __init__(self, root: str | None, inline: Mapping[str, bytes], where: str) -> None:
        self._inline = inline
        self.told = root or "no folder: none was given"
        self._fs, self._root = None, ""
        if root is not None:
            place = root if "://" in root else str(project_path(root))
            self._fs, self._root = fsspec.core.url_to_fs(place)
            if isinstance(self._fs, LocalFileSystem) and not Path(self._root).is_dir():
                raise ConfigError(f"{where}: media_root {place} is no folder; give the one that holds the images")

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not there. Of a bucket everything is listed once."""
        asked = [name for name in names if name not in self._inline]
        if self._fs is None:
            return asked
        if isinstance(self._fs, LocalFileSystem):
            return [name for name in asked if not (is_inside(name) and Path(self._root, name).is_file())]
        there = {str(path).removeprefix(self._root).lstrip("/") for path in self._fs.find(self._root)} if asked else {}
        return [name for name in asked if name not in there]

    def file(self, name: str, scratch: Path) -> Path:
        """The file of that name, itself or a copy in `scratch`. InvalidSample if it is too large or unreadable."""
        if name in self._inline:
            return _written(scratch, name, self._inline[name])
        assert self._fs is not None
        try:
            path = f"{self._root.rstrip('/')}/{name}"
            if (size := self._fs.size(path) or 0) > MAX_FILE_BYTES:
                raise InvalidSample("too_many_bytes", f"{size} bytes, at most {MAX_FILE_BYTES}")
            if isinstance(self._fs, LocalFileSystem):
                return Path(path)
            return _written(scratch, name, self._fs.cat_file(path))
        except OSError as error:
            raise InvalidSample("unreadable", str(error)) from None


@dataclass(frozen=True)
class Packed:
    """What became of each name: the sha256 under which it is in the pack, or why it is not."""

    sha256: dict[str, str] = field(default_factory=dict)
    broken: dict[str, InvalidSample] = field(default_factory=dict)


def pack_media(folder: Path, names: Iterable[str], media: MediaRoom, scratch: Path) -> Packed:
    """Write `media.tar` and `media.parquet` of all of `names` that can be decoded, as their bytes are."""
    from x2vlm.inference.visuals import read_visual

    packed, payloads = Packed(), dict[str, Payload]()
    for name in dict.fromkeys(names):
        try:
            path = media.file(name, scratch)
            data = path.read_bytes()
            visual = read_visual(data, frames_per_clip=1)  # evaluation has nothing to put in the place of a broken one
        except InvalidSample as error:
            packed.broken[name] = error
            continue
        except OSError as error:
            packed.broken[name] = InvalidSample("unreadable", str(error))
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        packed.sha256[name] = sha256
        suffix = PurePosixPath(name).suffix.lstrip(".").lower()
        known = suffix if suffix.isalnum() and suffix.isascii() and len(suffix) <= 5 else ""
        kind = known or ("video" if visual.is_clip else "image")
        payloads[sha256] = Payload(sha256, kind, path, payload_sha256=sha256)
    write_media_pack(folder, (payloads[sha256] for sha256 in sorted(payloads)))
    return packed


def is_inside(name: str) -> bool:
    """Whether a name stays below the folder it is looked for in."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _written(scratch: Path, name: str, data: bytes) -> Path:
    path = scratch / hashlib.sha256(name.encode()).hexdigest()
    path.write_bytes(data)
    return path
