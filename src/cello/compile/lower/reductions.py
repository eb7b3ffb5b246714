"""Sums, extrema and what is made of them, along features."""

from __future__ import annotations

import math
from collections.abc import Callable

from cello.compile.arithmetic import eq, exp, is_nan, log, maximum, ne, replace, sqrt, stop, where
from cello.compile.lower.arguments import Result
from cello.compile.lower.pointwise import logaddexp
from cello.compile.lower.rows import Dims, Refused, Rows
from cello.compile.lower.views import cat, squeeze, unsqueeze


def sum_(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return x.reduced("sum", dim, keepdim)


def amax(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return x.reduced("amax", dim, keepdim)


def amin(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return x.reduced("amin", dim, keepdim)


def any_(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return amax(ne(x, 0.0), dim, keepdim)


def all_(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return amin(ne(x, 0.0), dim, keepdim)


def _count(x: Rows, dim: Dims) -> int:
    """How many numbers go into one."""
    return math.prod(x.shape[d] for d in x.dims(dim))


def mean(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return sum_(x, dim, keepdim) / _count(x, dim)


def var(x: Rows, dim: Dims = None, correction: float | None = 1, keepdim: bool = False) -> Rows:
    correction = 1 if correction is None else correction
    centred = x - mean(x, dim, True)
    return sum_(centred * centred, dim, keepdim) / (_count(x, dim) - correction)


def std(x: Rows, dim: Dims = None, correction: float | None = 1, keepdim: bool = False) -> Rows:
    return _root(var(x, dim, correction, keepdim))


def _root(total: Rows) -> Rows:
    """The square root of a sum of squares: at zero torch's gradient is zero, and not that of the root."""
    is_zero = eq(total, 0.0)
    return where(is_zero, 0.0, sqrt(where(is_zero, 1.0, total)))


def var_mean(
    x: Rows,
    dim: Dims = None,
    correction: float | None = 1,
    keepdim: bool = False,
    *,
    result: Result,
) -> Rows:
    return mean(x, dim, keepdim) if result.index else var(x, dim, correction, keepdim)


def std_mean(
    x: Rows,
    dim: Dims = None,
    correction: float | None = 1,
    keepdim: bool = False,
    *,
    result: Result,
) -> Rows:
    return mean(x, dim, keepdim) if result.index else std(x, dim, correction, keepdim)


def linalg_vector_norm(x: Rows, ord: float = 2, dim: Dims = None, keepdim: bool = False) -> Rows:
    if ord == 2:
        return _root(sum_(x * x, dim, keepdim))
    if ord == 1:
        return sum_(abs(x), dim, keepdim)
    if ord == math.inf:
        return amax(abs(x), dim, keepdim)
    if ord == 0:
        return sum_(ne(x, 0.0), dim, keepdim)
    if ord < 1:
        raise Refused
    total = sum_(abs(x) ** ord, dim, keepdim)
    is_zero = eq(total, 0.0)
    return where(is_zero, 0.0, where(is_zero, 1.0, total) ** (1 / ord))


def norm(x: Rows, p: float | None = 2, dim: Dims = None, keepdim: bool = False) -> Rows:
    return linalg_vector_norm(x, 2 if p is None else p, dim, keepdim)


def nansum(x: Rows, dim: Dims = None, keepdim: bool = False) -> Rows:
    return sum_(where(is_nan(x), 0.0, x), dim, keepdim)


# Softmax and its like: the largest is taken off, which changes nothing but keeps exp from overflowing.


def softmax(x: Rows, dim: int, half_to_float: bool = False) -> Rows:
    e = exp(x - stop(amax(x, dim, True)))
    return e / sum_(e, dim, True)


def safe_softmax(x: Rows, dim: int) -> Rows:
    """Zeros where all is -infinity: nothing is left to attend to."""
    top = stop(amax(x, dim, True))
    is_empty = eq(top, -math.inf)
    e = exp(x - where(is_empty, 0.0, top))
    return e / where(is_empty, 1.0, sum_(e, dim, True))


def log_softmax(x: Rows, dim: int, half_to_float: bool = False) -> Rows:
    centred = x - stop(amax(x, dim, True))
    return centred - log(sum_(exp(centred), dim, True))


def logsumexp(x: Rows, dim: Dims, keepdim: bool = False) -> Rows:
    top = stop(amax(x, dim, True))
    top = where(abs(top) < math.inf, top, 0.0)
    out = log(sum_(exp(x - top), dim, True)) + top
    return out if keepdim else squeeze(out, dim)


# What the numbers up to each place give


def cumsum(x: Rows, dim: int) -> Rows:
    return _joined(lambda a, b: a + b, x, dim)


def cumprod(x: Rows, dim: int) -> Rows:
    return _joined(lambda a, b: a * b, x, dim)


def logcumsumexp(x: Rows, dim: int) -> Rows:
    return _joined(_log_of_both, x, dim)


def _log_of_both(a: Rows, b: Rows) -> Rows:
    """The logarithm of the sum of two exponentials, of which both may be zero, with no gradient."""
    is_zero = eq(maximum(a, b), -math.inf)
    return where(is_zero, -math.inf, logaddexp(where(is_zero, 0.0, a), where(is_zero, 0.0, b)))


def _joined(join: Callable[[Rows, Rows], Rows], x: Rows, dim: int) -> Rows:
    """What all numbers up to each place along an axis give together."""
    (dim,) = x.dims(dim)
    x, _, _ = x.with_one_factor(dim)
    (found,) = by_halves(lambda a, b: [join(*a, *b)], [x], dim)
    return found


def by_halves(
    join: Callable[[list[Rows], list[Rows]], list[Rows]], tensors: list[Rows], dim: int
) -> list[Rows]:
    """What all places up to each one along an axis give together; a place has a number of each tensor.

    Args:
        join: makes one place of two, of which the first one comes before.
        tensors: their axis has one factor.
        dim: the axis.
    """
    size, step = tensors[0].shape[dim], 1
    while step < size:  # each place holds what the last `step` ones give together
        before = [x.part(dim, 0, size - step) for x in tensors]
        after = [x.part(dim, step, size - step) for x in tensors]
        pairs = zip(tensors, join(before, after), strict=True)
        tensors = [cat([x.part(dim, 0, step), joined], dim) for x, joined in pairs]
        step *= 2
    return tensors


def prod(x: Rows, dim: int | None = None, keepdim: bool = False) -> Rows:
    if dim is None:
        raise Refused("mixes the rows of a batch in {op}{line}")
    (dim,) = x.dims(dim)
    x, size, _ = x.with_one_factor(dim)
    while size > 1:  # halves, and of an odd size the number that is left
        half = size // 2
        paired = x.part(dim, 0, half) * x.part(dim, half, half)
        x = cat([paired, x.part(dim, 2 * half, 1)], dim) if size % 2 else paired
        size = half + size % 2
    return x if keepdim else squeeze(x, dim)


def aminmax(x: Rows, *, dim: int | None = None, keepdim: bool = False, result: Result) -> Rows:
    return (amax if result.index else amin)(x, dim, keepdim)


_MOST_APART = 1024
"""Differences of numbers in the distances of several vectors from several others."""


def cdist_forward(a: Rows, b: Rows, p: float, compute_mode: int | None) -> Rows:
    """The distances of all vectors (P, M) from all others (R, M)."""
    count = a.shape[-2] * b.shape[-2] * a.shape[-1]
    if 1 not in (a.shape[-2], b.shape[-2]) and a.shape[-2] != a.batch and count > _MOST_APART:
        raise Refused("computes many distances in {op}{line}, for which torch takes less time")
    apart = unsqueeze(a, a.rank - 1) - unsqueeze(b, b.rank - 2)
    if p == 2:
        return _root(sum_(apart * apart, -1))
    if p == 1:
        return sum_(abs(apart), -1)
    if p == math.inf:  # each of several largest differences has the whole gradient
        size = abs(apart)
        largest = stop(amax(size, -1, True))
        whole = sum_(where(eq(size, largest), size, 0.0), -1)
        return replace(whole, squeeze(largest, -1))
    raise Refused


REDUCTIONS: dict[str, Callable[..., Rows]] = {
    "sum": sum_,
    "mean": mean,
    "amax": amax,
    "amin": amin,
    "any": any_,
    "all": all_,
    "var": var,
    "std": std,
    "var_mean": var_mean,
    "std_mean": std_mean,
    "linalg_vector_norm": linalg_vector_norm,
    "norm": norm,
    "nansum": nansum,
    "_softmax": softmax,
    "_safe_softmax": safe_softmax,
    "_log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "cumsum": cumsum,
    "cumprod": cumprod,
    "logcumsumexp": logcumsumexp,
    "prod": prod,
    "aminmax": aminmax,
    "_cdist_forward": cdist_forward,
}
