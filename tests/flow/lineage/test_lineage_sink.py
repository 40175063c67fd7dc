"""The process that delivers to MLflow beside a run: a dead MLflow, a killed driver, a real server."""

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pipelines.flow.lineage.recorder import lineage, replay
from pipelines.flow.lineage.spool import Spool, spools
from pipelines.flow.stage import Graph
from pipelines.flow.store.store import Store
from tests.support.flow.lineage_runs import NODES, by_key, everything, record_run, runs_of
from tests.support.flow.lineage_toy import EXPERIMENT, lineage_graph, run_graph
from tests.support.flow.mlflow_server import closed_port, mlflow_server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return lineage_graph(tmp_path / "upstream")


def test_the_sink_delivers_beside_the_run_and_logs_the_page(graph: Graph, store: Store, tracking_uri: str) -> None:
    with lineage(store, EXPERIMENT, tracking_uri) as on_event:
        run_graph(graph, store, on_event)
    runs = by_key(runs_of(tracking_uri))
    assert len(runs) == 1 + len(NODES)
    job = runs[f"{on_event.dag_run}:job"]
    page = Path(unquote(urlsplit(job.info.artifact_uri).path)) / "lineage.html"
    assert page.read_text() == (Path(store.uri) / "lineage" / f"{on_event.dag_run}.html").read_text()
    assert on_event.sink is not None
    assert on_event.sink.process.returncode == 0


def test_a_killed_driver_leaves_a_killed_run(store: Store, tmp_path: Path, tracking_uri: str) -> None:
    script = (
        "import os, sys\n"
        "from pipelines.flow.lineage.recorder import lineage\n"
        "from pipelines.flow.run.events import RunStarted, NodeStarted, Action\n"
        "from pipelines.flow.store.store import Store\n"
        "with lineage(Store(sys.argv[1]), 'toy', sys.argv[2], dag_run='20260101T000000-k') as on_event:\n"
        "    on_event(RunStarted(experiment='toy', plan_fingerprint='p', targets=(), nodes=(), provenance={}))\n"
        "    on_event(NodeStarted(node='read/a', action=Action.RUN, fingerprint='f', num_parts=1, num_done=0))\n"
        "    print(on_event.sink.process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, store.uri, tracking_uri]
    driver = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert driver.returncode == -signal.SIGKILL
    # The pipe of the driver's output is closed by its last holder, the sink, so by now the sink is done.
    runs = by_key(runs_of(tracking_uri))
    assert runs["20260101T000000-k:job"].info.status == "KILLED"
    assert Spool(store, "20260101T000000-k").read()[-1].status == "KILLED"


@contextlib.contextmanager
def broken_server() -> Iterator[str]:
    """An HTTP server on loopback that answers 500 to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = _answer

        def log_message(self, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["closed", "500", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_dead_mlflow_stops_nothing_and_is_told_later(
    kind: str, graph: Graph, store: Store, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = {
        "closed": contextlib.nullcontext(f"http://127.0.0.1:{closed_port()}"),
        "500": broken_server(),
        "silent": silent_server(),
    }
    with servers[kind] as uri:
        grace = 1.0 if kind == "silent" else 60.0
        with lineage(store, EXPERIMENT, uri, dag_run="20260101T000000-a", grace_seconds=grace) as on_event:
            run_graph(graph, store, on_event)
        assert "event=lineage_not_delivered" in caplog.text
        assert on_event.sink is not None
        assert on_event.sink.process.returncode != 0
    # The next run brings its own records and those that were left.
    with lineage(store, EXPERIMENT, tracking_uri, dag_run="20260102T000000-b") as on_event:
        run_graph(graph, store, on_event)
    assert len(by_key(runs_of(tracking_uri))) == 2 * (1 + len(NODES))
    assert max(everything(tracking_uri)[0].values()) == 1  # type: ignore[attr-defined]
    assert replay(store, tracking_uri) == 0


def test_a_store_that_refuses_the_spool_does_not_stop_the_run(
    graph: Graph, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "lineage").write_text("a file where a folder should be")
    record_run(graph, store, "20260101T000000-a")
    assert "event=spool_failed" in caplog.text
    assert store.read_ref(EXPERIMENT, "evaluate/base") is not None


@pytest.fixture(scope="module")
def server_uri(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[str]:
    """A real `mlflow server` on loopback."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())
    port = closed_port()
    with mlflow_server(folder, port):
        yield f"http://127.0.0.1:{port}"


def test_a_real_server_gets_the_same_as_sqlite(
    graph: Graph, store: Store, tracking_uri: str, server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with lineage(store, EXPERIMENT, server_uri, dag_run="20260101T000000-a") as on_event:
        run_graph(graph, store, on_event)
    assert replay(store, server_uri) == 0
    replay(store, tracking_uri)
    assert everything(server_uri) == everything(tracking_uri)
    Spool(store, "20260101T000000-a").mark_delivered(server_uri, 0)
    assert replay(store, server_uri) > 0
    assert everything(server_uri) == everything(tracking_uri)
    assert len(spools(store)) == 1
