"""Systems of linear equations with a small matrix of each row: solutions, inverses, determinants, factors.

Every step of an elimination is an instruction for all rows, of which each has its own pivots. What torch
refuses, a matrix that is singular or not positive definite, gives infinite numbers or NaN here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod as numbers

from cello.compile.arithmetic import eq, floor_divide, log, replace, sign, sqrt, stop, where
from cello.compile.lower.arguments import Places, Result, hold_first
from cello.compile.lower.products import bmm
from cello.compile.lower.reductions import prod, sum_
from cello.compile.lower.rows import Refused, Rows
from cello.compile.lower.views import (
    cat,
    constant_pad_nd,
    flip,
    select,
    squeeze,
    stack,
    transpose,
    unsqueeze,
    view,
)

MOST_UNKNOWNS = 8
"""The largest matrix; larger ones torch's library solves in less time."""


@dataclass(frozen=True)
class _Eliminated:
    """What the elimination of Gauss and Jordan leaves of a matrix A (..., n, n).

    Attributes:
        pivots: the pivots, (..., n).
        ranks: for each pivot the ranks of the rows, of which the first one was its own, (..., n, n).
        sides: for each right side B (..., n, m) the solution X of A X = B.
    """

    pivots: Rows
    ranks: Rows
    sides: list[Rows]

    def sign(self, places: Rows) -> Rows:
        """1 where an even number of exchanges put the pivots in order, -1 elsewhere."""
        order = self.ranks.contracted("select", self.ranks, 0.0, places)
        ahead = _column(places) < _row(places)
        swaps = sum_(where(ahead, _column(order) > _row(order), 0.0), [-2, -1])
        return 1.0 - 2.0 * (swaps - 2.0 * floor_divide(swaps, 2.0))


def _eliminate(a: Rows, sides: Sequence[Rows], places: Rows, *, least: float = 0.0) -> _Eliminated:
    """Eliminate with the largest pivot of each column; rows stay where they are until the end.

    Args:
        a: the matrix; no gradient flows into it.
        sides: right sides with its leading axes, likewise; the first is always wanted.
        places: the numbers from 0 to n - 1.
        least: what stands for a pivot of 0, by which nothing can be divided.
    """
    count = _held(a)
    first, *others = [stop(side) for side in sides]
    tables = [cat([stop(a), first], -1), *others]
    is_free = a.full(1.0, a.shape[:-1])
    pivots, divisors, ranks = [], [], []
    for _ in range(count):
        column = select(tables[0], -1, 0)
        tables[0] = tables[0].part(a.rank - 1, 1, tables[0].shape[-1] - 1)
        size = where(is_free, abs(column), -1.0)
        rank = size.contracted("rank", _row(size), _column(size), _column(places), places)
        pivot = rank.contracted("select", rank, 0.0, column)
        is_free = where(rank, is_free, 0.0)
        divisor = where(eq(pivot, 0.0), least, pivot) if least else pivot
        factors = _column(where(rank, column, 0.0) / _column(divisor))
        tables = [x - factors * _row(_ranked_first(rank, x)) for x in tables]
        pivots.append(pivot)
        divisors.append(divisor)
        ranks.append(rank)
    rows, by = stack(ranks, a.rank - 2), _column(stack(divisors, -1))
    solutions = [_ranked_first(rows, x) / by for x in tables]
    return _Eliminated(stack(pivots, -1), rows, solutions)


def _held(a: Rows) -> int:
    """The number of unknowns.

    Raises:
        Refused: they are many.
    """
    count = a.shape[-1]
    if count > MOST_UNKNOWNS:
        raise Refused(
            f"eliminates {count} unknowns for each row in {{op}}{{line}}, for which torch takes less time"
        )
    return count


def _ranked_first(ranks: Rows, x: Rows) -> Rows:
    """The rows of a matrix (..., n, m) that have the rank 0, of k ranks (..., k, n) or of one."""
    of_each = x if ranks.rank < x.rank else unsqueeze(x, x.rank - 2)
    return _row(ranks).contracted("select", _row(ranks), 0.0, _turned(of_each))


def _column(x: Rows) -> Rows:
    return unsqueeze(x, x.rank)


