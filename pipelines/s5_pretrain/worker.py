"""Training processes: on this one, or on Ray Train workers that are replaced when they are lost."""

import fcntl
import hashlib
import logging
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import ray
import torch

from pipelines.s5_pretrain.config import PretrainConfig
from x2vlm.config import parse_config
from x2vlm.data.loader import StepLoader
from x2vlm.data.streams import ShardFiles
from x2vlm.data.tokenizer import WordPieceTokenizer
from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.loop import fit
from x2vlm.train.ranks import current_ranks

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
MAX_WORKER_FAILURES = 3


def train(job: Mapping[str, Any], world_size: int) -> None:
    """Run `train_worker` here if one process is enough and there is no Ray, else on Ray Train."""
    if world_size == 1 and not ray.is_initialized():
        train_worker(job)
    else:
        _train_on_ray(job, world_size)


def train_worker(job: Mapping[str, Any]) -> None:
    """What every process does: build model and loader, train to the end. `job` is plain JSON."""
    # timm and transformers, which a driver of Ray workers does not need
    from pipelines.s5_pretrain.start_weights import load_start, random_model

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
    model = random_model(config)
    new_parameters = load_start(model, job.get("start"), ranks.is_first)
    state = job["state_uri"]
    store = CheckpointStore(f"{state}/checkpoints", config.train.keep_checkpoints)
    metrics_uri, num_readers = f"{state}/{METRICS}", _num_readers(config)
    fit(
        model, loader, config.train, ranks, store, metrics_uri, job["facts"], num_readers, new_parameters=new_parameters
    )


def _num_readers(config: PretrainConfig) -> int:
    """Processes that read ahead for one trainer: its share of the cores where a GPU waits, else none."""
    if not torch.cuda.is_available():
        return 0
    return max(1, (os.cpu_count() or 1) // max(1, min(config.world_size, torch.cuda.device_count())) - 1)


def _train_on_ray(job: Mapping[str, Any], world_size: int) -> None:
    """Run `train_worker` on `world_size` Ray Train workers; lost ones are replaced and go on from the checkpoint.

    The run's name is new every time: under an old one Ray would go on from its own snapshot and do nothing.
    """
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
        media = _local_copy(shard["media"], shard["media_sha256"])
        index = _local_copy(shard["index"], shard["index_sha256"])
        actual = hashlib.sha256(index.read_bytes()).hexdigest()
        if actual != shard["index_sha256"]:
            raise CorruptArtifact(
                f"{shard['index']}: sha256 is {actual[:12]}…, recorded is {shard['index_sha256'][:12]}…; rerun pack"
            )
        files.append(ShardFiles(media, index))
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
