"""Tags, params and metrics of an MLflow run, made of facts, within what MLflow takes."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pipelines.flow.fingerprint import sha256_of
from pipelines.flow.lineage.facts import LineageRecord, NodeFacts

MAX_PARAM_LENGTH = 6_000
MAX_TAG_LENGTH = 5_000  # MLflow's own limit is 8,000 on the server and cuts silently; some databases hold 5,000
MAX_KEY_LENGTH = 250


def node_tags(record: LineageRecord) -> dict[str, str]:
    """Tags of a node's run, `x2.seal` included: any single edited tag or param of ours then shows in an audit."""
    tags = {
        "x2.kind": "node",
        "x2.run_key": record.run_key,
        "x2.dag_run": record.dag_run,
        "x2.experiment": record.experiment,
        "x2.plan_sha": record.tags.get("x2.plan_sha", ""),
        "x2.node": record.node,
        "x2.stage": record.node.split("/", 1)[0],
    }
    if record.message:
        tags["x2.message"] = cut(record.message, MAX_TAG_LENGTH)
    if record.cache:
        tags["x2.cache"] = record.cache
    if facts := record.facts:
        tags |= {
            "x2.stage_key": facts.fingerprint,
            "x2.manifest_sha": facts.manifest_sha256,
            "x2.manifest_path": facts.manifest_path,
            "x2.root": facts.root,
            "x2.producer": "false" if record.cache == "hit" else "true",
        }
    return tags


def job_tags(record: LineageRecord) -> dict[str, str]:
    """Tags of a job's run."""
    own = {
        "x2.kind": "job",
        "x2.run_key": record.run_key,
        "x2.dag_run": record.dag_run,
        "x2.experiment": record.experiment,
    }
    return own | {key: cut(value, MAX_TAG_LENGTH) for key, value in record.tags.items()}


def model_tags(record: LineageRecord, facts: NodeFacts) -> dict[str, str]:
    """Tags of a logged model: which bytes it is and who made it."""
    return {
        "x2.artifact_sha": facts.root,
        "x2.manifest_sha": facts.manifest_sha256,
        "x2.manifest_path": facts.manifest_path,
        "x2.node": facts.node,
        "x2.stage_key": facts.fingerprint,
        "x2.dag_run": record.dag_run,
    }


def sealed(tags: Mapping[str, str], params: Mapping[str, str]) -> dict[str, str]:
    """`tags` with `x2.seal`, a hash over all our tags and params."""
    return {**tags, "x2.seal": tag_seal(tags, params)}


def tag_seal(tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    """What `x2.seal` must be for these tags and params; tags that are not ours do not count."""
    ours = {key: value for key, value in tags.items() if key.startswith("x2.") and key != "x2.seal"}
    return sha256_of({"tags": ours, "params": dict(params)})


def node_params(facts: NodeFacts) -> dict[str, str]:
    """Params of a node's run: only what the plan fixes, since MLflow refuses to change a param on resume."""
    params = {"stage_version": str(facts.version)}
    for key, value in _flat("config", facts.config):
        params[metric_name(key)] = cut(value, MAX_PARAM_LENGTH)
    return params


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for key in sorted(value) for pair in _flat(f"{prefix}.{key}", value[key])]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, sort_keys=True))]


def node_metrics(facts: NodeFacts) -> dict[str, float]:
    """Final numbers of a node: its own metrics, and counts by unit and drop reason."""
    metrics: dict[str, float] = {}
    for key, value in facts.metrics.items():
        name = metric_name(key)
        # "tr@1" and "tr_1" look alike to MLflow; the second is told apart by its hash.
        metrics[name if name not in metrics else f"{name}_{sha256_of(key)[:8]}"] = value
    metrics |= {"parts": float(facts.num_parts), "bytes": float(facts.num_bytes)}
    for unit, count in facts.counts.items():
        metrics[metric_name(f"{unit}.in")] = float(count.num_in)
        metrics[metric_name(f"{unit}.out")] = float(count.num_out)
        metrics |= {metric_name(f"{unit}.dropped.{reason}"): float(n) for reason, n in count.dropped.items()}
    return metrics


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning with a mark that says what was cut and the hash of the whole."""
    if len(text) <= limit:
        return text
    mark = f"... [cut, {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}]"
    return text[: limit - len(mark)] + mark


def metric_name(name: str) -> str:
    """`name` as MLflow takes it for metrics and params: allowed characters only, no odd path, at most 250 characters.

    A name that had to be shortened ends in the beginning of the hash of the whole.
    """
    clean = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    clean = "/".join(step for step in clean.split("/") if step not in ("", ".", "..")) or "_"
    if len(clean) > MAX_KEY_LENGTH:
        clean = f"{clean[: MAX_KEY_LENGTH - 13]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return clean
