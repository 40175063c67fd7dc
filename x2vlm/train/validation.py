"""Validation during training: losses of held-out batches, and zero-shot retrieval.

Whole shards are held out. The shard of a sample is a hash of its key, so they are a random sample, and removing a
sample moves no other. The same image under two keys (COCO and Visual Genome share some) may be in both parts. B rows, Q
queries, C candidates, E width of the comparison space.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.randomness import derive_seed
from x2vlm.errors import ConfigError
from x2vlm.train.ranks import gather_json
from x2vlm.train.step import Trainer, pretrained_model, stream_losses

log = logging.getLogger(__name__)

RECALL_AT = (1, 5, 10)


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
    """Means over the first `num_batches` steps of `held_out`, as `valid/<stream>/<loss>` and `valid/<stream>/...@k`.

    The same rows, crops, masks and negatives every time, without dropout. Non-finite values are left out. Call it
    on all ranks; it leaves the model in training mode and changes the random state, which every step seeds anew.
    """
    model, ranks = trainer.model, trainer.ranks
    values: dict[str, list[Tensor]] = {}
    pairs: dict[str, list[tuple[Batch, Tensor, Tensor]]] = {}
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
                    if batch.kind == "image":
                        pairs.setdefault(name, []).append((batch, *_features(trainer, batch)))
            for name, parts in losses.items():
                for part, loss in parts.items():
                    values.setdefault(f"{name}/{part}", []).append(loss.double())
    finally:
        model.train()
    means = torch.stack([torch.stack(found).mean() for found in values.values()])
    if ranks.world_size > 1:
        dist.all_reduce(means)
        means /= ranks.world_size
    found = dict(zip(values, means.tolist(), strict=True))
    for name, batches_of in pairs.items():
        found |= {f"{name}/{key}": value for key, value in _retrieval(trainer, batches_of).items()}
    if bad := [name for name, value in found.items() if not math.isfinite(value)]:
        log.warning("validation_not_finite numbers=%s", bad)
    return {f"valid/{name}": value for name, value in found.items() if math.isfinite(value)}


def recalls(similarity_QC: Tensor, is_right_QC: Tensor) -> dict[int, float]:
    """By k the percentage of queries with a right candidate among the top k; ties count against it."""
    best_Q = similarity_QC.masked_fill(~is_right_QC, -torch.inf).amax(dim=1)
    ranks_Q = ((similarity_QC >= best_Q[:, None]) & ~is_right_QC).sum(dim=1)
    return {k: 100 * (ranks_Q < k).double().mean().item() for k in RECALL_AT}


def _features(trainer: Trainer, batch: Batch) -> tuple[Tensor, Tensor]:
    model = pretrained_model(trainer)
    vision = model.encode_image(batch.float_pixels())
    image_BE, text_BE = model.project(vision, model.encode_text(batch.text_ids_BL, batch.text_mask_BL))
    return image_BE.float(), text_BE.float()


def _retrieval(trainer: Trainer, batches: list[tuple[Batch, Tensor, Tensor]]) -> dict[str, float]:
    """Recall, both directions, over the pairs of all ranks, each sample once, by cosine of the contrastive features."""
    keys = gather_json([key for batch, _, _ in batches for key in batch.keys], trainer.ranks)
    images, texts = torch.cat([item[1] for item in batches]), torch.cat([item[2] for item in batches])
    ids = torch.cat([batch.image_ids_B for batch, _, _ in batches if batch.image_ids_B is not None])
    if trainer.gather is not None:
        images, texts, ids = (trainer.gather.rows(rows) for rows in (images, texts, ids))
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    once = torch.tensor(sorted(first.values()), device=images.device)
    images, texts, ids = images[once], texts[once], ids[once]
    similarity = texts @ images.T
    same = ids[:, None] == ids[None, :]
    found = {f"image_of_text@{k}": value for k, value in recalls(similarity, same).items()}
    found |= {f"text_of_image@{k}": value for k, value in recalls(similarity.T, same.T).items()}
    return found | {"retrieval_pairs": float(len(once))}
