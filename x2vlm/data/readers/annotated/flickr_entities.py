"""Flickr30k Entities: one sample per photo, with its five captions and a region for every phrase that has boxes.

Roles: `entities` (annotations.zip with Sentences/<photo>.txt and Annotations/<photo>.xml), and optionally `tokens`
(results_20130124.token, "<photo>.jpg#<n>, tab, caption"): captions then come from there, and `urls`
(`x2vlm.data.readers.locations`). Photos are read from the archive one by one; of the token file, all captions are held
in memory.

A sentence reads "[/EN#221796/people A girl] with [/EN#0/notvisual it]". There are no URLs: unless listed, a sample's is
`http://flickr_entities.invalid/<photo>.jpg`, which the card's `url_base` maps to the folder of photos.
"""

import logging
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import PurePosixPath
from xml.etree import ElementTree

from x2vlm.data.boxes import union
from x2vlm.data.readers.locations import Locations
from x2vlm.data.readers.source import Fault, Source, box_of, whole_number
from x2vlm.data.tables.lines import byte_lines
from x2vlm.data.tables.rows import BadRow
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Box, Caption, Concept, Drop, Grain, Sample

BASE = "http://flickr_entities.invalid/"
REMEDY = "Expected annotations.zip with the folders Sentences and Annotations"
LOOK = 100  # one of the first LOOK lines of the token file must be a caption, or it is the wrong file
logger = logging.getLogger(__name__)
MAX_MEMBER_BYTES = 1 << 20  # of one photo's sentences or boxes: about a hundred times the largest

PHRASE = re.compile(r"\[/EN#(?P<entity>\d+)(?P<kinds>(?:/[^/\s\]]+)+) (?P<text>[^\]]*)\]")


