"""Jobs as processes: small ones written by a test, and what is left of them afterwards."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

JOB = """
import hashlib, os, signal, subprocess, sys, threading, time
from pathlib import Path
from pipelines import driver
from pipelines.driver.endings import STATUS
from x2vlm.command_line import JobParser

def action(options):
{body}
    return driver.Outcome(0, "finished")

text, code = driver.run_as_job(action, JobParser(None))
print(text)
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and how long after it was told to."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def write_job(folder: Path, body: str) -> Path:
    """A job whose action is `body`; it writes a file `ready` beside itself when it may be disturbed."""
    path = folder / "job.py"
    path.write_text(JOB.format(body=textwrap.indent(textwrap.dedent(body), "    ")), encoding="utf-8")
    return path


def start(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    """A process of the repository's root with pipes, in a session of its own."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(process: "subprocess.Popen[str]", *signals: signal.Signals, pause: float = 0.3) -> Ended:
    """Send the signals, `pause` seconds apart, and wait for the end."""
    began = time.monotonic()
    for number, sent in enumerate(signals):
        if number:
            time.sleep(pause)
        process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    return Ended(process.returncode, stdout, stderr, time.monotonic() - began)


def wait_for(path: Path, process: "subprocess.Popen[str]", seconds: float = 120.0) -> str:
    """What the file holds, once the process has written it."""
    until = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < until, f"{path} was not written"
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()[1][-3000:]}"
        time.sleep(0.02)
    return path.read_text()


def python(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(path), *arguments]


def processes_with(text: str) -> dict[int, str]:
    """Command lines of all live processes whose environment or command line names `text`."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if line and (text in line or text in environment):
            found[int(folder.name)] = line
    return found
