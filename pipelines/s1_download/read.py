"""The `read` stage: a source's raw annotation files as tables of samples, and everything that was no good as drops."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import pydantic

from pipelines.flow.stage import (
    Inputs,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Sources,
    Stage,
)
from pipelines.flow.store.blobs import local_path_of
from pipelines.project import project_path
from pipelines.s1_download.read_set import plan_groups, set_files
from pipelines.s1_download.read_slices import Slice, slice_parts
from pipelines.s1_download.read_tables import UNITS, RowTables
from x2vlm.config import FrozenConfig
from x2vlm.data.cards import Card, UrlBase
from x2vlm.data.readers import READERS, Source
from x2vlm.data.readers.own.files import Located
from x2vlm.data.readers.own.layout import BoxFormat
from x2vlm.data.readers.own.rows import SetOptions
from x2vlm.data.readers.own.sets import SET_READERS
from x2vlm.errors import ConfigError
from x2vlm.samples import Drop, Grain, MediaKind, Sample

logger = logging.getLogger(__name__)


class ReadConfig(FrozenConfig):
    """Which reader takes which files, and what is true of all rows."""

    reader: str
    source: str  # goes into every key
    card: str  # id of the card, for messages
    files: dict[str, str]  # role -> file name, as in slot "files"; of a set: what is looked for below its root
    split: str = "train"
    licence: str = ""
    language: str = "en"
    known_broken: dict[str, str] = pydantic.Field(default_factory=dict)  # row key -> what is wrong with it
    expected_rows: int | None = None  # published count; a difference is reported, not an error
    rows_per_file: int = pydantic.Field(default=10_000, ge=1)
    bytes_per_part: int = pydantic.Field(default=256 << 20, ge=64)  # of a source's file of rows, see `read_slices`
    key_ranges: int | None = pydantic.Field(default=None, ge=1)  # rows leave sorted by key, see `read_tables`
    # Of readers of a user's own files: fields of the card; of `table` also the kind of rows that do not tell it.
    columns: dict[str, tuple[str | int, ...]] = {}
    boxes: BoxFormat | None = None
    local_media: UrlBase | None = None
    kind: MediaKind = "image"

    @pydantic.model_validator(mode="after")
    def _reader_exists(self) -> Self:
        if self.reader not in READERS:
            raise ValueError(f"no reader `{self.reader}`; known: {', '.join(sorted(READERS))}")
        return self


def read_config(
    card: Card, split: str | None = None, rows_per_file: int = 10_000, key_ranges: int | None = None
) -> ReadConfig:
    """The config that reads everything a card names. ConfigError for ranges of keys of what is no list of images."""
    if key_ranges is not None and (card.reader in SET_READERS or Grain.VIDEO in card.grains):
        why = "its media lie beside its rows" if card.reader in SET_READERS else "clips of one video stay together"
        raise ConfigError(f"card {card.id}: `key_ranges` is for lists of images on the web; {why}")
    if card.reader is None:
        raise ConfigError(f"card {card.id}: has no `reader`, so its files cannot be read for pre-training")
    expected = [file.expected_rows for file in card.files.values() if file.expected_rows is not None]
    return ReadConfig(
        reader=card.reader,
        source=card.id,
        card=card.id,
        files={
            role: file.path if card.reader in SET_READERS else Path(file.path).name for role, file in card.files.items()
        },
        split=split or card.split,
        licence=card.licence,
        language=card.language,
        known_broken=card.known_broken,
        expected_rows=sum(expected) if expected else None,
        rows_per_file=rows_per_file,
        key_ranges=key_ranges,
        columns=card.columns,
        boxes=card.boxes,
        local_media=card.url_base if card.reader == "table" else None,
        kind="video" if card.reader == "table" and card.grains == (Grain.VIDEO,) else "image",
    )


def plan_read(config: ReadConfig, inputs: Inputs) -> list[Part]:
    """One part for each group of files of a set, else for each slice of a large source (`read_slices`); ConfigError if
    a role's file is missing."""
    if config.reader in SET_READERS:
        return plan_groups(config.reader, inputs)
    reads = [
        Read(slot, file)
        for slot in ("card", "files")
        for source in inputs[slot]
        for part in source.parts
        for file in part.files
    ]
    names = Counter(read.file.path for read in reads if read.slot == "files")
    for role, name in config.files.items():
        if names[name] != 1:
            problem = "is not among the node's files" if not names[name] else "is there twice"
            raise ConfigError(f"read {config.source}: file {name} for role `{role}` {problem} ({', '.join(names)})")
    files = {read.file.path: read.file for read in reads if read.slot == "files"}
    roles = {role: files[name] for role, name in config.files.items()}
    return slice_parts(config.reader, reads, roles, config.bytes_per_part, "id" in config.columns)


