"""The process that fetches: its death, its deadline, its memory, and what it may see."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.project import PROJECT_ROOT
from pipelines.s1_download.child.runner import child_environment
from tests.hostile.behaviours import hostile_server
from tests.support.download.stage import download, make_samples


def test_a_killed_child_loses_nothing_and_a_url_that_kills_is_a_counted_drop(tmp_path: Path) -> None:
    with hostile_server() as server:
        images = ["good/red", "kill-once", "good/blue"]
        videos = ["clip/a", "kill", "clip/bc"]
        samples = make_samples([f"{server.base}/{path}" for path in images])
        samples += make_samples([f"{server.base}/{path}" for path in videos], kind="video")
        samples = [replace(sample, key=f"{index:032x}") for index, sample in enumerate(samples)]
        run = download(tmp_path, samples, allow_ports=(server.endpoint[1],), threads=1, video_threads=1)
        assert [row["status"] for row in run.ledger] == ["kept"] * 4 + ["worker_died", "kept"]
        assert run.result.counts["rows"].dropped == {"worker_died": 1}
        assert "SIGKILL" in run.ledger[4]["reason"]
        assert server.requests["/clip/a"] == 1  # what was finished stays finished
        assert server.requests["/kill-once"] == server.requests["/kill"] == 2
        assert len(run.pack) == len(run.kept) == 5


def test_the_part_has_a_deadline(tmp_path: Path) -> None:
    with hostile_server() as server:
        videos = make_samples([f"{server.base}/hang", f"{server.base}/hang/2"], kind="video")
        run = download(tmp_path, videos, allow_ports=(server.endpoint[1],), part_deadline_seconds=1.5)
    assert run.result.counts["rows"].dropped == {"part_deadline_exceeded": 2}


def test_the_child_cannot_map_more_than_its_headroom() -> None:
    script = "\n".join(
        [
            "from pipelines.s1_download.child.worker import limit_address_space",
            "limit_address_space(256 << 20)",
            "bytearray(64 << 20)",
            "try:",
            "    bytearray(512 << 20)",
            "except MemoryError:",
            "    raise SystemExit(7)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(PROJECT_ROOT)}, check=False)
    assert done.returncode == 7


def test_a_child_sees_no_secrets_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "https_proxy", "HTTP_PROXY", "MLFLOW_TRACKING_PASSWORD", "NETRC"):
        monkeypatch.setenv(name, "canary")
    environment = child_environment()
    assert "canary" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_killed_driver_leaves_nobody_fetching(tmp_path: Path) -> None:
    script = "\n".join(
        [
            "import sys, pathlib",
            "from pipelines.s1_download.child.runner import fetch_items",
            "from pipelines.s1_download.config import DownloadConfig",
            "from pipelines.s1_download.child.protocol import Item",
            "config = DownloadConfig(allow_networks=('127.0.0.1/32',), allow_ports=(int(sys.argv[2]),))",
            "url = f'http://127.0.0.1:{sys.argv[2]}/watch'",
            "fetch_items([Item(0, 'video', url)], pathlib.Path(sys.argv[1]), config, config.policy())",
        ]
    )
    with hostile_server() as server:
        command = [sys.executable, "-c", script, str(tmp_path), str(server.endpoint[1])]
        driver = subprocess.Popen(command, env={"PYTHONPATH": str(PROJECT_ROOT)})
        try:
            assert server.arrived.wait(60)
            assert not server.left.is_set()
        finally:
            driver.kill()
            driver.wait()
        # Left alone, the child would wait for the video's deadline of 300 seconds.
        assert server.left.wait(30)
