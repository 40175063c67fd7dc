"""How many rows each rule would take out under other thresholds, from what is stored: nothing is fetched or scored.

Row rules are judged again on the rows that were downloaded, thresholds of scores on the stored scores. A field of
another kind (of the download, say) cannot be answered from what is stored, and is refused. What deduplicate and
decontaminate take out is in neither funnel: which row of a cluster stays depends on which rows there are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipelines.experiment import Experiment
from pipelines.flow.store.artifact import Manifest, ManifestPart, PartRecord
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from pipelines.s1_download.retry import round_names
from pipelines.s2_filter import FilterConfig
from pipelines.s2_filter.judge import judge
from pipelines.s4_materialize.thresholds import SCORE_COLUMNS, ScoreThresholds, score_drops
from pipelines.why.parallel import parallel
from pipelines.why.trace import manifests_in_order
from x2vlm.config import did_you_mean, parse_config
from x2vlm.data.columns import SampleColumns
from x2vlm.data.rules.row_filters import domain_not_flagged
from x2vlm.errors import ConfigError

BATCH_PARTS = 64  # judged by a process at a time
FILTER_FIELDS, SCORE_FIELDS = frozenset(FilterConfig.model_fields), frozenset(ScoreThresholds.model_fields)


@dataclass
class Funnel:
    """Rows of one source: how many came, how many each rule takes out, how many are left."""

    source: str
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unscored: int = 0  # that the new rules keep and that were never scored, because the old ones dropped them

    @property
    def rows_out(self) -> int:
        return self.rows_in - self.dropped.total()


@dataclass(frozen=True)
class WhatIf:
    """The funnel of every source as it is, and as it would be."""

    changes: Mapping[str, Any]
    now: Sequence[Funnel]
    then: Sequence[Funnel]

    def lines(self) -> list[str]:
        """A table for people: rows in, each reason with its number now and then, rows out."""
        lines = ["what if " + ", ".join(f"{name} = {value}" for name, value in self.changes.items())]
        for now, then in zip(self.now, self.then, strict=True):
            lines.append(f"{now.source}: {now.rows_in} rows, {now.rows_out} -> {then.rows_out} kept")
            for rule in sorted({*now.dropped, *then.dropped}):
                before, after = now.dropped[rule], then.dropped[rule]
                lines.append(
                    f"  {rule:24} {before:9} -> {after:<9}" + (f" {after - before:+}" if after != before else "")
                )
            if then.unscored:
                lines.append(f"  {then.unscored} rows would have to be scored first; they count as kept here")
        total = [sum(funnel.rows_out for funnel in funnels) for funnels in (self.now, self.then)]
        return [*lines, f"all sources: {total[0]} -> {total[1]} rows"]

    def to_json(self) -> dict[str, Any]:
        now, then = ([_funnel_json(funnel) for funnel in funnels] for funnels in (self.now, self.then))
        return {"changes": dict(self.changes), "now": now, "then": then}


def _funnel_json(funnel: Funnel) -> dict[str, Any]:
    numbers = {"rows_in": funnel.rows_in, "rows_out": funnel.rows_out, "unscored": funnel.unscored}
    return {"source": funnel.source, **numbers, "dropped": dict(sorted(funnel.dropped.items()))}


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`["min_clip_score=0.28"]` as {"min_clip_score": 0.28}; values are YAML, so `null` switches a rule off."""
    changes = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or name not in FILTER_FIELDS | SCORE_FIELDS:
            known = FILTER_FIELDS | SCORE_FIELDS
            hint = "" if name in known or not name else f" ({did_you_mean(name, known, 'they are')})"
            raise ConfigError(
                f"--what-if {text}: give <field>=<value> with a field of the filter or the scores{hint}: "
                f"{', '.join(sorted(known))}"
            )
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--what-if {text}: {value!r} is not a YAML value ({error})") from None
    return changes


def what_if(store: Store, experiment: Experiment, changes: Mapping[str, Any]) -> WhatIf:
    """The funnel of every training source of `experiment` with `changes`, beside the one it has.

    ConfigError for values out of range, and if a source has not been downloaded, filtered and scored yet.
    """
    origin = "--what-if"
    old = ScoreThresholds(**{name: getattr(experiment.partition, name) for name in SCORE_FIELDS})
    new = parse_config(ScoreThresholds, {**old.model_dump(), **_only(changes, SCORE_FIELDS)}, origin)
    manifests = {stored.manifest.node: stored.manifest for stored in manifests_in_order(store, experiment.name)}
    now, then = [], []
    for source, config in experiment.sources.items():
        if config.role == "train":
            own = config.filter or experiment.filter
            rules = parse_config(FilterConfig, {**own.model_dump(), **_only(changes, FILTER_FIELDS)}, origin)
            rounds = _rounds(experiment, source, manifests, store.uri)
            flagged = _flagged_domains(store, experiment, source, manifests)
            now.append(_funnel(store, source, rounds, flagged, own, old))
            then.append(_funnel(store, source, rounds, flagged, rules, new))
    return WhatIf(changes, now, then)


