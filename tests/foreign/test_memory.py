"""Cells that keep a state of their own in an attribute, in the styles of packages for spiking neurons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cello

X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Continuing(nn.Module):
    """Keeps its state, and goes on with it where it is called without one."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.register_buffer("mem", torch.zeros(0, dtype=torch.float64), False)

    def forward(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if mem is not None:
            self.mem = mem
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        self.mem = self.decay * self.mem + x
        return torch.tanh(self.mem), self.mem


class Masked(torch.autograd.Function):
    """A backward that asks for numbers, which a trial has none of."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        g = g * (1 - torch.tanh(x) ** 2)
        g[x > 100] = 0
        return g


class ContinuingMasked(Continuing):
    def forward(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _, self.mem = super().forward(x, mem)
        return Masked.apply(self.mem), self.mem


class Attribute(nn.Module):
    """Keeps its state, and takes none; what it is given beside its input it does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | float = 0.0

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        self.v = 0.9 * self.v + x
        return torch.tanh(self.v)


class Half(nn.Module):
    """Takes the first part of its state, and keeps the second."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(0), False)

    def forward(
        self, x: Tensor, spike: Tensor | None = None, mem: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if mem is not None:
            self.mem = mem
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        self.mem = 0.9 * self.mem + x + (0.0 if spike is None else spike)
        return torch.tanh(self.mem), self.mem


class Given(nn.Module):
    """Makes the state of :class:`Attribute` an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = Attribute()

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.neuron.v = v
        return self.neuron(x), self.neuron.v  # type: ignore[return-value]


def expected(decay: Tensor, x: Tensor) -> Tensor:
    mem, outputs = torch.zeros_like(x[0]), []
    for step in x:
        mem = decay * mem + step
        outputs.append(torch.tanh(mem))
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", [Continuing, ContinuingMasked])
def test_a_sequence_does_not_go_on_where_the_last_one_ended(kind: type[Continuing]) -> None:
    cell = kind()
    layer = cello.Recurrent(cell)
    decay = cell.decay.detach().clone().requires_grad_()
    x = X.clone().requires_grad_()
    expected(decay, x).pow(2).sum().backward()
    for _ in range(3):
        cell.decay.grad, given = None, X.clone().requires_grad_()
        output, _state = layer(given)
        torch.testing.assert_close(output, expected(decay, X))
        output.pow(2).sum().backward()
        assert torch.allclose(given.grad, x.grad)
        assert torch.allclose(cell.decay.grad, decay.grad)


def test_shorter_sequences_leave_the_batch() -> None:
    layer = cello.Recurrent(Continuing())
    decay = torch.tensor(0.9, dtype=torch.float64)
    for _ in range(2):
        output, _state = layer(X, lengths=[5, 0, 2])
        torch.testing.assert_close(output[:, 0], expected(decay, X[:, 0]))
        torch.testing.assert_close(output[:2, 2], expected(decay, X[:2, 2]))


@pytest.mark.parametrize("cell", [Attribute(), Half()], ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize("state_size", [None, 4])
def test_a_state_that_is_not_given_is_refused(cell: nn.Module, state_size: int | None) -> None:
    with pytest.raises(cello.CellError, match="at one step and reads it at the next one"):
        cello.Recurrent(cell, state_size=state_size)(X.float())


def test_a_state_that_is_given_is_the_one_that_counts() -> None:
    layer = cello.Recurrent(Given(), state_size=4)
    decay = torch.tensor(0.9, dtype=torch.float64)
    for _ in range(2):
        output, v = layer(X)
        torch.testing.assert_close(output, expected(decay, X))
        torch.testing.assert_close(torch.tanh(v[0]), output[-1])


class Learned(nn.Module):
    """Starts from a parameter, and keeps things that no step reads."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.calls, self.seen = 0, torch.zeros(0)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        self.calls += 1
        h = torch.tanh(x + 0.5 * (self.start.expand_as(x) if h is None else h))
        self.seen = h
        return h


@pytest.mark.parametrize("state_size", [None, 4])
def test_a_learned_start_is_not_taken_for_memory(state_size: int | None) -> None:
    cell = Learned()
    layer = cello.Recurrent(cell, state_size=state_size)
    for _ in range(2):
        output, _state = layer(X)
        h = torch.ones(4, dtype=torch.float64)
        for step, row in zip(X, output, strict=True):
            h = torch.tanh(step + 0.5 * h)
            assert torch.allclose(row, h)
    output.sum().backward()
    assert cell.start.grad is not None
    assert cell.calls == 2 * len(X)
