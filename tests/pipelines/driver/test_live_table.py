"""What a person sees on a real terminal while a run is under way: one table, whole, at any width."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes.terminal import Terminal

# A run of made-up events on the screen of a job, with everything that likes to write across a table: workers' output
# on both descriptors, a library that prints, a child process, warnings.
RUN = """
import logging, os, subprocess, sys, time
from pathlib import Path
from pipelines.driver.screen import screen
from pipelines.flow.run.events import NodeStarted, PartDone, PartProgress, Action
from pipelines.flow.store.artifact import CountRecord, PartRecord
from pipelines.flow.store.store import Store

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
store, gate = Store(sys.argv[1]), Path(sys.argv[2])
nodes = [f"{stage}/{name}" for stage in ("read", "download", "filter", "score", "pretrain") for name in ("a", "b")]
count = CountRecord(num_in=1000, num_out=900, dropped={"http_404": 100})
record = PartRecord(stage="x", version=1, fingerprint="f", spec={}, reads=[], files=[], counts={"rows": count},
                    summary={})
with screen(store, nodes) as show:
    for node in nodes:
        show(NodeStarted(node=node, action=Action.RUN, fingerprint="f", num_parts=100, num_done=0))
    for number in range(10_000):
        part = f"{number % 100:05d}"
        counters = {"rows": number, "kept": number, "bytes": 1e6 * number}
        show(PartProgress(node="download/a", part=part, counters=counters))
        show(PartProgress(node="pretrain/a", part="train", counters={
            "step": number, "steps": 10_000, "loss": 3.25, "texts_per_second": 1234.0, "steps_per_second": 20.0}))
        if number < 50:
            show(PartDone(node="read/a", part=part, record=record, num_done=number + 1, num_parts=100))
        print("a library prints", number, flush=True)
        print("(Worker pid=1) a worker said", number, file=sys.stderr, flush=True)
        os.write(2, b"[E 1 2] core_worker.cc: something\\n")
        logging.info("event=line number=%d", number)
        if number == 20:
            subprocess.run([sys.executable, "-c", "print('a child prints')"])
            logging.warning("event=careful path=%s", "/a/long/path" * 6)
        time.sleep(0.02)
        if gate.exists():
            break
print("the results")
"""
TABLE = ["stage", "read", "download", "filter", "score", "pretrain"]


def check(terminal: Terminal) -> None:
    """The screen shows where the log is, the warnings, one table, and nothing else; every line is whole."""
    shown = "\n".join(terminal.lines())
    lines = [line for line in terminal.lines() if line]
    heads = [number for number, line in enumerate(lines) if line.startswith("stage")]
    assert len(heads) == 1, shown
    above, table, below = lines[: heads[0]], lines[heads[0] :][: len(TABLE)], lines[heads[0] + len(TABLE) :]
    assert [line.split(" ")[0] for line in table] == TABLE, shown
    warning = r"[\d-]{10}[\d:,]{12}WARNINGevent=carefulpath=(/a/long/path){6}"
    assert re.fullmatch(rf"log\S*\.log({warning})?", "".join("".join(above).split())), shown
    training, elapsed = below
    pieces = [r"pretrain/a", r"step [\d,]+/10,000", r"loss 3\.25", r"1,234 texts/s", r"0:0\d:\d\d left"]
    shorter = [pieces[1], *("  ".join(pieces[:number]) for number in range(2, 6))]
    assert any(re.fullmatch(pattern, training) for pattern in shorter), shown
    assert re.fullmatch(r"\d:\d\d:\d\d elapsed", elapsed), shown


def settle(terminal: Terminal, seconds: float = 1.5) -> None:
    """Read until the table was drawn a few times more, up to the end of a drawing."""
    until = time.monotonic() + 30
    drawn = terminal.raw.count(b"elapsed")
    while terminal.raw.count(b"elapsed") < drawn + 3 and time.monotonic() < until:
        terminal.read(0.3)
    for _ in range(50):
        before = len(terminal.raw)
        terminal.read(0.05)
        if len(terminal.raw) == before:
            return


@pytest.mark.parametrize("columns", [120, 80, 40, 24])
def test_one_whole_table_at_any_width(tmp_path: Path, columns: int) -> None:
    gate, script = tmp_path / "gate", tmp_path / "run.py"
    script.write_text(RUN)
    with Terminal([sys.executable, str(script), str(tmp_path / "store"), str(gate)], columns, 30) as terminal:
        terminal.wait_for("step ")
        terminal.wait_for("careful")
        for size in ((columns, 30), (columns - 7, 30), (columns + 20, 26), (columns, 30)):
            terminal.resize(*size)
            settle(terminal)
            check(terminal)
        gate.write_text("end")
        assert terminal.finish() == 0
        text = terminal.everything()
    assert "the results" in text
    assert "elapsed" not in "\n".join(terminal.lines()), f"the table is gone at the end:\n{text}"
    assert not re.search("library prints|worker said|core_worker|child prints|number=", text)
    (log,) = (tmp_path / "store" / "logs").glob("*.log")
    assert log.name in text.replace("\n", "")
    logged = log.read_text()
    for words in ("a library prints 7", "a worker said 7", "core_worker.cc", "a child prints", "event=line number=7"):
        assert words in logged


def test_without_a_terminal_there_are_plain_lines_and_no_chatter(tmp_path: Path) -> None:

    (tmp_path / "gate").write_text("end at once")
    command = [sys.executable, "-c", RUN, str(tmp_path / "store"), str(tmp_path / "gate")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "the results\n"
    first, *lines = done.stderr.splitlines()
    assert re.fullmatch(r"[\d:, -]+ INFO event=log_file path=.*/store/logs/.*\.log", first)
    assert [line.split(" ", 3)[3] for line in lines] == ["event=line number=0"]


def test_numbers_of_the_table(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    with Terminal([sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / "gate")], 120, 24) as terminal:
        terminal.wait_for("50/200")
        settle(terminal)
        table = {line.split(" ")[0]: line for line in terminal.lines() if line}
        assert re.search(r"0/2 +50/200 +50,000 .*90 % +\d:\d\d:\d\d$", table["read"]), table["read"]
        assert re.search(r"[\d,.]+ +[\d,.]+ +100 %", table["download"]), table["download"]
        line = table["pretrain/a"]
        assert re.fullmatch(r"pretrain/a  step [\d,]+/10,000  loss 3.25  1,234 texts/s  0:0\d:\d\d left", line), line
