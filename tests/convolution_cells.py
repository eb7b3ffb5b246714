"""Cells whose step convolves the state: (channels, sizes...) for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]


class ConvLSTM(nn.Module):
    """Shi et al. (2015, https://arxiv.org/abs/1506.04214), with peepholes."""

    def __init__(self, inputs: int, channels: int, sizes: Shape, **options):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1]
        self.gates = kind(inputs + channels, 4 * channels, **{"kernel_size": 3, "padding": 1} | options)
        self.peephole = nn.Parameter(torch.randn(2, channels, *sizes))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]):
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f + self.peephole[0] * c) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o + self.peephole[1] * c) * torch.tanh(c)
        return h, (h, c)


class ConvGRU(nn.Module):
    """Ballas et al. (2016, https://arxiv.org/abs/1511.06432)."""

    def __init__(self, inputs: int, channels: int, **options):
        super().__init__()
        options = {"kernel_size": 3, "padding": 1} | options
        self.gates = nn.Conv2d(inputs + channels, 2 * channels, **options)
        self.new = nn.Conv2d(inputs + channels, channels, **options)

    def forward(self, x: Tensor, h: Tensor):
        r, z = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        n = self.new(torch.cat([x, r * h], 1)).tanh()
        h = (1 - z) * n + z * h
        return h, h


class Mixed(nn.Module):
    """Something that keeps the shape of the state, of a few modules."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.mix = nn.Sequential(*parts)

    def forward(self, x: Tensor, h: Tensor):
        h = torch.tanh(x + self.mix(h))
        return h, h


class Scaled(nn.Module):
    """A kernel that is computed from weights, and a bias that is computed from the state."""

    def __init__(self):
        super().__init__()
        self.kernel, self.scale = nn.Parameter(torch.randn(4, 4, 3)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor, h: Tensor):
        made = F.conv1d(h, F.normalize(self.kernel, dim=1) * self.scale, padding=1)
        h = torch.tanh(x + made + h.mean(-1, keepdim=True))
        return h, h


class Twice(nn.Module):
    """One kernel for two images, one of which lies otherwise in memory."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor):
        h = torch.tanh(self.conv(h) + self.conv(h.transpose(2, 3) * x) - x)
        return h, h


class Case(NamedTuple):
    """A cell with the shape of its input and the parts of its state."""

    make: Callable[[], nn.Module]
    x: Shape
    state: tuple[Shape, ...]


def lstm(channels: int, *sizes: int, inputs: int = 2, **options) -> Case:
    shape = (channels, *sizes)
    return Case(lambda: ConvLSTM(inputs, channels, sizes, **options), (inputs, *sizes), (shape, shape))


def mixed(shape: Shape, *parts: Callable[[], nn.Module]) -> Case:
    return Case(lambda: Mixed(*(part() for part in parts)), shape, (shape,))


CELLS: dict[str, Case] = {
    "LSTM": lstm(4, 5, 6),
    "LSTM in one dimension": lstm(3, 7),
    "LSTM in three dimensions": lstm(2, 3, 4, 3),
    "one channel": lstm(1, 5, 4, inputs=1),
    "one pixel": lstm(3, 1, 1),
    "one row": lstm(3, 1, 6),
    "many channels": lstm(20, 3, 3, inputs=18),
    "kernel of one": lstm(3, 4, 5, kernel_size=1, padding=0),
    "kernel of five": lstm(3, 6, 5, kernel_size=5, padding=2),
    "oblong kernel": lstm(3, 6, 5, kernel_size=(1, 3), padding=(0, 1)),
    "dilated": lstm(3, 6, 7, padding=(2, 3), dilation=(2, 3)),
    "even kernel": lstm(3, 6, 5, kernel_size=(2, 4), padding="same"),
    "no bias": lstm(3, 6, 5, bias=False),
    "groups": lstm(4, 5, 4, inputs=2, groups=2),
    "circular": lstm(3, 6, 5, padding_mode="circular"),
    "zeros of its own": lstm(3, 6, 5, padding_mode="zeros", padding=1),
    "GRU": Case(lambda: ConvGRU(2, 3), (2, 5, 6), ((3, 5, 6),)),
    "by channels": mixed(
        (4, 5, 6),
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Tanh,
        lambda: nn.Conv2d(4, 4, 1),
    ),
    "several for each channel": mixed(
        (4, 5, 6),
        lambda: nn.Conv2d(4, 12, (3, 5), padding=(1, 2), groups=4, bias=False),
        nn.Tanh,
        lambda: nn.Conv2d(12, 4, 1, groups=4),
    ),
    "down and up": mixed(
        (3, 8, 7),
        lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(5, 3, 3, stride=2, padding=1, output_padding=(1, 0)),
    ),
    "down by unequal steps": mixed(
        (2, 9, 10),
        lambda: nn.Conv2d(2, 4, (4, 3), stride=(3, 2), padding=(1, 0)),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(4, 2, (3, 4), stride=(3, 2), padding=(0, 0)),
    ),
    "up in groups": mixed(
        (4, 9),
        lambda: nn.Conv1d(4, 8, 3, stride=2),
        lambda: nn.ConvTranspose1d(8, 4, 3, stride=2, groups=2),
    ),
    "up, channel by channel": mixed(
        (4, 9),
        lambda: nn.Conv1d(4, 4, 3, stride=2, groups=4),
        lambda: nn.ConvTranspose1d(4, 4, 3, stride=2, groups=4, dilation=1),
    ),
    "a computed kernel": Case(Scaled, (4, 7), ((4, 7),)),
    "twice": Case(Twice, (3, 5, 5), ((3, 5, 5),)),
}
