"""A split of a task as the pipeline stores it: tables of examples, labels, and media packs. Imports no torch.

Media are called by the sha256 of their bytes there (`Example.media`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.media.images import open_image
from x2vlm.data.media.video import decode_frames
from x2vlm.data.shards.packs import MediaPack
from x2vlm.data.task_examples import Example, examples_of, labels_of_json
from x2vlm.errors import ConfigError, InvalidSample

if TYPE_CHECKING:  # torch
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual

EXAMPLES_FILE, LABELS_FILE, DROPS_FILE = "examples.parquet", "labels.json", "drops.parquet"
FRAMES = "frames"  # format of a clip that the download stage has cut into frames


@dataclass(frozen=True)
class Split:
    """Examples in the order of the official files, and the labels that they were read with."""

    examples: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    label_tags: tuple[tuple[str, ...], ...] = ()


def load_split(tables: Iterable[Path | bytes], labels: str) -> Split:
    """A split out of its tables, in order, and the content of its labels file."""
    examples: list[Example] = []
    for table in tables:
        examples += examples_of(pq.read_table(BytesIO(table) if isinstance(table, bytes) else table))
    return Split(tuple(examples), *labels_of_json(labels))


def check_labels(found: Sequence[str], known: Sequence[str]) -> None:
    """ConfigError if most of the answers that a split was read with are none of those that the model chooses from.

    Single ones may be missing: a list that is made of the rows of a file has those of its own rows alone.
    """
    there = set(known)
    unknown = [label for label in found if label not in there]
    if known and 2 * len(unknown) > len(found):
        raise ConfigError(
            f"{len(unknown)} of its {len(found)} answers are not among the {len(known)} that the model chooses from: "
            f"{', '.join(map(repr, unknown[:5]))}. Give the list of answers that it is trained with"
        )


class PackedMedia:
    """Images and clips out of media packs, by the sha256 of their bytes. Safe to share between threads."""

    def __init__(self, packs: Sequence[tuple[Path, Path]]) -> None:
        """`packs`: the tar and the index of each."""
        self._paths = list(packs)
        self._packs: list[MediaPack] | None = None
        self._pack_of: dict[str, int] = {}

    def bytes_of(self, sha256: str) -> bytes:
        """The payload; InvalidSample ("missing_media") if no pack holds it."""
        if self._packs is None:
            self._packs = [MediaPack(tar, index) for tar, index in self._paths]
            self._pack_of = {name: number for number, pack in enumerate(self._packs) for name in pack}
        if sha256 not in self._pack_of:
            raise InvalidSample("missing_media", f"no media pack holds {sha256}")
        return self._packs[self._pack_of[sha256]].read(sha256)

    def visual(self, sha256: str, processor: Processor) -> Visual:
        """The image, or the frames of the clip that `processor` chooses; InvalidSample if it cannot be decoded.

        A clip is a video file, or the frames that the download stage has cut out of one.
        """
        from x2vlm.inference.visuals import Visual

        data = self.bytes_of(sha256)
        if self._format(sha256) != FRAMES:
            visual = processor.read(data)
            return Visual(sha256, visual.frames, visual.is_clip)
        jpegs, _ = decode_frames(data)
        chosen = choose_frames(len(jpegs), processor.config.frames_per_clip)
        return Visual(sha256, tuple(open_image(jpegs[number]) for number in chosen), is_clip=True)

    def _format(self, sha256: str) -> str:
        assert self._packs is not None
        return self._packs[self._pack_of[sha256]].entry(sha256).format

    def __getstate__(self) -> dict[str, object]:
        """Open files do not travel to processes that prefetch."""
        return {"_paths": self._paths, "_packs": None, "_pack_of": {}}
