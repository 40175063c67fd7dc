"""`decontaminate`: which rows of all sources show an image or clip of a downstream test, and what happens to them.

Test images come from the experiment's held-out sources (pixels, and variants of them), and from annotation files of
tests whose images need not be at hand (ids). The summary is included in every evaluation result.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartSummary, PartWriter, Read, Stage
from pipelines.s4_materialize.decisions import DECISION_SCHEMA, decisions_name, rows_parts, write_decisions
from pipelines.s4_materialize.deduplicate import split_reads
from pipelines.s4_materialize.evidence import (
    EMBEDDING,
    EMBEDDINGS,
    FINGERPRINTS,
    SCORES,
    VARIANTS,
    evaluation_images,
    evidence_of,
    read_evidence,
    row_ids,
)
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.decontamination import DecontaminationConfig, Evaluation, Training, find_leaks, summarize
from x2vlm.data.duplicates.duplicates import CLUSTER_SCHEMA, DuplicateConfig, find_duplicates
from x2vlm.data.duplicates.evaluation_ids import EVALUATION_ID_SCHEMA
from x2vlm.data.duplicates.id_files import IdFile, LinkFile, read_links, read_test_ids
from x2vlm.data.duplicates.identities import ID_SCHEMA, identify
from x2vlm.data.duplicates.leaks import EVALUATION_SCHEMA
from x2vlm.errors import ConfigError
from x2vlm.samples import write_table

LEAKS, SUMMARY = "leaks.parquet", "contamination.json"
HELD_OUT_SPLIT = "held_out"
CERTAIN = ("id", "sha256", "pixels")  # exact methods
TEST = "test-"  # prefix of parts with test images


class DecontaminateConfig(FrozenConfig):
    """How leaks are searched for, and the upstream files that list test images in addition to the held-out sources."""

    rule: DecontaminationConfig = DecontaminationConfig()
    tests: tuple[IdFile, ...] = ()
    links: tuple[LinkFile, ...] = ()
    readers: tuple[str, ...] = ()  # the reader of each `rows` artifact, which defines the meaning of its row keys
    test_readers: tuple[str, ...] = ()  # the same for `test_rows`


def plan_decontaminate(config: DecontaminateConfig, inputs: Inputs) -> list[Part]:
    """One part that reads all rows, all test rows, and the files of ids and links."""
    embeddings = (EMBEDDINGS,) if config.rule.min_cosine is not None else ()
    parts = rows_parts(inputs, "decontaminate")
    tests = rows_parts(inputs, "decontaminate", "test_rows", "test_scores")
    if (len(config.readers), len(config.test_readers)) != (len(inputs["rows"]), len(inputs["test_rows"])):
        raise ConfigError("decontaminate: `readers` and `test_readers` must name one reader for each source it reads")
    reads = [part.reads(SCORES, FINGERPRINTS, *embeddings) for part in parts]
    reads += [part.reads(SCORES, FINGERPRINTS, VARIANTS, *embeddings) for part in tests]
    names = [part.name for part in parts] + [f"{TEST}{part.name}" for part in tests]
    files = [
        Read(slot, file)
        for slot in ("tests", "links")
        for source in inputs[slot]
        for p in source.parts
        for file in p.files
    ]
    spec = {"parts": [[name, len(own)] for name, own in zip(names, reads, strict=True)], "num_files": len(files)}
    return [Part("all", tuple(read for group in (*reads, files) for read in group), spec)]


def decontaminate_part(config: DecontaminateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """leaks.parquet (every leak and its action), contamination.json, and the decisions about every part's rows."""
    use_embeddings = config.rule.min_cosine is not None
    owners, rows, ids, images = [], [], [], []
    test_ids = [
        read_test_ids(file, inputs.local_path(read.file))
        for file, read in zip(config.tests, _reads(part, "tests"), strict=True)
    ]
    for name, reads in split_reads(part):
        table = read_evidence(inputs, reads, embeddings=use_embeddings)
        own_ids = row_ids(table, _reader(config, name))
        if name.startswith(TEST):
            variants = next(read for read in reads if read.file.path == VARIANTS)
            images.append(evaluation_images(table, pq.read_table(inputs.local_path(variants.file)), HELD_OUT_SPLIT))
            test_ids.append(_as_test_ids(own_ids, table))
        else:
            owners.append((decisions_name(name), table["key"]))
            rows.append(table)
            ids.append(own_ids)
    links = [
        read_links(file, inputs.local_path(read.file))
        for file, read in zip(config.links, _reads(part, "links"), strict=True)
    ]
    training_rows = evidence_of(rows, use_embeddings)
    training_ids = pa.concat_tables([ID_SCHEMA.empty_table(), *ids])
    training = Training(training_rows, training_ids, _clusters(config, training_rows))
    no_images = pa.schema([*EVALUATION_SCHEMA, *([EMBEDDING] if use_embeddings else [])]).empty_table()
    evaluation = Evaluation(
        pa.concat_tables([no_images, *images]), pa.concat_tables([EVALUATION_ID_SCHEMA.empty_table(), *test_ids])
    )
    leaks = find_leaks(training, evaluation, identify(links), config.rule)
    summary = summarize(leaks, evaluation, config.rule)
    write_table(leaks, out.path / LEAKS)
    (out.path / SUMMARY).write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    file_rows = write_decisions(out.path, owners, _decisions(leaks))
    num_rows = sum(len(keys) for _, keys in owners)
    count = Count(num_rows, num_rows)  # of decisions: rows are dropped in `partition`
    return PartResult({"rows": count}, {**file_rows, LEAKS: leaks.num_rows}, {"contamination": summary})


