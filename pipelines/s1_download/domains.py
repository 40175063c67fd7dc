"""The `domains` stage: domains whose files differ from the published hashes, or that return one image for many URLs.

It reads a small table that every part of a download writes (`domain_table`) and compares each domain with all others of
the source. Nothing is dropped here: `flagged.parquet` names the domains, and the filter drops their rows if the
experiment says so. Parts of the download stay independent of each other, and an unchanged list changes nothing
downstream.
"""

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s1_download.child.protocol import Result
from pipelines.s1_download.child.verify import MATCH, MISMATCH
from x2vlm.config import FrozenConfig
from x2vlm.data.rules.domains import registered_domain
from x2vlm.samples import Sample, write_table

logger = logging.getLogger(__name__)

PLAIN_SITE = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]+)?/")  # the start of a URL with a plain domain
DOMAINS_FILE = "domains.parquet"
NUM_LISTED = 100  # of flagged domains and of repeated bytes in the summary; the tables have all
BODY_TYPE = pa.struct([("sha256", pa.string()), ("num_urls", pa.int64())])
PART_SCHEMA = pa.schema(
    [
        ("domain", pa.string()),
        ("rows", pa.int64()),
        ("fetched", pa.int64()),  # rows with a complete body, whatever its content
        ("match", pa.int64()),  # of those whose hash is published
        ("mismatch", pa.int64()),
        ("repeated", pa.list_(BODY_TYPE)),  # bodies returned by two or more different URLs
    ]
)
TOTAL_SCHEMA = pa.schema(
    [
        *[PART_SCHEMA.field(name) for name in ("domain", "rows", "fetched", "match", "mismatch")],
        ("others_match_rate", pa.float64()),  # null where no other domain has a hash to compare
        ("p_value", pa.float64()),  # null if the domain was not tested
        ("flagged", pa.bool_()),
    ]
)
REPEATED_SCHEMA = pa.schema([("domain", pa.string()), ("sha256", pa.string()), ("num_urls", pa.int64())])


class DomainsConfig(FrozenConfig):
    """When a domain is flagged. All three must hold, so that neither chance nor a small difference is enough.

    A flag is a reason to inspect, not a proof: a server that re-encodes all its images is flagged like one with a new
    owner.
    """

    min_checked: int = pydantic.Field(default=20, ge=1)  # rows of the domain with a published hash and a body
    # The domain's match rate is below this fraction of that of all other domains together.
    min_match_rate: float = pydantic.Field(default=0.5, gt=0, le=1)
    # Probability to flag any domain of a source in which all have the same match rate (one-sided binomial test,
    # Bonferroni).
    significance: float = pydantic.Field(default=1e-3, gt=0, lt=1)
    min_repeats: int = pydantic.Field(
        default=20, ge=2
    )  # at least this many URLs of a domain with the same bytes are reported
    flagged_domains: Literal["report", "drop"] = "report"


@dataclass
class DomainCounts:
    """The counts of one domain."""

    rows: int = 0
    fetched: int = 0
    match: int = 0
    mismatch: int = 0
    repeated: Counter[str] = field(default_factory=Counter)  # sha256 -> number of URLs

    @property
    def checked(self) -> int:
        return self.match + self.mismatch


