"""The rows that one node dropped, by rule, with examples and their reasons: what to look at when nothing came out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.store.artifact import ManifestPart, SealedManifest
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from x2vlm.command_line import printable

EXAMPLES = 5  # of each rule
DROPS, LEDGER = "drops.parquet", "ledger.parquet"
OF_LEDGER = ("url", "http_status")


@dataclass(frozen=True)
class DroppedRows:
    """What a node dropped: rows in and out, and for each rule their number and the first of them."""

    node: str
    num_in: int
    num_out: int
    counts: Mapping[str, int]
    examples: Mapping[str, Sequence[Mapping[str, Any]]]

    def lines(self) -> Iterator[str]:
        """A list for people: each rule with its number, and below it rows as `<source>:<row>` with their reasons."""
        yield f"{self.node}: {self.num_in} rows in, {self.num_out} out, {sum(self.counts.values())} dropped"
        for rule, number in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            yield f"  {printable(rule)} {number}"
            for row in self.examples[rule]:
                yield "    " + " ".join(_words(row))
            if number > len(self.examples[rule]):
                yield f"    and {number - len(self.examples[rule])} more"
        if self.counts:
            yield "one row at every stage: python jobs/why.py <experiment> <source>:<row>"

    def to_json(self) -> dict[str, Any]:
        rules = {rule: {"rows": self.counts[rule], "examples": list(rows)} for rule, rows in self.examples.items()}
        return {"node": self.node, "rows_in": self.num_in, "rows_out": self.num_out, "dropped": rules}


def dropped_rows(store: Store, stored: SealedManifest) -> DroppedRows:
    """The rows that the node of this manifest dropped. Items of kept rows (captions, concepts) are not among them."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    for part in stored.manifest.parts:
        table = _table(store, part, DROPS, None)
        if table is None:
            continue
        drops = [row for row in table.to_pylist() if row["unit"] == "row"]
        counts.update(row["rule"] for row in drops)
        first = []
        for row in drops:
            of_rule = examples.setdefault(row["rule"], [])
            if len(of_rule) < EXAMPLES:
                of_rule.append(row)
                first.append(row)
        if first and (ledger := _table(store, part, LEDGER, ["key", *OF_LEDGER])) is not None:
            known = dict(zip(ledger["key"].to_pylist(), ledger.select(OF_LEDGER).to_pylist(), strict=True))
            for row in first:
                row |= known.get(row["key"], {})
    rows = stored.manifest.counts.get("rows")
    return DroppedRows(
        stored.manifest.node, rows.num_in if rows else 0, rows.num_out if rows else 0, dict(counts), examples
    )


def _words(row: Mapping[str, Any]) -> Iterator[str]:
    yield printable(f"{row['source']}:{row['source_row']}")
    if row.get("url"):
        yield printable(row["url"])
    if row["value"] is not None:
        against = "" if row["threshold"] is None else f" against {row['threshold']:g}"
        yield f"{row['value']:g}{against}"
    if row["reason"]:
        yield f"({printable(row['reason'])})"


def _table(store: Store, part: ManifestPart, name: str, columns: list[str] | None) -> pa.Table | None:
    for file in part.record.files:
        if file.path == name:
            uri = store.file_uri(part.record, file)
            path = local_path_of(uri)
            source = path if path is not None else store.blobs.fs.open(uri, "rb")
            return pq.read_table(source, columns=columns)
    return None
