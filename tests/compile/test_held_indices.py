"""Indices that a cell holds: what they choose is known, and a change of them is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import assert_close, evaluate
from torch import Tensor, nn

import cello

H, EDGES = 4, 6


class Graph(nn.Module):
    """Nodes that send numbers along edges, which are buffers."""

    def __init__(self, step: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.step, self.lin = step, nn.Linear(H, H)
        self.register_buffer("sources", torch.tensor([0, 1, 2, 3, 3, 0]))
        self.register_buffer("targets", torch.tensor([1, 2, 3, 0, 1, 1]))
        self.order = torch.tensor([[2, 0, 3, 1]])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.step(self, self.lin(h), h))


def added(cell: Any, message: Tensor, h: Tensor) -> Tensor:
    index = cell.targets.expand(len(h), -1)
    return torch.zeros_like(h).scatter_add(1, index, message[:, cell.sources])


def added_in_place(cell: Any, message: Tensor, h: Tensor) -> Tensor:
    index = cell.targets.unsqueeze(0).repeat(len(h), 1)
    return torch.zeros_like(h).scatter_add_(1, index, message.index_select(1, cell.sources))


def added_to_vectors(cell: Any, message: Tensor, h: Tensor) -> Tensor:
    vectors = torch.stack([message, h], 2)
    index = cell.targets[None, :, None].expand(len(h), -1, 2)
    sums = torch.zeros_like(vectors).scatter_add(1, index, vectors[:, cell.sources])
    return sums.prod(2)


STEPS = {
    "added": added,
    "added in place": added_in_place,
    "added to vectors": added_to_vectors,
    "gathered": lambda c, m, h: m.gather(1, c.order.expand(len(h), -1)) * h,
    "gathered, counted on": lambda c, m, h: m.gather(1, (c.order - 3).abs().expand(len(h), -1)),
    "put at one place": lambda c, m, h: m.scatter(1, c.order[:, :1].expand(len(h), -1), h[:, 1:2]),
}


def agree(layer: Any, rows: int, **options: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    x, h = (torch.randn(n, rows, H, dtype=torch.float64, generator=generator) for n in (5, 1))
    results = [
        evaluate(layer, x, [h], e, lambda s: s[0], **options) for e in ("native", "reference")
    ]
    assert_close(*results)


@pytest.mark.parametrize("name", STEPS)
def test_they_are_known_and_a_change_is_seen(name: str) -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Graph(STEPS[name]), state_size=H).double()
    cell = layer.cells["l0"]
    agree(layer, 3)
    agree(layer, 33, lengths=[5, 3, 4, *[1] * 30])
    cell.targets.copy_(torch.tensor([3, 3, 0, 0, 2, 1]))
    cell.order.copy_(torch.tensor([[0, 1, 2, 2]]))
    agree(layer, 3)
    cell.targets = torch.tensor([0, 0, 0, 1, 2, 3])
    agree(layer, 3)
    other = cello.Recurrent(Graph(STEPS[name]), state_size=H).double()
    other.cells["l0"].order = torch.tensor([[3, 2, 1, 0]])
    agree(other, 3)


@pytest.mark.parametrize("name", STEPS)
def test_what_lies_outside_is_the_error_of_torch(name: str) -> None:
    layer = cello.Recurrent(Graph(STEPS[name]), state_size=H)
    x = torch.randn(3, 2, H)
    layer(x)
    assert cello.explain(layer, x).plans[0].engine == "native"
    layer.cells["l0"].targets[2] = H
    layer.cells["l0"].order[0, 0] = H + 3
    with pytest.raises((RuntimeError, IndexError)):
        layer(x)
    layer.cells["l0"].targets[2] = 0
    layer.cells["l0"].order[0, 0] = 1
    assert cello.explain(layer, x).plans[0].engine == "native"


@torch.no_grad()
def test_they_are_compared_in_a_compiled_model() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = cello.Recurrent(Graph(added), state_size=H)
    x = torch.randn(4, 3, H)
    compiled = torch.compile(lambda x: layer(x)[0] * 2, backend="aot_eager")
    for targets in ([1, 2, 3, 0, 1, 1], [0, 0, 0, 1, 2, 3]):
        layer.cells["l0"].targets.copy_(torch.tensor(targets))
        with cello.engine("reference"):
            expected = layer(x)[0] * 2
        torch.testing.assert_close(compiled(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", STEPS)
def test_an_exported_model_has_them(name: str) -> None:
    torch.manual_seed(0)
    layer, x = cello.Recurrent(Graph(STEPS[name]), state_size=H), torch.randn(4, 3, H)
    expected, _ = layer(x)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x)[0], expected)


def test_many_are_not_compared() -> None:
    """What is too long to be compared at each call stays in the loop."""

    def step(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + h.gather(1, index.expand(len(h), -1))[:, :H])

    index = torch.zeros(1, 5000, dtype=torch.int64)
    layer, x = cello.Recurrent(step, state_size=H), torch.randn(3, 2, H)
    reason = cello.explain(layer, x).plans[0].reasons["native"][0]
    assert "not known to lie within" in reason
