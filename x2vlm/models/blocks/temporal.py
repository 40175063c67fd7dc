"""Attention over the frames of a clip inside the image tower: the divided attention of TimeSformer (arXiv 2102.05095).

C clips, F frames, P patches, N = P + 1, H heads, E width of a head, D width; rows are frames, those of a clip adjacent.
Before the spatial attention of a block, each patch attends to the patches of its position in all frames of the clip,
with a norm and weights of its own. As in TimeSformer, frames are distinguished by a learned embedding that is added
once before the first block, and class tokens take part in neither. Unlike there, each frame keeps a class token of its
own: TimeSformer has one per clip and averages its attention output over frames, which does not contain the model that
averages frames. Its second linear map after the attention is left out too: two maps in a row are one. The last map and
the embedding are initialised to zero, so that training starts at exactly the model that averages frames (X2-VLM Table
10 compares the two).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from x2vlm.models.config import VisionConfig

INIT_STD = 0.02


class TimeAttention(nn.Module):
    """The addition to one block: attention over frames, position by position."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.layer_norm_eps)
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.proj = nn.Linear(cfg.width, cfg.width)
        nn.init.trunc_normal_(self.qkv.weight, std=INIT_STD)
        for zero in (self.qkv.bias, self.proj.weight, self.proj.bias):
            nn.init.zeros_(zero)

    def forward(self, patches_CFPD: Tensor) -> Tensor:
        """The residual of each patch (C, F, P, D).

        Plain matrix products: a fused kernel saves the scores, which with 3 frames are 5 % of the queries, and works on
        tiles of 64 or more of them.
        """
        qkv = self.qkv(self.norm(patches_CFPD)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 2, 4, 1, 5).unbind(0)  # each (C, P, H, F, E)
        scores_CPHFF = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        attended_CPHFE = scores_CPHFF.softmax(dim=-1).to(value.dtype) @ value
        moved_CFPD: Tensor = self.proj(attended_CPHFE.permute(0, 3, 1, 2, 4).flatten(3))
        return moved_CFPD


class TemporalAttention(nn.Module):
    """The additions to a tower that averages frames."""

    def __init__(self, cfg: VisionConfig, num_frames: int) -> None:
        super().__init__()
        self.frame_embedding = nn.Parameter(torch.zeros(1, num_frames, 1, cfg.width))
        self.blocks = nn.ModuleList(TimeAttention(cfg) for _ in range(cfg.depth))

    def mark_frames(self, patches_MPD: Tensor, num_frames: int) -> Tensor:
        """Embedded patches of all frames, each with the embedding of its frame."""
        return (by_clip(patches_MPD, num_frames) + self.frame_embedding[:, :num_frames]).flatten(0, 1)


def by_clip(rows_M: Tensor, num_frames: int) -> Tensor:
    """(C, F, ...) from rows that are frames."""
    return rows_M.reshape(-1, num_frames, *rows_M.shape[1:])


@dataclass(frozen=True)
class Clips:
    """Rows that are frames of clips of `num_frames` each, and the attention that joins them."""

    attention: TemporalAttention
    num_frames: int


def temporal_attention(
    attention: TimeAttention, hidden_MND: Tensor, num_frames: int, keep_C111: Tensor | None = None
) -> Tensor:
    """`hidden_MND` with updated patches and unchanged class tokens; `keep_C111` is stochastic depth."""
    patches_MPD = hidden_MND[:, 1:]
    moved_CFPD = attention(by_clip(patches_MPD, num_frames))
    if keep_C111 is not None:
        moved_CFPD = moved_CFPD * keep_C111
    return torch.cat([hidden_MND[:, :1], patches_MPD + moved_CFPD.flatten(0, 1)], dim=1)
