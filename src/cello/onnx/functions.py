"""The operations of the instruction set in ONNX's operators.

ONNX Runtime has some operators in float32 only. In float64 those that can be are written with others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from cello.onnx.writer import Writer

Function = Callable[..., ir.Value]


def _op(op: str, w: Writer, *args: ir.Value, **attributes: Any) -> ir.Value:
    return w.write(op, *args, **attributes)  # type: ignore[no-any-return]


def _compared(op: str, w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    return w.floats(w.write(op, a, b))


def _choose(w: Writer, truth: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return w.write("Where", truth, a, b)  # type: ignore[no-any-return]


def _expm1(w: Writer, a: ir.Value) -> ir.Value:
    """exp(a) - 1; near 0 by Kahan's formula (u - 1) * a / log(u), which loses no digits."""
    one = w.number(1)
    u = w.write("Exp", a)
    less = w.write("Sub", u, one)
    near = w.write("Div", w.write("Mul", less, a), w.write("Log", u))
    near = _choose(w, w.write("Equal", u, one), a, near)
    return _choose(w, w.write("Less", w.write("Abs", a), w.number(0.5)), near, less)


def _log1p(w: Writer, a: ir.Value) -> ir.Value:
    """log(1 + a); near 0 by Kahan's formula log(u) * a / (u - 1)."""
    one = w.number(1)
    u = w.write("Add", a, one)
    log = w.write("Log", u)
    near = w.write("Div", w.write("Mul", log, a), w.write("Sub", u, one))
    near = _choose(w, w.write("Equal", u, one), a, near)
    return _choose(w, w.write("Less", w.write("Abs", a), w.number(0.5)), near, log)


def _asinh(w: Writer, a: ir.Value) -> ir.Value:
    """sign(a) * log1p(b + b^2 / (1 + sqrt(1 + b^2))) with b = |a|."""
    if w.dtype != torch.float64:
        return w.write("Asinh", a)  # type: ignore[no-any-return]
    one, b = w.number(1), w.write("Abs", a)
    square = w.write("Mul", b, b)
    below = w.write("Add", one, w.write("Sqrt", w.write("Add", one, square)))
    size = _log1p(w, w.write("Add", b, w.write("Div", square, below)))
    far = w.write("Add", w.write("Log", b), w.number(math.log(2)))
    size = _choose(w, w.write("Greater", b, w.number(1e8)), far, size)
    return w.write("Mul", w.write("Sign", a), size)  # type: ignore[no-any-return]


def _acosh(w: Writer, a: ir.Value) -> ir.Value:
    """log1p(b + sqrt(b * (b + 2))) with b = a - 1."""
    if w.dtype != torch.float64:
        return w.write("Acosh", a)  # type: ignore[no-any-return]
    b = w.write("Sub", a, w.number(1))
    square = w.write("Mul", b, w.write("Add", b, w.number(2)))
    found = _log1p(w, w.write("Add", b, w.write("Sqrt", square)))
    far = w.write("Add", w.write("Log", a), w.number(math.log(2)))
    found = _choose(w, w.write("Greater", a, w.number(1e8)), far, found)
    return _choose(w, w.write("Less", a, w.number(1)), w.number(math.nan), found)


def _trunc(w: Writer, a: ir.Value) -> ir.Value:
    up = w.write("Less", a, w.number(0))
    return _choose(w, up, w.write("Ceil", a), w.write("Floor", a))


def _relu(w: Writer, a: ir.Value) -> ir.Value:
    zero = w.number(0)
    return _choose(w, w.write("LessOrEqual", a, zero), zero, a)  # NaN stays NaN


def _sign(w: Writer, a: ir.Value) -> ir.Value:
    """-1, 0 or 1; as torch has it, 0 of NaN."""
    zero = w.number(0)
    above, below = w.write("Greater", a, zero), w.write("Less", a, zero)
    return w.write("Sub", w.floats(above), w.floats(below))  # type: ignore[no-any-return]


def exact_sigmoid(w: Writer, a: ir.Value) -> ir.Value:
    """1 / (1 + exp(-a)). ONNX Runtime's own has no small numbers: 0 below about -17."""
    exp = w.write("Exp", w.write("Neg", a))
    return w.write("Reciprocal", w.write("Add", w.number(1), exp))  # type: ignore[no-any-return]


def _not(w: Writer, a: ir.Value) -> ir.Value:
    return w.floats(w.write("Equal", a, w.number(0)))


