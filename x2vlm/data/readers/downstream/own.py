"""A user's own table for a downstream task: captions, boxes with phrases, question-answers, or texts with a label.

CSV, TSV, JSON lines or Parquet, plain or packed. Columns are told by usual names (`ALIASES`) or the option `columns`.
Images and clips are files below the folder of media; addresses of the web are drops, as nothing is fetched here.
"""

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from x2vlm.config import did_you_mean
from x2vlm.data.readers.downstream.options import OwnOptions
from x2vlm.data.readers.downstream.reading import Reading, answer_list, checked_box, kept_texts, media_name
from x2vlm.data.readers.own.formats import table_rows
from x2vlm.data.readers.own.places import is_local, kind_of, path_of
from x2vlm.data.readers.own.table import box_in_format
from x2vlm.data.readers.source import finite_number, whole_number
from x2vlm.data.tables.rows import BadRow, UnreadableTable
from x2vlm.data.tables.values import text_of, texts_of
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.samples import Box

Values = Mapping[str, Any]  # field -> the value of its column

MEDIA = (
    *("image", "images", "img", "image_path", "img_path", "file_name", "filename", "file", "path", "picture", "photo"),
    *("video", "videos", "video_path", "clip", "media"),
)
ALIASES: dict[str, tuple[str, ...]] = {
    "media": MEDIA,
    "media_2": ("image_2", "image2", "second_image", "right", "right_image", "right_img", "img_2"),
    "captions": ("caption", "captions", "text", "texts", "sentence", "sentences", "description"),
    "question": ("question", "query", "prompt"),
    "answers": ("answer", "answers", "target", "response"),
    "text": ("text", "sentence", "hypothesis", "statement", "caption"),
    "label": ("label", "class", "gold_label", "category", "answer"),
    "phrases": ("phrase", "phrases", "expression", "text", "sentence", "caption", "labels", "label"),
    "boxes": ("box", "boxes", "bbox", "bboxes"),
    "id": ("example_id", "question_id"),
    "split": ("split", "subset", "partition"),
    "language": ("language", "lang"),
    "weight": ("weight",),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
}
FIRST_IMAGE = ("image_1", "image1", "first_image", "left", "left_image", "left_img", "img_1")  # beside a second one
ALWAYS = ("id", "split", "language", "weight")
SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


def read_own_captions(reading: Reading, options: OwnOptions) -> TaskData:
    """One example a row: an image or clip and one caption or a list of them. Rows of one file are one `group`."""
    for row, values in _rows(reading, options, ("media", "captions")):
        reading.keep(row, _captioned, reading, options, row, values)
    return reading.data("rows")


def _captioned(reading: Reading, options: OwnOptions, row: str, values: Values) -> Example:
    texts = kept_texts(reading, row, _texts(values["captions"]))
    return _example(reading, options, row, values, texts)


def read_own_questions(reading: Reading, options: OwnOptions) -> TaskData:
    """One example a row: a question and one answer or a list of them; without a column of answers they are for a test.

    Labels are those of the role `answers`, else the distinct answers of the whole file, the most frequent first.
    """
    counts: dict[str, int] = {}

    def look(values: Values) -> None:
        for answer in _texts(values.get("answers")):
            if answer := clean_text(answer):
                counts[answer] = counts.get(answer, 0) + 1

    for row, values in _rows(reading, options, ("media", "question"), ("answers",), look):
        reading.keep(row, _asked, reading, options, row, values)
    labels = answer_list(reading.source, "answers") or tuple(sorted(counts, key=lambda text: (-counts[text], text)))
    return reading.data("rows", labels=labels)


def _asked(reading: Reading, options: OwnOptions, row: str, values: Values) -> Example:
    question = clean_text(text_of(values["question"]))
    if not question:
        raise InvalidSample("empty_text", "the question is empty")
    answers = tuple(filter(None, map(clean_text, _texts(values.get("answers")))))
    if "answers" in values and not answers:
        raise InvalidSample("no_answer", "the answer is empty")
    return _example(reading, options, row, values, (question,), answers)