def _row(x: Rows) -> Rows:
    return unsqueeze(x, x.rank - 1)


def _turned(x: Rows) -> Rows:
    return transpose(x, -1, -2)


def _times(a: Rows, b: Rows) -> Rows:
    """Matrices (..., n, k) times (..., k, m)."""
    return sum_(_row(a) * unsqueeze(_turned(b), b.rank - 2), -1)


def _unit(like: Rows, places: Rows) -> Rows:
    """The unit matrix for each matrix of another tensor."""
    return eq(_column(places), _row(places)).expanded(like.shape)


def inverse(a: Rows, places: Rows) -> Rows:
    """The inverse Y of A; its differential is -Y dA Y."""
    (found,) = _eliminate(a, [_unit(a, places)], places).sides
    return replace(-_times(found, _times(a, found)), found)


def solved(a: Rows, b: Rows, places: Rows) -> Rows:
    """The solution X of A X = B; its differential is that of Y (B - dA X), with the inverse Y of A."""
    leading = _broadcast(a.shape[:-2], b.shape[:-2])
    a = a.expanded((*leading, *a.shape[-2:]))
    b = b.expanded((*leading, *b.shape[-2:]))
    found, inverted = _eliminate(a, [b, _unit(a, places)], places).sides
    return replace(_times(inverted, b - _times(a, found)), found)


def determinant(a: Rows, places: Rows) -> Rows:
    """Its differential is det(A) times the trace of Y dA, with the inverse Y of A.

    Of a singular matrix it is the limit: a pivot of 0 is taken for a very small one.
    """
    eliminated = _eliminate(a, [_unit(a, places)], places, least=_SMALL)
    sign_, pivots = eliminated.sign(places), eliminated.pivots
    slope = prod(where(eq(pivots, 0.0), _SMALL, pivots), -1) * sign_
    return replace(slope * _trace(eliminated.sides[0], a), prod(pivots, -1) * sign_)


def log_determinant(a: Rows, places: Rows) -> tuple[Rows, Rows]:
    """The sign of the determinant, which has no gradient, and the logarithm of its absolute value."""
    eliminated = _eliminate(a, [_unit(a, places)], places, least=_SMALL)
    signs = prod(sign(eliminated.pivots), -1) * eliminated.sign(places)
    found = sum_(log(abs(eliminated.pivots)), -1)
    return signs, replace(_trace(eliminated.sides[0], a), found)


_SMALL = 2.0**-60
"""Its inverse, and its product with what it stands beside, are numbers of float32."""


def _trace(a: Rows, b: Rows) -> Rows:
    """The trace of the product of two matrices."""
    return sum_(a * _turned(b), [-2, -1])


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The shape of two that are broadcast; torch has checked that they fit."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + (*a,), (1,) * (rank - len(b)) + (*b,), strict=True)
    return [max(pair) for pair in pairs]


def cholesky(a: Rows, upper: bool = False) -> Rows:
    """The factor of a symmetric matrix, of which one triangle is read; both get its gradient."""
    lower = _turned(a) if upper else a
    left = replace((a + _turned(a)) * 0.5, lower)
    columns, count = [], _held(a)
    for k in range(count):
        first = select(left, -1, 0)  # what is left of the first column
        column = first / sqrt(first.part(first.rank - 1, 0, 1))
        columns.append(constant_pad_nd(column, [k, 0]))
        if k + 1 < count:
            below = column.part(column.rank - 1, 1, column.shape[-1] - 1)
            left = _without_first(left) - _column(below) * _row(below)
    return stack(columns, columns[0].rank - (1 if upper else 0))


def _without_first(a: Rows) -> Rows:
    """A square matrix without its first row and column."""
    rest = a.shape[-1] - 1
    return a.part(a.rank - 2, 1, rest).part(a.rank - 1, 1, rest)


