"""Pretrain: packed shards to trained weights, on one process or on Ray Train workers.

One part. Its checkpoints live in the part's state folder, so a killed worker, a killed driver and a lost machine all
end the same way: the same command goes on from the newest valid checkpoint. A part writes `model.safetensors`,
`config.json`, `vocab.txt`, `metrics.jsonl` (one line per step) and `samples.parquet` (every sample of every step).
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from x2vlm.config import FrozenConfig, parse_config
from x2vlm.data.loader import DataConfig, StepLoader
from x2vlm.data.randomness import derive_seed
from x2vlm.data.streams import ShardFiles
from x2vlm.data.tokenizer import WordPieceTokenizer
from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed
from x2vlm.models.config import ModelConfig
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.loop import TrainConfig, fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.ranks import current_ranks

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SAMPLES_SCHEMA = pa.schema([("step", pa.int64()), ("stream", pa.string()), ("key", pa.string())])
# Final numbers are means over this many last steps: a single step says little.
NUM_FINAL_STEPS = 10
MAX_WORKER_FAILURES = 3


class PretrainConfig(FrozenConfig):
    """What is trained, on what and how; the defaults are the released base 4M recipe on 8 GPUs.

    `world_size` processes share every global batch. It never changes the recipe, but sums are added in another order
    and negatives of the matching loss are drawn within a process, so it does change the weights, and counts.
    `record_samples` writes samples.parquet: about 0.3 ms per sample on one core, so a run of 10^8 samples may rather
    do without; the record can be computed for any step at any time.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    world_size: int = pydantic.Field(default=8, ge=1)
    record_samples: bool = True

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> "PretrainConfig":
        for stream in self.data.streams:
            if stream.batch_size % self.world_size:
                raise ValueError(
                    f"stream {stream.label}: batch_size {stream.batch_size} is no multiple of world_size "
                    f"{self.world_size}"
                )
        frames = self.data.examples.frames_per_clip
        has_clips = any(stream.kind == "video" for stream in self.data.streams)
        if has_clips and self.model.num_frames is not None and frames > self.model.num_frames:
            raise ValueError(f"clips have {frames} frames, the model has positions for {self.model.num_frames}")
        if self.data.examples.max_tokens > self.model.text.max_positions:
            raise ValueError("data.examples.max_tokens is more than model.text.max_positions")
        return self


def plan_pretrain(config: PretrainConfig, inputs: Inputs) -> list[Part]:
    """One part that reads every shard and the vocabulary."""
    (shards,) = inputs["shards"]
    (vocabulary,) = inputs["vocabulary"]
    reads = [Read("shards", file) for part in shards.parts for file in part.files if _is_shard_file(file.path)]
    reads.append(Read("vocabulary", vocabulary.parts[0].files[0]))
    return [Part(name="train", reads=tuple(reads), spec={"shards_root": shards.root})]


