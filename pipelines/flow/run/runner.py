"""Where parts run: the interface of all runners, and the one that runs them right here."""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.flow.live import Counters, Listener, Report, no_report
from pipelines.flow.stage import Node


class Runner(Protocol):
    """Runs functions somewhere. Handles are opaque; `wait` returns at least one of them, whose `result` is ready."""

    def submit(self, node: Node, function: Callable[..., Any], *args: Any) -> Hashable: ...

    def wait(self, handles: Sequence[Hashable]) -> Sequence[Hashable]: ...

    def result(self, handle: Hashable) -> Any: ...

    def listen(self, listener: Listener) -> None:
        """Hand what parts report to `listener`, from the thread that waits. Without a listener nothing is counted."""
        ...

    def reporter(self, node: Node, part: str) -> Report:
        """What to give a part so that it can report; goes with it to wherever it runs."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class DirectReport:
    """Reports of one part, to a listener in the same process."""

    listener: Listener
    node: str
    part: str

    def __call__(self, count: Callable[[], Counters]) -> None:
        self.listener(self.node, self.part, count())


class InlineRunner:
    """Runs each part in this process, one at a time, when it is waited for.

    With `shuffle_seed` waiting parts are taken in a random order, to show that results do not depend on it.
    """

    def __init__(self, shuffle_seed: int | None = None) -> None:
        self._random = None if shuffle_seed is None else random.Random(shuffle_seed)
        self._waiting: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._results: dict[int, Any] = {}
        self._num_submitted = 0
        self._listener: Listener | None = None

    def submit(self, node: Node, function: Callable[..., Any], *args: Any) -> Hashable:
        self._num_submitted += 1
        self._waiting[self._num_submitted] = (function, args)
        return self._num_submitted

    def wait(self, handles: Sequence[Hashable]) -> Sequence[Hashable]:
        asked = set(handles)
        waiting = [handle for handle in self._waiting if handle in asked]
        handle = self._random.choice(waiting) if self._random else waiting[0]
        function, args = self._waiting.pop(handle)
        self._results[handle] = function(*args)
        return [handle]

    def result(self, handle: Hashable) -> Any:
        assert isinstance(handle, int)
        return self._results.pop(handle)

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def reporter(self, node: Node, part: str) -> Report:
        return no_report if self._listener is None else DirectReport(self._listener, node.key, part)

    def close(self) -> None:
        self._waiting.clear()
