"""One live table of a run, by stage: parts, rows and megabytes per second, what was kept, time left; training steps."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.flow.run.counters import NodeCounters
from pipelines.flow.run.events import (
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodeStarted,
    PartDone,
    PartProgress,
    RunFinished,
)

RATE_SECONDS = 10.0  # a rate is that of the last so many seconds
REFRESH_SECONDS = 0.25
MAX_WARNINGS = 5  # shown again after the terminal was resized

# Name, and the fewest columns of a terminal that show it. Nothing is ever wrapped.
COLUMNS = (
    *(("stage", 0), ("nodes", 60), ("parts", 0), ("rows", 44), ("rows/s", 52)),
    *(("MB/s", 68), ("kept", 36), ("time left", 30)),
)


@dataclass
class StageView:
    """What is known of the nodes of one stage."""

    num_nodes: int = 0
    num_failed: int = 0
    num_parts: int = 0  # of started nodes
    num_done: int = 0
    num_done_now: int = 0  # in this run
    ended: set[str] = field(default_factory=set)
    started: float | None = None
    nodes: dict[str, NodeCounters] = field(default_factory=dict)
    looks: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)

    def totals(self) -> dict[str, float]:
        """Counters of all parts of this run."""
        sums: dict[str, float] = {}
        for counters in self.nodes.values():
            for name, value in counters.totals().items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def rates(self, now: float, totals: Mapping[str, float]) -> dict[str, float]:
        """Growth per second over the last seconds; nothing for counters that were not seen twice."""
        self.looks.append((now, dict(totals)))
        while len(self.looks) > 2 and self.looks[1][0] < now - RATE_SECONDS:
            self.looks.popleft()
        then, before = self.looks[0]
        if now - then < 1.0:
            return {}
        return {name: max(0.0, value - before[name]) / (now - then) for name, value in totals.items() if name in before}

    def seconds_left(self, now: float) -> float | None:
        """By the pace of this run's parts; None while unknown: a node that has not started may have any number."""
        left = self.num_parts - self.num_done
        if self.started is None or self.num_done_now == 0 or left <= 0 or not self.nodes:
            return None
        return left * (now - self.started) / self.num_done_now


