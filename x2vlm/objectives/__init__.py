"""The five losses of X2-VLM pre-training: of features and logits (`losses`), of batches (`step`)."""

from x2vlm.objectives.losses import contrastive, masked_lm, matching
from x2vlm.objectives.negatives import draw_negatives, negative_weights
from x2vlm.objectives.step import pretrain_losses, step_losses

__all__ = [
    "contrastive",
    "draw_negatives",
    "masked_lm",
    "matching",
    "negative_weights",
    "pretrain_losses",
    "step_losses",
]