def pretrain_part(config: PretrainConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Train, then copy the result out of the state folder. ConfigError if the vocabulary does not fit the model."""
    (vocabulary,) = [inputs.local_path(read.file) for read in part.reads if read.slot == "vocabulary"]
    words = vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if len(words) > config.model.text.vocab_size:
        raise ConfigError(
            f"the vocabulary has {len(words)} entries, model.text.vocab_size is {config.model.text.vocab_size}; "
            "set it to at least the number of lines of the vocabulary"
        )
    job = {
        "config": config.model_dump(mode="json"),
        "shards": _shard_uris(part),
        "vocabulary": words,
        "state_uri": out.state_uri,
        "facts": {"shards_root": part.spec["shards_root"], "world_size": config.world_size},
    }
    import ray  # not at the top: planning must not wait for it

    if config.world_size == 1 and not ray.is_initialized():
        train_worker(job)
    else:
        _train_on_ray(job, config.world_size)
    return _collect(config, inputs, part, out, vocabulary)


def train_worker(job: Mapping[str, Any]) -> None:
    """What every process does: build model and loader, train to the end. `job` is plain JSON."""
    from x2vlm.models.x2vlm import build_model  # timm and transformers: not at the top, planning must not wait for them

    config = parse_config(PretrainConfig, job["config"], "pretrain job")
    ranks = current_ranks("cuda" if torch.cuda.is_available() else "cpu")
    if ranks.world_size != config.world_size:
        raise ConfigError(f"{ranks.world_size} processes were started, the experiment says {config.world_size}")
    loader = StepLoader(
        fetch_shards(job["shards"]),
        config.data,
        WordPieceTokenizer(job["vocabulary"]),
        config.model.vision.image_res,
        config.model.vision.patch_size,
        ranks.rank,
        ranks.world_size,
    )
    torch.set_num_threads(config.train.cpu_threads)
    torch.manual_seed(derive_seed(config.data.seed, "initial weights"))
    model = build_model(config.model)
    state = job["state_uri"]
    store = CheckpointStore(f"{state}/checkpoints", config.train.keep_checkpoints)
    fit(model, loader, config.train, ranks, store, f"{state}/{METRICS}", job["facts"], _num_readers(config))


def _num_readers(config: PretrainConfig) -> int:
    """Processes that read ahead for one trainer: its share of the cores where a GPU waits, else none."""
    if not torch.cuda.is_available():
        return 0
    return max(1, (os.cpu_count() or 1) // max(1, min(config.world_size, torch.cuda.device_count())) - 1)


def _train_on_ray(job: Mapping[str, Any], world_size: int) -> None:
    """Run `train_worker` on `world_size` Ray Train workers; lost ones are replaced and go on from the checkpoint.

    The run's name is new every time: under an old one Ray would go on from its own snapshot and do nothing.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    state_uri = job["state_uri"]
    name = f"pretrain-{Path(state_uri).name[:12]}-{uuid.uuid4().hex[:8]}"
    if not ray.is_initialized():
        ray.init()
    use_gpu = ray.cluster_resources().get("GPU", 0) >= world_size  # type: ignore[no-untyped-call]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=dict(job),
        scaling_config=ScalingConfig(num_workers=world_size, use_gpu=use_gpu),
        run_config=RunConfig(
            name=name,
            storage_path=f"{state_uri}/ray",
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
        ),
    )
    log.info("ray_train run=%s workers=%d gpu=%s", name, world_size, use_gpu)
    result = trainer.fit()
    if result.error:
        raise StageFailed(f"pretrain: {name} failed: {result.error}") from result.error


def fetch_shards(shards: Sequence[Mapping[str, str]]) -> list[ShardFiles]:
    """The shards as local files: in place if they are local, else copied once per machine.

    Indexes are checked against their sha256; payloads are checked one by one when they are read.
    """
    files = []
    for shard in shards:
        tar = _local_copy(shard["tar"], shard["tar_sha256"])
        index = _local_copy(shard["index"], shard["index_sha256"])
        actual = hashlib.sha256(index.read_bytes()).hexdigest()
        if actual != shard["index_sha256"]:
            raise CorruptArtifact(
                f"{shard['index']}: sha256 is {actual[:12]}…, recorded is {shard['index_sha256'][:12]}…; rerun pack"
            )
        files.append(ShardFiles(tar, index))
    return files


