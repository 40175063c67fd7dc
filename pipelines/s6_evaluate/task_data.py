"""Task data: the official files of a downstream task become tables of examples and packs of their media.

One node per evaluation. A part is a slice of one split: `examples.parquet` (media called by the sha256 of their bytes),
`labels.json`, `drops.parquet`, and `media.tar` with `media.parquet` as the download stage writes them. A split is its
parts in order. Whatever would spoil a number is found here, before anything is trained: a wrong file, an id that comes
twice, media that are not there or cannot be decoded.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pydantic

from pipelines.flow.stage import (
    Count,
    Inputs,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Stage,
)
from pipelines.s6_evaluate.packing import MediaRoom, pack_media
from x2vlm.config import FrozenConfig
from x2vlm.data.cards import CardFile
from x2vlm.data.task_cards import TaskCard, TaskSplit, read_split
from x2vlm.data.task_examples import TaskData, check_examples, example_table, labels_to_json
from x2vlm.errors import ConfigError, InvalidSample, SourceUnavailable
from x2vlm.samples import Drop, drop_table, write_table
from x2vlm.tasks.training.splits import DROPS_FILE, EXAMPLES_FILE, LABELS_FILE

NUM_NAMED = 5  # files in a message
NOT_THERE = "missing_media"


class TaskDataConfig(FrozenConfig):
    """The facts that the files of a task are read by, and where its media lie.

    `card`: as far as it counts (`facts_of`). `files`: by split, for each of its parts the role of each file and its
    number among the node's files. `media_root`: a folder or the URI of a bucket; None where the files themselves hold
    the media. At most `max_missing` of a split's examples may be without usable media: they are counted drops. A split
    is read in `parts[split]` parts (default: one for each `bytes_per_part` of its files), so that a crash loses no
    more than one.
    """

    card: TaskCard
    files: dict[str, tuple[dict[str, int], ...]] = pydantic.Field(min_length=1)
    media_root: str | None = None
    max_missing: float = pydantic.Field(default=0.001, ge=0, lt=1)
    parts: dict[str, int] = {}
    bytes_per_part: int = pydantic.Field(default=32 * 2**20, ge=1)

    @pydantic.model_validator(mode="after")
    def _parts_are_of_splits(self) -> "TaskDataConfig":
        if unknown := sorted(set(self.parts) - set(self.files)):
            raise ValueError(f"parts.{unknown[0]}: there is no such split; there are {', '.join(sorted(self.files))}")
        return self


def facts_of(card: TaskCard, splits: Mapping[str, str]) -> TaskCard:
    """What of a card decides which examples come out; `splits`: our name of each split -> the card's.

    Titles, licences and notes are left out: who corrects one reads nothing anew.
    """
    found = {}
    for name, original in splits.items():
        split = card.split(original)
        parts = tuple(
            part.model_copy(update={"read_as": part.read_as or original, "files": _bare(part.files)})
            for part in split.all_parts
        )
        found[name] = TaskSplit(parts=parts, examples=split.examples, texts=split.texts)
    return TaskCard(
        id=card.id,
        title="",
        task="",
        licence="",
        availability="open",
        reader=card.reader,
        options=card.options,
        files=_bare(card.files),
        splits=found,
    )


def plan_task_data(config: TaskDataConfig, inputs: Inputs) -> list[Part]:
    """The parts of every split, in order; each reads all files of its split."""
    files = [file for source in inputs["files"] for part in source.parts for file in part.files]
    planned = []
    for split, read_together in config.files.items():
        roles = [(number, role) for number, roles in enumerate(read_together) for role in sorted(roles)]
        reads = tuple(Read("files", files[read_together[number][role]]) for number, role in roles)
        count = config.parts.get(split) or math.ceil(sum(r.file.bytes for r in reads) / config.bytes_per_part)
        for number in range(max(1, count)):
            spec = {"split": split, "roles": [list(role) for role in roles], "part": number, "of": max(1, count)}
            planned.append(Part(f"{split}-{number:05d}", reads, spec))
    return planned


def task_data_part(config: TaskDataConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Read a split, check all of it, and write this part's slice.

    ConfigError for an empty split and ids that come twice, SourceUnavailable where too many media are missing or
    broken; both name the first, and the remedy.
    """
    split, number, of = str(part.spec["split"]), int(part.spec["part"]), int(part.spec["of"])
    where = f"{config.card.id}, split {split}"
    data = _read(config, inputs, part, where)
    media = MediaRoom(config.media_root, data.inline_media, where)
    missing = _check_presence(config, data, media, where)
    size = len(data.examples)
    own = data.examples[size * number // of : size * (number + 1) // of]
    present = [example for example in own if not missing.intersection(example.media)]
    with TemporaryDirectory(prefix="x2vlm-media-") as scratch:
        packed = pack_media(out.path, [name for e in present for name in e.media], media, Path(scratch))
    without = missing_of(data, missing)
    kept, drops = [], [_drop(config, e.example_id, NOT_THERE, "") for e in own if missing.intersection(e.media)]
    num_absent = len(drops)
    for example in present:
        if broken := [name for name in example.media if name in packed.broken]:
            drops.append(_drop(config, example.example_id, packed.broken[broken[0]].rule, broken[0]))
            continue
        names = tuple(packed.sha256[name] for name in example.media)
        kept.append(replace(example, media=names))
    num_lost = len(drops)
    _check_share(config, len(without) + num_lost - num_absent, size, packed.broken, media, where)
    if number == 0:
        drops = [*(drop for drop in data.dropped if drop.unit == "row"), *drops]
    write_table(example_table(kept), out.path / EXAMPLES_FILE)
    (out.path / LABELS_FILE).write_text(labels_to_json(data) + "\n", encoding="utf-8")
    write_table(drop_table(drops), out.path / DROPS_FILE)
    dropped = Counter(drop.rule for drop in drops)
    return PartResult(
        counts={"rows": Count(len(kept) + len(drops), len(kept), dict(dropped))},
        file_rows={EXAMPLES_FILE: len(kept), DROPS_FILE: len(drops)},
        summary={
            "split": split,
            "num_labels": len(data.labels),
            "num_media": len(packed.sha256),
            "num_lost": num_lost,
            "num_read": size,
        },
    )


def finish_task_data(config: TaskDataConfig, parts: Sequence[PartSummary]) -> Mapping[str, Any]:
    """Examples, labels and drops of every split. SourceUnavailable if its parts together lack too many media."""
    found: dict[str, dict[str, Any]] = {}
    lost: Counter[str] = Counter()
    for part in parts:
        lost[part.summary["split"]] += part.summary["num_lost"]
        if lost[part.summary["split"]] > config.max_missing * part.summary["num_read"]:
            raise SourceUnavailable(
                f"{config.card.id}, split {part.summary['split']}: media of {lost[part.summary['split']]} of "
                f"{part.summary['num_read']} examples are missing or broken, more than `max_missing` "
                f"({config.max_missing:g}) allows; drops.parquet of its parts names them. Copy them again, and run "
                "task_data with --force"
            )
        split = found.setdefault(
            part.summary["split"], {"num_examples": 0, "num_labels": part.summary["num_labels"], "dropped": {}}
        )
        split["num_examples"] += part.counts["rows"].num_out
        for rule, count in part.counts["rows"].dropped.items():
            split["dropped"][rule] = split["dropped"].get(rule, 0) + count
    if empty := [name for name, split in found.items() if not split["num_examples"]]:
        raise ConfigError(f"{config.card.id}: no example of split {', '.join(empty)} is usable")
    return {"splits": found}


def _read(config: TaskDataConfig, inputs: PartReader, part: Part, where: str) -> TaskData:
    split = str(part.spec["split"])
    with TemporaryDirectory(prefix="x2vlm-task-") as folder:
        files: list[dict[str, Path]] = [{} for _ in config.files[split]]
        for (number, role), read in zip(part.spec["roles"], part.reads, strict=True):
            # A fetched file may have another name, and readers of a user's own files go by the suffix.
            path = Path(folder, str(number), role, read.file.path)
            path.parent.mkdir(parents=True)
            path.symlink_to(inputs.local_path(read.file).resolve())
            files[number][role] = path
        data = read_split(config.card, split, files)
    try:
        check_examples(data.examples, where)
    except InvalidSample as error:
        names = ", ".join(sorted({read.file.path for read in part.reads}))
        raise ConfigError(
            f"{error.message} ({names}, {len(data.dropped)} rows dropped); are these the files of split {split}?"
        ) from None
    return data


def _bare(files: Mapping[str, CardFile]) -> dict[str, CardFile]:
    """Roles alone: what the files hold is in the fingerprint by itself."""
    return {role: CardFile(path=role) for role in files}


def _check_presence(config: TaskDataConfig, data: TaskData, media: MediaRoom, where: str) -> set[str]:
    """The media of the split that are not there; SourceUnavailable if they are more than may be missing."""
    names = dict.fromkeys(name for example in data.examples for name in example.media)
    missing = media.missing(names)
    without = missing_of(data, set(missing))
    if len(without) > config.max_missing * len(data.examples):
        raise SourceUnavailable(
            f"{where}: {len(missing)} of {len(names)} media files are not below {media.told}, so {len(without)} of "
            f"{len(data.examples)} examples could not be asked: {', '.join(missing[:NUM_NAMED])}"
            f"{' ...' if len(missing) > NUM_NAMED else ''}. Put them there, or give the folder that holds them as "
            f"`media_root` (--media-root); `max_missing` is the share that may be missing, {config.max_missing:g}"
        )
    return set(missing)


def missing_of(data: TaskData, missing: set[str]) -> list[str]:
    """Ids of the examples of a split that lack some of their media."""
    return [example.example_id for example in data.examples if missing.intersection(example.media)]


def _check_share(
    config: TaskDataConfig, num_lost: int, size: int, broken: Mapping[str, InvalidSample], media: MediaRoom, where: str
) -> None:
    if broken and num_lost > config.max_missing * size:
        told = "; ".join(f"{name}: {error}" for name, error in list(broken.items())[:NUM_NAMED])
        raise SourceUnavailable(
            f"{where}: {len(broken)} media files below {media.told} cannot be decoded, more than `max_missing` "
            f"({config.max_missing:g} of {size} examples) allows: {told}. Copy them again"
        )


def _drop(config: TaskDataConfig, example_id: str, rule: str, item: str) -> Drop:
    source = config.card.id
    return Drop(key=example_id, source=source, source_row=example_id, stage="task_data", rule=rule, item=item)


TASK_DATA = Stage(
    name="task_data",
    version=1,
    config_type=TaskDataConfig,
    slots=("files",),
    plan_parts=plan_task_data,
    run_part=task_data_part,
    finish=finish_task_data,
)
