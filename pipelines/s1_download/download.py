"""The download stage: rows with URLs in, rows with media out, and a ledger line for every URL.

One part is one slice of rows. The parent (here) rewrites URLs, refuses what needs no network to be refused, lets child
processes fetch and decode the rest (`child/`) and writes down what came of it. What was fetched is
captured: no later stage touches the network.
"""

import functools
import logging
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.live import Counters
from pipelines.flow.stage import (
    Count,
    Inputs,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Sources,
    Stage,
)
from pipelines.project import PROJECT_ROOT
from pipelines.s1_download.child.journal_counts import JournalTail
from pipelines.s1_download.child.protocol import Item, Result
from pipelines.s1_download.child.runner import fetch_items
from pipelines.s1_download.child.verify import hash_check, judge_all, wanted_hashes
from pipelines.s1_download.child.yt_dlp import check_command
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.domains import DOMAINS_FILE, domain_table
from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import Refusal, parse_target
from pipelines.s1_download.ledger import ledger_table
from pipelines.s1_download.retry import balance, is_retried
from pipelines.s1_download.rights import licence_counts
from pipelines.s1_download.routes import Endpoints, Route, open_route
from x2vlm.data.boxes import denormalise_boxes
from x2vlm.data.rules.domains import registered_domain
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.errors import ConfigError
from x2vlm.samples import (
    MEDIA_KINDS,
    Drop,
    Fetch,
    Sample,
    count_rules,
    drop_table,
    sample_table,
    samples_of,
    write_table,
)

logger = logging.getLogger(__name__)

ROWS_FILE = re.compile(r"rows-(\d+)\.parquet")


def plan_download(config: DownloadConfig, inputs: Inputs) -> list[Part]:
    """One part per rows file, named by its digits. Other lists of denied sites or of placeholders make other parts."""
    parts = []
    _, deny_list_sha256 = config.denied()
    _, placeholders_sha256 = config.known_placeholders()
    lists = {"deny_list": deny_list_sha256, "placeholders": placeholders_sha256}
    spec = {name: sha256 for name, sha256 in lists.items() if sha256}
    for artifact in inputs["rows"]:
        for input_part in artifact.parts:
            for file in input_part.files:
                if match := ROWS_FILE.fullmatch(file.path):
                    parts.append(Part(name=match[1], reads=(Read("rows", file),), spec=spec))
    parts.sort(key=lambda part: part.name)
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError("download: two inputs have rows files of one name; give each source a download node")
    return parts


def plan_retry(config: DownloadConfig, inputs: Inputs) -> list[Part]:
    """One part per rows file of which an earlier round has dropped rows that are to be tried again.

    Slot `earlier` holds every round before this one, in order. Each part reads its ledgers, so other failures make
    another part.
    """
    parts = []
    for part in plan_download(config, inputs):
        same = [found for earlier in inputs["earlier"] for found in earlier.parts if found.name == part.name]
        known = [(found.summary.get("retried", {}), found.summary.get("dropped")) for found in same]
        left = (
            None
            if any(dropped is None for _, dropped in known)
            else balance([(r, d) for r, d in known if d is not None])
        )
        if left is None or any(is_retried(rule, config.retry) for rule in left):
            ledgers = tuple(Read("earlier", found.file("ledger.parquet")) for found in same)
            parts.append(replace(part, reads=(*part.reads, *ledgers)))
    return parts


