"""The operations of the instruction set, in NumPy. Reductions are those of the last axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

SAME = "abs sqrt exp expm1 log log1p tanh sin cos floor ceil trunc reciprocal maximum minimum"
SAME += " hypot fmod remainder floor_divide add"
OPERATIONS: dict[str, Callable[..., Any]] = {name: getattr(np, name) for name in SAME.split()} | {
    "copy": lambda a: a,
    "stop": lambda a: a,
    "neg": np.negative,
    "round": np.rint,
    "sigmoid": lambda a: 0.5 * (1 + np.tanh(0.5 * a)),
    "relu": lambda a: np.where(a <= 0, 0, a),
    "erf": np.vectorize(math.erf, [float]),
    "erfc": np.vectorize(math.erfc, [float]),
    "sign": lambda a: (a > 0) * 1.0 - (a < 0),
    "not": lambda a: a == 0,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atan2": np.arctan2,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "replace": lambda a, b: b,
    "muladd": lambda a, b, c: a * b + c,
    "where": lambda c, a, b: np.where(c != 0, a, b),
    "tanh_gradient": lambda g, y: g * (1 - y * y),
    "sigmoid_gradient": lambda g, y: g * (1 - y) * y,
    "clamp": np.clip,
    "hardtanh": np.clip,
    "inside": lambda a, x, low, high: np.where((x > low) & (x < high), a, 0),
    "within": lambda a, x, low, high: np.where((x >= low) & (x <= high), a, 0),
    "sum": lambda a: a.sum(-1),
    "amax": lambda a: a.max(-1),
    "amin": lambda a: a.min(-1),
    "dot": lambda a, b: (a * b).sum(-1),
    "rank": lambda a, b, i, j: (
        (b < a) | ((b == a) & (j < i)) | (np.isnan(a) & (~np.isnan(b) | (j < i)))
    ).sum(-1),
    "select": lambda a, b, c: np.where(a == b, c, 0).sum(-1),
}
