"""The summary at the end of a run: a table of nodes, losses, results and next commands; and the report page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.flow.run.events import RunResult
from pipelines.flow.run.planner import Plan
from pipelines.flow.store.artifact import Manifest, PartRecord
from pipelines.flow.store.layout import file_path
from pipelines.flow.store.store import Store
from pipelines.report.comparison import comparison_table
from pipelines.report.page import metrics_of, read_series, render_report, rows_of, write_report

RESULT_FILE = "result.json"  # of an evaluation
NUM_AVERAGED = 10  # steps at either end of training that a loss is averaged over: single steps are noisy

Series = Sequence[Mapping[str, Any]]


def node_rows(planned: Plan, result: RunResult) -> list[dict[str, Any]]:
    """One JSON value per node of the run, in graph order."""
    return [
        {
            "key": node.key,
            "action": str(result.nodes[node.key].action),
            "parts": len(manifest.parts),
            "rows_in": rows_of(manifest).num_in,
            "rows_out": rows_of(manifest).num_out,
            "dropped": dict(rows_of(manifest).dropped),
            "root": manifest.root,
            "fingerprint": manifest.fingerprint,
            "reason": node.reason,
        }
        for node in planned.selected
        for manifest in [result.nodes[node.key].manifest]
    ]


def node_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Nodes with their counts, as aligned text."""
    lines = [("node", "action", "parts", "in", "out", "dropped")]
    for row in rows:
        reasons = ", ".join(f"{reason} {number}" for reason, number in row["dropped"].items()) or "-"
        numbers = (str(row[name]) for name in ("parts", "rows_in", "rows_out"))
        lines.append((row["key"], row["action"], *numbers, reasons))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]) for line in lines
    )


def training_series(store: Store, manifests: Mapping[str, Manifest]) -> Series:
    """The rows of the metrics file of the last node that has one (of the last phase); empty if none has."""
    for manifest in reversed(list(manifests.values())):
        for part in manifest.parts:
            if name := part.record.summary.get("metric_series"):
                return read_series(_read_output(store, part.record, name))
    return []


def _read_output(store: Store, record: PartRecord, name: str) -> bytes:
    file = next(item for item in record.files if item.path == name)
    return store.blobs.read(file_path(record, file)) or b""


def evaluation_results(store: Store, manifests: Mapping[str, Manifest]) -> dict[str, Mapping[str, Any]]:
    """What `result.json` of every evaluation holds, by node key."""
    return {
        key: json.loads(_read_output(store, part.record, RESULT_FILE))
        for key, manifest in manifests.items()
        if manifest.stage == "evaluate"
        for part in manifest.parts
        if any(file.path == RESULT_FILE for file in part.record.files)
    }


def loss_lines(series: Series) -> list[str]:
    """The mean of every loss over the first and over the last steps."""
    if not series:
        return []
    names = [name for name in series[-1] if name == "loss" or "/" in name]
    names = [name for name in names if isinstance(series[-1][name], int | float)]
    lines = [f"{'loss':<24} first {NUM_AVERAGED} steps   last {NUM_AVERAGED} steps   of {len(series)}"]
    for name in sorted(names, key=lambda name: (name != "loss", name)):
        ends = []
        for rows in (series[:NUM_AVERAGED], series[-NUM_AVERAGED:]):
            values = [row[name] for row in rows if name in row]
            ends.append(sum(values) / len(values) if values else float("nan"))
        lines.append(f"{name:<24} {ends[0]:>14.4f} {ends[1]:>15.4f}")
    return lines


def result_lines(manifests: Mapping[str, Manifest]) -> list[str]:
    """The numbers of every evaluation, one line per node, with the number of its images in the training set."""
    return [
        f"{key}: "
        + ", ".join([*(f"{name} {value:.4g}" for name, value in metrics.items()), *_contamination(manifests[key])])
        for key, metrics in metrics_of(manifests, "evaluate").items()
    ]


def _contamination(manifest: Manifest) -> list[str]:
    """ "0 of 16 test images in training (policy strict)" for every set that was searched for."""
    found = [part.record.summary.get("contamination") or {} for part in manifest.parts]
    return [
        f"{numbers['still_in_training']} of {numbers['pictures']} test images in training "
        f"(policy {one['policy']}, {numbers['leaked']} found)"
        for one in found
        for splits in one.get("sets", {}).values()
        for numbers in (splits or {}).values()
    ]


def save_report(experiment: str, store: Store, manifests: Mapping[str, Manifest], series: Series) -> str:
    """Write the page; returns its place: reports/<experiment>/report.html in the store."""
    table = comparison_table(evaluation_results(store, manifests))
    steps = [f"python jobs/audit_lineage.py pretrain/{experiment}"]
    page = render_report(experiment, manifests, series, steps, table)
    relative = f"reports/{experiment}/report.html"
    if store.local_root is None:
        store.blobs.write(relative, page.encode())
    else:
        write_report(Path(store.local_root) / relative, page)
    return store.uri_of(relative)
