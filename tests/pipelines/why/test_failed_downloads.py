"""A download of which nothing came: its user is told where to look, sees every reason there, and no secret anywhere."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import driver
from pipelines.flow.safe_text import safe
from tests.support.experiments import ROOT
from tests.support.settings import sample_values

OF_SERVER, OF_ROW = "canary-7f3a", "canary-91bc"
ESCAPES = "\x1b]52;c;eA==\x07\x1b[2J"
CARD = {"id": "mine", "title": "mine", "licence": "none", "availability": "open", "grains": ["image"], "reader": "cc3m"}


@dataclass
class Failed:
    """One store after `read` and an empty `download`, and what was printed meanwhile."""

    file: Path
    store: Path
    urls: list[str]
    printed: str
    code: int

    def why(self, row: str) -> driver.Outcome:
        return driver.explain_row(Namespace(experiment=str(self.file), store=str(self.store), row=row, what_if=[]))


def job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    command = [sys.executable, str(ROOT / "jobs" / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failed]:
    folder = tmp_path_factory.mktemp("failed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = closed.getsockname()[1]
        urls = [
            f"http://127.0.0.1:{port}/a.jpg?token={OF_ROW}",
            f"http://me:{OF_ROW}@127.0.0.1:{port}/b.jpg",
            "http://10.0.0.1/c.jpg",
            f"http://127.0.0.1:{port}/{ESCAPES}d.jpg",
            "file:///etc/passwd",
        ]
        (folder / "data/mine").mkdir(parents=True)
        (folder / "data/mine/pairs.tsv").write_text("".join(f"a thing {n}\t{url}\n" for n, url in enumerate(urls)))
        (folder / "mine.yaml").write_text(yaml.safe_dump({**CARD, "files": {"rows": {"path": "pairs.tsv"}}}))
        card = os.path.relpath(folder / "mine", ROOT / "datasets")
        values = {
            key: value for key, value in sample_values().items() if key not in ("name", "evaluate", "deduplicate")
        }
        values |= {"sources": {"own": {"card": card, "data_root": str(folder / "data")}}, "decontaminate": None}
        values |= {"download": {"allow_networks": ["127.0.0.1/32"], "allow_ports": [port], "retries": 0}}
        values["pretrain"] = {**values["pretrain"], "data": {"streams": [{"kind": "image", "batch_size": 2}]}}
        file, store = folder / "exp.yaml", folder / "the store"
        file.write_text(yaml.safe_dump(values))
        run = (
            str(file),
            "--store",
            str(store),
            "--tracking-uri",
            f"http://me:{OF_SERVER}@127.0.0.1:{port}",
            "--inline",
        )
        first = job("run_stage.py", *run, "--only", "read/own")
        assert first.returncode == 0, first.stdout + first.stderr
        last = job("run_stage.py", *run, "--only", "download/own")
        printed = first.stdout + first.stderr + last.stdout + last.stderr
        yield Failed(file, store, urls, printed, last.returncode)


def test_the_error_gives_a_command_that_works_as_it_stands(failed: Failed) -> None:
    assert failed.code == 1
    match = re.search(r"none came out \(.*\)\. `python (jobs/why\.py [^`]*)`", failed.printed)
    assert match
    name, *arguments = shlex.split(match[1])
    assert name == "jobs/why.py"
    told = job("why.py", *arguments)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "download/own: 5 rows in, 0 out, 5 dropped" in told.stdout
    for rule in ("connect_failed", "userinfo_forbidden", "address_forbidden", "url_malformed", "scheme_forbidden"):
        assert f"  {rule} 1\n" in told.stdout
    hint = re.search(r"python jobs/why\.py (.*) <source>:<row>", told.stdout)
    assert hint
    assert shlex.split(hint[1]) == [str(failed.file), "--store", str(failed.store)]


@pytest.mark.parametrize("named", ["own", "mine", "address"])
def test_each_failed_row_is_told_with_its_reason(failed: Failed, named: str) -> None:
    rules = ["connect_failed", "userinfo_forbidden", "address_forbidden", "url_malformed", "scheme_forbidden"]
    listed = failed.why("download/own").data["dropped"]
    for rule, url in zip(rules, failed.urls, strict=True):
        row = listed[rule]["examples"][0]["source_row"]
        text = failed.why(url if named == "address" else f"{named}:{row}").text
        assert re.search(rf"download/own +dropped +{rule} \(.+\)", text), text
        assert "read/own" in text


def test_a_row_and_its_options_come_in_any_order(failed: Failed) -> None:
    experiment, store, row = str(failed.file), ("--store", str(failed.store)), "download/own"
    for arguments in ((row, *store), (*store, row)):
        told = job("why.py", "--json", experiment, *arguments)
        assert json.loads(told.stdout)["rows_in"] == 5, told.stderr
    assert job("why.py", *store, experiment).returncode == 3  # neither a row nor a what-if


def test_no_terminal_is_told_what_to_do(failed: Failed) -> None:
    texts = [failed.why("download/own").text, failed.why(failed.urls[3]).text, failed.printed]
    assert all(character.isprintable() or character in "\n\t" for text in texts for character in text)
    assert r"\x1b]52;c;eA==\x07\x1b[2J" in texts[1]


def test_no_secret_is_in_anything_a_run_leaves(failed: Failed) -> None:
    assert OF_SERVER not in failed.printed
    assert OF_ROW not in failed.printed
    files = [path for path in failed.store.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".json", ".jsonl", ".html", ".parquet"} <= kinds, kinds
    for path in files:
        if path.suffix == ".parquet":  # rows are data: their addresses are what they are
            assert OF_SERVER not in str(pq.read_table(path).to_pylist()), path
        else:
            data = path.read_bytes()
            assert OF_SERVER.encode() not in data, path
            assert OF_ROW.encode() not in data, path
    shown = failed.why("download/own")
    assert OF_ROW not in safe(shown.text)
