"""What a user's folder, tars or Parquet with media are, as their reader understands them. Nothing is extracted."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import BinaryIO, cast

from pipelines.flow.stage import InputFile, SourceFile
from pipelines.flow.store.source_trees import open_forward, tree_input
from pipelines.new_source.found import LOOK_ROWS, SHOWN_ROWS, Found, Wishes
from pipelines.new_source.places import Place
from pipelines.s1_download.read_set import set_patterns
from x2vlm.data.readers import Source
from x2vlm.data.readers.own.facts import NAMES as SET_FIELDS
from x2vlm.data.readers.own.files import (
    PARQUET_SUFFIX,
    STATS_SUFFIX,
    TAR_SUFFIXES,
    Located,
    Member,
    SetFile,
    group_names,
    media_kind,
    stem_of,
    suffix_of,
)
from x2vlm.data.readers.own.img2dataset import FAILURES
from x2vlm.data.readers.own.rows import SetOptions
from x2vlm.data.readers.own.sets import SET_READERS
from x2vlm.errors import ConfigError
from x2vlm.samples import Drop, Sample

LOOK_BYTES = 512 << 20  # of one shard, and of all of them together
STATS = ("count", "successes", *FAILURES)  # what they hold, of each shard
MAX_STATS = 10_000  # files of statistics that are read
CUT_OFF = ("truncated_shard", "missing_from_shard")  # what a shard seems to lack of which only the beginning was read


def look_at_set(place: Place, wishes: Wishes) -> Found:
    """A folder or shards. ConfigError for options that only a table has, and where there is nothing to read."""
    if unused := [*sorted(set(wishes.columns) - set(SET_FIELDS)), *(["media"] if wishes.media is not None else [])]:
        raise ConfigError(
            f"--{unused[0]}: is for tables; {place.path} below {place.root} goes to reader `{place.reader}`, of whose "
            f"JSON and table fields these can be named: {', '.join(SET_FIELDS)}"
        )
    options = SetOptions(columns=wishes.columns)
    if wishes.boxes is not None:
        options = replace(options, boxes=wishes.boxes)
    source = Source(card=wishes.name, name=wishes.name, split="train", files={})
    patterns = set_patterns(place.reader, [place.path])
    (part,) = tree_input(SourceFile(place.root, wishes.name, patterns=patterns), lambda _: "").parts
    files = {file.path: file for file in part.files}
    groups = group_names(place.reader, files)
    look = _Look(place.reader, source, options)
    for number, names in enumerate(groups.values()):
        if number and (look.seen["rows"] >= LOOK_ROWS or look.num_bytes >= LOOK_BYTES):
            break
        look.take([files[name] for name in names])
    stats = _stats(files)
    num_rows, is_counted = _num_rows(place.reader, look, groups, files, stats)
    return Found(
        place.reader,
        place.root,
        {"files": place.path},
        look.samples,
        look.dropped,
        look.reasons,
        look.seen["rows"],
        max(num_rows, look.seen["rows"]),
        is_counted,
        columns=dict(wishes.columns),
        boxes=wishes.boxes,
        places=look.places,
        notes=[*_partly(place.reader, look, groups), *_img2dataset(files, groups, stats, look.dropped)],
    )


class _Look:
    """Rows and drops of the groups that were read so far."""

    def __init__(self, reader: str, source: Source, options: SetOptions) -> None:
        self.samples: list[Sample] = []
        self.places: list[str] = []
        self.dropped: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.seen: Counter[str] = Counter()
        self.num_bytes = 0
        self.num_groups = 0
        self.is_cut = False  # a group was not read to its end
        self._reader, self._source, self._options = reader, source, options

    def take(self, files: Sequence[InputFile]) -> None:
        """Read a group, or its beginning."""
        opened: list[SetFile] = []
        is_limited = False
        for file in files:
            stream: Callable[[], BinaryIO] = partial(open_forward, file.uri)
            if self._reader == "folder" and media_kind(suffix_of(file.path)) is not None:
                stream = _nothing  # nobody asks for hashes here
            elif file.path.lower().endswith(TAR_SUFFIXES):
                is_limited = is_limited or file.bytes > LOOK_BYTES
                stream = partial(_beginning, file.uri)
                self.num_bytes += min(file.bytes, LOOK_BYTES)
            opened.append(SetFile(file.path, file.bytes, stream))
        before = self.seen["rows"]
        for item in SET_READERS[self._reader](self._source, opened, self.seen, self._options):
            if is_limited and isinstance(item, Drop) and item.rule in CUT_OFF:
                self.seen["rows"] -= 1
            else:
                self._add(item)
            is_in_parquet = isinstance(item, Located) and item.member.column
            if self.seen["rows"] - before >= LOOK_ROWS or (is_in_parquet and self.num_bytes >= LOOK_BYTES):
                is_limited = True
                break
        self.is_cut = self.is_cut or is_limited
        self.num_groups += 1

    def _add(self, item: Located | Drop) -> None:
        if isinstance(item, Drop):
            if item.unit == "row":
                self.dropped[item.rule] += 1
                reason = f"{item.source_row}: {item.reason}" if item.reason else item.source_row
                self.reasons.setdefault(item.rule, reason)
            return
        self.samples.append(item.sample)
        if len(self.places) < SHOWN_ROWS:
            self.places.append(_shown(item.member))
        if item.member.column:
            self.num_bytes += item.member.bytes


def _nothing() -> BinaryIO:
    return io.BytesIO()


def _beginning(uri: str) -> BinaryIO:
    return cast(BinaryIO, _Beginning(open_forward(uri)))


class _Beginning:
    """A stream that ends after LOOK_BYTES."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, num_bytes: int = -1) -> bytes:
        left = max(0, LOOK_BYTES - self._stream.tell())
        return self._stream.read(left if num_bytes < 0 else min(num_bytes, left))

    def __enter__(self) -> "_Beginning":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _shown(member: Member) -> str:
    return f"{member.file}: {member.column}" if member.column else member.file


