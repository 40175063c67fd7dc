"""A run as key=value lines of a log."""

import logging
import time
from collections import defaultdict

from pipelines.flow.run.counters import NodeCounters, log_line
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
    """Logs events. What running parts report is a line per node, at most every `seconds_between_lines`."""

    def __init__(self, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds = seconds_between_lines
        self._counters: defaultdict[str, NodeCounters] = defaultdict(NodeCounters)

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                log.info("event=run_started experiment=%s nodes=%d", event.experiment, len(event.nodes))
            case NodeStarted():
                log.info(
                    "event=node_started node=%s action=%s parts=%d done=%d",
                    *(event.node, event.action, event.num_parts, event.num_done),
                )
            case PartProgress():
                self._counters[event.node].report(event.part, event.counters)
                self._show_counters(event.node)
            case PartDone():
                self._counters[event.node].finish(event.part, event.record)
            case NodeFinished():
                self._counters.pop(event.node, None)
                self._finished(event)
            case NodeFailed():
                self._counters.pop(event.node, None)
                log.error(
                    "event=node_failed node=%s part=%s error=%s", event.node, event.part, _first_line(event.error)
                )
            case NodeBlocked():
                log.warning("event=node_blocked node=%s by=%s", event.node, event.by)
            case RunFinished():
                self._counters.clear()
                log.info("event=run_finished ok=%s seconds=%.1f", event.ok, event.seconds)

    def _show_counters(self, node: str) -> None:
        counters, now = self._counters[node], time.monotonic()
        if counters.looked_at is not None and now < counters.looked_at + self._seconds:
            return
        totals, rates = counters.look(now)
        log.info("event=node_progress node=%s %s", node, log_line(totals, rates))

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