def read_flickr_entities(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of photo ids; the row key is the photo id.

    A phrase is a region on the box around all boxes of its entity; its annotation id is `<entity>@<sentence>.<number>`.
    Phrases without a box (`no_box`) or about nothing visible (`not_visual`) become drops.
    """
    tokens = _tokens(source) if "tokens" in source.files else None
    try:
        with zipfile.ZipFile(source.file("entities")) as archive, Locations(source) as locations:
            members = {(path.parent.name, path.stem): info for path, info in _members(archive)}
            photos = sorted(stem for folder, stem in members if folder == "Sentences")
            if not photos:
                source.fail("entities", "no file like Sentences/1000092795.txt in it", REMEDY)
            for photo in photos:
                seen["rows"] += 1
                texts = [_member(archive, members.get((folder, photo))) for folder in ("Sentences", "Annotations")]
                url = locations.url(photo, f"{photo}.jpg", otherwise=f"{BASE}{photo}.jpg")
                yield from _sample(source, photo, url, texts, tokens, seen)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        source.fail("entities", f"not readable as ZIP: {error}", "It is probably truncated; download it again")


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        kind = (path.parent.name, path.suffix)
        if kind in (("Sentences", ".txt"), ("Annotations", ".xml")) and not path.name.startswith("._"):  # macOS's own
            yield path, info


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> bytes | None:
    """The bytes of a member, None where there is none or it is too large for this data set."""
    if info is None or info.file_size > MAX_MEMBER_BYTES:
        return None
    with archive.open(info) as file:
        return file.read(MAX_MEMBER_BYTES)


def _tokens(source: Source) -> dict[str, list[str | None]]:
    """Photo id -> its captions, None for one that is not UTF-8. Lines without a tab are skipped and logged.

    SourceUnavailable if none of the first LOOK lines is a caption.
    """
    captions: dict[str, list[str | None]] = {}
    bad: list[int] = []
    with source.reading("tokens"):
        for number, line in enumerate(byte_lines(source.file("tokens")), start=1):
            name, tab, text = (b"", b"", b"") if isinstance(line, BadRow) else line.rstrip(b"\r\n").partition(b"\t")
            if not tab or b"\t" in text:
                bad.append(number)
            else:
                photo = PurePosixPath(name.decode("utf-8", "replace").split("#")[0]).stem
                captions.setdefault(photo, []).append(_utf8(text))
            if number >= LOOK and not captions:
                break
    if bad and not captions:
        remedy = 'Expected lines like "1000092795.jpg#0, tab, caption"'
        source.fail("tokens", f"line {bad[0]} is no caption, nor is any other", remedy)
    if bad:
        lines = ", ".join(map(str, bad[:10]))
        logger.warning("card=%s role=tokens lines_skipped=%d first=%s", source.card, len(bad), lines)
    return captions


def _utf8(text: bytes) -> str | None:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _sample(
    source: Source,
    row: str,
    url: str,
    texts: list[bytes | None],
    tokens: dict[str, list[str | None]] | None,
    seen: Counter[str],
) -> Iterator[Sample | Drop]:
    sentences_text, boxes_text = texts
    try:
        sentences = (sentences_text or b"").decode("utf-8").splitlines()
        boxes, width, height = _boxes(boxes_text)
    except (ValueError, ElementTree.ParseError) as error:
        yield source.drop(row, "malformed_row", str(error))
        return
    captions: list[Caption] = []
    concepts: list[Concept] = []
    plain = [PHRASE.sub(lambda phrase: phrase["text"], sentence) for sentence in sentences]
    texts_of_photo: Sequence[str | None] = plain if tokens is None else tokens.get(row, [])
    for position, text in enumerate(texts_of_photo):
        seen["captions"] += 1
        if text is None:
            yield source.drop_item(row, "caption", str(position), "not_utf8", "in the tokens file")
        elif cleaned := clean_text(text):
            captions.append(Caption(cleaned, source.language, "human"))
        else:
            yield source.drop_item(row, "caption", str(position), "empty_caption")
    for position, sentence in enumerate(sentences):
        phrases = list(PHRASE.finditer(sentence))
        seen["concepts"] += len(phrases)
        items = [f"{phrase['entity']}@{position}.{number}" for number, phrase in enumerate(phrases)]
        made = ((item, _concept(item, phrase, boxes)) for item, phrase in zip(items, phrases, strict=True))
        yield from source.keep_concepts(row, made, concepts)
    yield source.sample(
        row, url, captions=tuple(captions), concepts=tuple(concepts), claimed_width=width, claimed_height=height
    )


def _boxes(text: bytes | None) -> tuple[dict[str, list[Box]], int | None, int | None]:
    """Entity id -> its boxes, and the photo's width and height. ParseError or ValueError where it is no such XML."""
    if text is None:
        raise ValueError("no file Annotations/<photo>.xml")
    if b"<!" in text:  # entity expansion is unbounded; upstream files have no declarations
        raise ValueError("XML with a declaration")
    boxes: dict[str, list[Box]] = {}
    root = ElementTree.fromstring(text)
    for record in root.iter("object"):
        edges = record.find("bndbox")
        corners = edges is not None and box_of(edges.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax"))
        if corners:
            # Pascal VOC counts pixels from 1 and names the last one inside. A 0 is taken for the first pixel too.
            left, top = max(0.0, corners.x - 1), max(0.0, corners.y - 1)
            box = Box(left, top, corners.w - left, corners.h - top)
            for name in record.findall("name"):
                boxes.setdefault((name.text or "").strip(), []).append(box)
    return boxes, whole_number(root.findtext("size/width")), whole_number(root.findtext("size/height"))


def _concept(item: str, phrase: re.Match[str], boxes: dict[str, list[Box]]) -> Concept | Fault:
    """A phrase as a region, or what is wrong with it."""
    if "notvisual" in phrase["kinds"].split("/"):
        return "not_visual", ""
    text = clean_text(phrase["text"])
    if not text:
        return "empty_text", ""
    if not (found := boxes.get(phrase["entity"])):
        return "no_box", ""
    return Concept(Grain.REGION, text, reduce(union, found), (), item)
