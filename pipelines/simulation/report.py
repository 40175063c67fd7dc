"""What a simulation found, as text and as JSON: each figure is said to be measured, fitted or extrapolated."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.simulation.growth import Growth, fitted
from pipelines.simulation.measure import Measurement, NodeCost

WRITES, READS = ("PUT", "LIST"), ("GET", "HEAD")  # as stores bill them; deleting is free


@dataclass(frozen=True)
class Prices:
    """Dollars a million requests."""

    writes: float
    reads: float

    def of(self, requests: Mapping[str, float]) -> float:
        writes, reads = (sum(requests.get(kind, 0) for kind in kinds) for kinds in (WRITES, READS))
        return (writes * self.writes + reads * self.reads) / 1e6


# CPU seconds that a clock of this resolution and its neighbours on the machine make of nothing.
NOISE = {"planning": 0.2, "driving": 0.2, "finishing": 0.2}
COSTS: Mapping[str, Callable[[NodeCost], float]] = {
    "parts": lambda node: node.parts,
    "planning": lambda node: node.planning,
    "driving": lambda node: node.driving,
    "finishing": lambda node: node.finishing,
    "peak_bytes": lambda node: node.peak_bytes,
    "manifest_bytes": lambda node: node.manifest_bytes,
    "output_bytes": lambda node: node.output_bytes,
    **{kind: (lambda node, kind=kind: _requests(node)[kind]) for kind in ("GET", "PUT", "LIST", "HEAD")},  # type: ignore[misc]
}


@dataclass(frozen=True)
class Extrapolated:
    """What a node, or a rerun, comes to at `parts`, by cost; and how each cost grows."""

    node: str
    costs: Mapping[str, float]
    growth: Mapping[str, Growth]


def extrapolate(found: Sequence[Measurement], parts: int) -> list[Extrapolated]:
    """Every node at so many parts."""
    sizes, made = [one.parts for one in found], []
    for number, node in enumerate(found[0].nodes):
        growth = {
            name: fitted(sizes, [cost(one.nodes[number]) for one in found], NOISE.get(name, 0.0))
            for name, cost in COSTS.items()
        }
        growth["peak_bytes"] = fitted(sizes, [one.nodes[number].peak_bytes - one.start_bytes for one in found])
        costs = {name: one.at(parts) for name, one in growth.items()}
        costs["peak_bytes"] += found[-1].start_bytes
        made.append(Extrapolated(node.node, costs, growth))
    return made


def rerun_growth(found: Sequence[Measurement]) -> Mapping[str, Growth]:
    """How a plan that finds everything finished grows."""
    sizes = [one.parts for one in found]
    return {
        "seconds": fitted(sizes, [one.rerun_seconds for one in found]),
        "peak_bytes": fitted(sizes, [one.rerun_peak_bytes - one.rerun_start_bytes for one in found]),
        "requests": fitted(sizes, [sum(one.rerun_requests.values()) for one in found]),
    }


def progress(one: Measurement) -> str:
    """A line for whoever waits."""
    return (
        f"{one.parts} parts: {sum(node.parts for node in one.nodes)} in all nodes, rerun {one.rerun_seconds:.1f} CPU s"
    )


def to_json(found: Sequence[Measurement], parts: int, prices: Prices) -> dict[str, Any]:
    """All figures."""
    return {
        "measured": [one.as_json() for one in found],
        "extrapolated": {
            "parts": parts,
            "nodes": [
                {"node": one.node, "costs": one.costs, "exponents": _exponents(one.growth)}
                for one in extrapolate(found, parts)
            ],
            "rerun": {name: one.at(parts) for name, one in rerun_growth(found).items()},
            "rerun_exponents": _exponents(rerun_growth(found)),
        },
        "prices": asdict(prices),
    }


def text(
    experiment: str, source: str, found: Sequence[Measurement], parts: int, prices: Prices, sorted_by_key: bool
) -> str:
    """Tables of every size, of the growth, and of what it comes to."""
    how = "in as many ranges of keys as parts" if sorted_by_key else "in upstream order"
    lines = [
        f"simulation of {experiment}: {source} {how}; every other source one part. Parts are made up; planner,",
        "executor, manifests, journal and store client are real. CPU seconds are the driver's, peak memory is of",
        "its process. A worker asks for every file and segment it reads; the payloads that `pack` takes out of packs",
        "are not among them.",
    ]
    for one in found:
        lines += ["", *_measured_lines(one, prices)]
    lines += ["", *_extrapolated_lines(found, parts, prices)]
    return "\n".join(lines)


def _measured_lines(one: Measurement, prices: Prices) -> Iterator[str]:
    yield f"MEASURED at {one.parts:,} parts ({one.rows:,} rows, {one.shards:,} shards)"
    yield _head()
    costs = [(node.node, {name: cost(node) for name, cost in COSTS.items()}) for node in one.nodes]
    yield from _node_lines(costs, prices)
    again = ", ".join(f"{number:,} {kind}" for kind, number in sorted(one.rerun_requests.items()))
    yield (
        f"the same command again: {one.rerun_seconds:.2f} CPU s, {one.rerun_peak_bytes / 1e9:.2f} GB, {again}; "
        f"{_dollars(prices.of(one.rerun_requests))}"
    )


def _extrapolated_lines(found: Sequence[Measurement], parts: int, prices: Prices) -> Iterator[str]:
    sizes = ", ".join(f"{one.parts:,}" for one in found)
    if len(found) == 1:
        yield f"EXTRAPOLATED to {parts:,} parts from one size ({sizes}), as if everything grew with the parts"
    else:
        yield f"EXTRAPOLATED to {parts:,} parts: of each cost the power of the parts that fits {sizes} best"
    made = extrapolate(found, parts)
    yield _head()
    yield from _node_lines([(one.node, one.costs) for one in made], prices)
    again = rerun_growth(found)
    yield (
        f"the same command again: {again['seconds'].at(parts):.0f} CPU s, "
        f"{(again['peak_bytes'].at(parts) + found[-1].rerun_start_bytes) / 1e9:.1f} GB, "
        f"{again['requests'].at(parts):,.0f} requests"
    )
    if len(found) > 1:
        yield "GROWTH (fitted exponents; 1 is linear)"
        total = {
            name: fitted([one.parts for one in found], [sum(map(cost, one.nodes)) for one in found])
            for name, cost in COSTS.items()
        }
        for name in ("planning", "driving", "finishing", "manifest_bytes", "GET", "PUT"):
            worst = max(made, key=lambda one: (one.growth[name].exponent or 0.0, one.costs[name]))
            yield (f"  {name:<14} {_power(total[name])} all nodes; {_power(worst.growth[name])} {worst.node}")
        yield f"  {'rerun':<14} {_power(again['seconds'])} CPU s; {_power(again['peak_bytes'])} memory"


def _head() -> str:
    return (
        f"  {'node':<28} {'parts':>8} {'plan s':>8} {'drive s':>8} {'finish s':>8} {'peak GB':>8} {'manifest MB':>11}"
        f" {'GET':>11} {'PUT':>11} {'LIST':>7} {'HEAD':>6} {'money':>9}"
    )


def _node_lines(nodes: Sequence[tuple[str, Mapping[str, float]]], prices: Prices) -> Iterator[str]:
    for key, costs in [*nodes, ("all", _total([costs for _, costs in nodes]))]:
        yield (
            f"  {key:<28} {costs['parts']:>8,.0f} {costs['planning']:>8.2f} {costs['driving']:>8.2f}"
            f" {costs['finishing']:>8.2f} {costs['peak_bytes'] / 1e9:>8.2f} {costs['manifest_bytes'] / 1e6:>11.2f}"
            f" {costs['GET']:>11,.0f} {costs['PUT']:>11,.0f} {costs['LIST']:>7,.0f} {costs['HEAD']:>6,.0f}"
            f" {_dollars(prices.of(costs)):>9}"
        )


def _total(costs: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    added = {name: sum(one[name] for one in costs) for name in COSTS}
    return {**added, "peak_bytes": max(one["peak_bytes"] for one in costs)}


def _requests(node: NodeCost) -> Counter[str]:
    return Counter(node.driver_requests) + Counter(node.worker_requests)


def _exponents(growth: Mapping[str, Growth]) -> dict[str, float | None]:
    return {name: one.exponent for name, one in growth.items()}


def _power(growth: Growth) -> str:
    return "   -" if growth.exponent is None else f"{growth.exponent:4.2f}"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}"
