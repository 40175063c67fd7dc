"""A download shows how far it is while it runs, and adds up at its end."""

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.flow.run.events import Event, PartDone, PartProgress
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.progress import Progress
from pipelines.flow.run.ray_runner import RayRunner
from pipelines.flow.run.runner import InlineRunner, Runner
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.store import Store
from pipelines.s1_download.child.journal_counts import JournalTail
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD
from pipelines.s1_download.read import READ, ReadConfig
from tests.hostile.payloads import jpeg

NUM_FREE, NUM_GATES = 6, 2


class Gates(ThreadingHTTPServer):
    """Serves /free/<n> at once, /gate/<n> when gate n is opened, and 404 for the rest."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.gates = [threading.Event() for _ in range(NUM_GATES)]


class _Handler(BaseHTTPRequestHandler):
    server: Gates

    def do_GET(self) -> None:
        _, kind, *number = self.path.split("/")
        if kind == "gate":
            self.server.gates[int(number[0])].wait(120)
        if kind not in ("gate", "free"):
            self.send_error(404)
            return
        body = jpeg()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def gates() -> Iterator[Gates]:
    with Gates() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            for gate in server.gates:
                gate.set()
            server.shutdown()


def graph_of(folder: Path, server: Gates) -> Graph:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    urls = [f"{base}/free/{number}" for number in range(NUM_FREE)]
    urls += [f"{base}/gate/{number}" for number in range(NUM_GATES)]
    urls += [f"{base}/nowhere", "ftp://x/y"]
    (folder / "pairs.tsv").write_text("".join(f"a test\t{url}\n" for url in urls))
    (folder / "card.yaml").write_text("id: a\n")
    read = ReadConfig(reader="cc3m", source="a", card="a", files={"rows": "pairs.tsv"})
    files = {
        name: (SourceFile(str(folder / file), "a"),) for name, file in (("card", "card.yaml"), ("files", "pairs.tsv"))
    }
    config = DownloadConfig(
        allow_networks=("127.0.0.1/32",),
        allow_ports=(int(server.server_address[1]),),
        host_requests_per_second=0,
        image_deadline_seconds=120,
        reads_robots=False,
        threads=4,
    )
    return Graph([Node("read/a", READ, read, files), Node("download/a", DOWNLOAD, config, {"rows": ("read/a",)})])


def runner_of(on_ray: bool) -> AbstractContextManager[Runner]:
    return RayRunner(num_cpus=2, dashboard=False) if on_ray else closing(InlineRunner())


@pytest.mark.parametrize("on_ray", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["inline", "ray"])
def test_rows_are_seen_to_grow_before_the_part_ends(
    on_ray: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each gate opens only when the rows before it have been seen: without a live view this never ends well."""
    seen: list[float] = []
    with gates() as server, runner_of(on_ray) as runner, caplog.at_level(logging.INFO):
        progress = Progress(seconds_between_lines=0)
        num_done = 0

        def on_event(event: Event) -> None:
            nonlocal num_done
            progress(event)
            num_done += isinstance(event, PartDone) and event.node == "download/a"
            if isinstance(event, PartProgress) and event.node == "download/a":
                assert num_done == 0
                seen.append(event.counters["rows"])
                # Everything that is not behind a gate: the free ones, the dead one and the refused one.
                opened = sum(gate.is_set() for gate in server.gates)
                if event.counters["rows"] == NUM_FREE + 2 + opened and opened < NUM_GATES:
                    server.gates[opened].set()

        graph, store = graph_of(tmp_path, server), Store(tmp_path / "store")
        result = run(graph, plan(graph, store, "x"), store, runner, on_event)
        assert all(gate.is_set() for gate in server.gates)
    assert seen == sorted(seen)
    assert {NUM_FREE + 2, NUM_FREE + 3} <= set(seen)
    lines = [line for line in caplog.messages if "event=node_progress node=download/a" in line]
    held = next(line for line in lines if f" rows={NUM_FREE + 3} " in line)
    for text in (f"kept={NUM_FREE + 1}", "success_rate=0.778", "dropped.http_404=1", "dropped.scheme_forbidden=1"):
        assert text in held
    assert "bytes_per_second=" in lines[-1]
    rows = result.nodes["download/a"].manifest.counts["rows"]
    (funnel,) = [line for line in caplog.messages if "event=node_funnel node=download/a" in line]
    assert funnel.endswith(f"rows_in={rows.num_in} kept={rows.num_out} http_404=1 scheme_forbidden=1")
    assert rows.num_in == NUM_FREE + NUM_GATES + 2 == rows.num_out + 2


def test_a_tail_reads_whole_lines_once_and_counts_the_rows_of_an_item(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    tail = JournalTail({0: 1, 1: 3, 2: 1}, {"missing_url": 2})
    tail.read(journal)
    assert tail.counters() == {"rows": 2, "kept": 0, "bytes": 0, "dropped.missing_url": 2}
    lines = [
        b'{"started": [0, 1]}\n{"finished": {"id": 1, "status": "kept", "bytes": 10}}\n{"finished": {"id": 0, "sta',
        b'tus": "http_404", "bytes": 0}}\n',
    ]
    journal.write_bytes(lines[0])
    tail.read(journal)
    assert tail.counters()["rows"] == 5
    journal.write_bytes(lines[0] + lines[1])
    tail.read(journal)
    tail.read(journal)
    assert tail.counters() == {"rows": 6, "kept": 3, "bytes": 10, "dropped.http_404": 1, "dropped.missing_url": 2}
    other = (
        tmp_path / "second.jsonl"
    )  # a child that tries again what the first one has not finished, and one thing it has
    other.write_bytes(b'{"finished": {"id": 0, "status": "kept", "bytes": 7}}\n')
    tail.read(other)
    assert tail.counters() == {"rows": 6, "kept": 4, "bytes": 17, "dropped.missing_url": 2}
