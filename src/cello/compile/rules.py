"""The derivatives of the pointwise instructions.

Those at kinks and ties are those of torch. What is made of several instructions (`lower/pointwise.py`)
needs no rule: its derivative follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cello.compile.arithmetic import (
    cos,
    eq,
    exp,
    floor_divide,
    log,
    rsqrt,
    sigmoid_gradient,
    sign,
    sin,
    tanh_gradient,
    trunc,
    where,
    where_inside,
    where_within,
)

Rule = Callable[..., Any]


def _over_square(g: Any, a: Any, b: Any) -> Any:
    """A gradient over the square of a distance, and zero where there is no distance."""
    square = a * a + b * b
    return where(eq(square, 0.0), 0.0, g / square)


def _if_larger(g: Any, a: Any, b: Any) -> Any:
    """The gradient of the larger of two; at a tie each gets one half.

    The smaller one gets zero, also of an infinite gradient.
    """
    return where(a < b, 0.0, where(eq(a, b), g * 0.5, g))


def _if_smaller(g: Any, a: Any, b: Any) -> Any:
    return where(a > b, 0.0, where(eq(a, b), g * 0.5, g))


RULES: dict[str, tuple[Rule | None, ...]] = {
    # One operand: from the gradient g of the result y.
    "copy": (lambda g, y, a: g,),
    "neg": (lambda g, y, a: -g,),
    "abs": (lambda g, y, a: g * sign(a),),
    "sqrt": (lambda g, y, a: g * 0.5 / y,),
    "rsqrt": (lambda g, y, a: g * -0.5 * (y * (y * y)),),
    "reciprocal": (lambda g, y, a: -(g * (y * y)),),
    "exp": (lambda g, y, a: g * y,),
    "expm1": (lambda g, y, a: g * (y + 1.0),),
    "log": (lambda g, y, a: g / a,),
    "log1p": (lambda g, y, a: g / (a + 1.0),),
    "tanh": (lambda g, y, a: tanh_gradient(g, y),),
    "sigmoid": (lambda g, y, a: sigmoid_gradient(g, y),),
    "erf": (lambda g, y, a: g * (2 / math.sqrt(math.pi)) * exp(-(a * a)),),
    "erfc": (lambda g, y, a: g * (-2 / math.sqrt(math.pi)) * exp(-(a * a)),),
    "sin": (lambda g, y, a: g * cos(a),),
    "cos": (lambda g, y, a: -(g * sin(a)),),
    "atan": (lambda g, y, a: g / (a * a + 1.0),),
    "asinh": (lambda g, y, a: g * rsqrt(a * a + 1.0),),
    "acosh": (lambda g, y, a: g * rsqrt(a * a - 1.0),),
    "relu": (lambda g, y, a: where(y <= 0.0, 0.0, g),),
    # Two operands.
    "add": (lambda g, y, a, b: g, lambda g, y, a, b: g),
    "sub": (lambda g, y, a, b: g, lambda g, y, a, b: -g),
    "mul": (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
    "div": (lambda g, y, a, b: g / b, lambda g, y, a, b: -(g * y / b)),
    "pow": (
        lambda g, y, a, b: where(eq(b, 0.0), 0.0, g * (b * a ** (b - 1.0))),
        lambda g, y, a, b: g * where(eq(a, 0.0) * (b >= 0.0), 0.0, y * log(a)),
    ),
    "hypot": (lambda g, y, a, b: g * (a / y), lambda g, y, a, b: g * (b / y)),
    "atan2": (
        lambda g, y, a, b: _over_square(g * b, a, b),
        lambda g, y, a, b: -_over_square(g * a, a, b),
    ),
    "fmod": (lambda g, y, a, b: g, lambda g, y, a, b: -(g * trunc(a / b))),
    "remainder": (lambda g, y, a, b: g, lambda g, y, a, b: -(g * floor_divide(a, b))),
    "maximum": (
        lambda g, y, a, b: _if_larger(g, a, b),
        lambda g, y, a, b: _if_smaller(g, a, b),
    ),
    "minimum": (
        lambda g, y, a, b: _if_smaller(g, a, b),
        lambda g, y, a, b: _if_larger(g, a, b),
    ),
    # b was written over a, unseen by autograd.
    "replace": (lambda g, y, a, b: g, None),
    # Three operands.
    "where": (
        None,
        lambda g, y, c, a, b: where(c, g, 0.0),
        lambda g, y, c, a, b: where(c, 0.0, g),
    ),
    # torch lets a gradient through at the bounds of clamp, and not at those of hardtanh, where the
    # result tells as much as the operand.
    "clamp": (lambda g, y, a, low, high: where_within(g, a, low, high), None, None),
    "hardtanh": (lambda g, y, a, low, high: where_inside(g, y, low, high), None, None),
}
"""For each instruction, and each of its operands, the gradient of that operand.

It is made from the gradient g of the result, the result y and the operands. Without a rule it is zero.
"""
