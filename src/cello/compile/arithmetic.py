"""Arithmetic that writes instructions: ``x * sigmoid(x)`` in the place of two calls of a builder.

Lowering computes with the tensors of a traced step, and the rules of differentiation with gradients. Both
are :class:`Numbers`, so that what a function computes (`lower/pointwise.py`) and what its derivative is
(`rules.py`) are written in the same words: operators, and the names of the instruction set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", bound="Numbers")


class Numbers(ABC):
    """Something that instructions compute with; numbers of Python may stand beside it.

    Each operator is the instruction of its name. There is no ``==``, which Python needs for itself: see
    :data:`eq` and :data:`ne`.
    """

    @abstractmethod
    def apply(self: N, op: str, *operands: N | float) -> N:
        """Write an instruction and return its result.

        Args:
            op: its name.
            operands: in its order; `self` only lends its kind.
        """

    def __add__(self: N, other: N | float) -> N:
        return self.apply("add", self, other)

    def __radd__(self: N, other: float) -> N:
        return self.apply("add", other, self)

    def __sub__(self: N, other: N | float) -> N:
        return self.apply("sub", self, other)

    def __rsub__(self: N, other: float) -> N:
        return self.apply("sub", other, self)

    def __mul__(self: N, other: N | float) -> N:
        return self.apply("mul", self, other)

    def __rmul__(self: N, other: float) -> N:
        return self.apply("mul", other, self)

    def __truediv__(self: N, other: N | float) -> N:
        return self.apply("div", self, other)

    def __rtruediv__(self: N, other: float) -> N:
        return self.apply("div", other, self)

    def __pow__(self: N, other: N | float) -> N:
        return self.apply("pow", self, other)

    def __rpow__(self: N, other: float) -> N:
        return self.apply("pow", other, self)

    def __lt__(self: N, other: N | float) -> N:
        return self.apply("lt", self, other)

    def __le__(self: N, other: N | float) -> N:
        return self.apply("le", self, other)

    def __gt__(self: N, other: N | float) -> N:
        return self.apply("gt", self, other)

    def __ge__(self: N, other: N | float) -> N:
        return self.apply("ge", self, other)

    def __neg__(self: N) -> N:
        return self.apply("neg", self)

    def __abs__(self: N) -> N:
        return self.apply("abs", self)

    def __invert__(self: N) -> N:
        return self.apply("not", self)


def of_one(op: str) -> Callable[[N], N]:
    """An instruction with one operand as a function."""

    def function(x: N) -> N:
        return x.apply(op, x)

    return function


def of_two(op: str) -> Callable[[N | float, N | float], N]:
    """An instruction with two operands as a function; one of them may be a number of Python."""

    def function(a: N | float, b: N | float) -> N:
        return _written(op, a, b)

    return function


def _written(op: str, *operands: N | float) -> N:
    writer: N = next(o for o in operands if isinstance(o, Numbers))
    return writer.apply(op, *operands)


sqrt, rsqrt, reciprocal = of_one("sqrt"), of_one("rsqrt"), of_one("reciprocal")
exp, expm1, log, log1p = of_one("exp"), of_one("expm1"), of_one("log"), of_one("log1p")
sin, cos, atan = of_one("sin"), of_one("cos"), of_one("atan")
tanh, sigmoid, erf = of_one("tanh"), of_one("sigmoid"), of_one("erf")
sign, trunc, nearest = of_one("sign"), of_one("trunc"), of_one("round")
copy = of_one("copy")
stop = of_one("stop")
"""A copy through which no gradient flows."""

eq, ne, times = of_two("eq"), of_two("ne"), of_two("mul")
maximum, minimum = of_two("maximum"), of_two("minimum")
floor_divide = of_two("floor_divide")
replace = of_two("replace")
"""The second operand, with the gradient of the first."""
tanh_gradient, sigmoid_gradient = of_two("tanh_gradient"), of_two("sigmoid_gradient")


def is_nan(x: N) -> N:
    """1 where x is NaN."""
    return ne(x, x)


def where(condition: N, a: N | float, b: N | float) -> N:
    """`a` where the condition is not zero, and `b` elsewhere."""
    return condition.apply("where", condition, a, b)


def clamped(x: N, low: N | float, high: N | float) -> N:
    """Keep x within bounds; the gradient passes at the bounds themselves."""
    return x.apply("clamp", x, low, high)


def bounded(x: N, low: float, high: float) -> N:
    """Keep x within bounds; the gradient does not pass at the bounds themselves."""
    return x.apply("hardtanh", x, low, high)


def where_inside(g: N, x: N, low: N | float, high: N | float) -> N:
    """Return g where low < x < high, and zero elsewhere."""
    return g.apply("inside", g, x, low, high)


def where_within(g: N, x: N, low: N | float, high: N | float) -> N:
    """Return g where low <= x <= high, and zero elsewhere."""
    return g.apply("within", g, x, low, high)
