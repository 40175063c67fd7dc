"""Reading a set of files: a part for every group of files, and beside every table of rows one of where their media lie.

`members-00000.parquet` has a line for every row of `rows-00000.parquet`, in the same order: file, place and sha256 of
its media. The download stage reads both, so that what follows is due when bytes have changed, and only then.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines.flow.fingerprint import sha256_of
from pipelines.flow.stage import InputFile, Inputs, Part, Read
from pipelines.flow.store.source_trees import open_listed, plain
from x2vlm.data.readers.own.files import (
    MEMBER_SCHEMA,
    PARQUET_SUFFIX,
    STATS_SUFFIX,
    TAR_SUFFIXES,
    Member,
    SetFile,
    group_names,
)
from x2vlm.errors import ConfigError
from x2vlm.samples import write_table


def set_patterns(reader: str, paths: Sequence[str]) -> tuple[str, ...]:
    """What to look for below a card's root: its paths, and for tars the table and statistics that belong to each."""
    found = list(paths)
    for path in paths if reader == "webdataset" else ():
        for suffix in TAR_SUFFIXES:
            if path.endswith(suffix):
                stem = path.removesuffix(suffix)
                found += [f"{stem}{PARQUET_SUFFIX}", f"{stem}{STATS_SUFFIX}"]
        if path.endswith(PARQUET_SUFFIX):
            found.append(f"{path.removesuffix(PARQUET_SUFFIX)}{STATS_SUFFIX}")
    return tuple(dict.fromkeys(found))


def plan_groups(reader: str, inputs: Inputs) -> list[Part]:
    """One part a group of files that belong together, so that a new tar makes one part.

    Files count by name and identity in the part's `spec`; as lookups they do not fill its record, which a folder of
    100,000 images would. ConfigError if there is nothing that the reader takes.
    """
    cards = tuple(Read("card", file) for source in inputs["card"] for part in source.parts for file in part.files)
    files = {file.path: file for source in inputs["files"] for part in source.parts for file in part.files}
    groups = group_names(reader, files)
    if not groups:
        shown = ", ".join(plain(name) for name in sorted(files)[:5])
        raise ConfigError(f"reader {reader}: none of {len(files)} files is one that it reads ({shown}, ...)")
    return [
        Part(
            name,
            cards,
            spec={"files": sha256_of([[plain(member), files[member].sha256] for member in members])},
            lookups=tuple(Read("files", files[member]) for member in members),
        )
        for name, members in groups.items()
    ]


def set_files(part: Part) -> list[SetFile]:
    """The files of a part's group, to be opened where they lie."""
    return [_set_file(read.file) for read in part.lookups]


def _set_file(file: InputFile) -> SetFile:
    return SetFile(file.path, file.bytes, partial(open_listed, file))


def write_members(members: Sequence[tuple[str, Member]], path: Path) -> None:
    """The places of rows, by sample key, as a table of MEMBER_SCHEMA."""
    rows = [{"key": key, **member._asdict()} for key, member in members]
    write_table(pa.Table.from_pylist(rows, schema=MEMBER_SCHEMA), path)


def members_of(table: pa.Table) -> Mapping[str, Member]:
    """The places of rows by sample key."""
    return {row.pop("key"): Member(**row) for row in table.to_pylist()}
