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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from pipelines.flow.stage import Count, Input, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s1_download.child.protocol import Result
from pipelines.s1_download.child.verify import MATCH, MISMATCH
from x2vlm.config import FrozenConfig
from x2vlm.data.rules.domains import registered_domain
from x2vlm.samples import Sample, write_table

logger = logging.getLogger(__name__)

PLAIN_SITE = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]+)?/")  # the start of a URL with a plain domain
DOMAINS_FILE = "domains.parquet"
WAITING_ROWS = 1_000_000  # of tables that are to be added
NUM_LISTED = 100  # of flagged domains and of repeated bytes in the summary; the tables have all
BODY_TYPE = pa.struct([("sha256", pa.string()), ("num_urls", pa.int64())])
COUNTED = ("rows", "fetched", "match", "mismatch")
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
            **{name: getattr(counts, name) for name in COUNTED},
            "domain": domain,
            "repeated": [{"sha256": sha256, "num_urls": number} for sha256, number in sorted(counts.repeated.items())],
        }
        for domain, counts in sorted(counts_by_domain.items())
    ]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


class DomainCountsConfig(FrozenConfig):
    """How many parts of a download one part adds up."""

    inputs_per_part: int = pydantic.Field(default=64, ge=1)


def plan_counts(config: DomainCountsConfig, inputs: Inputs) -> list[Part]:
    """One part for every so many tables of a round, so that another round or an appended row moves no other part."""
    parts = []
    for number, artifact in enumerate(inputs["downloads"]):
        reads = _tables_of([artifact])
        for start in range(0, len(reads), config.inputs_per_part):
            name = f"{number:02d}-{start // config.inputs_per_part:05d}"
            parts.append(Part(name, tuple(reads[start : start + config.inputs_per_part])))
    return parts


