"""Images with captions: Karpathy's splits, COCO's caption files, and the lists of the released models.

All give one example an image, with its captions in the order of the file, for retrieval and for captioning alike; only
training lists of the released models have one row a caption, and stay so: `group` says which rows share an image.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from x2vlm.data.readers.downstream.options import CaptionListOptions, CocoCaptionsOptions, KarpathyOptions
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    id_field,
    json_records,
    kept_texts,
    media_name,
    texts_field,
)
from x2vlm.data.readers.json_stream import stream_sections
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

FIVE = 5
KARPATHY = 'Expected dataset_coco.json or its like: {"images": [{"split": ..., "sentences": [{"raw": ...}]}]}'
COCO = (
    'Expected captions_val2014.json or its like: {"images": [...], "annotations": [{"image_id": ..., "caption": ...}]}'
)


def read_karpathy(reading: Reading, options: KarpathyOptions) -> TaskData:
    """One example an image of the split; the id is COCO's (Flickr30K: Karpathy's own number).

    SourceUnavailable, with the splits that are there, if the file has no image of this one.
    """
    wanted = {reading.split}
    if reading.split == "train" and options.restval == "joins_train":
        wanted.add("restval")
    splits: Counter[str] = Counter()
    for key, images in stream_sections(reading.source, "annotations", ("images",), KARPATHY):
        if images is None:
            reading.source.fail("annotations", f"`{key}` is no list", KARPATHY)
        for number, image in enumerate(images):
            if not isinstance(image, dict) or not isinstance(image.get("split"), str):
                reading.drop(str(number), "malformed_row", "no object with a `split`")
                continue
            splits[image["split"]] += 1
            if image["split"] in wanted:
                row = str(number)
                reading.keep(row, _karpathy, reading, options, row, image)
    if not any(splits[name] for name in wanted):
        there = ", ".join(f"{name} {count}" for name, count in sorted(splits.items())) or "none"
        reading.source.fail("annotations", f"no image of split `{reading.split}`; splits: {there}", KARPATHY)
    return reading.data("annotations")


def _karpathy(reading: Reading, options: KarpathyOptions, row: str, image: Record) -> Example:
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
        raise InvalidSample("malformed_row", "no list of `sentences`")
    texts = [str(sentence.get("raw", "")) for sentence in sentences]
    if options.captions == "first_five":
        texts = texts[:FIVE]
    fields = dict(image)
    pattern = options.media
    if "filepath" not in fields:  # Flickr30K's file has one folder and no `filepath`
        pattern = pattern.replace("{filepath}/", "")
    image_id = id_field(image, "cocoid", "imgid")
    name = media_name(pattern, fields)
    return reading.example(
        image_id,
        (name,),
        kept_texts(reading, row, texts),
        group=image_id,
    )


def read_coco_captions(reading: Reading, options: CocoCaptionsOptions) -> TaskData:
    """One example an image of the file, with its captions in the order of the annotations."""
    return _coco_captions(reading, options.media, "annotations")


def _coco_captions(reading: Reading, media: str, role: str) -> TaskData:
    images, captions, orphans = _coco_lists(reading, role)
    for number, image_id in orphans:
        reading.drop_item(image_id, "caption", number, "unknown_image", f"no image {image_id} in the list of images")

    for image_id, image in images:
        reading.keep(image_id, _coco_image, reading, media, image_id, image, captions)
    return reading.data(role)


def _coco_image(
    reading: Reading, media: str, image_id: str, image: Record, captions: Mapping[str, list[str]]
) -> Example:
    if image_id not in captions:
        raise InvalidSample("empty_caption", f"image {image_id} has no caption")
    texts = kept_texts(reading, image_id, captions[image_id])
    return reading.example(
        image_id, (media_name(media, {"image": image.get("file_name"), **image}),), texts, group=image_id
    )


def _coco_lists(
    reading: Reading, role: str
) -> tuple[list[tuple[str, Record]], dict[str, list[str]], list[tuple[str, str]]]:
    """(id, image) in order, captions by image id, and (annotation number, image id) without an image."""
    images: list[tuple[str, Record]] = []
    captions: dict[str, list[str]] = {}
    numbers: list[tuple[str, str]] = []
    found = set()
    for key, records in stream_sections(reading.source, role, ("images", "annotations"), COCO):
        if records is None:
            reading.source.fail(role, f"`{key}` is no list", COCO)
        found.add(key)
        for number, record in enumerate(records):
            try:
                if not isinstance(record, dict):
                    raise InvalidSample("malformed_row", f"not an object: {record!r:.80}")
                if key == "images":
                    images.append((id_field(record, "id"), record))
                else:
                    image_id = id_field(record, "image_id")
                    captions.setdefault(image_id, []).extend(texts_field(record, "caption"))
                    numbers.append((str(number), image_id))
            except InvalidSample as error:
                reading.drop(f"{key} {number}", error.rule, error.message)
    if missing := {"images", "annotations"} - found:
        reading.source.fail(role, f"no list `{sorted(missing)[0]}`", COCO)
    known = {image_id for image_id, _ in images}
    return images, captions, [one for one in numbers if one[1] not in known]


def read_caption_list(reading: Reading, options: CaptionListOptions) -> TaskData:
    """One example a row; with the role `references` (COCO's caption form) their captions come from there, by image id.

    The image id is the row's, else the last number in the name of its file, as upstream's evaluation takes it.
    """
    references = _references(reading) if "references" in reading.source.files else None
    for number, row in json_records(reading, "rows"):
        reading.keep(str(number), _listed, reading, options, number, row, references)
    return reading.data("rows")


def _references(reading: Reading) -> dict[str, list[str]]:
    images, captions, orphans = _coco_lists(reading, "references")
    if orphans:
        number, image_id = orphans[0]
        reading.source.fail("references", f"annotation {number} is of image {image_id}, which is not there", COCO)
    return {image_id: captions.get(image_id, []) for image_id, _ in images}


def _listed(
    reading: Reading, options: CaptionListOptions, number: int, row: Record, references: Mapping[str, Any] | None
) -> Example:
    name = media_name(options.media, row)
    stem = PurePosixPath(name).stem
    image_id = id_field(row, options.id_key) if options.id_key in row else stem.rpartition("_")[2].lstrip("0") or stem
    if references is None:
        texts = texts_field(row, options.text_key)
        example_id = str(number)
    else:
        if image_id not in references:
            raise InvalidSample("unknown_image", f"no image {image_id} in the file of references")
        texts, example_id = references[image_id], image_id
    return reading.example(
        example_id,
        (name,),
        kept_texts(reading, str(number), texts),
        kind=options.kind,
        group=image_id,
    )
