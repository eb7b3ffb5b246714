"""Functions of complex numbers, written with their real and imaginary parts.

The derivative of a real number by a complex one is, for torch, that by its real part plus i times that by
its imaginary part. So the derivatives of these formulas are torch's, and need no rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from cello.compile.arithmetic import (
    Numbers,
    cos,
    eq,
    exp,
    expm1,
    log,
    log1p,
    maximum,
    of_one,
    of_two,
    sin,
    sqrt,
    stop,
    tanh,
    where,
)

Part = Numbers | float
"""A real or an imaginary part: a tensor, or a number of Python, such as the 0 of what is real."""

atan2, hypot = of_two("atan2"), of_two("hypot")
sinh, cosh = of_one("sinh"), of_one("cosh")


class Complex(NamedTuple):
    """A complex number, or a tensor of such."""

    re: Part
    im: Part


# Arithmetic


def add(a: Complex, b: Complex) -> Complex:
    return Complex(plus(a.re, b.re), plus(a.im, b.im))


def sub(a: Complex, b: Complex) -> Complex:
    return Complex(_minus(a.re, b.re), _minus(a.im, b.im))


def rsub(a: Complex, b: Complex) -> Complex:
    return sub(b, a)


def neg(z: Complex) -> Complex:
    return Complex(-z.re, -z.im)


def conj(z: Complex) -> Complex:
    return Complex(z.re, -z.im)


def mul(a: Complex, b: Complex) -> Complex:
    for one, other in ((a, b), (b, a)):
        if isinstance(other.im, float) and other.im == 0:  # it is real
            return Complex(one.re * other.re, one.im * other.re)
    return Complex(
        _minus(_times(a.re, b.re), _times(a.im, b.im)),
        plus(_times(a.re, b.im), _times(a.im, b.re)),
    )


def div(a: Complex, b: Complex) -> Complex | None:
    """A quotient; ``None`` for one by the number zero, for which torch has infinities of its own."""
    if isinstance(b.re, float) and isinstance(b.im, float):
        if b.re == b.im == 0:
            return None
        inverse = 1 / complex(b.re, b.im)
        return mul(a, Complex(inverse.real, inverse.imag))
    if isinstance(b.im, float) and b.im == 0:
        return Complex(_over(a.re, b.re), _over(a.im, b.re))
    return _quotient(a, b)


def _quotient(a: Complex, b: Complex) -> Complex:
    # Divided by the larger part first, so that no square overflows; what it is does not matter.
    larger: Numbers = stop(maximum(b.re.__abs__(), b.im.__abs__()))
    c, d = b.re / larger, b.im / larger
    squared = c * c + d * d
    re, im = mul(a, Complex(c, -d))
    return Complex(re / squared / larger, im / squared / larger)


def power(z: Complex, exponent: Complex) -> Complex | None:
    """A power of which the exponent is a small whole number or a half, else ``None``."""
    n = exponent.re
    if not isinstance(n, float) or exponent.im != 0 or not math.isfinite(n):
        return None
    if n in (0.5, -0.5) and isinstance(z.re, Numbers) and isinstance(z.im, Numbers):
        root = sqrt_(z.re, z.im)
        return root if n > 0 else _quotient(_ONE, root)
    if n != int(n) or not 1 <= abs(n) <= _MOST_FACTORS:
        return None
    out = z
    for _ in range(int(abs(n)) - 1):
        out = mul(out, z)
    return out if n > 0 else _quotient(_ONE, out)


_MOST_FACTORS = 8
_ONE = Complex(1.0, 0.0)

ARITHMETIC: dict[str, Callable[..., Complex | None]] = {
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "neg": neg,
    "_conj": conj,
    "_conj_physical": conj,
    "conj_physical": conj,
    "mul": mul,
    "div": div,
}
"""Functions of one or two complex tensors, or numbers, by torch's names."""


# Functions of a tensor, of which both parts are there


def absolute(re: Numbers, im: Numbers) -> Numbers:
    """The absolute value, whose gradient is zero at zero."""
    is_zero = _is_zero(re, im)
    return where(is_zero, 0.0, hypot(where(is_zero, 1.0, re), im))


def angle(re: Numbers, im: Numbers) -> Numbers:
    """The angle, whose gradient is zero at zero."""
    is_zero = _is_zero(re, im)
    # The zeros keep their signs, which tell pi from -pi.
    return where(is_zero, atan2(stop(im), stop(re)), atan2(im, where(is_zero, 1.0, re)))


def polar(absolute: Numbers, angle: Numbers) -> Complex:
    return Complex(absolute * cos(angle), absolute * sin(angle))


def square(re: Numbers, im: Numbers) -> Complex:
    return Complex(re * re - im * im, re * im * 2.0)


def reciprocal(re: Numbers, im: Numbers) -> Complex:
    return _quotient(_ONE, Complex(re, im))


def sgn(re: Numbers, im: Numbers) -> Complex:
    """What has the same angle and is 1 away from zero; at zero, zero with zero as its gradient."""
    is_zero = _is_zero(re, im)
    size = where(is_zero, 1.0, absolute(re, im))
    return Complex(where(is_zero, 0.0, re / size), where(is_zero, 0.0, im / size))


def exp_(re: Numbers, im: Numbers) -> Complex:
    return polar(exp(re), im)


