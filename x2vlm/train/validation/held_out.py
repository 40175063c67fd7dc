"""Validation during training: losses of held-out batches, and zero-shot tasks on them.

Whole shards are held out. The shard of a sample is a hash of its key, so they are a random sample, and removing a
sample moves no other. The same image under two keys (COCO and Visual Genome share some) may be in both parts.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.randomness import derive_seed
from x2vlm.errors import ConfigError
from x2vlm.train.step import Trainer, stream_losses
from x2vlm.train.validation.zero_shot import ZeroShot

log = logging.getLogger(__name__)


def split_shards(shards: Sequence[ShardFiles], fraction: float) -> tuple[Sequence[ShardFiles], Sequence[ShardFiles]]:
    """The shards to train on and those held out: the last `fraction` of them, at least one unless it is 0.

    ConfigError if nothing would be left to train on.
    """
    num_held_out = math.ceil(fraction * len(shards))
    if num_held_out >= len(shards):
        raise ConfigError(
            f"validation_share {fraction} holds out {num_held_out} of {len(shards)} shards; lower it, or raise "
            "num_shards"
        )
    num_trained = len(shards) - num_held_out
    return shards[:num_trained], shards[num_trained:]


@torch.no_grad()
def validate(
    trainer: Trainer, held_out: StepLoader, num_batches: int, beat: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Means over the first `num_batches` steps of `held_out`, as `valid/<stream>/<loss>` and the zero-shot measures.

    The same rows, crops, masks and negatives every time, without dropout. Non-finite values are left out. Call it
    on all ranks; it leaves the model in training mode and changes the random state, which every step seeds anew.
    """
    model, ranks = trainer.model, trainer.ranks
    values: dict[str, list[Tensor]] = {}
    zero_shot = ZeroShot(trainer)
    model.eval()
    try:
        for number in range(num_batches):
            beat()
            data = held_out[number]
            torch.manual_seed(derive_seed(trainer.seed, "validation", number, ranks.rank))
            batches = {name: batch.to(ranks.device, non_blocking=True) for name, batch in data.batches.items()}
            objectives = {name: trainer.objective(name) for name in batches}
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=trainer.config.precision == "bfloat16"):
                losses = stream_losses(trainer, batches, objectives, derive_seed(trainer.seed, "validation", number))
                for name, batch in batches.items():
                    zero_shot.add(name, batch)
            for name, parts in losses.items():
                for part, loss in parts.items():
                    values.setdefault(f"{name}/{part}", []).append(loss.double())
    finally:
        model.train()
    means = torch.stack([torch.stack(found).mean() for found in values.values()])
    if ranks.world_size > 1:
        dist.all_reduce(means)
        means /= ranks.world_size
    found = dict(zip(values, means.tolist(), strict=True)) | zero_shot.measures()
    if bad := [name for name, value in found.items() if not math.isfinite(value)]:
        log.warning("validation_not_finite numbers=%s", bad)
    return {f"valid/{name}": value for name, value in found.items() if math.isfinite(value)}
