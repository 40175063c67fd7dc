"""Reader `webdataset`: tars of samples, and Parquet files with media inside, as img2dataset, DataComp and open_clip
users have them.

A tar's members pair by key as webdataset pairs them: the name up to the first dot of its last segment. A sample is a
image or clip (by its suffix), its text (`.txt` or `.caption`: one caption) and facts (`.json`). Captions come from
the text, else from the JSON. Members of a key may lie anywhere in the tar; memory holds texts and places only.

Row keys are `<shard>/<key>`; `<shard>/<row number>` in Parquet without a column `key`. Drops of its own:

| rule | what |
|---|---|
| `no_caption`, `no_media` | a key with one and not the other |
| `duplicate_key` | a key whose members come a second time: the first counts |
| `second_media` | a further image or clip of a key |
| `failed_to_download`, `failed_to_resize` | img2dataset's own classes, with its message |
| `missing_from_shard` | img2dataset's table says that a row was stored, but it is not there |
| `not_a_plain_file`, `unsafe_name`, `name_not_utf8` | links, devices, names that lead out of the tar or are no text |
| `bad_json`, `text_not_utf8`, `text_too_large` | a text that cannot be read, where the row has no other caption |
| `truncated_shard` | one for the rest of a shard that cannot be read on; everything before it is kept |
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from x2vlm.data.readers.own.facts import Facts
from x2vlm.data.readers.own.files import (
    FACTS,
    PARQUET_SUFFIX,
    TAR_SUFFIXES,
    TEXTS,
    Located,
    Member,
    SetFile,
    local_url,
    media_kind,
    shown,
    stem_of,
    suffix_of,
)
from x2vlm.data.readers.own.img2dataset import Statuses, failure, note_unfinished
from x2vlm.data.readers.own.parquet_shard import BrokenParquet, open_parquet, payload_column, read_rows
from x2vlm.data.readers.own.rows import SetOptions, Texts, located
from x2vlm.data.readers.own.tar import Break, TarMember, scan_tar
from x2vlm.data.readers.source import Fault, Source
from x2vlm.samples import Drop

KEY = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)  # webdataset's rule: (key, everything after its dot)


def read_webdataset_group(
    source: Source, files: Sequence[SetFile], seen: Counter[str], options: SetOptions
) -> Iterator[Located | Drop]:
    """Rows and drops of one shard: a tar or Parquet file with what lies beside it."""
    tars = [file for file in files if file.name.lower().endswith(TAR_SUFFIXES)]
    tables = [file for file in files if file.name.lower().endswith(PARQUET_SUFFIX)]
    names = [file.name for file in files]
    for tar in tars:
        yield from _read_tar(source, tar, tables[0] if tables else None, names, seen, options)
    if not tars:
        for table in tables:
            yield from _read_parquet(source, table, names, seen, options)


@dataclass
class _Key:
    """What a tar holds of one key, first come first served."""

    number: int = 1  # of the times that the key's members began anew
    suffixes: set[str] = field(default_factory=set)
    texts: Texts = field(default_factory=Texts)
    media: TarMember | None = None


class _Keys:
    """The keys of one tar, in the order in which they first came, and what could not be used."""

    def __init__(self, source: Source, shard: str) -> None:
        self.of_key: dict[str, _Key] = {}
        self._source, self._shard = source, shard

    def add(self, found: TarMember) -> Iterator[Drop]:
        """Take a member in; a drop where that makes a row of its own which is not used."""
        match = KEY.fullmatch(found.name)
        if found.fault is not None and found.fault[0] != "text_too_large":
            yield self._source.drop(f"{self._shard}/{found.name}", *found.fault)
            return
        if match is None:
            return  # no name of a sample: webdataset passes over it too
        key, suffix = match[1], match[2].lower()
        entry = self.of_key.setdefault(key, _Key())
        if suffix in entry.suffixes:
            entry.number += 1
            entry.suffixes = set()
            row = f"{self._shard}/{key}#{entry.number}"
            yield self._source.drop(row, "duplicate_key", f"{shown(found.name)} comes again; the first counts")
        entry.suffixes.add(suffix)
        if entry.number > 1:
            return
        ending = suffix_of(found.name)
        if media_kind(ending) is not None and entry.media is None:
            entry.media = found
        elif entry.media is not None and media_kind(ending) is not None:
            yield self._source.drop(f"{self._shard}/{found.name}", "second_media", f"{entry.media.name} is used")
        elif found.fault is not None:
            entry.texts.fault = found.fault
        elif ending == FACTS:
            entry.texts.add_json(found.data or b"")
        elif ending in TEXTS:
            entry.texts.add_text(found.data or b"", one_per_line=False)


def _wants(name: str) -> str:
    ending = suffix_of(name)
    return "text" if ending == FACTS or ending in TEXTS else "media" if media_kind(ending) else ""


def _read_tar(
    source: Source, tar: SetFile, table: SetFile | None, names: Sequence[str], seen: Counter[str], options: SetOptions
) -> Iterator[Located | Drop]:
    shard = stem_of(tar.name)
    keys, statuses, broken = _Keys(source, shard), Statuses(table), None
    with tar.open() as stream:
        for found in scan_tar(stream, tar.name, _wants):
            if isinstance(found, Break):
                broken = found
                continue
            for drop in keys.add(found):
                seen["rows"] += 1
                yield drop
    for key, entry in keys.of_key.items():
        seen["rows"] += 1
        row = f"{shard}/{key}"
        if entry.media is None:
            yield source.drop(row, "no_media", f"only {', '.join(sorted(entry.suffixes))}"[:200])
            continue
        member = Member(tar.name, entry.media.offset, entry.media.size, entry.media.sha256)
        facts = statuses.of_key.get(key.rpartition("/")[2], Facts({}))
        url = local_url(source, tar.name, entry.media.name)
        kind = media_kind(suffix_of(entry.media.name)) or "image"
        yield from located(source, seen, options, row, kind, url, member, entry.texts.or_facts(facts))
    has_status = bool(statuses.of_key) or any(entry.texts.facts.get("status") for entry in keys.of_key.values())
    note_unfinished(source, shard, names, has_status)
    if broken is not None:
        seen["rows"] += 1
        reason = f"byte {broken.offset} of {tar.bytes}: {broken.reason}; what comes before is used"
        yield source.drop(shard, "truncated_shard", reason)
    known = {key.rpartition("/")[2] for key in keys.of_key}
    for drop in statuses.missing(source, shard, known):
        seen["rows"] += 1
        yield drop


def _read_parquet(
    source: Source, table: SetFile, names: Sequence[str], seen: Counter[str], options: SetOptions
) -> Iterator[Located | Drop]:
    shard, number, num_rows, used = stem_of(table.name), -1, None, set[str]()
    has_status = False
    try:
        with table.open() as stream, open_parquet(stream) as file:
            num_rows = file.metadata.num_rows
            column = payload_column(file.schema_arrow, str(next(iter(options.columns.get("media", [])), "")))
            if column is None:
                seen["rows"] += num_rows
                for number in range(num_rows):
                    yield source.drop(
                        f"{shard}/{number}", "no_media", f"{table.name} has no column with bytes of media"
                    )
                return
            for number, values, payload in read_rows(file, column):
                seen["rows"] += 1
                facts = Facts(values, options.columns)
                has_status = has_status or facts.get("status") is not None
                key = facts.text("key") or str(number)
                row = f"{shard}/{shown(key)}"
                fault = _parquet_fault(facts, payload, row in used, f"column {column.name} is empty")
                used.add(row)
                if fault is not None or payload is None:
                    yield source.drop(row, *(fault or ("no_media", "")))
                    continue
                sha256 = hashlib.sha256(payload).hexdigest()
                member = Member(table.name, number, len(payload), sha256, column.name)
                url = local_url(source, table.name, key)
                yield from located(source, seen, options, row, column.kind, url, member, Texts(facts=facts))
    except BrokenParquet as error:
        rest = 1 if num_rows is None else max(0, num_rows - number - 1)
        seen["rows"] += rest
        for later in range(number + 1, number + 1 + rest):
            row = shard if num_rows is None else f"{shard}/{later}"
            yield source.drop(row, "truncated_shard", str(error))
    note_unfinished(source, shard, names, has_status)


def _parquet_fault(facts: Facts, payload: bytes | None, is_double: bool, empty: str) -> Fault | None:
    if is_double:
        return "duplicate_key", "the first row of that key counts"
    if (failed := failure(facts)) is not None:
        return failed
    return ("no_media", empty) if payload is None else None
