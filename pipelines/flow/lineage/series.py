"""Series of numbers, one line of JSON per step, as curves of metrics."""

import json
import math
import re

from pipelines.flow.lineage.run_fields import metric_name

# Times, speeds and memory: two runs with equal results differ in them.
_TIMING = re.compile(r"(^|_)(seconds|per_second|percent|bytes)$|^(flops|mfu)_|^slowest_rank$")


def is_timing(metric: str) -> bool:
    """Whether a metric says how fast something was, not what came out."""
    return _TIMING.search(metric) is not None


def series_points(text: str) -> dict[str, dict[int, float]]:
    """Metric -> step -> value from JSON lines. A step written twice (a resumed training) counts once: the last wins."""
    points: dict[str, dict[int, float]] = {}
    for line in text.splitlines():
        step, numbers = step_numbers(line)
        for key, value in numbers.items():
            points.setdefault(key, {})[step] = value
    return points


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
