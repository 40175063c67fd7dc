"""Requests that curation makes of an object store, by arithmetic: a part asks for its record and its inputs, and puts
its files and its record (docs/engine.md). `jobs/simulate.py` counts what is computed here.

For one list of images, sorted into ranges of keys, whose workers find no input in their caches. Left out: what reading
the list asks, the search for pairs among looks, and payloads that `pack` takes out of media packs.
"""

import math
from dataclasses import dataclass

PARTS_IN_A_GROUP = 64  # upstream parts of a part of the stages that compare rows
RANGES_IN_A_PART = 128  # of keys, of a part of `sort`
MODEL_FILES = 4  # of a scoring model
DOWNLOAD_FILES, SCORE_FILES = 6, 3
# Of the store client: a file of two pieces or more is put in pieces, with a request before and after them; a file is
# read in pieces.
PUT_PIECE_BYTES, GET_PIECE_BYTES = 50 << 20, 64 << 20


@dataclass(frozen=True)
class Curation:
    """What decides the number of requests. Fractions of the rows are assumptions, as are the bytes of an image."""

    rows: int
    num_shards: int
    rows_per_part: int = 10_000
    answered: float = 0.81  # of the addresses
    kept: float = 0.72  # of the rows that answered, after filter and partition
    image_bytes: int = 30_000
    decisions: int = 2  # artifacts that decide about rows: decontaminate, deduplicate

    @property
    def parts(self) -> int:
        return -(-self.rows // self.rows_per_part)

    @property
    def pack_bytes(self) -> int:
        """Of the media pack of a part."""
        return round(self.rows_per_part * self.answered * self.image_bytes)


@dataclass(frozen=True)
class StageRequests:
    """Requests of all parts of a stage, the plan's own left out unless they grow with the parts."""

    stage: str
    parts: int
    gets: int
    puts: int

    def dollars(self, per_million_writes: float, per_million_reads: float) -> float:
        return (self.puts * per_million_writes + self.gets * per_million_reads) / 1e6


def puts_of(num_bytes: int) -> int:
    """Requests that put a file of so many bytes."""
    pieces = math.ceil(num_bytes / PUT_PIECE_BYTES)
    return 1 if num_bytes < 2 * PUT_PIECE_BYTES else pieces + 2


def gets_of(num_bytes: int) -> int:
    """Requests that read a whole file of so many bytes."""
    return max(1, math.ceil(num_bytes / GET_PIECE_BYTES))


def curation_requests(run: Curation) -> list[StageRequests]:
    """What each stage asks, in the order of the stages. Its terms are, for a part: record, inputs; files, record."""
    parts, shards = run.parts, run.num_shards
    groups = -(-parts // PARTS_IN_A_GROUP)
    pack_bytes = run.pack_bytes
    shard_bytes = round(pack_bytes * run.kept * parts / shards)
    return [
        StageRequests("download", parts, parts * (1 + 1), parts * (DOWNLOAD_FILES - 1 + puts_of(pack_bytes) + 1)),
        StageRequests("domain_counts", groups, groups + parts, groups * (3 + 1)),
        StageRequests("filter", parts, parts * (1 + 1), parts * (2 + 1)),
        StageRequests(
            "score", parts, parts * (1 + 1 + MODEL_FILES + gets_of(pack_bytes) + 1), parts * (SCORE_FILES + 1)
        ),
        StageRequests("evidence", groups, groups + 3 * parts, groups * (6 + 1)),
        StageRequests("leaks", groups, groups * (1 + 3) + 3 * parts, groups * (1 + 1)),
        StageRequests("partition", parts, parts * (1 + 3 + run.decisions), parts * (3 + 1)),
        # A shard has rows of the parts whose ranges of keys meet its own; the plan reads a listing of every part.
        StageRequests("pack", shards, shards + (parts + shards) + parts, shards * (2 + puts_of(shard_bytes) + 1)),
    ]


def request_lines(run: Curation, per_million_writes: float, per_million_reads: float) -> list[str]:
    """A line for each stage and one for all, with what they were computed from."""
    found = curation_requests(run)
    total = StageRequests(
        "all", sum(one.parts for one in found), sum(one.gets for one in found), sum(one.puts for one in found)
    )
    lines = [
        f"requests of curation: {run.rows:,} rows, {run.rows_per_part:,} a part, {run.num_shards:,} shards; assumed: "
        f"{run.answered:.0%} of addresses answer, {run.kept:.0%} of these rows are kept, "
        f"{run.image_bytes:,} bytes an image",
        f"  stage             parts          GET          PUT    dollars (${per_million_writes:g} a million PUT, "
        f"${per_million_reads:g} a million GET)",
    ]
    for one in [*found, total]:
        dollars = one.dollars(per_million_writes, per_million_reads)
        lines.append(f"  {one.stage:<14} {one.parts:>8,} {one.gets:>12,} {one.puts:>12,} {dollars:>10,.2f}")
    return [*lines, "  not among them: reading the list, pairs among looks, payloads that pack takes out of packs"]
