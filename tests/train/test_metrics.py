"""Metrics: one line per step, whatever happened between, at a cost that does not grow with the run."""

import json
import threading
from pathlib import Path

import fsspec
import pytest

from pipelines.flow.lineage.series import is_timing
from x2vlm.stores.calls import StoreFiles
from x2vlm.stores.segments import HEAD, head_of, last_line, segment_name
from x2vlm.train.metrics import MetricsLog, read_metrics
from x2vlm.train.progress import CLOCK_NAMES


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "state" / "metrics.jsonl")
        return
    yield f"memory://{tmp_path.name}/metrics.jsonl"
    fsspec.filesystem("memory").rm("/" + tmp_path.name, recursive=True)


def _write(uri, steps, mark, flush=True):
    log = MetricsLog(uri, upload_seconds=1e6)
    for step in steps:
        log.write({"step": step, "loss": 1.0, "mark": mark})
    if flush:
        log.flush()
    return log


def test_a_resumed_run_overwrites_the_steps_it_makes_again(uri):
    _write(uri, range(7), "first")  # killed here: never closed
    _write(uri, range(5, 10), "second").close()
    lines = read_metrics(uri)
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["mark"] for line in lines] == ["first"] * 5 + ["second"] * 5


def test_a_start_far_back_replaces_several_segments(uri):
    first = _write(uri, range(4), "first")
    for step in range(4, 8):
        first.write({"step": step, "mark": "first"})
    first.close()
    _write(uri, range(6, 9), "second").close()
    MetricsLog(uri).close()  # a start that made no step
    _write(uri, range(2, 4), "third").close()
    assert [(line["step"], line["mark"]) for line in read_metrics(uri)] == [
        *((step, "first") for step in range(2)),
        *((step, "third") for step in range(2, 4)),
    ]
    folder, _, name = uri.rpartition("/")
    assert json.loads(last_line(StoreFiles(folder), name))["mark"] == "third"


def test_a_torn_line_does_not_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(str(path), range(3), "first").close()
    with (tmp_path / "metrics" / segment_name(0)).open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2]
    assert json.loads(last_line(StoreFiles(str(tmp_path)), "metrics.jsonl"))["step"] == 2
    _write(str(path), [3], "second").close()
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3]


def test_a_file_of_an_earlier_release_is_continued(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"mark": "old", "step": {step}}}\n' for step in range(6)))
    _write(str(path), [4, 5, 6], "new").close()
    assert [line["mark"] for line in read_metrics(path)] == ["old"] * 4 + ["new"] * 3


def test_lines_are_readable_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(str(path), [0, 1], "first", flush=False)
    assert len(read_metrics(path)) == 2


def test_an_object_store_gets_the_lines_with_flush_and_in_time(tmp_path):
    uri = f"memory://{tmp_path.name}/metrics.jsonl"
    log = _write(uri, range(4), "first")
    log.write({"step": 4, "mark": "lost"})
    _write(uri, [2, 3], "second").close()
    assert [line["mark"] for line in read_metrics(uri)] == ["first"] * 2 + ["second"] * 2
    with MetricsLog(uri, upload_seconds=0.01) as soon:
        soon.write({"step": 4, "mark": "third"})
        for _ in range(1000):
            if len(read_metrics(uri)) == 5:
                break
            threading.Event().wait(0.01)
        assert read_metrics(uri)[-1]["mark"] == "third"


def test_what_a_writer_left_between_segment_and_head_is_written_again(tmp_path):
    """Killed after it had put a segment and before the head told of it."""
    uri = f"memory://{tmp_path.name}/metrics.jsonl"
    _write(uri, range(3), "first").close()
    files = StoreFiles(f"memory://{tmp_path.name}/metrics")
    files.write(segment_name(1), b'{"step": 3, "mark": "unknown"}\n')
    assert len(read_metrics(uri)) == 3
    _write(uri, [3], "second").close()
    assert read_metrics(uri)[-1]["mark"] == "second"


def _counted(monkeypatch):
    """What calls to the memory file system move: (calls, bytes)."""
    system = fsspec.get_filesystem_class("memory")
    moved = {"calls": 0, "bytes": 0}
    for name in ("cat_file", "pipe_file", "ls", "info", "get_file", "put_file"):
        original = getattr(system, name)

        def call(self, *arguments, _original=original, **options):
            result = _original(self, *arguments, **options)
            moved["calls"] += 1
            moved["bytes"] += sum(len(item) for item in (*arguments, result) if isinstance(item, bytes))
            return result

        monkeypatch.setattr(system, name, call)
    return moved


def test_reopening_and_uploading_cost_the_same_after_a_million_steps_as_after_a_thousand(tmp_path, monkeypatch):
    """A thousand steps to a segment, counted at the file system."""
    costs = {}
    for num_steps in (1_000, 1_000_000):
        root = f"memory://{tmp_path.name}/{num_steps}"
        files = StoreFiles(f"{root}/metrics")
        for number in range(num_steps // 1_000):
            lines = (f'{{"loss": 1.0, "step": {1_000 * number + step}}}\n' for step in range(1_000))
            files.write(segment_name(number), "".join(lines).encode())
        files.write(HEAD, head_of(num_steps // 1_000))
        with monkeypatch.context() as patch:
            moved = _counted(patch)
            log = _write(f"{root}/metrics.jsonl", range(num_steps, num_steps + 1_000), "x" * 800)
            log.close()
        costs[num_steps] = dict(moved)
        assert last_line(StoreFiles(root), "metrics.jsonl").endswith(b"\n")
    assert costs[1_000]["calls"] == costs[1_000_000]["calls"] == 3  # head read, segment and head written
    assert costs[1_000_000]["bytes"] == pytest.approx(costs[1_000]["bytes"], rel=0.01)


def test_a_line_needs_its_step(tmp_path):
    with pytest.raises(ValueError, match="needs its step"):
        MetricsLog(str(tmp_path / "m.jsonl")).write({"loss": 1.0})


@pytest.mark.parametrize(
    "losses", [["loss", "image/contrastive"], ["grad_norm", "lr"], ["region/box_l1", "temperature"]]
)
def test_what_depends_on_the_clock_is_known_as_such_to_lineage(losses):
    """A resumed run's curves of speeds differ from the earlier ones, and nobody is to be warned of that."""
    assert all(is_timing(name) for name in CLOCK_NAMES)
    assert not any(is_timing(name) for name in losses)


def test_a_series_that_is_not_there_has_no_lines(tmp_path):
    assert read_metrics(Path(tmp_path) / "metrics.jsonl") == []
