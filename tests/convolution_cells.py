"""Cells whose step convolves the state: (channels, sizes...) for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cello

Shape = tuple[int, ...]


class ConvLSTM(nn.Module):
    """Shi et al. (2015, https://arxiv.org/abs/1506.04214), with peepholes."""

    def __init__(self, inputs: int, channels: int, sizes: Shape, **options):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1]
        self.gates = kind(
            inputs + channels, 4 * channels, **{"kernel_size": 3, "padding": 1} | options
        )
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
        self.kernel, self.scale = (
            nn.Parameter(torch.randn(4, 4, 3)),
            nn.Parameter(torch.randn(4, 1, 1)),
        )

    def forward(self, x: Tensor, h: Tensor):
        made = F.conv1d(h, F.normalize(self.kernel, dim=1) * self.scale, padding=1)
        h = torch.tanh(x + made + h.mean(-1, keepdim=True))
        return h, h


class Automaton(nn.Module):
    """Fixed kernels, channel by channel, of an image that lies otherwise, and maps of the pixels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernels", torch.randn(9, 1, 3, 3))
        self.first, self.second = nn.Conv2d(9, 8, 1), nn.Conv2d(8, 3, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor):
        seen = F.conv2d(h.transpose(2, 3), self.kernels, padding=1, groups=3)
        h = torch.tanh(x + h + self.second(self.first(seen).relu()).transpose(2, 3))
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
    return Case(
        lambda: ConvLSTM(inputs, channels, sizes, **options), (inputs, *sizes), (shape, shape)
    )


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
    "groups of few pixels": lstm(4, 3, 5, inputs=2, groups=2),
    "circular": lstm(3, 6, 5, padding_mode="circular"),
    "reflected": lstm(3, 6, 5, padding_mode="reflect", padding=(2, 1), kernel_size=(5, 3)),
    "replicated": lstm(3, 6, 5, padding_mode="replicate", padding=(0, 2), kernel_size=(1, 5)),
    "circular in one dimension": lstm(3, 6, padding_mode="circular"),
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
    "a stride that leaves a rest": mixed(
        (2, 5, 8),
        lambda: nn.Conv2d(2, 3, 2, stride=(1, 3)),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(3, 2, 2, stride=(1, 3)),
    ),
    "channel by channel, with a rest": mixed(
        (1, 8), lambda: nn.Conv1d(1, 2, 2, stride=3), lambda: nn.ConvTranspose1d(2, 1, 2, stride=3)
    ),
    "cropped": mixed(
        (2, 5, 6),
        lambda: nn.Conv2d(2, 3, 3, padding=3),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(3, 2, 3, padding=3),
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
    "groups of a wide signal, apart": mixed(
        (4, 33),
        lambda: nn.Conv1d(4, 6, 4, padding=2, dilation=3, groups=2),
        nn.Tanh,
        lambda: nn.ConvTranspose1d(6, 4, 4, padding=2, dilation=3, groups=2),
    ),
    "groups of images, without padding": mixed(
        (6, 7, 9),
        lambda: nn.Conv2d(6, 12, (3, 2), groups=3),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(12, 6, (3, 2), groups=3, bias=False),
    ),
    "groups of volumes": mixed(
        (4, 3, 4, 5), lambda: nn.Conv3d(4, 4, (1, 2, 3), padding="same", groups=2, bias=False)
    ),
    "groups with a row of zeros around": mixed(
        (2, 6, 8), lambda: nn.Conv2d(2, 2, (3, 1), padding=(1, 0), groups=2)
    ),
    "an automaton": Case(Automaton, (3, 6, 7), ((3, 6, 7),)),
    "a computed kernel": Case(Scaled, (4, 7), ((4, 7),)),
    "twice": Case(Twice, (3, 5, 5), ((3, 5, 5),)),
}


class Pooled(nn.Module):
    """Pooling of an image that has no axis of channels, with a list of one size and with a number."""

    def __init__(self, *pools: Callable[..., Tensor]):
        super().__init__()
        self.pools = pools

    def forward(self, x: Tensor, h: Tensor):
        axes = tuple(range(1, h.dim()))
        for pool in self.pools:
            for size in (2, (2,)):
                x = x + pool(h, size).square().mean(axes, keepdim=True)
        h = torch.tanh(x)
        return h, h


IMAGES: dict[str, Case] = {
    "group norm": mixed((4, 6, 8), lambda: nn.GroupNorm(2, 4)),
    "instance norm": mixed((4, 6, 8), lambda: nn.InstanceNorm2d(4, affine=True)),
    "mean of windows": mixed(
        (4, 6, 8), lambda: nn.AvgPool2d(2), lambda: nn.Upsample(scale_factor=2)
    ),
    "mean around": mixed((4, 6, 8), lambda: nn.AvgPool2d(3, 1, 1)),
    "mean of what is there": mixed(
        (4, 6, 8), lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    ),
    "mean in one dimension": mixed((4, 6), lambda: nn.AvgPool1d(3, 1, 1)),
    "mean in three dimensions": mixed((2, 3, 4, 3), lambda: nn.AvgPool3d(3, 1, 1)),
    "most of windows": mixed((4, 6, 8), lambda: nn.MaxPool2d(2), lambda: nn.Upsample(size=(6, 8))),
    "without channels": Case(lambda: Pooled(F.avg_pool2d, F.max_pool2d), (4, 4), ((4, 4),)),
    "without channels, in three dimensions": Case(
        lambda: Pooled(F.avg_pool3d, F.max_pool3d), (2, 4, 4), ((2, 4, 4),)
    ),
    "most around": mixed((4, 6, 8), lambda: nn.MaxPool2d(3, 1, 1)),
    "most in one dimension": mixed((4, 6), lambda: nn.MaxPool1d(3, 1, 1)),
    "most, dilated": mixed(
        (4, 6, 8),
        lambda: nn.MaxPool2d((3, 5), 1, (1, 2), dilation=(2, 1)),
        lambda: nn.ZeroPad2d((0, 0, 1, 1)),
    ),
    "most in three dimensions": mixed((2, 3, 4, 3), lambda: nn.MaxPool3d(3, 1, 1)),
    "mean of each": mixed((4, 6, 8), lambda: nn.AdaptiveAvgPool2d(1)),
    "mean of parts": mixed(
        (4, 6, 8), lambda: nn.AdaptiveAvgPool2d((2, 4)), lambda: nn.Upsample(size=(6, 8))
    ),
    "mean of parts, in three dimensions": mixed(
        (2, 3, 4, 3), lambda: nn.AdaptiveAvgPool3d((3, 2, 3)), lambda: nn.Upsample(size=(3, 4, 3))
    ),
    **{
        f"repeated, {mode}, in {len(sizes)} dimensions": mixed(
            (2, *sizes),
            lambda kind=kind: kind(2),
            lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode),
        )
        for kind, sizes in ((nn.AvgPool1d, (6,)), (nn.AvgPool2d, (2, 6)), (nn.AvgPool3d, (4, 2, 2)))
        for mode in ("nearest", "nearest-exact")
    },
    **{
        f"{pad.__name__} in {len(sizes)} dimensions": mixed(
            (2, *sizes), lambda pad=pad: pad(1), lambda kind=kind: kind(3, 1)
        )
        for kind, sizes, pads in (
            (nn.AvgPool1d, (5,), (nn.ReflectionPad1d, nn.ReplicationPad1d)),
            (nn.AvgPool2d, (3, 4), (nn.ReflectionPad2d, nn.ReplicationPad2d)),
            (nn.AvgPool3d, (2, 3, 3), (nn.ReflectionPad3d, nn.ReplicationPad3d)),
        )
        for pad in pads
    },
    "pixels as channels": mixed(
        (4, 6, 8),
        lambda: nn.PixelUnshuffle(2),
        lambda: nn.Conv2d(16, 16, 1),
        lambda: nn.PixelShuffle(2),
    ),
    "channels in turn": mixed((4, 6, 8), lambda: nn.ChannelShuffle(2)),
    "windows": mixed(
        (2, 4, 3),
        lambda: nn.Unfold((3, 2), padding=(1, 0), stride=(1, 1)),
        nn.Flatten,
        lambda: nn.Linear(12 * 8, 24),
        lambda: nn.Unflatten(1, (2, 4, 3)),
    ),
    "normalised by neighbours": mixed((4, 6, 8), lambda: nn.LocalResponseNorm(2)),
    "root of squares": mixed((4, 6, 8), lambda: nn.LPPool2d(2, 3, 1), lambda: nn.ZeroPad2d(1)),
}


class Flipped(nn.Module):
    """One map for nodes in the other order."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, h: Tensor):
        h = torch.tanh(self.map(h.flip(1)) + x)
        return h, h


