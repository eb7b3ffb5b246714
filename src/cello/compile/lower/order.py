"""Numbers in order along an axis, and what has a certain rank there.

The rank of a number is how many of the others come before it: all pairs are compared, there is nothing to
swap, and equal numbers keep their order. What has a rank is found by comparing ranks.
"""

from __future__ import annotations

from collections.abc import Callable

from cello.compile.arithmetic import (
    clamped,
    floor_divide,
    is_nan,
    maximum,
    where,
)
from cello.compile.lower.arguments import Result
from cello.compile.lower.reductions import by_halves, sum_
from cello.compile.lower.rows import Rows
from cello.compile.lower.views import cat, squeeze, transpose, unsqueeze

Found = tuple[Rows, Rows]
"""The numbers, and their places, as torch returns them."""


class Ranks:
    """The ranks of the numbers along an axis, from 0 on; NaN is larger than any number.

    Args:
        x: the numbers.
        dim: the axis, of n.
        places: the numbers from 0 to n - 1.
        descending: whether the largest comes first.
    """

    def __init__(self, x: Rows, dim: int, places: Rows, descending: bool = False) -> None:
        (self._dim,) = x.dims(dim)
        self._x, self._places = transpose(x, self._dim, -1), places
        self.size = x.shape[self._dim]
        this, other = unsqueeze(self._x, x.rank), unsqueeze(self._x, x.rank - 1)
        pair = (other, this) if descending else (this, other)
        self._ranks = x.contracted("rank", *pair, unsqueeze(places, 1), places)

    def select(self, ranks: Rows, keepdim: bool = True) -> Found:
        """What has these ranks: (m,) of all rows alike, or (..., m) of each.

        Args:
            ranks: the ranks.
            keepdim: whether the axis stays, with the size m.
        """
        which = unsqueeze(self._ranks, self._ranks.rank - 1), unsqueeze(ranks, ranks.rank)
        values = ranks.contracted("select", *which, unsqueeze(self._x, self._x.rank - 1))
        places = ranks.contracted("select", *which, self._places)
        if not keepdim:
            return squeeze(values, -1), squeeze(places, -1)
        return transpose(values, self._dim, -1), transpose(places, self._dim, -1)

    def scatter(self, x: Rows, source: Rows | float, count: int) -> Rows:
        """What :func:`torch.scatter` puts in at the places of the first ranks."""
        if isinstance(source, Rows):
            source = unsqueeze(transpose(source, self._dim, -1), x.rank - 1)
            first = self._places.part(0, 0, count)
            source = x.contracted("select", first, unsqueeze(self._ranks, x.rank), source)
        put = where(self._ranks < float(count), source, transpose(x, self._dim, -1))
        return transpose(put, self._dim, -1)

    def gather(self, x: Rows, count: int) -> Rows:
        """What :func:`torch.gather` finds at the places of the first ranks."""
        which = unsqueeze(self._ranks, x.rank - 1), unsqueeze(self._places.part(0, 0, count), 1)
        numbers = unsqueeze(transpose(x, self._dim, -1), x.rank - 1)
        return transpose(x.contracted("select", *which, numbers), self._dim, -1)

    def is_along(self, x: Rows, dim: int) -> bool:
        """Whether another tensor has as many numbers along the same axis."""
        return x.dims(dim) == [self._dim] and x.shape == transpose(self._x, self._dim, -1).shape

    def middle(self, keepdim: bool, *, skips_nan: bool) -> Found:
        """The median, of an even number the smaller one of both; NaN where there is one, unless skipped."""
        unknown = sum_(is_nan(self._x), -1, True)
        if skips_nan:
            ranks = clamped(floor_divide(float(self.size - 1) - unknown, 2.0), 0.0, self.size - 1.0)
        else:
            ranks = where(unknown > 0.0, float(self.size) - unknown, (self.size - 1) // 2)
        return self.select(ranks, keepdim)


def cummax(x: Rows, dim: int, *, result: Result) -> Rows:
    return _running(lambda a, b: a >= b, x, dim, result)


def cummin(x: Rows, dim: int, *, result: Result) -> Rows:
    return _running(lambda a, b: a <= b, x, dim, result)


def _running(is_better: Callable[[Rows, Rows], Rows], x: Rows, dim: int, result: Result) -> Rows:
    """The best number so far along an axis or, as the second result, its place; of equal ones the last."""
    (dim,) = x.dims(dim)
    x, size, _ = x.with_one_factor(dim)
    places = cat([x.full(float(k), x.part(dim, 0, 1).shape) for k in range(size)], dim)

    def better(before: list[Rows], after: list[Rows]) -> list[Rows]:
        wins = maximum(is_better(after[0], before[0]), is_nan(after[0]))
        return [where(wins, b, a) for a, b in zip(before, after, strict=True)]

    return by_halves(better, [x, places], dim)[result.index]


ORDERS: dict[str, Callable[..., Rows]] = {"cummax": cummax, "cummin": cummin}