def check_sources(config: ReadConfig, node: str, sources: Sources) -> None:
    """Read up to the first row, so that a missing column or a broken file is told before anything remote starts.

    Raises SourceUnavailable as reading would. Files of an object store are looked into when they are read.
    """
    if config.reader in SET_READERS:
        return  # the plan has listed the files, and each part tells what is wrong with its own
    found = {Path(source.uri).name: local_path_of(source.uri) for source in sources["files"]}
    paths = {role: path for role, name in config.files.items() if (path := found[name]) is not None}
    if len(paths) == len(config.files):
        next(iter(READERS[config.reader](_source(config, paths), Counter())), None)


def read_part(config: ReadConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes rows-00000.parquet, rows-00001.parquet, ... in upstream order and drops.parquet; for a set also
    members-00000.parquet, ..., which say where the media of the rows lie. With `key_ranges`, rows.arrow with segments
    instead of the tables of rows, see `read_tables`."""
    seen: Counter[str] = Counter()
    tables = RowTables(out.path, config.rows_per_file, config.reader in SET_READERS, config.key_ranges)
    source, items = _open(config, inputs, part, seen)
    for item in items:
        member = item.member if isinstance(item, Located) else None
        for kept in _check(config, source, item.sample if isinstance(item, Located) else item):
            tables.add(kept, member)
    tables.close()
    counts = {unit: tables.count(unit, seen[unit]) for unit in UNITS if unit in ("rows", "concepts") or seen[unit]}
    summary = {"seen_rows": seen["rows"], "kept_rows": counts["rows"].num_out}
    if tables.num_hashes:
        summary["published_hashes"] = tables.num_hashes
    logger.info(
        "stage=read source=%s part=%s rows=%d kept=%d", config.source, part.name, seen["rows"], counts["rows"].num_out
    )
    return PartResult(counts, tables.file_rows, summary)


def finish_read(config: ReadConfig, parts: Sequence[PartSummary]) -> Mapping[str, int]:
    """Rows seen, kept and with a published hash in all parts, beside the count that the source publishes."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.summary)
    summary = dict(total)
    if config.expected_rows is not None:
        summary["expected_rows"] = config.expected_rows
        if config.expected_rows != total["seen_rows"]:
            logger.warning(
                "card=%s expected_rows=%d seen_rows=%d", config.card, config.expected_rows, total["seen_rows"]
            )
    return summary


def _open(
    config: ReadConfig, inputs: PartReader, part: Part, seen: Counter[str]
) -> tuple[Source, Iterator[Located | Sample | Drop]]:
    """The source of a part, and what its reader makes of it."""
    if config.reader in SET_READERS:
        source = _source(config, {})
        return source, SET_READERS[config.reader](source, set_files(part), seen, _set_options(config))
    names = {name: role for role, name in config.files.items()}
    reads = {names[read.file.path]: read.file for read in part.reads if read.slot == "files"}
    paths = {role: inputs.local_path(file) for role, file in reads.items()}
    if (cut := Slice.of(part, config.bytes_per_part)) is None:
        source = _source(config, paths)
    else:
        earlier = {role: paths.pop(role) for role in cut.earlier}
        source = replace(_source(config, paths), within=cut.of_file(paths[cut.role]), earlier=earlier)
        if cut.is_empty(paths[cut.role]):
            return source, iter(())
    return source, READERS[config.reader](source, seen)


def _set_options(config: ReadConfig) -> SetOptions:
    """What the card says about the fields of a set; boxes are xywh in pixels where it says nothing."""
    options = SetOptions(columns=config.columns)
    return options if config.boxes is None else replace(options, boxes=config.boxes)


def _source(config: ReadConfig, files: dict[str, Path]) -> Source:
    return Source(
        card=config.card,
        name=config.source,
        split=config.split,
        files=files,
        licence=config.licence,
        language=config.language,
        columns=config.columns,
        boxes=config.boxes,
        media_url=config.local_media.from_ if config.local_media else "",
        media_folder=str(project_path(config.local_media.serve)) if config.local_media else "",
        kind=config.kind,
    )


def _check(config: ReadConfig, source: Source, item: Sample | Drop) -> Iterator[Sample | Drop]:
    """The item, or drops in its place where a sample is known to be broken or there is nothing to say about it."""
    if isinstance(item, Drop):
        yield item
    elif item.source_row in config.known_broken:
        yield source.drop(item.source_row, "known_broken", config.known_broken[item.source_row])
        for concept in item.concepts:
            yield source.drop_item(item.source_row, "concept", concept.annotation_id, "row_dropped")
        for position in range(len(item.captions)):
            yield source.drop_item(item.source_row, "caption", str(position), "row_dropped")
    elif not item.captions and not item.concepts:
        yield source.drop(item.source_row, "nothing_left", "neither a caption nor a concept, so nothing to learn from")
    else:
        yield item


READ = Stage(
    name="read",
    version=3,
    config_type=ReadConfig,
    slots=("card", "files"),
    plan_parts=plan_read,
    run_part=read_part,
    finish=finish_read,
    check=check_sources,
)
