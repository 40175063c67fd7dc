"""Samples as the JSON lines that X-VLM's and X2-VLM's own loaders read, one object per line.

Three kinds of line, as those loaders take them from three lists of files (captions, regions, clips):

    {"binary": base64, "desc": text or [texts]}
    {"binary": base64, "elems": [{"bb": [x, y, w, h], "caption": text, "attributes": [texts]}], "caption": ...}
    {"video_frames": [base64, ...], "text": text or [texts]}

Each line also carries `key`, `source` and `url`, which those loaders do not look at. They do not apply EXIF
orientation, drop a whole line for one box of no size, and raise on a caption without words: images are therefore
stored upright, boxes are cut to whole pixels of the stored image here, and what would make them refuse a line is left
out and counted.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, Literal

from x2vlm.data.media.images import open_image, probe
from x2vlm.data.media.video import decode_frames
from x2vlm.data.text.captions import pre_caption
from x2vlm.data.text.texts import MADE_OF
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box, Concept, Sample

LineKind = Literal["image_text", "regions", "videos"]
LINE_KINDS: tuple[LineKind, ...] = ("image_text", "regions", "videos")
UPRIGHT_QUALITY = 95  # of images that have to be turned, because the reader does not turn them

Line = dict[str, Any]


def xvlm_lines(sample: Sample, payload: bytes, left_out: Counter[str]) -> Iterator[tuple[LineKind, Line]]:
    """The lines that `sample` gives, none to two; why something gave none is counted in `left_out`.

    `payload` is what is stored of its media. Rules: caption_without_words and box_without_words (nothing is left after
    cleaning), box_under_one_pixel, no_usable_caption, no_usable_box, and those of the decoder for the whole sample.
    """
    captions = _texts([caption.text for caption in sample.captions], "caption_without_words", left_out)
    if sample.captions and not captions:
        left_out["no_usable_caption"] += 1
    base = {"key": sample.key, "source": sample.source, "url": sample.url}
    try:
        if sample.kind == "video":
            if captions:
                frames = [_base64(frame) for frame in decode_frames(payload)[0]]
                yield "videos", {**base, "video_frames": frames, "text": _one_or_list(captions)}
            return
        image, width, height = _upright(payload)
    except InvalidSample as error:
        left_out[error.rule] += 1
        return
    binary = _base64(image)
    if captions:
        yield "image_text", {**base, "binary": binary, "desc": _one_or_list(captions)}
    elements = list(_elements(sample, width, height, left_out))
    if elements:
        whole = {"caption": _one_or_list(captions)} if captions else {}
        yield "regions", {**base, "binary": binary, "elems": elements, **whole}
    elif sample.concepts:
        left_out["no_usable_box"] += 1


def _elements(sample: Sample, width: int, height: int, left_out: Counter[str]) -> Iterator[Line]:
    """One entry for every box with a text, in whole pixels of the stored image of `width` x `height`."""
    assert sample.media is not None
    for concept in sample.concepts:
        label = " ".join([concept.text, *(name for name in concept.attributes if name.startswith(MADE_OF))])
        box = whole_pixels(concept.box, width / sample.media.width, height / sample.media.height, width, height)
        if box is None:
            left_out["box_under_one_pixel"] += 1
        elif _texts([label], "box_without_words", left_out):
            yield {"bb": box, "caption": label, **_attributes(concept)}


def _attributes(concept: Concept) -> dict[str, list[str]]:
    """Attributes that read before the label; their reader puts one of them there."""
    before = [name for name in concept.attributes if not name.startswith(MADE_OF) and _has_words(name)]
    return {"attributes": before} if before else {}


def whole_pixels(box: Box, scale_x: float, scale_y: float, width: int, height: int) -> list[int] | None:
    """[x, y, w, h] of `box` after scaling, each number cut to whole pixels as the released loader cuts it, inside
    `width` x `height`; None if it has no width or height then."""
    x, y = int(box.x * scale_x), int(box.y * scale_y)
    w, h = min(int(box.w * scale_x), width - x), min(int(box.h * scale_y), height - y)
    return [x, y, w, h] if w > 0 and h > 0 and x >= 0 and y >= 0 else None


def _upright(payload: bytes) -> tuple[bytes, int, int]:
    """The image as a reader that ignores orientation must get it, with its size; InvalidSample if it is broken."""
    header = probe(payload)
    image = open_image(payload)  # to the end: their loader decodes it too, and would drop the line silently
    if header.orientation == 1:
        return payload, header.width, header.height
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=UPRIGHT_QUALITY)
    return buffer.getvalue(), image.width, image.height


def _texts(texts: Sequence[str], rule: str, left_out: Counter[str]) -> list[str]:
    kept = [text for text in texts if _has_words(text)]
    if len(kept) < len(texts):
        left_out[rule] += len(texts) - len(kept)
    return kept


def _has_words(text: str) -> bool:
    try:
        return bool(pre_caption(text, 1))
    except InvalidSample:
        return False


def _one_or_list(texts: list[str]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else texts


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
