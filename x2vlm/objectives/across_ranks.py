"""Gathering rows of other ranks for the losses, and the gradients of gathered rows.

Gradients of parameters must be averaged over ranks afterwards, as DDP does.
B rows, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from x2vlm.models.tokens import VisionTokens


@dataclass(frozen=True)
class Gather:
    """Gathering over ranks: `rows` returns the rows of all ranks in rank order, without a gradient."""

    rank: int
    world_size: int
    rows: Callable[[Tensor], Tensor]
    total: Callable[[Tensor], Tensor] | None = None  # sum over the ranks; only needed to gather rows with a gradient


def gather_over(group: dist.ProcessGroup | None = None) -> Gather:
    """A Gather over an initialised process group (default: all ranks). Every rank must have the same number of rows."""

    def rows(local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts)

    def total(local: Tensor) -> Tensor:
        summed = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=group)
        return summed

    return Gather(dist.get_rank(group), dist.get_world_size(group), rows, total)


@dataclass(frozen=True)
class NegativeGroup:
    """Ranks that all-gather their rows as negatives of the matching loss; texts are padded to `length` tokens.

    So negatives stay as hard when a batch is split over more ranks: among 16 rows of one rank they are easier than
    among 128.
    """

    gather: Gather
    length: int = 40

    def gather_texts(self, text_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """States and lengths of the texts of all ranks, with a gradient to each rank's own.

        Ranks pad to `length` first: finding the longest text would synchronise with the device. ValueError if one is
        longer.
        """
        missing = self.length - text_BLD.shape[1]
        if missing < 0:
            raise ValueError(f"texts of {text_BLD.shape[1]} tokens cannot be shared: raise length ({self.length})")
        text = torch.nn.functional.pad(text_BLD, (0, 0, 0, missing))
        return _GatheredRowsWithGradient.apply(text, self.gather), self.gather.rows(lengths_B)  # type: ignore[no-untyped-call]

    def gather_images(self, vision: VisionTokens) -> VisionTokens:
        """The rows of all ranks, with a gradient to each rank's own; all must have the same number of rows.

        Every rank projects the keys of all of them: each further rank costs as much as the image side of one fusion
        pass. Ranks whose regions lie in different numbers of images pad to as many as they have rows: finding the
        largest number would synchronise with the device. ValueError if there are more images than rows.
        """
        image_of, patch_mask, patches = vision.image_of_B, vision.patch_mask_BP, vision.patches_MPD
        if image_of is not None:
            num_empty = vision.num_rows - len(patches)
            if num_empty < 0:
                raise ValueError(f"{len(patches)} images of {vision.num_rows} regions: leave out those without any")
            patches = torch.nn.functional.pad(patches, (0, 0, 0, 0, 0, num_empty))
            image_of = self.gather.rows(image_of + self.gather.rank * len(patches))
        return VisionTokens(
            summary_BD=_GatheredRowsWithGradient.apply(vision.summary_BD, self.gather),  # type: ignore[no-untyped-call]
            patches_MPD=_GatheredRowsWithGradient.apply(patches, self.gather),  # type: ignore[no-untyped-call]
            image_of_B=image_of,
            patch_mask_BP=None if patch_mask is None else self.gather.rows(patch_mask.to(torch.uint8)).bool(),
        )


def rows_of_all_ranks(local: Tensor, gather: Gather | None, scale: float) -> Tensor:
    """The rows of all ranks in rank order; a gradient reaches the rank's own, times `scale`.

    For a loss that every rank computes in full: the sum over ranks of their own slices is then the true gradient, so
    the backward pass needs no communication.
    """
    gathered: Tensor = _RowsOfAllRanks.apply(local, gather, scale)  # type: ignore[no-untyped-call]
    return gathered


class _GatheredRowsWithGradient(torch.autograd.Function):
    """Gathers rows for losses that differ between ranks: the backward pass sums each row's gradients over the ranks."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Gather) -> Tensor:
        ctx.group, ctx.num_rows = group, len(local)
        return group.rows(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if ctx.group.total is None:
            raise ValueError("a negative group needs Gather.total to send gradients back to the ranks")
        first = ctx.group.rank * ctx.num_rows
        return ctx.group.total(gradients[0])[first : first + ctx.num_rows], None


class _RowsOfAllRanks(torch.autograd.Function):
    """Gathers rows; the backward pass keeps the local slice times `scale`."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, gather: Gather | None, scale: float) -> Tensor:
        ctx.rows = slice(0, len(local)) if gather is None else slice(gather.rank * len(local), None)
        ctx.num_rows, ctx.scale = len(local), scale
        return local.clone() if gather is None else gather.rows(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rows][: ctx.num_rows] * ctx.scale, None, None