def count_domains(config: DomainCountsConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes domains.parquet, of PART_SCHEMA as the parts of a download: what theirs come to together."""
    added = add_up(pq.read_table(inputs.local_path(read.file)) for read in part.reads)
    write_table(added.as_part(), out.path / DOMAINS_FILE)
    num_rows = int(pc.sum(added.counts["rows"]).as_py() or 0)
    return PartResult({"rows": Count(num_rows, num_rows)}, {DOMAINS_FILE: len(added.counts)})


def plan_domains(config: DomainsConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the tables of all parts of all rounds, or what they were added up to (`domain_counts`).

    Adopted parts may have none and are skipped.
    """
    return [Part("all", tuple(_tables_of(inputs["downloads"])))]


def _tables_of(artifacts: Sequence[Input]) -> list[Read]:
    return [
        Read("downloads", file)
        for artifact in artifacts
        for part in artifact.parts
        for file in part.files
        if file.path == DOMAINS_FILE
    ]


def run_domains(config: DomainsConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes domains.parquet (every domain), flagged.parquet (names only) and repeated.parquet.

    Holds every domain in memory, in columns. A row that a later round of the download retried counts once per round.
    Repeats are summed over parts that saw one at least twice, so their numbers are lower bounds.
    """
    added = add_up(pq.read_table(inputs.local_path(read.file)) for read in part.reads)
    totals = _judged(added.counts, config)
    flagged = totals.filter(totals["flagged"])
    repeated = _repeated(added.repeated, config.min_repeats)
    write_table(totals, out.path / DOMAINS_FILE)
    write_table(flagged.select(["domain"]), out.path / "flagged.parquet")
    write_table(repeated, out.path / "repeated.parquet")
    num_rows = int(pc.sum(totals["rows"]).as_py() or 0)
    summary = _summary(totals, flagged, repeated, config)
    logger.info("stage=domains domains=%d flagged=%d repeated=%d", len(totals), len(flagged), len(repeated))
    return PartResult(
        {"rows": Count(num_rows, num_rows), "domains": Count(len(totals), len(totals))},
        {DOMAINS_FILE: len(totals), "flagged.parquet": len(flagged), "repeated.parquet": len(repeated)},
        summary,
    )


@dataclass(frozen=True)
class Added:
    """What tables of PART_SCHEMA come to: `counts` ordered by domain, `repeated` by domain and sha256."""

    counts: pa.Table
    repeated: pa.Table

    def as_part(self) -> pa.Table:
        """As one table of PART_SCHEMA."""
        bodies = self.repeated.group_by("domain", use_threads=False).aggregate([("sha256", "count")])
        number = dict(zip(bodies["domain"].to_pylist(), bodies["sha256_count"].to_pylist(), strict=True))
        lengths = np.fromiter((number.get(domain, 0) for domain in self.counts["domain"].to_pylist()), np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        columns = [self.repeated[name].combine_chunks() for name in ("sha256", "num_urls")]
        lists = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(BODY_TYPE)))
        return self.counts.append_column("repeated", lists).cast(PART_SCHEMA)


def add_up(tables: Iterable[pa.Table]) -> Added:
    """The sum of tables of PART_SCHEMA. Memory is that of the domains and of as many rows that wait to be added."""
    sums = _Sums(("domain",), COUNTED), _Sums(("domain", "sha256"), ("num_urls",))
    for table in tables:
        lists = table["repeated"].combine_chunks()
        bodies = lists.flatten()
        owners = table["domain"].combine_chunks().take(lists.value_parent_indices())
        sums[0].add(table.select(["domain", *COUNTED]))
        sums[1].add(pa.table({"domain": owners, "sha256": bodies.field(0), "num_urls": bodies.field(1)}))
    return Added(sums[0].total(), sums[1].total())


class _Sums:
    """Sums of columns by keys, of tables that come one by one."""

    def __init__(self, keys: Sequence[str], columns: Sequence[str]) -> None:
        self._keys, self._columns = list(keys), list(columns)
        fields = [(name, pa.string()) for name in keys] + [(name, pa.int64()) for name in columns]
        self._waiting = [pa.schema(fields).empty_table()]
        self._num_rows = self._added = 0  # that wait, and of the first of them, which is a sum

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._num_rows += table.num_rows
        if self._num_rows > max(WAITING_ROWS, 2 * self._added):
            self._waiting = [self._sum()]
            self._num_rows = self._added = self._waiting[0].num_rows

    def total(self) -> pa.Table:
        """The sums, in the order of their keys."""
        return self._sum().sort_by([(name, "ascending") for name in self._keys]).combine_chunks()

    def _sum(self) -> pa.Table:
        together = pa.concat_tables(self._waiting)
        found = together.group_by(self._keys, use_threads=False).aggregate([(name, "sum") for name in self._columns])
        names = [*self._keys, *(f"{name}_sum" for name in self._columns)]
        return found.select(names).rename_columns([*self._keys, *self._columns])


def _judged(counts: pa.Table, config: DomainsConfig) -> pa.Table:
    """A row of TOTAL_SCHEMA for every domain."""
    match, mismatch = (counts[name].to_numpy() for name in (MATCH, MISMATCH))
    checked = match + mismatch
    all_match, all_checked = int(match.sum()), int(checked.sum())
    others = all_checked - checked
    has_others = others > 0
    rates = np.divide(all_match - match, others, out=np.zeros(len(checked)), where=has_others)
    is_tested = has_others & (checked >= config.min_checked)
    p_values, is_flagged = np.zeros(len(checked)), np.zeros(len(checked), bool)
    num_judged = int(is_tested.sum())
    for at in np.flatnonzero(is_tested).tolist():
        number, rate = int(checked[at]), float(rates[at])
        p_values[at] = lower_tail(int(match[at]), number, rate)
        is_low = match[at] < config.min_match_rate * rate * number
        is_flagged[at] = is_low and p_values[at] < config.significance / num_judged
    columns = {
        **{name: counts[name] for name in ("domain", *COUNTED)},
        "others_match_rate": pa.array(rates, mask=~has_others),
        "p_value": pa.array(p_values, mask=~is_tested),
        "flagged": pa.array(is_flagged),
    }
    return pa.table(columns, schema=TOTAL_SCHEMA)


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


def _repeated(repeated: pa.Table, min_repeats: int) -> pa.Table:
    """Bodies returned by at least `min_repeats` URLs of one domain, most frequent first."""
    found = repeated.filter(pc.greater_equal(repeated["num_urls"], min_repeats))
    order = [("num_urls", "descending"), ("domain", "ascending"), ("sha256", "ascending")]
    return found.sort_by(order).cast(REPEATED_SCHEMA)


def _summary(totals: pa.Table, flagged: pa.Table, repeated: pa.Table, config: DomainsConfig) -> dict[str, Any]:
    """Totals and the first NUM_LISTED of each list, for the manifest and the report."""
    worst = sorted(flagged.to_pylist(), key=lambda row: (-(row["match"] + row["mismatch"]), row["domain"]))
    return {
        "hash_checks": {name: int(pc.sum(totals[name]).as_py() or 0) for name in (MATCH, MISMATCH)},
        "num_domains": len(totals),
        "num_flagged": len(flagged),
        "flagged": worst[:NUM_LISTED],
        "num_repeated": len(repeated),
        "repeated": repeated.slice(0, NUM_LISTED).to_pylist(),
        "flagged_domains": config.flagged_domains,
    }


DOMAIN_COUNTS = Stage(
    name="domain_counts",
    version=1,
    config_type=DomainCountsConfig,
    slots=("downloads",),
    plan_parts=plan_counts,
    run_part=count_domains,
    allow_zero_rows=True,
)
DOMAINS = Stage(
    name="domains",
    version=1,
    config_type=DomainsConfig,
    slots=("downloads",),
    plan_parts=plan_domains,
    run_part=run_domains,
    allow_zero_rows=True,
)
