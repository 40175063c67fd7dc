"""How large the files of a part are and how many of its rows stay: what made-up records are made of.

| source | what it is |
|---|---|
| SAMPLE | files of `python jobs/full_pretrain.py sample` with `deduplicate: {}`: see below |
| PARTITIONING | bytes by rows of `python -m tests.benchmarks.partitioning`: a part of 10,000 rows with a caption each |
| ASSUMED | nobody measured it: media are 30 KB an image, the mean of a LAION image of 288 pixels is not known here |

The sample has fewer than 100 rows a source: its sizes are rounded, and split by hand into a fixed part and bytes a
row. Tables of rows of every stage are taken to be as large as those of `partition`.

Sizes decide how many pieces a file is read and written in, and nothing else of what a simulation counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SAMPLE = "python jobs/full_pretrain.py sample"
PARTITIONING = "python -m tests.benchmarks.partitioning"
ASSUMED = "assumed"


@dataclass(frozen=True)
class FileSize:
    """Bytes of a file: so many for each row, `fixed` beside them. `source` is where they are from."""

    per_row: float
    fixed: int = 0
    source: str = SAMPLE

    def of(self, rows: int) -> int:
        """Bytes of the file with so many rows."""
        return round(self.per_row * rows) + self.fixed


# Of one row of an upstream list of images: address, caption and numbers, compressed. Assumed.
UPSTREAM_BYTES = 100
# Of the rows that come in, how many go on: 81 % of a list's addresses answered, the rest is assumed.
KEPT: Mapping[str, float] = {"read": 1.0, "download": 0.81, "filter": 0.9, "partition": 0.8, "pack": 1.0}
# Of all rows, those that are not alone in a component, and those about which something is decided. Assumed.
BUSY, DECIDED = 0.3, 0.2

_ROWS = FileSize(180, 14_000, PARTITIONING)
_DROPS = FileSize(60, 1_800)
SIZES: Mapping[str, Mapping[str, FileSize]] = {
    "read": {"rows.parquet": _ROWS, "rows.arrow": _ROWS, "drops.parquet": _DROPS},
    "sort": {"rows.parquet": _ROWS},
    "download": {
        "domains.parquet": FileSize(50, 2_400),
        "drops.parquet": _DROPS,
        "ledger.parquet": FileSize(100, 5_500),
        "media.parquet": FileSize(120, 3_000),
        "media.tar": FileSize(30_000, 10_240, ASSUMED),
        "rows.parquet": _ROWS,
    },
    "domains": {
        "domains.parquet": FileSize(50, 2_400),
        "flagged.parquet": FileSize(0, 350),
        "repeated.parquet": FileSize(0, 670),
    },
    "filter": {"drops.parquet": _DROPS, "rows.parquet": _ROWS},
    "score": {
        "embeddings.parquet": FileSize(2 * 2 * 512, 2_000, ASSUMED),
        "fingerprints.parquet": FileSize(240, 3_000),
        "scores.parquet": FileSize(45, 2_000),
        "variants.parquet": FileSize(278, 0),
    },
    "evidence": {
        "rows.arrow": FileSize(300),
        "values.arrow": FileSize(14),
        "hashes.arrow": FileSize(28),
        "vectors.arrow": FileSize(2 * 512, 0, ASSUMED),
    },
    "near": {"links.parquet": FileSize(16, 509)},
    "components": {"labels.arrow": FileSize(16)},
    "exact": {"homes.arrow": FileSize(246), "busy.parquet": FileSize(57)},
    "test_index": {
        "identities.parquet": FileSize(4),
        "ids.parquet": FileSize(73),
        "images.parquet": FileSize(286),
        "test_identities.parquet": FileSize(4),
    },
    "leaks": {"leaks.parquet": FileSize(80, 1_648)},
    "decontaminate": {
        "decisions.arrow": FileSize(182),
        "gone.arrow": FileSize(33, 0, ASSUMED),
        "leaks.parquet": FileSize(80, 1_507),
    },
    "stars": {"clusters.parquet": FileSize(130), "decisions.arrow": FileSize(182)},
    "deduplicate": {"decisions.arrow": FileSize(182)},
    "partition": {"drops.parquet": _DROPS, "rows.arrow": FileSize(180, 0, PARTITIONING)},
    "pack": {
        "drops.parquet": FileSize(60, 1_666),
        "index": FileSize(200, 15_000),
        "shard": FileSize(30_000 + 1_536, 10_240, ASSUMED),
    },
}


def size_of(stage: str, kind: str) -> FileSize:
    """The size of a kind of file that a stage writes."""
    return SIZES[stage][kind]
