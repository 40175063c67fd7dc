"""Our numbers beside published ones: what was measured, on what, and whether the two may be compared.

A difference is only given where both are about the same thing: the benchmark's own data, all examples of the split, and
a fine-tuned model against fine-tuned ones. Everything else is shown with the reason why there is no difference.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from x2vlm.errors import CorruptArtifact
from x2vlm.tasks.published import PublishedNumber, benchmark, benchmark_of, published

Result = Mapping[str, Any]  # what a `result.json` holds
NOT_TUNED = "not comparable: evaluated as pre-trained, the published models are fine-tuned"


@dataclass(frozen=True)
class Row:
    """One of our numbers, and one published number of the same metric if there is any.

    `ours` is None where a test server scores the split. `interval`: the 95 % bootstrap interval of `ours`.
    `difference` is ours minus theirs, None unless the two are comparable. `notes` say under which conventions `ours`
    was measured, and what stands against comparing.
    """

    evaluation: str
    benchmark: str
    split: str
    metric: str
    ours: float | None
    interval: tuple[float, float] | None = None
    published: PublishedNumber | None = None
    difference: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows by evaluation, metric and published model, in that order."""

    rows: tuple[Row, ...] = field(default_factory=tuple)


def comparison_table(results: Mapping[str, Result], models: Collection[str] | None = None) -> Table:
    """The table of the `result.json` contents in `results`, by the name of the evaluation.

    `models` names the published models to compare with; None: all. A result says in `card` and `card_split` of which
    card and split of it its data are, in `split` what the experiment calls that split, and in `selection` which epoch
    of a fine-tuning was kept; without them it is about own data, or about the model as pre-trained. CorruptArtifact,
    naming the evaluation, for a result without metrics.
    """
    digests = _digests(results)
    return Table(
        tuple(row for name, result in results.items() for row in _rows(name, result, models, digests.get(name, ())))
    )


def card_of(result: Result) -> str:
    """The card of the data below datasets/, such as "downstream/nlvr2"; "" for own data."""
    return str(result.get("card") or "")


def split_of(result: Result) -> str:
    """The split that was measured, as its card calls it."""
    return str(result.get("card_split") or result.get("split") or "")


def _rows(name: str, result: Result, models: Collection[str] | None, others: Sequence[str]) -> list[Row]:
    metrics = result.get("metrics")
    if not isinstance(metrics, Mapping):
        raise CorruptArtifact(f"the result of {name} holds no `metrics`; evaluate it again with --force")
    task, split = str(result.get("task", "")), split_of(result)
    found = benchmark_of(card_of(result), task)
    obstacles = _obstacles(found, split, result) if found else ()
    notes = (*obstacles, *_conditions(result), *(f"other examples than {other}" for other in others))
    if not metrics:
        files = ", ".join(_submissions(result)) or "none"
        return [Row(name, found or "", split, "-", None, notes=(f"for the test server: {files}", *notes))]
    rows = []
    for metric in _shown(metrics, found, split, result):
        value = float(metrics[metric])
        theirs: list[PublishedNumber | None] = [
            number
            for number in (published(found, split, metric) if found else ())
            if models is None or number.model in models
        ]
        interval = result.get("interval_95", {}).get(metric)
        bounds = None if interval is None else (float(interval[0]), float(interval[1]))
        for number in theirs or [None]:
            comparable = number is not None and not obstacles and math.isfinite(value)
            difference = value - number.value if comparable and number is not None else None
            rows.append(Row(name, found or "", split, metric, value, bounds, number, difference, notes))
    return rows


def _shown(metrics: Mapping[str, Any], found: str | None, split: str, result: Result) -> list[str]:
    """The headline, what has an interval, and what is published; in the order in which the task gives them."""
    wanted = {result.get("headline"), *result.get("interval_95", {})}
    wanted |= {number.metric for number in (published(found, split) if found else ())}
    return [metric for metric in metrics if metric in wanted] or list(metrics)


def _obstacles(name: str, split: str, result: Result) -> tuple[str, ...]:
    """Why a number may not be held against published ones of the benchmark."""
    one, asked = benchmark(name), int(result.get("num_examples", 0))
    found = []
    if split not in one.sizes:
        found.append(f"not comparable: nothing is published on split {split!r}")
    elif not one.is_whole(split, asked):
        sizes = " or ".join(f"{size:,}" for size in one.sizes[split])
        found.append(f"not comparable: {asked:,} examples, the split has {sizes}")
    if not one.zero_shot and not result.get("selection"):
        found.append(NOT_TUNED)
    return tuple(found)


def _conditions(result: Result) -> tuple[str, ...]:
    """What a reader must know beside the number: conventions, choice of the epoch, test images in training."""
    notes = [f"{name}: {value}" for name, value in sorted(result.get("measured_as", {}).items())]
    selection = result.get("selection")
    if isinstance(selection, Mapping):
        notes.append(f"weights: {selection['label']}")
    return (*notes, *_leaks(result))


def _leaks(result: Result) -> list[str]:
    contamination = result.get("contamination") or {}
    counted = [
        numbers
        for splits in contamination.get("sets", {}).values()
        for numbers in (splits or {}).values()
        if isinstance(numbers, Mapping) and numbers.get("still_in_training")
    ]
    return [f"{one['still_in_training']} of {one['pictures']} test images are in the training set" for one in counted]


def _submissions(result: Result) -> list[str]:
    files = result.get("submission") or ()
    return [str(name) for name in files]


def _digests(results: Mapping[str, Result]) -> dict[str, list[str]]:
    """For each evaluation the earlier ones of the same card, task and split that asked other questions."""
    seen: dict[tuple[str, str, str], list[tuple[str, Any]]] = {}
    found = {}
    for name, result in results.items():
        key = (card_of(result), str(result.get("task", "")), split_of(result))
        earlier = seen.setdefault(key, [])
        digest = result.get("data_digest")
        if key[0]:
            found[name] = [other for other, theirs in earlier if theirs != digest]
        earlier.append((name, digest))
    return found
