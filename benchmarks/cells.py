"""Cells as somebody else would write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HardLSTM(nn.Module):
    """An LSTM with a matrix for every gate, and hard gates."""

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


class ConvLSTM(nn.Module):
    """Shi et al. (2015, https://arxiv.org/abs/1506.04214), without peepholes."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(inputs + channels, 4 * channels, 3, padding=1)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class GraphGRU(nn.Module):
    """A GRU at each node of a graph, which reads the mean of its neighbours as well."""

    def __init__(self, nodes: int, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        near = torch.rand(nodes, nodes) * (torch.rand(nodes, nodes) < 0.1)
        self.register_buffer("near", near / near.sum(1, keepdim=True).clamp(min=1e-3))
        self.gates = nn.Linear(2 * (inputs + size), 2 * size)
        self.new = nn.Linear(2 * (inputs + size), size)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, h], -1)
        r, z = self.gates(torch.cat([both, self.near @ both], -1)).sigmoid().chunk(2, -1)
        both = torch.cat([x, r * h], -1)
        n = torch.tanh(self.new(torch.cat([both, self.near @ both], -1)))
        h = (1 - z) * n + z * h
        return h, h
