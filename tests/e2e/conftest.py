"""One real cluster and one real run of the shipped sample, shared by all end-to-end tests of a session."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 600.0  # a machine whose load average is five times its cores starts Ray in minutes
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Job:
    """What a job's process said."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The value that `--json` printed: the last line that is JSON."""
        lines = [line for line in self.stdout.splitlines() if line.startswith("{")]
        assert lines, f"no JSON in stdout:\n{self.stdout[-3000:]}\nstderr:\n{self.stderr[-6000:]}"
        return json.loads(lines[-1])


def run_job(script: str, *arguments: str, cwd: Path | None = None, **environment: str) -> Job:
    """Run one of `jobs/` as a user would, from the repository's root, with the environment active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, f"jobs/{script}", *arguments],
        cwd=cwd or ROOT,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    return Job(done.returncode, done.stdout, done.stderr)


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below `pid`."""
    parents, lines = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError, IndexError):
            continue
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child, above in parents.items():
            if above == parent and child not in found:
                found[child] = lines[child]
                waiting.append(child)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """A running Ray head: the environment that lets a client talk to it."""

    environment: dict[str, str]

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- command`, from the repository's root."""
        return subprocess.run(
            [RAY, "job", "submit", "--working-dir", ".", "--", *command],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """`ray start --head` with token authentication and a throw-away token; stopped at the end."""
    # Unix sockets below it have a length limit of 107 bytes, which pytest's own folders would break.
    folder = Path(tempfile.mkdtemp(prefix="x2ray-"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    dashboard = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1"),
            *("--port", str(free_port()), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--temp-dir", str(folder / "ray"), "--object-store-memory", "200000000"),
        ],
        env=environment,
        stdout=(folder / "head.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        started = Cluster(environment)
        _wait_until_it_takes_jobs(started, dashboard, head, folder / "head.log")
        yield started
    finally:
        # At once and all of them: an orderly end takes Ray half a minute, and nothing of this cluster is to be kept.
        for pid in [*descendants(head.pid), head.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_takes_jobs(cluster: Cluster, port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until a job was submitted: the dashboard listens long before the agent is up that starts jobs."""
    deadline = time.monotonic() + READY_SECONDS
    refused = "the dashboard does not listen"
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise RuntimeError(f"ray start ended with {head.returncode}:\n{log.read_text()[-3000:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                command = [RAY, "job", "submit", "--no-wait", "--", "true"]
                done = subprocess.run(
                    command, env=cluster.environment, capture_output=True, text=True, check=False, timeout=READY_SECONDS
                )
                if done.returncode == 0:
                    return
                refused = done.stdout[-1000:] + done.stderr[-2000:]
        time.sleep(0.5)  # polling another process, not a guess at how long it takes
    raise RuntimeError(f"it took no job in {READY_SECONDS:.0f} s:\n{refused}\n{log.read_text()[-3000:]}")


@dataclass(frozen=True)
class SampleRun:
    """A finished run of the sample experiment."""

    store: Path
    submission: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def sample_run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SampleRun:
    """The sample experiment, submitted to the cluster and finished. Tests must not change its store; copy it."""
    store = tmp_path_factory.mktemp("sample-run") / "store"
    submission = cluster.submit("python", "jobs/full_pretrain.py", "sample", "--store", str(store))
    assert submission.returncode == 0, f"{submission.stdout[-8000:]}\n{submission.stderr[-4000:]}"
    return SampleRun(store, submission)


@pytest.fixture
def sample_copy(sample_run: SampleRun, tmp_path: Path) -> Path:
    """A private copy of the finished store, to damage or to go on with."""
    return Path(shutil.copytree(sample_run.store, tmp_path / "store"))
