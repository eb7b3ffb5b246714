"""What torch computes beforehand for the rows of all steps: only if no row depends on another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from steps import loop
from torch import Tensor, nn

import cello

F, H = 6, 4


class Of(nn.Module):
    """A cell with a product of what a function makes of the input, (B, F)."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.r = nn.Linear(F, H), nn.Linear(H, H)
        self.table = nn.Embedding(8, F)
        self.matrices = nn.Parameter(torch.randn(8, F, F))
        self.convolution = nn.Conv1d(2, 2, 2)
        self.function = function

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.i(self.function(self, x)) + self.r(h))


FIRST = torch.tensor([0, 0, 1, 1, 2, 2])


def pairs(x: Tensor) -> Tensor:
    return x[:, :1] - x[:, :1].T


BITS = torch.tensor([1, 2, 4])


def signs(x: Tensor) -> Tensor:
    """An integer from 0 to 7 for each row."""
    return ((x[:, :3] > 0) * BITS).sum(1)


def attended(heads: Tensor) -> Tensor:
    """Attention of (B, N, T, F) to itself, as rows."""
    turned = heads.transpose(1, 2)
    return nnf.scaled_dot_product_attention(turned, turned, turned).transpose(1, 2).flatten(1)


def over_rows(x: Tensor) -> Tensor:
    return nnf.conv1d(x.T[:, None], torch.ones(1, 1, 3), padding=1)[:, 0].T


MIXING = {
    "mean": lambda c, x: x - x.mean(0),
    "deviation": lambda c, x: x / (1 + x.var(0, correction=0)),
    "largest": lambda c, x: x / x.abs().max(),
    "flipped": lambda c, x: x + x.flip(0),
    "rolled": lambda c, x: x.roll(1, 0),
    "first": lambda c, x: x - x[:1],
    "cumulative": lambda c, x: x.cumsum(0),
    "softmax": lambda c, x: x.softmax(0),
    "products of rows": lambda c, x: torch.softmax(x @ x.T, 1) @ x,
    "sorted": lambda c, x: x.sort(0)[0],
    "sorted by default": lambda c, x: x.flatten().sort()[0].view_as(x),
    "Fourier": lambda c, x: torch.fft.fft(x, dim=0).real,
    "an embedding": lambda c, x: c.table(signs(x - x.mean(0))),
    "an embedding of others": lambda c, x: c.table(signs(x).flip(0)),
    "after an embedding": lambda c, x: c.table(signs(x)).flip(0),
    "a matrix of another": lambda c, x: (c.matrices[signs(x.flip(0))] @ x[:, :, None])[:, :, 0],
    "a convolution over rows": lambda c, x: x + over_rows(x),
    "indexed": lambda c, x: x[torch.arange(len(x)).flip(0)],
    "gathered": lambda c, x: x.gather(0, signs(x)[:, None].expand(-1, F) % 2),
    "turned": lambda c, x: x.T.reshape(-1, F),
    "an embedding of rows": lambda c, x: nnf.embedding((x[:, 0] > 9).long(), x),
    "an embedding of a row": lambda c, x: x + nnf.embedding(FIRST[:1], x),
    "one row gathered": lambda c, x: x + x.gather(1, FIRST[None]),
    "a median of pairs": lambda c, x: x + pairs(x).median(1, keepdim=True)[0],
    "the farthest": lambda c, x: x + (x[:, None] - x[None]).norm(dim=2).topk(1, dim=1)[0],
    "a convolution with rows": lambda c, x: x
    + nnf.conv1d(x[:, None], x[:, None, :3], padding=1).median(1)[0],
    "draws by other rows": lambda c, x: x * torch.bernoulli((x > x.mean(0)).to(x)),
    "a count of ones": lambda c, x: x / torch.ones(len(x)).sum(),
    "a product of ones": lambda c, x: x * (torch.ones(1, len(x)) @ torch.ones(len(x), 1)),
    "gradients by frequency": lambda c, x: nnf.embedding(
        signs(x) // 4, c.table.weight, scale_grad_by_freq=True
    ),
}  # fmt: skip

