"""Functions of single numbers, made of the instructions there are.

Each is written so that its derivative, which follows from those of its instructions (`compile/rules.py`),
is torch's at kinks and infinities too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from cello.compile.arithmetic import (
    atan,
    clamped,
    cos,
    eq,
    exp,
    expm1,
    floor_divide,
    is_nan,
    log,
    log1p,
    maximum,
    ne,
    nearest,
    of_one,
    of_two,
    reciprocal,
    replace,
    rsqrt,
    sin,
    sqrt,
    stop,
    times,
    trunc,
    where,
)
from cello.compile.integers import kept_by
from cello.compile.lower.arguments import Result
from cello.compile.lower.rows import Operand, Refused, Rows
from cello.foreign.scope import words

# Arithmetic


def add(a: Rows, b: Operand, alpha: float = 1, *, result: Result) -> Rows:
    if result.dtype == torch.bool:
        return logical_or(a, b)
    return a + _times(b, alpha)


def sub(a: Rows, b: Operand, alpha: float = 1) -> Rows:
    return a - _times(b, alpha)


def rsub(a: Rows, b: Operand, alpha: float = 1) -> Rows:
    return b - (a if alpha == 1 else a * alpha)


def _times(x: Operand, factor: float) -> Operand:
    return x if factor == 1 else x * factor


def mul(a: Rows, b: Operand) -> Rows:
    return a * b


def div(a: Rows, b: Operand, rounding_mode: str | None = None) -> Rows:
    if rounding_mode == "floor":
        return floor_divide(a, b)
    return trunc(a / b) if rounding_mode == "trunc" else a / b


def addcmul(a: Rows, b: Rows, c: Rows, value: float = 1) -> Rows:
    return a + b * c * value


def addcdiv(a: Rows, b: Rows, c: Rows, value: float = 1) -> Rows:
    return a + b / c * value


def lerp(a: Rows, b: Rows, weight: Operand) -> Rows:
    # torch begins at the nearer end, for tensors too: all of this differs by rounding alone, and a choice
    # for each number would take as long again.
    if isinstance(weight, Rows) or abs(weight) < 0.5:
        return a + weight * (b - a)
    return b - (1 - weight) * (b - a)


# Powers, exponentials and logarithms


def pow_(a: Operand, b: Operand) -> Rows:
    if isinstance(a, Rows) and not isinstance(b, Rows):
        if b in (1, 2, 3, 4):
            out = a
            for _ in range(int(b) - 1):
                out = out * a
            return out
        simple = {0.5: sqrt, -0.5: rsqrt, -1: reciprocal}
        if b in simple:
            return simple[b](a)
    return a**b


def ldexp(a: Operand, b: Rows) -> Rows:
    return a * 2.0**b


def exp2(x: Rows) -> Rows:
    return 2.0**x


def log2(x: Rows) -> Rows:
    return _log_to(2.0, x)


def log10(x: Rows) -> Rows:
    return _log_to(10.0, x)


def _log_to(base: float, x: Rows) -> Rows:
    """A logarithm that is exact for the whole powers of its base, as those of torch are."""
    y = log(x) * (1 / math.log(base))
    whole = nearest(y)
    return replace(y, where(eq(base**whole, x), whole, y))


def logaddexp(a: Rows, b: Rows) -> Rows:
    more = log1p(exp(-abs(b - a)))
    out = maximum(a, b) + more
    # Two equal infinities are one; their difference, and with it the gradient, is NaN.
    is_same = eq(abs(a), math.inf) * eq(a, b)
    return where(is_same, replace(out, stop(a)), out)


def logaddexp2(a: Rows, b: Rows) -> Rows:
    return logaddexp(a * math.log(2), b * math.log(2)) * (1 / math.log(2))


def logit(x: Rows, eps: float | None = None) -> Rows:
    x = x if eps is None else clamped(x, eps, 1 - eps)
    return log(x) - log1p(-x)  # whose gradient is infinite at 0 and 1, as torch's


# Losses, of which those over a batch mix its rows


def mse_loss(a: Rows, b: Rows, reduction: int = 1) -> Rows:
    _hold_apart(reduction)
    return (a - b) * (a - b)


def smooth_l1_loss(a: Rows, b: Rows, reduction: int = 1, beta: float = 1.0) -> Rows:
    return huber_loss(a, b, reduction, beta) * (1 / beta)


def huber_loss(a: Rows, b: Rows, reduction: int = 1, delta: float = 1.0) -> Rows:
    _hold_apart(reduction)
    size = abs(a - b)
    is_small = size < delta
    small = where(is_small, size, 0.0)  # whose square is finite, and so its gradient
    return where(is_small, small * small * 0.5, (size - 0.5 * delta) * delta)


def _hold_apart(reduction: int) -> None:
    if reduction:
        raise Refused("mixes the rows of a batch in {op}{line}")


def xlogy(a: Operand, b: Operand) -> Rows:
    return _times_log(log, a, b, end=0.0, root=1.0)


def xlog1py(a: Operand, b: Operand) -> Rows:
    return _times_log(log1p, a, b, end=-1.0, root=0.0)


def _times_log(
    logarithm: Callable[[Rows], Rows], a: Operand, b: Operand, end: float, root: float
) -> Rows:
    """A product with a logarithm, whose domain ends at `end` and which is zero at `root`.

    No times anything but NaN is nothing, but not in the gradient of `b`, as torch computes it.
    """
    is_zero = _equals(a, 0.0)
    of_a = logarithm(where(times(is_zero, b <= end), root, b))
    value = where(times(is_zero, _equals(b, math.inf)), 0.0, a * of_a)
    slopes = [a * stop(of_a)] if isinstance(a, Rows) else []
    if isinstance(b, Rows):
        slopes.append((stop(a) if isinstance(a, Rows) else a) * logarithm(b))
    return replace(sum(slopes[1:], slopes[0]), value)


def _equals(x: Operand, number: float) -> Operand:
    return eq(x, number) if isinstance(x, Rows) else float(x == number)


# Trigonometry


def tan(x: Rows) -> Rows:
    return sin(x) / cos(x)


def asin(x: Rows) -> Rows:
    # Half the angle: at the ends the gradient is then infinite, and not NaN.
    return atan(x / (sqrt(1.0 - x * x) + 1.0)) * 2.0


def acos(x: Rows) -> Rows:
    # Near 1 the difference of two angles has few digits.
    return replace(math.pi / 2 - asin(x), _angle(sqrt((1.0 - x) * (1.0 + x)), x))


_angle = of_two("atan2")


def sinh(x: Rows) -> Rows:
    return (expm1(x) - expm1(-x)) * 0.5


def cosh(x: Rows) -> Rows:
    return (exp(x) + exp(-x)) * 0.5


def atanh(x: Rows) -> Rows:
    return (log1p(x) - log1p(-x)) * 0.5


def sinc(x: Rows) -> Rows:
    is_zero = eq(x, 0.0)
    turned = where(is_zero, 1.0, x) * math.pi
    return where(is_zero, 1.0, sin(turned) / turned)


def angle(x: Rows) -> Rows:
    return where(is_nan(x), stop(x), where(x < 0.0, math.pi, 0.0))


def deg2rad(x: Rows) -> Rows:
    return x * (math.pi / 180)


def rad2deg(x: Rows) -> Rows:
    return x * (180 / math.pi)


# Rounding


def round_(x: Rows, *, decimals: int = 0) -> Rows:
    if decimals == 0:
        return nearest(x)
    power = 10.0 ** abs(decimals)
    return nearest(x * power) / power if decimals > 0 else nearest(x / power) * power


def frac(x: Rows) -> Rows:
    return x - trunc(x)


# Choices


def masked_fill(x: Rows, mask: Rows, value: Operand) -> Rows:
    return where(mask, value, x)


def clamp(x: Rows, min: Operand | None = None, max: Operand | None = None) -> Rows:
    low = -math.inf if min is None else min
    high = math.inf if max is None else max
    out = clamped(x, low, high)
    if not isinstance(min, Rows) and not isinstance(max, Rows):
        return out
    # The operand that has the gradient, which is not always the one that the result is: NaN has none.
    chosen = where((x >= low) * (x <= high), x, stop(x))
    if isinstance(min, Rows):
        is_below = x < min
        if max is not None:
            is_below = is_below * (min < max)
        chosen = where(is_below, min, chosen)
    if isinstance(max, Rows):
        is_above = x > max
        if min is not None:
            is_above = maximum(is_above, max < min)
        chosen = where(is_above, max, chosen)
    return replace(chosen, out)


def clamp_min(x: Rows, min: Operand) -> Rows:
    return clamp(x, min=min)


def clamp_max(x: Rows, max: Operand) -> Rows:
    return clamp(x, max=max)


def fmax(a: Rows, b: Rows) -> Rows:
    """NaN where both are; at a tie the first one has the gradient."""
    return where(maximum(a >= b, is_nan(b)), a, b)


def fmin(a: Rows, b: Rows) -> Rows:
    """NaN where both are; at a tie the first one has the gradient."""
    return where(maximum(a <= b, is_nan(b)), a, b)


def nan_to_num(
    x: Rows,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
    *,
    result: Result,
) -> Rows:
    if not result.dtype.is_floating_point:
        return x
    ends = torch.finfo(result.dtype)
    out = where(is_nan(x), nan or 0.0, x)
    out = where(eq(x, math.inf), ends.max if posinf is None else posinf, out)
    return where(eq(x, -math.inf), ends.min if neginf is None else neginf, out)


# Truth values


def truth(x: Rows) -> Rows:
    """1 where x is not zero."""
    return ne(x, 0.0)


def _truth(x: Operand) -> Operand:
    return truth(x) if isinstance(x, Rows) else float(bool(x))


def logical_and(a: Operand, b: Operand) -> Rows:
    return times(_truth(a), _truth(b))


def logical_or(a: Operand, b: Operand) -> Rows:
    return maximum(_truth(a), _truth(b))


def logical_xor(a: Operand, b: Operand) -> Rows:
    return ne(_truth(a), _truth(b))


def logical_not(x: Rows) -> Rows:
    return ~x


def bitwise_not(x: Rows, *, result: Result) -> Rows:
    if result.dtype == torch.bool:
        return ~x
    # -1 is all ones, or the largest number of those without a sign.
    return float(sum(kept_by(result.dtype))) - x


def isinf(x: Rows) -> Rows:
    return eq(abs(x), math.inf)


def isposinf(x: Rows) -> Rows:
    return eq(x, math.inf)


def isneginf(x: Rows) -> Rows:
    return eq(x, -math.inf)


_OF_ONE = words(
    "neg abs sqrt rsqrt reciprocal exp expm1 log log1p tanh sigmoid erf sin cos sign floor ceil trunc relu "
    "atan asinh acosh erfc"
)
_OF_TWO = words("maximum minimum lt le gt ge eq ne atan2 hypot fmod remainder floor_divide")

POINTWISE: dict[str, Callable[..., Rows]] = {
    # One instruction of the same name.
    **{name: of_one(name) for name in _OF_ONE},
    **{name: of_two(name) for name in _OF_TWO},
    "sgn": of_one("sign"),
    # Arithmetic.
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "mul": mul,
    "div": div,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "lerp": lerp,
    # Powers, exponentials and logarithms.
    "pow": pow_,
    "ldexp": ldexp,
    "exp2": exp2,
    "log2": log2,
    "log10": log10,
    "logaddexp": logaddexp,
    "logaddexp2": logaddexp2,
    "logit": logit,
    "mse_loss": mse_loss,
    "smooth_l1_loss": smooth_l1_loss,
    "huber_loss": huber_loss,
    "xlogy": xlogy,
    "special_xlog1py": xlog1py,
    # Trigonometry.
    "tan": tan,
    "asin": asin,
    "acos": acos,
    "sinh": sinh,
    "cosh": cosh,
    "atanh": atanh,
    "sinc": sinc,
    "angle": angle,
    "deg2rad": deg2rad,
    "rad2deg": rad2deg,
    # Rounding.
    "round": round_,
    "frac": frac,
    # Choices.
    "where": where,
    "masked_fill": masked_fill,
    "clamp": clamp,
    "clamp_min": clamp_min,
    "clamp_max": clamp_max,
    "fmax": fmax,
    "fmin": fmin,
    "nan_to_num": nan_to_num,
    # Truth values.
    "logical_and": logical_and,
    "logical_or": logical_or,
    "logical_xor": logical_xor,
    "logical_not": logical_not,
    "bitwise_and": logical_and,
    "bitwise_or": logical_or,
    "bitwise_xor": logical_xor,
    "bitwise_not": bitwise_not,
    "isnan": is_nan,
    "isinf": isinf,
    "isposinf": isposinf,
    "isneginf": isneginf,
}
