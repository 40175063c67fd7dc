"""Series of numbers, one line of JSON per step, as curves of metrics."""

import json
import math
import re
from collections.abc import Mapping

from pipelines.flow.lineage.run_fields import metric_name

# Of the first so many steps every one is shown, of ten times as many every tenth, and so on: each curve gains at most
# 1,800 points with each further digit of the step. A run of 2,600,000 steps has 7,460 points a curve, one of
# 100,000,000 steps 10,000.
NUM_FULL_STEPS = 2_000
# Metrics that only few steps have: all of them are shown.
_RARE = re.compile(r"^valid/|^(skipped|loss_spike|save_wait_seconds)$")

_RARE_IN_LINE = re.compile(r'"(valid/|(skipped|loss_spike|save_wait_seconds)")')
_STEP = re.compile(r'"step": ?(\d+)[,}]')

# Times, speeds and memory: two runs with equal results differ in them.
_TIMING = re.compile(r"(^|_)(seconds|per_second|percent|bytes)$|^(flops|mfu)_|^slowest_rank$")


def is_timing(metric: str) -> bool:
    """Whether a metric says how fast something was, not what came out."""
    return _TIMING.search(metric) is not None


def series_points(text: str) -> dict[str, dict[int, float]]:
    """Metric -> step -> value of what MLflow shows of JSON lines.

    A step written twice (a resumed training) counts once: the last wins.
    """
    points: dict[str, dict[int, float]] = {}
    for line in text.splitlines():
        # Looking at a line costs a tenth of reading it, and of a long series few lines are shown.
        step_there = _STEP.search(line)
        if step_there is not None and not _is_shown(int(step_there[1])) and not _RARE_IN_LINE.search(line):
            continue
        step, numbers = step_numbers(line)
        for key, value in shown_numbers(step, numbers).items():
            points.setdefault(key, {})[step] = value
    return points


def shown_numbers(step: int, numbers: dict[str, float]) -> dict[str, float]:
    """What MLflow gets of a step: all numbers of a step that is shown, of others only those that few steps have."""
    return numbers if _is_shown(step) else {key: value for key, value in numbers.items() if _RARE.search(key)}


def thinned(points: Mapping[str, Mapping[int, float]]) -> str:
    """What to say of curves that have a part of their series, by the largest step; "" if all of it is shown."""
    last = max((step for series in points.values() for step in series), default=0)
    if last < NUM_FULL_STEPS:
        return ""
    most = max(map(len, points.values()))
    return f"steps up to {last}, at most {most} points a curve; all steps are in the artifact's series"


def _is_shown(step: int) -> bool:
    every = 1
    while step >= NUM_FULL_STEPS * every:
        every *= 10
    return step % every == 0


def step_numbers(line: str) -> tuple[int, dict[str, float]]:
    """The step of one line of a series, and metric -> value of whatever in it is a finite number.

    ValueError if it is not JSON, KeyError if it has no step.
    """
    row = json.loads(line)
    step = int(row.pop("step"))
    numbers = {
        metric_name(key): float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return step, numbers