def read_own_labels(reading: Reading, options: OwnOptions) -> TaskData:
    """One example a row: one image, or two, a text and its label. Labels are those of the role `answers`, else the
    distinct ones of the whole file in alphabetical order."""
    found: set[str] = set()

    def look(values: Values) -> None:
        if label := clean_text(text_of(values.get("label"))):
            found.add(label)

    for row, values in _rows(reading, options, ("media", "text", "label"), ("media_2",), look):
        reading.keep(row, _labelled, reading, options, row, values)
    labels = answer_list(reading.source, "answers") or tuple(sorted(found))
    return reading.data("rows", labels=labels)


def _labelled(reading: Reading, options: OwnOptions, row: str, values: Values) -> Example:
    text, label = clean_text(text_of(values["text"])), clean_text(text_of(values["label"]))
    if not text:
        raise InvalidSample("empty_text", "the text is empty")
    if not label:
        raise InvalidSample("no_answer", "the label is empty")
    return _example(reading, options, row, values, (text,), (label,))


def read_own_boxes(reading: Reading, options: OwnOptions) -> TaskData:
    """One example a phrase: a row has one box and its phrase, or a list of both; ids are "<row>.<n>".

    Boxes in fractions need columns `width` and `height`; with these columns boxes are checked against the image.
    """
    for row, values in _rows(reading, options, ("media", "phrases", "boxes"), ("width", "height")):
        try:
            pairs = _phrases(options, values)
        except InvalidSample as error:
            reading.drop(row, error.rule, error.message)
            continue
        for number, (phrase, numbers) in enumerate(pairs):
            reading.keep(f"{row}.{number}", _boxed, reading, options, f"{row}.{number}", values, phrase, numbers)
    return reading.data("rows")


def _phrases(options: OwnOptions, values: Values) -> list[tuple[str, Any]]:
    boxes = _listed(values["boxes"])
    if not isinstance(boxes, list) or not boxes:
        raise InvalidSample("malformed_box", f"no box: {values['boxes']!r:.80}")
    boxes = boxes if isinstance(boxes[0], list) else [boxes]
    phrases = _texts(values["phrases"]) or [""]
    if len(phrases) != len(boxes):
        raise InvalidSample("unequal_lengths", f"{len(boxes)} boxes, {len(phrases)} phrases")
    return list(zip(phrases, boxes, strict=True))


def _boxed(reading: Reading, options: OwnOptions, row: str, values: Values, phrase: str, numbers: Any) -> Example:
    text = clean_text(phrase)
    if not text:
        raise InvalidSample("empty_text", "the phrase is empty")
    width, height = (whole_number(values.get(side)) for side in ("width", "height"))
    box = box_in_format(options.boxes, numbers)
    if box is None:
        raise InvalidSample("malformed_box", f"{numbers!r:.80} is no box in the format {options.boxes.format}")
    if options.boxes.unit == "fraction":
        if not width or not height:
            raise InvalidSample("size_unknown", "boxes in fractions need columns `width` and `height`")
        box = Box(box.x * width, box.y * height, box.w * width, box.h * height)
    box = checked_box([box.x, box.y, box.w, box.h], width, height)
    return _example(reading, options, row, values, (text,), box=box)


def _example(
    reading: Reading,
    options: OwnOptions,
    row: str,
    values: Values,
    texts: tuple[str, ...],
    answers: tuple[str, ...] = (),
    **more: Any,
) -> Example:
    media = _media(options, values)
    example_id = text_of(values.get("id")).strip()
    if example_id and "." in row:  # one of several phrases of a row
        example_id += row[row.find(".") :]
    weight = finite_number(values.get("weight", 1.0))
    if weight is None or weight < 0:
        raise InvalidSample("malformed_row", f"weight {values.get('weight')!r:.40} is no number from 0 on")
    return Example(
        example_id or row,
        reading.split,
        media,
        texts,
        answers,
        weight=weight,
        kind=kind_of(media[0], options.kind),
        group=media[0],
        language=text_of(values.get("language")).strip() or options.language,
        **more,
    )


