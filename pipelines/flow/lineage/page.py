"""The graph of one run as a single HTML file: no scripts, no requests, readable offline and by a screen reader."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.flow.lineage.facts import LineageRecord, NodeFacts
from pipelines.flow.lineage.spool import Spool
from pipelines.flow.store.store import Store

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 46, 60, 18, 12

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1b1b;background:#fff}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{border-bottom:1px solid #ccc;padding:.3rem .5rem;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.85em}
.scroll{overflow-x:auto}rect{fill:#f4f6fb;stroke:#3b5b92}.hit rect{fill:#eef7ee;stroke:#3a7d44}
.failed rect{fill:#fdecec;stroke:#b3261e}.blocked rect{fill:#f3f3f3;stroke:#777;stroke-dasharray:4}
text{font:12px system-ui,sans-serif;fill:#1b1b1b}path{fill:none;stroke:#8a94a6}
"""

STATES = {"node_failed": "failed", "node_blocked": "blocked", "node_started": "unfinished"}


def write_page(records: Sequence[LineageRecord], path: Path, store_uri: str) -> Path:
    """`path`, now holding the page of the run that `records` tell of."""
    path.write_text(render(records, store_uri), encoding="utf-8")
    return path


def write_page_to_store(store: Store, spool: Spool) -> str:
    """Where the page of a spool's run now lies in the store, whether or not any MLflow is alive."""
    path = f"lineage/{spool.dag_run}.html"
    store.blobs.write(path, render(spool.read(), store.uri).encode("utf-8"))
    return store.uri_of(path)


def render(records: Sequence[LineageRecord], store_uri: str) -> str:
    """The page: facts of the run, the graph as drawing and table, dropped rows by reason. All text is escaped."""
    last: dict[str, LineageRecord] = {record.node: record for record in records if record.node}
    head = records[0] if records else None
    end = next((record for record in records if record.type == "run_finished"), None)
    title = f"Lineage of {head.experiment}, run {head.dag_run}" if head else "Lineage"
    sections = [
        f"<h1>{_text(title)}</h1>",
        _run_facts(head, end),
        "<h2>Graph</h2>",
        _drawing(last),
        "<h2>Nodes</h2>",
        _node_table(last, store_uri),
        "<h2>Dropped rows by reason</h2>",
        _drop_table(last),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _run_facts(head: LineageRecord | None, end: LineageRecord | None) -> str:
    if head is None:
        return "<p>Nothing happened yet.</p>"
    rows = [("status", end.status if end else "RUNNING"), *sorted(head.tags.items())]
    if end and end.message:
        rows.append(("first cause", end.message))
    cells = "".join(f'<tr><th scope="row">{_text(key)}</th><td>{_text(value)}</td></tr>' for key, value in rows)
    return f"<table>{cells}</table>"


def _state(record: LineageRecord) -> str:
    return STATES.get(record.type) or record.cache or "unfinished"


def _edges(nodes: Mapping[str, LineageRecord]) -> list[tuple[str, str]]:
    """(producer, consumer), upstream files included as their own producers."""
    pairs = [(item.node, key) for key, record in nodes.items() if record.facts for item in record.facts.inputs]
    return list(dict.fromkeys(pairs))


def _columns(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Column of each name: one more than the furthest thing it reads. Producers come before consumers in `names`."""
    column = dict.fromkeys(names, 0)
    reads: dict[str, list[str]] = {}
    for producer, consumer in edges:
        reads.setdefault(consumer, []).append(producer)
    for name in names:
        column[name] = max((column[producer] + 1 for producer in reads.get(name, ())), default=0)
    return column


def _drawing(nodes: Mapping[str, LineageRecord]) -> str:
    edges = _edges(nodes)
    outside = dict.fromkeys(producer for producer, _ in edges if producer not in nodes)
    column = _columns([*outside, *nodes], edges)
    filled: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for name, at in column.items():
        row = filled.get(at, 0)
        filled[at] = row + 1
        place[name] = (MARGIN + at * (BOX_WIDTH + GAP_X), MARGIN + row * (BOX_HEIGHT + GAP_Y))
    if not place:
        return "<p>No node has finished.</p>"
    width = max(x for x, _ in place.values()) + BOX_WIDTH + MARGIN
    height = max(y for _, y in place.values()) + BOX_HEIGHT + MARGIN
    lines = "".join(_line(place[producer], place[consumer]) for producer, consumer in edges)
    boxes = "".join(_box(name, place[name], nodes.get(name)) for name in place)
    return (
        f'<div class="scroll"><svg role="img" aria-label="Graph of nodes; the table below says the same" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{lines}{boxes}</svg></div>'
    )


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT // 2
    x2, y2 = end[0], end[1] + BOX_HEIGHT // 2
    return f'<path d="M{x1} {y1} C{x1 + GAP_X // 2} {y1} {x2 - GAP_X // 2} {y2} {x2} {y2}"/>'


def _box(name: str, at: tuple[int, int], record: LineageRecord | None) -> str:
    state = _state(record) if record else "source"
    facts = record.facts if record else None
    rows = facts.counts["rows"] if facts and "rows" in facts.counts else None
    second = f"{rows.num_in:,} in, {rows.num_out:,} out" if rows else state
    short = name if len(name) <= 28 else f"{name[:27]}…"
    return (
        f'<g class="{_text(state)}"><title>{_text(name)}: {_text(state)}</title>'
        f'<rect x="{at[0]}" y="{at[1]}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
        f'<text x="{at[0] + 8}" y="{at[1] + 19}">{_text(short)}</text>'
        f'<text x="{at[0] + 8}" y="{at[1] + 36}">{_text(second)}</text></g>'
    )


def _node_table(nodes: Mapping[str, LineageRecord], store_uri: str) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("node", "state", "rows in", "rows out", "parts", "bytes", "root")
    )
    return f"<table><tr>{head}</tr>{''.join(_node_row(key, nodes[key], store_uri) for key in nodes)}</table>"


def _node_row(key: str, record: LineageRecord, store_uri: str) -> str:
    facts = record.facts
    state = _text(_state(record))
    if facts is None:
        return f'<tr><td>{_text(key)}</td><td>{state}</td><td colspan="5">{_text(record.message)}</td></tr>'
    rows = facts.counts.get("rows")
    numbers = [rows.num_in if rows else 0, rows.num_out if rows else 0, facts.num_parts, facts.num_bytes]
    cells = "".join(f'<td class="n">{number:,}</td>' for number in numbers)
    # Pages lie in <store>/lineage/, so a relative link survives moving the store; the full place is in the text.
    link = f'<a href="../{_text(facts.manifest_path)}">{_text(key)}</a>'
    return f"<tr><td>{link}</td><td>{state}</td>{cells}<td><code>{_text(_root_text(facts, store_uri))}</code></td></tr>"


def _root_text(facts: NodeFacts, store_uri: str) -> str:
    return f"{facts.root} ({facts.manifest_uri.removeprefix(store_uri).lstrip('/')})"


def _drop_table(nodes: Mapping[str, LineageRecord]) -> str:
    rows = [
        f'<tr><td>{_text(key)}</td><td>{_text(unit)}</td><td>{_text(reason)}</td><td class="n">{number:,}</td></tr>'
        for key, record in nodes.items()
        if record.facts
        for unit, count in record.facts.counts.items()
        for reason, number in sorted(count.dropped.items(), key=lambda item: -item[1])
    ]
    if not rows:
        return "<p>Nothing was dropped.</p>"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("node", "unit", "reason", "number"))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
