"""Decisions about rows by stages that compare all sources, split by the part of the rows.

A part of such a stage writes one file with a segment for every part of the rows about which it decides something. A
later stage reads the segment of its own rows alone: decisions about others never make it run again, and where nothing
was decided there is nothing to read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.flow.segments import SegmentWriter, read_segment
from pipelines.flow.stage import Input, InputFile, InputPart, Inputs, PartReader, Read
from x2vlm.errors import ConfigError
from x2vlm.samples import CAPTION_TYPE, CONCEPT_TYPE

DECISION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("rule", pa.string()),  # why the row is dropped; "" if it is kept and only gets texts
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("reason", pa.string()),
        # Items that the row takes over from its dropped duplicates.
        ("captions", pa.list_(CAPTION_TYPE)),
        ("concepts", pa.list_(CONCEPT_TYPE)),
    ]
)


DECISIONS = "decisions.arrow"
GROUP_SIZE = 64  # parts of the rows that are read, or decided about, by one part
OWNED_SCHEMA = DECISION_SCHEMA.append(pa.field("owner", pa.string()))  # with the name of the part of the row


@dataclass(frozen=True)
class RowsPart:
    """One part of the rows of one source, with its scores. `name` is unique among all sources."""

    name: str
    node: str
    rows: InputPart
    scores: InputPart
    slots: tuple[str, str] = ("rows", "scores")  # of the rows and of the scores
    source: int = 0  # number of its artifact
    place: int = 0  # number of the part in its artifact

    def reads(self, *score_files: str) -> tuple[Read, ...]:
        """The rows, and those files of the scores."""
        files = [Read(self.slots[0], self.rows.file("rows.parquet"))]
        return (*files, *(Read(self.slots[1], self.scores.file(name)) for name in score_files))


def rows_parts(inputs: Inputs, stage: str, rows_slot: str = "rows", scores_slot: str = "scores") -> list[RowsPart]:
    """Every part of every `rows` artifact with the part of the same name of the `scores` artifact at its place."""
    rows, scores = inputs[rows_slot], inputs[scores_slot]
    if len(rows) != len(scores):
        raise ConfigError(
            f"{stage} reads {len(rows)} {rows_slot} artifacts but {len(scores)} {scores_slot} artifacts; "
            "name them in the same order, one scores artifact for each rows artifact"
        )
    parts = []
    for number, (rows_input, scores_input) in enumerate(zip(rows, scores, strict=True)):
        scored = {part.name: part for part in scores_input.parts}
        if missing := [part.name for part in rows_input.parts if part.name not in scored]:
            raise ConfigError(
                f"{scores_input.node} has no part {missing[0]} of {rows_input.node}; is it of that source?"
            )
        parts += [
            RowsPart(
                part_name(number, part.name),
                rows_input.node,
                part,
                scored[part.name],
                (rows_slot, scores_slot),
                number,
                place,
            )
            for place, part in enumerate(rows_input.parts)
        ]
    return parts


def part_name(source: int, own: str) -> str:
    """The name of a `RowsPart`: the place of its source, and its name there."""
    return f"{source:03d}-{own}"


def media_part(name: str, media: Sequence[Input]) -> InputPart:
    """The part with the media of the rows of the `RowsPart` of this name; ConfigError if there is none.

    media[i] is the download that the rows of source i come from, with parts of the same names.
    """
    artifact, own = _media_place(name, media)
    return artifact.part(own)


def check_media(names: Iterable[str], media: Sequence[Input]) -> None:
    """ConfigError if any `RowsPart` of these names has no `media_part`."""
    for name in names:
        _media_place(name, media)


def _media_place(name: str, media: Sequence[Input]) -> tuple[Input, str]:
    number, _, own = name.partition("-")
    if int(number) >= len(media) or not media[int(number)].has_part(own):
        raise ConfigError(
            f"no media for the rows of part {name}: part {own} of media artifact {int(number)} is not among the "
            f"{len(media)} that were given; name the download of every source, in the order of the rows"
        )
    return media[int(number)], own


def groups_of(parts: Sequence[RowsPart]) -> dict[str, list[RowsPart]]:
    """The parts by GROUP_SIZE, those of one source together; all in one group, "all", if they are that few.

    Appending to a source moves no part of another one to another group.
    """
    if len(parts) <= GROUP_SIZE:
        return {"all": list(parts)}
    groups: dict[str, list[RowsPart]] = {}
    for part in parts:
        groups.setdefault(f"{part.source:03d}-{part.place // GROUP_SIZE:05d}", []).append(part)
    return groups


class DecisionReads:
    """What the artifacts in `slot` decided, by part of the rows; their listings are read once."""

    def __init__(self, inputs: Inputs, slot: str = "decisions") -> None:
        self._slot = slot
        self._found = [(artifact.node, _segments_by_owner(artifact)) for artifact in inputs[slot]]

    def about(self, part: RowsPart, decided_as: int | None = None) -> tuple[Read, ...]:
        """The decisions about the rows of `part`; ConfigError for an artifact that did not look at them.

        `decided_as` is the place of its source among those that the artifacts were made of; None: as here.
        """
        name = part.name if decided_as is None else part_name(decided_as, part.rows.name)
        reads = []
        for node, segments in self._found:
            if name not in segments:
                raise ConfigError(f"{node} says nothing about part {name} of {part.node}; does it read that source?")
            if (file := segments[name]) is not None:
                reads.append(Read(self._slot, file))
        return tuple(reads)


def _segments_by_owner(artifact: Input) -> dict[str, InputFile | None]:
    """By name of a part of the rows the decisions about it, None where there are none."""
    found: dict[str, InputFile | None] = {}
    for part in artifact.parts:
        segments = part.segments(DECISIONS)
        found |= {owner: segments.get(owner) for owner in part.summary["owners"]}
    return found


def read_decisions(inputs: PartReader, read: Read) -> pa.Table:
    """The decisions that `DecisionReads.about` found, as DECISION_SCHEMA by key."""
    return read_segment(inputs.open(read.file))


def write_decisions(folder: Path, decisions: pa.Table) -> dict[str, int]:
    """DECISIONS of a table of OWNED_SCHEMA, a segment for every owner that has some, by key; rows by file name.

    ValueError for two decisions about one row.
    """
    decisions = decisions.cast(OWNED_SCHEMA).sort_by([("owner", "ascending"), ("key", "ascending")])
    names = decisions.select(["owner", "key"])
    counted = names.group_by(["owner", "key"]).aggregate([([], "count_all")])
    repeated = counted.filter(pc.greater(counted["count_all"], 1))
    if repeated.num_rows:
        raise ValueError(f"two decisions about {repeated['key'][0].as_py()}: a stage decides about a row once")
    owners = np.array(decisions["owner"].to_pylist(), dtype=object)
    values, starts = np.unique(owners, return_index=True) if len(owners) else (owners, np.empty(0, np.int64))
    ends = [*starts[1:], len(owners)]
    with SegmentWriter(folder / DECISIONS) as writer:
        for owner, start, end in zip(values, starts, ends, strict=False):
            writer.add(str(owner), decisions.slice(start, end - start).select(DECISION_SCHEMA.names))
    return writer.file_rows
