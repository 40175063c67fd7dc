"""From a model, artifact, run or sample down to the source files, with proof at every step.

`audit` recomputes what can be recomputed (seals, hashes of all files, fingerprints, Merkle roots, conservation of rows)
and compares: records with bytes, consumers with producers, references with manifests, MLflow with manifests.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.flow.audit.artifacts import Finding, StoreAudit
from pipelines.flow.audit.sample_history import Trace, trace_sample
from pipelines.flow.store.artifact import InputRecord, SealedManifest
from pipelines.flow.store.store import Store
from x2vlm.errors import ConfigError, CorruptArtifact

Depth = Literal["full", "manifests"]
Start = tuple[str, str]  # path of a manifest, and the seal it should have ("" where nobody says)

HEX = re.compile(r"[0-9a-f]{8,64}")
SAMPLE_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class AuditReport:
    """What was looked at and what is wrong with it."""

    target: str
    depth: Depth
    findings: tuple[Finding, ...]
    tree: tuple[str, ...]  # lines: the target and its ancestors
    checked: dict[str, int] = field(default_factory=dict)  # manifests, parts, files, bytes, mlflow_runs
    traces: tuple[Trace, ...] = ()  # of a sample

    @property
    def is_clean(self) -> bool:
        return not self.findings

    @property
    def exit_code(self) -> int:
        """0: all is as recorded. 2: drift."""
        return 0 if self.is_clean else 2

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "target": self.target,
            "depth": self.depth,
            "clean": self.is_clean,
            "checked": self.checked,
            "findings": [asdict(finding) for finding in self.findings],
            "tree": list(self.tree),
            "traces": [{"verdict": trace.verdict, **asdict(trace)} for trace in self.traces],
        }

    def text(self) -> str:
        """The report for people: tree, the sample's life if one was asked for, findings, verdict."""
        lines = list(self.tree)
        if self.traces:
            lines += ["", "life of the sample:", *(f"  {trace}" for trace in self.traces)]
        if self.findings:
            lines += ["", "findings:", *(f"  {finding}" for finding in self.findings)]
        numbers = ", ".join(f"{number} {name}" for name, number in self.checked.items())
        verdict = "clean: everything is as recorded" if self.is_clean else f"{len(self.findings)} findings"
        return "\n".join([*lines, "", f"{verdict} ({numbers})"])


def audit(store: Store, target: str, tracking_uri: str | None = None, depth: Depth = "full") -> AuditReport:
    """What holds and what does not for `target` and all its ancestors, down to upstream files and cards.

    `target`: a node key ("filter/coco"), "latest:<experiment>", a manifest's path, the beginning (8 digits or more) of
    a fingerprint, root or manifest seal, a sample key, and with `tracking_uri` an MLflow run id, model id ("m-...") or
    "models:/name@alias". Depth "manifests" compares sizes instead of hashing files. ConfigError if nothing fits.
    """
    walk = StoreAudit(store, full=depth == "full")
    traces: list[Trace] = []
    starts = resolve(store, target, tracking_uri)
    if not starts and SAMPLE_KEY.fullmatch(target):
        traces = trace_sample(store, _all_in_order(store), target)
        starts = [(path, "") for path in _paths_of(store, traces)]
    if not starts:
        raise ConfigError(
            f"{target}: no node, manifest, fingerprint, root, run, model or sample of {store.uri} is called that"
            + ("" if tracking_uri else "; for an MLflow run or model also give --tracking-uri")
        )
    for path, sha256 in starts:
        walk.visit(path, sha256, by=target)
    walk.check_refs()
    num_runs = _audit_mlflow(walk, tracking_uri) if tracking_uri else 0
    checked = {
        "manifests": len(walk.manifests),
        "parts": walk.num_parts,
        "files": walk.num_files,
        "bytes hashed": walk.num_bytes,
        "MLflow runs": num_runs,
    }
    tree = _tree(walk, list(dict.fromkeys(path for path, _ in starts)))
    return AuditReport(target, depth, tuple(walk.findings), tuple(tree), checked, tuple(traces))


def _audit_mlflow(walk: StoreAudit, tracking_uri: str) -> int:
    from pipelines.flow.audit.mlflow_records import (
        MlflowAudit,  # seconds of imports that an audit without MLflow does not need
    )
    from pipelines.flow.lineage.mlflow_client import connect

    stored = [item for item in walk.manifests.values() if item]
    check = MlflowAudit(connect(tracking_uri), walk.store, stored, walk.note)
    check.check()
    return check.num_runs


# ---- what a target means


def resolve(store: Store, target: str, tracking_uri: str | None = None) -> list[Start]:
    """The manifests that `target` names, with the seal they should have where the target says one."""
    if target.startswith("latest:"):
        return _latest(store, target.removeprefix("latest:"))
    if target.endswith(".json"):
        path = target.removeprefix(f"{store.uri}/")
        return [(path, "")] if store.blobs.exists(path) else []
    if target.startswith(("m-", "models:/")):
        return _from_mlflow(target, tracking_uri)
    if HEX.fullmatch(target):
        return _by_hash(store, target) or _from_mlflow(target, tracking_uri)
    return _of_node(store, target) if "/" in target else _latest(store, target)


