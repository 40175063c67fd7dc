"""Image tokens as the rest of the model reads them: rows of one summary token and the patches of an image.

B rows, M images, R region rows, P patches, N = P + 1, D vision width.
Several rows may refer to one image (its regions, or the pairs of the matching loss). The patches are therefore stored
once per image; a row only adds its own summary token and mask. Everything computed from patches alone is then computed
once per image: recomputing it, and padding texts, is half of the reference's arithmetic.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class VisionTokens:
    """`summary_BD` is token 0 of each row; row b shows image `image_of_B[b]` (None: image b) where the mask is true."""

    summary_BD: Tensor
    patches_MPD: Tensor
    image_of_B: Tensor | None = None
    patch_mask_BP: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return self.summary_BD.shape[0]

    @property
    def tokens_BND(self) -> Tensor:
        """Token 0, then all patches of the row's image, unmasked."""
        patches = self.patches_MPD if self.image_of_B is None else self.patches_MPD[self.image_of_B]
        return torch.cat([self.summary_BD[:, None], patches], dim=1)

    @property
    def mask_BN(self) -> Tensor:
        """True for tokens the text may attend to; token 0 always is."""
        if self.patch_mask_BP is not None:
            return with_summary(self.patch_mask_BP)
        shape = (self.num_rows, self.patches_MPD.shape[1] + 1)
        return torch.ones(shape, dtype=torch.bool, device=self.summary_BD.device)

    def select(self, rows_K: Tensor) -> "VisionTokens":
        """The given rows, in that order; patches stay shared."""
        return replace(
            self,
            summary_BD=self.summary_BD[rows_K],
            image_of_B=rows_K if self.image_of_B is None else self.image_of_B[rows_K],
            patch_mask_BP=None if self.patch_mask_BP is None else self.patch_mask_BP[rows_K],
        )


def join_rows(first: VisionTokens, second: VisionTokens) -> VisionTokens:
    """The rows of both, which must refer to the same patch tensor; ValueError otherwise."""
    if first.patches_MPD is not second.patches_MPD:
        raise ValueError("only rows over the same patches can be joined")
    if first.patch_mask_BP is None and second.patch_mask_BP is None:
        patch_mask = None
    else:
        patch_mask = torch.cat([first.mask_BN[:, 1:], second.mask_BN[:, 1:]])
    return VisionTokens(
        summary_BD=torch.cat([first.summary_BD, second.summary_BD]),
        patches_MPD=first.patches_MPD,
        image_of_B=torch.cat([_image_of(first), _image_of(second)]),
        patch_mask_BP=patch_mask,
    )


def with_summary(patch_mask_BP: Tensor) -> Tensor:
    """`patch_mask_BP` as booleans with an always-true column for token 0 in front."""
    return torch.nn.functional.pad(patch_mask_BP.bool(), (1, 0), value=True)


def _image_of(vision: VisionTokens) -> Tensor:
    if vision.image_of_B is not None:
        return vision.image_of_B
    return torch.arange(vision.num_rows, device=vision.summary_BD.device)
