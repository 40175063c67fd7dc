"""The steps that read a row, told of trainings whose record has no list of samples: equal to a walk over the steps."""

import json
from pathlib import Path

import pytest

from pipelines.flow.audit.sample_history import Trace, trace_sample
from pipelines.flow.fingerprint import sha256_of_file
from pipelines.flow.stage import Part
from pipelines.flow.store.artifact import FileRecord, InputRecord, Manifest, ManifestPart, PartRecord, SealedManifest
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.samples import record_loader, write_record
from pipelines.s5_pretrain.shards import shard_reads
from pipelines.why.trace import manifests_in_order
from pipelines.why.trained import trained_steps
from tests.support.packed_store import packed_store, rows_of_every_format
from tests.support.training.corpus import MODEL, WORDS
from x2vlm.data.loading.loader import StepLoader
from x2vlm.train.config import TrainConfig

STEPS = 12
CONFIG = PretrainConfig.model_validate(
    {
        "model": MODEL,
        "data": {
            "streams": [{"kind": "image", "batch_size": 4}, {"kind": "video", "batch_size": 2}],
            "window_shards": 2,
            "validation_share": 0.3,
            "examples": {"frames_per_clip": 2},
        },
        "train": TrainConfig.model_validate({"steps": STEPS, "warmup_steps": 1}),
        "world_size": 1,
    }
)
Trained = tuple[Store, StepLoader, list[SealedManifest]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A store with shards, the loader of a training on them, and the manifests with that of the training.

    Step 3 replaced its first image by one that is in no other row of that step.
    """
    folder = tmp_path_factory.mktemp("trained")
    store = packed_store(folder, rows_of_every_format(24, 6))
    (pack,) = [one for one in manifests_in_order(store, "toy") if one.manifest.node == "pack/toy"]
    part = Part("train", tuple(shard_reads(store.as_input(pack.manifest))))
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    loader = record_loader(CONFIG, part, vocabulary)
    consumed = [key for stream, key in loader.consumed(3) if stream == "image"]
    used = next(key for step in range(STEPS) for _, key in loader.consumed(step) if key not in consumed)
    substitute = {"stream": "image", "key": consumed[0], "rule": "decode_failed", "used": used}
    metrics = folder / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 3, "substitutes": [substitute]}) + "\n")
    record = PartRecord(stage="pretrain", version=7, fingerprint="ab" * 32, files=[], counts={})
    target = Path(store.uri_of(f"parts/pretrain/ab/{record.fingerprint}"))
    target.mkdir(parents=True)
    files = []
    for name, rows in write_record(loader, 0, STEPS, metrics, target, most=1).items():
        digest, size = sha256_of_file(target / name)
        files.append(FileRecord(path=name, bytes=size, sha256=digest, rows=rows))
    record = record.model_copy(update={"files": files})
    manifest = Manifest(
        node="pretrain/toy",
        stage="pretrain",
        version=7,
        fingerprint="cd" * 32,
        config=CONFIG.model_dump(mode="json"),
        inputs=[
            InputRecord(
                slot="shards",
                node="pack/toy",
                root=pack.manifest.root,
                manifest_path=pack.path,
                manifest_sha256=pack.sha256,
            )
        ],
        parts=[ManifestPart(name="train", record=record, record_sha256="")],
        counts={},
        root="",
    )
    return store, loader, [pack, SealedManifest(manifest, "", "")]


def test_every_row_is_told_the_steps_that_a_walk_finds(trained: Trained) -> None:
    store, loader, manifests = trained
    walked: dict[str, list[tuple[int, str]]] = {}
    for step in range(STEPS):
        for stream, key in loader.consumed(step):
            walked.setdefault(key, []).append((step, stream))
    rows = {key: shard for shard in range(len(loader.streams[0].shards.files)) for key in _keys(loader, shard)}
    assert set(walked) <= set(rows)
    substitutes = 0
    for key in rows:
        packed = trace_sample(store, manifests[:1], key)
        told = [trace.values for trace in trained_steps(store, manifests, key, packed)]
        drawn = [(one["step"], one["stream"]) for one in told if one["how"] != "substitute"]
        assert drawn == walked.get(key, [])
        assert [one["rule"] for one in told if one["how"] == "replaced"] in ([], ["decode_failed"])
        substitutes += len(told) - len(drawn)
    assert substitutes == 1


def test_a_row_of_a_held_out_shard_or_of_none_was_read_by_no_step(trained: Trained) -> None:
    store, loader, manifests = trained
    held_out = f"shard-{len(loader.streams[0].shards.files):05d}.tar"
    trace = Trace("pack/toy", "00003", held_out, 0, {"key": "0" * 32}, held_out)
    assert trained_steps(store, manifests, "0" * 32, [trace]) == []
    assert trained_steps(store, manifests, "0" * 32, []) == []


def _keys(loader: StepLoader, shard: int) -> list[str]:
    return [key.decode() for key in loader.streams[0].shards.rows(shard).keys.tolist()]
