"""What running parts report, added up by node, in the words that people read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.flow.live import Counters
from pipelines.flow.store.artifact import PartRecord


@dataclass
class NodeCounters:
    """The counters of a node's running parts, the sums of those that are done, and the totals at the last look."""

    parts: dict[str, Counters] = field(
        default_factory=dict
    )  # of running parts: adding up costs what runs, not what ran
    done: dict[str, float] = field(default_factory=dict)
    looked_at: float | None = None  # of time.monotonic()
    last: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    def report(self, part: str, counters: Counters) -> None:
        """Take a running part's counters. Those of a finished one come too late, from another machine."""
        if part not in self.finished:
            self.parts[part] = counters

    def finish(self, part: str, record: PartRecord) -> None:
        """Put a part's true counts in the place of what it reported. Others of its counters stay."""
        self.finished.add(part)
        rows = record.counts["rows"]
        dropped = {f"dropped.{rule}": float(number) for rule, number in rows.dropped.items()}
        others = {name: value for name, value in self.parts.pop(part, {}).items() if not name.startswith("dropped.")}
        for name, value in {**others, "rows": rows.num_in, "kept": rows.num_out, **dropped}.items():
            self.done[name] = self.done.get(name, 0.0) + value

    def totals(self) -> dict[str, float]:
        """Sums over all parts: rows and what is kept of them first, drops last."""
        sums = dict(self.done)
        for counters in self.parts.values():
            for name, value in counters.items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: sums[name] for name in sorted(sums, key=_place)}

    def look(self, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """Totals, and rows and bytes per second since the last look (none at the first)."""
        totals = self.totals()
        rates: dict[str, float] = {}
        if self.looked_at is not None and now > self.looked_at:
            for name in ("rows", "bytes"):
                if name in totals:
                    rates[name] = max(0.0, totals[name] - self.last.get(name, 0.0)) / (now - self.looked_at)
        self.looked_at, self.last = now, totals
        return totals, rates


def _place(name: str) -> tuple[int, str]:
    return {"rows": 0, "kept": 1}.get(name, 3 if name.startswith("dropped.") else 2), name


def log_line(totals: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """`rows=120 kept=90 success_rate=0.750 rows_per_second=31.2 dropped.http_404=30`"""
    words = [f"{name}={_number(value)}" for name, value in totals.items() if not name.startswith("dropped.")]
    if totals.get("rows") and "kept" in totals:
        words.append(f"success_rate={totals['kept'] / totals['rows']:.3f}")
    words += [f"{name}_per_second={value:.1f}" for name, value in rates.items()]
    words += [f"{name}={value:.0f}" for name, value in totals.items() if name.startswith("dropped.")]
    return " ".join(words)


def _number(value: float) -> str:
    """A count as it is, anything else (a loss) in four digits."""
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"
