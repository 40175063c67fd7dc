"""Many upstream files below one folder or bucket prefix as one input, listed anew by every plan.

Each file has an identity: the sha256 of its content where all of them together are local and small (`HASHED_BYTES`),
else a hash of its size and of its time of change or entity tag, so that terabytes are not read to make a plan. A stage
that reads such files must put hashes of what it read into what it writes: then a file that was only touched is read
again, gives the same rows, and nothing below is due.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from braceexpand import braceexpand

from pipelines.flow.fingerprint import sha256_of, sha256_of_file
from pipelines.flow.stage import Input, InputFile, InputPart, SourceFile
from pipelines.flow.store.blobs import local_path_of
from x2vlm.errors import SourceUnavailable
from x2vlm.stores.objects import Objects

HASHED_BYTES = 256 << 20  # of all files of a tree together
MARK = "/./"  # in a recorded URI: what follows is what was looked for below the folder
MAX_BRACES = 1_000_000


@dataclass(frozen=True)
class _Listed:
    name: str
    uri: str
    bytes: int
    stamp: str


def tree_uri(source: SourceFile) -> str:
    """How a tree is recorded: the folder's URI and its patterns, each behind MARK."""
    return MARK.join([source.uri.rstrip("/"), *source.patterns])


def tree_of(uri: str, card: str) -> SourceFile | None:
    """The tree that `tree_uri` recorded, None for the URI of a single file."""
    folder, *patterns = uri.split(MARK)
    return SourceFile(folder, card, patterns=tuple(patterns)) if patterns else None


def tree_input(source: SourceFile, digest: Callable[[SourceFile], str]) -> Input:
    """The files that match the tree's patterns now, by name below its folder: one part. `digest` hashes a local file.

    SourceUnavailable names card, folder and remedy where there is no such folder or no file matches.
    """
    listed = _listing(source)
    is_local = local_path_of(source.uri) is not None
    is_hashed = is_local and sum(file.bytes for file in listed) <= HASHED_BYTES
    files = tuple(
        InputFile(
            file.name, file.bytes, digest(SourceFile(file.uri, source.card)) if is_hashed else _stamped(file), file.uri
        )
        for file in listed
    )
    root = sha256_of([[plain(file.path), file.sha256] for file in files])
    return Input(node=f"source:{source.card}", root=root, parts=(InputPart("files", files),))


def open_listed(file: InputFile) -> BinaryIO:
    """A seekable stream of a file of a tree, after a look that it is still the one that was planned with.

    SourceUnavailable if it is gone or another one.
    """
    try:
        path = local_path_of(file.uri)
        if path is None:
            fs, name = fsspec.core.url_to_fs(file.uri)
            info = Objects(fs).call(lambda: fs.info(name), f"look at {file.uri}")
            if _stamped(_Listed(file.path, file.uri, *_stamp_of(info))) == file.sha256:
                return open_forward(file.uri)
        else:
            stat = path.stat()
            now = _stamped(_Listed(file.path, file.uri, stat.st_size, str(stat.st_mtime_ns)))
            if now == file.sha256 or (stat.st_size <= HASHED_BYTES and sha256_of_file(path)[0] == file.sha256):
                return path.open("rb")
    except OSError as error:
        raise SourceUnavailable(f"{file.uri}: {error.strerror or error}. Restore the file, or run again") from error
    raise SourceUnavailable(f"{file.uri}: changed since this run was planned; run the same command again")


def open_forward(uri: str) -> BinaryIO:
    """A seekable stream of any file; a remote one is read ahead in large pieces. OSError as the file system says."""
    path = local_path_of(uri)
    if path is not None:
        return path.open("rb")
    fs, name = fsspec.core.url_to_fs(uri)
    return cast(BinaryIO, fs.open(name, "rb", block_size=8 << 20, cache_type="readahead"))


def _listing(source: SourceFile) -> list[_Listed]:
    rules = [re.compile(_regex(one)) for pattern in source.patterns for one in _expanded(pattern, source)]
    try:
        local = local_path_of(source.uri)
        found = list(_local(local, source) if local is not None else _remote(source.uri))
    except OSError as error:
        raise _unavailable(source, error.strerror or str(error) or type(error).__name__) from error
    listed = sorted((file for file in found if any(rule.fullmatch(file.name) for rule in rules)), key=lambda f: f.name)
    if not listed:
        raise _unavailable(source, f"none of its {len(found)} files matches {' or '.join(source.patterns)}")
    return listed


def _local(root: Path, source: SourceFile) -> Iterator[_Listed]:
    if not root.is_dir():
        raise _unavailable(source, "no such folder" if not root.exists() else "a file, not a folder")
    base = str(root) if source.uri.startswith("file:") else source.uri.rstrip("/")
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in names:
            path = Path(folder) / name
            if not _is_hidden(name) and path.is_file():
                stat = path.stat()
                relative = path.relative_to(root).as_posix()
                uri = f"{base}/{relative}"
                yield _Listed(relative, uri, stat.st_size, str(stat.st_mtime_ns))


def _remote(uri: str) -> Iterator[_Listed]:
    fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    base = str(root).strip("/")
    scheme = uri.split("://", 1)[0]
    found = Objects(fs).call(lambda: fs.find(root, detail=True), f"list {uri}")
    for path, info in sorted(found.items()):
        relative = str(path).strip("/").removeprefix(f"{base}/")
        if not any(_is_hidden(step) for step in relative.split("/")):
            yield _Listed(relative, f"{scheme}://{str(path).lstrip('/')}", *_stamp_of(info))


def _stamp_of(info: dict[str, Any]) -> tuple[int, str]:
    stamp = next((str(info[k]) for k in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(k)), "")
    return int(info["size"]), stamp


def _stamped(file: _Listed) -> str:
    return sha256_of([file.bytes, file.stamp])


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def _expanded(pattern: str, source: SourceFile) -> Sequence[str]:
    """`{00000..00099}.tar` and `{a,b}` written out."""
    try:
        names = []
        for name in braceexpand(pattern):
            names.append(name)
            if len(names) > MAX_BRACES:
                raise _unavailable(source, f"{pattern}: stands for more than {MAX_BRACES} names; use `*`")
    except ValueError as error:
        raise _unavailable(source, f"{pattern}: {error}") from error
    is_glob = any(char in pattern for char in "*?[")
    return names if is_glob or len(names) == 1 else ["\0".join(names)]  # one expression for a million names


def _regex(pattern: str) -> str:
    """A glob as a regular expression for names: `*` stays in a folder, `**` does not. A folder stands for all below."""
    if "\0" in pattern:
        return "|".join(map(re.escape, pattern.split("\0")))
    steps = pattern.removeprefix("./").rstrip("/").split("/")
    text = "".join("(?:.*/)?" if step in ("**", "", ".") else f"{_step(step)}/" for step in steps)
    if text.endswith("(?:.*/)?"):
        return f"(?s:{text}.*)"
    return f"(?s:{text[:-1]}(?:/.*)?)"


def _step(glob: str) -> str:
    """One segment of a glob."""
    found, position = [], 0
    while position < len(glob):
        char, end = glob[position], glob.find("]", position + 2)
        if char == "[" and end > 0:
            inside = glob[position + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            found.append(f"[^/{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]")
            position = end
        else:
            found.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
        position += 1
    return "".join(found)


def plain(name: str) -> str:
    """A name as a text that can be hashed and written: bytes that are not UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _unavailable(source: SourceFile, problem: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"card {source.card}: {source.uri}: {problem}. Put the files there, correct `root`, `data_root` or `files` "
        "(a path or a pattern such as `*.tar` below it), or take the source out of the experiment"
    )
