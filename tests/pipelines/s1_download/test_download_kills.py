"""`kill -9` of a download's driver, of its child, and inside its commits: the same command ends with the same artifact.

A run that is finished asks the network nothing. The server gives the same answer to the same question; the ledger's
clock times are the only thing that may differ.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.parts import verify_files
from pipelines.flow.store.store import Store
from tests.e2e.conftest import descendants
from tests.hostile.behaviours import BEHAVIOURS, hostile_server
from tests.hostile.payloads import jpeg
from tests.hostile.server import HostileServer
from tests.support.download.driver import EXPERIMENT, download_all, download_graph, write_sources

SEED = 20261125
CHILD = "pipelines.s1_download.child.worker"
COMMIT_POINTS = (
    *("commit:files_written", "commit:files_synced", "commit:record_written", "commit:renamed", "commit:done"),
    *("manifest:before", "manifest:after", "ref:before", "ref:after"),
)


@dataclass(frozen=True)
class World:
    """A server, sources that point at it, and what an undisturbed run makes of them."""

    server: HostileServer
    folder: Path
    expected: dict[str, str]
    num_requests: int  # of the undisturbed run
    gate: threading.Event  # while it is not set, one image does not come, so that its part cannot end

    @property
    def sources(self) -> Path:
        return self.folder / "sources"

    def driver(self, store: Path, *kill: str) -> subprocess.Popen[bytes]:
        """The command that a user would repeat until it ends by itself."""
        scratch = self.folder / "scratch"  # what a killed driver leaves behind stays in the test's own folder
        scratch.mkdir(exist_ok=True)
        port = str(self.server.endpoint[1])
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.download.driver", str(store), str(self.sources), port, *kill],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(scratch)},
        )

    def asked(self) -> int:
        """Requests that the server has seen so far."""
        with self.server.lock:
            return self.server.requests.total()


@pytest.fixture
def make_world(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int, int], World]]:
    gate = threading.Event()
    gate.set()
    monkeypatch.setitem(BEHAVIOURS, "gate", lambda handler: handler.answer(jpeg()) if gate.wait(60) else None)
    with hostile_server() as server:

        def make(num_images: int, num_clips: int) -> World:
            folder = tmp_path_factory.mktemp("download-kills")
            write_sources(folder / "sources", server.base, num_images, num_clips)
            store = Store(folder / "undisturbed")
            before = server.requests.total()
            download_all(download_graph(folder / "sources", server.endpoint[1]), store)
            return World(server, folder, contents(store), server.requests.total() - before, gate)

        yield make
        gate.set()


def manifests(store: Store) -> dict[str, Manifest]:
    """Of all nodes, from what lies in the store."""
    found = {}
    for ref in store.refs_of_experiment(EXPERIMENT):
        stored = store.read_manifest(ref.manifest_path)
        assert stored is not None, ref
        found[ref.node] = stored[0]
    return found


def contents(store: Store) -> dict[str, str]:
    """sha256 of every file of every part, and the counts; of a ledger without its clock times."""
    found = {}
    for node, manifest in manifests(store).items():
        found[node] = json.dumps({unit: count.model_dump() for unit, count in manifest.counts.items()})
        for part in manifest.parts:
            verify_files(store.blobs, part.record)
            for file in part.record.files:
                key = f"{node}/{part.name} {part.record.fingerprint}/{file.path}"
                found[key] = file.sha256
                if file.path == "ledger.parquet":
                    rows = pq.read_table(store.file_uri(part.record, file)).drop_columns("fetched_at").to_pylist()
                    found[key] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return found


def committed_urls(store: Store) -> set[str]:
    """Addresses of all rows whose part is committed, whether or not its node is finished."""
    ledgers = Path(store.uri).glob("parts/download/*/*/ledger.parquet")
    return {url for path in ledgers for url in pq.read_table(path)["url"].to_pylist()}


def kill_after_requests(world: World, store: Path, killed_process: str, number: int) -> bool:
    """Run the driver; SIGKILL it or its child once the server has seen `number` more requests. True if it was hit."""
    goal = world.asked() + number
    driver = world.driver(store)
    hit = False
    try:
        while driver.poll() is None and world.asked() < goal:
            time.sleep(0.002)  # watching another process
        if driver.poll() is None and killed_process == "driver":
            driver.kill()
            driver.wait()
            hit = driver.returncode == -signal.SIGKILL
        elif driver.poll() is None:
            children = [pid for pid, line in descendants(driver.pid).items() if CHILD in line]
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                hit = True
        world.gate.set()
        _, errors = driver.communicate(timeout=300)
    finally:
        driver.kill()
        driver.wait()
    if killed_process == "child":
        assert driver.returncode == 0, f"a lost child must not fail the run: {errors.decode()[-3000:]}"
    return hit


def kill_in_commit(world: World, store: Path, point: str, count: int) -> bool:
    """Run the driver until it kills itself at the `count`-th time of that step; False if it ended before."""
    driver = world.driver(store, point, str(count))
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode in (0, -signal.SIGKILL), errors.decode()[-3000:]
    return driver.returncode != 0


def check_finished(world: World, path: Path) -> None:
    """Finish the run and compare; then once more, which must ask nothing."""
    finishing = world.driver(path)
    _, errors = finishing.communicate(timeout=300)
    assert finishing.returncode == 0, errors.decode()[-3000:]
    store = Store(path)
    assert contents(store) == world.expected
    assert list((path / "tmp").iterdir()) == []
    before = world.asked(), world.server.num_connections
    download_all(download_graph(world.sources, world.server.endpoint[1]), store)
    assert (world.asked(), world.server.num_connections) == before
    assert contents(store) == world.expected


def test_two_kills_and_a_second_run_that_asks_nothing(make_world: Callable[[int, int], World], tmp_path: Path) -> None:
    world = make_world(30, 4)
    assert world.num_requests > 34
    path = tmp_path / "store"
    for killed_process in ("driver", "child"):
        world.gate.clear()
        assert kill_after_requests(world, path, killed_process, 20)
    check_finished(world, path)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(make_world: Callable[[int, int], World], tmp_path: Path) -> None:
    """Kills of the driver and of its child after a random number of requests, and inside commits, 20 that hit."""
    world = make_world(210, 24)
    assert world.num_requests > 234
    chance = random.Random(SEED)
    killed_processes = ["driver", "child", "commit"]
    hits = dict.fromkeys(killed_processes, 0)
    path, number = tmp_path / "store-0", 0
    while sum(hits.values()) < 20:
        committed = committed_urls(Store(path)) if path.exists() else set()
        before = world.server.requests.copy()
        killed_process = min(killed_processes, key=lambda name: (hits[name], chance.random()))
        if killed_process == "commit":
            hit = kill_in_commit(world, path, chance.choice(COMMIT_POINTS), chance.randint(1, 4))
        else:
            hit = kill_after_requests(world, path, killed_process, chance.randint(1, 60))
        hits[killed_process] += hit
        asked = world.server.requests - before
        again = {url for url in committed if asked[url.removeprefix(world.server.base)]}
        assert not again, "what is committed is never asked for again"
        if manifests(Store(path)).keys() >= {"download/pictures", "download/clips"}:  # this run is over
            check_finished(world, path)
            number += 1
            path = tmp_path / f"store-{number}"
    check_finished(world, path)
    assert min(hits.values()) >= 6, hits
