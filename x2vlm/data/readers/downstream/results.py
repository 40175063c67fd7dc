"""Result files in the form that test servers and official evaluations take: one prediction an id."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from x2vlm.data.readers.downstream.reading import id_field, whole_json
from x2vlm.data.readers.source import Source
from x2vlm.errors import InvalidSample


def read_results(path: Path, id_key: str, value_key: str) -> dict[str, str]:
    """Prediction by id, in the order of the file.

    COCO's captions: [{"image_id", "caption"}]; VQA's: [{"question_id", "answer"}]; expressions: {"predictions":
    [{"ref_id", "sent"}]}. InvalidSample, naming the row, for a row without both, and for an id with two different
    predictions; upstream's own sample repeats some rows. SourceUnavailable for a file that is no such list.
    """
    source = Source("results", "results", "", {"rows": path})
    found: dict[str, str] = {}
    for number, row in enumerate(_rows(source)):
        if not isinstance(row, dict):
            raise InvalidSample("malformed_row", f"{path.name}: row {number} is no object: {row!r:.80}")
        try:
            row_id = id_field(row, id_key)
        except InvalidSample as error:
            raise InvalidSample(error.rule, f"{path.name}: row {number}: {error.message}") from None
        if not isinstance(row.get(value_key), str):
            raise InvalidSample("malformed_row", f"{path.name}: row {number}: {value_key} is no text")
        if found.get(row_id, row[value_key]) != row[value_key]:
            raise InvalidSample(
                "duplicate_id", f"{path.name}: row {number}: {id_key} {row_id} again, with another value"
            )
        found[row_id] = row[value_key]
    if not found:
        source.fail("rows", "no prediction", f'Expected [{{"{id_key}": ..., "{value_key}": ...}}]')
    return found


def _rows(source: Source) -> Iterator[Any]:
    value = whole_json(source, "rows")
    if isinstance(value, dict):
        value = value.get("predictions")
        if not isinstance(value, list):
            source.fail("rows", "neither a list nor an object with `predictions`", "Give the file of results")
    yield from value
