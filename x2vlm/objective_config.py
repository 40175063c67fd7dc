"""What an experiment decides about the losses; `x2vlm.objectives` computes them, and imports torch."""

from typing import Literal

from x2vlm.config import FrozenConfig

# "reference" repeats what the reference computes where nobody would want it, so that the two can be compared.
Parity = Literal["fixed", "reference"]
ContrastiveGradient = Literal["true", "reference"] | float


class ObjectiveConfig(FrozenConfig):
    """Which losses are computed and where they follow the reference."""

    matching: bool = True
    contrastive_gradient: ContrastiveGradient = "true"
    box_loss_on_whole_images: bool = False
    parity: Parity = "fixed"