class Shifted(nn.Module):
    """Products of the same gradient, at other places and of other widths."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(n, n, bias=False) for n in (4, 4, 6, 6))

    def forward(self, x: Tensor, h: Tensor):
        views = (
            h[:, :24].reshape(-1, 6, 4),
            h[:, 4:28].reshape(-1, 6, 4),
            h[:, :24].reshape(-1, 4, 6),
            h[:, 6:30].reshape(-1, 4, 6),
        )
        made = [one(part).flatten(1) for one, part in zip(self.maps, views, strict=True)]
        apart = sum(part.detach().square() for part in made)  # so that they are not one product
        h = torch.tanh(x + torch.cat([sum(made) + 0.1 * apart, h[:, 24:]], 1))
        return h, h


class Heads(nn.Module):
    """Memories of (slots, width) for each row, which attend to one another."""

    def __init__(self, slots: int, width: int, heads: int):
        super().__init__()
        self.slots, self.heads = slots, heads
        self.given = nn.Linear(3 * width, 3 * width)
        self.values = nn.Parameter(torch.randn(heads, width // heads, width // heads))
        self.merged = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, h: Tensor):
        both = torch.cat([h, x[:, None].expand(-1, self.slots, -1)], -1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.given(both).chunk(3, -1)
        )
        shares = (q @ k.transpose(-1, -2)).softmax(-1)
        told = (shares @ (v @ self.values)).transpose(1, 2).flatten(2)
        h = torch.tanh(h + self.merged(told))
        return h, h


class Graph(nn.Module):
    """A GRU at the nodes of a graph whose edges are weighed by what is learnt."""

    def __init__(self, nodes: int, inputs: int, width: int):
        super().__init__()
        self.edges = nn.Parameter(torch.randn(nodes, nodes))
        self.gates = nn.Linear(inputs + width, 2 * width)
        self.of_x, self.of_h = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: Tensor, h: Tensor):
        edges = self.edges.softmax(1)
        r, z = torch.sigmoid(self.gates(edges @ torch.cat([x, h], -1))).chunk(2, -1)
        n = torch.tanh(self.of_x(x) + self.of_h(edges @ (r * h)))
        h = z * h + (1 - z) * n
        return h, h


PLACES: dict[str, Case] = {
    "heads": Case(lambda: Heads(5, 8, 2), (16,), ((5, 8),)),
    "the other order": Case(lambda: Flipped(3), (20, 3), ((20, 3),)),
    "shifted": Case(Shifted, (30,), ((30,),)),
    "one head": Case(lambda: Heads(3, 4, 1), (8,), ((3, 4),)),
    "a graph": Case(lambda: Graph(7, 3, 5), (7, 3), ((7, 5),)),
    "many nodes": Case(lambda: Graph(40, 2, 3), (40, 2), ((40, 3),)),
}


def layer_of(case: Case, dtype: torch.dtype = torch.float64) -> cello.Recurrent:
    torch.manual_seed(0)
    sizes = tuple(torch.Size(shape) for shape in case.state)
    return cello.Recurrent(case.make().to(dtype), state_size=sizes if len(sizes) > 1 else sizes[0])


def results(layer: cello.Recurrent, case: Case, rows: int, engine: object) -> list[Tensor]:
    torch.manual_seed(1)
    dtype = next(layer.parameters(), torch.zeros((), dtype=torch.float64)).dtype
    given = [
        torch.randn(n, rows, *shape, dtype=dtype, requires_grad=True)
        for n, shape in ((4, case.x), *((1, shape) for shape in case.state))
    ]
    x, *states = given
    with cello.engine(engine):
        output, last = layer(x, tuple(states) if len(states) > 1 else states[0])
    out = [output, *(last if isinstance(last, tuple) else (last,))]
    loss = output.sin().sum() + sum(part.square().sum() for part in out[1:])
    return [*out, *torch.autograd.grad(loss, [*given, *layer.parameters()])]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def assert_like_the_loop(
    layer: cello.Recurrent, case: Case, rows: int, engine: object, tolerance: float = 1e-10
) -> None:
    """Compare values and every gradient with those of the Python loop."""
    found, expected = (results(layer, case, rows, one) for one in (engine, "reference"))
    assert_same(found, expected, tolerance)
