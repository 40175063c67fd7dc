"""Every kind of data from nothing to a trained toy with `new_source.py` and the very command that it prints."""

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
import webdataset
import yaml

from tests.hostile.payloads import jpeg
from tests.support.sets.files import write_files
from tests.support.sets.img2dataset_runs import BROKEN, GONE, NUM_ROWS

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
    assert train(f"{table} --allow-private --name own", project_root, tmp_path)[3:5] == ["50", "50"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "open_clip", "webdataset", "parquet", "files"])
def test_a_set_becomes_a_model(kind: str, img2dataset_outputs: Path, project_root: Path, tmp_path: Path) -> None:
    """A folder with captions, tars as open_clip trains on, and what img2dataset writes in each of its formats."""
    data, num_in, num_out = tmp_path / "data", 24, 24
    if kind == "folder":
        files = {f"{n % 2}/{n}.{e}": jpeg(80, 64, COLOURS[n % 5]) if e == "jpg" else f"a {COLOURS[n % 5]} card {n}"
                 for n in range(24) for e in ("jpg", "txt")}  # fmt: skip
        write_files(data, files)
    elif kind == "open_clip":
        data.mkdir()
        for shard in range(2):
            with webdataset.TarWriter(str(data / f"{shard:05d}.tar")) as tar:
                for n in range(shard * 12, shard * 12 + 12):
                    colour = COLOURS[n % 5]
                    tar.write({"__key__": f"{n:09d}", "jpg": jpeg(80, 64, colour), "txt": f"a {colour} card {n}"})
    else:
        data = img2dataset_outputs / kind
        num_in = NUM_ROWS - len(GONE) - (len(BROKEN) if kind == "parquet" else 0)
        num_out = NUM_ROWS - len(GONE) - len(BROKEN)
    assert train(f"{data} --name own", project_root, tmp_path)[3:5] == [str(num_in), str(num_out)]


def train(arguments: str, root: Path, folder: Path) -> list[str]:
    """The two commands, with few steps. Returns the line of the download in the table of stages."""
    printed = job(f"python jobs/new_source.py {arguments} --out {folder}/out", root)
    (command,) = [line.removeprefix("next: ") for line in printed.splitlines() if line.startswith("next: ")]
    experiment = folder / "out/own.yaml"
    values = yaml.safe_load(experiment.read_text())
    values["pretrain"]["train"] |= {"steps": 6, "warmup_steps": 1}
    values["train_runtime"] = {"checkpoint_every": 3}
    experiment.write_text(yaml.safe_dump(values))
    text = job(f"{command} --store {folder}/store", root)
    assert list((folder / "store/parts/pretrain").glob("*/*/model.safetensors"))
    return next(line.split() for line in text.splitlines() if line.startswith("download/own"))