APART = {
    "sines": lambda c, x: x.sin(),
    "normed": lambda c, x: nnf.layer_norm(x, (F,)),
    "sums": lambda c, x: x - x.mean(1, keepdim=True),
    "sorted": lambda c, x: x.sort(1)[0] + x.sort(-1, descending=True)[0],
    "largest": lambda c, x: x.topk(F, dim=1)[0] * x.argmax(-1, keepdim=True),
    "Fourier": lambda c, x: torch.fft.fft(x).real + torch.fft.rfft(x, n=2 * F - 1)[:, :F].imag,
    "special": lambda c, x: torch.lgamma(x.abs() + 1),
    "an embedding": lambda c, x: c.table(signs(x)) + x,
    "a matrix": lambda c, x: (c.matrices[signs(x)] @ x[:, :, None])[:, :, 0],
    "one hot": lambda c, x: nnf.one_hot(signs(x), F + 2).float()[:, :F],
    "a convolution": lambda c, x: nnf.pad(c.convolution(x.view(-1, 2, 3)), (0, 1)).flatten(1),
    "gathered": lambda c, x: x.gather(1, signs(x)[:, None].expand(-1, F) % F),
    "turned twice": lambda c, x: x.T.sin().T,
    "turned, with a function, as rows": lambda c, x: x.view(-1, 2, 3)
    .transpose(1, 2)
    .tanh()
    .relu()
    .flatten(1),
    "a convolution, turned": lambda c, x: nnf.pad(
        c.convolution(x.view(-1, 2, 3)).transpose(1, 2).relu().reshape(len(x), -1), (0, 2)
    ),
    "heads": lambda c, x: attended(x.view(-1, 2, 1, 3)),
    "stacked and moved": lambda c, x: torch.stack([x[:, :3], x[:, 3:]]).movedim(0, 1).sin().flatten(1),
    "normed in groups": lambda c, x: nnf.group_norm(x, 2),
    "integers": lambda c, x: c.table((signs(x) * 3 + 1) % 8 // 2),
    "positive": lambda c, x: x.relu().pow(1.5),
    "large numbers": lambda c, x: ((x + 1013) / 1009).sin() + c.table((signs(x) * 1013) % 8),
    "of two": lambda c, x: torch.copysign(x, c.i.weight[0].detach()),
    "an embedding of rows and features": lambda c, x: c.table((x > 0).long().view(-1))
    .view(len(x), F, F)
    .sin()
    .sum(1),
}  # fmt: skip


def compare(cell: Of, x: Tensor) -> Any:
    layer = cello.Recurrent(cell, state_size=H)
    expected = loop(cell, x, torch.zeros(x.shape[1], H))
    found = layer(x)[0]
    torch.testing.assert_close(found, expected)
    parameters = [p for p in cell.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(found.sin().sum(), parameters, allow_unused=True),
        torch.autograd.grad(expected.sin().sum(), parameters, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return cello.explain(layer, x).plans[0]


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_see_others_are_left_to_the_loop(name: str):
    torch.manual_seed(0)
    plan = compare(Of(MIXING[name]), torch.randn(4, 6, F))
    assert plan.engine == "reference"
    assert "test_apart.py:" in plan.reasons["native"][0]


@pytest.mark.parametrize("name", APART)
def test_rows_apart_compile(name: str):
    torch.manual_seed(0)
    plan = compare(Of(APART[name]), torch.randn(4, 6, F))
    assert plan.engine == "native", plan.reasons


@pytest.mark.parametrize("name", ["normed in groups", "turned, with a function, as rows", "heads"])
def test_inputs_with_gaps_in_memory(name: str):
    torch.manual_seed(0)
    for x in (torch.randn(4, 6, F + 3)[..., :F], torch.randn(4, 6, F)[:, :2]):
        assert compare(Of(APART[name]), x).engine == "native"


def test_numbers_are_drawn_at_each_step():
    cell = Of(lambda c, x: torch.poisson(torch.full((F,), 50.0)) + 0 * x)
    layer, x = cello.Recurrent(cell, state_size=H), torch.zeros(4, 2, F)
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == "reference"
    assert "draws random numbers by poisson" in plan.reasons["native"][0]


TWICE = {
    "of which the shape is read": lambda c, x, h: torch.tanh(h * c.w) + torch.zeros_like(x),
    "that makes ones": lambda c, x, h: torch.tanh(h * c.w) + x.new_ones(len(x), F),
    "beside a turned state": lambda c, x, h: (
        x + (h.view(-1, 2, 3).transpose(1, 2).sin() * 0.5).reshape(len(h), F) * c.w
    ),
}


class Weighted(nn.Module):
    def __init__(self, step: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.step = nn.Parameter(torch.randn(F, dtype=torch.float64)), step

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self, x, h)


@pytest.mark.parametrize("name", TWICE)
def test_derivatives_of_derivatives_with_an_input(name: str):
    torch.manual_seed(0)
    cell = Weighted(TWICE[name])
    x, h = torch.randn(4, 3, F).double(), torch.randn(3, F).double()
    found = []
    for output in (cello.Recurrent(cell, state_size=F)(x, h[None])[0], loop(cell, x, h)):
        (first,) = torch.autograd.grad(output.sin().sum(), cell.w, create_graph=True)
        found.append([output, first, *torch.autograd.grad(first.square().sum(), cell.w)])
    torch.testing.assert_close(*found)
