"""A table of addresses on port 8899 of this machine, from nothing to a trained toy with two commands."""

import http.server
import os
import random
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.payloads import jpeg

COLOURS = ("red", "green", "blue", "teal", "orange")


class _Photos(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        colour = COLOURS[int(self.path.strip("/").partition(".")[0]) % 5] if self.path.endswith(".jpg") else ""
        body = jpeg(80, 64, colour) if colour else b""
        self.send_response(200 if colour else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    """8899, or any other where that is taken."""
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 8899), _Photos)
    except OSError:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Photos)
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def job(command: str, root: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_fifty_addresses_become_a_model(port: int, project_root: Path, tmp_path: Path) -> None:
    table = tmp_path / "fifty.csv"
    order = random.Random(1)
    lines = [f"http://127.0.0.1:{port}/{n}.jpg,a {COLOURS[n % 5]} card {order.random()}" for n in range(50)]
    table.write_text("image_url,alt\n" + "\n".join(lines) + "\n")
    printed = job(f"python jobs/new_source.py {table} --allow-private --out {tmp_path}/out", project_root)
    (command,) = [line.removeprefix("next: ") for line in printed.splitlines() if line.startswith("next: ")]
    text = job(f"{command} --store {tmp_path}/store", project_root)
    row = next(line.split() for line in text.splitlines() if line.startswith("download/fifty"))
    assert row[3:5] == ["50", "50"]
    assert list((tmp_path / "store/parts/pretrain").glob("*/*/model.safetensors"))