def _ne(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    return w.floats(w.write("Not", w.write("Equal", a, b)))


def _rsqrt(w: Writer, a: ir.Value) -> ir.Value:
    return w.write("Reciprocal", w.write("Sqrt", a))  # type: ignore[no-any-return]


def _erfc(w: Writer, a: ir.Value) -> ir.Value:
    return w.write("Sub", w.number(1), w.write("Erf", a))  # type: ignore[no-any-return]


def _atan2(w: Writer, y: ir.Value, x: ir.Value) -> ir.Value:
    zero = w.number(0)
    both = w.write("And", w.write("IsInf", y), w.write("IsInf", x))
    y, x = (_choose(w, both, w.write("Sign", a), a) for a in (y, x))
    half = w.write("Mul", w.write("Sign", y), w.number(math.pi / 2))  # where x is 0
    is_up = w.write("GreaterOrEqual", y, zero)
    turn = _choose(w, is_up, w.number(math.pi), w.number(-math.pi))
    turn = _choose(w, w.write("Less", x, zero), turn, zero)
    away = w.write("Not", w.write("Equal", x, zero))
    slope = w.write("Div", y, _choose(w, away, x, w.number(1)))
    return _choose(w, away, w.write("Add", w.write("Atan", slope), turn), half)


def _hypot(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    one = w.number(1)
    is_far = w.write("Or", w.write("IsInf", a), w.write("IsInf", b))
    a, b = w.write("Abs", a), w.write("Abs", b)
    large, small = w.write("Max", a, b), w.write("Min", a, b)
    is_zero = w.write("Equal", large, w.number(0))
    ratio = w.write("Div", small, _choose(w, is_zero, one, large))
    root = w.write("Sqrt", w.write("Add", one, w.write("Mul", ratio, ratio)))
    return _choose(w, is_far, w.number(math.inf), w.write("Mul", large, root))


def _fmod(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    return w.write("Mod", a, b, fmod=1)  # type: ignore[no-any-return]


def _is_other_sign(w: Writer, rest: ir.Value, b: ir.Value) -> ir.Value:
    """Where a remainder by truncation has not the sign of the divisor."""
    return w.write("Less", w.write("Mul", rest, w.write("Sign", b)), w.number(0))  # type: ignore[no-any-return]


def _remainder(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    rest = _fmod(w, a, b)
    return _choose(w, _is_other_sign(w, rest, b), w.write("Add", rest, b), rest)


def _floor_divide(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    rest = _fmod(w, a, b)
    whole = w.write("Round", w.write("Div", w.write("Sub", a, rest), b))
    less = w.write("Sub", whole, w.number(1))
    found = _choose(w, _is_other_sign(w, rest, b), less, whole)
    return _choose(w, w.write("Equal", b, w.number(0)), w.write("Div", a, b), found)


def _where(w: Writer, c: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return _choose(w, w.truth(c), a, b)


def _muladd(w: Writer, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return w.write("Add", w.write("Mul", a, b), c)  # type: ignore[no-any-return]


def _clamp(w: Writer, a: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    return w.write("Min", w.write("Max", a, low), high)  # type: ignore[no-any-return]


def _between(
    op: str, w: Writer, a: ir.Value, x: ir.Value, low: ir.Value, high: ir.Value
) -> ir.Value:
    both = w.write("And", w.write(op, low, x), w.write(op, x, high))
    return _choose(w, both, a, w.number(0))


def _tanh_gradient(w: Writer, g: ir.Value, y: ir.Value) -> ir.Value:
    return w.write("Mul", g, w.write("Sub", w.number(1), w.write("Mul", y, y)))  # type: ignore[no-any-return]


def _sigmoid_gradient(w: Writer, g: ir.Value, y: ir.Value) -> ir.Value:
    slope = w.write("Mul", w.write("Sub", w.number(1), y), y)
    return w.write("Mul", g, slope)  # type: ignore[no-any-return]


_SAME = {
    "neg": "Neg",
    "abs": "Abs",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "reciprocal": "Reciprocal",
    "atan": "Atan",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
}
_COMPARED = {
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "eq": "Equal",
}

POINTWISE: dict[str, Function] = {
    **{name: partial(_op, op) for name, op in _SAME.items()},
    **{name: partial(_compared, op) for name, op in _COMPARED.items()},
    "copy": lambda w, a: a,
    "stop": lambda w, a: a,
    "replace": lambda w, a, b: b,
    "expm1": _expm1,
    "log1p": _log1p,
    "trunc": _trunc,
    "relu": _relu,
    "sign": _sign,
    "not": _not,
    "ne": _ne,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "asinh": _asinh,
    "acosh": _acosh,
    "atan2": _atan2,
    "hypot": _hypot,
    "fmod": _fmod,
    "remainder": _remainder,
    "floor_divide": _floor_divide,
    "where": _where,
    "muladd": _muladd,
    "clamp": _clamp,
    "hardtanh": _clamp,
    "inside": partial(_between, "Less"),
    "within": partial(_between, "LessOrEqual"),
    "tanh_gradient": _tanh_gradient,
    "sigmoid_gradient": _sigmoid_gradient,
}
"""Each pointwise operation: a function of the writer and the operands, which may be broadcast."""


def _reduced(op: str, w: Writer, a: ir.Value) -> ir.Value:
    return w.write(op, a, w.sizes(-1), keepdims=0)  # type: ignore[no-any-return]


def _extremum(op: str, w: Writer, a: ir.Value) -> ir.Value:
    """Like torch's, NaN where there is one, of which ONNX says nothing."""
    has_nan = w.truth(_reduced("ReduceMax", w, w.floats(w.write("IsNaN", a))))
    return _choose(w, has_nan, w.number(math.nan), _reduced(op, w, a))


def _dot(w: Writer, a: ir.Value, b: ir.Value) -> ir.Value:
    return _reduced("ReduceSum", w, w.write("Mul", a, b))


def _rank(w: Writer, a: ir.Value, b: ir.Value, i: ir.Value, j: ir.Value) -> ir.Value:
    before = w.write("Less", j, i)
    no_a, no_b = w.write("IsNaN", a), w.write("IsNaN", b)
    tie = w.write("Or", w.write("Equal", a, b), w.write("And", no_a, no_b))
    below = w.write("Or", w.write("Less", b, a), w.write("And", no_a, w.write("Not", no_b)))
    first = w.write("Or", below, w.write("And", tie, before))
    return _reduced("ReduceSum", w, w.floats(first))


def _select(w: Writer, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    chosen = _choose(w, w.write("Equal", a, b), c, w.number(0))
    return _reduced("ReduceSum", w, chosen)


REDUCTIONS: dict[str, Function] = {
    "sum": partial(_reduced, "ReduceSum"),
    "amax": partial(_extremum, "ReduceMax"),
    "amin": partial(_extremum, "ReduceMin"),
    "dot": _dot,
    "rank": _rank,
    "select": _select,
}
"""Each reduction over the last axis, likewise; of one operand that is not broadcast along it."""
