"""Classification of an image (or clip, or two images) with a text: NLVR2, XVNLI, MaRVL, MSRVTT-QA, MSVD-QA.

B rows, M images, L tokens, D text width, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from x2vlm.models.downstream.config import ClassifierConfig
from x2vlm.models.heads import build_mlp_head
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM

NO_CLASS = -100  # target of a row whose answer is none of the classes: never right, and without a loss


class Classifier(nn.Module):
    """The perceptron; its parameters are called `cls_head.*` in the reference."""

    reference_prefix = "cls_head."

    def __init__(self, config: ClassifierConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.layers = build_mlp_head(config.num_images * width, config.num_labels)

    def forward(self, base: X2VLM, vision: VisionTokens, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Logits (B, C). With several images a row, `vision` holds the first image of all rows, then the second."""
        num = self.config.num_images
        states_BLD = base.encode_text(ids_BL, mask_BL)
        fused = base.fuse(states_BLD.repeat(num, 1, 1), mask_BL.repeat(num, 1), vision)
        side_by_side = torch.cat(fused[:, 0].chunk(num), dim=1)
        logits_BC: Tensor = self.layers(side_by_side)
        return logits_BC


def classification_loss(logits_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Mean cross-entropy over the rows with a class; 0 if none has one."""
    total = cross_entropy(logits_BC.float(), targets_B, ignore_index=NO_CLASS, reduction="sum")
    return total / (targets_B != NO_CLASS).sum().clamp(min=1)


def weighted_classification_loss(logits_BC: Tensor, targets_A: Tensor, weights_A: Tensor, row_of_A: Tensor) -> Tensor:
    """Several weighted classes a row: the sum of weight x cross-entropy over all A answers, divided by the rows."""
    losses_A = cross_entropy(logits_BC.float()[row_of_A], targets_A, reduction="none")
    return (weights_A * losses_A).sum() / len(logits_BC)
