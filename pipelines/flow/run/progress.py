"""What a person sees of a run: bars on a terminal, key=value lines in a log."""

import logging
import sys
import time
from collections import defaultdict
from typing import Any, TextIO

from tqdm import tqdm

from pipelines.flow.run.counters import NodeCounters, bar_words, log_line
from pipelines.flow.run.events import (
    Action,
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodeStarted,
    PartDone,
    PartProgress,
    RunFinished,
    RunStarted,
)

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0  # of one node in a log


class Progress:
    """Shows events: one bar per running node if `stream` is a terminal, log lines in any case.

    What running parts report is behind the bar; in a log it is a line per node, at most every `seconds_between_lines`.
    """

    def __init__(self, stream: TextIO | None = None, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream or sys.stderr
        self._seconds = seconds_between_lines
        self._counters: defaultdict[str, NodeCounters] = defaultdict(NodeCounters)
        self._bars: dict[str, tqdm[Any]] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                log.info("event=run_started experiment=%s nodes=%d", event.experiment, len(event.nodes))
            case NodeStarted():
                log.info(
                    "event=node_started node=%s action=%s parts=%d done=%d",
                    *(event.node, event.action, event.num_parts, event.num_done),
                )
                if self._stream.isatty():
                    self._bars[event.node] = self._open(event)
            case PartProgress():
                self._counters[event.node].report(event.part, event.counters)
                self._show_counters(event.node)
            case PartDone():
                self._counters[event.node].finish(event.part, event.record)
                if bar := self._bars.get(event.node):
                    bar.update()
            case NodeFinished():
                self._close(event.node)
                self._finished(event)
            case NodeFailed():
                self._close(event.node)
                log.error(
                    "event=node_failed node=%s part=%s error=%s", event.node, event.part, _first_line(event.error)
                )
            case NodeBlocked():
                log.warning("event=node_blocked node=%s by=%s", event.node, event.by)
            case RunFinished():
                for node in list(self._bars):
                    self._close(node)
                log.info("event=run_finished ok=%s seconds=%.1f", event.ok, event.seconds)

    def _open(self, event: NodeStarted) -> "tqdm[Any]":
        total, done = event.num_parts, event.num_done
        return tqdm(total=total, initial=done, desc=event.node, unit="part", file=self._stream, leave=False)

    def _show_counters(self, node: str) -> None:
        counters, now, bar = self._counters[node], time.monotonic(), self._bars.get(node)
        if counters.looked_at is not None and now < counters.looked_at + (1.0 if bar else self._seconds):
            return
        totals, rates = counters.look(now)
        if bar:
            bar.set_postfix_str(bar_words(totals, rates))
        else:
            log.info("event=node_progress node=%s %s", node, log_line(totals, rates))

    def _close(self, node: str) -> None:
        self._counters.pop(node, None)
        if bar := self._bars.pop(node, None):
            bar.close()

    def _finished(self, event: NodeFinished) -> None:
        rows = event.manifest.counts.get("rows")
        verb = "reused" if event.action is Action.REUSE else "finished"
        log.info(
            "event=node_%s node=%s parts=%d rows_in=%d rows_out=%d root=%s seconds=%.1f",
            verb,
            event.node,
            len(event.manifest.parts),
            rows.num_in if rows else 0,
            rows.num_out if rows else 0,
            event.manifest.root[:12],
            event.seconds,
        )
        if event.produced and rows:  # every row in is kept or dropped by a rule: the numbers add up
            reasons = sorted(rows.dropped.items(), key=lambda item: (-item[1], item[0]))
            funnel = " ".join(f"{rule}={number}" for rule, number in [("kept", rows.num_out), *reasons])
            log.info("event=node_funnel node=%s rows_in=%d %s", event.node, rows.num_in, funnel)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
