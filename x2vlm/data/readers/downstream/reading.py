"""What readers of downstream files share: rows of JSON files, fields of a row, names of media, books of what was kept.

A bad row becomes a counted `Drop` that names the row; a file as a whole that is not what it should be raises
SourceUnavailable that names role, file and remedy. What a row says of its example is checked by functions that raise
InvalidSample, which `Reading.keep` turns into the drop.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from string import Formatter
from typing import Any, ParamSpec

from x2vlm.config import did_you_mean
from x2vlm.data.readers.json_stream import stream_dict, stream_list
from x2vlm.data.readers.own.formats import head_of
from x2vlm.data.readers.source import Source, box_of, finite_number
from x2vlm.data.tables.json_rows import json_rows
from x2vlm.data.tables.rows import BadRow
from x2vlm.data.tables.values import text_of
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.samples import Box, Drop

P = ParamSpec("P")
Record = Mapping[str, Any]
ROUNDING = 1.0  # pixels by which official boxes reach beyond their image (COCO rounds to hundredths, sides to pixels)
NO_FIELD = "no_media_field"
JSON_ROWS = "Expected a JSON list of objects, or one object a line"


@dataclass
class Reading:
    """One split of a task while it is read: its files, the examples and drops so far."""

    source: Source
    split: str
    language: str = "en"
    examples: list[Example] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def keep(self, row: str, make: Callable[P, Example], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add the example that `make` gives; a drop of the row where it raises InvalidSample, or the id is there."""
        try:
            example = make(*args, **kwargs)
        except InvalidSample as error:
            self.drop(row, error.rule, error.message)
            return
        if example.example_id in self.ids:
            self.drop(row, "duplicate_id", f"{example.example_id} again")
            return
        self.ids.add(example.example_id)
        self.examples.append(example)

    def drop(self, row: str, rule: str, reason: str = "") -> None:
        """Count a row as dropped."""
        self.drops.append(self.source.drop(row, rule, reason))

    def drop_item(self, row: str, unit: str, item: str, rule: str, reason: str = "") -> None:
        """Count a part of a row, such as one caption of several, as dropped."""
        self.drops.append(self.source.drop_item(row, unit, item, rule, reason))

    def example(
        self,
        example_id: str,
        media: tuple[str, ...],
        texts: tuple[str, ...],
        answers: tuple[str, ...] = (),
        **values: Any,
    ) -> Example:
        """An example of this split and language, with `values` of Example's other fields."""
        return Example(self.own_id(example_id), self.split, media, texts, answers, language=self.language, **values)

    def own_id(self, example_id: object) -> str:
        """An id that stays unique where several languages make up one split: "de:1234", in English "1234"."""
        return str(example_id) if self.language == "en" else f"{self.language}:{example_id}"

    def data(self, role: str, **values: Any) -> TaskData:
        """What was read. If it was not a single example: ConfigError where the pattern of media names a field that no
        row has, else SourceUnavailable about the file of `role`."""
        if not self.examples:
            if self.drops and all(drop.rule == NO_FIELD for drop in self.drops):
                raise ConfigError(f"{self.source.card}: {self.drops[0].reason}")
            first = (
                f"; row {self.drops[0].source_row}: {self.drops[0].rule} {self.drops[0].reason}" if self.drops else ""
            )
            problem = f"no example of split `{self.split}` among its rows ({len(self.drops)} dropped{first})"
            self.source.fail(role, problem, "Give the file of this split and format")
        return TaskData(tuple(self.examples), dropped=tuple(self.drops), **values)


def json_records(reading: Reading, role: str) -> Iterator[tuple[int, Record]]:
    """(number, object) of a JSON list or of JSON lines, told by the first character; others become drops."""
    source = reading.source
    with source.reading(role):
        is_list = head_of(source.file(role)).lstrip()[:1] == b"["
        rows = stream_list(source, role, JSON_ROWS) if is_list else json_rows(source.file(role))
        for number, row in enumerate(rows):
            if isinstance(row, BadRow):
                reading.drop(str(number), row.rule, f"line {row.line}: {row.reason}")
                continue
            value = row if is_list else row.values
            if not isinstance(value, dict):
                reading.drop(str(number), "malformed_row", f"not an object: {value!r:.80}")
                continue
            yield number, value


def whole_json(source: Source, role: str) -> Any:
    """A small JSON file as one value: a list, or an object with its keys in file order."""
    with source.reading(role):
        start = head_of(source.file(role)).lstrip()[:1]
        if start == b"[":
            return list(stream_list(source, role, "Expected a JSON list"))
        return dict(stream_dict(source, role, "Expected a JSON list or object"))


