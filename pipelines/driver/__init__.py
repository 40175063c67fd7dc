"""What the jobs do: load an experiment, plan it, run what is due, and say what happened.

Everything here returns values; only `jobs/` prints. Results go to stdout, progress and logs to stderr. A command
imports what it needs when it is called: `--help`, a wrong option and Ctrl-C are answered before any library is there.
"""

import argparse
from collections.abc import Sequence

from pipelines.driver.arguments import (
    add_evaluate_arguments,
    add_finetune_arguments,
    add_run_arguments,
    add_simulate_arguments,
)
from pipelines.driver.job import Outcome, run_as_job

__all__ = [
    "Outcome",
    "add_evaluate_arguments",
    "add_finetune_arguments",
    "add_run_arguments",
    "add_simulate_arguments",
    "audit_target",
    "compare_evaluations",
    "evaluate_model",
    "explain_row",
    "export_experiment",
    "finetune_model",
    "run_as_job",
    "run_experiment",
    "run_experiment_or_sample",
    "simulate_experiment",
]


def run_experiment(
    options: argparse.Namespace, targets: Sequence[str] = (), force: bool = False, retries: Sequence[str] = ()
) -> Outcome:
    """See `pipelines.driver.experiment.run_experiment`."""
    from pipelines.driver import experiment

    return experiment.run_experiment(options, targets, force, retries)


def run_experiment_or_sample(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.experiment.run_experiment_or_sample`."""
    from pipelines.driver import experiment

    return experiment.run_experiment_or_sample(options)


def audit_target(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.questions.audit_target`."""
    from pipelines.driver import questions

    return questions.audit_target(options)


def compare_evaluations(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.questions.compare_evaluations`."""
    from pipelines.driver import questions

    return questions.compare_evaluations(options)


def export_experiment(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.questions.export_experiment`."""
    from pipelines.driver import questions

    return questions.export_experiment(options)


def explain_row(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.questions.explain_row`."""
    from pipelines.driver import questions

    return questions.explain_row(options)


def finetune_model(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.tasks.finetune`."""
    from pipelines.driver import tasks

    return tasks.finetune(options)


def evaluate_model(options: argparse.Namespace) -> Outcome:
    """See `pipelines.driver.tasks.evaluate`."""
    from pipelines.driver import tasks

    return tasks.evaluate(options)


def simulate_experiment(options: argparse.Namespace) -> Outcome:
    """See `pipelines.simulation.command.simulate`."""
    from pipelines.simulation.command import simulate
    from x2vlm.command_line import EXIT_OK

    return Outcome(EXIT_OK, *simulate(options))
