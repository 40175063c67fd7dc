"""The image tower: BEiT-2 blocks from timm, pooled the X2-VLM way.

B images, F frames, R region rows, M images of a region batch, P patches, D width.
The class token takes part in attention but its output is dropped: token 0 of an image is the plain mean of the
normalised patch tokens, so that a region is described the same way by the mean over the patches under its box.
"""

from functools import partial

import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from x2vlm.models.config import VisionConfig
from x2vlm.models.tokens import VisionTokens


class VisionEncoder(nn.Module):
    """Turns pixels into VisionTokens; `trunk` is a timm Beit without absolute positions and without a head."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.trunk = Beit(
            img_size=cfg.image_res,
            patch_size=cfg.patch_size,
            num_classes=0,
            global_pool="avg",
            embed_dim=cfg.width,
            depth=cfg.depth,
            num_heads=cfg.num_heads,
            qkv_bias=True,
            mlp_ratio=cfg.mlp_ratio,
            drop_path_rate=cfg.drop_path,
            norm_layer=partial(nn.LayerNorm, eps=cfg.layer_norm_eps),
            init_values=cfg.layer_scale_init,
            use_abs_pos_emb=False,
            use_rel_pos_bias=True,
        )
        # timm leaves the tables at zero; the reference draws them like every other weight of the tower.
        for block in self.trunk.blocks:
            nn.init.trunc_normal_(block.attn.relative_position_bias_table, std=0.02)

    def forward(self, images_BCHW: Tensor) -> VisionTokens:
        """One row per image: token 0 is the mean of the normalised patches."""
        hidden = self.trunk.patch_embed(images_BCHW)
        hidden = torch.cat([self.trunk.cls_token.expand(hidden.shape[0], -1, -1), hidden], dim=1)
        for block in self.trunk.blocks:
            hidden = block(hidden)
        patches_BPD = self.trunk.fc_norm(hidden[:, 1:])
        return VisionTokens(summary_BD=patches_BPD.mean(dim=1), patches_MPD=patches_BPD)


def average_frames(frames: VisionTokens, num_frames: int, position_1F1D: Tensor | None) -> VisionTokens:
    """One row per clip from B x F frame rows (frames of a clip adjacent): the token-wise mean over its frames.

    The frame position is added to every token before the mean, so all it contributes is a constant per clip length:
    the order of the frames is not seen (X2-VLM 3.2, averaging beat temporal attention).
    """
    shift_1D = 0 if position_1F1D is None else position_1F1D[:, :num_frames].mean(dim=1)[:, 0]
    summary_BFD = frames.summary_BD.unflatten(0, (-1, num_frames))
    patches_BFPD = frames.patches_MPD.unflatten(0, (-1, num_frames))
    return VisionTokens(
        summary_BD=summary_BFD.mean(dim=1) + shift_1D,
        patches_MPD=patches_BFPD.mean(dim=1) + shift_1D,
    )


def pool_patches(patches_MPD: Tensor, image_of_R: Tensor, patch_mask_RP: Tensor) -> Tensor:
    """Mean (R, D) over the masked patches of each row's image; zero for a row without a patch.

    One matrix product over all images instead of a gather: no R x P x D copy, and a backward without atomics.
    """
    num_images, num_patches, width = patches_MPD.shape
    mask_RP = patch_mask_RP.to(patches_MPD.dtype)
    image_RM = torch.nn.functional.one_hot(image_of_R, num_images).to(mask_RP.dtype)
    weight_RMP = image_RM[:, :, None] * mask_RP[:, None, :]
    total_RD = weight_RMP.flatten(1) @ patches_MPD.reshape(num_images * num_patches, width)
    return total_RD / mask_RP.sum(dim=1, keepdim=True).clamp_min(1)
