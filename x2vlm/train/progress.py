"""Metrics of a run: one line per step, assembled when the step's values arrive from the device.

Every process takes part, because replaced samples and the keys of skipped steps are gathered from all; all see the same
values, so all make the same decision.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from x2vlm.data.loading.loader import StepData, substitutes_to_json
from x2vlm.errors import X2VLMError
from x2vlm.train.ranks import Ranks, gather_json
from x2vlm.train.recording.spikes import LossLevel
from x2vlm.train.step import PendingNumbers, Trainer
from x2vlm.train.throughput import peak_flops, peak_memory_bytes, speeds

log = logging.getLogger(__name__)

# Metrics that differ between runs with identical results.
_UNITS, _GRAPHS = ("texts", "images", "tokens"), ("executed", "reference")
CLOCK_NAMES = frozenset(
    [
        *("seconds", "data_wait_percent", "peak_memory_bytes", "save_wait_seconds"),
        *("data_wait_max_percent", "busy_mean_seconds", "busy_max_seconds", "slowest_rank"),
        *(f"{unit}_per_second" for unit in _UNITS),
        *(f"{use}_{graph}" for use in ("flops", "mfu") for graph in _GRAPHS),
    ]
)


NONFINITE_REMEDY = (
    "A lower optimizer.lr, precision float32 or other data make another run, which would begin at step 0: branch off "
    "instead. Write `start: {run: <this run's state folder>, step: <one of its checkpoints before the trouble>}` "
    "beside the change in `pretrain`, and it goes on from there. To allow more of these steps, raise "
    "`train_runtime.max_skipped_steps`: the same command then goes on from the newest checkpoint."
)


def rank_times(ranks: Ranks, data_wait: float, busy: float) -> dict[str, float]:
    """Seconds this process waited for data, and was busy in the previous step, as host numbers of a step.

    Every rank has names of its own and 0 for those of the others, so the mean over the ranks holds all of them. Empty
    for a single process.
    """
    if ranks.world_size == 1:
        return {}
    own = {"wait": data_wait, "busy": busy}
    return {
        f"{kind}@{rank}": seconds if rank == ranks.rank else 0.0
        for kind, seconds in own.items()
        for rank in range(ranks.world_size)
    }


@dataclass(frozen=True)
class _Queued:
    """A step whose values are still in transfer, and its samples for messages."""

    step: int
    numbers: PendingNumbers
    keys: dict[str, list[str]]
    substitutes: list[dict[str, Any]]


class Progress:
    """Queues steps and turns their values into lines, in order."""

    def __init__(self, trainer: Trainer, skipped_in_a_row: int = 0, level: LossLevel | None = None) -> None:
        self._trainer = trainer
        self.level = level or LossLevel(None)
        self._queue: deque[_Queued] = deque()
        self._peak = peak_flops(trainer.ranks.device)
        self._last_arrival = time.perf_counter()
        self.skipped_in_a_row = skipped_in_a_row
        self.asks_stop = False  # some process was signalled
        self.asks_save = False

    def add(self, data: StepData, numbers: PendingNumbers) -> None:
        """The step of `data` has been queued on the device."""
        keys = {name: batch.keys for name, batch in data.batches.items()}
        self._queue.append(_Queued(data.step, numbers, keys, substitutes_to_json(data.substitutes)))

    def read(self, keep: int = 0) -> list[dict[str, Any]]:
        """The lines of all queued steps but the last `keep`; waits for the device to finish these.

        X2VLMError if a step had non-finite losses or gradients and the run stops at those, or has skipped too many in
        a row; also if processes ran different graphs.
        """
        lines = []
        while len(self._queue) > keep:
            lines.append(self._line(self._queue.popleft()))
        return lines

    def _line(self, item: _Queued) -> dict[str, Any]:
        numbers = item.numbers.read()
        now = time.perf_counter()
        seconds, self._last_arrival = max(now - self._last_arrival, 1e-9), now
        self.asks_stop |= numbers["asks_stop"] > 0
        self.asks_save |= numbers["asks_save"] > 0
        trainer = self._trainer
        if numbers["parameters"] != item.numbers.num_parameters:
            raise X2VLMError(
                f"step {item.step}: {item.numbers.num_parameters} parameters have a gradient on rank "
                f"{trainer.ranks.rank}, {numbers['parameters']} in the mean over the ranks. The processes ran "
                "different graphs and their weights now differ; this is a bug, please report it. Go on from the last "
                "checkpoint"
            )
        losses = {name: value for name, value in numbers.items() if "/" in name}
        total = sum(trainer.streams[name.rsplit("/", 1)[0]][0] * value for name, value in losses.items())
        shown = {"loss": total, **losses, "grad_norm": numbers["grad_norm"]}
        return {
            "step": item.step,
            **{name: value for name, value in shown.items() if math.isfinite(value)},
            "lr": trainer.config.optimizer.lr * trainer.lr_factor_at(item.step),
            "temperature": numbers["temperature"],
            "world_size": trainer.ranks.world_size,
            "seconds": round(seconds, 4),
            "data_wait_percent": round(100 * numbers["data_wait"] / seconds, 2),
            "peak_memory_bytes": peak_memory_bytes(trainer.ranks.device),
            **speeds(numbers, seconds, trainer.ranks.world_size, self._peak),
            **_slowest(numbers, seconds, trainer.ranks.world_size),
            **self._substitutes(item, numbers["replaced"]),
            **self._skipped(item, shown, bool(numbers["finite"])),
            **self._spike(item, total),
        }

    def _substitutes(self, item: _Queued, mean_replaced: float) -> dict[str, Any]:
        """The replaced samples of all ranks in this step, each once; empty if there are none."""
        if mean_replaced == 0:
            return {}
        everything = gather_json(item.substitutes, self._trainer.ranks)
        unique = {tuple(sorted(found.items())): found for found in everything}
        return {"substitutes": list(unique.values())}

    def _skipped(self, item: _Queued, shown: Mapping[str, float], is_finite: bool) -> dict[str, Any]:
        """The entry of a skipped step with its non-finite values and its samples; empty if it was not skipped."""
        if is_finite:
            self.skipped_in_a_row = 0
            return {}
        self.skipped_in_a_row += 1
        runtime = self._trainer.runtime
        bad = {name: str(value) for name, value in shown.items() if not math.isfinite(value)}
        keys = self._keys(item)
        problem = ", ".join(f"{name} is {value}" for name, value in bad.items())
        if runtime.on_nonfinite == "stop" or self.skipped_in_a_row > runtime.max_skipped_steps:
            allowed = 0 if runtime.on_nonfinite == "stop" else runtime.max_skipped_steps
            raise X2VLMError(
                f"step {item.step}: {problem}; {self.skipped_in_a_row} such steps in a row, the run allows {allowed}. "
                f"No weight was moved by them. {NONFINITE_REMEDY} Samples of the step: {keys}"
            )
        if self._trainer.ranks.is_first:
            log.warning("step_skipped step=%d numbers=%s keys=%s", item.step, bad, keys)
        return {"skipped": 1, "not_finite": bad, "keys": keys}

    def _spike(self, item: _Queued, loss: float) -> dict[str, Any]:
        """The entry of a step whose loss is a spike, with its samples; empty for others."""
        excess = self.level.add(loss)
        if excess is None:
            return {}
        keys = self._keys(item)
        if self._trainer.ranks.is_first:
            log.warning("loss_spike step=%d loss=%.4f deviations=%.1f keys=%s", item.step, loss, excess, keys)
        return {"loss_spike": round(excess, 2), "keys": keys}

    def _keys(self, item: _Queued) -> dict[str, list[str]]:
        """The samples of a step over all ranks, by stream, each once. All ranks must call it."""
        keys: dict[str, list[str]] = {}
        for of_rank in gather_json([item.keys], self._trainer.ranks):
            for stream, some in of_rank.items():
                keys[stream] = sorted({*keys.get(stream, []), *some})
        return keys


def _slowest(means: Mapping[str, float], seconds: float, world_size: int) -> dict[str, float]:
    """The longest data wait and the busiest rank of a step, from `rank_times`; empty for a single process.

    Busy is CPU time of the training thread, which does not count waiting for other ranks; on a GPU it is the time for
    queueing work there. `slowest_rank` has the largest sum of both.
    """
    if "wait@0" not in means:
        return {}
    waits, busy = ([world_size * means[f"{kind}@{rank}"] for rank in range(world_size)] for kind in ("wait", "busy"))
    sums = [sum(pair) for pair in zip(waits, busy, strict=True)]
    return {
        "data_wait_max_percent": round(100 * max(waits) / seconds, 2),
        "busy_mean_seconds": round(sum(busy) / world_size, 4),
        "busy_max_seconds": round(max(busy), 4),
        "slowest_rank": sums.index(max(sums)),
    }


def console_line(line: Mapping[str, Any], num_steps: int, seconds_left: float | None = None) -> str:
    """One line of the console: the most important metrics of a step, and when the run will be done."""
    parts = [f"step={line['step'] + 1}/{num_steps}", f"loss={line.get('loss', math.nan):.4f}"]
    parts += [f"grad_norm={line.get('grad_norm', math.nan):.3f}", f"lr={line['lr']:.3g}"]
    parts += [f"ms={1000 * line['seconds']:.0f}", f"texts/s={line['texts_per_second']:,.0f}"]
    parts += [f"images/s={line['images_per_second']:,.0f}", f"tokens/s={line['tokens_per_second']:,.0f}"]
    for graph in ("executed", "reference"):
        if f"mfu_{graph}" in line:
            parts.append(f"mfu_{graph}={100 * line[f'mfu_{graph}']:.1f}%")
        else:
            parts.append(f"tflops_{graph}={line[f'flops_{graph}'] / 1e12:.3g}")
    parts += [f"data_wait={line['data_wait_percent']:.1f}%", f"peak_gb={line['peak_memory_bytes'] / 1e9:.1f}"]
    if "slowest_rank" in line:
        parts.append(f"data_wait_max={line['data_wait_max_percent']:.1f}%")
        parts.append(f"busy_ms={1000 * line['busy_mean_seconds']:.0f}/{1000 * line['busy_max_seconds']:.0f}max")
        parts.append(f"slowest_rank={line['slowest_rank']}")
    if seconds_left is not None:
        parts.append(f"eta={timedelta(seconds=round(seconds_left))}".replace(" days, ", "d").replace(" day, ", "d"))
    return " ".join(parts)
