"""Constants made in the step, of as many rows as the batch, as operands of products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from steps import Step, compare, random
from torch import Tensor

HELD = {"W": random(5, 5), "b": random(5, seed=1), "T": random(5, 5, 5) * 0.3}


def eyes(x: Tensor) -> Tensor:
    return torch.eye(5, dtype=x.dtype).expand(x.size(0), 5, 5)


CONSTANTS: dict[str, Callable[..., Tensor]] = {
    "zeros": lambda c, x, h: torch.zeros(x.size(0), 5, dtype=x.dtype) @ c.W.t() + h,
    "ones_like": lambda c, x, h: torch.ones_like(h) @ c.W + h,
    "new_zeros in linear": lambda c, x, h: F.linear(x.new_zeros(len(x), 5), c.W, c.b) * h,
    "new_ones in addmm": lambda c, x, h: torch.addmm(c.b, x.new_ones(x.size(0), 5), c.W) * h,
    "addmm to ones": lambda c, x, h: torch.addmm(torch.ones_like(h), h, c.W),
    "full": lambda c, x, h: torch.full((len(x), 5), 0.3, dtype=x.dtype) @ c.W * h,
    "a slice": lambda c, x, h: torch.ones_like(h)[:, 1:4] @ c.W[:3] * h,
    "a part of the operand": lambda c, x, h: (
        torch.cat([torch.zeros_like(h)[:, :2], h[:, 2:]], 1) @ c.W
    ),
    "a function of it": lambda c, x, h: torch.ones_like(h).cos() @ c.W * h,
    "behind the matrix": lambda c, x, h: (c.W @ torch.ones(5, len(x)).to(x)).t() * h,
    "times a vector": lambda c, x, h: (torch.ones_like(h) @ c.b)[:, None] * h,
    "in einsum": lambda c, x, h: torch.einsum("bi,oi->bo", torch.ones_like(h), c.W) * h,
    "in bilinear": lambda c, x, h: F.bilinear(torch.ones_like(h), h, c.T, c.b),
    "a matrix of ones": lambda c, x, h: h @ torch.ones(5, 5).to(x) + x,
    "a matrix of ones in front": lambda c, x, h: (torch.ones(5, 5).to(x) @ h.t()).t() * x,
    "ones times ones": lambda c, x, h: torch.ones_like(h) @ torch.ones(5, 5).to(x) + x,
    "a batch of ones": lambda c, x, h: (
        torch.bmm(h[:, None], torch.ones(len(x), 5, 5).to(x)).sum(1) * x
    ),
    "a batch of ones in front": lambda c, x, h: (
        torch.bmm(torch.ones(len(x), 2, 5).to(x), h[:, :, None]).sum(1) * x
    ),
    "eye in front": lambda c, x, h: torch.bmm(eyes(x), h[:, :, None])[:, :, 0] + x,
    "eye behind": lambda c, x, h: torch.bmm(h[:, None], eyes(x))[:, 0] + x,
    "eye times a matrix": lambda c, x, h: (eyes(x) @ c.W).sum(1) * h,
    "eye times matrices": lambda c, x, h: torch.bmm(eyes(x), c.W.expand(len(x), 5, 5)).sum(1) * h,
    "a parameter": lambda c, x, h: c.b.expand(len(x), 5) @ c.W * h,
    "a parameter behind": lambda c, x, h: (c.W @ c.b.expand(len(x), 5).t()).t() * h,
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant(name: str):
    function = CONSTANTS[name]
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [5], **HELD)
    compare(cell, random(4, 3, 5) * 0.4, (random(1, 3, 5, seed=1),))
