"""What a run that failed still came to: the results that are there, and all that failed, last."""

from pipelines.flow.run.events import Event, NodeBlocked, NodeFailed, NodeFinished
from pipelines.flow.store.artifact import Manifest
from pipelines.report.summary import result_lines
from x2vlm.errors import StageFailed


class Ends:
    """Listens to a run: which nodes ended how."""

    def __init__(self) -> None:
        self._finished: dict[str, Manifest] = {}
        self._failed: dict[str, str] = {}
        self._blocked: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case NodeFinished():
                self._finished[event.node] = event.manifest
            case NodeFailed():
                self._failed[event.node] = event.error.partition("\n")[0]
            case NodeBlocked():
                self._blocked[event.node] = event.by

    def told(self, first: StageFailed) -> StageFailed:
        """`first`, with the results of evaluations that finished; the last lines name every node that failed."""
        results = result_lines(self._finished)
        if not results and len(self._failed) < 2:
            return first
        lines = [f"{node} failed: {error}" for node, error in self._failed.items()]
        lines += [f"{node} did not run: it reads {by}" for node, by in self._blocked.items()]
        told = StageFailed("\n".join([str(first), *(["", "These finished:", *results] if results else []), "", *lines]))
        for note in getattr(first, "__notes__", []):
            told.add_note(note)
        return told
