"""Regions under ``torch.no_grad`` in a step: no gradient flows through them, wherever they are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import loop
from torch import Tensor, nn

import cello

F, H = 3, 4


class Holds(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(F, H)), nn.Parameter(torch.randn(H, H) / 2)
        self.b, self.compute = nn.Parameter(torch.randn(H)), compute
        self.double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.compute(self, x, h)


def without(function: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return function()


def clamped_in_place(w: Tensor) -> Tensor:
    w = w * 1.0
    with torch.no_grad():
        w.clamp_(-0.5, 0.5)
    return w


COMPILED = {
    "a weight": lambda c, x, h: x @ without(lambda: c.w * 2 + c.w.mean()) + h @ c.u,
    "a weight, then with one": lambda c, x, h: x @ (c.w * without(lambda: c.w.abs())) + h @ c.u,
    "a view of a weight": lambda c, x, h: x @ c.w + h @ without(lambda: c.u.t()),
    "a part of a weight": lambda c, x, h: x @ c.w * without(lambda: c.u[0]) + h @ c.u,
    "a weight for each row": lambda c, x, h: x @ c.w * without(lambda: c.b.expand(len(x), -1)) + h,
    "a product": lambda c, x, h: x @ c.w + without(lambda: h @ c.u),
    "of the input": lambda c, x, h: without(lambda: (x @ c.w).sin()) @ c.u + 0.5 * h,
    "of the input, then a factor": lambda c, x, h: (without(lambda: x.sin()) * x) @ c.w + h @ c.u,
    "of the state": lambda c, x, h: x @ c.w + without(lambda: h.abs()) * h @ c.u,
    "a bias": lambda c, x, h: x @ c.w + without(lambda: c.b + 1) * c.b + h @ c.u,
    "the weight itself": lambda c, x, h: x @ without(lambda: c.w) + h @ c.u,
    "a normed weight": lambda c, x, h: x @ (c.w / without(lambda: c.w.norm())) + h @ c.u,
    "a factory": lambda c, x, h: x @ c.w + h @ c.u * without(lambda: torch.full_like(h, 0.5)),
}


@pytest.mark.parametrize("name", [*COMPILED, "in place"])
def test_gradients_are_those_of_a_loop(name: str):
    torch.manual_seed(0)
    in_place = lambda c, x, h: x @ clamped_in_place(c.w) + h @ c.u  # noqa: E731
    compute = COMPILED.get(name, in_place)
    cell = Holds(lambda c, x, h: torch.tanh(compute(c, x, h)))
    layer = cello.Recurrent(cell, state_size=H)
    x = torch.randn(5, 2, F, dtype=torch.float64, requires_grad=True)
    if name != "in place":
        assert cello.explain(layer, x).plans[0].engine == "native"
    wanted = [x, *cell.parameters()]
    results = [loop(cell, x, torch.zeros(2, H, dtype=torch.float64)), layer(x)[0]]
    expected, found = (
        torch.autograd.grad(out.sin().sum(), wanted, allow_unused=True) for out in results
    )
    torch.testing.assert_close(*results)
    for a, b in zip(expected, found, strict=True):
        zeros = torch.zeros(())
        torch.testing.assert_close(*(zeros if g is None or not g.any() else g for g in (b, a)))


def normed(x: Tensor) -> Tensor:
    """As a function of torch that writes into a temporary of its own past gradients."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(normed, (x,), x)
    with torch.no_grad():
        size = x.norm(dim=-1, keepdim=True).clamp_min(0.1)
    return x / size


def test_what_a_function_of_torch_computes_past_gradients_is_left_to_the_loop():
    torch.manual_seed(0)
    cell = Holds(lambda c, x, h: torch.tanh(x @ c.w + normed(h) @ c.u))
    layer, x = cello.Recurrent(cell, state_size=H), torch.randn(5, 2, F, dtype=torch.float64)
    (plan,) = cello.explain(layer, x).plans
    assert plan.engine == "reference"
    assert "past gradients" in str(plan)


def test_cosine_similarity_of_earlier_versions_of_torch():
    """There its norms are seen without their gradients; the trace writes them in another way."""
    from cello.compile.written_out import _cosine_similarity

    torch.manual_seed(0)
    first = torch.randn(4, 3, 5, dtype=torch.float64)
    first[0, 0], first[1, 1] = 0, 1e-12  # below the least norm
    second = torch.randn(3, 5, dtype=torch.float64)
    for dim, eps in ((-1, 1e-8), (1, 0.5)):
        found = []
        for function in (torch.cosine_similarity, _cosine_similarity):
            a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
            out = function(a, b, dim, eps)
            found.append((out, *torch.autograd.grad(out.sin().sum(), (a, b))))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
