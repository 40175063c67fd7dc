"""Commands that ask a finished store and run nothing: audit, export, and what happened to a row."""

import argparse
import json
from pathlib import Path

from pipelines.driver.job import Outcome
from pipelines.driver.stores import open_store
from pipelines.experiment import default_store, load_experiment, store_location
from x2vlm.command_line import EXIT_OK
from x2vlm.config import did_you_mean
from x2vlm.errors import ConfigError


def audit_target(options: argparse.Namespace) -> Outcome:
    """Audit what `options.target` names; exit code 2 if anything is not as recorded.

    With `options.rebuild`, an experiment of the store, MLflow is first given whatever it lacks of its manifests.
    """
    from pipelines.flow.audit.audit import audit
    from pipelines.flow.lineage.recorder import default_tracking_uri, rebuild

    store = open_store(store_location(options.store or default_store()))
    tracking_uri = options.tracking_uri
    if options.rebuild:
        if options.rebuild not in (known := store.experiments()):
            hint = did_you_mean(options.rebuild, known)
            raise ConfigError(f"--rebuild {options.rebuild}: no such experiment in {store.uri}; {hint}")
        rebuild(store, options.rebuild, tracking_uri)
    if tracking_uri is None and store.blobs.local_root is not None and store.blobs.exists("mlflow.db"):
        tracking_uri = default_tracking_uri(store)
    report = audit(store, options.target, tracking_uri, options.depth)
    return Outcome(report.exit_code, report.text(), report.to_json())


def export_experiment(options: argparse.Namespace) -> Outcome:
    """Collect the experiment's shards in `options.out`, in the format `options.format`."""
    from pipelines.export.export import export_shards  # decodes images: no other job needs that

    experiment = load_experiment(options.experiment, options.store)
    store = open_store(experiment.store_uri)
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


def compare_evaluations(options: argparse.Namespace) -> Outcome:
    """The finished evaluations of an experiment beside published numbers, in the format `options.table`.

    ConfigError where none is finished.
    """
    from pipelines.report.comparison import comparison_table
    from pipelines.report.comparison_formats import FORMATS, as_json
    from pipelines.report.summary import evaluation_results

    experiment = load_experiment(options.experiment, options.store)
    store = open_store(experiment.store_uri)
    paths = {ref.node: ref.manifest_path for ref in store.refs_of_experiment(experiment.name)}
    stored = {node: store.read_manifest(path) for node, path in sorted(paths.items()) if node.startswith("evaluate/")}
    results = evaluation_results(store, {node: found[0] for node, found in stored.items() if found is not None})
    if not results:
        known = ", ".join(experiment.evaluate) or "none in the experiment's file"
        raise ConfigError(f"no evaluation of {experiment.name} is finished in {store.uri}; run --tasks: {known}")
    table = comparison_table({node.partition("/")[2]: result for node, result in results.items()})
    rows = json.loads(as_json(table))
    return Outcome(EXIT_OK, FORMATS[options.table](table).rstrip("\n"), {"experiment": experiment.name, "table": rows})


def explain_row(options: argparse.Namespace) -> Outcome:
    """What happened at every stage to the rows that `options.row` names, or what `options.what_if` would change."""
    from pipelines.why.dropped import dropped_rows
    from pipelines.why.trace import manifests_in_order, trace_rows
    from pipelines.why.unfinished import all_manifests
    from pipelines.why.what_if import parse_changes, what_if

    experiment = load_experiment(options.experiment, options.store)
    store = open_store(experiment.store_uri)
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
