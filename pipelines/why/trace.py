"""The trace of a row through every stage: the verdict, the compared values, and the thresholds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.audit.part_index import parts_of_files
from pipelines.flow.audit.sample_history import Trace, trace_sample
from pipelines.flow.store.artifact import SealedManifest
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from pipelines.s2_filter import FILTER, FilterConfig
from pipelines.s2_filter.judge import row_verdicts
from pipelines.s4_materialize import PARTITION, PartitionConfig
from pipelines.why.row_index import open_index
from pipelines.why.trained import trained_steps
from x2vlm.command_line import printable
from x2vlm.config import did_you_mean
from x2vlm.data.columns import SampleColumns
from x2vlm.errors import ConfigError
from x2vlm.samples import SAMPLE_SCHEMA, sample_key

KEY = re.compile(r"[0-9a-f]{32}")
READ_STAGE = "read"
FIRST_STAGES = (READ_STAGE, "sort")  # those in whose files a row is found: dropped rows in the first, all others too
MAX_ITEMS = 12  # of a list that is shown


@dataclass(frozen=True)
class Step:
    """The record of one node about a row."""

    node: str
    verdict: str  # kept, dropped, fetched, scored, packed, trained
    place: str  # part, file and row
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return printable(f"{self.node:28} {self.verdict:8} {describe(self.facts)}")


@dataclass(frozen=True)
class RowTrace:
    """The steps of one row through the stages, and its final verdict."""

    key: str
    source: str
    source_row: str
    url: str
    steps: tuple[Step, ...]
    not_reached: tuple[str, ...] = field(default=())  # nodes that would have come next

    def lines(self) -> Iterator[str]:
        """The trace as lines of text."""
        head = f"{self.source} row {self.source_row}, key {self.key}" + (f", {self.url}" if self.url else "")
        yield printable(head)
        yield from (f"  {step}" for step in self.steps)
        if self.not_reached:
            yield f"  never reached: {', '.join(self.not_reached)}"

    def to_json(self) -> dict[str, Any]:
        steps = [{"node": s.node, "verdict": s.verdict, "place": s.place, "facts": dict(s.facts)} for s in self.steps]
        names = {"key": self.key, "source": self.source, "source_row": self.source_row, "url": self.url}
        return {**names, "steps": steps, "not_reached": list(self.not_reached)}


def trace_rows(
    store: Store, experiment: str, query: str, manifests: Sequence[SealedManifest] | None = None
) -> list[RowTrace]:
    """The trace of every row that `query` names: a key, a URL, `<source>:<source row>`, or a source row alone.

    A source goes by its name in the experiment or by its card's. `manifests` are those to look into, by default the
    finished ones. ConfigError if the experiment has read nothing yet, or if no row matches.
    """
    manifests = manifests_in_order(store, experiment) if manifests is None else manifests
    reads = [stored for stored in manifests if stored.manifest.stage == READ_STAGE]
    if not reads:
        raise ConfigError(
            f"{store.uri} holds no rows of {experiment}; run `jobs/run_stage.py {experiment} --only 'read/*'`"
        )
    firsts = [stored for stored in manifests if stored.manifest.stage in FIRST_STAGES]
    nodes = [stored.manifest.node for stored in manifests]
    traces = []
    for key in _keys_of(store, reads, firsts, query):
        origins = {sha256 for stored in firsts for sha256 in open_index(store, stored.manifest).files_with("key", key)}
        found = trace_sample(store, manifests, key, origins)
        if found:
            found += trained_steps(store, manifests, key, found)
            found.sort(key=lambda trace: nodes.index(trace.node))
            traces.append(_trace_row(key, found, manifests))
    if not traces:
        names = sorted(_sources_of(reads))
        source, sign, _ = query.partition(":")
        meant = f" No source is called {source}; {did_you_mean(source, names)}" if sign and source not in names else ""
        sources = f"{', '.join(names)}.{meant if '://' not in query else ''}"
        raise ConfigError(
            f"no row of {experiment} is called {query!r}. Give a key (32 hex digits), an address as it stands in the "
            f"annotation file, <source>:<row>, or a node (download/<source>) for the rows that it dropped; sources: "
            f"{sources}"
        )
    return traces


def manifests_in_order(store: Store, experiment: str) -> list[SealedManifest]:
    """The artifacts that `experiment` names, producers before consumers."""
    found = {}
    for ref in store.refs_of_experiment(experiment):
        if (read := store.read_manifest(ref.manifest_path)) is not None:
            found[ref.node] = SealedManifest(read[0], ref.manifest_path, read[1])
    ordered: dict[str, SealedManifest] = {}

    def place(node: str) -> None:
        if node in found and node not in ordered:
            for source in found[node].manifest.inputs:
                place(source.node)
            ordered[node] = found[node]

    for node in found:
        place(node)
    return list(ordered.values())


def _keys_of(store: Store, reads: Sequence[SealedManifest], firsts: Sequence[SealedManifest], query: str) -> list[str]:
    """The keys that the query may mean, most certain first."""
    if KEY.fullmatch(query):
        return [query]
    if "://" in query:
        return _keys_of_url(store, firsts, query)
    source, _, row = query.partition(":")
    names = _sources_of(reads)
    keys = [sample_key(names[source], row)] if source in names and row else []
    return keys + [sample_key(name, query) for name in dict.fromkeys(names.values())]


def _sources_of(reads: Sequence[SealedManifest]) -> dict[str, str]:
    """What keys are made of, by what a user may call it: the name of a source in the experiment, or of its card."""
    by_node = {stored.manifest.node.partition("/")[2]: str(stored.manifest.config["source"]) for stored in reads}
    return by_node | {name: name for name in by_node.values()}


def _keys_of_url(store: Store, firsts: Sequence[SealedManifest], url: str) -> list[str]:
    keys: list[str] = []
    for stored in firsts:
        wanted = set(open_index(store, stored.manifest).files_with("url", url))
        for part in parts_of_files(store, stored, wanted) if wanted else ():
            for file in part.record.files:
                if file.sha256 in wanted:
                    path = local_path_of(store.file_uri(part.record, file))
                    source = path if path is not None else store.blobs.fs.open(store.file_uri(part.record, file))
                    keys += pq.read_table(source, columns=["key"], filters=[("url", "=", url)])["key"].to_pylist()
    return list(dict.fromkeys(keys))


def _trace_row(key: str, traces: Sequence[Trace], manifests: Sequence[SealedManifest]) -> RowTrace:
    first = traces[0].values
    url = next((trace.values["url"] for trace in traces if trace.values.get("url")), "")
    configs = {stored.manifest.node: stored.manifest.config for stored in manifests}
    all_steps = (_step(trace, traces[:number], configs[trace.node]) for number, trace in enumerate(traces))
    steps = tuple(step for step in all_steps if step.facts)
    reported = {trace.node for trace in traces}
    return RowTrace(
        key, first.get("source", ""), first.get("source_row", ""), url, steps, _not_reached(manifests, reported)
    )


def _step(trace: Trace, before: Sequence[Trace], config: Mapping[str, Any]) -> Step:
    place = f"part {trace.part}, {trace.file}" + (f" row {trace.row}" if trace.row >= 0 else "")
    facts = facts_of(trace)
    stage = trace.node.partition("/")[0]
    if trace.verdict == "kept" and stage == FILTER.name and before:
        judged = next((one for one in reversed(before) if "captions" in one.values), None)
        facts |= {} if judged is None else passed_rules(judged.values, FilterConfig.model_validate(config))
    if trace.verdict == "kept" and stage == PARTITION.name and "clip_score" in facts:
        thresholds = PartitionConfig.model_validate(config)
        is_clip = trace.values["kind"] == "video"
        limit = thresholds.min_clip_score if is_clip else thresholds.image_min_clip_score
        facts["clip_score"] = f"{facts['clip_score']}" + ("" if limit is None else f" against {limit:g}")
    return Step(trace.node, trace.verdict, place, facts)


def passed_rules(row: Mapping[str, Any], config: FilterConfig) -> dict[str, str]:
    """The comparison of each row rule for a kept row: {"min_short_edge": "480 against 224"}."""
    columns = SampleColumns(pa.Table.from_pylist([dict(row)], schema=SAMPLE_SCHEMA))
    return {
        verdict.rule: f"{verdict.value[0]:g} against {verdict.threshold:g}"
        for verdict in row_verdicts(columns, config)
        if verdict.threshold is not None and verdict.applies[0] and np.isfinite(verdict.value[0])
    }


def _not_reached(manifests: Sequence[SealedManifest], reported: set[str]) -> tuple[str, ...]:
    """Nodes downstream of those with a record of the row that have none and come after all that do. (Nodes in between
    had no record to write: a search for duplicates, for example.)"""
    order = [stored.manifest.node for stored in manifests]
    last = max(order.index(node) for node in reported)
    reachable = set(reported)
    for stored in manifests:
        if any(source.node in reachable for source in stored.manifest.inputs):
            reachable.add(stored.manifest.node)
    return tuple(node for node in order[last + 1 :] if node in reachable)


def facts_of(trace: Trace) -> dict[str, Any]:
    """The facts of a table row to show: all of a verdict, and of a sample the values that stages may change."""
    values = trace.values
    if values.get("rule"):
        names = ("rule", "unit", "item", "value", "threshold", "reason")
        return {name: values[name] for name in names if values.get(name) not in (None, "")}
    facts: dict[str, Any] = {}
    if "rule" in values:  # a decision about a kept row: the items from its dropped duplicates
        return {f"{unit}_added": len(values[unit]) for unit in ("captions", "concepts") if values.get(unit)}
    if "captions" in values:
        facts |= {"captions": len(values["captions"] or ()), "concepts": len(values["concepts"] or ())}
        if media := values.get("media"):
            facts["size"] = f"{media['width']}x{media['height']}"
            facts["format"] = media["format"]
        if values.get("payload_offset") is not None:
            facts |= {"shard": trace.shard, "offset": values["payload_offset"]}
        if values.get("clip_score") is not None:
            facts["clip_score"] = round(values["clip_score"], 4)
        return facts
    skipped = {"key", "source", "source_row", "url", "reason"}
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in values.items()
        if name not in skipped and value not in (None, "", [], {}) and not _is_bulk(value)
    }


def _is_bulk(value: Any) -> bool:
    """Embeddings and thumbnails, which are not shown."""
    return isinstance(value, bytes) or (isinstance(value, list) and len(value) > MAX_ITEMS)


def describe(facts: Mapping[str, Any]) -> str:
    """Facts as one line; a drop is shown as `rule: value against threshold (reason)`."""
    if "rule" not in facts:
        return " ".join(f"{name}={value}" for name, value in facts.items())
    unit = "" if facts.get("unit", "row") == "row" else f"{facts['unit']} {facts.get('item', '')}: "
    numbers = ""
    if "value" in facts:
        numbers = f" {facts['value']:g}"
        numbers += f" against {facts['threshold']:g}" if "threshold" in facts else ""
    reason = f" ({facts['reason']})" if facts.get("reason") else ""
    return f"{unit}{facts['rule']}{numbers}{reason}"
