"""Ctrl-C, SIGTERM and a reader that goes away: in seconds, with one paragraph, and nothing left behind."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.driver.endings import processes, processes_of_ps
from pipelines.flow.store.artifact import unseal
from pipelines.flow.store.lease import LeaseRecord
from tests.support.processes.jobs import ROOT, processes_with, python, start, stop, wait_for, write_job

SLEEP = "time.sleep(600)"
# A library that swallows the exception and goes on.
STUBBORN = """
while True:
    try:
        time.sleep(600)
    except BaseException:
        pass
"""
# Deep inside a library: no bytecode of the main thread runs until it is over.
DEAF = "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2_000_000_000)"
CHILDREN = """
own = [sys.executable, "-c", "import time; time.sleep(600)"]
tree = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], start_new_session=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", tree, *own])
subprocess.Popen(own, start_new_session=True)
time.sleep(1)
"""


def job(folder: Path, body: str) -> Path:
    """A job that says "ready" by a file and then does `body`."""
    return write_job(folder, f"Path({str(folder / 'ready')!r}).write_text('ready')\n{body}")


@pytest.mark.parametrize(
    ("sent", "code", "how"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")], ids=["int", "term"]
)
def test_one_paragraph_says_what_is_kept_and_how_to_go_on(
    tmp_path: Path, sent: signal.Signals, code: int, how: str
) -> None:
    path = job(tmp_path, f"STATUS.kept = lambda: 'Two parts are kept.'\n{SLEEP}")
    command = python(path, "--json")
    process = start(command)
    wait_for(tmp_path / "ready", process)
    ended = stop(process, sent)
    assert ended.returncode == code
    assert ended.seconds < 5
    assert ended.stderr.startswith(f"Stopped by {how} after ")
    assert "Two parts are kept." in ended.stderr
    assert f"To go on: {shlex.join(command)}\n" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_secrets_of_the_command_line_are_not_repeated(tmp_path: Path) -> None:
    path = write_job(tmp_path, f"Path({str(tmp_path / 'ready')!r}).write_text('ready')\n{SLEEP}")
    text = (
        path.read_text()
        .replace("JobParser(None))", "parser)")
        .replace("text, code", "parser = JobParser(None)\nparser.add_argument('--tracking-uri')\ntext, code")
    )
    path.write_text(text)
    process = start(python(path, "--tracking-uri", "http://ann:hunter2@127.0.0.1:9"))
    wait_for(tmp_path / "ready", process)
    ended = stop(process, signal.SIGINT)
    assert "hunter2" not in ended.stderr
    assert "@127.0.0.1:9" in ended.stderr


@pytest.mark.parametrize("body", [STUBBORN, DEAF], ids=["swallowed", "deaf"])
def test_what_does_not_end_is_ended(tmp_path: Path, body: str) -> None:
    process = start(python(job(tmp_path, body)))
    wait_for(tmp_path / "ready", process)
    ended = stop(process, signal.SIGINT)
    assert ended.returncode == 130
    assert 2 < ended.seconds < 8  # 4 s and what a busy machine adds
    assert ended.stderr.count("Stopped by Ctrl-C") == 1


@pytest.mark.parametrize("body", [STUBBORN, DEAF], ids=["swallowed", "deaf"])
def test_the_second_ctrl_c_ends_at_once(tmp_path: Path, body: str) -> None:
    process = start(python(job(tmp_path, body)))
    wait_for(tmp_path / "ready", process)
    ended = stop(process, signal.SIGINT, signal.SIGINT)
    assert ended.returncode == 130
    assert ended.seconds < 3
    assert ended.stderr.count("Stopped by Ctrl-C") == 1


@pytest.mark.parametrize("body", [SLEEP, STUBBORN], ids=["in order", "by force"])
def test_no_process_is_left(tmp_path: Path, body: str) -> None:
    """Children in sessions of their own, and a grandchild whose parent goes first."""
    path = job(tmp_path, body)
    path.write_text(path.read_text().replace("def action(options):\n", f"def action(options):\n{_indented(CHILDREN)}"))
    mark = f"x2vlm-test-{tmp_path.name}-{time.monotonic_ns()}"
    process = start(python(path), X2VLM_TEST_MARK=mark)
    wait_for(tmp_path / "ready", process)
    assert len(processes_with(mark)) == 4
    assert stop(process, signal.SIGINT).returncode == 130
    assert not processes_with(mark)


def test_a_lease_is_let_go_whose_block_could_not(tmp_path: Path) -> None:
    """A signal may be handled at the first instruction of `__exit__`, before its own `try`."""
    body = f"""
        from pipelines.flow.store import lease
        from pipelines.flow.store.store import Store

        def broken(self, *error):
            raise KeyboardInterrupt

        lease.Lease.__exit__ = broken
        STATUS.release = lease.release_held
        with lease.acquire(Store({str(tmp_path / "store")!r}), "plan"):
            pass
    """
    ended = subprocess.run(python(write_job(tmp_path, body)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 130, ended.stderr
    (record,) = (tmp_path / "store").glob("leases/plan/*.json")
    assert unseal(LeaseRecord, record.read_bytes(), "lease")[0].released


def test_processes_are_found_where_there_is_no_proc() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # its exit code is left
        by_ps, by_proc = processes_of_ps(), processes()
        child.kill()
    assert by_ps[child.pid][0] == by_proc[child.pid][0] == os.getpid()
    assert by_ps[child.pid][1]
    assert ended.pid not in by_ps.keys() | by_proc.keys()


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


@pytest.mark.parametrize("delay", [0.25, 0.6, 1.2])
def test_ctrl_c_while_libraries_are_imported(delay: float) -> None:
    """At any moment after the interpreter is up; a busy machine may still be importing, or planning, by then."""
    for _ in range(5):
        process = start(python(ROOT / "jobs" / "full_pretrain.py", "sample", "--dry-run"))
        time.sleep(delay + _seconds_to_start_python())
        ended = stop(process, signal.SIGINT)
        if "Fatal Python error: init_import_site" not in ended.stderr:  # the interpreter was up
            break
    if ended.returncode not in (2, -signal.SIGINT):  # it was faster, or had nothing left to do but to leave
        assert ended.returncode == 130, ended.stderr
        assert re.search("^Stopped by Ctrl-C", ended.stderr, re.MULTILINE), ended.stderr
        assert "Traceback" not in ended.stderr


def _seconds_to_start_python() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import argparse"], check=True)
    return time.monotonic() - began


def test_a_reader_that_has_seen_enough_ends_the_job_quietly(tmp_path: Path) -> None:
    path = write_job(tmp_path, "return driver.Outcome(0, 'line\\n' * 1_000_000)")
    process = start(python(path))
    assert process.stdout is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == -signal.SIGPIPE
