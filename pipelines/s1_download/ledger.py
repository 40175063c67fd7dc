"""The ledger of a download: what became of every row's URL. The only table that knows when something was fetched."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.s1_download.child.protocol import Result
from x2vlm.samples import Sample

LEDGER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("status", pa.string()),  # "kept" or the rule that dropped the row
        ("reason", pa.string()),
        ("fetched_at", pa.string()),
        ("bytes", pa.int64()),
        ("content_type", pa.string()),
        ("opt_out", pa.string()),
        ("robots", pa.string()),  # "allowed", "no_file", or "" where robots.txt was not read
        ("sha256", pa.string()),  # of the whole image as fetched, kept or not; "" where none came
        ("published_hash", pa.string()),
        ("hash_check", pa.string()),  # "match", "mismatch", "unpublished", or "" where nothing came to compare
        ("licence", pa.string()),
        ("author", pa.string()),
    ]
)
# Columns of the ledger that are fields of the row's sample, and of what became of it.
OF_SAMPLE = ("key", "url", "published_hash", "licence", "author")
OF_RESULT = ("final_url", "status", "reason", "fetched_at", "bytes", "content_type", "opt_out", "robots")


def ledger_table(samples: Sequence[Sample], verdicts: Sequence[Result], checks: Sequence[str]) -> pa.Table:
    """The ledger of a part: one line per row, in upstream order. `checks` are the results of comparing hashes."""
    columns: dict[str, list[Any]] = {
        **{name: [getattr(sample, name) for sample in samples] for name in OF_SAMPLE},
        **{name: [getattr(verdict, name) for verdict in verdicts] for name in OF_RESULT},
        "http_status": [verdict.http_status or None for verdict in verdicts],
        "sha256": [verdict.hashes.get("sha256", "") for verdict in verdicts],
        "hash_check": list(checks),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in LEDGER_SCHEMA], schema=LEDGER_SCHEMA)
