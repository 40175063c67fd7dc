"""Metrics: one line per step, whatever happened between."""

import fsspec
import pytest

from pipelines.flow.lineage.series import is_timing
from x2vlm.train.metrics import MetricsLog, read_metrics
from x2vlm.train.progress import CLOCK_NAMES


def _write(uri, first_step, steps, mark):
    log = MetricsLog(str(uri), first_step)
    for step in steps:
        log.write({"step": step, "loss": 1.0, "mark": mark})
    return log


def test_a_resumed_run_overwrites_the_steps_it_makes_again(tmp_path):
    path = tmp_path / "state" / "metrics.jsonl"
    _write(path, 0, range(7), "first")  # killed here: never closed
    _write(path, 5, range(5, 10), "second").close()
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["mark"] for line in lines] == ["first"] * 5 + ["second"] * 5


def test_a_torn_line_does_not_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, 0, range(3), "first").close()
    with path.open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2]
    _write(path, 3, [3], "second").close()
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3]


def test_lines_are_readable_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, 0, [0, 1], "first")
    assert len(read_metrics(path)) == 2


def test_an_object_store_gets_the_lines_with_sync(tmp_path):
    uri = f"memory://{tmp_path.name}/metrics.jsonl"
    log = _write(uri, 0, range(4), "first")
    log.sync()
    log.write({"step": 4, "mark": "lost"})
    _write(uri, 2, [2, 3], "second").close()
    text = fsspec.filesystem("memory").cat_file(f"/{tmp_path.name}/metrics.jsonl").decode()
    assert text.count("first") == 2
    assert text.count("second") == 2
    assert "lost" not in text


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
