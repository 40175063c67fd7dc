"""The small heads on top of the towers: two-layer perceptrons and the MLM head.

B rows, K masked positions, D text width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear


def build_mlp_head(width: int, num_outputs: int) -> nn.Sequential:
    """Linear, LayerNorm (eps 1e-5), GELU, Linear through twice the width, with PyTorch's default initialisation."""
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.LayerNorm(2 * width),
        nn.GELU(),
        nn.Linear(2 * width, num_outputs),
    )


class WordHead(nn.Module):
    """The MLM head: vocabulary logits of a state; tied heads use the word embedding matrix as output projection."""

    def __init__(self, width: int, vocab_size: int, layer_norm_eps: float, tied: bool, init_std: float = 0.02) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = None if tied else nn.Linear(width, vocab_size, bias=False)
        if tied:
            nn.init.normal_(self.transform.weight, std=init_std)
            nn.init.zeros_(self.transform.bias)

    def forward(self, states_BKD: Tensor, word_embedding_VD: Tensor) -> Tensor:
        """Logits (B, K, V)."""
        states_BKD = self.norm(gelu(self.transform(states_BKD)))
        matrix_VD = word_embedding_VD if self.decoder is None else self.decoder.weight
        return linear(states_BKD, matrix_VD, self.bias)
