"""The image tower: BEiT-2 blocks from timm (or a CLIP ViT or Swin), pooled the X2-VLM way.

B images, F frames, R region rows, M images of a region batch, P patches, D width.
The class token takes part in attention but its output is dropped: token 0 of an image is the plain mean of the
normalised patch tokens, and that of a region likewise the mean over the patches under its box.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import QuickGELU
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from x2vlm.errors import ConfigError
from x2vlm.models.blocks.beit_blocks import run_blocks
from x2vlm.models.blocks.conv_stem import ConvStem
from x2vlm.models.blocks.precision import full_precision
from x2vlm.models.blocks.temporal import Clips, TemporalAttention
from x2vlm.models.config import SWIN_OUTER_BLOCKS, VisionConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.tokens import VisionTokens


class VisionEncoder(nn.Module):
    """Turns pixels into VisionTokens; `trunk` is a timm model without a head.

    `temporal` is None until `add_temporal` is called, which the model does last.
    """

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.trunk: nn.Module = _TRUNKS[cfg.backbone](cfg)
        if cfg.stem != "patch":
            self.trunk.patch_embed = ConvStem(cfg)
        if cfg.position_init == "sincos":
            _start_from_sines(self.trunk, cfg)
        self.temporal: TemporalAttention | None = None

    def add_temporal(self, num_frames: int) -> None:
        """Add temporal attention over up to `num_frames` frames of a clip, initialised to have no effect."""
        self.temporal = TemporalAttention(self.cfg, num_frames)

    def forward(
        self, images_BCHW: Tensor, execution: ExecutionConfig | None = None, num_frames: int = 1
    ) -> VisionTokens:
        """One row per image: token 0 is the mean of the normalised patches.

        Rows are frames of clips if `num_frames` > 1, those of a clip adjacent: this matters
        only with temporal attention. A clip of one frame is an image.

        ConfigError if `execution` compiles or recomputes blocks of a tower other than BEiT-2.
        """
        execution = execution or ExecutionConfig()
        if self.cfg.backbone != "beit2" and (execution.compile_blocks or execution.checkpoint_vision_blocks):
            raise ConfigError(
                f"compile_blocks and checkpoint_vision_blocks know the blocks of beit2 only, not of {self.cfg.backbone}"
            )
        clips = None if self.temporal is None or num_frames == 1 else Clips(self.temporal, num_frames)
        patches_BPD = _PATCHES[self.cfg.backbone](self.trunk, images_BCHW, execution, clips)
        return VisionTokens(summary_BD=patches_BPD.mean(dim=1), patches_MPD=patches_BPD)


def _common(cfg: VisionConfig) -> dict[str, Any]:
    return {
        "img_size": cfg.image_res,
        "num_classes": 0,
        "mlp_ratio": cfg.mlp_ratio,
        "drop_path_rate": cfg.drop_path,
        "norm_layer": partial(nn.LayerNorm, eps=cfg.layer_norm_eps),
    }


def _build_beit(cfg: VisionConfig) -> nn.Module:
    return Beit(
        patch_size=cfg.patch_size,
        global_pool="avg",
        embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.num_heads,
        qkv_bias=True,
        init_values=cfg.layer_scale_init,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        **_common(cfg),
    )


def _build_clip(cfg: VisionConfig) -> nn.Module:
    return VisionTransformer(
        patch_size=cfg.patch_size,
        embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.num_heads,
        pre_norm=True,
        act_layer=QuickGELU,
        **_common(cfg),
    )


# The default of timm is 10,000, for sentences: on a grid of some ten patches half of its waves would be constants.
LONGEST_WAVE = 100.0
# Patches of a new tower spread by 0.3 about their mean. Waves of amplitude 1 would drown them: images would start
# nearly equal, and what is in them would be learned late.
AMPLITUDE = 0.3


@torch.no_grad()
def _start_from_sines(trunk: nn.Module, cfg: VisionConfig) -> None:
    """Set the learned positions of the patches to sines and cosines of their row and column."""
    assert isinstance(trunk, VisionTransformer)
    assert trunk.pos_embed is not None
    waves_PD = build_sincos2d_pos_embed([cfg.grid, cfg.grid], cfg.width, temperature=LONGEST_WAVE)
    trunk.pos_embed[0, -len(waves_PD) :] = AMPLITUDE * waves_PD  # the class token stands before them


def _build_swin(cfg: VisionConfig) -> nn.Module:
    return SwinTransformer(
        embed_dim=cfg.width // 8,
        depths=(2, 2, cfg.depth - SWIN_OUTER_BLOCKS, 2),
        num_heads=tuple(cfg.num_heads // divisor for divisor in (8, 4, 2, 1)),
        window_size=cfg.grid,
        **_common(cfg),
    )


def _beit_patches(trunk: nn.Module, images_BCHW: Tensor, execution: ExecutionConfig, clips: Clips | None) -> Tensor:
    assert isinstance(trunk, Beit)
    hidden = trunk.patch_embed(images_BCHW)
    if clips is not None:
        hidden = clips.attention.mark_frames(hidden, clips.num_frames)
    hidden = torch.cat([trunk.cls_token.expand(hidden.shape[0], -1, -1), hidden], dim=1)
    hidden = run_blocks(list(trunk.blocks), hidden, execution, clips)
    patches_BPD: Tensor = trunk.fc_norm(hidden[:, 1:])
    return patches_BPD


def _clip_patches(trunk: nn.Module, images_BCHW: Tensor, *_: object) -> Tensor:
    assert isinstance(trunk, VisionTransformer)
    patches_BPD: Tensor = trunk.forward_features(images_BCHW)[:, 1:]
    return patches_BPD


def _swin_patches(trunk: nn.Module, images_BCHW: Tensor, *_: object) -> Tensor:
    assert isinstance(trunk, SwinTransformer)
    patches_BPD: Tensor = trunk.forward_features(images_BCHW).flatten(1, 2)  # rows and columns of the last stage
    return patches_BPD


_TRUNKS = {"beit2": _build_beit, "clip_vit": _build_clip, "swin": _build_swin}
_PATCHES: dict[str, Callable[[nn.Module, Tensor, ExecutionConfig, Clips | None], Tensor]] = {
    "beit2": _beit_patches,
    "clip_vit": _clip_patches,
    "swin": _swin_patches,
}


def average_frames(frames: VisionTokens, num_frames: int, position_1F1D: Tensor | None) -> VisionTokens:
    """One row per clip from B x F frame rows (frames of a clip adjacent): the token-wise mean over its frames.

    The frame position is added to every token before the mean, so its effect is a constant per clip length:
    without temporal attention in the tower, the order of the frames is lost (X2-VLM Table 10: averaging beat
    temporal attention).
    """
    shift_1D = 0 if position_1F1D is None else position_1F1D[:, :num_frames].mean(dim=1)[:, 0]
    summary_BFD = frames.summary_BD.reshape(-1, num_frames, *frames.summary_BD.shape[1:])
    patches_BFPD = frames.patches_MPD.reshape(-1, num_frames, *frames.patches_MPD.shape[1:])
    return VisionTokens(
        summary_BD=summary_BFD.mean(dim=1) + shift_1D,
        patches_MPD=patches_BFPD.mean(dim=1) + shift_1D,
    )


def pool_patches(patches_MPD: Tensor, image_of_R: Tensor, patch_mask_RP: Tensor) -> Tensor:
    """Mean (R, D) over the masked patches of each row's image; zero for a row without a patch.

    One matrix product over all images instead of a gather: no R x P x D copy, and a backward without atomics. In
    float32 even under autocast, like the mean of a whole image.
    """
    num_images, num_patches, width = patches_MPD.shape
    with full_precision(patches_MPD):
        mask_RP = patch_mask_RP.float()
        # Not one_hot: on some devices it synchronises to check for numbers that are too large.
        image_RM = (image_of_R[:, None] == torch.arange(num_images, device=image_of_R.device)).float()
        weight_RMP = image_RM[:, :, None] * mask_RP[:, None, :]
        total_RD = weight_RMP.flatten(1) @ patches_MPD.float().reshape(num_images * num_patches, width)
        mean_RD = total_RD / mask_RP.sum(dim=1, keepdim=True).clamp_min(1)
    return mean_RD.to(patches_MPD.dtype)
