"""Writes past a gradient, such as ``e.data.masked_fill_(mask, -inf)`` of attention decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import assert_close, evaluate
from torch import Tensor, nn

import cello

H, INF = 4, float("inf")


class Attention(nn.Module):
    """Scores of three vectors, of which a function masks some."""

    def __init__(self, score: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.score, self.lin, self.energy = score, nn.Linear(H, H), nn.Linear(H, 1)
        self.register_buffer("mask", torch.tensor([True, False, False]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        vectors = torch.stack([h, x * h, x], 1)
        scores = self.score(self, vectors, self.lin(h))
        weights = scores.softmax(-1)
        return torch.tanh((weights[:, None] @ vectors)[:, 0] + scores[:, 1:2])


def dot(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.bmm(vectors, query.unsqueeze(2)).squeeze(2)
    e.data.masked_fill_(c.mask, -INF)
    return e


def additive(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = c.energy(torch.tanh(vectors + query[:, None])).squeeze(2).unsqueeze(1)
    e.data.masked_fill_(c.mask == 1, -INF)
    return e.squeeze(1)


def scaled(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = (query[:, None] @ vectors.transpose(1, 2)) / 2.0
    e.data.masked_fill_(e > 0.3, -2.0)
    return e[:, 0]


def set_where(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = (vectors * query[:, None]).sum(2)
    e.data[e < 0] = -3.0
    return e


def detached(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = vectors @ c.lin.weight[0]
    e.detach().masked_fill_(c.mask, 0.5)
    return e * e


def in_a_part(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    whole = c.lin(query)
    e = whole[:, 1:]
    e.data.masked_fill_(e < 0, -1.0)
    return e * whole[:, :3]


def read_in_several_ways(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.bmm(vectors, query.unsqueeze(2)).squeeze(2)
    before = e.data
    e.data.masked_fill_(c.mask, -2.0)
    return e + before * e


def of_weights(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = c.lin.weight[:3] @ c.energy.weight[0]
    e.data.masked_fill_(c.mask, -1.0)
    return e * (vectors @ query[:, :, None])[:, :, 0]


def of_the_input(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = c.lin(vectors[:, 2])
    e.data.masked_fill_(e < 0, -1.0)
    return c.lin(e)[:, :3] + query[:, :3]


def twice(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.bmm(vectors, query.unsqueeze(2)).squeeze(2)
    e.data.masked_fill_(c.mask, -1.0)
    e.data.masked_fill_(e > 0.5, 0.25)
    return e


COMPILED = [
    dot, additive, scaled, set_where, detached, in_a_part, read_in_several_ways, of_the_input,
]  # fmt: skip


def kept_result(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.tanh(vectors @ query[:, :, None])[:, :, 0]
    e.data.masked_fill_(c.mask, -2.0)
    return e


def kept_operand(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.bmm(vectors, query.unsqueeze(2)).squeeze(2)
    product = e * query[:, :3]
    e.data.masked_fill_(c.mask, -2.0)
    return e + product


def kept_detached(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.bmm(vectors, query.unsqueeze(2)).squeeze(2)
    product = e.data * query[:, :3]
    e.data.masked_fill_(c.mask, -2.0)
    return e + product


def past_two(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = torch.bmm(vectors, query.unsqueeze(2)).squeeze(2)
    e.data.detach().masked_fill_(c.mask, -2.0)
    return e


def perhaps_copied(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = (vectors * query[:, None]).sum(2)
    same = e.contiguous()
    same.data.masked_fill_(c.mask, -2.0)
    return e + same


def perhaps_a_view(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    e = (vectors * query[:, None]).sum(2)
    flat = e.reshape(-1)
    e.data.masked_fill_(c.mask, -2.0)
    return e + flat.view(-1, 3)


def an_input(c: Any, vectors: Tensor, query: Tensor) -> Tensor:
    scores = (vectors @ query[:, :, None])[:, :, 0]
    vectors.data.masked_fill_(c.mask[:, None], 0.5)
    return scores


LEFT = [
    twice,
    of_weights,
    kept_result,
    kept_operand,
    kept_detached,
    past_two,
    perhaps_copied,
    perhaps_a_view,
    an_input,
]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("score", COMPILED + LEFT)
def test_values_and_gradients_are_those_of_the_loop(
    score: Callable[[Any, Tensor, Tensor], Tensor], rows: int
) -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Attention(score), state_size=H).double()
    x, h = (torch.randn(n, rows, H, dtype=torch.float64) for n in (4, 1))
    plan = cello.explain(layer, x, h).plans[0]
    assert plan.engine == ("native" if score in COMPILED else "reference")
    if score in LEFT:
        assert "writes in place" in str(plan.reasons)
        assert "(test_overwritten.py:" in str(plan.reasons)
    assert_close(
        *(evaluate(layer, x, [h], engine, lambda s: s[0]) for engine in (None, "reference"))
    )
