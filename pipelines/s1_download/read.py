"""The `read` stage: a source's raw annotation files as tables of samples, and everything that was no good as drops."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq
import pydantic

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Sources, Stage
from pipelines.flow.store.blobs import local_path_of
from pipelines.project import project_path
from pipelines.s1_download.read_set import plan_groups, set_files, write_members
from x2vlm.config import FrozenConfig
from x2vlm.data.cards import Card, UrlBase
from x2vlm.data.readers import READERS, Source
from x2vlm.data.readers.own.files import Located, Member
from x2vlm.data.readers.own.layout import BoxFormat
from x2vlm.data.readers.own.rows import SetOptions
from x2vlm.data.readers.own.sets import SET_READERS
from x2vlm.errors import ConfigError
from x2vlm.samples import DROP_SCHEMA, Drop, Grain, MediaKind, Sample, drop_table, sample_table, write_table

logger = logging.getLogger(__name__)

UNITS = ("rows", "concepts", "captions")


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


def read_config(card: Card, split: str | None = None, rows_per_file: int = 10_000) -> ReadConfig:
    """The config that reads everything a card names."""
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
        columns=card.columns,
        boxes=card.boxes,
        local_media=card.url_base if card.reader == "table" else None,
        kind="video" if card.reader == "table" and card.grains == (Grain.VIDEO,) else "image",
    )


def plan_read(config: ReadConfig, inputs: Inputs) -> list[Part]:
    """One part that reads all files, or one for each group of files of a set; ConfigError if a role's is missing."""
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
    return [Part("all", tuple(reads))]


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
    members-00000.parquet, ..., which say where the media of the rows lie."""
    seen: Counter[str] = Counter()
    tables = _Tables(out.path, config.rows_per_file, config.reader in SET_READERS)
    source, items = _open(config, inputs, part, seen)
    for item in items:
        member = item.member if isinstance(item, Located) else None
        for kept in _check(config, source, item.sample if isinstance(item, Located) else item):
            tables.add(kept, member)
    tables.close()
    counts = {unit: tables.count(unit, seen[unit]) for unit in UNITS if unit in ("rows", "concepts") or seen[unit]}
    summary = {"seen_rows": seen["rows"], "kept_rows": counts["rows"].num_out}
    if config.expected_rows is not None:
        summary["expected_rows"] = config.expected_rows
    if tables.num_hashes:
        summary["published_hashes"] = tables.num_hashes
    if config.expected_rows not in (None, seen["rows"]):
        logger.warning("card=%s expected_rows=%d seen_rows=%d", config.card, config.expected_rows, seen["rows"])
    logger.info("stage=read source=%s rows=%d kept=%d", config.source, seen["rows"], counts["rows"].num_out)
    return PartResult(counts, tables.file_rows, summary)


def _open(
    config: ReadConfig, inputs: PartReader, part: Part, seen: Counter[str]
) -> tuple[Source, Iterator[Located | Sample | Drop]]:
    """The source of a part, and what its reader makes of it."""
    if config.reader in SET_READERS:
        source = _source(config, {})
        return source, SET_READERS[config.reader](source, set_files(part), seen, _set_options(config))
    paths = {read.file.path: inputs.local_path(read.file) for read in part.reads if read.slot == "files"}
    source = _source(config, {role: paths[name] for role, name in config.files.items()})
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


class _Tables:
    """The output files, written as they fill up, and how much went into them."""

    def __init__(self, folder: Path, rows_per_file: int, has_members: bool) -> None:
        self.file_rows: dict[str, int] = {}
        self._folder = folder
        self._rows_per_file = rows_per_file
        self._samples: list[Sample] = []
        self._members: list[tuple[str, Member]] | None = [] if has_members else None
        self._num_files = 0
        self._drops: list[Drop] = []
        self._out: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = {unit: Counter() for unit in UNITS}
        self._drop_file = pq.ParquetWriter(folder / "drops.parquet", DROP_SCHEMA, compression="zstd")
        self._num_drops = 0
        self.num_hashes = 0  # rows that say what their bytes should be

    def add(self, item: Sample | Drop, member: Member | None) -> None:
        if isinstance(item, Drop):
            self._dropped[f"{item.unit}s"][item.rule] += 1
            self._drops.append(item)
            if len(self._drops) == 10_000:
                self._write_drops()
            return
        self.num_hashes += bool(item.published_hash)
        self._samples.append(item)
        if self._members is not None and member is not None:
            self._members.append((item.key, member))
        if len(self._samples) == self._rows_per_file:
            self._write_samples()

    def close(self) -> None:
        if self._samples:
            self._write_samples()
        self._write_drops()
        self._drop_file.close()
        self.file_rows["drops.parquet"] = self._num_drops

    def count(self, unit: str, num_in: int) -> Count:
        """The balance of a unit; whether it adds up is for the engine to check."""
        return Count(num_in, self._out[unit], dict(sorted(self._dropped[unit].items())))

    def _write_samples(self) -> None:
        self._out["rows"] += len(self._samples)
        self._out["concepts"] += sum(len(sample.concepts) for sample in self._samples)
        self._out["captions"] += sum(len(sample.captions) for sample in self._samples)
        digits = f"{self._num_files:05d}"
        name = f"rows-{digits}.parquet"
        write_table(sample_table(self._samples), self._folder / name)
        self.file_rows[name] = len(self._samples)
        if self._members is not None:
            write_members(self._members, self._folder / f"members-{digits}.parquet")
            self.file_rows[f"members-{digits}.parquet"] = len(self._members)
            self._members = []
        self._num_files += 1
        self._samples = []

    def _write_drops(self) -> None:
        self._drop_file.write_table(drop_table(self._drops))
        self._num_drops += len(self._drops)
        self._drops = []


READ = Stage(
    name="read",
    version=2,
    config_type=ReadConfig,
    slots=("card", "files"),
    plan_parts=plan_read,
    run_part=read_part,
    check=check_sources,
)