def _rounds(
    experiment: Experiment, source: str, manifests: Mapping[str, Manifest], uri: str
) -> list[tuple[Manifest, Manifest]]:
    """What was downloaded and scored of a source, round by round."""
    nodes = [(f"download/{branch}", f"score/{branch}") for branch in round_names(source, len(experiment.retries))]
    if missing := [node for pair in nodes for node in pair if node not in manifests]:
        raise ConfigError(f"{missing[0]} is not in {uri}; run `jobs/run_stage.py {experiment.name}` first")
    return [(manifests[download], manifests[score]) for download, score in nodes]


def _flagged_domains(
    store: Store, experiment: Experiment, source: str, manifests: Mapping[str, Manifest]
) -> frozenset[str]:
    """The domains whose rows the filter drops, which no field that can be asked about changes."""
    node = f"domains/{source}"
    if experiment.domains.flagged_domains != "drop" or node not in manifests:
        return frozenset()
    tables = [_table(store, part.record, "flagged.parquet") for part in manifests[node].parts]
    return frozenset(domain for table in tables for domain in table["domain"].to_pylist())


def _only(changes: Mapping[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if name in fields}


def _funnel(
    store: Store,
    source: str,
    rounds: Sequence[tuple[Manifest, Manifest]],
    flagged: frozenset[str],
    rules: FilterConfig,
    thresholds: ScoreThresholds,
) -> Funnel:
    funnel = Funnel(source)
    num_parts = sum(len(download.parts) for download, _ in rounds)
    judge_batch = partial(_judge_batch, store.uri, flagged, rules, thresholds)
    with parallel(-(-num_parts // BATCH_PARTS)) as run:
        for found in run(judge_batch, _batches(rounds)):
            funnel.rows_in += found.rows_in
            funnel.dropped.update(found.dropped)
            funnel.unscored += found.unscored
    return funnel


Batch = list[tuple[PartRecord, PartRecord | None]]  # of download parts, each with the part that scored it


def _batches(rounds: Sequence[tuple[Manifest, Manifest]]) -> Iterator[Batch]:
    """The parts of all rounds, BATCH_PARTS at a time; both nodes have their parts in one order."""
    for download, score in rounds:
        pairs = _paired(download.parts, score.parts)
        while batch := list(islice(pairs, BATCH_PARTS)):
            yield batch


def _paired(
    parts: Iterable[ManifestPart], scored: Sequence[ManifestPart]
) -> Iterator[tuple[PartRecord, PartRecord | None]]:
    """Each part with that of its name among the scored ones, of which only those that wait for theirs are kept."""
    waiting: dict[str, PartRecord] = {}
    names = {part.name for part in scored}
    left = iter(scored)
    for part in parts:
        while part.name in names and part.name not in waiting and (ahead := next(left, None)) is not None:
            waiting[ahead.name] = ahead.record
        yield part.record, waiting.pop(part.name, None)


def _judge_batch(
    uri: str, flagged: frozenset[str], rules: FilterConfig, thresholds: ScoreThresholds, batch: Batch
) -> Funnel:
    funnel, store = Funnel(""), Store(uri)
    for record, scored in batch:
        rows = _table(store, record, "rows.parquet")
        judged = judge(rows, rules, [domain_not_flagged(SampleColumns(rows), flagged)] if flagged else [])
        funnel.rows_in += rows.num_rows
        of_rows = judged.drops.filter(pc.equal(judged.drops["unit"], "row"))
        funnel.dropped.update(of_rows["rule"].to_pylist())
        kept = judged.kept.select(["key", "source", "source_row", "kind"])
        if scored is not None:
            _judge_scores(funnel, kept, _table(store, scored, "scores.parquet"), thresholds)
        else:
            funnel.unscored += kept.num_rows
    return funnel


def _judge_scores(funnel: Funnel, kept: pa.Table, scores: pa.Table, thresholds: ScoreThresholds) -> None:
    """Count what `thresholds` take out of the rows that the filter keeps, and those that have no score yet."""
    place = pc.index_in(kept["key"], value_set=scores["key"].combine_chunks())
    known = pc.is_valid(place)
    funnel.unscored += kept.num_rows - int(pc.sum(known).as_py() or 0)
    column = SCORE_COLUMNS[thresholds.score]
    found = scores.select([column, "missing"]).take(place.filter(known))
    table = kept.filter(known).append_column("clip_score", found[column]).append_column("missing", found["missing"])
    _, drops = score_drops(thresholds, table)
    funnel.dropped.update(drop.rule for drop in drops)


def _table(store: Store, record: Any, name: str) -> pa.Table:
    file = next(file for file in record.files if file.path == name)
    uri = store.file_uri(record, file)
    path = local_path_of(uri)
    return pq.read_table(path) if path is not None else pq.read_table(store.blobs.fs.open(uri, "rb"))
