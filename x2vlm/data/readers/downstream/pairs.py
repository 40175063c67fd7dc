"""A sentence about two photos (NLVR2, MaRVL) or one (XVNLI, SNLI-VE), and whether it holds."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from x2vlm.data.readers.downstream.options import ImagePairListOptions, MarvlOptions, Nlvr2Options, XvnliOptions
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    id_field,
    json_records,
    media_name,
    text_field,
    texts_field,
)
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

TRUTH = ("False", "True")  # class numbers as in the released models
ENTAILMENT = ("contradiction", "entailment", "neutral")
IDENTIFIER = re.compile(r"([A-Za-z]+\d*)-(\d+)-(\d+)-(\d+)")  # set, sentences of a query, pair of images, sentence


def read_nlvr2(reading: Reading, options: Nlvr2Options) -> TaskData:
    """One example a row; the id is the identifier, `group` the identifier without its pair of images: the sentence.

    SourceUnavailable if the first row is of another set than `options.set`.
    """
    for number, record in json_records(reading, "rows"):
        found = IDENTIFIER.fullmatch(str(record.get("identifier", "")))
        if found and found[1] != options.set:
            if not reading.examples:
                remedy = f"Give the file of set `{options.set}`, or change the option `set`"
                reading.source.fail("rows", f"row {number} is of set `{found[1]}`, not `{options.set}`", remedy)
            reading.drop(str(number), "other_set", f"{found[0]} is not of set `{options.set}`")
            continue
        reading.keep(str(number), _nlvr2, reading, options, record, found)
    return reading.data("rows", labels=TRUTH)


def _nlvr2(reading: Reading, options: Nlvr2Options, record: Record, found: re.Match[str] | None) -> Example:
    if found is None:
        raise InvalidSample("malformed_row", f"identifier {record.get('identifier')!r:.80} is not set-n-pair-n")
    identifier = found[0]
    fields: dict[str, Any] = {"set": found[1], "stem": identifier.rpartition("-")[0]}
    fields |= {"directory": record["directory"]} if "directory" in record else {}
    fields |= {f"{side}_name": _last_segment(record.get(f"{side}_url")) for side in ("left", "right")}
    media = tuple(media_name(pattern, fields) for pattern in (options.left, options.right))
    group = f"{found[1]}-{found[2]}--{found[4]}"
    return reading.example(
        identifier,
        media,
        (text_field(record, "sentence"),),
        (_truth(record),),
        group=group,
    )


def _last_segment(url: object) -> str:
    return PurePosixPath(urlsplit(url).path).name if isinstance(url, str) else ""


def _truth(record: Record) -> str:
    label = str(record.get("label"))
    if label.capitalize() not in TRUTH:
        raise InvalidSample("malformed_row", f"label {label!r:.80} is neither True nor False")
    return label.capitalize()


def read_marvl(reading: Reading, options: MarvlOptions) -> TaskData:
    """One example a row, with both photos of its concept."""
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _marvl, reading, options, record)
    return reading.data("rows", labels=TRUTH)


def _marvl(reading: Reading, options: MarvlOptions, record: Record) -> Example:
    language = text_field(record, "language")
    if reading.language != "en" and language != reading.language:
        raise InvalidSample("other_language", f"the row is in `{language}`, the file should be in `{reading.language}`")
    names = [text_field(record, "left_img"), text_field(record, "right_img")]
    media = tuple(media_name(options.media, {**record, "image": name}) for name in names)
    example_id = id_field(record, "id")
    return Example(
        example_id if example_id.startswith(f"{language}-") else f"{language}:{example_id}",
        reading.split,
        media,
        (text_field(record, "caption"),),
        (_truth(record),),
        language=language,
        tags=(text_field(record, "concept"),),
    )


def read_image_pair_list(reading: Reading, options: ImagePairListOptions) -> TaskData:
    """One example a row {images, sentence, label} of the released models' lists; the id is the row's number."""
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _pair, reading, options, number, record)
    return reading.data("rows", labels=TRUTH)


def _pair(reading: Reading, options: ImagePairListOptions, number: int, record: Mapping[str, Any]) -> Example:
    images = texts_field(record, "images")
    if len(images) != 2:
        raise InvalidSample("malformed_row", f"{len(images)} images, expected 2")
    media = tuple(media_name(options.media, {"image": name}) for name in images)
    sentence, answer = text_field(record, "sentence"), _truth(record)
    example_id = id_field(record, "identifier") if "identifier" in record else str(number)
    found = IDENTIFIER.fullmatch(example_id)
    group = f"{found[1]}-{found[2]}--{found[4]}" if found else ""
    return reading.example(
        example_id,
        media,
        (sentence,),
        (answer,),
        group=group,
    )


def read_xvnli(reading: Reading, options: XvnliOptions) -> TaskData:
    """One example a row: the photo and the hypothesis `sentence2`; `sentence1` describes the photo and is not asked.

    Rows whose annotators did not agree (label "-") are drops of rule `other_label`.
    """
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _xvnli, reading, options, record)
    return reading.data("rows", labels=ENTAILMENT)


def _xvnli(reading: Reading, options: XvnliOptions, record: Record) -> Example:
    label = record.get("gold_label")
    if label not in ENTAILMENT:
        raise InvalidSample("other_label", f"gold_label {label!r:.40} is none of {', '.join(ENTAILMENT)}")
    image = id_field(record, "Flikr30kID", "Flickr30kID", "Flickr30K_ID").removesuffix(".jpg")
    return reading.example(
        id_field(record, "pairID"),
        (media_name(options.media, {**record, "image": image}),),
        (text_field(record, "sentence2"),),
        (str(label),),
    )
