"""One self-contained HTML page about a finished run: inputs, drops by reason, training metrics.

The page opens offline, makes no request, works without JavaScript and contains nothing that is not in the manifests.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.flow.store.artifact import CountRecord, Manifest
from pipelines.report.comparison import Table
from pipelines.report.comparison_formats import as_html
from pipelines.report.score_chart import STYLE as CHART_STYLE
from pipelines.report.score_chart import score_section

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1a; --paper: #fcfcfa; }
:root { --faint: #6b6b66; --line: #dcdcd6; --mark: #2f6f9f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e4; --paper: #191918; --faint: #a3a39c; --line: #3a3a37; --mark: #78b4de; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; } .faint { color: var(--faint); }
.charts { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: 0; } figcaption { font-size: .85rem; }
polyline { fill: none; stroke: var(--mark); stroke-width: 1.5; } .axis { stroke: var(--line); }
"""


NOTHING = Table()


def render_report(
    experiment: str,
    manifests: Mapping[str, Manifest],
    series: Sequence[Mapping[str, Any]],
    next_steps: Iterable[str],
    table: Table = NOTHING,
) -> str:
    """The page as HTML text. `manifests` by node key in graph order; `series`: training metrics, one row per step;
    `table`: the evaluations beside published numbers, shown where one of them is of a published benchmark."""
    sections = [
        f"<h1>Experiment {html.escape(experiment)}</h1>",
        *_outdated_note(manifests),
        _results(manifests),
        *_comparison_section(table),
        "<h2>Rows, stage by stage</h2>",
        _node_table(manifests),
        "<h2>Why rows, concepts and captions were dropped</h2>",
        _drop_table(manifests),
        *_domain_section(manifests),
        *score_section(manifests),
        "<h2>Training</h2>",
        _charts(series),
        "<h2>Where to look next</h2>",
        "<ul>" + "".join(f"<li><code>{html.escape(step)}</code></li>" for step in next_steps) + "</ul>",
    ]
    title = html.escape(f"{experiment}: run report")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{STYLE}{CHART_STYLE}</style></head><body>" + "\n".join(sections) + "</body></html>\n"
    )


