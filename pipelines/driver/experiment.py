"""Run what is due of an experiment, and say what came out."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace

from pipelines.driver.abandoned import abandoned_trainings
from pipelines.driver.answers import describe_plan, estimate_answer, finished_answer
from pipelines.driver.arguments import SAMPLE
from pipelines.driver.endings import STATUS, abandon
from pipelines.driver.failures import Ends
from pipelines.driver.job import Outcome
from pipelines.driver.places import start_runner
from pipelines.driver.screen import screen
from pipelines.driver.stores import open_store
from pipelines.experiment import load_experiment
from pipelines.flow.lineage.recorder import deliver_pending, lineage
from pipelines.flow.run.events import Action, Event, PartDone, RunResult
from pipelines.flow.run.executor import run
from pipelines.flow.run.finishing import reused
from pipelines.flow.run.lazy_runner import LazyRunner
from pipelines.flow.run.planner import Plan, check_due, plan
from pipelines.flow.run.progress import Progress
from pipelines.flow.run.provenance import capture
from pipelines.flow.stage import Graph
from pipelines.flow.store.lease import release_held, set_leaving
from pipelines.flow.store.store import Store
from pipelines.flow.store.temporary import temporary_home
from pipelines.graph import build_graph
from pipelines.missing import listing_all_missing
from pipelines.s1_download.retry import parse_classes
from x2vlm.errors import StageFailed

log = logging.getLogger(__name__)


def run_experiment_or_sample(options: argparse.Namespace) -> Outcome:
    """`run_experiment`; where none is named that of the shipped sample, and it says so."""
    if options.experiment is not None:
        return run_experiment(options)
    options.experiment = SAMPLE
    told = f"No experiment was named: this is `{SAMPLE}`, the shipped photos and clips. Recipes: pipelines/experiments/"
    log.info("event=default_experiment %s", told)
    outcome = run_experiment(options)
    return replace(outcome, text=f"{told}\n\n{outcome.text}")


def run_experiment(
    options: argparse.Namespace, targets: Sequence[str] = (), force: bool = False, retries: Sequence[str] = ()
) -> Outcome:
    """Run what is due of an experiment (all of it, or the nodes that match `targets`) and report.

    Each of `retries` ("dns,timeout,5xx") is one more round of every download, after those the experiment has.
    With `--dry-run` nothing runs; the exit code is then 2 if something is due.
    """
    experiment = load_experiment(options.experiment, options.store)
    added = tuple(parse_classes(text) for text in retries)
    experiment = experiment.model_copy(update={"retries": (*experiment.retries, *added)})
    store = open_store(experiment.store_uri)
    if options.estimate:
        return estimate_answer(experiment, options, store)
    log.info("event=store uri=%s", store.uri)
    with listing_all_missing(experiment, targets):
        graph = build_graph(experiment)
        forced = (list(targets) or list(graph)) if force else []
        planned = plan(graph, store, experiment.name, targets or None, force=forced)
    warnings = abandoned_trainings(graph, planned, store)
    if options.dry_run or options.explain:
        return describe_plan(experiment, planned, options, store, warnings)
    for warning in warnings:
        log.warning("event=training_abandoned %s", warning)
    check_due(graph, planned)
    result = reused(planned, store)
    if result is None:
        result = run_plan(experiment.name, graph, planned, store, options)
    else:
        deliver_pending(store, options.tracking_uri)
    return finished_answer(experiment, graph, planned, result, store, options, added)


def run_plan(name: str, graph: Graph, planned: Plan, store: Store, options: argparse.Namespace) -> RunResult:
    """Run the plan in view of whoever watches. Nothing but this process starts before the lease is held."""
    progress, ends, num_done = Progress(), Ends(), 0
    due = [graph[node.key] for node in planned.selected if node.action is not Action.REUSE]

    def on_event(event: Event) -> None:
        nonlocal num_done
        num_done += isinstance(event, PartDone)
        for listener in (record, progress, show, ends):
            listener(event)

    STATUS.kept = lambda: (
        f"Parts finished in this run: {num_done}. They and all earlier ones are kept; a training goes on from its last "
        "checkpoint."
    )
    STATUS.release = release_held
    set_leaving(abandon)
    with (
        screen(store, [node.key for node in planned.selected]) as show,
        temporary_home() as home,
        lineage(store, name, options.tracking_uri) as record,
        LazyRunner(lambda: start_runner(options, due, store)) as runner,
    ):
        STATUS.litter.append(home)
        try:
            return run(graph, planned, store, runner, on_event, {**capture(), "dag_run": record.dag_run})
        except StageFailed as error:
            raise ends.told(error) from error.__cause__
