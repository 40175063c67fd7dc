"""Shards as a `webdataset.WebDataset`, for code that knows that library and nothing of ours."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from x2vlm.extras import needs

if TYPE_CHECKING:  # the library imports torch: 3 CPU seconds, which an import of this package must not take
    from webdataset import WebDataset


class StoredFile(Protocol):
    """A file of an artifact: its name and where it lies."""

    @property
    def path(self) -> str: ...

    @property
    def uri(self) -> str: ...


class StoredPart(Protocol):
    """A part of an artifact."""

    @property
    def files(self) -> Sequence[StoredFile]: ...


class Artifact(Protocol):
    """What `pipelines.export.packed.packed_shards` gives: parts, each with the files of a shard."""

    @property
    def parts(self) -> Sequence[StoredPart]: ...


def webdataset(
    shards: str | Path | Sequence[str | Path] | Artifact,
    decode: bool = True,
    captioned: bool = False,
    shardshuffle: int | bool = False,
    **options: Any,
) -> "WebDataset":
    """A `webdataset.WebDataset` over `shards`: every row once, as a dictionary with these keys.

    | key | value |
    |---|---|
    | `__key__` | the sample's key, 32 hex digits |
    | `jpg` | of an image: PIL image, RGB, not turned by EXIF; whatever its codec |
    | `frames` | of a clip: a list of (seconds, PIL image) |
    | `txt` | its first caption, "" if it has none |
    | `json` | facts; `json["row"]` is the whole row: all captions, concepts with boxes, media, scores |

    `shards` are a folder of tars (what `jobs/export.py` wrote), a packed artifact, or paths, addresses and brace
    patterns as webdataset takes them (`.../{00000..00007}.tar`). With `captioned` rows without a caption are left out;
    `decode=False` gives bytes. `shardshuffle` and `options` are WebDataset's own (`nodesplitter`, `resampled`, `seed`,
    ...). ConfigError if there is no tar among `shards`.
    """
    with needs("reading shards as WebDataset"):
        from webdataset import WebDataset

    dataset = WebDataset(tar_urls(shards), shardshuffle=shardshuffle, **options)
    if captioned:
        dataset = dataset.select(lambda sample: bool(sample.get("txt")))
    return dataset.decode(decode_clip, "pilrgb").map(_with_row) if decode else dataset


def tar_urls(shards: str | Path | Sequence[str | Path] | Artifact) -> list[str] | str:
    """Paths or addresses of the tars that `shards` names; see `webdataset`."""
    from x2vlm.data.shards.media_files import PARQUET_SUFFIX, TAR_SUFFIX
    from x2vlm.errors import ConfigError

    if isinstance(shards, str | Path):
        if not Path(shards).is_dir():
            return str(shards)
        found = sorted(str(path) for path in Path(shards).glob(f"*{TAR_SUFFIX}"))
        other, place = any(Path(shards).glob("*.parquet")), f"{shards}"
    elif isinstance(shards, Sequence):
        return [str(path) for path in shards]
    else:
        files = [file for part in shards.parts for file in part.files]
        found = [file.uri.removeprefix("file://") for file in files if file.path.endswith(TAR_SUFFIX)]
        other, place = any(file.path.endswith(PARQUET_SUFFIX) for file in files), "the artifact"
    if not found:
        kind = "holds Parquet shards" if other else "holds no shards"
        raise ConfigError(
            f"{place} {kind}, and webdataset reads tars; write some: `jobs/export.py <experiment> --format webdataset`"
        )
    return found


def decode_clip(key: str, data: bytes) -> list[tuple[float, Any]] | None:
    """The frames of a `.frames` member, each with its time in seconds; None for members of other kinds."""
    if key.rpartition(".")[2] != "frames":
        return None
    from PIL import Image

    from x2vlm.data.media.video import decode_frames

    frames, seconds = decode_frames(data)
    return [(time, Image.open(BytesIO(frame)).convert("RGB")) for time, frame in zip(seconds, frames, strict=True)]


def _with_row(sample: dict[str, Any]) -> dict[str, Any]:
    facts = sample["json"]
    return {**sample, "json": {**facts, "row": json.loads(facts["row"])}}
