"""A planted row: a known defect (or a row exactly on a limit) and the expected verdict of the pipeline."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Plant:
    """One line of planted.csv.

    `row_key` is the source row key as the readers form it, or `concept:<annotation id>` when the verdict concerns one
    concept of a row that is kept. `stage` is the stage that must decide, `rule` the name of its rule, or `kept`.
    """

    source: str
    row_key: str
    what: str
    stage: str
    rule: str


def planted_csv(plants: Iterable[Plant]) -> str:
    """planted.csv as text, in the order given. ValueError if a row would get two verdicts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Plant)])
    seen: set[tuple[str, str]] = set()
    for plant in plants:
        if (plant.source, plant.row_key) in seen:
            raise ValueError(f"{plant.source}: {plant.row_key} is planted twice")
        seen.add((plant.source, plant.row_key))
        writer.writerow(astuple(plant))
    return text.getvalue()
