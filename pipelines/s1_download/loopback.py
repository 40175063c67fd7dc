"""A web server for a folder, on this machine only: how a corpus that lies on disk is fetched like any other."""

import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from x2vlm.errors import SourceUnavailable

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

    GET only, no listings, nothing outside the folder whatever links or dots say. SourceUnavailable if there is no such
    folder.
    """
    if not folder.is_dir():
        raise SourceUnavailable(f"{folder}: no such folder, but the card serves its media from there; check `serve`")
    server = _Server(("127.0.0.1", 0), _Handler)
    server.folder = folder.resolve()
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
    folder: Path


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    server_version = "x2vlm"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            path = self._file()
            payload = path.read_bytes()
        except OSError:  # absent, unreadable, a name too long to be one
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream"))
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _file(self) -> Path:
        """The regular file that the request means; FileNotFoundError if there is none inside the folder."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        relative = name.lstrip("/")
        if "\0" in name or name.endswith("/") or ".." in name.split("/"):
            raise FileNotFoundError(name)
        path = (self.server.folder / relative).resolve()
        if not path.is_relative_to(self.server.folder) or not path.is_file():
            raise FileNotFoundError(name)
        return path

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the ledger says what was fetched."""
