"""A planted row: something known to be wrong (or exactly on an edge) and the verdict the pipeline owes it."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Plant:
    """One line of planted.csv.

    `row_key` is the source row key as the readers form it, or `concept:<annotation id>` when the verdict concerns one
    concept of a row that stays. `stage` is the stage that must give the verdict, `rule` its name, or `kept`.
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
