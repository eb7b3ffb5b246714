"""Steps that put numbers in order, or take those of some ranks."""

from __future__ import annotations

import pytest
import torch
from order_cells import STEPS, H, Holder, Step
from steps import assert_left_to_the_loop

import cello


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("name", STEPS)
def test_orders_are_those_of_the_loop(name: str, rows: int):
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name]).double(), state_size=H)
    x, h = (torch.randn(n, rows, H, dtype=torch.float64, requires_grad=True) for n in (5, 1))
    assert cello.explain(layer, x, h).plans[0].engine == "native", cello.explain(layer, x, h)
    inputs, found = [x, h, *layer.parameters()], []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, h_n = layer(x, h)
        loss = output.sin().sum() + h_n.square().sum()
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        assert not output.isnan().any()
        found.append([output, h_n, *gradients])
    for native, reference in zip(*found, strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-9, atol=1e-10)


def test_equal_numbers_keep_their_order():
    h = torch.tensor([[[1.0, 2.0, 2.0, 0.0, 2.0]]])
    places = {"topk": [1.0, 2.0, 4.0], "sort": [3.0, 0.0, 1.0, 2.0, 4.0], "max": [1.0]}
    for step, expected in (
        (lambda x, h: (h.topk(3).indices.to(x.dtype), h + x), places["topk"]),
        (lambda x, h: (h.sort().indices.to(x.dtype), h + x), places["sort"]),
        (lambda x, h: (h.max(-1, True).indices.to(x.dtype), h + x), places["max"]),
    ):
        with cello.engine("native"):
            output, _ = cello.Recurrent(step)(torch.zeros(1, 1, 5), h)
        assert output.tolist() == [[expected]]


REFUSED: dict[str, tuple[Step, str]] = {
    "the batch": (lambda c, x, h: h + x.sort(dim=0).values, "keep the rows of a batch apart|mixes"),
    "the whole": (lambda c, x, h: h + x + h.median(), "median"),
    "many": (
        lambda c, x, h: h + x + h.repeat(1, 50).sort().values[:, :H],
        r"compares 90000 pairs of numbers for each row in sort \(test_order.py:\d+\)",
    ),
    "a mode": (lambda c, x, h: h + x + h.round().mode(-1, True).values, "mode"),
    "a distance": (
        lambda c, x, h: x + torch.cdist(h[:, None], c.mix.weight[None], 3.0)[:, 0],
        "cdist",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_orders_are_left_to_the_loop(name: str):
    step, reason = REFUSED[name]
    layer = cello.Recurrent(Holder(step), state_size=H)
    assert_left_to_the_loop(reason, layer, torch.randn(3, 2, H))


@pytest.mark.parametrize("size", [1, 2, 15, 17, 37, 64, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_axes_of_any_size(size: int, dtype: torch.dtype):
    """Along the last axis and along one before it, every number at its place."""
    torch.manual_seed(size)
    count = (size + 1) // 2

    def step(x, h):
        wide = h.view(-1, size, 1).expand(-1, size, 2) * torch.tensor([1.0, -1.0]).to(h)
        up, at = wide.sort(1)
        top = h.topk(count)
        put = torch.zeros_like(h).scatter(-1, top.indices, top.values)
        return torch.cat(
            [up.flatten(1), at.flatten(1).to(h), put, h.gather(-1, top.indices)], -1
        ), h

    layer = cello.Recurrent(step, state_size=size)
    x, h = torch.zeros(1, 3, 1, dtype=dtype), torch.randn(1, 3, size, dtype=dtype)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            found.append(layer(x, h)[0])
    assert torch.equal(*found)


def test_largest_differences_that_are_equal_have_the_whole_gradient_each():
    codes = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    layer = cello.Recurrent(
        lambda x, h: (torch.cdist(h[:, None], codes[None], p=torch.inf)[:, 0], h + 0 * x),
        state_size=3,
    )
    h = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    gradients = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = layer(torch.zeros(1, 2, 3, dtype=torch.float64), h)
        gradients.append(torch.autograd.grad(output.sum(), h)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("op", ["prod", "cdist"])
def test_what_autocast_computes_in_float32(op: str):
    def step(c, x, h):
        u = c.mix(x + h)
        u = u.prod(-1, keepdim=True) if op == "prod" else torch.cdist(u[:, None], u[:, None])[:, 0]
        return u, h

    layer, x = cello.Recurrent(Holder(step), state_size=H), torch.randn(3, 2, H)
    with torch.autocast("cpu", torch.bfloat16):
        plan = cello.explain(layer, x).plans[0]
        assert "which torch.autocast computes in float32" in plan.reasons["native"][0]
        assert layer(x)[0].dtype == torch.float32


def test_sums_of_no_exponentials():
    """Masks by -infinity, several side by side, leave the gradients of the others alone."""
    masked = torch.tensor([0.1, -torch.inf, -torch.inf, 0.5, -torch.inf, -torch.inf]).double()
    layer = cello.Recurrent(lambda x, h: ((x * h + masked).logcumsumexp(-1), h * 0.5), state_size=H)
    x = torch.rand(2, 1, H, dtype=torch.float64, requires_grad=True)
    h = torch.ones(1, 1, H, dtype=torch.float64, requires_grad=True)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = layer(x, h)
        found.append([output, *torch.autograd.grad(output.sin().sum(), [x, h])])
    assert found[0][1].isfinite().all()
    for native, reference in zip(*found, strict=True):
        torch.testing.assert_close(native, reference)
