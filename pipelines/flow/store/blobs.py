"""Small files at paths relative to a root, with the two writes everything rests on: replace whole, create if absent."""

import copy
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec

from pipelines.project import project_path
from x2vlm.errors import ConfigError
from x2vlm.stores.objects import Objects

PROJECT_SCHEME = "project:"


class Blobs:
    """Bytes by relative path below `uri`. Local folders use the operating system directly, all else fsspec.

    Calls to a remote store are tried again while its transport fails (`x2vlm.stores.objects` says how long, and how
    many requests each makes); then they raise StoreUnavailable.
    """

    def __init__(self, uri: str, storage_options: dict[str, Any]) -> None:
        self.local_root = local_path_of(uri)
        self.storage_options = storage_options
        if self.local_root is not None:
            self.uri = str(self.local_root)
            return
        self.uri = uri.rstrip("/")
        self.protocol = self.uri.split("://", 1)[0]
        # Listings must show what other machines wrote a moment ago.
        options = {"use_listings_cache": False, **storage_options}
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.uri, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"store {uri}: {error}") from error
        self.root = self.root.rstrip("/")
        self.objects = Objects(self.fs)

    def within(self, seconds: float) -> "Blobs":
        """The same files, for whoever would rather be told after `seconds` that the store fails than wait for it."""
        if self.local_root is not None:
            return self
        hasty = copy.copy(self)
        hasty.objects = Objects(self.fs, seconds)
        return hasty

    def path_of(self, relative: str) -> str:
        """A file's path for `fs`, in a remote store."""
        return f"{self.root}/{relative}"

    def uri_of(self, relative: str) -> str:
        return f"{self.uri}/{relative}"

    def exists(self, relative: str) -> bool:
        if self.local_root is not None:
            return (self.local_root / relative).is_file()
        return self.objects.exists(self.path_of(relative))

    def read(self, relative: str) -> bytes | None:
        """The bytes, or None if there is no such file."""
        try:
            if self.local_root is not None:
                return (self.local_root / relative).read_bytes()
            return self.objects.read(self.path_of(relative))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_range(self, relative: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; empty where the file is shorter or not there."""
        try:
            if self.local_root is not None:
                with (self.local_root / relative).open("rb") as stream:
                    stream.seek(start)
                    return stream.read(length)
            return self.objects.read_range(self.path_of(relative), start, length)
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def write(self, relative: str, data: bytes) -> None:
        """Replace the file whole: readers see the old bytes or the new ones."""
        if self.local_root is None:
            self.objects.write(self.path_of(relative), data)
            return
        path = self.local_root / relative
        temporary = _write_beside(path, data)
        os.replace(temporary, path)
        sync_folder(path.parent)

    def create(self, relative: str, data: bytes) -> bool:
        """Write the file unless it exists; False, leaving it alone, if it does."""
        if self.local_root is not None:
            return _create_local(self.local_root / relative, data)
        return self.objects.create(self.path_of(relative), data)

    def upload(self, local: Path, relative: str) -> None:
        """Copy a file of this machine into a remote store."""
        self.objects.upload(local, self.path_of(relative))

    def delete(self, relative: str) -> None:
        """Remove a file if it is there."""
        try:
            if self.local_root is not None:
                (self.local_root / relative).unlink()
            else:
                self.objects.delete(self.path_of(relative))
        except FileNotFoundError:
            return

    def find(self, folder: str) -> list[str]:
        """Relative paths of all files below `folder`, sorted; empty if there is no such folder."""
        if self.local_root is not None:
            root = self.local_root / folder
            found = (Path(at) / name for at, _, names in os.walk(root) for name in names if not name.startswith("."))
            return sorted(path.relative_to(self.local_root).as_posix() for path in found)
        paths = self.objects.find(self.path_of(folder))
        return sorted(path.lstrip("/").removeprefix(self.root.lstrip("/") + "/") for path in paths)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below `folder`, sorted."""
        if self.local_root is not None:
            root = self.local_root / folder
            return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        return self.objects.folders(self.path_of(folder))

    def age_seconds(self, relative: str) -> float:
        """Seconds since `relative` was written, by the store's own clock; infinite if it is not there.

        Both times are modification times that the store assigned, so a wrong clock on any host changes nothing. Below 0
        where that clock was set back since.
        """
        probe = f"leases/.clock-{uuid.uuid4().hex}"
        self.write(probe, b"")
        try:
            return self._modified(probe) - self._modified(relative)
        except FileNotFoundError:
            return float("inf")
        finally:
            self.delete(probe)

    def version(self, relative: str) -> tuple[float, bytes] | None:
        """What changes whenever a small file is written: its time and its bytes; None if it is not there."""
        data = self.read(relative)
        try:
            return None if data is None else (self._modified(relative), data)
        except FileNotFoundError:
            return None

    def _modified(self, relative: str) -> float:
        if self.local_root is not None:
            return (self.local_root / relative).stat().st_mtime
        return self.objects.modified(self.path_of(relative))


def local_path_of(uri: str) -> Path | None:
    """The absolute local path a plain path, file:// or project: URI names; None for remote URIs.

    `project:datasets/sample/coco.yaml` is a file of this repository, wherever it lies: a submitted job unpacks it into
    a folder of its own on every machine, and the record of what was read must outlive that folder. What the package
    does not hold is looked for in `lasting_root`.
    """
    if "::" in uri and "://" in uri:
        raise ConfigError(f"{uri}: chained file systems are not supported")
    if uri.startswith(PROJECT_SCHEME):
        return project_path(uri.removeprefix(PROJECT_SCHEME))
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path)).absolute()
    if "://" in uri:
        return None
    return Path(uri).expanduser().absolute()


def sync_folder(path: Path) -> None:
    """Make a folder's entries survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(path: Path, data: bytes) -> Path:
    """A new file with `data` in the folder of `path`, safely on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _create_local(path: Path, data: bytes) -> bool:
    if path.exists():
        return False
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)  # unlike rename, fails if the name is taken
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True
