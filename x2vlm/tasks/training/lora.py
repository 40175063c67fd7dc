"""Low-rank adapters (LoRA, arXiv 2106.09685): of a frozen model only small terms of its attention are learned.

A term is added to the weight itself, not to the output of its layer, because the image tower reads the weight of its
fused projection without calling the layer. So the forward pass is that of the plain model, and a merged model is one.
O outputs, I inputs, R rank.
"""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from x2vlm.errors import ConfigError
from x2vlm.models.x2vlm import X2VLM
from x2vlm.tasks.training.config import LoraConfig

# Of the image tower, of the text layers, and of the fusion layers.
_ATTENTION = re.compile(
    r"(\.attn\.(qkv|proj)|\.attention\.(self\.(query|key|value)|output\.dense)"
    r"|\.(self|cross)_attention\.(query|key|value|output))$"
)


class LowRank(nn.Module):
    """W + alpha / R x up down; `up` starts at zero, so a new adapter changes nothing."""

    def __init__(self, weight_OI: Tensor, config: LoraConfig) -> None:
        super().__init__()
        outputs, inputs = weight_OI.shape
        self.scale = config.alpha / config.rank
        self.down = nn.Parameter(weight_OI.new_empty(config.rank, inputs))
        self.up = nn.Parameter(weight_OI.new_zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + self.scale * (self.up @ self.down)


def add_adapters(base: X2VLM, config: LoraConfig, seed: int) -> int:
    """Freeze `base` and add adapters to the projections of its attention; how many. ConfigError if it has none."""
    base.requires_grad_(False)
    found = [
        module for name, module in base.named_modules() if _ATTENTION.search(name) and isinstance(module, nn.Linear)
    ]
    if not found:
        raise ConfigError("finetune.lora: the model has no attention whose projections are known")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in found:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, config))
    return len(found)


@torch.no_grad()
def merge_adapters(base: X2VLM) -> None:
    """Put the learned terms into the weights: afterwards `base` is a plain model again."""
    for module in list(base.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