def _latest(store: Store, experiment: str) -> list[Start]:
    if experiment not in store.experiments():
        return []
    return [start for path in store.blobs.find(f"refs/{experiment}") for start in _of_ref(store, path)]


def _of_node(store: Store, node: str) -> list[Start]:
    """What references call `node`; without any, all its manifests."""
    refs = [path for path in store.blobs.find("refs") if path.split("/", 2)[2] == f"{node}.json"]
    starts = [start for path in refs for start in _of_ref(store, path)]
    return starts or [(path, "") for path in store.blobs.find(f"artifacts/{node}") if path.endswith(".json")]


def _of_ref(store: Store, path: str) -> list[Start]:
    """What a reference names; a damaged one stands for all manifests of its node (and becomes a finding later)."""
    _, experiment, node = path.removesuffix(".json").split("/", 2)
    try:
        ref = store.read_ref(experiment, node)
    except CorruptArtifact:
        ref = None
    if ref is None:
        return [(found, "") for found in store.blobs.find(f"artifacts/{node}") if found.endswith(".json")]
    return [(ref.manifest_path, ref.manifest_sha256)]


def _by_hash(store: Store, prefix: str) -> list[Start]:
    paths = store.manifest_paths()
    named = [(path, "") for path in paths if path.rsplit("/", 1)[-1].startswith(prefix)]
    if named:
        return named
    found = []
    for path in paths:
        try:
            stored = store.read_manifest(path)
        except CorruptArtifact:
            continue  # it cannot be what was asked for; an audit of its node reports it
        if stored and (stored[0].root.startswith(prefix) or stored[1].startswith(prefix)):
            found.append((path, ""))
    return found


def _from_mlflow(target: str, tracking_uri: str | None) -> list[Start]:
    if tracking_uri is None:
        return []
    from pipelines.flow.audit.mlflow_records import manifests_of
    from pipelines.flow.lineage.mlflow_client import connect

    return manifests_of(connect(tracking_uri), target)


# ---- samples


def _all_in_order(store: Store) -> list[SealedManifest]:
    """Every readable manifest, producers before consumers."""
    found: dict[str, SealedManifest] = {}

    def visit(path: str) -> None:
        if path in found:
            return
        try:
            stored = store.read_manifest(path)
        except CorruptArtifact:
            return  # the audit of what it belongs to reports it
        if stored is None:
            return
        for item in stored[0].inputs:
            if item.manifest_path:
                visit(item.manifest_path)
        found[path] = SealedManifest(stored[0], path, stored[1])

    for path in store.manifest_paths():
        visit(path)
    return list(found.values())


def _paths_of(store: Store, traces: Sequence[Trace]) -> list[str]:
    """Manifests that hold a row of the sample."""
    holding = {(trace.node, trace.part) for trace in traces}
    return [
        stored.path
        for stored in _all_in_order(store)
        if any((stored.manifest.node, part.name) in holding for part in stored.manifest.parts)
    ]


# ---- the tree


def _tree(walk: StoreAudit, starts: Sequence[str]) -> list[str]:
    """Each start with what it was made from, indented; what was shown before is only named again."""
    lines: list[str] = []
    shown: set[str] = set()
    below = {item.manifest_path for stored in walk.manifests.values() if stored for item in stored.manifest.inputs}
    for path in [path for path in starts if path not in below] or starts:
        _branch(walk, path, 0, lines, shown)
    return lines


def _branch(walk: StoreAudit, path: str, level: int, lines: list[str], shown: set[str]) -> None:
    indent = "  " * level
    stored = walk.manifests.get(path)
    if stored is None:
        lines.append(f"{indent}{path}: UNREADABLE")
        return
    manifest = stored.manifest
    if path in shown:
        lines.append(f"{indent}{manifest.node} {manifest.fingerprint[:12]} (shown above)")
        return
    shown.add(path)
    rows = manifest.counts.get("rows")
    count = f"{rows.num_in} rows in, {rows.num_out} out, " if rows else ""
    lines.append(
        f"{indent}{manifest.node} {manifest.fingerprint[:12]} v{manifest.version}: {count}"
        f"{len(manifest.parts)} parts, root {manifest.root[:12]}, made {manifest.provenance.get('finished_at', '?')}"
    )
    for item in _distinct(manifest.inputs):
        if item.manifest_path:
            _branch(walk, item.manifest_path, level + 1, lines, shown)
        else:
            lines.append(f"{indent}  {item.node} [{item.slot}] {item.uri} sha256 {item.root[:12]}")


def _distinct(inputs: Sequence[InputRecord]) -> list[InputRecord]:
    """One entry for each artifact, however many slots read it."""
    return list({item.manifest_path or f"{item.slot} {item.uri}": item for item in inputs}.values())
