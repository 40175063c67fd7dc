"""Which reader takes what a user named: a table, a folder of images or clips, or shards with media inside."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pipelines.flow.stage import InputFile, SourceFile
from pipelines.flow.store.source_trees import open_forward, tree_input
from x2vlm.command_line import printable
from x2vlm.data.media.formats import sniff_image
from x2vlm.data.media.video import sniff_container
from x2vlm.data.readers.own.files import PARQUET_SUFFIX, STATS_SUFFIX, TAR_SUFFIXES, is_metadata, media_kind, suffix_of
from x2vlm.data.readers.own.formats import PACKED, SUFFIXES, format_of
from x2vlm.data.readers.own.parquet_shard import PREFERRED, BrokenParquet, open_parquet, payload_column, read_rows
from x2vlm.data.tables.rows import UnreadableTable
from x2vlm.errors import ConfigError, SourceUnavailable

PATTERN_CHARS = re.compile(r"[*?\[{]")
PROBED_ROWS = 50  # of a Parquet file, to tell media from texts in a column of bytes
SHOWN_NAMES = 5
ARCHIVES = (".zip", ".7z", ".rar")


@dataclass(frozen=True)
class Place:
    """Files that belong together and the reader that takes them."""

    reader: Literal["table", "folder", "webdataset"]
    root: str  # an absolute folder, or a URI
    path: str  # the table's name; or of a set a pattern below `root`
    name: str  # what people call it: the last name that was typed


def find_place(words: Sequence[str]) -> Place:
    """What was typed as a place. ConfigError with the remedy where nothing, or nothing of one kind, is there."""
    if len(words) > 1:
        raise ConfigError(
            f"{len(words)} paths were given ({', '.join(map(printable, words[:3]))} ...), and a source has one: give "
            "their folder, or a pattern in quotes, which the shell then leaves alone: 'folder/*.tar'"
        )
    (word,) = words
    if "://" in word:
        return _at_pattern(word, *_split(word)) if _is_pattern(word) or _is_shard(word) else _in_tree(word, word, "")
    path = Path(word).expanduser()
    if path.is_dir():
        return _in_tree(word, str(path.resolve()), "")
    if path.is_file():
        return _of_file(path.resolve())
    if not _is_pattern(word):
        raise ConfigError(f"{word}: no such file or folder")
    root, pattern = _split(str(path))
    return _at_pattern(word, str(Path(root).resolve()), pattern)


def holds_media(stream: BinaryIO) -> bool:
    """Whether a Parquet file has a column with images or clips, rather than with addresses and texts as bytes."""
    try:
        with open_parquet(stream) as file:
            column = payload_column(file.schema_arrow)
            if column is None or column.is_struct:
                return column is not None
            rows = read_rows(file, column, facts=False)
            found = list(itertools.islice((payload for _, _, payload in rows if payload), PROBED_ROWS))
    except BrokenParquet:
        return False  # the reader of tables says what is wrong with it
    is_media = [bool(sniff_image(payload) or sniff_container(payload)) for payload in found]
    return sum(is_media) * 2 >= len(is_media) if found else column.name.lower() in PREFERRED


def _of_file(path: Path) -> Place:
    root = str(path.parent)
    if path.name.lower().endswith(TAR_SUFFIXES):
        return Place("webdataset", root, _literal(path.name), path.name)
    if media_kind(suffix_of(path.name)) is not None or path.suffix.lower() in ARCHIVES:
        raise ConfigError(f"{path.name}: no table; give the folder with the (unpacked) media and their texts")
    try:
        is_parquet = format_of(path) == "parquet" and path.suffix.lower() not in PACKED
    except UnreadableTable as error:
        raise ConfigError(f"{path.name}: {error}") from error
    if is_parquet:
        with path.open("rb") as stream:
            if holds_media(stream):
                return Place("webdataset", root, _literal(path.name), path.name)
        _refuse_table_of_shard(path)
    return Place("table", root, path.name, path.name)


def _refuse_table_of_shard(path: Path) -> None:
    """The table that img2dataset writes beside a shard holds addresses that have been fetched already."""
    shard = path.with_suffix("")
    there = [one for one in (path.with_suffix(".tar"), shard) if one.exists()]
    if there and path.with_name(f"{shard.name}{STATS_SUFFIX}").exists():
        raise ConfigError(
            f"{path.name}: img2dataset's table of the addresses whose media lie in {there[0].name}; to use those give "
            f"their folder: {path.parent}"
        )


def _literal(name: str) -> str:
    """A pattern for one file: characters that patterns and lists of them use match as any other."""
    return re.sub(r"[*?\[\]{},\\]", "?", name)


def _is_pattern(word: str) -> bool:
    return PATTERN_CHARS.search(word) is not None


def _is_shard(word: str) -> bool:
    return word.lower().endswith((*TAR_SUFFIXES, PARQUET_SUFFIX))


def _split(word: str) -> tuple[str, str]:
    """The folder before the first step with a pattern in it, or before the last step; and the rest."""
    steps = word.split("/")
    first = next((number for number, step in enumerate(steps) if _is_pattern(step)), len(steps) - 1)
    return "/".join(steps[:first]) or ("/" if word.startswith("/") else "."), "/".join(steps[first:])


def _at_pattern(word: str, root: str, pattern: str) -> Place:
    if media_kind(suffix_of(pattern)) is not None:
        raise ConfigError(f"{word}: would leave out the texts beside the media; give their folder: {root}")
    return _in_tree(word, root, pattern)


def _in_tree(word: str, root: str, pattern: str) -> Place:
    """By the names of all files: tars before media files before Parquet with media inside."""
    try:
        (part,) = tree_input(SourceFile(root, "", patterns=(pattern or "**",)), lambda _: "").parts
    except (SourceUnavailable, ValueError) as error:
        found = "no such folder, or it is empty" if not pattern else "no file is called like that"
        raise ConfigError(f"{word}: {found} ({str(error).partition('. Put')[0].removeprefix('card : ')})") from error
    except ImportError as error:
        raise ConfigError(f"{word}: {error}") from error
    files = {file.path: file for file in part.files}
    name = root.rstrip("/").rpartition("/")[2] or "own"
    tars = [one for one in files if one.lower().endswith(TAR_SUFFIXES)]
    if tars:
        return Place("webdataset", root, pattern or _pattern_for(tars, TAR_SUFFIXES), name)
    if any(media_kind(suffix_of(one)) is not None for one in files):
        return Place("folder", root, pattern or "**", name)
    shards = [one for one in files if one.lower().endswith(PARQUET_SUFFIX) and not is_metadata(one)]
    if shards and _holds_media(files[shards[0]]):
        return Place("webdataset", root, pattern or _pattern_for(shards, (PARQUET_SUFFIX,)), name)
    raise ConfigError(f"{word}: {_nothing_usable(root, files)}")


def _holds_media(file: InputFile) -> bool:
    with open_forward(file.uri) as stream:
        return holds_media(stream)


def _pattern_for(names: Sequence[str], suffixes: Sequence[str]) -> str:
    """The narrowest of a few patterns that finds all shards."""
    endings = {next(suffix for suffix in suffixes if name.lower().endswith(suffix)) for name in names}
    if len(endings) > 1 or not all(name.endswith(tuple(endings)) for name in names):
        return "**"
    (ending,) = endings
    folders = {name.rpartition("/")[0] for name in names}
    folder = _literal(folders.pop()) if len(folders) == 1 else "**"
    return f"{folder}/*{ending}".removeprefix("/")


def _nothing_usable(root: str, files: dict[str, InputFile]) -> str:
    """What lies there instead, and what to do with it."""
    tables = [one for one in files if _is_table(one)]
    if tables:
        several = f" (it holds {len(tables)} tables, and a source has one)" if len(tables) > 1 else ""
        return f"no images, clips or tars; give the table itself: {root.rstrip('/')}/{printable(tables[0])}{several}"
    kinds = Counter(suffix_of(one) or "no suffix" for one in files).most_common(SHOWN_NAMES)
    listed = ", ".join(f"{printable(kind)} ({number})" for kind, number in kinds)
    return f"no images, clips, tars or tables; its {len(files)} files are: {listed}. Unpack archives such as zip first"


def _is_table(name: str) -> bool:
    steps = name.lower().rpartition("/")[2].split(".")
    if len(steps) > 1 and f".{steps[-1]}" in PACKED:
        steps.pop()
    return len(steps) > 1 and f".{steps[-1]}" in SUFFIXES and not name.endswith(STATS_SUFFIX)
