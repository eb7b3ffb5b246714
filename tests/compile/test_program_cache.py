"""The cache of programs: it works under inference_mode, and keeps nothing of the calls alive."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch
from steps import loop
from torch import Tensor, nn

import cello
from cello.compile import compiled
from cello.engines.native.library import library


@pytest.mark.skipif(library() is None, reason="the native engine is not built")
def test_the_first_call_may_be_under_inference_mode() -> None:
    layer = cello.nn.LSTM(3, 13, activation=cello.PiecewiseLinear([-2, 2], [-1, 1]))
    x = torch.randn(4, 2, 3)
    compiled.__globals__["_programs"].clear()
    with torch.inference_mode(), cello.engine("native"):
        inference = layer(x)[0]
    with cello.engine("reference"):
        torch.testing.assert_close(inference.clone(), layer(x)[0])
    with cello.engine("native"):  # what was found then takes gradients now
        layer(x)[0].sum().backward()
    assert layer.weight_hh_l0.grad is not None


class Gammas(nn.Module):
    """A cell of an operation that no program has."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + torch.lgamma(1 + (x + h).abs())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_cannot_be_compiled_keeps_nothing_of_its_calls(mode: type) -> None:
    layer = cello.Recurrent(Gammas(), state_size=4)
    assert "lgamma" in str(cello.explain(layer, torch.randn(3, 2, 4)))

    def tensors() -> int:
        with mode():
            for _ in range(5):
                layer(torch.randn(3, 2, 4))
        gc.collect()
        return sum(type(found) is Tensor for found in gc.get_objects())

    tensors()
    before = tensors()
    assert tensors() <= before  # fewer, where a collection found what other tests left


def test_the_same_class_with_a_tensor_in_other_places():
    """A program finds its tensors by their places, which differ from instance to instance."""

    class Anywhere(nn.Module):
        def __init__(self, where: str):
            super().__init__()
            w = torch.rand(3)
            if where == "buffer":
                self.register_buffer("w", w)
            else:
                self.w = nn.Parameter(w) if where == "parameter" else w

        def forward(self, x, h):
            return torch.tanh(self.w * h + x)

    x = torch.randn(4, 2, 3)
    for places in itertools.permutations(["buffer", "parameter", "attribute"]):
        for where in places:
            cell = Anywhere(where)
            layer = cello.Recurrent(cell, state_size=3)
            torch.testing.assert_close(layer(x)[0], loop(cell, x, torch.zeros(2, 3)))
            assert cello.explain(layer, x).plans[0].engine == "native"
