"""Output of the sources: records of upstream tables, and the truth about each row, concept, caption and media file."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

KEPT = "kept"
ROW_NUMBER = "{n}"
"""Placeholder in a row key or item for the record's number in its table, which is known when files are assembled."""


@dataclass(frozen=True)
class Truth:
    """Ground truth of one row, concept, caption or media file, and the expected decision of the default rules.

    `planted` is "" if it is clean. `expected_rule` is the rule that drops it in `expected_stage`, or "kept".
    """

    source: str
    row_key: str  # as the source's reader forms it
    unit: str  # row, concept, caption or media
    scene: int  # number of the scene whose row this is
    item: str = ""  # annotation id of a concept, position of a caption
    planted: str = ""
    detail: str = ""
    expected_stage: str = ""
    expected_rule: str = KEPT


TRUTH_SCHEMA = pa.schema(
    [(field.name, pa.int64() if field.name == "scene" else pa.string()) for field in fields(Truth)]
)


@dataclass(frozen=True)
class Record:
    """One entry of an upstream table; `payload` is JSON, or a line of text where the table is a text file."""

    table: str
    payload: Any
    truths: tuple[Truth, ...] = ()


def truth_line(truths: Iterable[Truth]) -> list[dict[str, Any]]:
    return [asdict(truth) for truth in truths]


def to_json(value: Any) -> str:
    """JSON on one line, keys in the order given, as ASCII."""
    return json.dumps(value, separators=(", ", ": "))


def csv_line(values: Iterable[Any], quote_all: bool = False) -> str:
    """One line of CSV without its line end."""
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator="").writerow(values)
    return file.getvalue()
