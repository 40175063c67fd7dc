"""The comparison table as text, Markdown, CSV, JSON and a section of the report page.

All five hold the same rows. Numbers are rounded to two digits for people; JSON and CSV have them in full.
"""

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.report.comparison import Row, Table
from x2vlm.command_line import printable

COLUMNS = ("evaluation", "split", "metric", "ours", "95 %", "published", "model", "source", "difference", "notes")
NUMBERS = ("ours", "95 %", "published", "difference")
FIELDS = (
    *("evaluation", "benchmark", "split", "metric", "ours", "low", "high"),
    *("published", "model", "source", "difference", "notes"),
)


def as_text(table: Table) -> str:
    """Aligned columns; notes, which are long, stand once below the rows of their evaluation, by number."""
    if not table.rows:
        return "nothing was evaluated"
    numbered = _numbered_notes(table)
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in table.rows:
        marks = " ".join(f"[{numbered[note]}]" for note in row.notes)
        lines.append((*(printable(cell) for cell in _cells(row)), marks))
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    padded = [
        "  ".join(
            cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            for name, cell, width in zip(COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*padded, *(f"[{number}] {printable(note)}" for note, number in numbered.items())])


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    head = ["| " + " | ".join(COLUMNS) + " |"]
    head.append("|" + "|".join("---:" if name in NUMBERS else "---" for name in COLUMNS) + "|")
    rows = [[*_cells(row), "; ".join(row.notes)] for row in table.rows]
    return "\n".join([*head, *("| " + " | ".join(_markdown(cell) for cell in cells) + " |" for cells in rows)]) + "\n"


def as_csv(table: Table) -> str:
    """Comma-separated, one line of names first; notes are joined by `; `."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        values = _values(row)
        writer.writerow({**values, "notes": "; ".join(values["notes"])})
    return out.getvalue()


def as_json(table: Table) -> str:
    """A list of objects; what is not known is null."""
    return json.dumps([_values(row) for row in table.rows], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_html(table: Table) -> str:
    """The table as an element of a page; "" where nothing was evaluated."""
    if not table.rows:
        return ""
    head = "".join(f'<th class="{"number" if name in NUMBERS else ""}">{name}</th>' for name in COLUMNS)
    body = "".join(_html_row([*_cells(row), "; ".join(row.notes)]) for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
    "html": as_html,
}


def _cells(row: Row) -> tuple[str, ...]:
    """The columns but the last, for people."""
    number = row.published
    return (
        row.evaluation,
        row.split or "-",
        row.metric,
        "-" if row.ours is None else f"{row.ours:.2f}",
        "-" if row.interval is None else f"{row.interval[0]:.2f} to {row.interval[1]:.2f}",
        "-" if number is None else f"{number.value:.2f}",
        "-" if number is None else number.model,
        "-" if number is None else number.source,
        "-" if row.difference is None else f"{row.difference:+.2f}",
    )


def _values(row: Row) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    number = row.published
    return {
        "evaluation": row.evaluation,
        "benchmark": row.benchmark or None,
        "split": row.split or None,
        "metric": row.metric,
        "ours": _finite(row.ours),
        "low": _finite(low),
        "high": _finite(high),
        "published": number and number.value,
        "model": number and number.model,
        "source": number and number.source,
        "difference": row.difference,
        "notes": list(row.notes),
    }


def _finite(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None


def _numbered_notes(table: Table) -> dict[str, int]:
    numbered: dict[str, int] = {}
    for row in table.rows:
        for note in row.notes:
            numbered.setdefault(note, len(numbered) + 1)
    return numbered


def _markdown(cell: str) -> str:
    return printable(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _html_row(cells: Sequence[str]) -> str:
    classes = ("number" if name in NUMBERS else "" for name in COLUMNS)
    return (
        "<tr>"
        + "".join(f'<td class="{c}">{html.escape(t)}</td>' for c, t in zip(classes, cells, strict=True))
        + "</tr>"
    )
