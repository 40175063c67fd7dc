"""A runner that is started by the first part: what needs no part, or may not run, starts nothing."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from pipelines.flow.live import Listener, Report, no_report
from pipelines.flow.run.runner import Runner
from pipelines.flow.stage import Node


class LazyRunner:
    """Stands for the runner that `start` gives, from the first part on. Use as a context manager."""

    def __init__(self, start: Callable[[], Runner]) -> None:
        self._start = start
        self._runner: Runner | None = None
        self._listener: Listener | None = None

    @property
    def is_started(self) -> bool:
        """Whether a part has asked for the runner."""
        return self._runner is not None

    def submit(self, node: Node, function: Callable[..., Any], *args: Any) -> Hashable:
        return self._started().submit(node, function, *args)

    def wait(self, handles: Sequence[Hashable]) -> Sequence[Hashable]:
        return self._started().wait(handles)

    def result(self, handle: Hashable) -> Any:
        return self._started().result(handle)

    def listen(self, listener: Listener) -> None:
        self._listener = listener
        if self._runner is not None:
            self._runner.listen(listener)

    def reporter(self, node: Node, part: str) -> Report:
        return self._started().reporter(node, part) if self._listener is not None else no_report

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def __enter__(self) -> "LazyRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> Runner:
        if self._runner is None:
            self._runner = self._start()
            if self._listener is not None:
                self._runner.listen(self._listener)
        return self._runner
