"""What a remote store is asked: no request that nobody needs, and each again while the store fails."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.flow.run.part_task import run_one_part
from pipelines.flow.stage import InputFile, Part, Read
from pipelines.flow.store import parts
from pipelines.flow.store.lease import acquire
from pipelines.flow.store.store import Store
from tests.flow.conftest import s3_store
from tests.support.flow import toy
from tests.support.flow.helpers import roots, run_all
from tests.support.flow.store_parts import FP, commit_texts
from tests.support.s3 import s3_client, s3_options
from tests.support.training.faulty_store import FaultyStore, faulty_store
from x2vlm.stores import calls, objects
from x2vlm.stores.calls import StoreUnavailable


@pytest.fixture(scope="module")
def shared_proxy(s3_endpoint: str) -> Iterator[FaultyStore]:
    """What stands before the server; one address, so that all tests share a client, which is slow to make."""
    with faulty_store(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The proxy, for a test whose copies of files are its own and whose pauses are short."""
    monkeypatch.setenv("X2VLM_CACHE", str(tmp_path))
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(calls, "LONGEST_PAUSE", 0.1)
    shared_proxy.counts()
    yield shared_proxy
    shared_proxy.failure = ""
    shared_proxy.fail_share(0.0, 0)


@pytest.fixture
def remote(s3_endpoint: str, proxy: FaultyStore) -> Store:
    return behind(proxy, s3_endpoint)


def behind(proxy: FaultyStore, endpoint: str) -> Store:
    """An empty store whose client tries nothing again by itself, and waits for a slow machine: what is left is what the
    store's own code does."""
    client = {"retries": {"max_attempts": 0}, "read_timeout": 300, "connect_timeout": 300}
    options = s3_options(proxy.endpoint) | {"config_kwargs": client}
    store = Store(s3_store(endpoint).uri, options)
    store.blobs.fs.retries = 1
    return store


def input_of(store: Store, fingerprint: str, text: str) -> InputFile:
    part = commit_texts(store, {"rows.txt": text}, fingerprint)
    file = part.files[0]
    return InputFile(file.path, file.bytes, file.sha256, store.file_uri(part, file))


def test_a_part_asks_for_its_record_and_its_inputs_and_puts_its_files(remote: Store, proxy: FaultyStore):
    whole = input_of(remote, FP, "one\ntwo\nthree")
    segment = InputFile(whole.path, 3, "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3", whole.uri)
    segment = InputFile(**{**vars(segment), "start": 4})
    assert proxy.counts() == {"PUT": 2}  # the commit of an input: its file and its record
    part = Part("0", reads=(Read("rows", whole), Read("rows", segment)))
    made = run_one_part(remote, toy.JOIN, toy.JoinConfig(), part)
    assert proxy.counts() == {"GET": 1 + len(part.reads), "PUT": len(made.files) + 1}
    assert run_one_part(remote, toy.JOIN, toy.JoinConfig(), part) == made
    assert proxy.counts() == {"GET": 1}


def test_one_part_more_costs_a_run_its_own_requests_alone(remote: Store, s3_endpoint, proxy: FaultyStore, tmp_path):
    """Nothing that a run does, from the plan to the references, asks a store once for every part beside the part."""
    counts = []
    for number, store in ((20, remote), (28, behind(proxy, s3_endpoint))):
        config = toy.ReadConfig(rows_per_file=1)
        folder = tmp_path / f"{number}"
        settled(toy.write_source(folder, "a", [f"line {n} of {number}" for n in range(number)]))
        proxy.counts()
        graph = toy.toy_graph(folder, ["a"], toy.FilterConfig(upper=True), config)
        assert run_all(graph, store).num_parts_run == number + 2
        counts.append(proxy.counts())
    more = {kind: counts[1][kind] - counts[0][kind] for kind in counts[1]}
    # Of one part more of `filter`: a file of `read` to put, then record and file to get, file and record to put, and
    # a file to get for `join`.
    assert more == {"PUT": 3 * 8, "GET": 3 * 8, "LIST": 0, "HEAD": 0}


def test_planning_lists_and_asks_for_no_single_part(remote: Store, proxy: FaultyStore, monkeypatch):
    present = {f"{n:02x}" + "0" * 62 for n in range(8)}
    for fingerprint in present:
        commit_texts(remote, {"a.txt": fingerprint}, fingerprint)
    absent = {f"{n:02x}" + "f" * 62 for n in range(100)}
    proxy.counts()
    assert remote.has_parts("toy", present | absent) == present
    assert proxy.counts() == {"LIST": 1}
    assert remote.has_parts("other", present) == set()
    assert proxy.counts() == {"HEAD": len(present)}  # a few
    monkeypatch.setattr(parts, "MANY_PARTS", 100)
    assert remote.has_parts("toy", present | absent) == present
    assert proxy.counts() == {"LIST": 100}  # one for each beginning that is asked about, several at a time
    assert remote.read_parts("toy", sorted(present)).keys() == present
    assert proxy.counts() == {"GET": len(present)}


