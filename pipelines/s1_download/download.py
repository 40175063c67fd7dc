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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.live import Counters
from pipelines.flow.stage import (
    Inputs,
    Part,
    PartReader,
    PartResult,
    PartWriter,
    Read,
    Sources,
    Stage,
)
from pipelines.s1_download.child.journal_counts import JournalTail
from pipelines.s1_download.child.protocol import Item, Place, Result
from pipelines.s1_download.child.runner import fetch_items
from pipelines.s1_download.child.verify import hash_check, judge_all, wanted_hashes
from pipelines.s1_download.child.yt_dlp import check_command
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.domains import DOMAINS_FILE, domain_table
from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import Refusal, parse_target
from pipelines.s1_download.ledger import ledger_table
from pipelines.s1_download.places import check_denied, check_unchanged, members_in, open_places
from pipelines.s1_download.retry import balance, is_retried
from pipelines.s1_download.rights import licence_counts
from pipelines.s1_download.routes import Endpoints, Route, asked_url, open_route
from pipelines.s1_download.summaries import finish_download, part_summary, row_counts
from x2vlm.data.boxes import denormalise_boxes
from x2vlm.data.rules.domains import registered_domain
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.errors import ConfigError
from x2vlm.samples import (
    MEDIA_KINDS,
    Drop,
    Fetch,
    Sample,
    drop_table,
    sample_table,
    samples_of,
    write_table,
)

logger = logging.getLogger(__name__)

ROWS_FILE = re.compile(r"rows-(\d+)\.parquet")


def plan_download(config: DownloadConfig, inputs: Inputs) -> list[Part]:
    """One part per rows file, named by its digits and, for a set, by its group of files.

    Other lists of denied sites or of placeholders make other parts.
    """
    parts = []
    _, deny_list_sha256 = config.denied()
    _, placeholders_sha256 = config.known_placeholders()
    lists = {"deny_list": deny_list_sha256, "placeholders": placeholders_sha256}
    spec = {name: sha256 for name, sha256 in lists.items() if sha256}
    for artifact in inputs["rows"]:
        for input_part in artifact.parts:
            files = {file.path: file for file in input_part.files}
            for file in input_part.files:
                if match := ROWS_FILE.fullmatch(file.path):
                    name = match[1] if input_part.name == "all" else f"{input_part.name}-{match[1]}"
                    members = files.get(f"members-{match[1]}.parquet")  # where the media lie, for rows of a set
                    reads = (file,) if members is None else (file, members)
                    parts.append(Part(name=name, reads=tuple(Read("rows", one) for one in reads), spec=spec))
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
    tables = {slot: [read for read in part.reads[1:] if read.slot == slot] for slot in ("rows", "earlier")}
    earlier = [pq.read_table(inputs.local_path(read.file)) for read in tables["earlier"]]
    samples, retried = _still_failing(samples, earlier, config.retry)
    check_command(config, f"download, part {part.name}")
    denied, placeholders = _planned_lists(config, part)
    with _route(config) as (route, endpoints), tempfile.TemporaryDirectory(prefix="x2vlm-download-") as scratch:
        members = members_in(inputs, tables["rows"], samples, config)
        places = open_places(members, config.set_root or "", Path(scratch)) if members else {}
        items, item_of_row, refused = _plan_items(samples, route, denied, config, places)
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
        if members:
            check_unchanged(samples, members, verdicts)
        checks = [hash_check(sample.published_hash, v) for sample, v in zip(samples, verdicts, strict=True)]
        domains = domain_table(samples, verdicts, checks)
        verdicts = judge_all(samples, verdicts, config.hash_mismatch, placeholders)
        kept, drops = _decide(samples, verdicts)
        pack = write_media_pack(out.path, _payloads_by_key(samples, verdicts))
    write_table(sample_table(kept), out.path / "rows.parquet")
    write_table(drop_table(drops), out.path / "drops.parquet")
    write_table(ledger_table(samples, verdicts, checks), out.path / "ledger.parquet")
    write_table(domains, out.path / DOMAINS_FILE)
    counts = row_counts(samples, kept, drops)
    num_bytes = sum(result.bytes for result in results.values())
    summary = {**part_summary(counts["rows"], num_bytes, seconds), **({"retried": retried} if config.retry else {})}
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
    samples: Sequence[Sample], route: Route, denied: DenyList, config: DownloadConfig, places: Mapping[str, Place]
) -> tuple[list[Item], dict[int, int], dict[int, Result]]:
    """Distinct things to fetch, the item of each row, and the rows refused by their URL alone.

    A URL that several rows name is fetched once.
    """
    items: dict[tuple[str, str, float | None, float | None, Place | None], int] = {}
    item_of_row: dict[int, int] = {}
    refused: dict[int, Result] = {}
    published: defaultdict[int, set[str]] = defaultdict(set)
    for row, sample in enumerate(samples):
        try:
            if sample.kind not in MEDIA_KINDS:
                raise Refusal("unknown_kind", f"{sample.kind!r}; image and video are fetched")
            if not sample.url or not sample.url.strip():
                raise Refusal("missing_url")
            place = places.get(sample.key)
            if place is None:
                url = parse_target(route.to_wire(sample)).url
                denied.check(parse_target(asked_url(sample.url.strip())))
                _require_yt_dlp_allowed(sample, url, route, config)
            else:
                url = sample.url.strip()
                check_denied(url, denied)
        except Refusal as refusal:
            refused[row] = Result(-1, refusal.rule, refusal.reason)
            continue
        identity = (sample.kind, url, sample.start_seconds, sample.end_seconds, place)
        item_of_row[row] = items.setdefault(identity, len(items))
        if sample.published_hash:
            published[item_of_row[row]].add(sample.published_hash)
    planned = []
    for (kind, url, start, end, place), number in items.items():
        # Bytes of a file are compared with those that were read, also of clips, which are not hashed otherwise.
        hashes = wanted_hashes([*published[number], *(["sha256:"] if place else [])])
        planned.append(Item(number, kind, url, start, end, hashes, place))
    return planned, item_of_row, refused