def answer_list(source: Source, role: str) -> tuple[str, ...]:
    """Answers in the order of their numbers, from a list of texts or an object {answer: number}; () without the role.

    SourceUnavailable where an answer is there twice, or the numbers are not 0, 1, 2 ...
    """
    if role not in source.files:
        return ()
    value = whole_json(source, role)
    if isinstance(value, dict):
        if sorted(value.values(), key=str) != sorted(range(len(value)), key=str):
            source.fail(
                role, f"the numbers of its {len(value)} answers are not 0 to {len(value) - 1}", "Correct the file"
            )
        value = sorted(value, key=lambda answer: value[answer])
    wrong = next((answer for answer in value if not isinstance(answer, str)), None)
    if wrong is not None:
        source.fail(role, f"{wrong!r:.80} is no answer", 'Expected ["yes", "no", ...] or {"yes": 0, ...}')
    if len(set(value)) < len(value):
        twice = next(answer for answer in value if value.count(answer) > 1)
        source.fail(role, f"the answer {twice!r} is there twice", "An answer list names each once")
    return tuple(value)


def text_field(row: Record, *names: str) -> str:
    """The text of the first of `names` that the row has, without runs of white space; InvalidSample if it is empty."""
    for name in names:
        if name in row:
            value = row[name]
            if not isinstance(value, str):
                raise InvalidSample("malformed_row", f"{name} is no text: {value!r:.80}")
            if text := clean_text(value):
                return text
            raise InvalidSample("empty_text", f"{name} is empty")
    raise InvalidSample("malformed_row", f"no {' or '.join(names)}; it has {', '.join(sorted(row)) or 'nothing'}")


def id_field(row: Record, *names: str) -> str:
    """The id of a row, a number or a text, as text; InvalidSample if there is none."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and (text := text_of(value).strip()):
            return text
    raise InvalidSample("malformed_row", f"no {' or '.join(names)}")


def texts_field(row: Record, name: str) -> list[str]:
    """A list of texts, or one text; InvalidSample for anything else."""
    value = row.get(name)
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise InvalidSample("malformed_row", f"{name} is no list of texts: {value!r:.80}")
    return listed


def kept_texts(reading: Reading, row: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Captions without runs of white space; each empty one is a drop of its own. InvalidSample if none is left."""
    cleaned = [clean_text(text) for text in texts]
    if not any(cleaned):
        raise InvalidSample("empty_caption", f"none of {len(cleaned)} captions holds a word")
    for number, text in enumerate(cleaned):
        if not text:
            reading.drop_item(row, "caption", str(number), "empty_caption")
    return tuple(filter(None, cleaned))


def checked_box(values: Any, width: Any = None, height: Any = None) -> Box:
    """Four numbers (left, top, width, height in pixels) as a box with an area, inside the image where that is known.

    InvalidSample for anything else; a box may reach `ROUNDING` pixels beyond its image.
    """
    box = box_of(values) if isinstance(values, list | tuple) and len(values) == 4 else None
    if box is None or box.w <= 0 or box.h <= 0:
        raise InvalidSample("malformed_box", f"{values!r:.80} is no left, top, width and height")
    sides = (finite_number(width), finite_number(height))
    ends = zip((box.x + box.w, box.y + box.h), sides, strict=True)
    if min(box.x, box.y) < -ROUNDING or any(side and end > side + ROUNDING for end, side in ends):
        raise InvalidSample("box_outside_image", f"{values!r:.80} is not within {width} x {height} pixels")
    return box


def media_name(pattern: str, fields: Mapping[str, Any]) -> str:
    """`pattern` with the fields of a row: "val2014/COCO_val2014_{image_id:012d}.jpg".

    InvalidSample for a field that the row does not have, and for a value that does not fit or leaves the folder.
    """
    name = []
    for literal, key, spec, conversion in Formatter().parse(pattern):
        name.append(literal)
        if key is None:
            continue
        if key not in fields or conversion:
            hint = did_you_mean(key, fields, "there are")
            raise InvalidSample(NO_FIELD, f"media `{pattern}`: the row has no {{{key}}}; {hint}")
        value = fields[key]
        try:
            name.append(format(int(value), spec) if spec else text_of(value))
        except (TypeError, ValueError):
            raise InvalidSample("malformed_row", f"{key} {value!r:.80} does not fit `{pattern}`") from None
    made = "".join(name)
    path = PurePosixPath(made)
    if not made.strip() or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z][A-Za-z0-9+.-]+:", made):
        raise InvalidSample("outside_media_folder", f"{made!r:.120} is no path below the folder of media")
    return made
