"""The work of every process of a fine-tuning: train to the last epoch, then measure epochs and choose one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipelines.s5_pretrain.fencing import Fence
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.data import open_media, read_splits
from pipelines.s5_pretrain.finetune.prepare import (
    bare_model,
    load_start,
    read_start_processor,
    trained_by,
    with_adapters,
)
from pipelines.s5_pretrain.finetune.select import Selection
from pipelines.s5_pretrain.runs import CHECKPOINTS, METRICS
from x2vlm.config import parse_config
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.config import FinetuneConfig
from x2vlm.tasks.training.loader import TaskLoader
from x2vlm.tasks.training.objective import FineTuning
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.ranks import Ranks, copy_from_first


def steps_per_epoch(settings: FinetuneConfig, num_rows: int) -> int:
    """Steps of a pass over the rows, as `TaskLoader.steps_per_epoch`."""
    return max(1, num_rows // settings.batch_size)


def train_config(settings: FinetuneConfig, num_rows: int) -> TrainConfig:
    """The training of all epochs."""
    steps = settings.epochs * steps_per_epoch(settings, num_rows)
    return TrainConfig(
        steps=steps,
        warmup_steps=int(settings.warmup * steps),
        clip_norm=settings.clip_norm,
        optimizer=settings.optimizer,
        precision=settings.precision,
    )


class TaskTrainingRun:
    """A job of kind `finetune`."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        self.shared = parse_config(FinetuneNodeConfig, job["config"], "finetune job")

    def run(
        self,
        ranks: Ranks,
        runtime: TrainRuntime,
        fence: Fence,
        num_readers: int,
        asks_save: Callable[[int], bool] | None,
    ) -> None:
        """Train and select; everything is kept in the state folder, so either goes on where it was killed."""
        job, config, settings = self.job, self.shared, self.shared.finetune
        torch.set_num_threads(runtime.cpu_threads)
        task = task_spec(config.task).load()
        training = trained_by(task, config.task)
        splits = read_splits(job["data"], runtime)
        media, processor = open_media(job["data"], runtime), read_start_processor(job["start"])
        loader = TaskLoader(
            splits["train"].examples,
            training,
            config.options,
            processor,
            functools.partial(media.visual, processor=processor),
            settings.batch_size,
            settings.seed,
            settings.augment,
            ranks.rank,
            ranks.world_size,
        )
        model = bare_model(job["start"])
        if ranks.is_first:
            load_start(model, job["start"], job["state_uri"])
        with_adapters(model, settings)
        checkpoints = CheckpointStore(
            f"{job['state_uri']}/{CHECKPOINTS}",
            runtime.keep_checkpoints,
            loader.steps_per_epoch,
            before_commit=fence.check,
            retry_seconds=runtime.store_retry_seconds,
        )
        selection = Selection(config, splits, media, processor, job, ranks, fence)
        copy_from_first(model.to(ranks.device), ranks)
        selection.rehearse(model)
        fit(
            model,
            loader,  # type: ignore[arg-type]  # of a task
            train_config(settings, len(loader.rows)),
            ranks,
            checkpoints,
            f"{job['state_uri']}/{METRICS}",
            job["facts"],
            num_readers,
            new_parameters=job["start"]["new"],
            runtime=runtime.model_copy(update={"keep_every": None, "validate_every": None}),
            asks_save=asks_save,
            learns=FineTuning(
                training,
                config.options,
                job["start"]["labels"],
                settings.accumulate,
                prepared=training.before(splits["train"].examples, processor, config.options),
            ),
            save_every=loader.steps_per_epoch,
        )
        selection.run(model, checkpoints, loader.steps_per_epoch)
