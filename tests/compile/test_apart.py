"""What torch computes beforehand for the rows of all steps: only if no row depends on another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
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


BITS = torch.tensor([1, 2, 4])


def signs(x: Tensor) -> Tensor:
    """An integer from 0 to 7 for each row."""
    return ((x[:, :3] > 0) * BITS).sum(1)


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
    "integers": lambda c, x: c.table((signs(x) * 3 + 1) % 8 // 2),
    "positive": lambda c, x: x.relu().pow(1.5),
}  # fmt: skip


def compare(cell: Of, x: Tensor) -> Any:
    layer = cello.Recurrent(cell, state_size=H)
    h, outputs = torch.zeros(x.shape[1], H), []
    for row in x:
        h = cell(row, h)
        outputs.append(h)
    expected = torch.stack(outputs)
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
