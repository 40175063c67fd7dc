"""What the jobs do: load an experiment, plan it, run what is due, and say what happened.

Everything here returns values; only `jobs/` prints. Results go to stdout, progress and logs to stderr.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.experiment import Experiment, load_experiment, resolve
from pipelines.flow.artifact import Manifest
from pipelines.flow.audit import audit
from pipelines.flow.events import Event
from pipelines.flow.executor import run
from pipelines.flow.lineage import default_tracking_uri, lineage
from pipelines.flow.planner import Plan, explain, plan
from pipelines.flow.progress import Progress
from pipelines.flow.provenance import capture
from pipelines.flow.runner import InlineRunner, Runner
from pipelines.flow.stage import Graph
from pipelines.flow.store import Store
from pipelines.graph import build_graph
from pipelines.report import metrics_of, read_series, render_report, write_report
from pipelines.s1_download.retry import parse_classes
from x2vlm.errors import ConfigError, PlanBusy, SourceUnavailable, X2VLMError

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_DUE, EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_BUSY = range(6)


@dataclass(frozen=True)
class Outcome:
    """What a job prints: `text` for people, `data` with `--json`."""

    exit_code: int
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


def run_as_job(action: Callable[[argparse.Namespace], Outcome], parser: argparse.ArgumentParser) -> tuple[str, int]:
    """What a job has to print and its exit code. Every error of ours becomes one clear message."""
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    parser.exit_on_error = True
    try:
        options = parser.parse_args()
    except SystemExit as stop:  # argparse ends with 2 for wrong usage; here 2 means that work is due
        raise SystemExit(EXIT_USAGE if stop.code else EXIT_OK) from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        outcome = action(options)
    except X2VLMError as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        kind = type(error).__name__
        outcome = Outcome(exit_code_of(error), f"{kind}: {error}", {"error": str(error), "kind": kind, "notes": notes})
        if notes:
            log.error("event=job_failed\n%s", notes)
    if options.json:
        return json.dumps({**outcome.data, "exit_code": outcome.exit_code}), outcome.exit_code
    return outcome.text, outcome.exit_code


def exit_code_of(error: X2VLMError) -> int:
    """3 for what the user typed, 4 for what the machine lacks, 5 for another driver, else 1."""
    match error:
        case ConfigError():
            return EXIT_USAGE
        case SourceUnavailable():
            return EXIT_ENVIRONMENT
        case PlanBusy():
            return EXIT_BUSY
        case _:
            return EXIT_FAILED


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every job that runs an experiment."""
    parser.add_argument("experiment", help="name of a file in pipelines/experiments, or the path of a YAML file")
    parser.add_argument("--store", help="where artifacts go, instead of where the experiment says: a folder or a URI")
    parser.add_argument("--tracking-uri", help="MLflow to record lineage in; default: a database inside the store")
    parser.add_argument(
        "--dry-run", action="store_true", help="show each node's action and the reason; exit 2 if work is due"
    )
    parser.add_argument("--num-cpus", type=int, help="size of the local Ray that is started when there is no cluster")
    parser.add_argument(
        "--inline", action="store_true", help="run parts in this process, without Ray (pre-training too)"
    )


def run_experiment(
    options: argparse.Namespace, targets: Sequence[str] = (), force: bool = False, retries: Sequence[str] = ()
) -> Outcome:
    """Run what is due of an experiment (all of it, or the nodes that match `targets`) and report.

    Each of `retries` ("dns,timeout,5xx") is one more round of every download, after those the experiment has.
    With `--dry-run` nothing runs; the exit code is then 2 if something is due.
    """
    experiment = load_experiment(options.experiment, options.store)
    rounds = (*experiment.retries, *(parse_classes(text) for text in retries))
    experiment = experiment.model_copy(update={"retries": rounds})
    graph = build_graph(experiment)
    store = Store(experiment.store_uri)
    planned = plan(graph, store, experiment.name, targets or None, force=_forced(graph, targets) if force else ())
    if options.dry_run:
        return _describe_plan(experiment, planned)
    with (
        lineage(store, experiment.name, options.tracking_uri) as record,
        _runner(options, planned) as runner,
    ):
        progress = Progress()

        def on_event(event: Event) -> None:
            for listener in (record, progress):
                listener(event)

        result = run(graph, planned, store, runner, on_event, {**capture(), "dag_run": record.dag_run})
    manifests = {key: result.nodes[key].manifest for key in graph if key in result.nodes}
    report = _write_report(experiment, store, graph, manifests)
    rows = [_row(key, planned, manifest, result.nodes[key].action) for key, manifest in manifests.items()]
    steps = _next_steps(experiment, store, report, options)
    if retries:
        kept = json.dumps([list(classes) for classes in rounds])
        steps.append(f"retries  to build on what was retried, write `retries: {kept}` into the experiment")
    text = "\n".join([_table(rows), "", *_results(manifests), "", *steps])
    data = {"experiment": experiment.name, "nodes": rows, "num_parts_run": result.num_parts_run, "report": str(report)}
    metrics = {**metrics_of(manifests, "pretrain"), **metrics_of(manifests, "evaluate")}
    return Outcome(EXIT_OK, text, {**data, "metrics": metrics})


