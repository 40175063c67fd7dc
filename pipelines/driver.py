"""What the jobs do: load an experiment, plan it, run what is due, and say what happened.

Everything here returns values; only `jobs/` prints. Results go to stdout, progress and logs to stderr.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.estimate import EstimateOptions, PhaseEstimate, estimate, estimate_lines, estimate_to_json, load_measured
from pipelines.experiment import Experiment, load_experiment, resolve, secret_in
from pipelines.flow.audit.audit import audit
from pipelines.flow.lineage.recorder import default_tracking_uri, lineage, rebuild
from pipelines.flow.run.events import Event
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import Plan, PlannedPart, check_due, explain, plan
from pipelines.flow.run.progress import Progress
from pipelines.flow.run.provenance import capture
from pipelines.flow.run.runner import InlineRunner, Runner
from pipelines.flow.safe_text import hide, protect_logs, safe, safe_json
from pipelines.flow.stage import Graph
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.hints import complete_hints
from pipelines.report.page import metrics_of
from pipelines.report.summary import loss_lines, node_rows, node_table, result_lines, save_report, training_series
from pipelines.s1_download.retry import parse_classes
from pipelines.why.dropped import dropped_rows
from pipelines.why.trace import manifests_in_order, trace_rows
from pipelines.why.unfinished import all_manifests
from pipelines.why.what_if import parse_changes, what_if
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
    protect_logs()
    usage_error = parser.error
    parser.error = lambda message: usage_error(safe(message))  # type: ignore[method-assign]
    try:
        options = parser.parse_intermixed_args()
    except SystemExit as stop:  # argparse ends with 2 for wrong usage; here 2 means that work is due
        raise SystemExit(EXIT_USAGE if stop.code else EXIT_OK) from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    hide(getattr(options, "tracking_uri", None))
    try:
        outcome = action(options)
    except X2VLMError as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        kind = type(error).__name__
        told = complete_hints(str(error), options)
        outcome = Outcome(exit_code_of(error), f"{kind}: {told}", {"error": told, "kind": kind, "notes": notes})
        if notes:
            log.error("event=job_failed\n%s", notes)
    if options.json:
        return json.dumps(safe_json({**outcome.data, "exit_code": outcome.exit_code})), outcome.exit_code
    return safe(complete_hints(outcome.text, options)), outcome.exit_code


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
    parser.add_argument("experiment", help="name of a file below pipelines/experiments, or the path of a YAML file")
    parser.add_argument("--store", help="where artifacts go, instead of where the experiment says: a folder or a URI")
    parser.add_argument("--tracking-uri", help="MLflow to record lineage in; default: a database inside the store")
    parser.add_argument(
        "--dry-run", action="store_true", help="show each node's action and the reason; exit 2 if work is due"
    )
    parser.add_argument("--explain", action="store_true", help="like --dry-run, with every known part")
    parser.add_argument(
        "--estimate", action="store_true", help="only say what pre-training would cost; needs no data and no store"
    )
    for name, text in ESTIMATE_ARGUMENTS.items():
        parser.add_argument(f"--{name}", help=f"of the estimate: {text}", type=ESTIMATE_TYPES.get(name, str))
    parser.add_argument("--num-cpus", type=int, help="size of the local Ray that is started when there is no cluster")
    parser.add_argument(
        "--inline", action="store_true", help="run parts in this process, without Ray (pre-training too)"
    )


ESTIMATE_ARGUMENTS = {
    "gpu": "kinds of GPU, with commas: A100-80,H100,H200",
    "num-gpus": "how many, instead of the recipe's world_size",
    "measured": "a YAML file of measured utilisations",
    "dollars-per-gpu-hour": "a price; none is assumed",
    "network": "a preset of x2vlm.cost.scaling: h100_8x400g",
}
ESTIMATE_TYPES: dict[str, Callable[[str], Any]] = {"num-gpus": int, "dollars-per-gpu-hour": float}


def estimate_options(options: argparse.Namespace) -> EstimateOptions:
    """What the arguments of an estimate ask for. ConfigError for GPUs, networks and files that do not exist."""
    defaults = EstimateOptions()
    return EstimateOptions(
        gpus=tuple(options.gpu.split(",")) if options.gpu else defaults.gpus,
        measured=load_measured(options.measured) if options.measured else None,
        dollars_per_gpu_hour=options.dollars_per_gpu_hour,
        num_gpus=options.num_gpus,
        network=options.network,
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
    if options.estimate:
        phases = estimate(experiment, estimate_options(options), _open_store(experiment.store_uri))
        told = {"experiment": experiment.name, "estimate": estimate_to_json(phases)}
        return Outcome(EXIT_OK, "\n".join(estimate_lines(phases)), told)
    graph = build_graph(experiment)
    store = _open_store(experiment.store_uri)
    planned = plan(graph, store, experiment.name, targets or None, force=_forced(graph, targets) if force else ())
    if options.dry_run or options.explain:
        phases = estimate(experiment, estimate_options(options), store)
        return _describe_plan(experiment, planned, phases, parts=options.explain)
    check_due(graph, planned)
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
    series = training_series(store, manifests)
    report = save_report(experiment.name, store, manifests, series)
    rows = node_rows(planned, result)
    steps = _next_steps(store, report, options)
    if retries:
        kept = json.dumps([list(classes) for classes in rounds])
        steps.append(f"retries  to build on what was retried, write `retries: {kept}` into the experiment")
    paragraphs = [[node_table(rows)], loss_lines(series), result_lines(manifests), steps]
    text = "\n\n".join("\n".join(lines) for lines in paragraphs if lines)
    metrics = {**metrics_of(manifests, "pretrain"), **metrics_of(manifests, "evaluate")}
    data: dict[str, Any] = {"experiment": experiment.name, "nodes": rows, "num_parts_run": result.num_parts_run}
    return Outcome(EXIT_OK, text, {**data, "report": report, "metrics": metrics})


def audit_target(options: argparse.Namespace) -> Outcome:
    """Audit what `options.target` names; exit code 2 if anything is not as recorded.

    With `options.rebuild`, an experiment of the store, MLflow is first given whatever it lacks of its manifests.
    """
    store = _open_store(options.store if "://" in options.store else str(resolve(options.store)))
    tracking_uri = options.tracking_uri
    if options.rebuild:
        if options.rebuild not in (known := store.experiments()):
            raise ConfigError(f"--rebuild {options.rebuild}: {store.uri} has the experiments {', '.join(known)}")
        rebuild(store, options.rebuild, tracking_uri)
    if tracking_uri is None and store.blobs.local_root is not None and store.blobs.exists("mlflow.db"):
        tracking_uri = default_tracking_uri(store)
    report = audit(store, options.target, tracking_uri, options.depth)
    return Outcome(report.exit_code, report.text(), report.to_json())


def export_experiment(options: argparse.Namespace) -> Outcome:
    """Collect the experiment's shards in `options.out`, in the format `options.format`."""
    from pipelines.export.export import export_shards  # decodes images: no other job needs that

    experiment = load_experiment(options.experiment, options.store)
    store = _open_store(experiment.store_uri)
    summary = export_shards(store, experiment.name, Path(options.out), options.format, options.copy)
    lines = [f"{summary['samples']} samples of {experiment.name} in {options.out}"]
    if options.format == "xvlm":
        lines += [f"{kind:<11} {number} lines" for kind, number in summary["lines"].items()]
        lines += [f"left out    {number} {rule}" for rule, number in summary["left_out"].items()]
    else:
        how = ", ".join(f"{summary[name]} {name}" for name in ("linked", "copied", "rewritten") if summary[name])
        note = "_README.md" if options.format == "parquet" else "README.md"
        lines += [f"{summary['shards']} shards: {how}", f"how to read them: {Path(options.out) / note}"]
    return Outcome(EXIT_OK, "\n".join(lines), summary)


