"""The cost of loading a sample in CPU seconds: our loader against three others.

    python -m tests.benchmarks.loader [--pictures 1000] [--batches 12] [--rounds 5] [--readers 2]

Image-text batches of 64, 224 pixels, interleaved A-B-C-D-A-B-C-D; medians. Two corpora of the same real photos: 256
pixels on the short edge (what `pack` writes for training at scale) and 500 on the long one. Our batches stay bytes
until the device: `normalising` is that last part on one CPU core, which a GPU would do.

With --readers the work is done in that many DataLoader processes; their CPU time is counted without their start (as the
difference of many and few batches).
"""

import argparse
import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch

from tests.benchmarks.loader_corpus import Corpus, write_corpus
from tests.benchmarks.loader_sides import RES, mapped_batches, reference_batches, webdataset_batches
from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.examples import Recipe
from x2vlm.data.loading.loader import StepLoader, iterate_steps
from x2vlm.data.loading.streams import StreamConfig
from x2vlm.data.text.tokenizer import load_tokenizer

BATCH_SIZE = 64
NUM_FIRST = 4
SIZES = {"256 px short edge": {"short_edge": 256}, "500 px long edge": {"long_edge": 500}}


@dataclass(frozen=True)
class Costs:
    """Milliseconds of CPU per sample, medians. `reference` collates float32 already; the others collate bytes."""

    ours: float
    normalising: float
    reference: float
    webdataset: float
    mapped: float

    @property
    def all_of_ours(self) -> float:
        return self.ours + self.normalising


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def our_batches(corpus: Corpus, num_workers: int, num_batches: int) -> Iterator[Any]:
    stream = StreamConfig(kind="image", batch_size=BATCH_SIZE)
    loader = StepLoader(corpus.shards, DataConfig(streams=(stream,)), load_tokenizer(corpus.vocabulary), RES, 16)
    return (data.batches["image"] for data in iterate_steps(loader, 0, num_batches, num_workers))


def sides(corpus: Corpus, num_workers: int) -> dict[str, Callable[[int], Iterator[Any]]]:
    """Each loader as a function of the number of batches."""
    config = DataConfig()
    recipe = Recipe(config.examples, load_tokenizer(corpus.vocabulary), RES, 16, config.seed)
    tars = [files.media for files in corpus.shards]

    def started(batches: Callable[[], Iterator[Any]]) -> Callable[[int], Iterator[Any]]:
        return lambda number: islice(batches(), number)

    return {
        "ours": lambda number: our_batches(corpus, num_workers, number),
        "reference": started(lambda: reference_batches(corpus.lines, corpus.vocabulary, BATCH_SIZE, num_workers)),
        "webdataset": started(lambda: webdataset_batches(tars, recipe, BATCH_SIZE, num_workers)),
        "mapped": started(lambda: mapped_batches(corpus.folder, recipe, BATCH_SIZE, num_workers)),
    }


def measure(corpus: Corpus, num_batches: int, rounds: int, num_workers: int = 0) -> Costs:
    """The costs of all sides, interleaved; the first batches, with start-up costs, do not count."""
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, batches in sides(corpus, num_workers).items():
            cost = _cost_in_processes if num_workers else _cost
            spent.setdefault(name, []).append(cost(batches, num_batches) / num_batches / BATCH_SIZE * 1e3)
        spent.setdefault("normalising", []).append(_normalising(corpus))
    return Costs(**{name: statistics.median(costs) for name, costs in spent.items()})


def _cost(batches: Callable[[int], Iterator[Any]], number: int) -> float:
    iterator = batches(number + NUM_FIRST)
    for _ in range(NUM_FIRST):
        next(iterator)
    before = time.process_time()
    for _ in range(number):
        next(iterator)
    return time.process_time() - before


def _cost_in_processes(batches: Callable[[int], Iterator[Any]], number: int) -> float:
    """Processes are counted when they have ended, so the cost of few batches is subtracted from that of more."""
    costs = []
    for wanted in (NUM_FIRST, NUM_FIRST + number):
        before = cpu_seconds()
        iterator = batches(wanted)
        for _ in range(wanted):
            next(iterator)
        del iterator
        gc.collect()  # joins them
        costs.append(cpu_seconds() - before)
    return costs[1] - costs[0]


def _normalising(corpus: Corpus) -> float:
    (batch,) = our_batches(corpus, 0, 1)
    before = time.process_time()
    for _ in range(5):
        batch.float_pixels()
    return (time.process_time() - before) / 5 / BATCH_SIZE * 1e3


def describe(name: str, corpus: Corpus, costs: Costs) -> str:
    """A table of one corpus."""
    ours, whole = costs.ours, costs.all_of_ours
    lines = [f"{name}, {corpus.mean_bytes / 1e3:.0f} KB an image, CPU ms a sample", f"  {'ours':38}{ours:7.3f}"]
    lines.append(f"  {'ours and normalising':38}{whole:7.3f}")
    for side, label in (
        ("reference", "JSON lines, reference data set"),
        ("webdataset", "webdataset, our transforms"),
        ("mapped", "files, map-style, our transforms"),
    ):
        cost = getattr(costs, side)
        beside = whole if side == "reference" else ours
        lines.append(f"  {label:38}{cost:7.3f}  {cost / ours:5.2f} x ours{cost / beside:7.2f} x like with like")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--readers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="x2vlm-loader-") as folder:
            corpus = write_corpus(Path(folder), options.images, **size)
            print(describe(name, corpus, measure(corpus, options.batches, options.rounds, options.readers)), flush=True)


if __name__ == "__main__":
    main()
