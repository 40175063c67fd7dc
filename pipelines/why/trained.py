"""The steps that have read a row, of trainings whose record is draws by shard instead of a list of samples.

Such a record (`pipelines.s5_pretrain.samples`) has no keys: the order of the steps is inverted for the one in question.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from pipelines.flow.audit.sample_history import Trace
from pipelines.flow.stage import Part
from pipelines.flow.store.artifact import ManifestPart, SealedManifest
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.shards import shard_names, shard_reads
from x2vlm.errors import CorruptArtifact

SHARDS = "shards"  # slot of a training
DRAWS, SUBSTITUTES = "draws.parquet", "substitutes.parquet"  # as `pipelines.s5_pretrain.samples` calls them


def trained_steps(store: Store, manifests: Sequence[SealedManifest], key: str, traces: Sequence[Trace]) -> list[Trace]:
    """One trace for each step that has read the row with this key; `traces` say in which shard it was packed.

    Reads the manifest of the shards, the index of one of them and the substitutes of the run: nothing that has a line
    for every sample.
    """
    found: list[Trace] = []
    for stored in manifests:
        for part in stored.manifest.parts if stored.manifest.stage == "pretrain" else ():
            if any(file.path == DRAWS for file in part.record.files):
                found += _steps_of(store, stored, part, key, traces)
    return found


def _steps_of(
    store: Store, stored: SealedManifest, part: ManifestPart, key: str, traces: Sequence[Trace]
) -> Iterator[Trace]:
    packed = {one.node: one for one in stored.manifest.inputs if one.slot == SHARDS}
    trace = next((one for one in traces if one.node in packed and one.shard), None)
    if trace is None:
        return
    read = store.read_manifest(packed[trace.node].manifest_path)
    if read is None:
        raise CorruptArtifact(
            f"{store.uri_of(packed[trace.node].manifest_path)}: gone, with the shards that {stored.manifest.node} "
            "has read; restore it from a backup"
        )
    whole = Part("train", tuple(shard_reads(store.as_input(*read))))
    from pipelines.s5_pretrain.samples import order_of_run, steps_of  # torch, which few questions need

    config = PretrainConfig.model_validate(stored.manifest.config)
    order = order_of_run(config, whole)
    shard = shard_names(whole).index(trace.shard)
    if shard >= order.num_shards:  # held out
        return
    steps = steps_of(order, shard, key, _first_step(config, part), config.train.steps, _replaced(store, part, key))
    for step in steps:
        yield Trace(stored.manifest.node, part.name, DRAWS, -1, {"key": key, **step})


def _first_step(config: PretrainConfig, part: ManifestPart) -> int:
    """The step at which the training began: a branch goes on with the counter of the run it came from."""
    is_branch = config.start is not None and config.start.run is not None
    return int(part.record.summary["start"]["step"]) if is_branch else 0


def _replaced(store: Store, part: ManifestPart, key: str) -> Mapping[int, list[dict[str, Any]]]:
    """By step, the substitutes that have to do with the row, as a line of metrics tells them."""
    file = next(one for one in part.record.files if one.path == SUBSTITUTES)
    uri = store.file_uri(part.record, file)
    path = local_path_of(uri)
    with path.open("rb") if path is not None else store.blobs.fs.open(uri, "rb") as stream:
        rows = pq.read_table(stream, filters=[[("replaced", "=", key)], [("used", "=", key)]]).to_pylist()
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.pop("step"), []).append({**row, "key": row.pop("replaced")})
    return found