def explain_row(options: argparse.Namespace) -> Outcome:
    """What happened at every stage to the rows that `options.row` names, or what `options.what_if` would change."""
    experiment = load_experiment(options.experiment, options.store)
    store = _open_store(experiment.store_uri)
    if bool(options.row) == bool(options.what_if):
        raise ConfigError("name a row (a key, an address, <source>:<row>) or a node, or give --what-if <field>=<value>")
    if options.what_if:
        answer = what_if(store, experiment, parse_changes(options.what_if))
        return Outcome(EXIT_OK, "\n".join(answer.lines()), answer.to_json())
    manifests = all_manifests(store, experiment, manifests_in_order(store, experiment.name))
    if found := next((one for one in manifests if one.manifest.node == options.row), None):
        dropped = dropped_rows(store, found)
        return Outcome(EXIT_OK, "\n".join(dropped.lines()), dropped.to_json())
    traces = trace_rows(store, experiment.name, options.row, manifests)
    text = "\n\n".join("\n".join(trace.lines()) for trace in traces)
    return Outcome(EXIT_OK, text, {"rows": [trace.to_json() for trace in traces]})


def _open_store(uri: str) -> Store:
    if told := secret_in(uri):
        raise ConfigError(f"store: {told}")
    store = Store(uri)
    if store.local_root is not None and store.local_root.exists() and not store.local_root.is_dir():
        raise ConfigError(f"store {store.local_root} is a file; give a folder with --store, or move the file away")
    return store