class TerminalConsole(Console):
    """A console whose size is that of its own terminal, whatever stdin and stdout are."""

    def __init__(self, terminal: TextIO) -> None:
        self._descriptor = terminal.fileno()
        super().__init__(file=terminal, highlight=False, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines now; 80 x 24 for terminals that do not know (0 x 0)."""
        columns, lines = os.get_terminal_size(self._descriptor)
        return ConsoleDimensions(columns or 80, lines or 24)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError("the size is the terminal's")


class LiveTable:
    """Keeps a table at the bottom of a terminal up to date. Feed it every event; `close` removes the table."""

    def __init__(self, terminal: TextIO, nodes: Sequence[str], log_file: str) -> None:
        self._console = TerminalConsole(terminal)
        self._started = time.monotonic()
        self._said: deque[str] = deque([f"log      {log_file}"], maxlen=1 + MAX_WARNINGS)
        self._note = ""
        self._stages: dict[str, StageView] = {}
        for key in nodes:
            self._stages.setdefault(_stage(key), StageView()).num_nodes += 1
        self._state = threading.RLock()  # of what is shown
        self._drawing = threading.RLock()  # taken before it, never after
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_closed, name="live-table", daemon=True)
        self._live = self._new_live()
        self._size = self._console.size

    def open(self) -> None:
        """Say where the log is, and begin."""
        with self._drawing:
            self._console.print(Text(self._said[0]))
            self._live.start()
        self._thread.start()

    def close(self) -> None:
        """Take the table away."""
        self._is_closed.set()
        with self._drawing:
            self._live.stop()

    def warnings(self) -> logging.Handler:
        """A handler that shows warnings and errors above the table."""
        handler = _AboveTable(self)
        handler.setLevel(logging.WARNING)
        return handler

    def say(self, text: str) -> None:
        """Print lines above the table."""
        with self._drawing:
            self._said.append(text)
            self._console.print(Text(text))

    def draw(self) -> None:
        """Bring the table up to date. After a change of the terminal's size everything of this run is drawn again:
        what was there is torn, in each terminal in its own way."""
        with self._drawing:
            if self._is_closed.is_set():
                return
            if self._size != (size := self._console.size):
                self._size = size
                self._live.stop()
                self._console.clear()
                for text in self._said:
                    self._console.print(Text(text))
                self._live = self._new_live()
                self._live.start()
            self._live.refresh()

    def _new_live(self) -> Live:
        return Live(
            get_renderable=self._render,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def _draw_until_closed(self) -> None:
        while not self._is_closed.wait(REFRESH_SECONDS):
            try:
                self.draw()
            except OSError:  # the terminal is gone; the run goes on, and its log tells of it
                return

    def __call__(self, event: Event) -> None:
        with self._state:
            match event:
                case NodeStarted():
                    view = self._view(event.node)
                    view.started = view.started or time.monotonic()
                    view.num_parts += event.num_parts
                    view.num_done += event.num_done
                    view.nodes[event.node] = NodeCounters()
                case PartProgress():
                    self._counters(event.node).report(event.part, event.counters)
                case PartDone():
                    view = self._view(event.node)
                    view.num_done += 1
                    view.num_done_now += 1
                    self._counters(event.node).finish(event.part, event.record)
                case NodeFinished():
                    view = self._view(event.node)
                    view.ended.add(event.node)
                    if event.node not in view.nodes:  # reused
                        view.num_parts += len(event.manifest.parts)
                        view.num_done += len(event.manifest.parts)
                case RunFinished():
                    self._note = ", the records go to MLflow"
                case NodeFailed() | NodeBlocked():
                    view = self._view(event.node)
                    view.ended.add(event.node)
                    view.num_failed += 1

    def _view(self, node: str) -> StageView:
        return self._stages.setdefault(_stage(node), StageView())

    def _counters(self, node: str) -> NodeCounters:
        return self._view(node).nodes.setdefault(node, NodeCounters())

    def _render(self) -> RenderableType:
        width, height = self._console.size
        now = time.monotonic()
        with self._state:
            rows = [(stage, view, _cells(stage, view, now)) for stage, view in self._stages.items()]
            trainings = [line for view in self._stages.values() for line in _training_lines(view, width)]
        room = max(1, height - 4 - len(trainings))  # head, foot, and the line of the cursor
        if len(rows) > room:  # what is under way is what matters
            busy = [row for row in rows if row[1].nodes and len(row[1].ended) < row[1].num_nodes]
            rows = (busy or rows)[-room:]
        shown = [number for number, (_, least) in enumerate(COLUMNS) if width >= least]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for number in shown:
            table.add_column(COLUMNS[number][0], justify="right" if number else "left", no_wrap=True, overflow="crop")
        for _, view, cells in rows:
            is_over = len(view.ended) >= view.num_nodes
            style = "red" if view.num_failed else "dim" if is_over or not view.nodes else ""
            table.add_row(*(cells[number] for number in shown), style=style)
        foot = f"{_clock(now - self._started)} elapsed{self._note}"
        lines = [Text(line, no_wrap=True, overflow="crop") for line in (*trainings, foot)]
        return Group(table, *lines)


class _AboveTable(logging.Handler):
    def __init__(self, table: LiveTable) -> None:
        super().__init__()
        self._table = table

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._table.say(self.format(record))
        except OSError:
            self.handleError(record)


def _stage(node: str) -> str:
    return node.partition("/")[0]


def _cells(stage: str, view: StageView, now: float) -> tuple[str, ...]:
    """The texts of COLUMNS."""
    totals = view.totals()
    rates = view.rates(now, totals)
    is_over = len(view.ended) >= view.num_nodes
    if not view.nodes and not view.ended:
        return (stage, f"0/{view.num_nodes}", *[""] * (len(COLUMNS) - 2))
    kept = f"{100 * totals['kept'] / totals['rows']:.0f} %" if totals.get("rows") and "kept" in totals else ""
    left = view.seconds_left(now)
    return (
        stage,
        f"{len(view.ended)}/{view.num_nodes}",
        f"{view.num_done}/{view.num_parts}",
        f"{totals['rows']:,.0f}" if "rows" in totals else "",
        f"{rates['rows']:,.1f}" if "rows" in rates and not is_over else "",
        f"{rates['bytes'] / 1e6:,.1f}" if "bytes" in rates and not is_over else "",
        kept,
        "failed" if view.num_failed else "done" if is_over else "" if left is None else _clock(left),
    )


def _training_lines(view: StageView, width: int) -> list[str]:
    """A line for every training under way: step, loss, texts per second, time left; what has no room is left out."""
    lines = []
    for node, counters in view.nodes.items():
        totals = counters.totals()
        if node in view.ended or not totals.get("steps"):
            continue
        step, steps = totals.get("step", 0.0), totals["steps"]
        words = [node, f"step {step:,.0f}/{steps:,.0f}"]
        if "loss" in totals:
            words.append(f"loss {totals['loss']:.4g}")
        if "texts_per_second" in totals:
            words.append(f"{totals['texts_per_second']:,.0f} texts/s")
        if pace := totals.get("steps_per_second"):
            words.append(f"{_clock((steps - step) / pace)} left")
        while len(words) > 1 and len("  ".join(words)) >= width:
            words.pop(-1 if len(words) > 2 else 0)
        lines.append("  ".join(words))
    return lines


def _clock(seconds: float) -> str:
    """0:02:05"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
