"""Ids of the images and videos of downstream tasks, from their official annotation files.

Each function takes parsed records of one upstream file and returns a table of EVALUATION_ID_SCHEMA, one row per id of
an evaluation image; equal rows once. An evaluation image without any public id (Winoground, MaRVL) has one row with
null kind and value, so that it is counted: it can be found by its pixels only.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from x2vlm.data.duplicates.identities import ID_FIELDS, Id, ids_of_name, ids_of_url
from x2vlm.errors import SourceUnavailable

Record = Mapping[str, Any]
Found = Iterator[tuple[str, str, Iterable[Id]]]  # split, evaluation id, ids

EVALUATION_ID_SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("eval_set", "split", "eval_id")] + ID_FIELDS,
)

MSVD_NAME = re.compile(r"(?P<video>[0-9A-Za-z_-]{11})_(?P<start>\d+)_(?P<end>\d+)(?:\.avi)?")
NLVR2_NAME = re.compile(r"(?P<pair>.+)-\d+")


def karpathy_ids(eval_set: str, images: Iterable[Record]) -> pa.Table:
    """From the `images` of dataset_coco.json or dataset_flickr30k.json: by `cocoid`, else by file name.

    The split is the record's; `restval` and `train` are included and are for training.
    """

    def found() -> Found:
        for image in images:
            coco_id, name = image.get("cocoid"), str(image["filename"])
            ids = ids_of_name(name) if coco_id is None else [("coco", str(coco_id))]
            yield str(image["split"]), name if coco_id is None else str(coco_id), ids

    return _table(eval_set, found())


def karpathy_list_ids(eval_set: str, split: str, lines: Iterable[str]) -> pa.Table:
    """From lines like "val2014/COCO_val2014_000000253964.jpg 253964"; SourceUnavailable for any other."""

    def found() -> Found:
        for number, line in enumerate(lines, start=1):
            columns = line.split()
            if columns and not (len(columns) == 2 and columns[1].isdecimal()):
                raise SourceUnavailable(f"{eval_set} {split}: line {number} is {line!r}, expected a file and a COCO id")
            if columns:
                yield split, columns[1], [("coco", columns[1])]

    return _table(eval_set, found())


def coco_ids(eval_set: str, split: str, records: Iterable[Record], field: str = "image_id") -> pa.Table:
    """From records that name COCO images in `field`: VQA v2 questions, captions; `id` for the images of OVAD."""
    return _table(eval_set, ((split, str(one[field]), [("coco", str(one[field]))]) for one in records))


def refcoco_ids(eval_set: str, refs: Iterable[Record]) -> pa.Table:
    """From the records of refs(unc).p as JSON: COCO images by the record's own split (train, val, testA, testB)."""
    return _table(
        eval_set, ((str(ref["split"]), str(ref["image_id"]), [("coco", str(ref["image_id"]))]) for ref in refs)
    )


def nlvr2_ids(eval_set: str, split: str, pairs: Iterable[Record]) -> pa.Table:
    """From lines of dev.json, test1.json or test2.json: the URLs of both images, named as upstream."""

    def found() -> Found:
        for pair in pairs:
            match = NLVR2_NAME.fullmatch(str(pair["identifier"]))
            name = match["pair"] if match else str(pair["identifier"])
            for number, side in enumerate(("left_url", "right_url")):
                yield split, f"{name}-img{number}", ids_of_url(str(pair[side]))

    return _table(eval_set, found())


def gqa_ids(eval_set: str, split: str, questions: Mapping[str, Record]) -> pa.Table:
    """From a questions file of GQA or xGQA: numeric ids are Visual Genome's, others ("n161313") GQA's own."""

    def found() -> Found:
        for question in questions.values():
            image = str(question["imageId"])
            yield split, image, [("visual_genome" if image.isdecimal() else "gqa", image)]

    return _table(eval_set, found())


def flickr30k_ids(eval_set: str, split: str, names: Iterable[str]) -> pa.Table:
    """From photo ids or file names: image_splits of Multi30K, img_path of xFlickrCO, Flikr30kID of XVNLI and SNLI-VE.

    Multi30K's MSCOCO split has lines like "COCO_val2014_000000398076.jpg#657409": those are COCO images.
    """

    def found() -> Found:
        for name in names:
            stem = name.strip().partition("#")[0]
            if stem:
                ids = ids_of_name(stem if "." in stem else f"{stem}.jpg")
                yield split, stem.removesuffix(".jpg"), ids

    return _table(eval_set, found())


def address_ids(
    eval_set: str, split: str, records: Iterable[Record], id_field: str, url_fields: tuple[str, ...]
) -> pa.Table:
    """From records with their image's URL: `wit_ix` and `image_url` of WIT."""

    def found() -> Found:
        for record in records:
            ids = [one for field in url_fields for one in ids_of_url(str(record.get(field) or ""))]
            yield split, str(record[id_field]), ids

    return _table(eval_set, found())


def openimages_ids(eval_set: str, split: str, images: Iterable[Record]) -> pa.Table:
    """From rows of an image table of OpenImages, which XM3600 uses too: ImageID and the Flickr photo."""

    def found() -> Found:
        for image in images:
            ids: list[Id] = [("openimages", str(image["ImageID"]))]
            for field in ("OriginalURL", "OriginalLandingURL"):
                ids += ids_of_url(str(image.get(field) or ""))
            yield split, str(image["ImageID"]), ids

    return _table(eval_set, found())


def msrvtt_ids(eval_set: str, videos: Iterable[Record], only: Iterable[str] | None = None, split: str = "") -> pa.Table:
    """From the `videos` of MSRVTT_data.json: a stretch of a YouTube video each.

    `only` are the video ids of a split list (MSRVTT_JSFUSION_test.csv), and `split` its name; by default the
    record's own split.
    """
    wanted = None if only is None else set(only)

    def rows() -> Iterator[dict[str, Any]]:
        for video in videos:
            if wanted is None or video["video_id"] in wanted:
                span = (float(video["start time"]), float(video["end time"]))
                ids = ids_of_url(str(video["url"]))
                yield from _rows(eval_set, split or str(video["split"]), str(video["video_id"]), ids, span)

    return _distinct(rows())


def msvd_ids(eval_set: str, split: str, names: Iterable[str]) -> pa.Table:
    """From clip names of MSVD, "mv89psg6zh4_33_46": a YouTube id, first and last second.

    A name of another form (MSVD-QA's "vid1") has no public id: translate it with the data set's mapping file first.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for name in names:
            match = MSVD_NAME.fullmatch(name)
            span = (float(match["start"]), float(match["end"])) if match else (None, None)
            ids = [("youtube", match["video"])] if match else []
            yield from _rows(eval_set, split, name.removesuffix(".avi"), ids, span)

    return _distinct(rows())


def _table(eval_set: str, found: Found) -> pa.Table:
    return _distinct(row for split, eval_id, ids in found for row in _rows(eval_set, split, eval_id, ids, (None, None)))


def _rows(
    eval_set: str, split: str, eval_id: str, ids: Iterable[Id], span: tuple[float | None, float | None]
) -> Iterator[dict[str, Any]]:
    known: list[Id] | list[tuple[None, None]] = list(ids) or [(None, None)]
    for kind, value in known:
        values = (eval_set, split, eval_id, kind, value, *span)
        yield dict(zip(EVALUATION_ID_SCHEMA.names, values, strict=True))


def _distinct(rows: Iterable[dict[str, Any]]) -> pa.Table:
    distinct = {tuple(row.values()): row for row in rows}
    return pa.Table.from_pylist(list(distinct.values()), schema=EVALUATION_ID_SCHEMA)
