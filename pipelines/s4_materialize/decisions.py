"""Decisions about rows by a stage that reads all sources at once, split by the part of the rows.

Such a stage has one part. It writes one file of decisions for every part of the rows it read, possibly empty, so that a
later stage reads only the file of its own rows: decisions about others never make it run again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.flow.stage import Input, InputFile, InputPart, Inputs, Read
from x2vlm.errors import ConfigError
from x2vlm.samples import CAPTION_TYPE, CONCEPT_TYPE, write_table

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


def decisions_name(part: str) -> str:
    """Name of the file with decisions about the rows of the part called `part` among all sources."""
    return f"decisions-{part}.parquet"


def is_decisions(path: str) -> bool:
    """True for a file of decisions about the rows of one part; its name ends with that part's."""
    return path.startswith("decisions-")


@dataclass(frozen=True)
class RowsPart:
    """One part of the rows of one source, with its scores. `name` is unique among all sources."""

    name: str
    node: str
    rows: InputPart
    scores: InputPart
    slots: tuple[str, str] = ("rows", "scores")  # of the rows and of the scores

    @property
    def decisions(self) -> str:
        """Name of the file with decisions about its rows."""
        return decisions_name(self.name)

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
            RowsPart(f"{number:03d}-{part.name}", rows_input.node, part, scored[part.name], (rows_slot, scores_slot))
            for part in rows_input.parts
        ]
    return parts


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


def decisions_about(part: RowsPart, inputs: Inputs, slot: str = "decisions") -> tuple[Read, ...]:
    """The files of all artifacts in `slot` about the rows of `part`; ConfigError if one has none."""
    return tuple(Read(slot, _file(artifact, part)) for artifact in inputs[slot])


def _file(artifact: Input, part: RowsPart) -> InputFile:
    file = artifact.find(part.decisions)
    if file is None:
        raise ConfigError(
            f"{artifact.node} says nothing about part {part.name} of {part.node}; does it read that source?"
        )
    return file


def write_decisions(folder: Path, parts: Sequence[tuple[str, pa.ChunkedArray]], decisions: pa.Table) -> dict[str, int]:
    """One file per (file name, keys of that part) with the decisions about those keys, sorted by key; rows by file.

    `decisions` has the columns of DECISION_SCHEMA and every key at most once (ValueError). A key that two parts have is
    decided in both.
    """
    decisions = decisions.cast(DECISION_SCHEMA).sort_by("key")
    decided = _as_bytes(decisions["key"])
    if (repeated := decided[1:][decided[1:] == decided[:-1]]).size:
        raise ValueError(f"two decisions about {repeated[0].decode()}: a stage decides about a row once")
    file_rows = {}
    for name, part_keys in parts:
        # One binary search per row: looking up all decisions for every part would be quadratic.
        keys = _as_bytes(part_keys)
        places = np.searchsorted(decided, keys)
        known = places < len(decided)
        known[known] = decided[places[known]] == keys[known]
        table = decisions.take(pa.array(np.unique(places[known])))
        write_table(table, folder / name)
        file_rows[name] = table.num_rows
    return file_rows


def _as_bytes(keys: pa.ChunkedArray) -> NDArray[np.bytes_]:
    return np.array(keys.to_pylist(), dtype="S32")
