"""Cards of downstream data: which official files make up each split of a task, how large it is, and who may have it.

A card holds facts only (`datasets/downstream/<id>.yaml`), like the cards of pre-training data beside it. A split is
made of one part, or of several that are joined (VQA's training set with Visual Genome's questions; a file a language).

    card = load_task_card(Path("datasets/downstream/vqav2.yaml"))
    data = read_split(card, "val", [{role: Path(name) for role, name in part.items()}
                                    for part in part_paths(card, "val", project_root, "/data")])
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from x2vlm.config import FrozenConfig, did_you_mean, parse_config, read_yaml
from x2vlm.data.cards import Availability, CardFile
from x2vlm.data.readers.downstream import check_roles, read_task, task_reader
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable
from x2vlm.samples import Drop, sample_key

logger = logging.getLogger(__name__)


class TaskPart(FrozenConfig):
    """Files that are read together. `reader` and `options` where they differ from the card's.

    `read_as`: the split's name inside the files where it is another.
    """

    files: dict[str, CardFile] = {}
    reader: str | None = None
    options: dict[str, Any] = {}
    read_as: str | None = None


class TaskSplit(FrozenConfig):
    """One split: the files of its only part, or `parts`.

    `examples` and `texts` (captions, questions, phrases) are its published or counted numbers; another number found is
    a warning.
    """

    files: dict[str, CardFile] = {}
    reader: str | None = None
    options: dict[str, Any] = {}
    parts: tuple[TaskPart, ...] = ()
    read_as: str | None = None
    examples: int | None = pydantic.Field(default=None, ge=1)
    texts: int | None = pydantic.Field(default=None, ge=1)
    has_answers: bool = True  # False where only a test server knows them
    notes: str = ""

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.parts and (self.files or self.options or self.reader or self.read_as):
            raise ValueError("give either `parts`, or `files`, `options`, `reader` and `read_as`")
        return self

    @property
    def all_parts(self) -> tuple[TaskPart, ...]:
        """The parts in their order."""
        own = TaskPart(files=self.files, reader=self.reader, options=self.options, read_as=self.read_as)
        return self.parts or (own,)


class TaskCard(FrozenConfig):
    """The data of one downstream task."""

    id: str = pydantic.Field(pattern="^[a-z0-9_]+$")
    title: str
    task: str  # a task of `x2vlm.tasks.catalog`
    homepage: str = ""
    paper: str = ""
    licence: str  # of the annotations
    licence_notes: str = ""
    availability: Availability
    access: str = ""  # how to get files that are not free to download; required for gated data
    media: str = ""  # which images or clips, and where they lie below the folder of media
    reader: str
    options: dict[str, Any] = {}  # of the reader, for all splits
    root: str = ""  # as in the cards of pre-training data
    media_root: str = ""  # folder of the media below the project's root, absolute or a URI; "" where users keep them
    files: dict[str, CardFile] = {}  # that every part has, such as a list of answers
    checksums: Literal["published", "unknown"] = "unknown"
    splits: dict[str, TaskSplit]
    notes: str = ""

    @pydantic.model_validator(mode="after")
    def _access_is_stated(self) -> Self:
        if self.availability in ("gated", "withdrawn") and not self.access:
            raise ValueError("data that are not open must say how to get them: `access`")
        published = any(file.sha256 for split in self.splits.values() for file in self._files(split))
        if published != (self.checksums == "published"):
            raise ValueError(
                "`checksums: published` goes with files that have a `sha256`, `unknown` with files without"
            )
        return self

    def _files(self, split: TaskSplit) -> list[CardFile]:
        return [file for part in split.all_parts for file in (*self.files.values(), *part.files.values())]

    @pydantic.model_validator(mode="after")
    def _parts_are_readable(self) -> Self:
        if not self.splits:
            raise ValueError("a card has at least one split")
        for name, split in self.splits.items():
            for part in split.all_parts:
                reader = part.reader or self.reader
                check_roles(reader, {**self.files, **part.files})
                try:
                    parse_config(task_reader(reader).options, self.part_options(part), f"options of `{reader}`")
                except ConfigError as error:
                    raise ValueError(f"splits.{name}: {error}") from None
        return self

    def part_options(self, part: TaskPart) -> dict[str, Any]:
        """The options of a part: its own over those of the card that its reader knows."""
        known = task_reader(part.reader or self.reader).options.model_fields
        return {key: value for key, value in self.options.items() if key in known} | part.options

    def split(self, name: str) -> TaskSplit:
        """The split of that name; ConfigError, with those that there are, if there is none."""
        if name not in self.splits:
            raise ConfigError(f"card {self.id}: no split `{name}`; {did_you_mean(name, self.splits)}")
        return self.splits[name]


def load_task_card(path: Path) -> TaskCard:
    """The card in a YAML file; ConfigError names the file, the key and the nearest known one."""
    card = parse_config(TaskCard, read_yaml(path), str(path))
    if card.id != path.stem:
        raise ConfigError(f"{path}: id is `{card.id}`, the file name says `{path.stem}`; make them equal")
    return card


def part_paths(card: TaskCard, split: str, project_root: Path, data_root: str | None = None) -> list[dict[str, str]]:
    """For each part of a split: role -> where the file lies.

    Below the card's own root, or at `<data_root>/<card id>/<path>`; `data_root` may be any URI prefix. Nothing is
    checked to exist. ConfigError if neither root is known.
    """
    if card.root:
        base = card.root.rstrip("/") if "://" in card.root else str(project_root / card.root)
    elif data_root:
        base = f"{data_root.rstrip('/')}/{card.id}"
    else:
        raise ConfigError(
            f"card {card.id}: its files are not shipped; set `data_root` to the folder that holds {card.id}/"
        )
    parts = card.split(split).all_parts
    return [{role: f"{base}/{file.path}" for role, file in {**card.files, **part.files}.items()} for part in parts]


def read_split(card: TaskCard, split: str, files: Sequence[Mapping[str, Path]]) -> TaskData:
    """The examples of a split: those of its parts, whose files are given as `part_paths` lists them, one after another.

    An example whose id a part before has is a drop. SourceUnavailable as `read_task`, and where parts have different
    lists of labels; CorruptArtifact where a published checksum does not fit; a warning where counts differ.
    """
    wanted = card.split(split)
    examples: dict[str, Example] = {}
    drops: list[Drop] = []
    labels: TaskData | None = None
    media: dict[str, bytes] = {}
    for number, (part, paths) in enumerate(zip(wanted.all_parts, files, strict=True)):
        _check_sums(card, {**card.files, **part.files}, paths)
        data = read_task(
            part.reader or card.reader,
            paths,
            part.read_as or split,
            card.part_options(part),
            name=f"{card.id} ({split})",
            source=card.id,
        )
        if labels is not None and data.labels and labels.labels and data.labels != labels.labels:
            raise SourceUnavailable(
                f"card {card.id}: part {number} of split `{split}` has {len(data.labels)} labels that are not the "
                f"{len(labels.labels)} of the parts before. Give all parts the same list"
            )
        labels = data if labels is None or not labels.labels else labels
        drops += data.dropped
        media |= data.inline_media
        for example in data.examples:
            if example.example_id in examples:
                reason = f"{example.example_id} is in a part before"
                key = sample_key(card.id, example.example_id)
                drops.append(Drop(key, card.id, example.example_id, "read", "duplicate_id", reason=reason))
            else:
                examples[example.example_id] = replace(example, split=split)
    assert labels is not None, "a split has at least one part"
    found = TaskData(tuple(examples.values()), labels.labels, labels.label_tags, media, tuple(drops))
    _compare_counts(card, split, found)
    return found


def _check_sums(card: TaskCard, files: Mapping[str, CardFile], paths: Mapping[str, Path]) -> None:
    for role, file in files.items():
        if file.sha256 and paths[role].is_file():
            with paths[role].open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != file.sha256:
                raise CorruptArtifact(
                    f"card {card.id}: {role} file {paths[role].name} has sha256 {digest[:12]}..., the card expects "
                    f"{file.sha256[:12]}.... Download it again, or correct the card"
                )


def _compare_counts(card: TaskCard, split: str, data: TaskData) -> None:
    wanted = card.split(split)
    counts = {"examples": len(data.examples), "texts": sum(len(example.texts) for example in data.examples)}
    for unit, found in counts.items():
        expected = getattr(wanted, unit)
        if expected is not None and found != expected:
            logger.warning(
                "event=other_count card=%s split=%s unit=%s found=%d expected=%d dropped=%d",
                *(card.id, split, unit, found, expected, len(data.dropped)),
            )
