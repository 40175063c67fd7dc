"""The books of a download: rows by rule, rates, and the summaries of parts added up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.flow.stage import Count, PartSummary
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.rights import licence_counts
from x2vlm.samples import Drop, Sample, count_rules


def row_counts(samples: Sequence[Sample], kept: Sequence[Sample], drops: Sequence[Drop]) -> Mapping[str, Count]:
    """Rows by rule; what hung on a dropped row is dropped as `row_dropped`."""

    def hanging(before: int, after: int) -> Count:
        return Count(before, after, {"row_dropped": before - after} if before > after else {})

    return {
        "rows": Count(len(samples), len(kept), count_rules(drops, "row")),
        "concepts": hanging(sum(len(s.concepts) for s in samples), sum(len(s.concepts) for s in kept)),
        "captions": hanging(sum(len(s.captions) for s in samples), sum(len(s.captions) for s in kept)),
    }


def part_summary(rows: Count, num_bytes: int, seconds: float) -> dict[str, Any]:
    """How it went: rules that dropped rows, and per second of fetching and decoding (waiting for hosts included)."""
    return {
        "dropped": dict(sorted(rows.dropped.items())),
        "fetched_bytes": num_bytes,
        "fetch_seconds": seconds,
        "metrics": {
            "rows_per_second": rows.num_in / max(seconds, 1e-9),
            "bytes_per_second": num_bytes / max(seconds, 1e-9),
            "success_rate": rows.num_out / max(rows.num_in, 1),
        },
    }


def finish_download(config: DownloadConfig, parts: Sequence[PartSummary]) -> Mapping[str, Any]:
    """The parts' summaries added up. Parts run side by side: rates are per second of one part's work."""
    rows = sum((part.counts["rows"] for part in parts), Count(0, 0))
    total: dict[str, Any] = {
        name: sum(part.summary[name] for part in parts)
        for name in ("num_distinct_media", "media_bytes", "fetched_bytes", "fetch_seconds")
        if all(name in part.summary for part in parts)  # adopted parts know less
    }
    added = {name: Counter[str]() for name in ("hash_checks", "licences", "retried")}
    for part in parts:
        for name, counts in added.items():
            counts.update(part.summary.get(name, {}))
    total["hash_checks"] = dict(sorted(added["hash_checks"].items()))
    total["licences"] = licence_counts(added["licences"])
    if config.retry:
        total["retried"] = dict(sorted(added["retried"].items()))
    return {**total, **part_summary(rows, total.get("fetched_bytes", 0), total.get("fetch_seconds", 0.0))}
