"""A cell that is not Cello's, for ``--cell recipes/cells.py:HardMGU``: plain PyTorch, one step."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class HardMGU(nn.Module):
    """The minimal gated unit, with functions made of straight lines.

    ``f = hardsigmoid(..)`` is the only gate: it says how much of the state is read, and how much of it
    is replaced (Zhou et al., "Minimal Gated Unit for Recurrent Neural Networks", 2016,
    https://arxiv.org/abs/1603.09420).
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.x_f, self.h_f = _pair(input_size, hidden_size)
        self.x_g, self.h_g = _pair(input_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = F.hardsigmoid(self.x_f(x) + self.h_f(h))
        g = F.hardtanh(self.x_g(x) + self.h_g(f * h))
        return h + f * (g - h)


def _pair(input_size: int, hidden_size: int) -> tuple[nn.Linear, nn.Linear]:
    """Return a linear layer of the input, with the bias, and one of the state; they begin as nn.LSTM's."""
    bound = 1 / math.sqrt(hidden_size)
    pair = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)
    for layer in pair:
        for weight in layer.parameters():
            nn.init.uniform_(weight, -bound, bound)
    return pair