def write_report(path: Path, page: str) -> None:
    """Write the page, replacing an older one atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def read_series(data: bytes) -> list[dict[str, Any]]:
    """The rows of a JSON-lines metrics file."""
    return [json.loads(line) for line in data.splitlines() if line.strip()]


def metrics_of(manifests: Mapping[str, Manifest], stage: str) -> dict[str, dict[str, float]]:
    """The headline metrics of every node of `stage`, by node key."""
    return {
        key: dict(sorted(manifest.summary.get("metrics", {}).items()))
        for key, manifest in manifests.items()
        if manifest.stage == stage
    }


def _outdated_note(manifests: Mapping[str, Manifest]) -> list[str]:
    """Which nodes were made of something that has been made anew since, by a command on some of the nodes; or []."""
    old = [
        key
        for key, manifest in manifests.items()
        if any(item.node in manifests and item.root != manifests[item.node].root for item in manifest.inputs)
    ]
    names = ", ".join(f"<code>{html.escape(key)}</code>" for key in old)
    return [f"<p>Made of earlier versions of what they read, and due: {names}.</p>"] if old else []


def _results(manifests: Mapping[str, Manifest]) -> str:
    rows = [
        f'<tr><td>{html.escape(key)}</td><td>{html.escape(name)}</td><td class="number">{value:.4g}</td></tr>'
        for key, metrics in metrics_of(manifests, "evaluate").items()
        for name, value in metrics.items()
    ]
    return _table(["evaluation", "metric", "value"], rows) if rows else ""


def _comparison_section(table: Table) -> list[str]:
    if not any(row.benchmark for row in table.rows):
        return []
    return ["<h2>Beside published numbers</h2>", as_html(table)]


def rows_of(manifest: Manifest) -> CountRecord:
    """The count of rows; 0 for a node without parts, such as a round of retries in which nothing was left to retry."""
    return manifest.counts.get("rows", CountRecord(num_in=0, num_out=0))


def _node_table(manifests: Mapping[str, Manifest]) -> str:
    rows = []
    for key, manifest in manifests.items():
        count = rows_of(manifest)
        cells = [str(len(manifest.parts)), str(count.num_in), str(count.num_out), str(sum(count.dropped.values()))]
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(
            f"<tr><td>{html.escape(key)}</td>{numbers}<td><code class=faint>{manifest.root[:12]}</code></td></tr>"
        )
    return _table(["node", "parts", "rows in", "rows out", "dropped", "root"], rows)


def _drop_table(manifests: Mapping[str, Manifest]) -> str:
    rows = [
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(unit)}</td><td>{html.escape(reason)}</td>"
        f'<td class="number">{number}</td></tr>'
        for key, manifest in manifests.items()
        for unit, count in manifest.counts.items()
        for reason, number in sorted(count.dropped.items())
    ]
    return _table(["node", "unit", "reason", "number"], rows) if rows else "<p>Nothing was dropped.</p>"


def _domain_section(manifests: Mapping[str, Manifest]) -> list[str]:
    """Domains whose files differ from the published hashes, and bytes returned for many images; [] without any."""
    flagged, repeated = [], []
    for key, manifest in manifests.items():
        for row in manifest.summary.get("flagged", []) if manifest.stage == "domains" else []:
            checked = row["match"] + row["mismatch"]
            numbers = [f"{row['match']} of {checked}", f"{row['others_match_rate']:.1%}", f"{row['p_value']:.1e}"]
            flagged.append(_row([key, row["domain"]], numbers))
        for row in manifest.summary.get("repeated", []) if manifest.stage == "domains" else []:
            repeated.append(_row([key, row["domain"], row["sha256"]], [str(row["num_urls"])]))
    sections = []
    if flagged:
        sections.append("<h2>Domains whose files are not those the source has hashes of</h2>")
        sections.append(_table(["node", "domain", "match", "match elsewhere", "p"], flagged))
    if repeated:
        sections.append("<h2>Files that many addresses of one domain answer with</h2>")
        sections.append(_table(["node", "domain", "sha256", "addresses"], repeated))
    return sections


def _row(texts: Sequence[str], numbers: Sequence[str]) -> str:
    cells = [f"<td>{html.escape(text)}</td>" for text in texts]
    cells += [f'<td class="number">{html.escape(number)}</td>' for number in numbers]
    return f"<tr>{''.join(cells)}</tr>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    numbers = {
        "parts",
        "rows in",
        "rows out",
        "dropped",
        "number",
        "value",
        "match",
        "match elsewhere",
        "p",
        "addresses",
    }
    cells = "".join(f'<th class="{"number" if name in numbers else ""}">{name}</th>' for name in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _charts(series: Sequence[Mapping[str, Any]]) -> str:
    """One small chart per numeric series; its caption gives the first and the last value."""
    names = sorted({name for row in series for name, value in row.items() if isinstance(value, int | float)} - {"step"})
    figures = [
        _chart(name, [(row["step"], row[name]) for row in series if isinstance(row.get(name), int | float)])
        for name in names
    ]
    return f'<div class="charts">{"".join(figures)}</div>'


def _chart(name: str, points: Sequence[tuple[float, float]], width: int = 220, height: int = 90) -> str:
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    span_x, span_y = max(last - first, 1), (high - low) or 1.0
    path = " ".join(
        f"{(x - first) / span_x * width:.1f},{height - 4 - (y - low) / span_y * (height - 8):.1f}" for x, y in points
    )
    label = f"{html.escape(name)}: {points[0][1]:.4g} to {points[-1][1]:.4g}"
    return (
        f'<figure><svg width="{width}" height="{height}" role="img" aria-label="{label}">'
        f'<line class="axis" x1="0" y1="{height - 1}" x2="{width}" y2="{height - 1}"/><polyline points="{path}"/></svg>'
        f"<figcaption>{label}</figcaption></figure>"
    )