def _media(options: OwnOptions, values: Values) -> tuple[str, ...]:
    """One name, or two, below the folder of media."""
    listed = [*_texts(values["media"]), *_texts(values.get("media_2"))]
    if not listed or not all(text.strip() for text in listed):
        raise InvalidSample("missing_media", "no name of an image or clip")
    return tuple(_below(options, text.strip()) for text in listed)


def _below(options: OwnOptions, text: str) -> str:
    if not is_local(text):
        raise InvalidSample("not_a_file", f"{text!r:.120} is an address; download it, and name the file")
    path = path_of(text)
    if options.media_root and posixpath.isabs(path):
        path = posixpath.relpath(path, options.media_root)
    return media_name("{path}", {"path": posixpath.normpath(path)})


def _rows(
    reading: Reading,
    options: OwnOptions,
    needed: Sequence[str],
    more: Sequence[str] = (),
    look: Callable[[Values], None] = lambda values: None,
) -> Iterator[tuple[str, Values]]:
    """(row number, values by field) of the rows of the split; `look` sees those of all splits. Bad rows are drops."""
    path = reading.source.file("rows")
    columns: dict[str, str] = {}

    def match(names: Sequence[str]) -> list[str]:
        columns.update(match_columns(names, options.columns, needed, (*more, *ALWAYS), path.name))
        return list(columns.values())

    there: dict[str, int] = {}
    with reading.source.reading("rows"):
        for row in table_rows(path, match):
            if isinstance(row, BadRow):
                reading.drop(str(row.number), row.rule, f"line {row.line}: {row.reason}")
                continue
            values = {field: row.values[name] for field, name in columns.items()}
            look(values)
            split = _split_of(reading, options, values)
            there[split] = there.get(split, 0) + 1
            if split == reading.split:
                yield str(row.number), values
    if there and reading.split not in there:
        splits = ", ".join(f"{name} {count}" for name, count in sorted(there.items()))
        reading.source.fail(
            "rows", f"no row of split `{reading.split}`; splits: {splits}", "Correct the column `split`"
        )


def _split_of(reading: Reading, options: OwnOptions, values: Values) -> str:
    if "split" in values:
        said = text_of(values["split"]).strip().lower()
        return SPLITS.get(said, said)
    if not options.val_share or reading.split not in ("train", "val"):
        return reading.split
    name = ",".join(_texts(values["media"])).encode("utf-8", "replace")
    is_val = int.from_bytes(hashlib.sha256(name).digest()[:8]) < options.val_share * 2**64
    return "val" if is_val else "train"


def match_columns(
    names: Sequence[str], given: Mapping[str, str], needed: Sequence[str], more: Sequence[str], file: str
) -> dict[str, str]:
    """Field -> column. ConfigError for a field or column that does not exist, UnreadableTable where none is known."""
    fields = (*needed, *more)
    for field, name in given.items():
        if field not in fields:
            raise ConfigError(f"{file}: columns: no field `{field}` here; {did_you_mean(field, fields)}")
        if name not in names:
            raise ConfigError(f"{file}: no column `{name}`, given for {field}; {did_you_mean(name, names)}")
    found = dict(given)
    plain = {name: name.strip().casefold().replace(" ", "_").replace("-", "_") for name in names}
    for field in fields:
        aliases = ALIASES[field] + (FIRST_IMAGE if field == "media" and "media_2" in fields else ())
        free = [name for name in names if name not in found.values()]
        # In the order of the aliases: of `sentence` and `caption` the first one listed is meant.
        matches = [name for alias in aliases for name in free if plain[name] == alias]
        if field not in found and matches:
            found[field] = matches[0]
    if missing := [field for field in needed if field not in found]:
        usual = ", ".join(ALIASES[missing[0]][:4])
        problem = (
            f"no column is known to hold the {missing[0]}; columns: {', '.join(names) or 'none, the file is empty'}"
        )
        raise UnreadableTable(problem, f"Call it {usual}, or give `columns: {{{missing[0]}: NAME}}`")
    return found


def _listed(value: Any) -> Any:
    """A list that is written as JSON as a list; any other value as it is."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _texts(value: Any) -> list[str]:
    listed = _listed(value)
    return texts_of(listed) if not isinstance(listed, bool) else [str(listed)]
