"""The same graph on a real Ray: equal roots, and a worker that dies is replaced."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from pipelines.flow.run.events import Event, PartProgress
from pipelines.flow.run.ray_runner import RayRunner, local_worker_env
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Count, Graph, Part, PartReader, PartResult, PartWriter, Runtime
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import committed_tree, roots, run_all
from tests.support.flow.live_parts import BOMB, WAIT, Gate
from x2vlm.errors import NotEnoughRoom, StageFailed


@pytest.fixture(scope="module")
def ray_runner() -> Iterator[RayRunner]:
    with RayRunner(num_cpus=2, dashboard=False) as runner:
        yield runner


def die_once(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """The toy filter, whose process kills itself at the first attempt of part 00001."""
    marker = Path(out.state_uri) / "died"
    if part.name == "00001" and not marker.exists():
        marker.touch()
        (out.path / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    return toy.filter_lines(config, inputs, part, out)


def die_always(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def describe_worker(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    names = ("OMP_NUM_THREADS", "HF_HUB_DISABLE_TELEMETRY")
    found = {name: os.environ.get(name, "") for name in names} | {
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
    }
    (out.path / "a.txt").write_text("x")
    return PartResult({"rows": Count(1, 1)}, summary=found)


DIE_ONCE = replace(toy.FILTER, run_part=die_once)
DIE_ALWAYS = replace(toy.FILTER, run_part=die_always)
DESCRIBE = replace(toy.FILTER, run_part=describe_worker, finish=None)


def test_ray_makes_what_an_inline_run_makes(tmp_path: Path, ray_runner: RayRunner):
    inline, on_ray = Store(tmp_path / "inline"), Store(tmp_path / "ray")
    graph = toy.toy_graph(tmp_path)
    expected = run_all(graph, inline, runner=InlineRunner())
    result = run_all(graph, on_ray, runner=ray_runner)
    assert roots(result) == roots(expected)
    assert committed_tree(Path(on_ray.uri)) == committed_tree(Path(inline.uri))


def test_a_killed_worker_is_replaced_and_the_run_finishes(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    expected = run_all(toy.toy_graph(tmp_path), Store(tmp_path / "undisturbed"))
    result = run_all(toy.toy_graph(tmp_path, filter_stage=DIE_ONCE), local_store, runner=ray_runner)
    assert len(list((Path(local_store.uri) / "state" / "filter").glob("*/died"))) == 2
    assert roots(result) == roots(expected)
    local_store.clean_scratch()
    assert list((Path(local_store.uri) / "tmp").iterdir()) == []


def test_a_worker_that_always_dies_fails_the_node(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    toy.write_source(tmp_path, "a", ["one", "two"])  # one part
    graph = toy.toy_graph(tmp_path, ["a"], filter_stage=DIE_ALWAYS, runtime=Runtime(max_retries=0))
    with pytest.raises(StageFailed, match=r"filter/a, part 00000: .*its worker died \(WorkerCrashedError"):
        run_all(graph, local_store, runner=ray_runner)


def test_an_error_of_a_stage_comes_home_with_its_traceback(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    toy.write_source(tmp_path, "a", ["boom"])
    with pytest.raises(StageFailed, match="filter/a, part 00000: ValueError: a line says boom") as caught:
        run_all(toy.toy_graph(tmp_path), local_store, runner=ray_runner)
    assert "in filter_lines" in caught.value.__notes__[0]
    assert local_store.read_ref("exp", "filter/b") is not None


def test_workers_are_offline_and_single_threaded(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"], filter_stage=DESCRIBE)
    part = run_all(graph, local_store, runner=ray_runner).nodes["filter/a"].manifest.parts[0].record
    assert (part.summary["OMP_NUM_THREADS"], part.summary["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1")
    assert part.summary["pid"] != os.getpid()


def test_parts_that_start_actors_run_in_the_driver(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"], filter_stage=replace(DESCRIBE, on_driver=True))
    part = run_all(graph, local_store, runner=ray_runner).nodes["filter/a"].manifest.parts[0].record
    assert part.summary["pid"] == os.getpid()
    assert part.summary["thread"] != threading.main_thread().name


def test_what_a_local_ray_has_no_room_for_is_refused(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"], runtime=Runtime(num_gpus=1000))
    words = "filter/a.*: a part asks for 1 CPU and 1000 GPU on one machine, but this machine's Ray has 2 CPU and 0 GPU"
    with pytest.raises(StageFailed, match=words):
        run_all(graph, local_store, runner=ray_runner)
    with pytest.raises(NotEnoughRoom, match=words):
        ray_runner.prepare(graph.values(), local_store)


def test_a_ray_that_is_there_is_used_and_left_running(tmp_path: Path, ray_runner: RayRunner, local_store: Store):
    with RayRunner() as joined_runner:
        run_all(toy.toy_graph(tmp_path), local_store, runner=joined_runner)
    assert ray.is_initialized()


def test_workers_find_the_project_without_an_installation(project_root: Path):
    environment = local_worker_env({"PYTHONPATH": f"/a{os.pathsep}{project_root}"})
    assert environment["PYTHONPATH"] == f"{project_root}{os.pathsep}/a"


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.opened.set()
        server.shutdown()


def waiting_graph(tmp_path: Path, gate: Gate, names: tuple[str, ...]) -> Graph:
    """Nodes of one part each, which wait for the gate."""
    for name in names:
        toy.write_source(tmp_path, name, [f"127.0.0.1:{gate.server_address[1]}"])
    return toy.toy_graph(tmp_path, list(names), filter_stage=WAIT)


def test_on_ray_counters_arrive_while_the_part_runs(
    tmp_path: Path, local_store: Store, ray_runner: RayRunner, gate: Gate
) -> None:
    order: list[str] = []

    def on_event(event: Event) -> None:
        order.append(f"{type(event).__name__} {getattr(event, 'node', '')}")
        if isinstance(event, PartProgress):
            assert event.counters == {"rows": 2, "kept": 1}
            gate.opened.set()  # nothing else opens it, so the part cannot have ended before

    run_all(waiting_graph(tmp_path, gate, ("a",)), local_store, on_event=on_event, runner=ray_runner)
    assert order.index("PartProgress filter/a") < order.index("PartDone filter/a")


def test_a_lost_board_costs_the_view_and_nothing_else(
    tmp_path: Path, local_store: Store, ray_runner: RayRunner, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The first report ends the actor while the parts still run; they and all later ones finish unseen."""

    def on_event(event: Event) -> None:
        if isinstance(event, PartProgress) and not gate.opened.is_set():
            assert ray_runner._relay is not None
            ray.kill(ray_runner._relay.actor)
            gate.opened.set()

    graph = waiting_graph(tmp_path, gate, ("a", "b"))
    with caplog.at_level(logging.WARNING):
        result = run_all(graph, local_store, on_event=on_event, runner=ray_runner)
    assert gate.opened.is_set()
    assert set(result.nodes) == set(graph)
    toy.write_source(tmp_path, "c", [f"127.0.0.1:{gate.server_address[1]}"])
    assert (
        "filter/c" in run_all(toy.toy_graph(tmp_path, ["c"], filter_stage=WAIT), local_store, runner=ray_runner).nodes
    )


def test_without_a_listener_there_is_no_board(tmp_path: Path, local_store: Store) -> None:
    with RayRunner() as joined_runner:  # joins the Ray of this process
        run_all(toy.toy_graph(tmp_path, filter_stage=BOMB), local_store, runner=joined_runner)
        assert joined_runner._relay is None
