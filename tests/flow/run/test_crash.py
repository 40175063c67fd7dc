"""kill -9 at every step of every write; the same command again gives the same store, and does only what was missing."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.flow.store.parts import verify_files
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import committed_tree, roots, run_all

POINTS = [
    ("commit:files_written", 1),
    ("commit:files_synced", 3),
    ("commit:record_written", 5),
    ("commit:renamed", 7),
    ("commit:done", 11),
    ("manifest:before", 3),
    ("manifest:after", 2),
    ("ref:before", 4),
    ("ref:after", 5),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict[str, bytes], dict[str, str]]:
    """Sources, and what a run without a crash makes of them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run_all(toy.toy_graph(folder / "sources"), Store(folder / "store"))
    return folder / "sources", committed_tree(folder / "store"), roots(result)


def check_store(store: Store, undisturbed, result) -> None:
    _, tree, expected_roots = undisturbed
    assert committed_tree(Path(store.uri)) == tree
    assert roots(result) == expected_roots
    for event in result.nodes.values():
        for part in event.manifest.parts:
            verify_files(store.blobs, part.record)
            assert store.read_part(part.record.stage, part.record.fingerprint) == part.record
    assert list((Path(store.uri) / "tmp").iterdir()) == []


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_a_killed_driver_loses_at_most_the_part_it_worked_on(undisturbed, tmp_path, project_root, point, count):
    store = Store(tmp_path / "store")
    command = [sys.executable, "-m", "tests.support.flow.crash", store.uri, str(undisturbed[0]), point, str(count)]
    killed = subprocess.run(command, cwd=project_root, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {path for path in store.blobs.find("parts") if path.endswith("part.json")}
    result = run_all(toy.toy_graph(undisturbed[0]), store)
    assert result.num_parts_run == 11 - len(before)
    check_store(store, undisturbed, result)


@pytest.mark.slow
def test_a_hundred_random_kills_in_a_row(undisturbed, tmp_path, project_root):
    chance = random.Random(7)
    for number in range(100):
        store = Store(tmp_path / f"store-{number}")
        while True:  # the same command again and again until it ends by itself
            point, count = chance.choice(POINTS)[0], chance.randint(1, 4)
            command = [
                sys.executable,
                "-m",
                "tests.support.flow.crash",
                store.uri,
                str(undisturbed[0]),
                point,
                str(count),
            ]
            if subprocess.run(command, cwd=project_root, check=False, capture_output=True).returncode == 0:
                break
        check_store(store, undisturbed, run_all(toy.toy_graph(undisturbed[0]), store))


SEEDED_POINTS = [
    *("commit:files_written", "commit:files_synced", "commit:record_written", "commit:renamed", "commit:done"),
    *("journal:before", "journal:after", "manifest:before", "manifest:table_written", "manifest:after", "ref:after"),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_a_seeded_moment_costs_the_part_in_flight_and_leaves_no_orphan(
    undisturbed, tmp_path, project_root, seed
):
    """With pages of two parts, so that journals and tables of parts are written and killed too."""
    chance = random.Random(seed)
    store = Store(tmp_path / "store")
    command = [sys.executable, "-m", "tests.support.flow.crash", store.uri, str(undisturbed[0])]
    kill = [SEEDED_POINTS[seed % len(SEEDED_POINTS)], str(chance.randint(1, 2))]
    environment = {**os.environ, "JOURNAL_PAGE": "2"}
    done = subprocess.run([*command, *kill], cwd=project_root, check=False, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    before = {path for path in store.blobs.find("parts") if path.endswith("part.json")}
    result = run_all(toy.toy_graph(undisturbed[0]), store)
    assert result.num_parts_run == 11 - len(before)
    check_store(store, undisturbed, result)
    named = {part.record.fingerprint for event in result.nodes.values() for part in event.manifest.parts}
    there = {path.split("/")[3] for path in store.blobs.find("parts")}
    assert there == named
    assert sum(event.manifest.counts["rows"].num_out for key, event in result.nodes.items() if "read/" in key) == 20


REMOTE_POINTS = ["commit:uploaded", "commit:record_written", "commit:done", "manifest:before", "ref:before"]


class Stop(BaseException):
    """Stands for a kill: nothing of the engine catches it."""


@pytest.mark.parametrize("point", REMOTE_POINTS)
def test_a_stopped_upload_leaves_no_half_part_on_an_object_store(undisturbed, s3_endpoint, point):
    from tests.flow.conftest import s3_store

    store = s3_store(s3_endpoint)
    left = [3]

    def stop(at: str) -> None:
        if at == point:
            left[0] -= 1
            if left[0] == 0:
                raise Stop

    broken = Store(store.uri, store.blobs.storage_options, fault=stop)
    with pytest.raises(Stop):
        run_all(toy.toy_graph(undisturbed[0]), broken)
    before = {path for path in store.blobs.find("parts") if path.endswith("part.json")}
    result = run_all(toy.toy_graph(undisturbed[0]), store)
    assert result.num_parts_run == 11 - len(before)
    assert roots(result) == undisturbed[2]
    for event in result.nodes.values():
        for part in event.manifest.parts:
            verify_files(store.blobs, part.record)


def test_two_drivers_at_once_make_one_store(undisturbed, tmp_path, project_root):
    store = Store(tmp_path / "store")
    command = [sys.executable, "-m", "tests.support.flow.crash", store.uri, str(undisturbed[0]), "", "1"]
    drivers = [
        subprocess.Popen(command, cwd=project_root, stderr=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    errors = [driver.communicate()[1] for driver in drivers]
    codes = sorted(driver.returncode for driver in drivers)
    assert codes in ([0, 0], [0, 1]), errors
    if codes == [0, 1]:
        assert any("PlanBusy" in error for error in errors)
    check_store(store, undisturbed, run_all(toy.toy_graph(undisturbed[0]), store))