def _route(config: DownloadConfig) -> AbstractContextManager[tuple[Route, Endpoints]]:
    return open_route(config.url_base, config.local_media)


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


def _payloads_by_key(samples: Sequence[Sample], verdicts: Sequence[Result]) -> Iterator[Payload]:
    """What was stored, in the order of the keys of the rows that have it.

    A shard is a range of keys (`s4_materialize.slices`), so the media of its rows are neighbours in the pack, whatever
    the order of the rows, and are read together.
    """
    path_of = functools.cache(Path)
    for row in sorted(range(len(samples)), key=lambda row: samples[row].key):
        media, at = verdicts[row].media, verdicts[row].stored
        if media and at:
            yield Payload(media.sha256, media.format, path_of(at.path), at.offset, at.bytes, at.sha256)


def _with_media(sample: Sample, verdict: Result) -> Sample:
    """`sample` with what was fetched; boxes that waited for the size of their image are put in pixels."""
    assert verdict.media is not None
    fetch = Fetch(verdict.final_url, verdict.http_status, verdict.content_type, verdict.opt_out)
    if sample.concepts:
        sample = denormalise_boxes(sample, verdict.media.width, verdict.media.height)
    return replace(sample, media=verdict.media, fetch=fetch)


def check_tools(config: DownloadConfig, node: str, sources: Sources) -> None:
    """SourceUnavailable, with the remedy, if the config needs a program that is not installed here."""
    check_command(config, node)


DOWNLOAD = Stage(
    name="download",
    version=5,  # 5: media packs are in the order of the keys of the rows
    config_type=DownloadConfig,
    slots=("rows",),
    plan_parts=plan_download,
    run_part=run_download,
    finish=finish_download,
    check=check_tools,
)

# A later round. That nothing of it succeeds is news, not an error.
RETRY = replace(DOWNLOAD, slots=("rows", "earlier"), plan_parts=plan_retry, allow_zero_rows=True)