def _local_copy(uri: str, sha256: str) -> Path:
    fs, path = fsspec.core.url_to_fs(uri)
    if "file" in fs.protocol:
        return Path(path)
    cache = Path(tempfile.gettempdir()) / "x2vlm-shards"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{sha256}{Path(path).suffix}"
    with (cache / f"{sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of a machine want the same file
        if not target.exists():
            fs.get_file(path, f"{target}.tmp")
            os.replace(f"{target}.tmp", target)
    return target


def _shard_uris(part: Part) -> list[dict[str, str]]:
    files = {read.file.path: read.file for read in part.reads if read.slot == "shards"}
    return [
        {
            "tar": file.uri,
            "tar_sha256": file.sha256,
            "index": files[_index_name(path)].uri,
            "index_sha256": files[_index_name(path)].sha256,
        }
        for path, file in sorted(files.items())
        if path.endswith(".tar")
    ]


def _is_shard_file(path: str) -> bool:
    return path.startswith("shard-") and path.endswith((".tar", ".parquet"))


def _index_name(tar_name: str) -> str:
    return tar_name.removesuffix(".tar") + ".parquet"


def _collect(config: PretrainConfig, inputs: PartReader, part: Part, out: PartWriter, vocabulary: Path) -> PartResult:
    """Copy the last checkpoint and the metrics to `out`, write the record of samples, and sum up."""
    from x2vlm.models.hf import save_weights

    steps = config.train.steps
    checkpoint = CheckpointStore(f"{out.state_uri}/checkpoints").load_newest()
    if checkpoint is None or checkpoint.step != steps:
        raise StageFailed(f"pretrain: the last checkpoint in {out.state_uri} is not of step {steps}; run it again")
    training = config.model_dump(mode="json", exclude={"model"})
    facts = {"shards_root": part.spec["shards_root"], "format": "x2vlm-pretrain-1"}
    save_weights(config.model, checkpoint.model, out.path, {**training, **facts})
    shutil.copyfile(vocabulary, out.path / "vocab.txt")
    with fsspec.open(f"{out.state_uri}/{METRICS}", "rb") as source, (out.path / METRICS).open("wb") as target:
        shutil.copyfileobj(source, target)
    metrics = read_metrics(out.path / METRICS)
    if [line["step"] for line in metrics] != list(range(steps)):
        raise StageFailed(
            f"pretrain: {out.state_uri}/{METRICS} does not hold every step exactly once; rerun with force"
        )
    file_rows = {METRICS: steps}
    if config.record_samples:
        file_rows["samples.parquet"] = _write_samples(config, inputs, part, metrics, out.path / "samples.parquet")
    return PartResult(
        counts={"rows": Count(steps, steps)},
        file_rows=file_rows,
        summary={
            "metrics": final_metrics(metrics),
            "metric_series": METRICS,
            "model": {"name": "x2vlm", "type": "x2vlm-pretrain"},
            "num_substitutes": sum(len(line.get("substitutes", ())) for line in metrics),
            **facts,
        },
    )


def final_metrics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of all losses over the last NUM_FINAL_STEPS steps that have them."""
    names = [name for name in metrics[-1] if name == "loss" or "/" in name]
    final = {}
    for name in names:
        values = [line[name] for line in metrics[-NUM_FINAL_STEPS:] if name in line]
        final[name] = sum(values) / len(values)
    return final


def _write_samples(
    config: PretrainConfig, inputs: PartReader, part: Part, metrics: Sequence[Mapping[str, Any]], path: Path
) -> int:
    """The number of rows of `path`: what each step consumed, worked out from the order and the recorded substitutes."""
    indexes = sorted(
        (read.file.path, inputs.local_path(read.file)) for read in part.reads if read.file.path.endswith(".parquet")
    )
    loader = StepLoader(
        [ShardFiles(index.with_suffix(".tar"), index) for _, index in indexes],
        config.data,
        WordPieceTokenizer(inputs.local_path(part.reads[-1].file).read_text(encoding="utf-8").rstrip("\n").split("\n")),
        config.model.vision.image_res,
        config.model.vision.patch_size,
    )
    num_rows = 0
    with pq.ParquetWriter(path, SAMPLES_SCHEMA, compression="zstd") as writer:
        for rows in _batched(consumed_samples(loader, metrics), 100_000):
            columns = [pa.array(column) for column in zip(*rows, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=SAMPLES_SCHEMA))
            num_rows += len(rows)
    return num_rows


def consumed_samples(loader: StepLoader, metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, str]]:
    """(step, stream, key) of every sample that the steps of `metrics` consumed, with recorded substitutes put in."""
    for line in metrics:
        used = {(item["stream"], item["key"]): item["used"] for item in line.get("substitutes", ())}
        for stream, key in loader.consumed(line["step"]):
            seen = set()
            while (stream, key) in used and key not in seen:
                seen.add(key)
                key = used[stream, key]
            yield line["step"], stream, key


def _batched(rows: Iterator[tuple[int, str, str]], size: int) -> Iterator[list[tuple[int, str, str]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


PRETRAIN = Stage(
    name="pretrain",
    version=2,
    config_type=PretrainConfig,
    slots=("shards", "vocabulary"),
    plan_parts=plan_pretrain,
    run_part=pretrain_part,
)