def domain_table(samples: Sequence[Sample], results: Sequence[Result], checks: Sequence[str]) -> pa.Table:
    """The counts of each domain in one part of a download, by name. `results` are those before hashes are checked.

    The domain is that of the published URL, not of a redirect: the list trusts its owner.
    """
    counts_by_domain: defaultdict[str, DomainCounts] = defaultdict(DomainCounts)
    urls: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    domains: dict[str, str] = {}  # by site: many URLs share one, and parsing each costs 15 us
    for sample, result, check in zip(samples, results, checks, strict=True):
        plain = PLAIN_SITE.match(sample.url)
        site = plain[0] if plain else sample.url
        if (domain := domains.get(site)) is None:
            domain = domains[site] = registered_domain(site)
        counts = counts_by_domain[domain]
        counts.rows += 1
        counts.fetched += result.bytes > 0
        counts.match += check == MATCH
        counts.mismatch += check == MISMATCH
        if sha256 := result.hashes.get("sha256"):
            urls[domain, sha256].add(sample.url.strip())
    for (domain, sha256), different in urls.items():
        if len(different) > 1:
            counts_by_domain[domain].repeated[sha256] = len(different)
    rows = [
        {
            **{name: getattr(counts, name) for name in ("rows", "fetched", "match", "mismatch")},
            "domain": domain,
            "repeated": [{"sha256": sha256, "num_urls": number} for sha256, number in sorted(counts.repeated.items())],
        }
        for domain, counts in sorted(counts_by_domain.items())
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def plan_domains(config: DomainsConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the tables of all parts of all rounds. Adopted parts may have none and are skipped."""
    reads = [
        Read("downloads", file)
        for artifact in inputs["downloads"]
        for part in artifact.parts
        for file in part.files
        if file.path == DOMAINS_FILE
    ]
    return [Part("all", tuple(reads))]


def run_domains(config: DomainsConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes domains.parquet (every domain), flagged.parquet (names only) and repeated.parquet.

    Holds every domain in memory, about 250 bytes each. A row that a later round of the download retried counts once
    per round. Repeats are summed over parts that saw one at least twice, so their numbers are lower bounds.
    """
    counts_by_domain = _add_up(pq.read_table(inputs.local_path(read.file)) for read in part.reads)
    totals = pa.Table.from_pylist(list(_judged(counts_by_domain, config)), schema=TOTAL_SCHEMA)
    flagged = totals.filter(totals["flagged"])
    repeated = _repeated(counts_by_domain, config.min_repeats)
    write_table(totals, out.path / DOMAINS_FILE)
    write_table(flagged.select(["domain"]), out.path / "flagged.parquet")
    write_table(pa.Table.from_pylist(repeated, schema=REPEATED_SCHEMA), out.path / "repeated.parquet")
    num_rows = sum(counts.rows for counts in counts_by_domain.values())
    summary = _summary(counts_by_domain, flagged, repeated, config)
    logger.info("stage=domains domains=%d flagged=%d repeated=%d", len(counts_by_domain), len(flagged), len(repeated))
    return PartResult(
        {"rows": Count(num_rows, num_rows), "domains": Count(len(counts_by_domain), len(counts_by_domain))},
        {DOMAINS_FILE: len(counts_by_domain), "flagged.parquet": len(flagged), "repeated.parquet": len(repeated)},
        summary,
    )


def _add_up(tables: Iterable[pa.Table]) -> dict[str, DomainCounts]:
    counts_by_domain: defaultdict[str, DomainCounts] = defaultdict(DomainCounts)
    for table in tables:
        for row in table.to_pylist():
            counts = counts_by_domain[row["domain"]]
            for name in ("rows", "fetched", "match", "mismatch"):
                setattr(counts, name, getattr(counts, name) + row[name])
            counts.repeated.update({body["sha256"]: body["num_urls"] for body in row["repeated"]})
    return dict(sorted(counts_by_domain.items()))


def _judged(counts_by_domain: Mapping[str, DomainCounts], config: DomainsConfig) -> Iterator[dict[str, Any]]:
    """A row of TOTAL_SCHEMA for every domain."""
    match = sum(counts.match for counts in counts_by_domain.values())
    checked = sum(counts.checked for counts in counts_by_domain.values())
    num_judged = sum(config.min_checked <= counts.checked < checked for counts in counts_by_domain.values())
    for domain, counts in counts_by_domain.items():
        others = checked - counts.checked
        rate = (match - counts.match) / others if others else None
        p_value, is_flagged = None, False
        if rate is not None and counts.checked >= config.min_checked:
            p_value = lower_tail(counts.match, counts.checked, rate)
            is_low = counts.match < config.min_match_rate * rate * counts.checked
            is_flagged = is_low and p_value < config.significance / num_judged
        numbers = {name: getattr(counts, name) for name in ("rows", "fetched", "match", "mismatch")}
        yield {"domain": domain, **numbers, "others_match_rate": rate, "p_value": p_value, "flagged": is_flagged}


def lower_tail(successes: int, trials: int, probability: float) -> float:
    """P(X <= successes) of a binomial X; 1.0 where `successes` is not below the mean, which is never significant."""
    if successes >= trials * probability:
        return 1.0
    if probability == 1.0:
        return 0.0
    log_term = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    log_term += successes * math.log(probability) + (trials - successes) * math.log1p(-probability)
    # Below the mean each term is smaller than the next, by a decreasing factor.
    total, ratio = 0.0, 1.0
    for count in range(successes, -1, -1):
        total += ratio
        ratio *= count / (trials - count + 1) * (1 - probability) / probability
        if ratio < 1e-17 * total:
            break
    return min(1.0, math.exp(log_term) * total)


def _repeated(counts_by_domain: Mapping[str, DomainCounts], min_repeats: int) -> list[dict[str, Any]]:
    """Bodies returned by at least `min_repeats` URLs of one domain, most frequent first."""
    found = [
        {"domain": domain, "sha256": sha256, "num_urls": number}
        for domain, counts in counts_by_domain.items()
        for sha256, number in counts.repeated.items()
        if number >= min_repeats
    ]
    return sorted(found, key=lambda body: (-int(body["num_urls"]), body["domain"], body["sha256"]))


def _summary(
    counts_by_domain: Mapping[str, DomainCounts],
    flagged: pa.Table,
    repeated: Sequence[Mapping[str, Any]],
    config: DomainsConfig,
) -> dict[str, Any]:
    """Totals and the first NUM_LISTED of each list, for the manifest and the report."""
    match, mismatch = (sum(getattr(counts, name) for counts in counts_by_domain.values()) for name in (MATCH, MISMATCH))
    worst = sorted(flagged.to_pylist(), key=lambda row: (-(row["match"] + row["mismatch"]), row["domain"]))
    return {
        "hash_checks": {MATCH: match, MISMATCH: mismatch},
        "num_domains": len(counts_by_domain),
        "num_flagged": len(flagged),
        "flagged": worst[:NUM_LISTED],
        "num_repeated": len(repeated),
        "repeated": list(repeated[:NUM_LISTED]),
        "flagged_domains": config.flagged_domains,
    }


DOMAINS = Stage(
    name="domains",
    version=1,
    config_type=DomainsConfig,
    slots=("downloads",),
    plan_parts=plan_domains,
    run_part=run_domains,
    allow_zero_rows=True,
)
