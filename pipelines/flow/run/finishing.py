"""From the records of all parts to a manifest: add up, check that nothing was lost, let the stage summarise."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.flow.run.events import Action, NodeFinished, RunResult
from pipelines.flow.run.planner import NodeWork, Plan
from pipelines.flow.stage import Count, PartSummary
from pipelines.flow.store.artifact import CountRecord, Manifest, PartRecord
from pipelines.flow.store.manifests.paged import PartsBuilder
from pipelines.flow.store.store import Store
from x2vlm.errors import StageFailed, X2VLMError


def make_manifest(work: NodeWork, records: Mapping[str, PartRecord], provenance: Mapping[str, Any]) -> Manifest:
    """The manifest of a node from its parts' records (by fingerprint). StageFailed if rows were lost or none came out.

    `config` holds what the fingerprint was made of, that is, the fields that differ from their defaults; all of them,
    defaults filled in, are `provenance["effective_config"]`.
    """
    node = work.node
    totals: dict[str, Count] = {}
    summaries: list[PartSummary] = []
    builder = PartsBuilder()
    for part, fingerprint in zip(work.parts, work.fingerprints, strict=True):
        record = records[fingerprint]
        counts = {unit: count.to_count() for unit, count in record.counts.items()}
        for unit, count in counts.items():
            count.check(f"{node.key}, part {part.name}, {unit}")
            totals[unit] = totals.get(unit, Count(0, 0)) + count
        summaries.append(PartSummary(part.name, counts, record.summary))
        builder.add(part.name, record)
    for unit, total in totals.items():
        total.check(f"{node.key}, {unit}")
    rows = totals.get("rows", Count(0, 0))
    if rows.num_out == 0 and not node.stage.allow_zero_rows:
        why = ", ".join(f"{reason} {number}" for reason, number in rows.dropped.items()) or "its inputs are empty"
        raise StageFailed(
            f"{node.key}: of {rows.num_in} rows in, none came out ({why}). `python jobs/why.py <experiment> "
            f"{node.key}` shows the dropped rows and their reasons; then change the config or the source"
        )
    parts, root = builder.close(node.key, work.fingerprint)
    return Manifest(
        node=node.key,
        stage=node.stage.name,
        version=node.stage.version,
        fingerprint=work.fingerprint,
        config=node.config.model_dump(mode="json", exclude_defaults=True),
        inputs=list(work.inputs),
        parts=parts,
        counts={unit: CountRecord.of(total) for unit, total in sorted(totals.items())},
        summary=_summary(work, summaries),
        root=root,
        provenance={**provenance, "effective_config": node.config.model_dump(mode="json")},
    )


def _summary(work: NodeWork, parts: Sequence[PartSummary]) -> dict[str, Any]:
    """What `finish` says; without it, the summary of the only part, if there is one part."""
    stage = work.node.stage
    if stage.finish is None:
        return dict(parts[0].summary) if len(parts) == 1 else {}
    try:
        return dict(stage.finish(work.node.config, parts))
    except X2VLMError:
        raise
    except Exception as error:
        raise StageFailed(f"{work.node.key}: finish failed: {type(error).__name__}: {error}") from error


def reused(plan: Plan, store: Store) -> RunResult | None:
    """What a run of `plan` would come to if it has nothing to do and nothing to write down; None if it has.

    Not even a lease is needed then: the experiment's references name these manifests already.
    """
    if not plan.is_noop:
        return None
    outcomes: dict[str, NodeFinished] = {}
    for node in plan.selected:
        ref, finished = store.read_ref(plan.experiment, node.key), node.finished
        if ref is None or finished is None or ref.manifest_sha256 != finished.sha256:
            return None
        outcomes[node.key] = NodeFinished(
            node=node.key,
            action=Action.REUSE,
            produced=False,
            forced=False,
            manifest=finished.manifest,
            manifest_path=finished.path,
            manifest_sha256=finished.sha256,
            seconds=0.0,
        )
    return RunResult(outcomes, 0)
