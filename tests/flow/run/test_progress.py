"""People see bars on a terminal and key=value lines in a log."""

import io
import logging

import pytest

from pipelines.flow.run.progress import Progress
from tests.support.flow import toy
from tests.support.flow.helpers import run_all
from x2vlm.errors import StageFailed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_per_running_node(tmp_path, local_store, caplog):
    stream = Terminal()
    graph = toy.toy_graph(tmp_path)
    with caplog.at_level(logging.INFO):
        run_all(graph, local_store, on_event=Progress(stream))
    assert "filter/a" in stream.getvalue()
    assert "event=node_finished node=filter/a parts=4 rows_in=10 rows_out=7" in caplog.text
    assert "event=run_finished ok=True" in caplog.text
    again = Terminal()
    with caplog.at_level(logging.INFO):
        run_all(graph, local_store, on_event=Progress(again))
    assert again.getvalue() == ""
    assert "event=node_reused node=filter/a" in caplog.text


def test_a_log_file_gets_no_bars(tmp_path, local_store, caplog):
    stream = io.StringIO()
    toy.write_source(tmp_path, "a", ["boom"])
    with caplog.at_level(logging.INFO), pytest.raises(StageFailed):
        run_all(toy.toy_graph(tmp_path), local_store, on_event=Progress(stream))
    assert stream.getvalue() == ""
    assert "event=node_failed node=filter/a part=00000 error=ValueError: a line says boom" in caplog.text
    assert "event=node_blocked node=join/all by=filter/a" in caplog.text
