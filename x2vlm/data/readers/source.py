"""The input of every reader, and the ways in which it rejects a row, a concept or a whole file."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from x2vlm.data.readers.own.layout import BoxFormat, ColumnMap
from x2vlm.data.tables.csv_rows import csv_rows
from x2vlm.data.tables.rows import BadRow, ByteRange, Row, UnreadableTable
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Drop, MediaKind, Sample, sample_key

Fault = tuple[str, str]  # why an annotation is invalid: rule, reason
STAGE = "read"  # the stage that drops made by readers are counted under


@dataclass(frozen=True)
class Source:
    """Upstream files of one source, by role, and the card's values that hold for all its rows."""

    card: str  # id of the card, for messages
    name: str  # goes into every sample's key
    split: str
    files: Mapping[str, Path]
    licence: str = ""  # of rows that do not name their own
    language: str = "en"  # of texts that do not name their own
    # Of the reader `table` alone: what the card says of the columns, and the folder that stands for `media_url`.
    columns: ColumnMap = field(default_factory=dict)
    boxes: BoxFormat | None = None
    media_url: str = ""
    media_folder: str = ""
    kind: MediaKind = "image"  # of rows whose address does not tell
    # Of a slice, for the readers in `readers.SLICED`: the rows to read of the one file of rows, and the files that come
    # before it, by role, where rows of one id count once.
    within: ByteRange | None = None
    earlier: Mapping[str, Path] = field(default_factory=dict)

    @property
    def is_first_slice(self) -> bool:
        """Whether the first row of a file is among those to read."""
        return self.within is None or self.within.start == 0

    @property
    def before(self) -> ByteRange | None:
        """What comes before the slice in its file, None if nothing does."""
        return None if self.within is None or self.within.start == 0 else ByteRange(0, self.within.start)

    def file(self, role: str) -> Path:
        """The file of `role`; SourceUnavailable if the card names none or it is missing."""
        if role not in self.files:
            roles = ", ".join(sorted(self.files)) or "none"
            raise SourceUnavailable(
                f"card {self.card}: no file for role `{role}` (there are: {roles}). "
                f"Add `{role}: {{path: ...}}` to `files`"
            )
        path = self.files[role]
        if not path.is_file():
            raise SourceUnavailable(
                f"card {self.card}: {role} file {path.name} is missing. Download it, or fix its path"
            )
        return path

    def key(self, source_row: str) -> str:
        """The sample key of a row of this source."""
        return sample_key(self.name, source_row)

    def sample(self, source_row: str, url: str, kind: MediaKind = "image", licence: str = "", **values: Any) -> Sample:
        """The sample of a row: `values` are Sample's other fields, a licence that is not named is the card's."""
        return Sample(
            key=self.key(source_row),
            source=self.name,
            source_row=source_row,
            split=self.split,
            kind=kind,
            url=url,
            licence=licence or self.licence,
            **values,
        )

    def drop(self, source_row: str, rule: str, reason: str = "", value: float | None = None) -> Drop:
        """The drop of a whole row."""
        return Drop(self.key(source_row), self.name, source_row, STAGE, rule, value=value, reason=reason)

    def drop_bad(self, bad: BadRow, source_row: str = "") -> Drop:
        """The drop of a row that could not be read; its key is its line in the file where `source_row` gives none."""
        return self.drop(source_row or f"line {bad.line}", bad.rule, bad.reason, bad.value)

    def drop_item(self, source_row: str, unit: str, item: str, rule: str, reason: str = "") -> Drop:
        """The drop of a concept or caption of a row; `item` is its annotation id."""
        return Drop(self.key(source_row), self.name, source_row, STAGE, rule, unit=unit, item=item, reason=reason)

    def keep_concepts(
        self, source_row: str, made: Iterable[tuple[str, Concept | Fault]], kept: list[Concept]
    ) -> Iterator[Drop]:
        """Drops for the invalid annotations of a row; concepts are appended to `kept`.

        `made`: pairs of annotation id and concept or fault.
        """
        for item, one in made:
            if isinstance(one, Concept):
                kept.append(one)
            else:
                yield self.drop_item(source_row, "concept", item, *one)

    def drop_concepts(self, source_row: str, items: Iterable[str]) -> Iterator[Drop]:
        """Drops for the concepts of a row that is dropped itself."""
        for item in items:
            yield self.drop_item(source_row, "concept", item, "row_dropped")

    @contextmanager
    def reading(self, role: str) -> Iterator[None]:
        """What a table of `role` says is wrong with it as a whole becomes SourceUnavailable."""
        try:
            yield
        except UnreadableTable as error:
            self.fail(role, error.problem, error.remedy)

    def fail(self, role: str, problem: str, remedy: str) -> NoReturn:
        """Raise SourceUnavailable: the file as a whole is not as the card describes it."""
        raise SourceUnavailable(f"card {self.card}: {role} file {self.files[role].name}: {problem}. {remedy}")


def read_csv(
    source: Source, role: str, required: tuple[str, ...], within: ByteRange | None = None
) -> Iterator[Row | BadRow]:
    """The rows of a CSV with a header, by column name. SourceUnavailable if a required column is missing."""
    with source.reading(role):
        yield from csv_rows(source.file(role), required, within=within)


def distinct_texts(values: Any) -> tuple[str, ...]:
    """A list of attributes as clean texts, each once and none empty; () for anything but a list."""
    texts = (clean_text(str(value)) for value in (values if isinstance(values, list) else ()))
    return tuple(dict.fromkeys(filter(None, texts)))


def whole_number(value: Any) -> int | None:
    """`value` as a positive whole number of pixels, None where it is missing, NaN, not a number or not positive."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and 1 <= number < 2**31 else None


def finite_number(value: Any) -> float | None:
    """`value` as a number, None where it is missing, NaN, infinite or not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def box_of(values: Any) -> Box | None:
    """Four numbers as a box, None unless they are four finite numbers. The position is not checked."""
    try:
        x, y, w, h = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return Box(x, y, w, h) if all(map(math.isfinite, (x, y, w, h))) else None


def met_before(own: Iterable[str], earlier: Iterable[str]) -> set[str]:
    """Those of a slice's ids that come before it in the source; it holds the slice's ids in memory."""
    mine = set(own)
    return {one for one in earlier if one in mine}
