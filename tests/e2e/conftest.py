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
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 600.0  # a machine whose load average is five times its cores starts Ray in minutes


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
class Checkout:
    """A clone of this repository and its environment, as `make setup` leaves them: to edit, and to submit from."""

    path: Path
    bin: Path  # of the environment, in which the clone is installed


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """What is shipped, copied, and installed with --editable into an environment that borrows its dependencies."""
    folder = tmp_path_factory.mktemp("checkout")
    clone, environment = folder / "x2vlm", folder / "venv"
    clone.mkdir()
    for name in ("datasets", "jobs", "pipelines", "x2vlm"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    python = environment / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", "."]
    done = subprocess.run([python, *install], cwd=clone, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    ray = environment / "bin" / "ray"
    ray.write_text(f"#!{python}\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n")
    ray.chmod(0o755)
    return Checkout(clone, environment / "bin")


@dataclass(frozen=True)
class Cluster:
    """A running Ray head: the environment that lets a client talk to it, and the checkout that it was started from."""

    environment: dict[str, str]
    checkout: Checkout
    address: str  # of the head

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted to."""
        return self.environment["RAY_API_SERVER_ADDRESS"]

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- command`, from the checkout's root."""
        return subprocess.run(
            [str(self.checkout.bin / "ray"), "job", "submit", "--working-dir", ".", "--", *command],
            cwd=self.checkout.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )


# Ray gives its own processes 15 to 30 seconds to start, too few on a machine that others use.
PATIENT = {"RAY_raylet_start_wait_time_s": "180", "RAY_agent_register_timeout_ms": "180000"}


@pytest.fixture(scope="session")
def cluster(checkout: Checkout) -> Iterator[Cluster]:
    """`ray start --head` in the checkout's environment, with token authentication; stopped at the end."""
    # Unix sockets below it have a length limit of 107 bytes, which pytest's own folders would break.
    folder = Path(tempfile.mkdtemp(prefix="x2ray-"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    dashboard, port = free_port(), free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "X2VLM_", "PYTHONPATH"))},
        **PATIENT,
        "PATH": f"{checkout.bin}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        *(str(checkout.bin / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1"),
        *("--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--temp-dir", str(folder / "ray"), "--object-store-memory", "200000000"),
    ]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_takes_jobs(environment["RAY_API_SERVER_ADDRESS"], token.read_text(), head, folder / "head.log")
        yield Cluster(environment, checkout, f"127.0.0.1:{port}")
    finally:
        # At once and all of them: an orderly end takes Ray half a minute, and nothing of this cluster is to be kept.
        for pid in [*descendants(head.pid), head.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_takes_jobs(url: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Submit a job that does nothing until one is taken: the port listens long before the agent that starts jobs."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer, deadline = "", time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise RuntimeError(f"ray start ended with {head.returncode}:\n{log.read_text()[-3000:]}")
        request = urllib.request.Request(f"{url}/api/jobs/", json.dumps({"entrypoint": "true"}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60):
                return
        except OSError as error:
            answer = f"{error} {error.read().decode()[-1000:] if isinstance(error, urllib.error.HTTPError) else ''}"
        time.sleep(0.5)  # polling another process, not a guess at how long it takes
    raise RuntimeError(f"Ray never took a job: {answer}\n{log.read_text()[-3000:]}")


@dataclass(frozen=True)
class SampleRun:
    """A finished run of the sample experiment."""

    store: Path
    submission: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def sample_run(cluster: Cluster) -> SampleRun:
    """The sample experiment, submitted to the cluster and finished. Tests must not change its store; copy it.

    Neither experiment nor store is named, and the job is started by its name: the shortest command that README has.
    """
    submission = cluster.submit("jobs/full_pretrain.py")
    assert submission.returncode == 0, f"{submission.stdout[-8000:]}\n{submission.stderr[-4000:]}"
    return SampleRun(cluster.checkout.path / "runs" / "store", submission)


@pytest.fixture
def sample_copy(sample_run: SampleRun, tmp_path: Path) -> Path:
    """A private copy of the finished store, to damage or to go on with."""
    return Path(shutil.copytree(sample_run.store, tmp_path / "store"))
