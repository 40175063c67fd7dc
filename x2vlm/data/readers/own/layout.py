"""What the columns of a user's table mean: what its card says, else names that everybody uses."""

from collections.abc import Mapping, Sequence
from typing import Literal

from x2vlm.config import FrozenConfig, did_you_mean

ColumnName = str | int  # a name of the header, or the position (from 0) in a table without one
ColumnMap = Mapping[str, Sequence[ColumnName]]

# Field of a row -> names of columns that mean it without being told, in lower case. `id` has none: columns of that name
# often repeat (five captions of an image), and a row key must not.
ALIASES: dict[str, tuple[str, ...]] = {
    "url": (
        *("url", "urls", "link", "image_url", "img_url", "image_link", "image", "img", "images", "src", "image_path"),
        *("img_path", "file_name", "filename", "file", "filepath", "file_path", "path", "video", "video_url"),
        *("video_path", "contenturl", "clip", "media"),
    ),
    "caption": (
        *("caption", "captions", "text", "texts", "txt", "alt_text", "alttext", "alt", "sentence", "sentences"),
        *("description", "raw_caption", "title"),
    ),
    "id": (),
    "language": ("language", "lang"),
    "licence": ("licence", "license"),
    "author": ("author",),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "sha256": ("sha256", "sha256hash"),
    "md5": ("md5",),
    "kind": ("kind", "media_type"),
    "start": ("start", "start_seconds", "start_time"),
    "end": ("end", "end_seconds", "end_time"),
    "similarity": ("similarity",),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "nsfw": ("nsfw",),
    "boxes": ("boxes", "bboxes", "bbox"),
    "labels": ("labels", "label", "classes"),
    "phrases": ("phrases",),
}
BOX_FIELDS = ("boxes", "labels", "phrases")
WEAK = {"caption": ("title",)}  # they count only where no other name does
SEVERAL = ("caption",)  # fields that may be made of several columns


class BoxFormat(FrozenConfig):
    """How the four numbers of a box are meant: corner and size, two corners, or centre and size."""

    format: Literal["xywh", "xyxy", "cxcywh"]
    unit: Literal["pixels", "fraction"]  # of the image with its EXIF orientation applied


def check_columns(columns: Mapping[str, object]) -> None:
    """ValueError for a field that no row has, with the nearest one."""
    for name in columns:
        if name not in ALIASES:
            raise ValueError(f"no field is called `{name}`; {did_you_mean(name, ALIASES, 'fields are')}")


def match_columns(names: Sequence[str], given: ColumnMap, with_boxes: bool) -> dict[str, tuple[str, ...]]:
    """Field -> its columns among `names`; positions in `given` are names like "0".

    ValueError, with all columns, where a given one does not exist, where several could be meant, or where a row would
    have no address or nothing to learn from.
    """
    found: dict[str, tuple[str, ...]] = {}
    listed = ", ".join(names) or "none"
    for field, aliases in ALIASES.items():
        if field in BOX_FIELDS and not with_boxes:
            continue
        if field in given:
            wanted = [str(name) for name in given[field]]
            for name in wanted:
                if name not in names:
                    guess = did_you_mean(name, names) if names else "it has none"
                    raise ValueError(f"no column `{name}`, which the card gives for {field}; {guess} Columns: {listed}")
            found[field] = tuple(wanted)
            continue
        taken = {str(name) for columns in given.values() for name in columns}
        free = [name for name in dict.fromkeys(names) if name not in taken]
        matches = [name for name in free if _plain(name) in aliases and _plain(name) not in WEAK.get(field, ())]
        matches = matches or [name for name in free if _plain(name) in WEAK.get(field, ())]
        if len(matches) > 1:
            which = ", ".join(f"`{name}`" for name in matches)
            raise ValueError(
                f"several columns could be the {field}: {which}. Say which in the card: "
                f"`columns: {{{field}: {matches[0]}}}`. Columns: {listed}"
            )
        if matches:
            found[field] = (matches[0],)
    _require(found, with_boxes, listed)
    return found


def _require(found: Mapping[str, tuple[str, ...]], with_boxes: bool, listed: str) -> None:
    if "url" not in found:
        raise ValueError(
            "no column is known to hold the address or path of an image or clip. Say which in the card: "
            f"`columns: {{url: NAME}}`. Columns: {listed}"
        )
    if with_boxes and ("boxes" not in found or not ("labels" in found or "phrases" in found)):
        raise ValueError(
            "the card has `boxes`, which takes a column of boxes and one of their labels (or phrases): "
            f"`columns: {{boxes: NAME, labels: NAME}}`. Columns: {listed}"
        )
    if "caption" not in found and not with_boxes:
        raise ValueError(
            "no column is known to hold a caption. Say which in the card: `columns: {caption: NAME}`. "
            f"Columns: {listed}"
        )


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