def run_download(config: DownloadConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Fetch the media of one part's rows and write rows, drops, ledger and media pack."""
    samples = samples_of(pq.read_table(inputs.local_path(part.reads[0].file)))
    earlier = [pq.read_table(inputs.local_path(read.file)) for read in part.reads[1:]]
    samples, retried = _still_failing(samples, earlier, config.retry)
    check_command(config, f"download, part {part.name}")
    denied, placeholders = _planned_lists(config, part)
    with _route(config) as (route, endpoints), tempfile.TemporaryDirectory(prefix="x2vlm-download-") as scratch:
        items, item_of_row, refused = _plan_items(samples, route, denied, config)
        began = time.monotonic()
        tail = JournalTail(Counter(item_of_row.values()), Counter(refusal.status for refusal in refused.values()))

        def watch(journal: Path) -> None:
            def count() -> Counters:
                tail.read(journal)
                return tail.counters()

            out.report(count)

        results = fetch_items(items, Path(scratch), config, config.policy(endpoints), watch)
        seconds = time.monotonic() - began
        verdicts = [refused.get(row) or results[item_of_row[row]] for row in range(len(samples))]
        verdicts = [_made_public(sample, v, route) for sample, v in zip(samples, verdicts, strict=True)]
        checks = [hash_check(sample.published_hash, v) for sample, v in zip(samples, verdicts, strict=True)]
        domains = domain_table(samples, verdicts, checks)
        verdicts = judge_all(samples, verdicts, config.hash_mismatch, placeholders)
        kept, drops = _decide(samples, verdicts)
        path_of = functools.cache(Path)
        pack = write_media_pack(
            out.path,
            (
                Payload(got.media.sha256, got.media.format, path_of(at.path), at.offset, at.bytes, at.sha256)
                for got in verdicts
                if got.media and (at := got.stored)
            ),
        )
    write_table(sample_table(kept), out.path / "rows.parquet")
    write_table(drop_table(drops), out.path / "drops.parquet")
    write_table(ledger_table(samples, verdicts, checks), out.path / "ledger.parquet")
    write_table(domains, out.path / DOMAINS_FILE)
    counts = _counts(samples, kept, drops)
    num_bytes = sum(result.bytes for result in results.values())
    summary = {**_summary(counts["rows"], num_bytes, seconds), **({"retried": retried} if config.retry else {})}
    summary |= {"hash_checks": dict(sorted(Counter(check or "nothing_came" for check in checks).items()))}
    summary |= {"licences": licence_counts(Counter(sample.licence for sample in kept))}
    rates = " ".join(f"{name}={value:.4g}" for name, value in summary["metrics"].items())
    reasons = " ".join(f"{rule}={number}" for rule, number in sorted(counts["rows"].dropped.items()))
    logger.info("stage=download part=%s rows=%d seconds=%.1f %s %s", part.name, len(samples), seconds, rates, reasons)
    return PartResult(
        counts=counts,
        file_rows={
            "rows.parquet": len(kept),
            "drops.parquet": len(drops),
            "ledger.parquet": len(samples),
            "media.parquet": len(pack),
            DOMAINS_FILE: len(domains),
        },
        summary={"num_distinct_media": len(pack), "media_bytes": sum(entry.bytes for entry in pack), **summary},
    )


def _planned_lists(config: DownloadConfig, part: Part) -> tuple[DenyList, frozenset[str]]:
    """The deny list and the placeholders' sha256; ConfigError if a file is not the one that was planned with."""
    denied, deny_list_sha256 = config.denied()
    placeholders, placeholders_sha256 = config.known_placeholders()
    if deny_list_sha256 != part.spec.get("deny_list", ""):
        raise ConfigError(f"{config.deny_list}: the deny list is not the one that was planned with; run the job again")
    if placeholders_sha256 != part.spec.get("placeholders", ""):
        raise ConfigError(f"{config.placeholders}: the list is not the one that was planned with; run the job again")
    return denied, placeholders


def _still_failing(
    samples: Sequence[Sample], ledgers: Sequence[pa.Table], classes: Sequence[str]
) -> tuple[list[Sample], dict[str, int]]:
    """The samples that `ledgers`, one for each round so far, leave dropped by a rule of `classes`, and by which rule.

    Without classes it is the first round, which takes them all.
    """
    if not classes:
        return list(samples), {}
    last: dict[str, str] = {}
    for ledger in ledgers:
        last |= dict(zip(ledger["key"].to_pylist(), ledger["status"].to_pylist(), strict=True))
    failing = [sample for sample in samples if is_retried(last.get(sample.key, ""), classes)]
    return failing, dict(sorted(Counter(last[sample.key] for sample in failing).items()))


def _plan_items(
    samples: Sequence[Sample], route: Route, denied: DenyList, config: DownloadConfig
) -> tuple[list[Item], dict[int, int], dict[int, Result]]:
    """Distinct things to fetch, the item of each row, and the rows refused by their URL alone.

    A URL that several rows name is fetched once.
    """
    items: dict[tuple[str, str, float | None, float | None], int] = {}
    item_of_row: dict[int, int] = {}
    refused: dict[int, Result] = {}
    published: defaultdict[int, set[str]] = defaultdict(set)
    for row, sample in enumerate(samples):
        try:
            if sample.kind not in MEDIA_KINDS:
                raise Refusal("unknown_kind", f"{sample.kind!r}; image and video are fetched")
            if not sample.url or not sample.url.strip():
                raise Refusal("missing_url")
            url = parse_target(route.to_wire(sample)).url
            denied.check(parse_target(sample.url.strip()))
            _require_yt_dlp_allowed(sample, url, route, config)
        except Refusal as refusal:
            refused[row] = Result(-1, refusal.rule, refusal.reason)
            continue
        identity = (sample.kind, url, sample.start_seconds, sample.end_seconds)
        item_of_row[row] = items.setdefault(identity, len(items))
        if sample.published_hash:
            published[item_of_row[row]].add(sample.published_hash)
    planned = [Item(number, *identity, wanted_hashes(published.get(number, ()))) for identity, number in items.items()]
    return planned, item_of_row, refused


def _route(config: DownloadConfig) -> AbstractContextManager[tuple[Route, Endpoints]]:
    return open_route(config.url_base, config.local_media, PROJECT_ROOT)


def _require_yt_dlp_allowed(sample: Sample, url: str, route: Route, config: DownloadConfig) -> None:
    """Refusal with rule needs_yt_dlp for a video behind a page, unless the experiment allows yt-dlp."""
    if sample.kind != "video" or route.is_own(url) or config.allow_yt_dlp:
        return
    if (domain := registered_domain(url)) in config.yt_dlp_domains:
        raise Refusal("needs_yt_dlp", f"{domain}: see `terms` of the card; `download.allow_yt_dlp` is false")


def _made_public(sample: Sample, verdict: Result, route: Route) -> Result:
    """`verdict` with the address that the row's media have in the world, not on a server of ours."""
    final_url = route.to_public(verdict.final_url, sample)
    return verdict if final_url == verdict.final_url else replace(verdict, final_url=final_url)


def _decide(samples: Sequence[Sample], verdicts: Sequence[Result]) -> tuple[list[Sample], list[Drop]]:
    kept, drops = [], []
    for sample, verdict in zip(samples, verdicts, strict=True):
        if verdict.media is not None:
            kept.append(_with_media(sample, verdict))
            continue
        drops.append(
            Drop(sample.key, sample.source, sample.source_row, "download", verdict.status, reason=verdict.reason)
        )
    return kept, drops


def _with_media(sample: Sample, verdict: Result) -> Sample:
    """`sample` with what was fetched; boxes that waited for the size of their image are put in pixels."""
    assert verdict.media is not None
    fetch = Fetch(verdict.final_url, verdict.http_status, verdict.content_type, verdict.opt_out)
    if sample.concepts:
        sample = denormalise_boxes(sample, verdict.media.width, verdict.media.height)
    return replace(sample, media=verdict.media, fetch=fetch)


def _counts(samples: Sequence[Sample], kept: Sequence[Sample], drops: Sequence[Drop]) -> Mapping[str, Count]:
    """Rows by rule; what hung on a dropped row is dropped as `row_dropped`."""

    def hanging(before: int, after: int) -> Count:
        return Count(before, after, {"row_dropped": before - after} if before > after else {})

    return {
        "rows": Count(len(samples), len(kept), count_rules(drops, "row")),
        "concepts": hanging(sum(len(s.concepts) for s in samples), sum(len(s.concepts) for s in kept)),
        "captions": hanging(sum(len(s.captions) for s in samples), sum(len(s.captions) for s in kept)),
    }


def _summary(rows: Count, num_bytes: int, seconds: float) -> dict[str, Any]:
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


def check_tools(config: DownloadConfig, node: str, sources: Sources) -> None:
    """SourceUnavailable, with the remedy, if the config needs a program that is not installed here."""
    check_command(config, node)


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
    return {**total, **_summary(rows, total.get("fetched_bytes", 0), total.get("fetch_seconds", 0.0))}


DOWNLOAD = Stage(
    name="download",
    version=4,
    config_type=DownloadConfig,
    slots=("rows",),
    plan_parts=plan_download,
    run_part=run_download,
    finish=finish_download,
    check=check_tools,
)

# A later round. That nothing of it succeeds is news, not an error.
RETRY = replace(DOWNLOAD, slots=("rows", "earlier"), plan_parts=plan_retry, allow_zero_rows=True)