def triangular(
    a: Rows, b: Rows, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Rows:
    """The solution X of A X = B, or of X A = B, with a triangle of A, whose other one is not read."""
    if not left:
        a, b = _turned(a), _turned(b)
        found = triangular(a, b, upper=not upper, unitriangular=unitriangular)
        return _turned(found)
    leading = _broadcast(a.shape[:-2], b.shape[:-2])
    b = b.expanded((*leading, *b.shape[-2:]))
    if upper:
        found = triangular(
            flip(a, [-2, -1]), flip(b, [-2]), upper=False, unitriangular=unitriangular
        )
        return flip(found, [-2])
    rows, rest = [], _held(a)
    while rest:
        rest -= 1
        column = _column(select(a, -1, 0))
        row = b.part(b.rank - 2, 0, 1)
        rows.append(row if unitriangular else row / column.part(column.rank - 2, 0, 1))
        if rest:
            below = column.part(column.rank - 2, 1, rest)
            a, b = _without_first(a), b.part(b.rank - 2, 1, rest) - below * rows[-1]
    return cat(rows, -2)


def cholesky_solve(b: Rows, a: Rows, upper: bool = False, *, places: Places) -> Rows:
    """The solution X of equations whose matrix L L^T has the factor L.

    As torch has it, the differential is that of Y (B - d(L L^T) X), with the inverse Y of the matrix: both
    triangles of L get a gradient, although only one is read.
    """
    lower = _turned(a) if upper else a
    unit = _unit(a, places(a.shape[-1]))
    found, inverted = (_back(stop(lower), stop(side)) for side in (b, unit))
    matrix = _times(lower, _turned(lower))
    return replace(_times(inverted, b - _times(matrix, found)), found)


def _back(lower: Rows, b: Rows) -> Rows:
    halfway = triangular(lower, b, upper=False)
    return triangular(_turned(lower), halfway, upper=True)


def linalg_inv_ex(a: Rows, *, places: Places, result: Result) -> Rows:
    hold_first(result)
    return inverse(a, places(a.shape[-1]))


def linalg_solve_ex(a: Rows, b: Rows, *, left: bool = True, places: Places, result: Result) -> Rows:
    hold_first(result)
    return _oriented(partial(solved, places=places(a.shape[-1])), a, b, left)


def solved_by_inverse(inverse: Rows, b: Rows, left: bool) -> Rows:
    """The solution, with the inverse of a matrix that is the same for all rows."""
    return _oriented(_matmul, inverse, b, left)


def _oriented(solve: Callable[[Rows, Rows], Rows], a: Rows, b: Rows, left: bool) -> Rows:
    """Solve A X = B or X A = B, where B may be a vector for each matrix."""
    is_vector = b.rank == 1 or (b.rank == a.rank - 1 and b.shape == a.shape[:-1])
    b = _column(b) if is_vector else b
    found = solve(a, b) if left else _turned(solve(_turned(a), _turned(b)))
    return squeeze(found, -1) if is_vector else found


def _matmul(a: Rows, b: Rows) -> Rows:
    """A matrix that is the same for all rows times matrices of rows."""
    count = numbers(b.shape[:-2])
    many = view(b, [count, *b.shape[-2:]])
    product = bmm(a.expanded((count, *a.shape[-2:])), many)
    return view(product, [*b.shape[:-2], *product.shape[-2:]])


def linalg_det(a: Rows, *, places: Places, result: Result) -> Rows:
    hold_first(result)
    return determinant(a, places(a.shape[-1]))


def linalg_slogdet(a: Rows, *, places: Places, result: Result) -> Rows:
    if result.index > 1:
        raise Refused
    return log_determinant(a, places(a.shape[-1]))[result.index]


def linalg_cholesky_ex(a: Rows, *, upper: bool = False, result: Result) -> Rows:
    hold_first(result)
    return cholesky(a, upper)


def cholesky_inverse(a: Rows, upper: bool = False, *, places: Places) -> Rows:
    return cholesky_solve(_unit(a, places(a.shape[-1])), a, upper, places=places)


LINEAR_ALGEBRA: dict[str, Callable[..., Rows]] = {
    "linalg_inv_ex": linalg_inv_ex,
    "_linalg_det": linalg_det,
    "_linalg_slogdet": linalg_slogdet,
    "linalg_cholesky_ex": linalg_cholesky_ex,
    "cholesky": cholesky,
    "cholesky_inverse": cholesky_inverse,
    "cholesky_solve": cholesky_solve,
    "linalg_solve_triangular": triangular,
}
