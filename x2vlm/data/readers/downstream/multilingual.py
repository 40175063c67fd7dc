"""Captions in several languages: Multi30K, COCO in English, Japanese and Chinese, WIT and xFlickrCO.

Ids of other languages than English begin with the language, so that the files of several make up one split; `group` is
the image, in whatever language its caption is.
"""

import base64
import binascii
import dataclasses
import hashlib
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from x2vlm.data.readers.downstream.captions import read_caption_list, read_coco_captions, read_karpathy
from x2vlm.data.readers.downstream.options import (
    CaptionFilesOptions,
    CaptionListOptions,
    CocoCaptionsOptions,
    KarpathyOptions,
    Multi30kOptions,
    WitOptions,
    XFlickrCoOptions,
)
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    id_field,
    json_records,
    kept_texts,
    media_name,
    text_field,
    texts_field,
)
from x2vlm.data.readers.own.formats import head_of
from x2vlm.data.tables.lines import text_lines
from x2vlm.data.tables.rows import BadRow
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

NUM_IMAGES = {"1k": 1000, "5k": 5000}


def read_multi30k(reading: Reading, options: Multi30kOptions) -> TaskData:
    """Examples of each language in the order of the roles, one an image; line n of every file is about image n.

    Roles `en.1` to `en.5` are the five descriptions of task 2, one role a language the translations of task 1.
    SourceUnavailable if a file has another number of lines than the list of images.
    """
    images = [name.partition("#")[0].strip() for name in _lines(reading, "images")]
    languages: dict[str, list[str]] = {}
    for role in reading.source.files:
        if role != "images":
            languages.setdefault(role.partition(".")[0], []).append(role)
    if not languages:
        reading.source.fail("images", "no language's file", "Add roles such as `de.1`")
    for language, roles in languages.items():
        inner = dataclasses.replace(reading, language=language)
        columns = [_lines(reading, role) for role in roles]
        for role, lines in zip(roles, columns, strict=True):
            if len(lines) != len(images):
                problem = f"{len(lines)} lines, and {len(images)} images"
                reading.source.fail(role, problem, "Give the files of one split: line n is about image n")
        for number, (image, *texts) in enumerate(zip(images, *columns, strict=True)):
            inner.keep(
                f"{language} {number}",
                _described,
                inner,
                options,
                image,
                texts,
            )
    return reading.data("images")


def _described(reading: Reading, options: Multi30kOptions, image: str, texts: list[str]) -> Example:
    return reading.example(
        image,
        (media_name(options.media, {"image": image}),),
        kept_texts(reading, reading.own_id(image), texts),
        group=image,
    )


def _lines(reading: Reading, role: str) -> list[str]:
    """The lines of a text file, plain or gzip; one that is no text is empty, so that the others keep their places."""
    lines = []
    with reading.source.reading(role):
        for number, line in enumerate(text_lines(reading.source.file(role))):
            if isinstance(line, BadRow):
                reading.drop_item(f"{role} {number}", "caption", role, line.rule, line.reason)
            lines.append("" if isinstance(line, BadRow) else line)
    return lines


def read_caption_files(reading: Reading, options: CaptionFilesOptions) -> TaskData:
    """Examples of each language's file in the order of the roles, whatever of three forms it has.

    With `protocol` SourceUnavailable if a language has another number of images.
    """
    for language, path in reading.source.files.items():
        source = dataclasses.replace(reading.source, files={"rows": path, "annotations": path})
        before = len(reading.examples)
        inner = dataclasses.replace(reading, source=source, language=language)
        with source.reading("rows"):
            head = head_of(source.file("rows"))
        if head.lstrip()[:1] == b"[":
            read_caption_list(inner, CaptionListOptions(media=options.media))
        elif b'"sentences"' in head:
            read_karpathy(inner, KarpathyOptions(media=options.media, captions="first_five"))
        else:
            read_coco_captions(inner, CocoCaptionsOptions(media=options.media))
        found = len({example.group for example in reading.examples[before:]})
        if options.protocol and found != NUM_IMAGES[options.protocol]:
            problem = f"{found} images, and the protocol `{options.protocol}` has {NUM_IMAGES[options.protocol]}"
            source.fail("rows", problem, "Give the other list, or change the option `protocol`")
    return reading.data(next(iter(reading.source.files)))


def read_wit(reading: Reading, options: WitOptions) -> TaskData:
    """One example a row; the id is the row's number: `wit_ix` may be there twice.

    Rows with `image_content` (base64) bring their images; equal bytes, or else equal addresses, are one `group`, so
    that every row of an image counts as right for its captions.
    """
    inline: dict[str, bytes] = {}
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _wit, reading, options, number, record, inline)
    return reading.data("rows", inline_media=inline)


def _wit(reading: Reading, options: WitOptions, number: int, record: Record, inline: dict[str, bytes]) -> Example:
    language = text_field(record, "language")
    if reading.language != "en" and language != reading.language:
        raise InvalidSample("other_language", f"the row is in `{language}`, the file should be in `{reading.language}`")
    caption = text_field(record, "caption_reference_description")
    url = text_field(record, "image_url")
    if record.get("image_content"):
        data = _decoded(record["image_content"])
        name = group = hashlib.sha256(data).hexdigest()
        inline[name] = data
    else:
        name = media_name(options.media, {**record, "image_name": PurePosixPath(unquote(urlsplit(url).path)).name})
        group = url
    return Example(
        str(number) if language == "en" else f"{language}:{number}",
        reading.split,
        (name,),
        (caption,),
        group=group,
        language=language,
    )


def _decoded(content: object) -> bytes:
    try:
        data = base64.b64decode(content if isinstance(content, str) else "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSample("malformed_media", f"image_content is not base64: {error}") from None
    if not data:
        raise InvalidSample("malformed_media", "image_content is empty")
    return data


def read_xflickrco(reading: Reading, options: XFlickrCoOptions) -> TaskData:
    """One example a row with its captions; rows all of whose `sentences` are empty are drops of `empty_caption`."""
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _xflickrco, reading, options, number, record)
    return reading.data("rows")


def _xflickrco(reading: Reading, options: XFlickrCoOptions, number: int, record: Record) -> Example:
    image_id = id_field(record, "id")
    return reading.example(
        image_id,
        (media_name(options.media, record),),
        kept_texts(reading, str(number), texts_field(record, "sentences")),
        group=image_id,
    )
