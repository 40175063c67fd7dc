"""A web server for a folder or bucket, on this machine only: local media are fetched through it like any other."""

import errno
import http.server
import logging
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from x2vlm.errors import SourceUnavailable

log = logging.getLogger(__name__)

CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".html": "text/html; charset=utf-8",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
}


@contextmanager
def serve_folder(folder: Path) -> Iterator[tuple[str, int]]:
    """The (address, port) at which the files below `folder` can be fetched until the block ends.

    GET only, no listings, nothing outside the folder despite links or dots. SourceUnavailable if there is no such
    folder.
    """
    if not folder.is_dir():
        raise SourceUnavailable(f"{folder}: no such folder, but the card serves its media from there; check `serve`")
    folder = folder.resolve()

    def read(relative: str) -> bytes:
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise FileNotFoundError(relative)
        return path.read_bytes()

    with _serve(read) as endpoint:
        yield endpoint


@contextmanager
def serve_bucket(uri: str) -> Iterator[tuple[str, int]]:
    """As `serve_folder`, for the objects below an fsspec URI. Credentials are those of this process's environment.

    A missing object gives 404, a store that cannot be read 503, which a later round retries. SourceUnavailable if the
    URI's protocol is not installed.
    """
    try:
        system, root = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise SourceUnavailable(f"{uri}: {error}; check `serve` or `media_root`") from None

    with _serve(lambda relative: bytes(system.cat_file(f"{str(root).rstrip('/')}/{relative}"))) as endpoint:
        yield endpoint


def serve(root: str) -> AbstractContextManager[tuple[str, int]]:
    """The (address, port) at which a folder's or a bucket's files can be fetched until the block ends."""
    return serve_bucket(root) if "://" in root else serve_folder(Path(root))


@contextmanager
def _serve(read: Callable[[str], bytes]) -> Iterator[tuple[str, int]]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.read = read
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield "127.0.0.1", server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    read: Callable[[str], bytes]  # by path below the root; FileNotFoundError if there is no such file


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    server_version = "x2vlm"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            path = self._path()
            payload = self.server.read(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            self.send_error(404)
            return
        except Exception as error:  # each store's library has errors of its own, not all of them OSError
            is_long_name = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
            if not is_long_name:  # the ledger has the 503 alone
                log.warning("event=local_media_not_read path=%s error=%r", self.path, str(error)[:300])
            self.send_error(404 if is_long_name else 503)
            return
        self.send_response(200)
        self.send_header(
            "Content-Type", CONTENT_TYPES.get(PurePosixPath(path).suffix.lower(), "application/octet-stream")
        )
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _path(self) -> str:
        """The requested path; FileNotFoundError if it could lead outside the root."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if "\0" in name or name.endswith("/") or ".." in name.split("/"):
            raise FileNotFoundError(name)
        return name.lstrip("/")

    def log_message(self, format: str, *args: Any) -> None:
        """No log: the ledger records fetches."""
