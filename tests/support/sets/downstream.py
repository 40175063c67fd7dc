"""What tests of downstream readers share: files written from values, and a read that keeps the books."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from x2vlm.data.readers.downstream import read_task
from x2vlm.data.task_examples import TaskData, check_examples, example_table, examples_of


def write_json(path: Path, value: Any) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """JSON lines; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_gzip(path: Path, lines: Iterable[str]) -> Path:
    """Lines of text, packed."""
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


def read(reader: str, files: Mapping[str, Path], split: str = "test", **options: Any) -> TaskData:
    """`read_task`, after checking that ids are unique and that the examples survive being stored."""
    data = read_task(reader, files, split, options)
    check_examples(data.examples, reader)
    assert all(example.split == split for example in data.examples)
    assert examples_of(example_table(data.examples)) == list(data.examples)
    return data


def dropped(data: TaskData) -> list[tuple[str, str]]:
    """(row, rule) of every drop, in order."""
    return [(drop.source_row, drop.rule) for drop in data.dropped]