def _forced(graph: Graph, targets: Sequence[str]) -> list[str]:
    return list(targets) if targets else list(graph)


def _describe_plan(experiment: Experiment, planned: Plan, phases: Sequence[PhaseEstimate], parts: bool) -> Outcome:
    nodes = [
        {"key": n.key, "action": str(n.action), "reason": n.reason, "num_parts": len(n.parts), "num_done": n.num_done}
        for n in planned.selected
    ]
    due = not planned.is_noop
    head = f"experiment {experiment.name}: {'work is due' if due else 'nothing to do'}; store {experiment.store_uri}"
    lines = explain(planned)
    if parts:
        lines += ["", *(_part_line(n.key, part) for n in planned.selected for part in n.parts)]
    text = "\n".join([head, *lines, "", *estimate_lines(phases)])
    return Outcome(
        EXIT_DUE if due else EXIT_OK,
        text,
        {"experiment": experiment.name, "nodes": nodes, "estimate": estimate_to_json(phases)},
    )


def _part_line(key: str, part: PlannedPart) -> str:
    return f"{'done' if part.done else 'due '}  {key}  {part.name}  {part.fingerprint}"


@contextlib.contextmanager
def _runner(options: argparse.Namespace, planned: Plan) -> Iterator[Runner]:
    """Where parts run. A plan without work starts no Ray: a rerun of a finished experiment takes seconds."""
    if options.inline or planned.is_noop:
        yield InlineRunner()
        return
    from pipelines.flow.run.ray_runner import RayRunner  # importing ray takes a second that a no-op run can save

    # Two at least: the sample trains with two workers, and on a single core they take turns.
    runner = RayRunner(num_cpus=options.num_cpus or max(2, os.cpu_count() or 1))
    try:
        yield runner
    finally:
        runner.close()


def _next_steps(store: Store, report: str, options: argparse.Namespace) -> list[str]:
    uri = options.tracking_uri or default_tracking_uri(store)
    browse = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else uri
    store_option = f" --store {options.store}" if options.store else ""
    return [
        f"report   {report}",
        f"mlflow   {browse}",
        f"audit    python jobs/audit_lineage.py {Path(options.experiment).stem}{store_option}",
    ]
