"""Examples of downstream tasks: what every reader of an official format gives, and what every task takes.

One type for all tasks, so that a task differs from its neighbour by what it does with an example and not by how it is
stored. Fields that a task does not use stay empty:

| task | media | texts | answers | other fields |
|---|---|---|---|---|
| retrieval | the image or clip | its captions | | `group`: equal for rows of one image |
| captioning | the image | its reference captions | | `group`: the image id of the annotations |
| question answering | the image or clip | the question | every given answer, in order | `answer_weights`, `weight` |
| classification (NLVR2, XVNLI) | one or two images | the sentence | the label | `group`: NLVR2's sentence |
| grounding | the image | the phrase | | `box`, `proposals`; `group`: the referred object |
| Winoground | two images | two captions | | `tags` |
| attributes (OVAD) | the image | the noun of the box | | `box`, `attributes` |
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from x2vlm.errors import InvalidSample
from x2vlm.samples import Box, Drop, MediaKind


@dataclass(frozen=True)
class Example:
    """One row of a downstream task; see the module for what each task fills in.

    `media` are names of images or clips: of files below the folder or bucket of media, of entries of
    `TaskData.inline_media`, or, inside the pipeline, sha256 of their bytes. Boxes are in pixels of the oriented
    original.
    """

    example_id: str  # unique within its split
    split: str  # train, val, test, or the official name where there are more: testA, test-P
    media: tuple[str, ...]
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    answer_weights: tuple[float, ...] = ()  # of `answers`; empty: each counts 1 / len(answers)
    weight: float = 1.0  # of the whole example in the training loss
    box: Box | None = None
    proposals: tuple[Box, ...] = ()  # of a detector, for weakly supervised grounding
    attributes: tuple[int, ...] = ()  # one per label: 1 present, 0 absent, -1 not annotated
    kind: MediaKind = "image"
    group: str = ""
    language: str = "en"
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """A split of a task, as read: examples in the order of the files, and what they refer to.

    `labels`: the answers of a question-answering list, the classes of a classifier or the attributes, in official
    order. `label_tags`: for each label what its metric is divided by (OVAD: head, medium or tail), or empty. `dropped`
    are rows of the files that are no usable example, each with its reason.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    label_tags: tuple[tuple[str, ...], ...] = ()
    inline_media: Mapping[str, bytes] = field(default_factory=dict)  # media that an annotation file itself holds
    dropped: tuple[Drop, ...] = ()


BOX_TYPE = pa.struct([("x", pa.float64()), ("y", pa.float64()), ("w", pa.float64()), ("h", pa.float64())])
EXAMPLE_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("split", pa.string()),
        ("media", pa.list_(pa.string())),
        ("texts", pa.list_(pa.string())),
        ("answers", pa.list_(pa.string())),
        ("answer_weights", pa.list_(pa.float64())),
        ("weight", pa.float64()),
        ("box", BOX_TYPE),
        ("proposals", pa.list_(BOX_TYPE)),
        ("attributes", pa.list_(pa.int8())),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("language", pa.string()),
        ("tags", pa.list_(pa.string())),
    ]
)


def example_table(examples: Iterable[Example]) -> pa.Table:
    """Examples as a table of EXAMPLE_SCHEMA, in the order given."""
    rows = list(examples)
    columns = {name: [_plain(getattr(row, name)) for row in rows] for name in EXAMPLE_SCHEMA.names}
    return pa.table(columns, schema=EXAMPLE_SCHEMA)


def examples_of(table: pa.Table) -> list[Example]:
    """The rows of a table of EXAMPLE_SCHEMA."""
    return [_example(row) for row in table.to_pylist()]


def check_examples(examples: Sequence[Example], origin: str) -> None:
    """InvalidSample, naming `origin` and the example, for an id that occurs twice and for an empty split."""
    if not examples:
        raise InvalidSample("empty_split", f"{origin}: holds no example")
    seen: set[str] = set()
    for example in examples:
        if example.example_id in seen:
            raise InvalidSample("duplicate_id", f"{origin}: example {example.example_id} occurs twice")
        seen.add(example.example_id)


def labels_to_json(data: TaskData) -> str:
    """Labels and their tags as the text of a JSON file, which `labels_of_json` reads."""
    return json.dumps({"labels": list(data.labels), "label_tags": [list(tags) for tags in data.label_tags]}, indent=1)


def labels_of_json(text: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Labels and label tags, as `labels_to_json` wrote them."""
    values = json.loads(text)
    return tuple(values["labels"]), tuple(tuple(tags) for tags in values["label_tags"])


def _plain(value: object) -> object:
    if isinstance(value, Box):
        return {"x": value.x, "y": value.y, "w": value.w, "h": value.h}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _example(row: Mapping[str, object]) -> Example:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    values["box"] = None if row["box"] is None else Box(**row["box"])  # type: ignore[arg-type]
    values["proposals"] = tuple(Box(**box) for box in row["proposals"])  # type: ignore[attr-defined]
    return Example(**values)  # type: ignore[arg-type]
