"""What a segment runs again in the backward pass is what it ran before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello


class Cell(nn.Module):
    """A cell with a setting, a mode, a buffer, and a buffer that each step writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_h, self.gain = nn.Linear(3, 4), nn.Linear(4, 4), 0.5
        self.register_buffer("factor", torch.ones(4))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.steps += 1
        keep = 0.9 if self.training else 0.5
        return h * keep * self.gain + torch.tanh(self.of_x(x) + self.of_h(h)) * self.factor


def set_weight(cell: Any) -> None:
    with torch.no_grad():
        cell.of_h.weight += 0.5


def set_module(cell: Any) -> None:
    cell.of_x = nn.Linear(3, 4)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "of_h.weight": set_weight,
    "of_x.weight": set_module,
    "factor": lambda cell: cell.factor.mul_(2),
    "training": lambda cell: cell.eval(),
    "gain": lambda cell: setattr(cell, "gain", 0.25),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("engine", [None, "reference"])
def test_a_change_before_the_backward_pass_is_refused(name: str, engine: str | None) -> None:
    layer, x = cello.Recurrent(Cell(), state_size=4), torch.randn(6, 2, 3)
    with cello.engine(engine, segment=2):
        output, _ = layer(x)
    CHANGES[name](layer.cells["l0"])
    with pytest.raises(RuntimeError, match=rf"{name} of Cell has changed since the forward pass"):
        output.sum().backward()


def test_weights_of_a_layer_of_torch() -> None:
    layer, x = cello.nn.LSTM(3, 4), torch.randn(6, 2, 3)
    with cello.engine(segment=2):
        output, _ = layer(x)
        torch.optim.SGD(layer.parameters(), lr=0.1).zero_grad()
        output.sum().backward(retain_graph=True)
        with torch.no_grad():
            layer.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="has changed since the forward pass"):
            output.sum().backward()


def test_what_did_not_change_has_the_gradient_of_one_run() -> None:
    """A buffer that steps write into is no change."""
    torch.manual_seed(0)
    layer, x = cello.Recurrent(Cell(), state_size=4), torch.randn(6, 2, 3)
    expected = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    with cello.engine(segment=2):
        output, _ = layer(x, lengths=[6, 6])
        found = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected)
