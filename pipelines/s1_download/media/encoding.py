"""The stored form of a fetched image: its original bytes, or a smaller copy.

Either way a sample's media record is of the original: its hash, its size in bytes, its width and height in upright
pixels, to which boxes refer. Only the format is that of the stored file.
"""

import hashlib
from typing import Annotated, Literal

import pydantic

from pipelines.s1_download.media.jpeg_head import plain_jpeg_header
from pipelines.s1_download.media.metadata import size_of_stripped_jpeg, strip_metadata
from x2vlm.config import FrozenConfig
from x2vlm.data.media.images import Header, open_image, probe, reencode_image
from x2vlm.data.media.pixels import Colour
from x2vlm.errors import InvalidSample
from x2vlm.samples import Media


class OriginalBytes(FrozenConfig):
    """The bytes as fetched, without their metadata.

    `check: header` decodes nothing, which is the default because decoding costs 3.5 CPU ms for 1200 x 800 pixels and
    the rest of a download about 1.2: an image that is broken after its header is stored, and counted where it is first
    decoded, by `score` as `decode_failed` and by the loader as a substitute. With `check: decode` it is a drop here.
    """

    kind: Literal["original"] = "original"
    check: Literal["header", "decode"] = "header"


class Reencoded(FrozenConfig):
    """JPEGs of at most `short_edge` pixels, upright, without metadata; see `x2vlm.data.media.images.reencode_image`.

    An image that does not decode is a drop. `scaled_decode` is faster but not exact: its docstring has the figures.
    """

    kind: Literal["reencoded"]
    short_edge: int = pydantic.Field(default=256, gt=0)
    quality: int = pydantic.Field(default=95, ge=1, le=100)
    scaled_decode: bool = False
    colour: Colour = "ignore"  # "srgb" converts colours by the image's profile; the released recipe ignores profiles


ImageEncoding = Annotated[OriginalBytes | Reencoded, pydantic.Field(discriminator="kind")]


def decodes(store: OriginalBytes | Reencoded) -> bool:
    """Whether images are decoded before they are stored."""
    return isinstance(store, Reencoded) or store.check == "decode"


def media_to_store(body: bytes, store: OriginalBytes | Reencoded, strips_metadata: bool) -> tuple[Media, bytes, str]:
    """The media record of the image `body`, the bytes to store, and their sha256.

    Raises InvalidSample with a rule of `open_image`, or metadata_unreadable.
    """
    header, sha256 = plain_jpeg_header(body) or probe(body), hashlib.sha256(body).hexdigest()
    media = Media("image", sha256, len(body), header.width, header.height, header.format)
    if isinstance(store, Reencoded):
        payload = reencode_image(body, store.short_edge, store.quality, store.scaled_decode, colour=store.colour)
        media = Media("image", sha256, len(body), header.width, header.height, "jpeg")
        return media, payload, hashlib.sha256(payload).hexdigest()
    if store.check == "decode":
        open_image(body)
    payload = without_metadata(body, header) if strips_metadata else body
    return media, payload, sha256 if payload is body else hashlib.sha256(payload).hexdigest()


def without_metadata(body: bytes, header: Header) -> bytes:
    """`body` with its orientation as its only metadata; InvalidSample with rule metadata_unreadable if that fails."""
    stripped = strip_metadata(body, header.format, header.orientation)
    if stripped == body:
        return body
    size = size_of_stripped_jpeg(stripped) if header.format == "jpeg" else None
    if size is not None:  # the size that Pillow would find, 30 us faster
        found = ("jpeg", *(size[::-1] if header.orientation >= 5 else size))
    else:
        again = probe(stripped)
        found = (again.format, again.width, again.height)
    if found != (header.format, header.width, header.height):
        raise InvalidSample("metadata_unreadable", "without its metadata the image would have another size")
    return stripped
