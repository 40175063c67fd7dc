"""Work for several real processes over gloo. Imports little at the top: every process pays for it again."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import normalize

from x2vlm.objectives.across_ranks import NegativeGroup, gather_over
from x2vlm.objectives.losses import contrastive

NUM_ROWS = 8


def run_ranks(work: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `work(rank, world_size, *arguments)` gave on each of `world_size` processes of one gloo group."""
    with TemporaryDirectory() as folder:
        mp.spawn(_run_rank, args=(world_size, folder, work, arguments), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.save(work(rank, world_size, *arguments), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def contrastive_problem() -> tuple[list[torch.nn.Linear], Tensor, tuple[Tensor, Tensor]]:
    """Two linear encoders, a temperature, and the rows of a whole batch."""
    torch.manual_seed(4)
    layers = [torch.nn.Linear(5, 4), torch.nn.Linear(3, 4)]
    return layers, torch.tensor(0.2, requires_grad=True), (torch.randn(NUM_ROWS, 5), torch.randn(NUM_ROWS, 3))


def contrastive_gradients(rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Loss and gradients averaged over the ranks, by gradient rule."""
    results = {}
    for gradient in ("true", "reference"):
        layers, temperature, inputs = contrastive_problem()
        own = slice(rank * NUM_ROWS // world_size, (rank + 1) * NUM_ROWS // world_size)
        features = [normalize(layer(rows[own]), dim=1) for layer, rows in zip(layers, inputs, strict=True)]
        loss = contrastive(*features, temperature, gather=gather_over(), gradient=gradient)
        loss.backward()
        gradients = [layers[0].weight.grad, layers[1].weight.grad, temperature.grad]
        results[gradient] = [loss.detach(), *(_mean(value, world_size) for value in gradients)]
    return results


def _mean(value: Tensor | None, world_size: int) -> Tensor:
    mean = torch.zeros(()) if value is None else value.clone()
    dist.all_reduce(mean)
    return mean / world_size


# Row numbers of the whole batch of four; every negative lies on the other of two ranks.
IMAGE_NEGATIVES, TEXT_NEGATIVES = torch.tensor([2, 3, 1, 0]), torch.tensor([3, 2, 0, 1])


def matching_gradients_of_one(kind: str) -> dict[str, Tensor]:
    """Matching loss and gradients of one process with the whole batch."""
    model, batch = _matching_problem(kind, slice(0, 4))
    return _matching(model, batch, None, (IMAGE_NEGATIVES, TEXT_NEGATIVES))


def matching_gradients(rank: int, world_size: int, kind: str) -> dict[str, Tensor]:
    """The same averaged over two ranks that exchange rows."""
    own = slice(2 * rank, 2 * rank + 2)
    model, batch = _matching_problem(kind, own)
    group = NegativeGroup(gather_over(), length=9)
    results = _matching(model, batch, group, (IMAGE_NEGATIVES[own], TEXT_NEGATIVES[own]))
    return {name: _mean(value, world_size) for name, value in results.items()}


def _matching_problem(kind: str, own: slice):
    from tests.support.models.tiny import tiny_model
    from x2vlm.data.loading.batch import Batch

    model = tiny_model()
    torch.manual_seed(8)
    ids, pixels, patches = torch.randint(5, 50, (4, 7)), torch.randn(4, 3, 64, 64), torch.rand(4, 16) > 0.5
    patches[:, 2] = True
    mask = torch.arange(7)[None] < torch.tensor([[7], [4], [5], [6]])
    nothing = torch.full((4, 1), -100)
    texts = {"text_ids_BL": ids, "text_mask_BL": mask, "masked_ids_BL": ids, "masked_labels_BK": nothing}
    fields = {name: value[own] for name, value in texts.items()}
    fields["masked_positions_BK"] = torch.zeros(len(ids[own]), 1, dtype=torch.long)
    if kind == "region":  # two regions in every second image: rows 0, 1 in image 1, rows 2, 3 in image 3
        first = own.start
        image_of = torch.tensor([1, 1, 3, 3])[own] - first
        fields |= {"image_of_R": image_of, "patch_mask_RP": patches[own], "box_cxcywh_R4": torch.rand(4, 4)[own]}
        fields["is_whole_image_R"] = torch.zeros(len(image_of), dtype=torch.bool)
    return model, Batch(kind=kind, keys=["row"] * len(ids[own]), pixels=pixels[own], **fields)


def _matching(model, batch, group, negatives) -> dict[str, Tensor]:
    from x2vlm.objectives.step import pretrain_losses

    loss = pretrain_losses(model, batch, negatives, negative_group=group)["matching"]
    loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return {"loss": loss.detach()} | gradients


def grouped_matching_of_one(kind: str, size: int) -> dict[str, Tensor]:
    """Matching loss and gradients of one process that draws negatives of the whole batch in groups of `size`."""
    model, batch = _matching_problem(kind, slice(0, 4))
    return _grouped_matching(model, batch, size, None, None)


def grouped_matching(rank: int, world_size: int, kind: str, size: int) -> dict[str, Tensor]:
    """The same averaged over two ranks, which exchange rows if a group spans both."""
    model, batch = _matching_problem(kind, slice(2 * rank, 2 * rank + 2))
    all_rows = gather_over()
    group = NegativeGroup(all_rows, length=9) if size > batch.num_rows else None
    results = _grouped_matching(model, batch, size, all_rows, group)
    return {name: _mean(value, world_size) for name, value in results.items()}


def _grouped_matching(model, batch, size, gather, group) -> dict[str, Tensor]:
    from x2vlm.objectives.config import ObjectiveConfig
    from x2vlm.objectives.step import pretrain_losses

    loss = pretrain_losses(
        model, batch, config=ObjectiveConfig(negative_group_size=size), gather=gather, negative_group=group,
        generator=torch.Generator().manual_seed(11),
    )["matching"]  # fmt: skip
    loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return {"loss": loss.detach()} | gradients
