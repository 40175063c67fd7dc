"""The `filter` stage: one part of rows in, kept rows and drops out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import (
    Count,
    Inputs,
    Json,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Stage,
)
from pipelines.s2_filter.config import FilterConfig
from pipelines.s2_filter.drops import count_rules
from pipelines.s2_filter.judge import Findings, judge
from pipelines.s2_filter.rows_file import read_rows
from x2vlm.data.columns import SampleColumns
from x2vlm.data.rules.row_filters import domain_not_flagged
from x2vlm.samples import write_table

logger = logging.getLogger(__name__)


def plan_filter(config: FilterConfig, inputs: Inputs) -> list[Part]:
    """One part per input part, of the same name (with the artifact's number before it where there are several).

    Where there is a slot `flagged`, every part also reads the list of flagged domains.
    """
    artifacts = inputs["rows"]
    flagged = tuple(
        Read("flagged", part.file("flagged.parquet")) for a in inputs.get("flagged", ()) for part in a.parts
    )
    return [
        Part(
            part.name if len(artifacts) == 1 else f"{number:03d}-{part.name}",
            (Read("rows", part.file("rows.parquet")), *flagged),
        )
        for number, artifact in enumerate(artifacts)
        for part in artifact.parts
    ]


def filter_part(config: FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes rows.parquet, the kept rows in input order, and drops.parquet.

    Memory: a small multiple of the part's rows, whatever the number of parts.
    """
    source = part.reads[0].file
    with inputs.open(source) as file:
        rows = read_rows(file, source.uri)
    lists = [pq.read_table(inputs.local_path(read.file))["domain"].to_pylist() for read in part.reads[1:]]
    flagged = {domain for names in lists for domain in names}
    judged = judge(rows, config, [domain_not_flagged(SampleColumns(rows), flagged)] if flagged else [])
    write_table(judged.kept, out.path / "rows.parquet")
    write_table(judged.drops, out.path / "drops.parquet")
    counts = {"rows": Count(rows.num_rows, judged.kept.num_rows, count_rules(judged.drops, "row"))}
    for unit in ("concepts", "captions"):
        num_in, num_out = _total(rows, unit), _total(judged.kept, unit)
        counts[unit] = Count(num_in, num_out, count_rules(judged.drops, unit.removesuffix("s")))
    _warn_of_idle_rules(part.name, judged.findings, rows.num_rows)
    logger.info("stage=filter part=%s rows=%d kept=%d", part.name, rows.num_rows, judged.kept.num_rows)
    file_rows = {"rows.parquet": judged.kept.num_rows, "drops.parquet": judged.drops.num_rows}
    return PartResult(counts, file_rows, _summary(judged.findings))


def add_up(config: FilterConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The sum of the parts' summaries."""
    total: dict[str, Any] = {}
    for part in parts:
        _add(total, part.summary)
    return total


def _add(total: dict[str, Any], numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = value if isinstance(value, str) else total.get(name, 0) + value


def _summary(findings: Findings) -> dict[str, Json]:
    facts = {
        "boxes": dict(sorted(findings.boxes.items())),
        "region_texts": dict(sorted(findings.region_texts.items())),
        "rules": findings.rules,
    }
    return facts | ({"languages": findings.languages} if findings.languages else {})


def _warn_of_idle_rules(part: str, findings: Findings, num_rows: int) -> None:
    """Warn of rules about source scores that are on although the source has no scores."""
    for rule in ("min_similarity", "max_punsafe", "max_pwatermark", "nsfw"):
        if num_rows and findings.rules["row"].get(rule, {}).get("judged") == 0:
            logger.warning("stage=filter part=%s rule=%s judged=0 reason=source_brings_no_scores", part, rule)


def _total(rows: pa.Table, column: str) -> int:
    return int(pc.sum(pc.list_value_length(rows[column])).as_py() or 0)


FILTER = Stage(
    name="filter",
    version=2,
    config_type=FilterConfig,
    slots=("rows",),
    plan_parts=plan_filter,
    run_part=filter_part,
    finish=add_up,
)

# Drops the rows of flagged domains too.
FILTER_DOMAINS = replace(FILTER, slots=("rows", "flagged"))
