"""The numbers of a running node are in a real MLflow while it runs, each step once, whatever dies."""

import contextlib
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.flow.audit.audit import audit
from pipelines.flow.lineage.dag_runs import LIVE_EARLIER
from pipelines.flow.lineage.delivery import Delivery
from pipelines.flow.lineage.facts_writer import LIVE_DIFFERS
from pipelines.flow.lineage.live_series import LiveFeed, SeriesTail
from pipelines.flow.lineage.recorder import Lineage, lineage, rebuild, replay
from pipelines.flow.lineage.series import series_points, shown_numbers, thinned
from pipelines.flow.lineage.spool import Spool, running_series, spools
from pipelines.flow.run.events import Event, RunFinished
from pipelines.flow.store.store import Store
from tests.support.flow.live_training import (
    EXPERIMENT,
    LIVE_SECONDS,
    NODE,
    NUM_STEPS,
    Hooks,
    TrainConfig,
    curve,
    runs_of_node,
    train,
    wait_for_points,
)
from tests.support.flow.mlflow_server import closed_port, mlflow_server
from x2vlm.errors import StageFailed

ROOT = Path(__file__).resolve().parents[3]
FIRST, SECOND = "20260101T000000-a", "20260102T000000-b"
LOSSES = [(step, 1 / (step + 1)) for step in range(NUM_STEPS)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    yield
    Hooks.before, Hooks.attempt = staticmethod(lambda step, state: None), 0


@pytest.fixture
def other_uri(empty_mlflow: Path, tmp_path: Path) -> str:
    """A second MLflow on sqlite."""
    shutil.copy(empty_mlflow, tmp_path / "other.db")
    return f"sqlite:///{tmp_path / 'other.db'}"


def all_of_the_node(uri: str) -> list[object]:
    """All that MLflow says of the node's runs but the times and ids that it chose."""
    told: list[object] = []
    for run in runs_of_node(uri):
        tags = {key: value for key, value in run.data.tags.items() if key.startswith(("x2.", "live."))}
        curves = {key: curve(uri, run.info.run_id, key) for key in run.data.metrics}
        told.append((run.info.status, tags, dict(run.data.params), curves, len(run.inputs.dataset_inputs)))
    return told


def test_numbers_come_while_the_node_runs_and_the_end_is_as_without(
    store: Store, tracking_uri: str, other_uri: str
) -> None:
    seen: list[tuple[str, list[tuple[int, float]]]] = []

    def before(step: int, state: Path) -> None:
        if step in (2, NUM_STEPS - 1):
            run = wait_for_points(tracking_uri, step)
            seen.append((run.info.status, curve(tracking_uri, run.info.run_id)))

    Hooks.before = staticmethod(before)
    with lineage(store, EXPERIMENT, tracking_uri, FIRST, live_seconds=LIVE_SECONDS) as on_event:
        train(store, on_event)
    assert seen == [("RUNNING", LOSSES[:2]), ("RUNNING", LOSSES[: NUM_STEPS - 1])]
    assert replay(store, other_uri) > 0
    assert all_of_the_node(tracking_uri) == all_of_the_node(other_uri)
    ((run,), found) = runs_of_node(tracking_uri), audit(store, NODE, tracking_uri)
    assert curve(tracking_uri, run.info.run_id) == LOSSES
    assert (run.info.status, found.findings) == ("FINISHED", ())


def killed_driver(store: Store, uri: str, dies_at: int) -> None:
    """Train in another process that is killed before step `dies_at`, when MLflow has the steps before it."""
    command = [sys.executable, "-m", "tests.support.flow.live_training", store.uri, uri, FIRST, str(dies_at)]
    driver = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert driver.returncode == -signal.SIGKILL, driver.stderr


def test_a_resumed_training_goes_on_in_the_run_of_the_failed_one(store: Store, tracking_uri: str) -> None:
    """Failure and resume in this process; SIGKILL of a whole driver, with its sink left alone, below."""
    first = Lineage(store, EXPERIMENT, FIRST)

    def fail(step: int, state: Path) -> None:
        if step == 5:
            Delivery(store, tracking_uri, first.spool).deliver()
            assert LiveFeed(tracking_uri, first.spool, 1.0).send() == 1.0
            raise ValueError("loss is nan")

    Hooks.before = staticmethod(fail)
    with pytest.raises(StageFailed):
        train(store, first)
    replay(store, tracking_uri)
    (failed,) = runs_of_node(tracking_uri)
    assert (failed.info.status, curve(tracking_uri, failed.info.run_id)) == ("FAILED", LOSSES[:5])
    assert "loss is nan" in failed.data.tags["x2.message"]
    second, fed = Lineage(store, EXPERIMENT, SECOND), []

    def feed(step: int, state: Path) -> None:
        if step == 3:
            Delivery(store, tracking_uri, second.spool).deliver()
            fed.append(LiveFeed(tracking_uri, second.spool, 1.0))
        fed[0].send()
        (run,) = runs_of_node(tracking_uri)
        assert (run.info.run_id, run.info.status) == (failed.info.run_id, "RUNNING")
        assert curve(tracking_uri, run.info.run_id) == LOSSES[: max(5, step)]

    Hooks.before, Hooks.attempt = staticmethod(feed), 1
    train(store, second)
    replay(store, tracking_uri)
    check_resumed(store, tracking_uri, failed)


def check_resumed(store: Store, tracking_uri: str, begun: Run) -> None:
    """The training resumed at step 3, of which MLflow had 5 steps, ended in its run, and that run tells no lie."""
    (run,) = runs_of_node(tracking_uri)
    assert (run.info.run_id, run.info.status) == (begun.info.run_id, "FINISHED")
    assert curve(tracking_uri, run.info.run_id) == LOSSES
    # Steps 3 and 4 were made twice; what they took the first time is what stands, and the run says so.
    assert [step for step, _ in curve(tracking_uri, run.info.run_id, "seconds")] == list(range(NUM_STEPS))
    assert run.data.tags[LIVE_DIFFERS] == "seconds: 2"
    assert run.data.tags[LIVE_EARLIER] == f"{FIRST}:{NODE}"
    assert run.data.tags["x2.dag_run"] == SECOND
    assert "x2.message" not in run.data.tags
    assert audit(store, NODE, tracking_uri).findings == ()


@pytest.mark.slow
def test_a_killed_training_goes_on_in_its_run(store: Store, tracking_uri: str, other_uri: str) -> None:
    killed_driver(store, tracking_uri, dies_at=5)
    (killed,) = runs_of_node(tracking_uri)  # its sink, which held the pipe of its output, is gone by now
    assert (killed.info.status, curve(tracking_uri, killed.info.run_id)) == ("KILLED", LOSSES[:5])
    Hooks.attempt = 1
    status = []
    Hooks.before = staticmethod(
        lambda step, state: status.append(wait_for_points(tracking_uri, 6).info) if step == 6 else None
    )
    with lineage(store, EXPERIMENT, tracking_uri, SECOND, live_seconds=LIVE_SECONDS) as on_event:
        train(store, on_event)  # goes on at step 3, from its checkpoint
    assert [(info.run_id, info.status) for info in status] == [(killed.info.run_id, "RUNNING")]
    check_resumed(store, tracking_uri, killed)
    # Every spool again, in any order: nothing new. Into an empty MLflow: one run, and exactly the manifest's numbers.
    before = all_of_the_node(tracking_uri)
    for spool in spools(store):
        spool.mark_delivered(tracking_uri, 0)
    assert replay(store, tracking_uri) > 0
    assert all_of_the_node(tracking_uri) == before
    assert rebuild(store, EXPERIMENT, other_uri) == 0
    (again,) = runs_of_node(other_uri)
    assert curve(other_uri, again.info.run_id) == LOSSES
    assert LIVE_DIFFERS not in again.data.tags


def test_a_late_record_of_an_earlier_job_opens_no_second_run(store: Store, tracking_uri: str) -> None:
    killed_driver_without_mlflow(store, FIRST, dies_at=5)
    recorder = Lineage(store, EXPERIMENT, SECOND)
    train(store, recorder)
    Delivery(store, tracking_uri, Spool(store, SECOND)).deliver()
    assert replay(store, tracking_uri) > 0  # the first job's records, for which MLflow was down until now
    (run,) = runs_of_node(tracking_uri)
    assert (run.info.status, run.data.tags["x2.dag_run"]) == ("FINISHED", SECOND)
    assert audit(store, NODE, tracking_uri).findings == ()


def test_a_run_of_another_store_is_left_alone(store: Store, tracking_uri: str, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    killed_driver_without_mlflow(other, FIRST, dies_at=5)
    replay(other, tracking_uri)
    train(store, Lineage(store, EXPERIMENT, SECOND))
    replay(store, tracking_uri)
    runs = {run.data.tags["x2.dag_run"]: run for run in runs_of_node(tracking_uri)}
    assert set(runs) == {FIRST, SECOND}
    assert LIVE_EARLIER not in runs[SECOND].data.tags


class DriverDied(BaseException):
    """Ends a training as a kill would, but in this process."""


def killed_driver_without_mlflow(store: Store, dag_run: str, dies_at: int) -> Lineage:
    """A training that ends before step `dies_at`, spooled and not delivered; its end is not spooled either."""
    recorder = Lineage(store, EXPERIMENT, dag_run)

    def before(step: int, state: Path) -> None:
        if step == dies_at:
            raise DriverDied

    def on_event(event: Event) -> None:
        if not isinstance(event, RunFinished):
            recorder(event)

    Hooks.before = staticmethod(before)
    with pytest.raises(DriverDied):
        train(store, on_event)
    Hooks.before = staticmethod(lambda step, state: None)
    return recorder


def test_a_curve_whose_end_was_made_twice_is_written_anew(store: Store, tracking_uri: str) -> None:
    """What a run says last of a metric must be the manifest's, and MLflow takes no point back."""
    killed_driver_without_mlflow(store, FIRST, dies_at=5)
    spool = Spool(store, FIRST)
    Delivery(store, tracking_uri, spool).deliver()
    (first,) = runs_of_node(tracking_uri)
    client = MlflowClient(tracking_uri)
    client.log_metric(first.info.run_id, "seconds", 99.0, step=NUM_STEPS - 1)
    train(store, Lineage(store, EXPERIMENT, SECOND))
    replay(store, tracking_uri)
    (run,) = runs_of_node(tracking_uri)
    assert run.info.run_id != first.info.run_id
    assert client.get_run(first.info.run_id).info.lifecycle_stage == "deleted"
    assert curve(tracking_uri, run.info.run_id, "seconds")[-1] == (NUM_STEPS - 1, 0.5 + NUM_STEPS - 1)
    assert audit(store, NODE, tracking_uri).findings == ()


def test_a_lost_answer_and_a_dead_server_cost_no_point_and_double_none(
    store: Store, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = killed_driver_without_mlflow(store, FIRST, dies_at=5)
    Delivery(store, tracking_uri, recorder.spool).deliver()
    feed = LiveFeed(tracking_uri, recorder.spool, 1.0)
    original, calls = feed._client.log_batch, []

    def log_batch(run_id: str, metrics: list[object]) -> None:
        calls.append(metrics)
        if len(calls) == 1:
            raise MlflowException("503: the server is down")
        original(run_id, metrics=metrics)  # type: ignore[arg-type]
        if len(calls) == 2:
            raise MlflowException("the answer was lost")

    feed._client.log_batch = log_batch  # type: ignore[method-assign,assignment]
    assert [feed.send() for _ in range(4)] == [2.0, 4.0, 1.0, 1.0]
    assert caplog.text.count("event=live_series_waits") == 2
    (run,) = runs_of_node(tracking_uri)
    assert len(calls) == 3
    for key in ("loss", "seconds"):
        assert [step for step, _ in curve(tracking_uri, run.info.run_id, key)] == list(range(5))
    # Another process that knows nothing of it finds out where the curve ends.
    state = Path(store.uri) / running_series(recorder.spool.read())[0].live_series
    with state.open("a") as stream:
        stream.write('{"step": 5, "loss": 7}\n')
    assert LiveFeed(tracking_uri, recorder.spool, 1.0).send() == 1.0
    assert curve(tracking_uri, run.info.run_id) == [*LOSSES[:5], (5, 7.0)]


def test_a_long_curve_goes_in_full_requests_and_in_turns(store: Store, tracking_uri: str) -> None:
    recorder = killed_driver_without_mlflow(store, FIRST, dies_at=0)
    Delivery(store, tracking_uri, recorder.spool).deliver()
    state = Path(store.uri) / running_series(recorder.spool.read())[0].live_series
    numbers = ", ".join(f'"m{n}": {n}' for n in range(400))
    state.write_text("".join(f'{{"step": {step}, {numbers}}}\n' for step in range(50)))
    feed = LiveFeed(tracking_uri, recorder.spool, 1.0)
    sizes: list[int] = []
    feed._client.log_batch = lambda run_id, metrics: sizes.append(len(metrics))  # type: ignore[method-assign,assignment,misc]
    assert [feed.send(), feed.send()] == [0.0, 1.0]
    assert sizes == [800] * 25  # two whole lines in each: MLflow takes 1,000


@pytest.mark.slow
def test_a_server_that_is_stopped_and_comes_back(
    store: Store, tracking_uri: str, empty_mlflow: Path, tmp_path: Path
) -> None:
    folder, port = tmp_path / "server", closed_port()
    folder.mkdir()
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    uri, server = f"http://127.0.0.1:{port}", contextlib.ExitStack()
    at_step: dict[int, int] = {}

    def before(step: int, state: Path) -> None:
        if step in (2, 7):
            if step == 7:  # steps 2 to 6 were made without a server
                server.enter_context(mlflow_server(folder, port))
            run = wait_for_points(uri, step)
            at_step[step] = len(curve(uri, run.info.run_id))
            if step == 2:
                server.close()

    Hooks.before = staticmethod(before)
    with server:
        server.enter_context(mlflow_server(folder, port))
        with lineage(store, EXPERIMENT, uri, FIRST, live_seconds=LIVE_SECONDS) as on_event:
            train(store, on_event)
        assert at_step == {2: 2, 7: 7}
        assert replay(store, tracking_uri) > 0
        assert all_of_the_node(uri) == all_of_the_node(tracking_uri)


@pytest.fixture(params=["local", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def lines_of(*steps: int, loss: float = 0.5) -> bytes:
    return b"".join(b'{"step": %d, "loss": %.3f, "name": "x"}\n' % (step, loss) for step in steps)


def test_a_tail_gives_every_whole_line_once(any_store: Store) -> None:
    tail = SeriesTail(any_store, "state/a.jsonl")
    assert tail.read() == []
    any_store.blobs.write("state/a.jsonl", lines_of(0, 1) + b'{"step": 2, "lo')
    assert tail.read() == [(0, {"loss": 0.5}), (1, {"loss": 0.5})]
    assert tail.read() == []
    any_store.blobs.write("state/a.jsonl", lines_of(0, 1, 2, 2, 3))
    assert [step for step, _ in tail.read()] == [2, 3]


@pytest.mark.parametrize("rewritten", [lines_of(0), lines_of(0, 1, 2), lines_of(0, 1, 2, loss=1000)])
def test_a_tail_survives_a_file_that_was_cut_and_went_on(any_store: Store, rewritten: bytes) -> None:
    tail = SeriesTail(any_store, "state/a.jsonl")
    any_store.blobs.write("state/a.jsonl", lines_of(0, 1, 2, loss=100))
    assert len(tail.read()) == 3
    any_store.blobs.write("state/a.jsonl", rewritten)
    assert tail.read() == []
    any_store.blobs.write("state/a.jsonl", lines_of(0, 1, 2, 3, 4))  # shorter: step 3 lies across the old end
    assert [step for step, _ in tail.read()] == [3, 4]


def test_a_tail_that_begins_far_in_reads_on_through_what_is_known(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.flow.lineage.live_series.READ_BYTES", 100)
    any_store.blobs.write("state/a.jsonl", lines_of(*range(30)))
    tail = SeriesTail(any_store, "state/a.jsonl", last_step=20)
    seen = []
    while lines := tail.read():
        seen += [step for step, _ in lines]
    assert seen == list(range(21, 30))


def test_a_tail_goes_from_a_file_through_its_segments(any_store: Store) -> None:
    """A file of an earlier release, a segment that grows, and one of a start that makes steps again."""
    tail = SeriesTail(any_store, "state/a.jsonl")
    any_store.blobs.write("state/a.jsonl", lines_of(0, 1))
    assert [step for step, _ in tail.read()] == [0, 1]
    any_store.blobs.write("state/a/00000000.jsonl", lines_of(2))
    assert tail.read() == []  # the head does not tell of it yet
    any_store.blobs.write("state/a/head.json", b'{"segments": 1}')
    assert [step for step, _ in tail.read()] == [2]
    any_store.blobs.write("state/a/00000000.jsonl", lines_of(2, 3) + b'{"step": 4, "lo')
    assert [step for step, _ in tail.read()] == [3]
    any_store.blobs.write("state/a/00000001.jsonl", b"")
    any_store.blobs.write("state/a/00000002.jsonl", lines_of(2, 3, 4, 5))
    any_store.blobs.write("state/a/head.json", b'{"segments": 3}')
    assert [step for step, _ in tail.read()] == [4, 5]
    assert tail.read() == []
    later = SeriesTail(any_store, "state/a.jsonl", last_step=4)
    assert [step for step, _ in later.read()] == [5]


def test_mlflow_gets_a_bounded_part_of_a_long_series() -> None:
    """Every step at first, then one in ten of ten times as many, and so on; what few steps have always."""
    shown = [step for step in range(120_000) if shown_numbers(step, {"loss": 1.0})]
    assert shown[:2_000] == list(range(2_000))
    assert shown[2_000:3_800] == list(range(2_000, 20_000, 10))
    assert shown[3_800:] == list(range(20_000, 120_000, 100))
    assert sum(bool(shown_numbers(step, {"loss": 1.0})) for step in range(0, 2_600_000, 10)) + 1_800 == 7_460
    # Beyond 20 million steps every 100,000th is shown.
    assert 2_000 + 4 * 1_800 + len(range(20_000_000, 100_000_000, 100_000)) == 10_000
    rare = {"valid/image/image_of_text@1": 5.0, "loss_spike": 7.0, "skipped": 1.0}
    assert shown_numbers(123_457, {"loss": 1.0, "lr": 0.1, **rare}) == rare
    text = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (1_999, 2_000, 2_001, 2_010))
    assert (
        thinned(series_points(text))
        == "steps up to 2010, at most 3 points a curve; all steps are in the artifact's series"
    )
    assert thinned({"loss": {1_999: 1.0}}) == ""
    text += '{"step": 2011, "loss": 2.0, "valid/loss": 3.0}\n{"step":2012,"loss":2.0}\n'
    assert series_points(text) == {"loss": {1_999: 1.0, 2_000: 1.0, 2_010: 1.0}, "valid/loss": {2_011: 3.0}}


def test_a_node_of_several_parts_has_no_live_series(store: Store) -> None:
    for num_parts in (1, 2):
        recorder = Lineage(store, EXPERIMENT, f"2026010{num_parts}T000000-a")
        train(store, recorder, TrainConfig(num_parts=num_parts))
        (started,) = [record for record in recorder.spool.read() if record.type == "node_started"]
        assert started.live_series.startswith("state/train/") == (num_parts == 1)
        assert running_series([started]) == ([started] if num_parts == 1 else [])
        assert running_series(recorder.spool.read()) == []
