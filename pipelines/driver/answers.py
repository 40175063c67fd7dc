"""What a command on an experiment answers: a plan, an estimate, or what a run came to."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.driver.job import Outcome
from pipelines.experiment import Experiment
from pipelines.flow.lineage.recorder import default_tracking_uri
from pipelines.flow.run.events import RunResult
from pipelines.flow.run.planner import Plan, PlannedPart, explain
from pipelines.flow.safe_text import mask_url
from pipelines.flow.stage import Graph
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.store import Store
from pipelines.report.page import metrics_of, rows_of
from pipelines.report.summary import loss_lines, node_rows, node_table, result_lines, save_report, training_series
from pipelines.s1_download.retry import RETRY_MARK, source_of
from x2vlm.command_line import EXIT_DUE, EXIT_OK
from x2vlm.cost.requests import Curation, curation_requests, request_lines
from x2vlm.errors import ConfigError

if TYPE_CHECKING:  # most commands ask for no estimate
    from pipelines.estimate import EstimateOptions

LIST_PRICES = (5.0, 0.4)  # dollars a million PUT and GET, of large stores in 2025


def finished_answer(
    experiment: Experiment,
    graph: Graph,
    planned: Plan,
    result: RunResult,
    store: Store,
    options: argparse.Namespace,
    retries: Sequence[Sequence[str]] = (),
) -> Outcome:
    """The table of nodes, losses, results and next commands. The report shows all finished nodes of the experiment,
    whichever of them this command was about."""
    manifests = {key: result.nodes[key].manifest for key in graph if key in result.nodes}
    series = training_series(store, manifests)
    everything = finished_manifests(graph, store, experiment.name, manifests)
    report = save_report(experiment.name, store, everything, series or training_series(store, everything))
    rows = node_rows(planned, result)
    steps = _next_steps(store, report, options)
    if retries:
        steps += retry_lines(manifests, experiment, retries)
    paragraphs = [[node_table(rows)], loss_lines(series), result_lines(manifests), steps]
    text = "\n\n".join("\n".join(lines) for lines in paragraphs if lines)
    metrics = {**metrics_of(manifests, "pretrain"), **metrics_of(manifests, "evaluate")}
    data: dict[str, Any] = {"experiment": experiment.name, "nodes": rows, "num_parts_run": result.num_parts_run}
    return Outcome(EXIT_OK, text, {**data, "report": report, "metrics": metrics})


def finished_manifests(
    graph: Graph, store: Store, experiment: str, known: Mapping[str, Manifest]
) -> dict[str, Manifest]:
    """The manifest of every finished node, in graph order: `known` ones, else what the experiment last called so."""
    found: dict[str, Manifest] = {}
    for key in graph:
        if key in known:
            found[key] = known[key]
        elif (ref := store.read_ref(experiment, key)) and (stored := store.read_manifest(ref.manifest_path)):
            found[key] = stored[0]
    return found


def retry_lines(
    manifests: Mapping[str, Manifest], experiment: Experiment, retries: Sequence[Sequence[str]]
) -> list[str]:
    """What the new rounds of the downloads tried again, and how to keep it."""
    first = len(experiment.retries) - len(retries) + 1
    names = tuple(f"{RETRY_MARK}{number}" for number in range(first, len(experiment.retries) + 1))
    rounds = {key: rows_of(manifest) for key, manifest in manifests.items() if key.startswith("download/")}
    rounds = {key: count for key, count in rounds.items() if key.endswith(names)}
    lines = [
        f"retry    {key.removeprefix('download/')}: {count.num_in} rows tried again, {count.num_out} came"
        for key, count in rounds.items()
        if count.num_in
    ]
    idle = [source_of(key.removeprefix("download/")) for key, count in rounds.items() if not count.num_in]
    if idle:
        classes = ", ".join(sorted({name for names in retries for name in names}))
        lines.append(f"retry    nothing to retry in {', '.join(dict.fromkeys(idle))}: no row there failed by {classes}")
    if len(idle) < len(rounds):
        kept = json.dumps([list(classes) for classes in experiment.retries])
        lines.append(f"retries  to build on what was retried, write `retries: {kept}` into the experiment")
    return lines


def estimate_answer(experiment: Experiment, options: argparse.Namespace, store: Store) -> Outcome:
    """What pre-training would cost."""
    from pipelines.estimate import estimate, estimate_lines, estimate_to_json

    phases = estimate(experiment, estimate_options(options), store)
    told: dict[str, Any] = {"experiment": experiment.name, "estimate": estimate_to_json(phases)}
    lines = estimate_lines(phases)
    if options.rows is not None:
        run = curation_of(experiment, options.rows)
        given = (options.dollars_per_million_writes, options.dollars_per_million_reads)
        prices = [price if own is None else own for price, own in zip(LIST_PRICES, given, strict=True)]
        lines += request_lines(run, *prices)
        told["requests"] = [asdict(stage) for stage in curation_requests(run)]
    return Outcome(EXIT_OK, "\n".join(lines), told)


def curation_of(experiment: Experiment, rows: int) -> Curation:
    """What decides the requests of so many rows. ConfigError for less than one."""
    if rows < 1:
        raise ConfigError(f"--rows {rows}: a whole number above 0")
    decisions = sum(one is not None for one in (experiment.decontaminate, experiment.deduplicate))
    return Curation(rows, experiment.partition.num_shards, decisions=decisions)


def estimate_options(options: argparse.Namespace) -> "EstimateOptions":
    """What the arguments of an estimate ask for. ConfigError for GPUs, networks and files that do not exist."""
    from pipelines.estimate import EstimateOptions, load_measured

    defaults = EstimateOptions()
    return EstimateOptions(
        gpus=tuple(options.gpu.split(",")) if options.gpu else defaults.gpus,
        measured=load_measured(options.measured) if options.measured else None,
        dollars_per_gpu_hour=options.dollars_per_gpu_hour,
        num_gpus=options.num_gpus,
        network=options.network,
    )


def describe_plan(
    experiment: Experiment,
    planned: Plan,
    options: argparse.Namespace,
    store: Store,
    warnings: Sequence[str] = (),
) -> Outcome:
    """What would run, why, and what pre-training would cost; every known part with `--explain`."""
    from pipelines.estimate import estimate, estimate_lines, estimate_to_json

    phases = estimate(experiment, estimate_options(options), store)
    nodes = [
        {"key": n.key, "action": str(n.action), "reason": n.reason, "num_parts": len(n.parts), "num_done": n.num_done}
        for n in planned.selected
    ]
    due = not planned.is_noop
    head = f"experiment {experiment.name}: {'work is due' if due else 'nothing to do'}; store {experiment.store_uri}"
    lines = explain(planned)
    if options.explain:
        lines += ["", *(_part_line(n.key, part) for n in planned.selected for part in n.parts)]
    text = "\n".join([head, *lines, "", *estimate_lines(phases)])
    return Outcome(
        EXIT_DUE if due else EXIT_OK,
        text,
        {"experiment": experiment.name, "nodes": nodes, "estimate": estimate_to_json(phases)},
        warnings,
    )


def _part_line(key: str, part: PlannedPart) -> str:
    return f"{'done' if part.done else 'due '}  {key}  {part.name}  {part.fingerprint}"


def _next_steps(store: Store, report: str, options: argparse.Namespace) -> list[str]:
    uri = options.tracking_uri or default_tracking_uri(store)
    browse = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else mask_url(uri)
    store_option = f" --store {options.store}" if options.store else ""
    return [
        f"report   {report}",
        f"mlflow   {browse}",
        f"audit    python jobs/audit_lineage.py {Path(options.experiment).stem}{store_option}",
    ]
