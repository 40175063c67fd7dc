"""Upstream files that list the images of a test set, or link the ids of one image in several collections.

A file is declared by its format; see `evaluation_ids` and `identities` for what is read from its records.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pydantic

from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates import evaluation_ids, identities
from x2vlm.data.tables.csv_rows import csv_rows
from x2vlm.data.tables.lines import byte_lines
from x2vlm.data.tables.rows import BadRow, UnreadableTable
from x2vlm.errors import SourceUnavailable

# A row that is left out here would let an image of a test into the training set: unlike a source's, it ends the run.
REPAIR = "Correct that line: an image that is not listed is not looked for"

TestFormat = Literal[
    "karpathy", "karpathy_list", "coco", "ovad", "vqa", "refcoco", "nlvr2", "gqa", "flickr30k", "wit", "openimages",
    "msrvtt", "msvd",
]  # fmt: skip
LinkFormat = Literal["coco", "visual_genome", "openimages"]


class IdFile(FrozenConfig):
    """A file of a downstream test set whose images must not be trained on.

    `split` is needed where the file does not contain it (all but karpathy, refcoco and msrvtt).
    """

    name: str  # of the test set, in reports
    format: TestFormat
    path: str  # a URI, or a path from the project's root
    split: str = ""

    @pydantic.model_validator(mode="after")
    def _split_is_known(self) -> "IdFile":
        if not self.split and self.format not in ("karpathy", "refcoco", "msrvtt"):
            raise ValueError(f"{self.name}: a file of format {self.format} does not name its split; give `split`")
        return self


class LinkFile(FrozenConfig):
    """A table that links the ids of one image in several collections: Visual Genome's image_data.json, a COCO
    file with `images`, an image table of OpenImages."""

    format: LinkFormat
    path: str


def read_test_ids(file: IdFile, path: Path) -> pa.Table:
    """The ids in one file as EVALUATION_ID_SCHEMA; SourceUnavailable if it is not of the declared format."""
    name, split = file.name, file.split
    readers: dict[str, Callable[[], pa.Table]] = {
        "karpathy": lambda: evaluation_ids.karpathy_ids(name, _json(path)["images"]),
        "karpathy_list": lambda: evaluation_ids.karpathy_list_ids(name, split, _lines(path)),
        "coco": lambda: evaluation_ids.coco_ids(name, split, _json(path)["annotations"]),
        "ovad": lambda: evaluation_ids.coco_ids(name, split, _json(path)["images"], "id"),
        "vqa": lambda: evaluation_ids.coco_ids(name, split, _json(path)["questions"]),
        "refcoco": lambda: evaluation_ids.refcoco_ids(name, _json(path)),
        "nlvr2": lambda: evaluation_ids.nlvr2_ids(name, split, _json_lines(path)),
        "gqa": lambda: evaluation_ids.gqa_ids(name, split, _json(path)),
        "flickr30k": lambda: evaluation_ids.flickr30k_ids(name, split, _lines(path)),
        "wit": lambda: evaluation_ids.address_ids(name, split, _json_lines(path), "wit_ix", ("image_url",)),
        "openimages": lambda: evaluation_ids.openimages_ids(name, split, _csv(path)),
        "msrvtt": lambda: evaluation_ids.msrvtt_ids(name, _json(path)["videos"], split=split),
        "msvd": lambda: evaluation_ids.msvd_ids(name, split, (line for line in _lines(path) if line)),
    }
    return _explained(path, file.format, readers[file.format])


def read_links(file: LinkFile, path: Path) -> pa.Table:
    """The links in one file as LINK_SCHEMA; SourceUnavailable if it is not of the declared format."""
    readers: dict[str, Callable[[], pa.Table]] = {
        "coco": lambda: identities.coco_links(_json(path)["images"]),
        "visual_genome": lambda: identities.visual_genome_links(_json(path)),
        "openimages": lambda: identities.openimages_links(_csv(path)),
    }
    return _explained(path, file.format, readers[file.format])


def _explained(path: Path, format_name: str, read: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read()
    except UnreadableTable as error:
        raise SourceUnavailable(f"{path.name}: {error.problem}. {error.remedy}") from None
    except (KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError) as error:
        raise SourceUnavailable(
            f"{path.name}: not a file of format {format_name} ({type(error).__name__}: {error}); "
            "check `format` and `path` in the experiment"
        ) from error


# Texts that are not UTF-8 are no hindrance: ids are ASCII.
def _json(path: Path) -> Any:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return json.load(stream)


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in _lines(path):
        if line:
            yield json.loads(line)


def _lines(path: Path) -> Iterator[str]:
    for line in byte_lines(path):
        if isinstance(line, BadRow):
            raise UnreadableTable(f"line {line.line}: {line.reason}", REPAIR)
        yield line.decode("utf-8", "replace").strip()


def _csv(path: Path) -> Iterator[Mapping[str, str]]:
    for row in csv_rows(path, (), keeps_bad_bytes=True):
        if isinstance(row, BadRow):
            raise UnreadableTable(f"line {row.line}: {row.reason}", REPAIR)
        yield row.values
