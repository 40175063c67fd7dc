"""Decoding clips inside the child: nobody's clip takes the memory or the time of the others.

A clip ends by its own budget (`x2vlm.data.media.clips.budget`) wherever Python is reached. For one call of a decoder
that does not return there is a watch: it writes down a result for the clip and ends the process, whose parent runs the
others in a new one.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.s1_download.child.protocol import Item
from pipelines.s1_download.config import DownloadConfig
from x2vlm.data.media.video import SampledClip, sample_clip
from x2vlm.errors import InvalidSample

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Running:
    """A clip in a thread: the clock of the thread's CPU time, and what it showed at the beginning."""

    item: Item
    clock: int
    began: float
    allowed: float  # CPU seconds


class ClipDecoder:
    """Decodes clips for several threads."""

    def __init__(self, config: DownloadConfig, give_up: Callable[[Item, str], None]) -> None:
        """`give_up` is called, with a reason, for an item whose decoding does not come back; it ends the process."""
        self._config, self._give_up = config, give_up
        self._limits = config.clip_limits()
        self._running: dict[int, _Running] = {}
        self._turn = threading.Condition()
        self._num_decoding = 0
        self._is_alone = False
        self._watch: threading.Thread | None = None

    def decode(self, item: Item, body: bytes) -> SampledClip:
        """The frames of `item`; InvalidSample as of `sample_clip`. One that lacks memory is tried again alone."""
        try:
            with self._taking_turns(alone=False):
                return self._decode(item, body)
        except InvalidSample as error:
            if error.rule != "out_of_memory":
                raise
        with self._taking_turns(alone=True):
            return self._decode(item, body)

    def _decode(self, item: Item, body: bytes) -> SampledClip:
        config, thread = self._config, threading.get_ident()
        clock = time.pthread_getcpuclockid(thread)
        end = self._limits.max_seconds if item.end_seconds is None else item.end_seconds
        allowed = self._limits.max_cpu_seconds * self._limits.share(end - (item.start_seconds or 0.0))
        allowed += config.clip_grace_seconds
        self._running[thread] = _Running(item, clock, time.clock_gettime(clock), allowed)
        self._start_watch()
        try:
            return sample_clip(
                body,
                config.frames_per_second,
                item.start_seconds,
                item.end_seconds,
                config.max_frame_short_edge,
                self._limits,
            )
        finally:
            del self._running[thread]

    @contextmanager
    def _taking_turns(self, alone: bool) -> Iterator[None]:
        """Several decode at a time, or one alone: memory is what they share."""
        with self._turn:
            self._turn.wait_for(lambda: not self._is_alone and not (alone and self._num_decoding))
            self._num_decoding += 1
            self._is_alone = alone
        try:
            yield
        finally:
            with self._turn:
                self._num_decoding -= 1
                self._is_alone = False
                self._turn.notify_all()

    def _start_watch(self) -> None:
        with self._turn:
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="clip-watch", daemon=True)
                self._watch.start()

    def _look(self) -> None:
        while True:
            time.sleep(min(LOOK_SECONDS, self._config.clip_grace_seconds / 4))
            for thread, running in list(self._running.items()):
                try:
                    used = time.clock_gettime(running.clock) - running.began
                except OSError:  # the thread ended since
                    continue
                if used > running.allowed and self._running.get(thread) is running:
                    self._give_up(running.item, f"its decoder did not come back within {used:.0f} CPU seconds")
