"""What the store has of nodes that never finished: a run that broke off, or a node of which no row came out.

Such a node has no manifest, but its committed parts say what became of every row, which is what its user wants to know.
"""

from collections.abc import Sequence

from pipelines.experiment import Experiment
from pipelines.flow.run.events import Action
from pipelines.flow.run.planner import PlannedNode, plan
from pipelines.flow.stage import Graph, Node
from pipelines.flow.store.artifact import (
    CountRecord,
    InputRecord,
    Manifest,
    ManifestPart,
    SealedManifest,
    content_root,
    seal,
    total_counts,
)
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from x2vlm.errors import X2VLMError


def all_manifests(store: Store, experiment: Experiment, finished: Sequence[SealedManifest]) -> Sequence[SealedManifest]:
    """`finished`, and a stand-in for every other node of `experiment` that has committed parts; producers first.

    A finished node that reads an unfinished one is left out: what the store has of it is of an earlier run. Only
    `finished` where the plan cannot be made, because an upstream file is gone for example, and where every node is
    finished under the config that it has now, which takes no planning to see.
    """
    try:
        graph = build_graph(experiment)
        if _is_current(graph, finished):
            return finished
        planned = plan(graph, store, experiment.name)
    except X2VLMError:
        return finished
    found: list[SealedManifest] = []
    stale: set[str] = set()
    for node in planned.nodes:
        if stale.intersection(graph[node.key].upstream()):
            stale.add(node.key)
        elif node.action is not Action.REUSE and node.num_done:
            stale.add(node.key)
            found.append(_stand_in(store, graph[node.key], node, {one.key: one for one in planned.nodes}))
    return [*(one for one in finished if one.manifest.node not in stale), *found]


def _is_current(graph: Graph, finished: Sequence[SealedManifest]) -> bool:
    """Whether each node has a manifest of its present version and config."""
    stored = {one.manifest.node: one.manifest for one in finished}
    for key in graph:
        node, manifest = graph[key], stored.get(key)
        if manifest is None or manifest.version != node.stage.version:
            return False
        if manifest.config != node.config.model_dump(mode="json", exclude_defaults=True):
            return False
    return True


def _stand_in(store: Store, node: Node, planned: PlannedNode, nodes: dict[str, PlannedNode]) -> SealedManifest:
    records = {
        part.name: record
        for part in planned.parts
        if part.done and (record := store.read_part(node.stage.name, part.fingerprint)) is not None
    }
    inputs = [
        InputRecord(slot=slot, node=item, root=manifest.root)
        for slot, items in node.inputs.items()
        for item in items
        if isinstance(item, str) and (manifest := nodes[item].manifest) is not None
    ]
    manifest = Manifest(
        node=node.key,
        stage=node.stage.name,
        version=node.stage.version,
        fingerprint=planned.fingerprint or "",
        config=node.config.model_dump(mode="json", exclude_defaults=True),
        inputs=inputs,
        parts=[
            ManifestPart(name=name, record=record, record_sha256=seal(record)[1]) for name, record in records.items()
        ],
        counts={unit: CountRecord.of(count) for unit, count in sorted(total_counts(records).items())},
        root=content_root(records),
    )
    return SealedManifest(manifest, "", "")
