"""What a step writes in place, sets or keeps in other ways than by the names of torch's methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from steps import loop
from torch import Tensor, nn
from torch.nn.utils import parametrize

import cello

H = 3


class Holds(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.6, 0.7]))
        self.register_buffer("b", torch.tensor([1.0, 2.0, 3.0]))
        self.k, self.compute = torch.ones(H), compute
        self.double()
        self.k = self.k.double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        assert self.compute is not None
        return self.compute(self, x, h)


def quietly(function: Callable[[], object]) -> None:
    with torch.no_grad():
        function()


def written(write: Callable[[Tensor, Tensor], object]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        a = h * c.w
        write(a, h)
        return torch.tanh(x + a)

    return step


def view_after_write(c: Any, x: Tensor, h: Tensor) -> Tensor:
    a = h * c.w
    v = a[:, :2]
    a.mul_(h)
    quietly(lambda: v + 1)
    return torch.tanh(x + torch.cat([v, a[:, 2:]], -1))


def one_row(c: Any, x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        turned = h.t().contiguous()
    return torch.tanh(x + turned.t() * c.w)


STEPS = {
    "an argument": written(lambda a, h: quietly(lambda: nnf.relu(a, inplace=True))),
    "an argument, detached": written(lambda a, h: nnf.relu(a.detach(), inplace=True)),
    "out": written(lambda a, h: quietly(lambda: torch.mul(h, 3, out=a))),
    "out, detached": written(lambda a, h: torch.mul(h.detach(), 3, out=a.detach())),
    "a start": written(lambda a, h: nn.init.constant_(a, 0.5)),
    "an operator": written(lambda a, h: quietly(lambda: torch.ops.aten.mul_.Tensor(a, h))),
    "a view of an operator": written(lambda a, h: torch.ops.aten.detach.default(a).mul_(2)),
    "a view after a write": view_after_write,
    "the same tensor or a copy": one_row,
}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_a_loop(name: str, rows: int):
    torch.manual_seed(0)
    cell = Holds(STEPS[name])
    layer = cello.Recurrent(cell, state_size=H)
    x, h = torch.randn(3, rows, H).double(), torch.rand(rows, H).double()
    results = loop(cell, x, h), layer(x, h[None])[0]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(r.sum(), cell.w, allow_unused=True)[0] for r in results]
    torch.testing.assert_close(*[torch.zeros(()) if g is None else g for g in gradients])


def decays(name: str) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        out = torch.tanh(x + h * c.w * getattr(c, name))
        setattr(c, name, getattr(c, name) * 0.5)
        return out

    return step


def first_step(c: Any, x: Tensor, h: Tensor) -> Tensor:
    if not hasattr(c, "kept"):
        c.kept = c.w.detach() * 3
        return torch.tanh(x + h)
    return torch.tanh(x + h * c.kept)


def snapshot(c: Any, x: Tensor, h: Tensor) -> Tensor:
    if not hasattr(c, "kept"):
        c.kept = c.w.detach().clone()
    return torch.tanh(x + h * c.w + (c.kept - c.w))


def out_into_a_buffer(c: Any, x: Tensor, h: Tensor) -> Tensor:
    torch.mul(c.b, 0.5, out=c.b)
    return torch.tanh(x + h * c.b)


KEEPING = {
    "an attribute": decays("k"),
    "a buffer": decays("b"),
    "the first step": first_step,
    "a snapshot": snapshot,
    "out": out_into_a_buffer,
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_a_step_keeps_is_kept(name: str):
    torch.manual_seed(0)
    cell, own = Holds(KEEPING[name]), Holds(KEEPING[name])
    layer = cello.Recurrent(cell, state_size=H)
    x, h = torch.randn(3, 2, H).double(), torch.rand(2, H).double()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x, h[None])[0], loop(own, x, h))
            for module in (cell, own):
                module.w.add_(1.0)


def test_a_weight_that_is_made_anew_at_each_step_may_be_kept():
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        c.effective = c.w * c.b
        return torch.tanh(x + h * c.effective)

    layer = cello.Recurrent(Holds(step), state_size=H)
    plan = cello.explain(layer, torch.randn(3, 2, H).double()).plans[0]
    assert plan.engine == "native", plan.reasons


def test_an_attribute_of_a_weight():
    cell = Holds(lambda c, x, h: torch.tanh(x + h * getattr(c.w, "scale", 1.0)))
    layer, x, h = (
        cello.Recurrent(cell, state_size=H),
        torch.ones(2, 1, H).double(),
        torch.ones(1, H),
    )
    for scale in (None, 3.0, 5.0):
        if scale is not None:
            cell.w.scale = scale
        torch.testing.assert_close(layer(x, h[None].double())[0], loop(cell, x, h.double()))


@functools.cache
def table(size: int) -> Tensor:
    return torch.arange(float(size), dtype=torch.float64)


def test_a_cache_of_python_keeps_no_tensor_of_a_trial():
    cell = Holds(lambda c, x, h: torch.tanh(x + h * table(H)))
    x, h = torch.randn(3, 2, H).double(), torch.rand(2, H).double()
    torch.testing.assert_close(cello.Recurrent(cell, state_size=H)(x, h[None])[0], loop(cell, x, h))
    assert table(H).device.type == "cpu"


def test_a_cache_of_parametrizations():
    cell = nn.RNNCell(H, H)
    parametrize.register_parametrization(cell, "weight_hh", nn.Softsign())
    layer, x = cello.Recurrent(cell), torch.randn(3, 2, H)
    with parametrize.cached():
        found = layer(x)[0]
        found.sum().backward()
        assert cell.weight_hh.device.type == "cpu"
        torch.testing.assert_close(found, loop(cell, x, torch.zeros(2, H)))


def test_second_derivatives_of_a_slice_that_is_set():
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        a = h.clone()
        a[:, 0] = x[:, 0]
        return torch.tanh(x + a * c.w)

    cell = Holds(step)
    layer, x = cello.Recurrent(cell, state_size=H), torch.randn(3, 2, H).double()
    seconds = []
    for run in (lambda: layer(x)[0], lambda: loop(cell, x, torch.zeros(2, H).double())):
        (first,) = torch.autograd.grad(run().sin().sum(), cell.w, create_graph=True)
        seconds.append(torch.autograd.grad(first.sum(), cell.w)[0])
    torch.testing.assert_close(*seconds)
