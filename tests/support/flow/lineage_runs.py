"""Runs of the lineage toy, and what MLflow then has."""

from collections import Counter

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipelines.flow.lineage.recorder import Lineage
from pipelines.flow.stage import Graph
from pipelines.flow.store.store import Store
from tests.support.flow.lineage_toy import EXPERIMENT, run_graph

NODES = ["evaluate/base", "filter/a", "pretrain/base", "read/a"]


def record_run(graph: Graph, store: Store, dag_run: str, experiment: str = EXPERIMENT, **options: object) -> Lineage:
    """Run the graph with its events spooled and nothing delivered."""
    recorder = Lineage(store, experiment, dag_run)
    run_graph(graph, store, recorder, experiment, **options)  # type: ignore[arg-type]
    return recorder


def runs_of(uri: str, experiment: str = EXPERIMENT) -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(f"x2vlm/{experiment}")
    return list(client.search_runs([found.experiment_id])) if found else []


def by_key(runs: list[Run]) -> dict[str, Run]:
    assert len({run.data.tags["x2.run_key"] for run in runs}) == len(runs), "a run was written twice"
    return {run.data.tags["x2.run_key"]: run for run in runs}


def contexts(run: Run) -> dict[str, str]:
    return {
        item.dataset.name: next(tag.value for tag in item.tags if tag.key == "mlflow.data.context")
        for item in run.inputs.dataset_inputs
    }


def everything(uri: str) -> tuple[object, ...]:
    """All that could be there twice: runs, metric points, inputs, outputs, models."""
    client = MlflowClient(uri)
    runs = runs_of(uri)
    points = Counter(
        (run.data.tags["x2.run_key"], key, point.step, point.value)
        for run in runs
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )
    inputs = Counter((run.data.tags["x2.run_key"], *sorted(contexts(run).items())) for run in runs)
    ids = [found.experiment_id for found in client.search_experiments(filter_string="name LIKE 'x2vlm/%'")]
    models = client.search_logged_models(ids) if ids else []
    outputs = [len(run.outputs.model_outputs) for run in runs if run.outputs]
    return points, inputs, len(models), sorted(outputs)
