"""Steps that put numbers in order, or take those of some ranks."""

from __future__ import annotations

import re

import pytest
import torch
from order_cells import STEPS, H, Holder, Step

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
        r"puts more than 256 numbers in order by sort \(test_order.py:\d+\)",
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
    plan = cello.explain(layer, torch.randn(3, 2, H)).plans[0]
    assert plan.engine == "reference"
    assert re.search(reason, plan.reasons["native"][0]), plan.reasons["native"][0]