def audit_target(options: argparse.Namespace) -> Outcome:
    """Audit what `options.target` names; exit code 2 if anything is not as recorded."""
    store = Store(options.store if "://" in options.store else str(resolve(options.store)))
    tracking_uri = options.tracking_uri
    if tracking_uri is None and store.blobs.local_root is not None and store.blobs.exists("mlflow.db"):
        tracking_uri = default_tracking_uri(store)
    report = audit(store, options.target, tracking_uri, options.depth)
    return Outcome(report.exit_code, report.text(), report.to_json())


def _forced(graph: Graph, targets: Sequence[str]) -> list[str]:
    return list(targets) if targets else list(graph)


def _describe_plan(experiment: Experiment, planned: Plan) -> Outcome:
    nodes = [
        {"key": n.key, "action": str(n.action), "reason": n.reason, "num_parts": len(n.parts), "num_done": n.num_done}
        for n in planned.selected
    ]
    due = not planned.is_noop
    head = f"experiment {experiment.name}: {'work is due' if due else 'nothing to do'}; store {experiment.store_uri}"
    text = "\n".join([head, *explain(planned)])
    return Outcome(EXIT_DUE if due else EXIT_OK, text, {"experiment": experiment.name, "nodes": nodes})


@contextlib.contextmanager
def _runner(options: argparse.Namespace, planned: Plan) -> Iterator[Runner]:
    """Where parts run. A plan without work starts no Ray: a rerun of a finished experiment takes seconds."""
    if options.inline or planned.is_noop:
        yield InlineRunner()
        return
    from pipelines.flow.ray_runner import RayRunner  # importing ray takes a second that a no-op run can save

    runner = RayRunner(num_cpus=options.num_cpus)
    try:
        yield runner
    finally:
        runner.close()


def _row(key: str, planned: Plan, manifest: Manifest, action: Any) -> dict[str, Any]:
    count = manifest.counts["rows"]
    return {
        "key": key,
        "action": str(action),
        "parts": len(manifest.parts),
        "rows_in": count.num_in,
        "rows_out": count.num_out,
        "dropped": dict(count.dropped),
        "root": manifest.root,
        "manifest_fingerprint": manifest.fingerprint,
        "reason": planned[key].reason,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Nodes with their counts, as aligned text."""
    lines = [("node", "action", "parts", "in", "out", "dropped")]
    for row in rows:
        reasons = ", ".join(f"{reason} {number}" for reason, number in row["dropped"].items()) or "-"
        lines.append(
            (row["key"], row["action"], *(str(row[name]) for name in ("parts", "rows_in", "rows_out")), reasons)
        )
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]) for line in lines
    )


def _results(manifests: Mapping[str, Manifest]) -> list[str]:
    lines = []
    for stage in ("pretrain", "evaluate"):
        for key, metrics in metrics_of(manifests, stage).items():
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            lines.append(f"{key}: {numbers}")
    return lines


def _write_report(experiment: Experiment, store: Store, graph: Graph, manifests: Mapping[str, Manifest]) -> Path | str:
    """Write the page beside a local store; a remote store gets it under reports/ too."""
    series: list[dict[str, Any]] = []
    for manifest in manifests.values():
        name = manifest.summary.get("metric_series") or next(
            (part.record.summary["metric_series"] for part in manifest.parts if "metric_series" in part.record.summary),
            None,
        )
        if name is None:
            continue
        record = manifest.parts[0].record
        file = next(item for item in record.files if item.path == name)
        series = read_series(
            store.blobs.read(f"{store.part_folder(record.stage, record.fingerprint)}/{file.location or file.path}")
            or b""
        )
    page = render_report(
        experiment.name, manifests, series, [f"python jobs/audit_lineage.py pretrain/{experiment.name}"]
    )
    root = store.blobs.local_root
    if root is None:
        store.blobs.write(f"reports/{experiment.name}/report.html", page.encode())
        return store.uri_of(f"reports/{experiment.name}/report.html")
    path = Path(root) / "reports" / experiment.name / "report.html"
    write_report(path, page)
    return path


def _next_steps(experiment: Experiment, store: Store, report: Path | str, options: argparse.Namespace) -> list[str]:
    uri = options.tracking_uri or default_tracking_uri(store)
    store_option = f" --store {options.store}" if options.store else ""
    browse = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else uri
    return [
        f"report   {report}",
        f"mlflow   {browse}   (experiment x2vlm/{experiment.name})",
        f"audit    python jobs/audit_lineage.py pretrain/{experiment.name}{store_option}",
    ]