def _stats(files: Mapping[str, InputFile]) -> dict[str, dict[str, int]]:
    """What img2dataset counted in each shard; files that are no such statistics are left out."""
    found = {}
    for name in [name for name in files if name.endswith(STATS_SUFFIX)][:MAX_STATS]:
        with open_forward(files[name].uri) as stream:
            try:
                values = json.loads(stream.read(1 << 20))
            except ValueError:
                continue
        if isinstance(values, dict) and all(isinstance(values.get(one), int) for one in STATS):
            found[stem_of(name)] = {one: int(values[one]) for one in STATS}
    return found


def _num_rows(
    reader: str,
    look: _Look,
    groups: Mapping[str, Sequence[str]],
    files: Mapping[str, InputFile],
    stats: Mapping[str, Mapping[str, int]],
) -> tuple[int, bool]:
    """Rows of all groups, and whether that is counted."""
    if look.num_groups == len(groups) and not look.is_cut:
        return look.seen["rows"], True
    if stats and {stem_of(name) for names in groups.values() for name in names if _is_shard(name)} <= stats.keys():
        return sum(one["count"] for one in stats.values()), True
    if reader == "folder":
        return sum(media_kind(suffix_of(name)) is not None for name in files), False
    shards = {name for names in groups.values() for name in names if _is_shard(name)}
    per_byte = look.seen["rows"] / max(look.num_bytes, 1)
    return int(per_byte * sum(files[name].bytes for name in shards)), False


def _is_shard(name: str) -> bool:
    return name.lower().endswith((*TAR_SUFFIXES, PARQUET_SUFFIX))


def _partly(reader: str, look: _Look, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """How much was looked at, where that is not all."""
    what = "shards" if reader == "webdataset" else "folders"
    if look.num_groups < len(groups) or look.is_cut:
        return [f"looked into {look.num_groups} of {len(groups)} {what}; a run reads all of them"]
    return [f"{len(groups)} {what}, each a part of its own"] if len(groups) > 1 else []


def _img2dataset(
    files: Mapping[str, InputFile],
    groups: Mapping[str, Sequence[str]],
    stats: Mapping[str, Mapping[str, int]],
    dropped: Counter[str],
) -> list[str]:
    """What img2dataset left beside the media: how many rows it got and failed to get, and shards it did not finish."""
    if not stats and not any(dropped[rule] for rule in FAILURES):
        return []
    tables = {stem_of(name) for name in files if name.lower().endswith(PARQUET_SUFFIX)}
    counts = {name: sum(one[name] for one in stats.values()) for name in STATS}
    failed = ", ".join(f"{counts[rule]:,} {rule}" for rule in FAILURES)
    notes = [
        f"img2dataset: shards with _stats.json: {len(stats)}, with a table of their addresses: {len(tables)}; of "
        f"{counts['count']:,} addresses {counts['successes']:,} were stored, {failed}"
    ] * bool(stats)
    shards = {stem_of(name) for names in groups.values() for name in names if _is_shard(name)}
    unfinished = sorted(shards - {stem_of(name) for name in files if name.endswith(STATS_SUFFIX)})
    if unfinished:
        shown = ", ".join(unfinished[:SHOWN_ROWS]) + (", ..." if len(unfinished) > SHOWN_ROWS else "")
        notes.append(
            f"no _stats.json for {len(unfinished)} shards ({shown}): img2dataset did not finish them; what is there is "
            "used, img2dataset --incremental_mode incremental completes them"
        )
    return notes