def test_leases_and_cleaning_look_at_no_part(remote: Store, proxy: FaultyStore):
    commit_texts(remote, {"a.txt": "text"})
    proxy.counts()
    with acquire(remote, "plan") as lease:
        lease.renew()
        remote.clean_scratch()
    assert proxy.requests
    assert not [request for request in proxy.requests if "parts" in request.path]
    assert proxy.counts() == {"LIST": 4, "PUT": 3}


def test_a_large_object_comes_in_pieces_and_nothing_asks_for_its_size(remote: Store, proxy: FaultyStore, monkeypatch):
    monkeypatch.setattr(objects, "PIECE_BYTES", 1000)
    client = remote.blobs.objects
    for size, num_requests in ((0, 1), (999, 1), (1000, 1), (1001, 2), (3000, 3)):
        data = bytes(n % 251 for n in range(size))
        remote.blobs.write("a", data)
        proxy.counts()
        path = remote.blobs.path_of("a")
        assert b"".join(client.stream(path, size)) == data
        assert proxy.counts() == {"GET": num_requests}
        assert len(b"".join(client.stream(path, size + 1))) == size
        if size:
            assert len(b"".join(client.stream(path, size - 1))) == size  # longer than it should be: that shows
    assert remote.blobs.read_range("a", 5000, 10) == b""
    assert remote.blobs.read_range("none", 0, 10) == b""


def settled(path: Path) -> None:
    """Let a file look old enough for its hash to be remembered."""
    os.utime(path, (1e9, 1e9))


def contents(endpoint: str, store: Store) -> dict[str, object]:
    """Every object of a store by key, without what differs between two runs: names of attempts, times, leases."""
    bucket, _, prefix = store.uri.removeprefix("s3://").partition("/")
    client, found = s3_client(endpoint), {}
    for entry in client.list_objects_v2(Bucket=bucket)["Contents"]:
        key = entry["Key"].removeprefix(f"{prefix}/")
        data = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        if key.endswith("part.json"):
            record = json.loads(data)["body"]
            found[key] = {**record, "seconds": 0, "files": [{**f, "location": ""} for f in record["files"]]}
        elif key.startswith(("artifacts/", "refs/")):
            found[key] = json.loads(data)["body"]["root"]
        elif not key.startswith("leases/"):
            found[re.sub("attempt-[0-9a-f]+", "attempt", key)] = data
    return found


def test_a_store_that_fails_now_and_then_changes_no_byte(remote: Store, s3_endpoint, proxy: FaultyStore, tmp_path):
    """5 % of all requests fail, before their effect or after it."""
    graph = toy.toy_graph(tmp_path, read_config=toy.ReadConfig(rows_per_file=1))
    for path in tmp_path.glob("*.txt"):
        settled(path)
    undisturbed = roots(run_all(graph, remote))
    expected = contents(s3_endpoint, remote)
    assert len(expected) > 60
    for seed in range(2):
        store = behind(proxy, s3_endpoint)
        proxy.num_failed = 0
        proxy.fail_share(0.05, seed)
        assert roots(run_all(graph, store)) == undisturbed
        assert run_all(graph, store).is_noop
        proxy.fail_share(0.0, 0)
        assert proxy.num_failed > 3
        assert contents(s3_endpoint, store) == expected


@pytest.mark.parametrize("failure", ["late_error", "late_reset"])
def test_a_creation_whose_answer_was_lost_is_known_as_ones_own(remote: Store, proxy: FaultyStore, failure, monkeypatch):
    proxy.counts()
    monkeypatch.setattr(calls.time, "sleep", lambda seconds: setattr(proxy, "failure", ""))
    proxy.failure = failure
    assert remote.blobs.create("leases/x", b"one") is True
    counts = proxy.counts()
    assert (counts["PUT"] > 1, counts["GET"]) == (True, 1)
    proxy.failure = failure
    assert remote.blobs.create("leases/x", b"two") is False
    assert remote.blobs.read("leases/x") == b"one"


def test_a_store_that_stays_away_is_told_with_object_and_remedy(remote: Store, proxy: FaultyStore):
    proxy.failure = "throttle"
    with pytest.raises(
        StoreUnavailable, match=r"write .*/store/a: the store failed \d+ times .*rerun the same command"
    ):
        remote.blobs.within(0.3).write("a", b"")


def test_an_answer_that_will_not_change_is_not_waited_for(remote: Store, proxy: FaultyStore):
    """A name that no bucket may have."""
    proxy.counts()
    with pytest.raises(OSError, match="bucket"):
        remote.blobs.objects.write("no_Bucket/a", b"")
    assert proxy.counts() == {"PUT": 1}
