"""Smaller copies of large images, made while a shard is packed: what training never looks at is not read either.

Width and height of a sample stay those of its original, in which boxes are counted; training crops out of a smaller
copy as it would out of the original. Frames of clips are made smaller one by one. What is small enough keeps its bytes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.media.images import probe, reencode_image, shrunk_size
from x2vlm.data.media.video import decode_frames, encode_frames
from x2vlm.errors import InvalidSample
from x2vlm.samples import MEDIA_TYPE, Drop

Payload = Callable[[str], bytes]


@dataclass
class Smaller:
    """What became of the rows of a shard: those that stay, drops for what broke, and where payloads are now."""

    rows: pa.Table
    drops: list[Drop]
    payload_of: Payload
    counts: Counter[str] = field(default_factory=Counter)  # images, clips: made smaller; bytes_before, bytes_after


def make_smaller(rows: pa.Table, payload_of: Payload, short_edge: int, quality: int, scratch: Path) -> Smaller:
    """`rows` with an image of at most `short_edge` pixels each; one image is in memory at a time.

    Payloads that change lie in a file in `scratch` until the shard is written. A row whose image does not decode is a
    drop with the decoder's rule; an image that is small enough is not decoded.
    """
    places: dict[str, tuple[int, int]] = {}  # sha256 of the original -> offset and size in the scratch file
    broken: dict[str, InvalidSample] = {}
    counts: Counter[str] = Counter(images=0, clips=0, bytes_before=0, bytes_after=0)
    path = scratch / "smaller"
    media = {one["sha256"]: one for one in rows["media"].to_pylist()}
    with path.open("wb") as file:
        for sha256, one in media.items():
            payload = payload_of(sha256)
            try:
                copy = smaller_payload(payload, one, short_edge, quality)
            except InvalidSample as error:
                broken[sha256] = error
                continue
            if copy is not None:
                places[sha256] = (file.tell(), len(copy))
                file.write(copy)
                counts["clips" if one["format"] == "frames" else "images"] += 1
                counts["bytes_before"] += len(payload)
                counts["bytes_after"] += len(copy)

    def read(sha256: str) -> bytes:
        if sha256 not in places:
            return payload_of(sha256)
        offset, size = places[sha256]
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    kept, drops = _without_broken(rows, broken)
    return Smaller(_with_formats(kept, set(places)), drops, read, counts)


def smaller_payload(payload: bytes, media: dict[str, Any], short_edge: int, quality: int) -> bytes | None:
    """The payload to store instead of `payload`, None where that is small enough; InvalidSample if it is broken.

    A copy that download made smaller already is cut to the size that the original would have been cut to: rounding
    twice may differ by a pixel, and boxes would then be refused.
    """
    if media["format"] != "frames":
        return _smaller_image(payload, (media["width"], media["height"]), short_edge, quality)
    frames, times = decode_frames(payload)
    copies = [_smaller_image(frame, None, short_edge, quality) for frame in frames]
    if not any(copies):
        return None
    return encode_frames([copy or frame for copy, frame in zip(copies, frames, strict=True)], times)


def _smaller_image(data: bytes, recorded: tuple[int, int] | None, short_edge: int, quality: int) -> bytes | None:
    header = probe(data)
    size = (header.width, header.height)
    if min(size) <= short_edge:
        return None
    is_copy = recorded is not None and size == shrunk_size(*recorded, min(size))
    return reencode_image(data, short_edge, quality, original=recorded if is_copy else None)


def _without_broken(rows: pa.Table, broken: dict[str, InvalidSample]) -> tuple[pa.Table, list[Drop]]:
    if not broken:
        return rows, []
    sha256 = pc.struct_field(rows["media"], "sha256")
    gone = pc.is_in(sha256, value_set=pa.array(sorted(broken), pa.string()))
    drops = [
        Drop(**name, stage="pack", rule=broken[one].rule, reason=f"made smaller: {broken[one]}")
        for name, one in zip(
            rows.select(["key", "source", "source_row"]).filter(gone).to_pylist(),
            sha256.filter(gone).to_pylist(),
            strict=True,
        )
    ]
    return rows.filter(pc.invert(gone)), drops


def _with_formats(rows: pa.Table, changed: set[str]) -> pa.Table:
    """`rows` with the format of what is stored now: images that were made smaller are JPEGs."""
    media = [
        {**one, "format": "jpeg"} if one["sha256"] in changed and one["format"] != "frames" else one
        for one in rows["media"].to_pylist()
    ]
    place = rows.schema.get_field_index("media")
    return rows.set_column(place, rows.schema.field(place), pa.array(media, MEDIA_TYPE))
