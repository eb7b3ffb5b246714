"""Functions of complex numbers, written with their real and imaginary parts.

The derivative of a real number by a complex one is, for torch, that by its real part plus i times that by
its imaginary part. So the derivatives of these formulas are torch's, and need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cello.compile.arithmetic import (
    Numbers,
    cos,
    eq,
    exp,
    log,
    maximum,
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
    return Complex(
        _minus(_times(a.re, b.re), _times(a.im, b.im)),
        plus(_times(a.re, b.im), _times(a.im, b.re)),
    )


def div(a: Complex, b: Complex) -> Complex:
    if isinstance(b.re, float) and isinstance(b.im, float):
        inverse = 1 / complex(b.re, b.im)
        return mul(a, Complex(inverse.real, inverse.imag))
    if isinstance(b.im, float) and b.im == 0:
        return Complex(_over(a.re, b.re), _over(a.im, b.re))
    # Divided by the larger part first, so that no square overflows; what it is does not matter.
    larger: Numbers = stop(maximum(b.re.__abs__(), b.im.__abs__()))
    c, d = b.re / larger, b.im / larger
    size = c * c + d * d
    re, im = mul(a, Complex(c, -d))
    return Complex(re / size / larger, im / size / larger)


def power(z: Complex, exponent: Complex) -> Complex | None:
    """A power of which the exponent is a small whole number or a half, else ``None``."""
    n = exponent.re
    if not isinstance(n, float) or exponent.im != 0:
        return None
    if n in (0.5, -0.5) and isinstance(z.re, Numbers) and isinstance(z.im, Numbers):
        root = sqrt_(z.re, z.im)
        return root if n > 0 else div(Complex(1.0, 0.0), root)
    if n != int(n) or not 1 <= abs(n) <= _MOST_FACTORS:
        return None
    out = z
    for _ in range(int(abs(n)) - 1):
        out = mul(out, z)
    return out if n > 0 else div(Complex(1.0, 0.0), out)


_MOST_FACTORS = 8

ARITHMETIC: dict[str, Callable[..., Complex]] = {
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


def size_of(re: Numbers, im: Numbers) -> Numbers:
    """The absolute value, whose gradient is zero at zero."""
    is_zero = _is_zero(re, im)
    return where(is_zero, 0.0, hypot(where(is_zero, 1.0, re), im))


def angle_of(re: Numbers, im: Numbers) -> Numbers:
    """The angle, whose gradient is zero at zero."""
    is_zero = _is_zero(re, im)
    # The zeros keep their signs, which tell pi from -pi.
    return where(is_zero, atan2(stop(im), stop(re)), atan2(im, where(is_zero, 1.0, re)))


def polar(size: Numbers, turn: Numbers) -> Complex:
    return Complex(size * cos(turn), size * sin(turn))


def square(re: Numbers, im: Numbers) -> Complex:
    return Complex(re * re - im * im, re * im * 2.0)


def reciprocal(re: Numbers, im: Numbers) -> Complex:
    return div(Complex(1.0, 0.0), Complex(re, im))


def sgn(re: Numbers, im: Numbers) -> Complex:
    """What has the same angle and the size 1; zero, and with zero as its gradient, at zero."""
    is_zero, size = _is_zero(re, im), size_of(re, im)
    size = where(is_zero, 1.0, size)
    return Complex(where(is_zero, 0.0, re / size), where(is_zero, 0.0, im / size))


def exp_(re: Numbers, im: Numbers) -> Complex:
    return polar(exp(re), im)


def log_(re: Numbers, im: Numbers) -> Complex:
    return Complex(log(size_of(re, im)), angle_of(re, im))


def sqrt_(re: Numbers, im: Numbers) -> Complex:
    """The root with a real part that is not negative."""
    is_zero = _is_zero(re, im)
    a = where(is_zero, 1.0, re)
    larger = sqrt((hypot(a, im) + abs(a)) * 0.5)
    smaller = abs(im) / (larger * 2.0)
    is_right = a >= 0.0
    up = where(is_right, smaller, larger)
    root = Complex(where(is_right, larger, smaller), where(im < 0.0, -up, up))
    return Complex(where(is_zero, 0.0, root.re), where(is_zero, im, root.im))


def tanh_(re: Numbers, im: Numbers) -> Complex:
    # tanh a and its derivative stay finite where the exponentials of a do not.
    t, s, c = tanh(re), sin(im), cos(im)
    size = c * c + (t * s) * (t * s)
    return Complex(t / size, s * c * (1.0 - t * t) / size)


def sigmoid_(re: Numbers, im: Numbers) -> Complex:
    half = tanh_(re * 0.5, im * 0.5)
    return Complex(half.re * 0.5 + 0.5, half.im * 0.5)


def sinh(re: Numbers, im: Numbers) -> Complex:
    up, down = exp(re) * 0.5, exp(-re) * 0.5
    return Complex((up - down) * cos(im), (up + down) * sin(im))


def cosh(re: Numbers, im: Numbers) -> Complex:
    up, down = exp(re) * 0.5, exp(-re) * 0.5
    return Complex((up + down) * cos(im), (up - down) * sin(im))


def sin_(re: Numbers, im: Numbers) -> Complex:
    """``-i sinh(iz)``."""
    turned = sinh(-im, re)
    return Complex(turned.im, -turned.re)


def cos_(re: Numbers, im: Numbers) -> Complex:
    return cosh(-im, re)


FUNCTIONS: dict[str, Callable[[Numbers, Numbers], Complex]] = {
    "square": square,
    "reciprocal": reciprocal,
    "sgn": sgn,
    "exp": exp_,
    "log": log_,
    "sqrt": sqrt_,
    "tanh": tanh_,
    "sigmoid": sigmoid_,
    "sinh": sinh,
    "cosh": cosh,
    "sin": sin_,
    "cos": cos_,
}
"""Functions of a complex tensor by torch's names."""


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
