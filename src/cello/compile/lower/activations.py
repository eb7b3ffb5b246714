"""Activation functions, made of the instructions there are; their derivatives follow from those."""

from __future__ import annotations

import math
from collections.abc import Callable

from cello.compile.arithmetic import (
    bounded,
    erf,
    exp,
    expm1,
    log1p,
    minimum,
    sigmoid,
    tanh,
    where,
)
from cello.compile.lower.rows import Operand, Rows


def silu(x: Rows) -> Rows:
    return x * sigmoid(x)


def mish(x: Rows) -> Rows:
    return x * tanh(softplus(x))


def gelu(x: Rows, approximate: str = "none") -> Rows:
    half = x * 0.5
    if approximate == "tanh":
        return half * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0)
    return half * (erf(x * math.sqrt(0.5)) + 1.0)


def glu(x: Rows, dim: int = -1) -> Rows:
    (dim,) = x.dims(dim)
    x, size, _ = x.with_one_factor(dim)
    half = size // 2
    return x.part(dim, 0, half) * sigmoid(x.part(dim, half, half))


def elu(x: Rows, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Rows:
    # The negative side is computed from min(x, 0): beyond, exp would overflow and spoil gradients.
    is_positive = x > 0.0
    below = expm1(where(is_positive, 0.0, x) * input_scale)
    return where(is_positive, x * scale, below * (alpha * scale))


def celu(x: Rows, alpha: float = 1.0) -> Rows:
    return elu(x, alpha, 1.0, 1.0 / alpha)


def softplus(x: Rows, beta: float = 1.0, threshold: float = 20.0) -> Rows:
    scaled = x * beta
    is_linear = scaled > threshold
    # As with elu: keep exp from overflowing where its result is not used.
    curved = log1p(exp(where(is_linear, 0.0, scaled)))
    return where(is_linear, x, curved / beta)


def log_sigmoid(x: Rows) -> Rows:
    return minimum(x, 0.0) - log1p(exp(-abs(x)))


def leaky_relu(x: Rows, slope: Operand = 0.01) -> Rows:
    return where(x > 0.0, x, x * slope)


def threshold(x: Rows, threshold: float, value: float) -> Rows:
    return where(x <= threshold, value, x)


def hardtanh(x: Rows, low: float = -1.0, high: float = 1.0) -> Rows:
    return bounded(x, low, high)


def hardsigmoid(x: Rows) -> Rows:
    # Bounded last, so that what the gradient reads is the result, which has to be kept anyway. A sixth
    # is rounded up: with one rounded down, 3 times it would not quite reach the bounds.
    return bounded(x * math.nextafter(1 / 6, 1) + 0.5, 0.0, 1.0)


def hardswish(x: Rows) -> Rows:
    return x * hardsigmoid(x)


def hardshrink(x: Rows, bound: float = 0.5) -> Rows:
    return where(abs(x) <= bound, 0.0, x)


def softshrink(x: Rows, bound: float = 0.5) -> Rows:
    return where(abs(x) <= bound, 0.0, where(x > 0.0, x - bound, x + bound))


ACTIVATIONS: dict[str, Callable[..., Rows]] = {
    "silu": silu,
    "mish": mish,
    "gelu": gelu,
    "glu": glu,
    "elu": elu,
    "celu": celu,
    "softplus": softplus,
    "log_sigmoid_forward": log_sigmoid,
    "leaky_relu": leaky_relu,
    "_prelu_kernel": leaky_relu,
    "threshold": threshold,
    "hardtanh": hardtanh,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
}
