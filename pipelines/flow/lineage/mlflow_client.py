"""Asking MLflow: a client that gives up in time, this project's experiments and runs, and where its files lie."""

import os
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from mlflow.entities import LoggedModel, Run
from mlflow.tracking import MlflowClient

from pipelines.flow.store.store import Store

PAGE = 1_000
MAX_METRICS_PER_BATCH = 900  # MLflow takes 1,000 entities a request
MAX_PARAMS_PER_BATCH = 90  # and of params and tags 100
T = TypeVar("T")


def connect(tracking_uri: str) -> MlflowClient:
    """A client that gives up on a dead server after seconds, not MLflow's minutes, unless the user asks for more."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    return MlflowClient(tracking_uri)


def experiment_name(experiment: str) -> str:
    """Name of the MLflow experiment that holds an experiment's runs."""
    return f"x2vlm/{experiment}"


def search_runs(client: MlflowClient, experiment_ids: Sequence[str], query: str = "") -> Iterable[Run]:
    """All runs that match, page by page, oldest first within equal start times."""
    token: str | None = None
    while True:
        page = client.search_runs(
            list(experiment_ids), query, max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def own_experiment_ids(client: MlflowClient) -> list[str]:
    """Ids of all MLflow experiments of this project."""
    ids: list[str] = []
    token: str | None = None
    while True:
        page = client.search_experiments(filter_string="name LIKE 'x2vlm/%'", max_results=PAGE, page_token=token)
        ids += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            return ids


def find_model(client: MlflowClient, experiment_ids: Sequence[str], manifest_sha256: str) -> LoggedModel | None:
    """The logged model made from the manifest with this seal."""
    if not experiment_ids:
        return None
    query = f"tags.`x2.manifest_sha` = '{manifest_sha256}'"
    return next(iter(client.search_logged_models(list(experiment_ids), filter_string=query)), None)


def read_uri(store: Store, uri: str) -> bytes:
    """Bytes of a file of the store; OSError if it is gone."""
    data = store.blobs.read(uri.removeprefix(f"{store.uri}/"))
    if data is None:
        raise FileNotFoundError(uri)
    return data


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """`items` in their order, at most `size` in each batch."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
