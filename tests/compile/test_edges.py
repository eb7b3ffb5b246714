"""Numbers at which a formula that is right elsewhere would lose digits, or make a NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from steps import Step
from torch import Tensor

import cello

Function = Callable[[Tensor], Tensor]


def compare(function: Function, numbers: list[complex], dtype: torch.dtype) -> None:
    """The values and gradients of a step on the native engine, and torch's, to a few units."""
    step = Step(lambda c, x, h: [function(x) + 0 * h] * 2, [len(numbers)])
    found = []
    for engine in ("native", "reference"):
        x = torch.tensor([[numbers]], dtype=dtype, requires_grad=True)
        h = torch.zeros(1, 1, len(numbers), dtype=dtype)
        with cello.engine(engine):
            output, _ = cello.Recurrent(step)(x, (h,))
        (gradient,) = torch.autograd.grad(
            output.abs().sum() if dtype.is_complex else output.sum(), x
        )
        found.append((output.detach(), gradient))
    few = 32 * torch.finfo(dtype).eps
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=few, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_powers_have_whole_logarithms(dtype: torch.dtype):
    twos = [2.0**k for k in range(-30, 31)]
    tens = [10.0**k for k in range(10)]
    compare(lambda x: torch.floor(torch.log2(x)) + torch.log2(x), twos, dtype)
    compare(lambda x: torch.floor(torch.log10(x)) + torch.log10(x), tens, dtype)
    compare(torch.log2, [0.3, 5.0, 1e10, math.inf], dtype)
    compare(lambda x: torch.exp2(x), [0.0, 1.0, 13.0, -7.0, 0.5, 60.5], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_near_one(dtype: torch.dtype):
    compare(torch.acos, [1 - 1e-6, 0.999, 0.9, 0.1, 0.0, -0.5, -0.99], dtype)


def test_a_whole_weight_of_lerp():
    compare(lambda x: torch.lerp(1e20 * x, x, 1.0), [1.0, -3.0], torch.float64)
    compare(lambda x: torch.lerp(x, 1e20 * x, 0), [1.0, -3.0], torch.float64)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_logarithms_near_zero_and_minus_one(dtype: torch.dtype):
    near = [-0.9999 + 1e-5j, -1 + 1e-4j, -0.5 + 0.1j, 1e-6 + 1e-7j, 0.3j, 2 - 3j, 1e6 + 1j]
    compare(torch.log1p, near, dtype)


def test_an_infinite_slope_behind_a_maximum():
    numbers = [-1.0, 0.5, 2.0]
    compare(lambda x: torch.sqrt(torch.maximum(x, torch.zeros_like(x))), numbers, torch.float64)
    compare(lambda x: torch.sqrt(-torch.minimum(-x, torch.zeros_like(x))), numbers, torch.float64)


def test_what_is_multiplied_by_nothing_is_not_read():
    def step(x: Tensor) -> Tensor:
        none = torch.full_like(x, math.nan)
        return torch.addmm(none, x, torch.eye(3, dtype=x.dtype), beta=0)

    compare(step, [1.0, 2.0, 3.0], torch.float64)
