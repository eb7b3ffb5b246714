"""Steps that choose by the place of an extremum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import assert_left_to_the_loop
from torch import Tensor, nn

import cello

H, K = 4, 5
Step = Callable[["Holder", Tensor, Tensor], Tensor]


class Holder(nn.Module):
    """A cell with weights, and a step that reads them."""

    def __init__(self, step: Step):
        super().__init__()
        self.step, self.score = step, nn.Linear(H, K)
        self.register_buffer("mask", torch.zeros(H, H).fill_diagonal_(-torch.inf))
        self.code, self.deep = nn.Parameter(torch.randn(K, H)), nn.Parameter(torch.randn(K, 2, 2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self, x, h)


def straight_through(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """The forward pass of a hard choice with the gradient of a soft one."""
    soft = (x + h).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.max(-1, keepdim=True)[1], 1.0)
    return torch.tanh(x + h * (hard - soft.detach() + soft))


def quantised(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    u = torch.tanh(x + h)
    nearest = c.code[(u[:, None] - c.code).pow(2).sum(-1).argmin(-1)]
    return u + (nearest - u).detach() + 0.1 * nearest


def both_results(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    top, place = (x + h).max(-1)
    return torch.tanh(x * top[:, None] + place[:, None].to(x.dtype) * h)


def not_numbers(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """The first NaN is the largest number and the smallest one."""
    holed = torch.where(x > 0.3, float("nan"), x + h)
    places = holed.argmax(-1) + K * holed.argmin(-1)
    return torch.tanh(0.1 * x + 0.1 * h + 0.02 * places[:, None].to(x.dtype))


def infinite(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """A table of masks, and one with a NaN in a row that is not chosen."""
    holed = torch.cat([c.code, torch.full_like(c.code[:1], float("nan"))])
    soft = torch.softmax(x + h + c.mask[(x + h).argmax(-1)], -1)
    return soft + 0.1 * holed[c.score(h).argmax(-1)]


def signs_of_zeros(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    zeros = torch.where(x > 0, -0.0, 0.0) * torch.ones_like(h)
    place = h.argmax(-1, keepdim=True)
    chosen = zeros.gather(1, place)
    added = zeros.scatter_add(1, place, torch.zeros_like(chosen))
    return torch.atan2(chosen, -1 - h * h) + torch.atan2(added, -1 - h * h) + 0.1 * x


def ties(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    flat = torch.relu(h - 9) + torch.zeros(1, H, dtype=x.dtype)
    one = F.one_hot(flat.argmax(-1), H).to(x.dtype)
    return torch.tanh(x + 0.5 * one + h.gather(1, flat.argmin(-1, keepdim=True)))


def pairs(x: Tensor) -> Tensor:
    return x.view(-1, 2, 2)


def rows_of(x: Tensor, rank: int = 1) -> Tensor:
    return torch.arange(x.size(0), device=x.device).view(-1, *[1] * (rank - 1))


def put(h: Tensor, where: tuple[Any, ...], values: Tensor | float) -> Tensor:
    h = h.clone()
    h[where] = values
    return h


STEPS: dict[str, Step] = {
    "one_hot": lambda c, x, h: torch.tanh(
        x + h + F.one_hot(c.score(x + h).argmax(-1), K).to(x.dtype) @ c.code
    ),
    "embedding": lambda c, x, h: torch.tanh(x + h + F.embedding(c.score(h).argmin(-1), c.code)),
    "row": lambda c, x, h: torch.tanh(x + h + c.code[c.score(x + h).argmax(-1)]),
    "rows of matrices": lambda c, x, h: torch.tanh(
        x + h + c.deep[c.score(h).argmax(-1)].flatten(1)
    ),
    "several rows": lambda c, x, h: torch.tanh(x + h + c.code[pairs(x + h).argmax(-1)].sum(1)),
    "index_select": lambda c, x, h: torch.tanh(x + c.code.index_select(0, c.score(h).max(-1)[1])),
    "gather": lambda c, x, h: torch.tanh(x + h.gather(1, (x + h).argmax(-1, keepdim=True))),
    "gather several": lambda c, x, h: torch.tanh(
        x + (h * x).gather(1, pairs(x + h).argmax(-1)).repeat(1, 2)
    ),
    "gather in the middle": lambda c, x, h: torch.tanh(
        x + pairs(h * x).gather(1, pairs(x + h).argmin(1, keepdim=True)).flatten(1).repeat(1, 2)
    ),
    "take_along_dim": lambda c, x, h: torch.tanh(
        x + torch.take_along_dim(h, (x + h).argmax(-1, keepdim=True), 1)
    ),
    "the next one": lambda c, x, h: torch.tanh(
        x + h.gather(1, ((x + h).argmax(-1, keepdim=True) + 1) % H)
    ),
    "scatter": lambda c, x, h: torch.tanh(
        x + h.scatter(1, (x + h).argmax(-1, keepdim=True), 2 * x[:, :1])
    ),
    "scatter one number": lambda c, x, h: torch.tanh(
        x + h.scatter(1, pairs(x + h).argmax(-1), 0.5)
    ),
    "scatter_add": lambda c, x, h: torch.tanh(
        x + h.scatter_add(1, pairs(x + h).argmax(-1), x[:, :2])
    ),
    "compared": lambda c, x, h: torch.where(
        ((x + h).argmax(-1) == 2)[:, None], torch.tanh(x), 0.5 * h
    ),
    "of the input": lambda c, x, h: torch.tanh(x + h.gather(1, x.argmax(-1, keepdim=True))),
    "table of the input": lambda c, x, h: torch.tanh(x + h + c.code[x.max(-1).indices]),
    "straight through": straight_through,
    "quantised": quantised,
    "both results": both_results,
    "not numbers": not_numbers,
    "infinite": infinite,
    "signs of zeros": signs_of_zeros,
    "within bounds": lambda c, x, h: torch.tanh(
        x
        + h.gather(1, ((x + h).argmax(-1, keepdim=True) - 1).clamp(min=0))
        + c.code[(2 * (x + h).argmax(-1)).clamp(0, K - 1)]
    ),
    "places of the input": lambda c, x, h: torch.tanh(
        h + c.score(x.gather(1, x.abs().long().clamp(0, H - 1)))[:, :H]
    ),
    "ties": ties,
    "cross entropy": lambda c, x, h: torch.tanh(
        x
        + F.cross_entropy(c.score(h), c.score(x + h).argmax(-1), reduction="none")[:, None]
        + F.nll_loss(h.log_softmax(-1), x.argmax(-1), reduction="none")[:, None] * h
    ),
    "from the end": lambda c, x, h: torch.tanh(x + h + c.code[c.score(h).argmax(-1) - K]),
    "of each row": lambda c, x, h: torch.tanh(x + h[rows_of(x), (x + h).argmax(-1)][:, None]),
    "of each row, from the end": lambda c, x, h: torch.tanh(
        x + h[rows_of(x), (x + h).argmax(-1) - H][:, None]
    ),
    "several of each row": lambda c, x, h: torch.tanh(
        x + (h * x)[rows_of(x, 2), (x + h).topk(3).indices].sum(1, keepdim=True)
    ),
    "with row numbers repeated": lambda c, x, h: torch.tanh(
        x + (h * x)[rows_of(x, 2).expand(-1, 2), pairs(x + h).argmax(-1)].repeat(1, 2)
    ),
    "one place of all rows": lambda c, x, h: torch.tanh(
        x * h[rows_of(x), 2][:, None] + h[rows_of(x, 2), torch.tensor([1, 3])].repeat(1, 2)
    ),
    "a vector of each row": lambda c, x, h: torch.tanh(
        x + pairs(h * x)[rows_of(x), pairs(x + h).sum(2).argmax(1)].repeat(1, 2)
    ),
    "a place on two axes": lambda c, x, h: torch.tanh(
        x + pairs(h)[rows_of(x), pairs(x).sum(2).argmax(1), pairs(h).sum(1).argmin(1)][:, None]
    ),
    "a column of each row": lambda c, x, h: torch.tanh(
        x + pairs(h * x)[rows_of(x), :, pairs(x + h).sum(1).argmax(1)].repeat(1, 2)
    ),
    "put in": lambda c, x, h: torch.tanh(
        x
        + put(h, (rows_of(x), (x + h).argmax(-1)), 0.5)
        + put(h, (rows_of(x), x.argmin(-1)), x[:, 0])
    ),
    "put in order": lambda c, x, h: torch.tanh(
        x + put(h, (rows_of(x, 2), (x + h).argsort(-1)[:, :3]), x[:, :3])
    ),
    "a vector put in": lambda c, x, h: torch.tanh(
        x + put(pairs(h), (rows_of(x), pairs(x + h).sum(2).argmax(1)), x[:, :2]).flatten(1)
    ),
    "a column put in": lambda c, x, h: torch.tanh(
        x
        + put(pairs(h), (rows_of(x), slice(None), pairs(h).sum(1).argmin(1)), x[:, 1:3]).flatten(1)
    ),
    "added": lambda c, x, h: torch.tanh(
        x + h.index_put((rows_of(x, 2), pairs(x + h).argmax(-1)), x[:, 1:3], accumulate=True)
    ),
    "of the rows of the input": lambda c, x, h: torch.tanh(
        h + c.score(x * x[rows_of(x), x.argmax(-1)][:, None])[:, :H]
    ),
}


@pytest.mark.parametrize("rows", [3, 33])
@pytest.mark.parametrize("name", STEPS)
def test_choices_are_those_of_the_loop(name: str, rows: int):
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name]).double(), state_size=H)
    x, h = (torch.randn(n, rows, H, dtype=torch.float64, requires_grad=True) for n in (5, 1))
    assert cello.explain(layer, x, h).plans[0].engine == "native"
    inputs, found = [x, h, *layer.parameters()], []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, h_n = layer(x, h)
        loss = output.sin().sum() + h_n.square().sum()
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        zeros = map(torch.zeros_like, inputs)
        gradients = [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
        found.append([output, h_n, *gradients])
    for native, reference in zip(*found, strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-9, atol=1e-10, equal_nan=True)


REFUSED: dict[str, tuple[Step, str]] = {
    "outside": (
        lambda c, x, h: h + x.gather(1, (h.argmax(-1, keepdim=True) - 1).clamp(-1, 2).abs() + 2),
        "one of 4 with integers that are not known to lie within; those of argmax, topk or sort are, and "
        r"others after .clamp\(0, 3\)",
    ),
    "beyond the other end": (
        lambda c, x, h: torch.tanh(x + h + c.code[torch.where(h[:, 0] > 1e9, -K - 1, 0)]),
        "are not known to lie within",
    ),
    "the number of a row": (
        lambda c, x, h: torch.tanh(x + h * torch.arange(len(x))[:, None]),
        "depends on the number of rows in the batch",
    ),
    "for pairs of rows": (
        lambda c, x, h: x + h[torch.arange(len(x))[:, None], h.argmax(-1)].sum(1, keepdim=True),
        "mixes the rows of a batch in index",
    ),
    "rows of another order": (
        lambda c, x, h: x + h[torch.arange(len(x)).flip(0), h.argmax(-1)][:, None],
        "depends on the number of rows in the batch",
    ),
    "row numbers in disorder": (
        lambda c, x, h: (
            x + h[rows_of(x, 2).expand(-1, 2).t().reshape(-1, 2), pairs(h).argmax(-1)].repeat(1, 2)
        ),
        "depends on the number of rows in the batch",
    ),
    "row numbers that wrap around": (
        lambda c, x, h: (
            x + h[torch.arange(len(x)).to(torch.int8).long() * 1, h.argmax(-1)][:, None]
        ),
        "depends on the number of rows in the batch",
    ),
    "several put where they may meet": (
        lambda c, x, h: put(h, (rows_of(x, 2), pairs(x + h).argmax(-1)), x[:, :2]),
        "puts several numbers in at places that may be the same in index_put",
    ),
    "of all rows": (
        lambda c, x, h: torch.tanh(x + h.argmax().to(x.dtype)),
        "mixes the rows of a batch in argmax",
    ),
    "several that may meet": (
        lambda c, x, h: torch.tanh(x + h.scatter(1, pairs(x + h).argmax(-1), x[:, :2])),
        "puts several numbers in at places that may be the same in scatter",
    ),
    "by a place": (
        lambda c, x, h: torch.tanh(x + x.gather(1, 5 % (h.argmax(-1, keepdim=True) + 2))),
        "computes int64 in remainder",
    ),
    "padding": (
        lambda c, x, h: torch.tanh(x + F.embedding(h.argmax(-1), c.code, padding_idx=0)),
        "uses embedding .* with padding_idx=0",
    ),
    "a part": (
        lambda c, x, h: torch.tanh(
            x + pairs(h).gather(1, pairs(x).argmax(1, keepdim=True)[:, :, :1]).flatten(1)
        ),
        "chooses in a part of a tensor by gather",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_choices_are_left_to_the_loop(name: str):
    step, reason = REFUSED[name]
    layer = cello.Recurrent(Holder(step), state_size=H)
    assert_left_to_the_loop(reason, layer, torch.randn(3, 2, H))


def test_a_hard_sample_of_gumbel_softmax():
    """One of the classes at each step, as often as its probability says."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    layer = cello.Recurrent(
        lambda x, h: F.gumbel_softmax(logits + 0 * (x + h), hard=True), state_size=H
    )
    assert cello.explain(layer, torch.zeros(4, 8, H)).plans[0].engine == "native"
    output, _ = layer(torch.zeros(50, 400, H))
    assert ((output == 0) | ((output - 1).abs() < 1e-6)).all()
    share = output.mean((0, 1))
    torch.testing.assert_close(share, logits.softmax(-1), rtol=0, atol=0.015)


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 300), (torch.float16, 2100)])
def test_places_beyond_what_the_dtype_counts(dtype: torch.dtype, width: int):
    x = torch.rand(1, 3, width) * 0.5
    for row, place in enumerate((width // 2 + 1, width - 2, width - 1)):
        x[0, row, place] = 1
    x = x.to(dtype)

    def step(x: Tensor, h: Tensor) -> Tensor:
        place = (x + 0 * h).argmax(-1, keepdim=True)
        return x.gather(1, place) + F.one_hot(place[:, 0], width) + (place % 7) + 0 * h

    layer, found = cello.Recurrent(step, state_size=width), []
    h = torch.zeros(1, 3, width, dtype=dtype)
    for engine in ("native", "reference"):
        with cello.engine(engine):
            found.append(layer(x, h)[0])
    assert found[0].equal(found[1])


@pytest.mark.parametrize("name", ["row", "embedding", "gather", "scatter", "quantised"])
def test_choices_in_a_compiled_graph(name: str):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name]), state_size=H)
    x, found = torch.randn(4, 3, H, requires_grad=True), []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        output, _ = run(x)
        inputs = [x, layer.cells["l0"].code]
        found.append([output, *torch.autograd.grad(output.sin().sum(), inputs, allow_unused=True)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)
