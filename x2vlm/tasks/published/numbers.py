"""Published numbers of downstream tasks, and how big the splits are that they were measured on.

They are data (`numbers.yaml`): nothing here was measured by this project. Of most we know a second-hand source only,
so each says where it comes from.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from x2vlm.config import FrozenConfig, did_you_mean, parse_config, read_yaml

Origin = Literal["X", "S", "F", "M", "R"]
# In the words of a table's column.
SOURCES: Mapping[Origin, str] = {
    "X": "X-VLM's README",
    "S": "leaderboard pages",
    "F": "figure of X2-VLM's README, about",
    "M": "recalled, unverified",
    "R": "the benchmark's README",
}
FILE = Path(__file__).with_name("numbers.yaml")


class ModelNumbers(FrozenConfig):
    """What was published of one model on one split."""

    split: str
    model: str
    origin: Origin
    metrics: dict[str, float] = pydantic.Field(min_length=1)


class Benchmark(FrozenConfig):
    """One benchmark: its task here, sizes of its splits, and the published numbers.

    `sizes`: numbers of examples that mean the whole split; several where conventions differ. `cards`: further cards
    below datasets/ with its data, besides `downstream/<name>`. `zero_shot`: the published models were not fine-tuned.
    """

    title: str
    task: str
    cards: tuple[str, ...] = ()
    zero_shot: bool = False
    sizes: dict[str, tuple[int, ...]]
    numbers: tuple[ModelNumbers, ...]
    approximate_sizes: bool = False

    @pydantic.model_validator(mode="after")
    def _numbers_are_of_known_splits(self) -> "Benchmark":
        if unknown := sorted({row.split for row in self.numbers} - set(self.sizes)):
            raise ValueError(f"numbers of split {unknown[0]}, of which `sizes` says nothing")
        return self

    def is_whole(self, split: str, num_examples: int) -> bool:
        """Whether so many examples are the split; within 1 % where only an approximate size is known."""
        slack = 0.01 if self.approximate_sizes else 0.0
        return any(abs(num_examples - size) <= slack * size for size in self.sizes.get(split, ()))


@dataclass(frozen=True)
class PublishedNumber:
    """One value, in percent unless the metric's name says otherwise; `source` in plain words."""

    benchmark: str
    split: str
    metric: str
    model: str
    value: float
    origin: Origin

    @property
    def source(self) -> str:
        """Where it comes from."""
        return SOURCES[self.origin]


class _Benchmarks(FrozenConfig):
    benchmarks: dict[str, Benchmark]


@functools.cache
def benchmarks() -> Mapping[str, Benchmark]:
    """Every benchmark by name."""
    return parse_config(_Benchmarks, {"benchmarks": read_yaml(FILE)}, FILE.name).benchmarks


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; ValueError, with the nearest known name, if there is none."""
    known = benchmarks()
    if name not in known:
        raise ValueError(f"no benchmark is called {name!r}; {did_you_mean(name, known)}")
    return known[name]


def benchmark_of(card: str, task: str) -> str | None:
    """The benchmark whose data the card describes, for that task; None if the card is of no published benchmark."""
    for name, one in benchmarks().items():
        if one.task == task and card in (f"downstream/{name}", *one.cards):
            return name
    return None


def published(name: str, split: str | None = None, metric: str | None = None) -> tuple[PublishedNumber, ...]:
    """What was published on a benchmark, in the order of the file: of one split or all, one metric or all.

    Empty where nothing is known of them; ValueError for an unknown benchmark.
    """
    return tuple(
        PublishedNumber(name, row.split, key, row.model, value, row.origin)
        for row in benchmark(name).numbers
        for key, value in row.metrics.items()
        if split in (None, row.split) and metric in (None, key)
    )
