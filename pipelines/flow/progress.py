"""What a person sees of a run: bars on a terminal, key=value lines in a log."""

import logging
import sys
from typing import Any, TextIO

from tqdm import tqdm

from pipelines.flow.events import (
    Action,
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodeStarted,
    PartDone,
    RunFinished,
    RunStarted,
)

log = logging.getLogger(__name__)


class Progress:
    """Shows events: one bar per running node if `stream` is a terminal, and a log line per node in any case."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
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
            case PartDone():
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

    def _close(self, node: str) -> None:
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


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
