"""Steps that choose numbers, or whole rows, by a mask: ``h[m] = z[m]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import Step, assert_left_to_the_loop, compare, random
from torch import Tensor

import cello
from cello.compile.node import CHOSEN, MOST_MASKS
from cello.compile.trace import _PRIMES

Function = Callable[[Any, Tensor, Tensor], Tensor]


def put(h: Tensor, where: Any, values: Tensor | float) -> Tensor:
    h = h.clone()
    h[where] = values
    return h


def scaled_in_place(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = torch.tanh(x + h) * 1.0
    z[z < 0] *= 0.1
    z[h.abs() > 0.5] -= 0.2
    return z


def by_turns(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Masks that were equal once choose of what was written since."""
    z = (x + h).clone()
    z[x > 0] = torch.sqrt(1 + z[x > 0] ** 2)
    z[z > 1] = z[z > 1].reciprocal()
    z[x > 0] = torch.where(z[x > 0] > 0.5, z[x > 0], h[x > 0])
    return z


def in_a_matrix(c: Any, x: Tensor, h: Tensor) -> Tensor:
    v, m = h.view(-1, 2, 3), x.view(-1, 2, 3).sum(-1) > 0
    return put(v, m, torch.tanh(v[m] + x.view(-1, 2, 3)[m])).flatten(1)


def filled(c: Any, x: Tensor, h: Tensor) -> Tensor:
    m = x[:, 0] > 0
    return put(h, m, h[m].masked_fill(h[m] > 0, 0.1)) + 0.5 * x


FUNCTIONS: dict[str, Function] = {
    "rows set to a number": lambda c, x, h: torch.tanh(x + put(h, x[:, 0] > 0.2, 0.0)),
    "rows set to a vector": lambda c, x, h: torch.tanh(x + put(h, x[:, 0] > 0.2, c.v)),
    "rows set to a row": lambda c, x, h: torch.tanh(x + put(h, x[:, 0] > 0.2, c.v[None])),
    "rows": lambda c, x, h: put(h, (x > 0.4).any(1), torch.tanh(x + h)[(x > 0.4).any(1)]),
    "other rows": lambda c, x, h: put(h, ~(x[:, 1] > 0), 0.3 * h[~(x[:, 1] > 0)].cos()),
    "numbers": lambda c, x, h: put(torch.tanh(x + h), x < 0, h[x < 0]),
    "numbers of which elsewhere is none": lambda c, x, h: put(x, h > 0, torch.log(h[h > 0])).sin(),
    "in place": scaled_in_place,
    "by turns": by_turns,
    "in a matrix": in_a_matrix,
    "beside a weight": lambda c, x, h: put(h, x[:, 0] > 0, torch.tanh(h[x[:, 0] > 0] * c.v + 0.1)),
    "filled": filled,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_masks_choose_as_in_the_loop(name: str, rows: int):
    cell = Step(lambda c, x, h: [FUNCTIONS[name](c, x, h)] * 2, [6], v=random(6, seed=5))
    compare(cell, random(5, rows, 6), (random(1, rows, 6, seed=1),))


def normalised(c: Any, x: Tensor, h: Tensor) -> Tensor:
    return put(h, x[:, 0] > 0, F.layer_norm(h[x[:, 0] > 0], (6,)))


def two_random_masks(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """All is true in both, which nobody knows before."""
    ones = [torch.ones_like(x).bernoulli_(1.0) > 0 for _ in range(2)]
    return put(h, ones[0], x[ones[1]])


REFUSED: dict[str, tuple[Function, str]] = {
    "a sum": (lambda c, x, h: x + h[h > 0].sum(), "uses sum .* on what a mask has chosen"),
    "a product": (
        lambda c, x, h: put(h, x[:, 0] > 0, h[x[:, 0] > 0] @ c.W),
        "uses mm .* on what a mask has chosen",
    ),
    "a number of them": (
        lambda c, x, h: put(h, x > 0, float(len(h[x > 0]))),
        "asks how many numbers a mask chooses",
    ),
    "a shape of them": (
        lambda c, x, h: x + h if h[x > 0].shape[0] else x,
        "asks how many numbers a mask chooses",
    ),
    "one after the other": (
        lambda c, x, h: put(h, x[:, 0] > 0, sum(v for v in h[x[:, 0] > 0])),
        "on what a mask has chosen",
    ),
    "another mask": (
        lambda c, x, h: put(h, x.abs() >= 0, h[x * x >= 0]),
        "puts what a mask has chosen in by another one",
    ),
    "two random masks": (two_random_masks, "puts what a mask has chosen in by another one"),
    "what may have no gradient": (
        lambda c, x, h: torch.nan_to_num(put(h, x[:, 0] > 0, (h[x[:, 0] > 0] - 1).log() * c.v)),
        "computes with what a mask has chosen in mul",
    ),
    "normalised": (normalised, "uses native_layer_norm .* on what a mask has chosen"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_uses_are_left_to_the_loop(name: str):
    function, reason = REFUSED[name]
    held = {"v": random(6, seed=5), "W": random(6, 6, seed=6)}
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [6], **held)
    x, h = random(3, 4, 6), random(1, 4, 6, seed=1)
    x[..., 0] = x[..., 0].abs()  # some are chosen at every step
    assert_left_to_the_loop(reason, cello.Recurrent(cell), x, (h,))


def test_sizes_that_stand_for_numbers_count_no_rows():
    assert all((CHOSEN + k) % rows for k in range(MOST_MASKS) for rows in _PRIMES)
