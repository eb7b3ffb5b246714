"""An autograd.Function in a step, in both styles: its gradient is kept, and the reason names it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cello


class OneMethod(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class SetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class Spiking(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.function = function

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.decay * v + x
        spike = self.function.apply(v - 0.5)
        return spike, v - 0.5 * spike


@pytest.mark.parametrize("function", [OneMethod, SetupContext])
def test_surrogate_gradients(function: type[torch.autograd.Function]) -> None:
    cell = Spiking(function)
    layer = cello.Recurrent(cell, state_size=4)
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == "reference"
    (reason,) = plan.reasons["native"]
    assert reason.startswith("Spiking uses a custom autograd.Function (test_own_function.py:")
    layer(x)[0].sum().backward()
    # By hand: dv'/dv = decay and spike' = surrogate(v - 0.5), back from the last step.
    decay, v = cell.decay.item(), torch.zeros(3, 4, dtype=torch.float64)
    before, potentials = [], []
    for step in x.detach():
        before.append(v)
        v = decay * v + step
        potentials.append(v - 0.5)
        v = v - 0.5 * (v > 0.5)
    g, total = torch.zeros_like(v), 0.0
    for t in reversed(range(6)):
        surrogate = 1 / (1 + potentials[t].abs()) ** 2
        g = g + surrogate * (1 - 0.5 * g)
        assert torch.allclose(x.grad[t], g)
        total += (g * before[t]).sum().item()
        g = g * decay
    assert cell.decay.grad.item() == pytest.approx(total)
