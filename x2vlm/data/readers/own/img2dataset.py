"""What img2dataset writes beside the media of a shard: a table of all its URLs with their status, and its statistics.

`00000.parquet` has a row for every URL, also for those that failed; `00000_stats.json` is written last, so a shard
without it was not finished (img2dataset 1.47.0, `writer.py` and `downloader.py`).
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa

from x2vlm.data.readers.own.facts import Facts
from x2vlm.data.readers.own.files import STATS_SUFFIX, SetFile
from x2vlm.data.readers.own.parquet_shard import BrokenParquet, open_parquet
from x2vlm.data.readers.source import Source
from x2vlm.samples import Drop

logger = logging.getLogger(__name__)

SUCCESS = "success"
FAILURES = ("failed_to_download", "failed_to_resize")  # its own names for what became of a URL, and ours of the rules
BATCH_ROWS = 1000


def failure(facts: Facts) -> tuple[str, str] | None:
    """(rule, reason) where a row's status says that its media were not stored; None where it was, or has no status."""
    status = facts.text("status").strip()
    if status in ("", SUCCESS):
        return None
    rule = status if status in FAILURES else "failed_to_download"
    reason = "; ".join(text for text in (facts.text("error_message"), facts.url) if text)
    return rule, reason[:500] if rule == status else f"{status}: {reason}"[:500]


class Statuses:
    """The table beside a shard: facts of every key, and why keys are missing. Empty where there is none.

    A table that is not readable (img2dataset closes it last) is logged and left out; one without a column `key` says
    nothing about rows.
    """

    def __init__(self, table: SetFile | None) -> None:
        self.of_key: dict[str, Facts] = {}
        if table is not None:
            try:
                for row in _rows(table):
                    facts = Facts(row)
                    if key := facts.text("key"):
                        self.of_key[key] = facts
            except BrokenParquet as error:
                logger.warning("event=shard_table_unreadable file=%s error=%r", table.name, str(error)[:200])

    def missing(self, source: Source, shard: str, found: Collection[str]) -> Iterator[Drop]:
        """A drop for every key that is not among `found`: with img2dataset's reason, or because it should be there."""
        for key, facts in self.of_key.items():
            if key not in found:
                stored = ("missing_from_shard", "its table says that it was downloaded, but the shard has no such key")
                yield source.drop(f"{shard}/{key}", *(failure(facts) or stored))


def note_unfinished(source: Source, shard: str, names: Collection[str], has_status: bool) -> bool:
    """Log that img2dataset did not finish a shard; True if so. Shards that it did not write have no statistics."""
    is_unfinished = has_status and not any(name.endswith(STATS_SUFFIX) for name in names)
    if is_unfinished:
        logger.warning(
            "event=shard_unfinished card=%s shard=%s: no %s%s, so img2dataset was stopped while it wrote it. What is "
            "there is used; run img2dataset again with --incremental_mode incremental to complete it",
            source.card,
            shard,
            shard,
            STATS_SUFFIX,
        )
    return is_unfinished


def _rows(table: SetFile) -> Iterator[Mapping[str, Any]]:
    with table.open() as stream, open_parquet(stream) as file:
        schema = file.schema_arrow
        if "key" not in schema.names:
            return
        names = [field.name for field in schema if not _is_bulk(field.type)]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
            yield from batch.to_pylist()


def _is_bulk(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
