"""Outputs of the state before the step: Moore machines, linear state-space models, predict then update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import Step, compare, random
from torch import Tensor, nn

import cello

WEIGHTS = {name: random(5, 5, seed=k) * 0.4 for k, name in enumerate("ABCD")}

CELLS: dict[str, tuple[int, Callable[..., Any]]] = {
    "a Moore machine": (1, lambda c, x, h: (h @ c.A, torch.tanh(x @ c.B + h @ c.C))),
    "a state-space model": (1, lambda c, x, h: (h @ c.A, x @ c.B + h @ c.C)),
    "with feed-through": (1, lambda c, x, h: (h @ c.A + x @ c.D, x @ c.B + h @ c.C)),
    "an update without a product": (1, lambda c, x, h: (h @ c.A, x + h * 0.5)),
    "parts of the state": (1, lambda c, x, h: (h[:, 1:3] @ c.A[:2] + h[:, :2] @ c.B[:2], x)),
    "two products deep": (1, lambda c, x, h: (h @ c.A @ c.B, h @ c.C)),
    "the state itself": (1, lambda c, x, h: (h, h @ c.C + x)),
    "a second state": (2, lambda c, x, h, s: (s @ c.A, torch.tanh(x @ c.B + h @ c.C), h / 2 + s)),
    "both states": (2, lambda c, x, h, s: (s @ c.A + h @ c.D, torch.tanh(x + s), h @ c.B)),
    "predict, then update": (
        1,
        lambda c, x, h: (h @ c.A, h + 0.1 * (x - h @ c.A) @ c.B),
    ),
    "a state that forgets": (1, lambda c, x, h: ((x @ c.A + h) @ c.B, x)),
    "a gradient that is the state's": (1, lambda c, x, h: (((x * 2) @ c.A + h) @ c.B, x * 3)),
}


@pytest.mark.parametrize(
    "options", [{}, {"lengths": [4, 0, 2]}, {"return_states": True}], ids=lambda o: str(list(o))
)
@pytest.mark.parametrize("name", CELLS)
def test_a_cell(name: str, options: dict[str, Any]):
    count, function = CELLS[name]
    states = [random(1, 3, 5, seed=k + 1) for k in range(count)]
    compare(Step(function, [5] * count, **WEIGHTS), random(4, 3, 5), states, **options)


class Predicts(nn.Module):
    """As an outsider writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.r, self.o = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.o(h), torch.tanh(self.i(x) + self.r(h))


def test_it_runs_without_being_asked_for():
    layer = cello.Recurrent(Predicts(), state_size=4)
    x = torch.randn(70, 3, 3)
    assert cello.explain(layer, x).plans[0].engine == "native"
    with cello.engine("reference"):
        expected = layer(x)[0]
    torch.testing.assert_close(layer(x)[0], expected)


def test_gradients_of_two_inputs_that_are_the_same():
    """Both are the result of one product behind the loop, which has one place to write to."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.r = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            e = self.a(x[:, 0]) + self.b(x[:, 1]) + h.detach()
            return torch.tanh(self.r(e) + h)

    torch.manual_seed(0)
    layer, x = cello.Recurrent(Sums(), state_size=4).double(), torch.randint(9, (6, 3, 2))
    gradients = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            loss = layer(x)[0].square().sum()
        gradients.append(torch.autograd.grad(loss, list(layer.parameters())))
    torch.testing.assert_close(*gradients)