def log_(re: Numbers, im: Numbers) -> Complex:
    return Complex(log(hypot(re, im)), angle(re, im))


def sqrt_(re: Numbers, im: Numbers) -> Complex:
    """The root with a real part that is not negative."""
    is_right, is_below = re >= 0.0, _is_negative(im)
    # Without the function abs, whose derivative at zero is zero.
    width, height = where(is_right, re, -re), where(is_below, -im, im)
    larger = sqrt(hypot(re, im) * 0.5 + width * 0.5)
    smaller = where(_is_zero(re, im), height, height / (larger * 2.0))
    up = where(is_right, smaller, larger)
    return Complex(where(is_right, larger, smaller), where(is_below, -up, up))


def tanh_(re: Numbers, im: Numbers) -> Complex:
    # tanh a stays finite where the exponentials of a do not; its derivative is 4 u / (1 + u)^2.
    t, s, c = tanh(re), sin(im), cos(im)
    u = exp(where(re >= 0.0, -re, re) * 2.0)
    denominator = c * c + (t * s) * (t * s)
    slope = 4.0 * u / ((1.0 + u) * (1.0 + u))
    return Complex(t / denominator, s * c * slope / denominator)


def sigmoid_(re: Numbers, im: Numbers) -> Complex:
    is_right = re >= 0.0
    e = exp(where(is_right, -re, re))  # which does not overflow
    c, s = e * cos(im), e * sin(im)
    denominator = 1.0 + 2.0 * c + e * e
    return Complex(where(is_right, 1.0 + c, c + e * e) / denominator, s / denominator)


def expm1_(re: Numbers, im: Numbers) -> Complex:
    half = sin(im * 0.5)
    return Complex(expm1(re) * cos(im) - 2.0 * half * half, exp(re) * sin(im))


def exp2(re: Numbers, im: Numbers) -> Complex:
    return exp_(re * math.log(2), im * math.log(2))


def log1p_(re: Numbers, im: Numbers) -> Complex:
    # Near 0 the logarithm of the distance from -1 loses digits; elsewhere the square does, or overflows.
    is_far = maximum(abs(re), abs(im)) > 0.5
    small, flat = where(is_far, 0.0, re), where(is_far, 0.0, im)
    near = log1p(small * (small + 2.0) + flat * flat) * 0.5
    return Complex(where(is_far, log(hypot(re + 1.0, im)), near), atan2(im, re + 1.0))


def log2(re: Numbers, im: Numbers) -> Complex:
    return mul(log_(re, im), Complex(1 / math.log(2), 0.0))


def log10(re: Numbers, im: Numbers) -> Complex:
    return mul(log_(re, im), Complex(1 / math.log(10), 0.0))


def rsqrt(re: Numbers, im: Numbers) -> Complex:
    return _quotient(_ONE, sqrt_(re, im))


def sinh_(re: Numbers, im: Numbers) -> Complex:
    return Complex(sinh(re) * cos(im), cosh(re) * sin(im))


def cosh_(re: Numbers, im: Numbers) -> Complex:
    return Complex(cosh(re) * cos(im), sinh(re) * sin(im))


def sin_(re: Numbers, im: Numbers) -> Complex:
    return Complex(sin(re) * cosh(im), cos(re) * sinh(im))


def cos_(re: Numbers, im: Numbers) -> Complex:
    return Complex(cos(re) * cosh(im), -(sin(re) * sinh(im)))


def tan(re: Numbers, im: Numbers) -> Complex:
    """``-i tanh(iz)``."""
    turned = tanh_(-im, re)
    return Complex(turned.im, -turned.re)


FUNCTIONS: dict[str, Callable[[Numbers, Numbers], Complex]] = {
    "square": square,
    "reciprocal": reciprocal,
    "sgn": sgn,
    "exp": exp_,
    "log": log_,
    "sqrt": sqrt_,
    "tanh": tanh_,
    "sigmoid": sigmoid_,
    "expm1": expm1_,
    "exp2": exp2,
    "log1p": log1p_,
    "log2": log2,
    "log10": log10,
    "rsqrt": rsqrt,
    "sinh": sinh_,
    "cosh": cosh_,
    "sin": sin_,
    "cos": cos_,
    "tan": tan,
}
"""Functions of a complex tensor by torch's names."""


def _is_negative(x: Numbers) -> Numbers:
    """Whether x is less than zero, or the zero that is less than none."""
    return maximum(x < 0.0, 1.0 / stop(x) < 0.0)


def _is_zero(re: Numbers, im: Numbers) -> Numbers:
    return eq(re, 0.0) * eq(im, 0.0)


# Parts of which some are numbers: what is 0 or 1 is not computed with


def plus(a: Part, b: Part) -> Part:
    if isinstance(a, float) and a == 0:
        return b
    return a if isinstance(b, float) and b == 0 else a + b


def _minus(a: Part, b: Part) -> Part:
    if isinstance(a, float) and a == 0:
        return -b
    return a if isinstance(b, float) and b == 0 else a - b


def _times(a: Part, b: Part) -> Part:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float) and one in (0, 1, -1):
            return 0.0 if one == 0 else other if one == 1 else -other
    return a * b


def _over(a: Part, b: Part) -> Part:
    return 0.0 if isinstance(a, float) and a == 0 else a / b
