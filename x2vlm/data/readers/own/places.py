"""Addresses in a user's table: URLs of the web, and paths of files on this machine."""

import os
import posixpath
import re
import urllib.parse
from pathlib import Path, PurePosixPath

from x2vlm.data.readers.source import Fault, Source
from x2vlm.samples import MediaKind

LOCAL_HOST = "http://local.invalid"  # stands for the folder that a card's `url_base` serves
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".ts", ".wmv", ".flv", ".3gp"]
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # one letter alone is a drive of Windows
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def is_local(text: str) -> bool:
    """Whether an address is a path (or a file: URL) rather than a URL of the web."""
    scheme = _SCHEME.match(text)
    return scheme[0].lower() == "file:" if scheme else not text.startswith("//")


def path_of(text: str) -> str:
    """The path that a local address means, with forward slashes."""
    if text[:5].lower() == "file:":
        return urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    return text.replace("\\", "/") if "/" not in text or _DRIVE.match(text) else text


def media_url(source: Source, table: Path, text: str) -> str | Fault:
    """The address of a row's media for the download stage, or why it has none.

    A path is relative to the folder that the card's `url_base` serves; one that begins with `..` to the folder of the
    table, as it could mean nothing else; an absolute path is one. All must lie below the served folder.
    """
    if not is_local(text):
        return "https:" + text if text.startswith("//") else text
    if not source.media_url:
        remedy = "add `url_base: {from: http://local.invalid, serve: FOLDER}` to the card"
        return "no_media_folder", f"{text!r} is a path, and the card serves no folder: {remedy}"
    path = path_of(text)
    if path.startswith("../"):
        path = posixpath.normpath(posixpath.join(str(table.resolve().parent), path))
    if os.path.isabs(path):
        path = posixpath.relpath(path, source.media_folder)
    path = posixpath.normpath(path)
    if path == ".." or path.startswith("../"):
        return "outside_media_folder", f"{text!r} is not below {source.media_folder}, which the card serves"
    return f"{source.media_url.rstrip('/')}/{urllib.parse.quote(path)}"


def kind_of(text: str, otherwise: MediaKind) -> MediaKind:
    """Image or video, by the suffix of an address's path."""
    path = path_of(text) if is_local(text) else text.partition("?")[0].partition("#")[0]
    suffix = PurePosixPath(path).suffix.lower()
    return "video" if suffix in VIDEO_SUFFIXES else otherwise
