"""The way of live counters across a Ray cluster: a small actor beside the driver that holds each part's latest ones.

Neither end ever waits for it: workers send without looking back, the driver asks and goes on. If the actor is lost, the
view is lost, and nothing else.
"""

import logging
from collections.abc import Callable
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.flow.live import Counters, Listener

log = logging.getLogger(__name__)


class CounterActor:
    """The actor's state: the newest counters of every part that has spoken since they were last taken."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], Counters] = {}

    def note(self, node: str, part: str, counters: Counters) -> None:
        self._counters[node, part] = counters

    def take(self) -> dict[tuple[str, str], Counters]:
        taken, self._counters = self._counters, {}
        return taken


class CounterRelay:
    """The driver's end. Starts the actor at once; `poll` hands on what has come."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.actor = cast(Any, ray.remote(CounterActor)).options(num_cpus=0, scheduling_strategy=here).remote()
        self._asked: Any = None

    def poll(self) -> None:
        """Hand on the answer to the last question, if it is there, and ask again. Returns at once."""
        if self.actor is None or (self._asked is not None and not self._asked.done()):
            return
        try:
            taken = {} if self._asked is None else self._asked.result()
            self._asked = self.actor.take.remote().future()
        except ray.exceptions.RayError as error:
            log.warning("event=live_view_lost error=%s", str(error).splitlines()[0] if str(error) else error)
            self.actor = None
            return
        for (node, part), counters in taken.items():
            self._listener(node, part, counters)

    def close(self) -> None:
        """End the actor."""
        if self.actor is not None and ray.is_initialized():
            ray.kill(self.actor)
        self.actor = None


class RayReport:
    """A worker's end: sends counters of one part, and stops for good at the first failure."""

    def __init__(self, actor: Any, node: str, part: str) -> None:
        self._actor, self._node, self._part = actor, node, part

    def __call__(self, count: Callable[[], Counters]) -> None:
        if self._actor is None:
            return
        counters = count()
        try:
            self._actor.note.remote(self._node, self._part, counters)
        except Exception as error:  # whatever Ray says: a part must not fail because nobody can see it
            log.warning("event=live_report_lost part=%s error=%r", self._part, error)
            self._actor = None