def _reads(part: Part, slot: str) -> list[Read]:
    return [read for read in part.reads if read.slot == slot]


def _reader(config: DecontaminateConfig, name: str) -> str:
    """The reader of the source to which the part called `<number>-...` or `test-<number>-...` belongs."""
    readers = config.test_readers if name.startswith(TEST) else config.readers
    return readers[int(name.removeprefix(TEST).split("-")[0])]


def _clusters(config: DecontaminateConfig, rows: pa.Table) -> pa.Table:
    """Duplicates among the training rows: with `strict`, duplicates of a leak are dropped too."""
    if config.rule.policy != "strict":
        return CLUSTER_SCHEMA.empty_table()
    rule = DuplicateConfig(
        radius=config.rule.radius, min_correlation=config.rule.min_correlation, min_cosine=config.rule.min_cosine
    )
    return find_duplicates(rows, rule)


def _as_test_ids(ids: pa.Table, evidence: pa.Table) -> pa.Table:
    """The ids of held-out rows as those of test images."""
    places = pc.index_in(ids["key"], value_set=evidence["key"].combine_chunks())
    columns = {
        "eval_set": ids["source"],
        "split": pa.repeat(pa.scalar(HELD_OUT_SPLIT), ids.num_rows),
        "eval_id": evidence["source_row"].take(places),
        **{name: ids[name] for name in ("id_kind", "id_value", "start_seconds", "end_seconds")},
    }
    return pa.table({name: columns[name] for name in EVALUATION_ID_SCHEMA.names}).cast(EVALUATION_ID_SCHEMA)


def _decisions(leaks: pa.Table) -> pa.Table:
    """One decision for every dropped row: its most certain leak, and the number of others."""
    found: dict[str, list[dict[str, Any]]] = {}
    for leak in leaks.filter(pc.equal(leaks["action"], "drop")).to_pylist():
        found.setdefault(leak["key"], []).append(leak)
    made = []
    for key, own in found.items():
        leak = min(own, key=lambda one: (one["via"] != "", one["method"] not in CERTAIN))  # of equals the first
        via = f", as does {leak['via']}" if leak["via"] else ""
        others = f", and {len(own) - 1} more" if len(own) > 1 else ""
        reason = f"shows {leak['eval_set']} {leak['split']} {leak['eval_id']}, by {leak['method']}{via}{others}"
        made.append({"key": key, "rule": "leaked", "value": leak["score"], "threshold": None, "reason": reason})
    return pa.Table.from_pylist(made, schema=DECISION_SCHEMA)


def finish_decontaminate(config: DecontaminateConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The summary of the only part."""
    return dict(parts[0].summary)


DECONTAMINATE = Stage(
    name="decontaminate",
    version=2,
    config_type=DecontaminateConfig,
    slots=("rows", "scores", "test_rows", "test_scores", "tests", "links"),
    plan_parts=plan_decontaminate,
    run_part=decontaminate_part,
    finish=finish_decontaminate,
)
