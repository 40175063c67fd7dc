"""CPU seconds and FLOPs of a training step, against the reference's graph in the same process.

    python -m tests.benchmarks.training_step            every switch, real lengths; then 40 tokens everywhere
    python -m tests.benchmarks.training_step --rounds 7

Implementations alternate, round after round, on one thread: the reference's graph, our step, our step with one switch
turned off, with all off, and the reference's graph once more. Every figure is the median of the rounds in CPU seconds
of this process; complete optimizer steps on both sides (`training_sides`). Where the two medians of the reference's
graph are more than 5 % apart the machine was too noisy and the result is "inconclusive", neither pass nor fail.

The model is small (width 256, 4 image, 4 text and 2 fusion layers) but its images are not (197 tokens); float32,
dropout on. GPUs are measured by `tests.benchmarks.gpu`, not here.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tests.benchmarks.step_flops import executions, our_flops, reference_flops
from tests.benchmarks.step_inputs import (
    SMALL,
    SMALL_MODEL,
    StreamShape,
    all_longest,
    graph_inputs,
    histogram,
    make_batches,
)
from tests.benchmarks.training_sides import OurSide, ReferenceSide
from x2vlm.models.x2vlm import build_model

REFERENCE, REFERENCE_AGAIN, OURS = "reference graph", "reference graph again", "ours"
MOST_NOISE = 0.05


@dataclass(frozen=True)
class Measured:
    """CPU seconds per step of every implementation, round by round, and FLOPs per step of each."""

    seconds: Mapping[str, Sequence[float]]
    flops: Mapping[str, int]
    lengths: str

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    @property
    def noise(self) -> float:
        """The relative difference of the two medians of the reference's graph."""
        return abs(self.median(REFERENCE) / self.median(REFERENCE_AGAIN) - 1)

    @property
    def is_conclusive(self) -> bool:
        return self.noise <= MOST_NOISE

    @property
    def speedup(self) -> float:
        """CPU seconds of the reference's graph (all rounds of both turns) over ours."""
        both = [*self.seconds[REFERENCE], *self.seconds[REFERENCE_AGAIN]]
        return statistics.median(both) / self.median(OURS)


def measure(streams: Sequence[StreamShape], rounds: int, with_switches: bool) -> Measured:
    """Complete optimizer steps, interleaved on one thread; the first round is warm-up and not counted."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = make_batches(streams, SMALL_MODEL)
    inputs = {name: graph_inputs(batch) for name, batch in batches.items()}
    start = build_model(SMALL_MODEL).train()
    reference = ReferenceSide(start)
    steps: dict[str, Callable[[], object]] = {REFERENCE: lambda: reference.step(inputs)}
    ours = executions() if with_switches else {OURS: executions()[OURS]}
    shared = OurSide(start).optimizer  # one model and optimizer for all of ours: seven would take 4 GB
    for name, execution in ours.items():
        side = OurSide(start, execution, optimizer=shared)
        steps[name] = lambda side=side: side.step(batches)
    steps[REFERENCE_AGAIN] = lambda: reference.step(inputs)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            before = time.process_time()
            step()
            if number:
                seconds[name].append(time.process_time() - before)
    counted = reference_flops(SMALL_MODEL, streams)
    flops = {REFERENCE: counted, REFERENCE_AGAIN: counted}
    flops |= {name: our_flops(SMALL_MODEL, streams, execution) for name, execution in ours.items()}
    return Measured(seconds, flops, histogram(streams))


def describe(title: str, found: Measured) -> str:
    """A table of one measurement."""
    lines = [
        f"{title}",
        f"  tokens with [CLS] and [SEP]: {found.lengths}",
        f"  {'':34} {'CPU s':>8} {'least':>8} {'most':>8} {'speed-up':>9} {'GFLOP':>9} {'fewer':>6}",
    ]
    for name in found.seconds:
        values = found.seconds[name]
        speedup = found.median(REFERENCE) / found.median(name)
        fewer = found.flops[REFERENCE] / found.flops[name]
        lines.append(
            f"  {name:34} {found.median(name):8.3f} {min(values):8.3f} {max(values):8.3f} {speedup:8.2f}x "
            f"{found.flops[name] / 1e9:9.2f} {fewer:5.2f}x"
        )
    verdict = "" if found.is_conclusive else f"; INCONCLUSIVE, the bar is {MOST_NOISE:.0%}"
    lines.append(f"  speed-up over both turns of the reference: {found.speedup:.2f}x; noise {found.noise:.1%}{verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, float32")
    found = measure(SMALL, options.rounds, with_switches=True)
    print(describe("16 images and 16 regions of 6 images, real lengths", found), flush=True)
    print(describe("the same, 40 tokens everywhere", measure(all_longest(SMALL), options.rounds, with_switches=False)))


if __name__ == "__main__":
    main()
