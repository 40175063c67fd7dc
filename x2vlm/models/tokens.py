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

    def only(self, rows_K: Tensor) -> "VisionTokens":
        """The given rows with a copy of their patches, one per row, and of no other image.

        What is computed from the patches of the result costs as much as the rows that were asked for; of `select`, as
        much as all images.
        """
        selected = self.select(rows_K)
        patches = self.patches_MPD[selected.image_of_B]
        return replace(selected, patches_MPD=patches, image_of_B=None)


def with_summary(patch_mask_BP: Tensor) -> Tensor:
    """`patch_mask_BP` as booleans with an always-true column for token 0 in front."""
    return torch.nn.functional.pad(patch_mask_BP.bool(), (1, 0), value=True)
