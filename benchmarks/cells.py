"""A cell as somebody else would write it: an LSTM with a matrix for every gate, and hard gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HardLSTM(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.of_x = nn.ModuleList(nn.Linear(input_size, hidden_size) for _ in range(4))
        self.of_h = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (a(x) + b(h) for a, b in zip(self.of_x, self.of_h, strict=True))
        c = F.hardsigmoid(f) * c + F.hardsigmoid(i) * torch.clamp(g, -1, 1)
        return F.hardsigmoid(o) * torch.clamp(c, -1, 1), c
