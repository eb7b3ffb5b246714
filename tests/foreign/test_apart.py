"""Steps that do not count: Cello takes some to find something out, and they leave nothing behind."""

from __future__ import annotations

import random
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello
from cello.foreign.apart import apart
from cello.foreign.generators import Generators

H = 4


class Busy(nn.Module):
    """Makes its own first state, counts its steps, draws numbers, and writes into what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(H, H)
        self.register_buffer("mean", torch.zeros(H))
        self.plain = torch.zeros(H)
        self.steps = 0

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = torch.zeros_like(x) if h is None else h
        self.steps += 1
        random.random()
        with torch.no_grad():
            self.mean += 0.1 * x.mean(0)
            self.plain += 1
        return torch.tanh(self.linear(x) + h) + 0 * torch.rand_like(h)


def facts(cell: Busy) -> list[Any]:
    state = torch.get_rng_state().tolist()
    return [cell.steps, cell.mean.tolist(), cell.plain.tolist(), random.getstate(), state]


def test_everything_is_as_before_and_hooks_see_nothing():
    cell, seen = Busy(), []
    cell.register_forward_hook(lambda *_: seen.append(1))
    cell.linear.register_forward_pre_hook(lambda *_: seen.append(2))
    before, x = facts(cell), torch.randn(3, H)
    before[-1] = torch.get_rng_state().tolist()
    with apart(cell, x.device) as begin_anew:
        first = cell(x)
        begin_anew()
        assert facts(cell) == before
        torch.testing.assert_close(cell(x), first, rtol=0, atol=0)
    assert facts(cell) == before
    assert seen == []
    cell(x)
    assert seen == [2, 1]


def test_an_empty_sequence_does_not_add_steps():
    """The state of an empty sequence is that which the cell makes, and Cello tries what that is."""
    cells = Busy(), Busy()
    cells[1].load_state_dict(cells[0].state_dict())
    x = torch.randn(4, 3, H)
    for cell, lengths in zip(cells, ([4, 3, 1], [4, 3, 0]), strict=True):
        layer = cello.Recurrent(cell)
        layer(x, lengths=lengths)
        cell.steps, cell.plain = 0, torch.zeros(H)
        random.seed(0)
        layer(x, lengths=lengths)
        assert cell.steps == 4
        assert cell.plain.tolist() == [4.0] * H
        drawn = random.random()
        random.seed(0)
        assert [random.random() for _ in range(5)][-1] == drawn


def test_hooks_and_buffers_survive_empty_sequences_in_threads():
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rate", torch.full((H,), 0.5))

        def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
            return torch.tanh(x + self.rate * (torch.zeros_like(x) if h is None else h))

    cell = Hooked()
    buffer = cell.rate
    cell.register_forward_hook(lambda *_: None)
    layer, x = cello.Recurrent(cell), torch.randn(4, 3, H)
    layer(x, lengths=[4, 2, 0])

    def call() -> None:
        with torch.no_grad():
            for _ in range(15):
                layer(x, lengths=[4, 2, 0])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(cell._forward_hooks) == 1
    assert cell.rate is buffer


class Square(nn.Module):
    """Holds a matrix with as many rows as the batch, which has nothing to do with the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(H, H), inner
        self.register_buffer("mix", torch.randn(H, H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.linear(x)) + (self.mix @ h.T).T)


@pytest.mark.parametrize("inner", [nn.Dropout(0.5), nn.RReLU(), nn.Identity()])
def test_a_cell_that_draws_numbers_may_hold_a_matrix_of_as_many_rows(inner: nn.Module):
    layer, x = cello.Recurrent(Square(inner)), torch.randn(5, H, H)
    with cello.engine("reference"):
        layer(x, lengths=[2, 5, 3, 4])


def test_running_statistics_are_those_of_the_steps():
    layer, x = cello.Recurrent(Square(nn.BatchNorm1d(H))), torch.randn(5, H, H)
    seen: list[int] = []
    layer.cells["l0"].linear.register_forward_hook(lambda *_: seen.append(1))
    with cello.engine("reference"):
        layer(x, lengths=[4, 5, 4, 5])
    assert layer.cells["l0"].inner.num_batches_tracked == 5
    assert len(seen) == 5


def test_another_default_device_is_no_reason_to_refuse_a_cell():
    layer, x = cello.Recurrent(Square(nn.Identity())), torch.randn(5, H, H)
    layer(x)
    torch.set_default_device("meta")
    try:
        with cello.engine("reference"):
            output, _ = layer(x, lengths=[2, 5, 3, 4])
    finally:
        torch.set_default_device(None)
    assert not output.is_meta


def test_generators_are_put_back():
    torch.manual_seed(0)
    with Generators(torch.device("cpu")):
        first = torch.rand(3)
    torch.testing.assert_close(torch.rand(3), first, rtol=0, atol=0)
