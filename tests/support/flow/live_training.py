"""A training that resumes from its state folder, tells its numbers there as it goes, and can be stopped in any step.

python -m tests.support.flow.live_training STORE TRACKING_URI DAG_RUN DIES_AT

is a driver that kills itself before step DIES_AT, once MLflow has all steps before it.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipelines.flow.lineage.recorder import lineage
from pipelines.flow.run import executor, planner
from pipelines.flow.run.events import OnEvent
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Count, Graph, Inputs, Node, Part, PartReader, PartResult, PartWriter, Stage
from pipelines.flow.store.store import Store
from x2vlm.config import FrozenConfig

EXPERIMENT, NODE = "toy", "train/base"
NUM_STEPS, SAVE_EVERY = 8, 3
SERIES = "metrics.jsonl"
LIVE_SECONDS = 0.05


class TrainConfig(FrozenConfig):
    steps: int = NUM_STEPS
    num_parts: int = 1


class Hooks:
    """What a test does inside the training: `before(step, state folder)`; `attempt` makes timings differ."""

    before: Callable[[int, Path], None] = staticmethod(lambda step, state: None)
    attempt = 0


def _train(config: TrainConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    state = Path(out.state_uri)
    series, checkpoint = state / SERIES, state / "checkpoint"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    lines = series.read_text().splitlines(keepends=True) if series.exists() else []
    series.write_text("".join(lines[:first]))  # steps beyond the checkpoint are made again
    with series.open("a") as stream:
        for step in range(first, config.steps):
            Hooks.before(step, state)
            line = {"step": step, "loss": 1 / (step + 1), "seconds": 0.5 + step + Hooks.attempt * (step < 6)}
            text = json.dumps(line) + "\n"
            for half in (text[:9], text[9:]):  # a reader in between finds a torn line
                stream.write(half)
                stream.flush()
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == config.steps:
                checkpoint.write_text(str(step + 1))
    (out.path / SERIES).write_bytes(series.read_bytes())
    summary = {"metrics": {"final loss": 0.1}, "metric_series": SERIES, "model": {"name": "toy", "type": "toy"}}
    return PartResult({"rows": Count(config.steps, config.steps)}, summary=summary)


def _plan(config: TrainConfig, inputs: Inputs) -> list[Part]:
    return [Part(f"{number}", spec={"number": number}) for number in range(config.num_parts)]


TRAIN = Stage("train", 1, TrainConfig, (), _plan, _train, live_series=SERIES)


def train(store: Store, on_event: OnEvent, config: TrainConfig | None = None) -> executor.RunResult:
    """Plan and run the training here and now."""
    graph = Graph([Node(NODE, TRAIN, config or TrainConfig(), {})])
    plan = planner.plan(graph, store, EXPERIMENT)
    return executor.run(graph, plan, store, InlineRunner(), on_event, {"git_sha": "0" * 40})


def runs_of_node(tracking_uri: str) -> list[Run]:
    """Every run of the training's node."""
    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(f"x2vlm/{EXPERIMENT}")
    query = f"tags.`x2.node` = '{NODE}'"
    return list(client.search_runs([found.experiment_id], query)) if found else []


def curve(tracking_uri: str, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of every point that MLflow keeps, in the order of steps."""
    history = MlflowClient(tracking_uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in history)


def wait_for_points(tracking_uri: str, number: int) -> Run:
    """The node's run once it holds `number` points of the loss."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        runs = runs_of_node(tracking_uri)
        if runs and len(curve(tracking_uri, runs[0].info.run_id)) >= number:
            return runs[0]
        threading.Event().wait(0.05)
    raise AssertionError(f"MLflow did not get {number} points")


def main() -> None:
    """A driver that dies."""
    uri, tracking_uri, dag_run, dies_at = sys.argv[1:]

    def before(step: int, state: Path) -> None:
        if step == int(dies_at):
            wait_for_points(tracking_uri, step)
            os.kill(os.getpid(), signal.SIGKILL)

    Hooks.before = staticmethod(before)
    store = Store(uri)
    with lineage(store, EXPERIMENT, tracking_uri, dag_run, live_seconds=LIVE_SECONDS) as on_event:
        train(store, on_event)


if __name__ == "__main__":
    main()
