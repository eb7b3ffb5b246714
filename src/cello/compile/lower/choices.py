"""Where an extremum is, and what is chosen by such a place.

A place is a small integer that the loop computes as a number. What it chooses is found by comparing it with
all places there are, so that there is no address to compute.
"""

from __future__ import annotations

import math

from cello.compile.arithmetic import eq, is_nan, replace, sign, stop, where
from cello.compile.lower.axes import Axis, regroup
from cello.compile.lower.indexing import Chosen, Places
from cello.compile.lower.products import bmm, chosen_by
from cello.compile.lower.reductions import amax, amin
from cello.compile.lower.rows import Refused, Rows
from cello.compile.lower.views import put_in, taken, transpose, unsqueeze, view


def first_place(x: Rows, dim: int, places: Rows, *, of_least: bool) -> Rows:
    """The first place of the extremum along an axis; that of NaN, where there is one, as torch has it.

    Args:
        x: the numbers.
        dim: the axis, of features, which stays with size 1.
        places: the numbers from 0 on, as many as the axis has.
        of_least: of the smallest number instead of the largest.
    """
    (dim,) = x.dims(dim)
    best = (amin if of_least else amax)(x, dim, True)
    is_best = where(is_nan(best), is_nan(x), eq(x, best))
    there = where(is_best, _along(places, x.rank, dim), float(x.shape[dim]))
    return stop(amin(there, dim, True))


def gathered(x: Rows, dim: int, index: Rows, places: Rows) -> Rows:
    """torch.gather: along one axis, what stands at places, of which each row has its own."""
    dim = _hold_alike(x, index, dim)
    x, index = transpose(x, dim, -1), transpose(index, dim, -1)
    found = x.contracted("select", places, unsqueeze(index, x.rank), unsqueeze(x, x.rank - 1))
    return transpose(found, dim, -1)


def scattered(
    x: Rows, dim: int, index: Rows, source: Rows | float, places: Rows, *, are_apart: bool
) -> Rows:
    """torch.scatter: numbers put in at places; where several may meet, only one and the same number.

    Args:
        x: what they are put into.
        dim: along which axis.
        index: the places.
        source: the numbers.
        places: all places.
        are_apart: whether no place is named twice.
    """
    dim = _hold_alike(x, index, dim)
    if isinstance(source, Rows):
        if source.shape != index.shape:
            raise Refused
        if index.shape[dim] > 1 and not are_apart:
            raise Refused("puts several numbers in at places that may be the same in {op}{line}")
        if index.shape[dim] > 1:
            source = _summed(dim, index, source, places)
    return where(_summed(dim, index, 1.0, places), source, x)


def scattered_sum(x: Rows, dim: int, index: Rows, source: Rows, places: Rows) -> Rows:
    """torch.scatter_add: numbers added at places."""
    dim = _hold_alike(x, index, dim)
    if source.shape != index.shape:
        raise Refused
    return x + _summed(dim, index, source, places)


def chosen_by_rows(x: Rows, chosen: Chosen, index: Rows | None, places: Rows | None) -> Rows:
    """What stands at places that each row names itself, as in ``x[torch.arange(B), i]``.

    Args:
        x: what is chosen from.
        chosen: along which axes.
        index: the places, counted over these axes together; ``None``, if there are none of them.
        places: all places.
    """
    if index is None or places is None:
        return x.with_axes((x.axes[0], *((),) * (chosen.rank - 1), *x.axes[1:]))
    flat = _chosen_first(x, chosen)
    at, shape = _flat_index(flat, index)
    return view(gathered(flat, 1, at, places), [x.shape[0], *shape, *flat.shape[2:]])


def put_by_rows(
    x: Rows,
    chosen: Chosen,
    index: Rows | None,
    places: Rows | None,
    values: Rows,
    *,
    adds: bool,
    are_apart: bool,
) -> Rows:
    """Numbers put at places that each row names itself, or added there.

    Args:
        x: what they are put into.
        chosen: along which axes.
        index: the places, counted over these axes together; ``None``, if there are none of them.
        places: all places.
        values: the numbers.
        adds: whether they are added.
        are_apart: whether no place is named twice.
    """
    if index is None or places is None:
        raise Refused
    flat = _chosen_first(x, chosen)
    at, shape = _flat_index(flat, index)
    whole = [x.shape[0], *shape, *flat.shape[2:]]
    source = view(values.expanded(whole), [x.shape[0], at.shape[1], *flat.shape[2:]])
    if adds:
        flat = scattered_sum(flat, 1, at, source, places)
    else:
        flat = scattered(flat, 1, at, source, places, are_apart=are_apart)
    order = [0, *chosen.axes]
    order += [dim for dim in range(x.rank) if dim not in order]
    moved = view(flat, [x.shape[dim] for dim in order])
    return moved.permuted([order.index(dim) for dim in range(x.rank)])


def _chosen_first(x: Rows, chosen: Chosen) -> Rows:
    """The axes along which is chosen as one, behind that of the batch."""
    others = [dim for dim in range(1, x.rank) if dim not in chosen.axes]
    moved = x.permuted([0, *chosen.axes, *others])
    return view(moved, [x.shape[0], -1, *[x.shape[dim] for dim in others]])


def _flat_index(x: Rows, index: Rows) -> tuple[Rows, list[int]]:
    """An index of each row with one axis, and the axes of x behind it; and the axes that it had."""
    shape = list(index.shape[1:])
    flat = view(index.expanded([x.shape[0], *shape]), [x.shape[0], math.prod(shape)])
    while flat.rank < x.rank:
        flat = unsqueeze(flat, flat.rank)
    return flat.expanded([*flat.shape[:2], *x.shape[2:]]), shape


def _summed(dim: int, index: Rows, source: Rows | float, places: Rows) -> Rows:
    """For each of n places along an axis the sum of the numbers that are put there."""
    index = transpose(index, dim, -1)
    at = unsqueeze(index, index.rank - 1), unsqueeze(places, 1)
    if isinstance(source, Rows):
        source = unsqueeze(transpose(source, dim, -1), index.rank - 1)
    return transpose(index.contracted("select", *at, source), dim, -1)


def _hold_alike(x: Rows, index: Rows, dim: int) -> int:
    """Refuse places for a part of the other axes; return the axis."""
    (dim,) = x.dims(dim)
    others = [size for d, size in enumerate(x.shape) if d != dim]
    if index.rank != x.rank or others != [s for d, s in enumerate(index.shape) if d != dim]:
        raise Refused("chooses in a part of a tensor by {op}{line}")
    return dim


INFINITE, NAN = 1.0, 2.0
"""What stands for infinity and for NaN in a table of kinds, in which finite numbers are 0."""


def looked_up(table: Rows, kinds: Rows, index: Rows, places: Rows) -> Rows:
    """Rows of a table that is the same for the whole batch: a product with ones at the places.

    Args:
        table: its finite numbers, and zeros.
        kinds: what the others are.
        index: the places.
        places: all places.
    """
    chosen = eq(unsqueeze(index, index.rank), places)  # (..., n)
    kind = stop(_multiplied(chosen, kinds))
    return where(eq(kind, 0.0), _multiplied(chosen, table), _of_kind(kind))


def chosen_alike(x: Rows, dim: int, columns: Rows) -> Rows:
    """What an index that is the same for all rows chooses along an axis: likewise by a product.

    Args:
        x: what is chosen from.
        dim: the axis.
        columns: those of the unit matrix that are chosen.
    """
    is_finite = eq(x - x, 0.0)
    kinds = where(is_finite, 0.0, where(is_nan(x), NAN, sign(x)))
    kind = chosen_by(stop(kinds), dim, columns)
    finite = chosen_by(replace(x, where(is_finite, x, 0.0)), dim, columns)
    return replace(finite, where(eq(kind, 0.0), finite, _of_kind(kind)))


def chosen_at(x: Rows, places: Places) -> Rows:
    """What stands at known places of axes side by side."""
    flat, (before, behind) = _side_by_side(x, places)
    return view(taken(flat, places.first, places.places), [*before, *places.shape, *behind])


def put_at(x: Rows, places: Places, values: Rows, *, adds: bool) -> Rows:
    """Numbers put at known places of axes side by side, or added there; no place is named twice."""
    if len(set(places.places)) < len(places.places):
        raise Refused("puts several numbers in at places that may be the same in {op}{line}")
    flat, (before, behind) = _side_by_side(x, places)
    values = values.expanded([*before, *places.shape, *behind])
    values = view(values, [*before, len(places.places), *behind])
    if adds:
        values = taken(flat, places.first, places.places) + values
    return view(put_in(flat, places.first, places.places, values), x.shape)


def _side_by_side(x: Rows, places: Places) -> tuple[Rows, tuple[list[int], list[int]]]:
    """Axes side by side as one, and the sizes of those before and behind them."""
    end = places.first + places.count
    before, behind = list(x.shape[: places.first]), list(x.shape[end:])
    size = math.prod(x.shape[places.first : end])
    return view(x, [*before, size, *behind]), (before, behind)


def put_alike(x: Rows, dim: int, columns: Rows, last: Rows, values: Rows) -> Rows:
    """Numbers put along an axis where an index says that is the same for all rows.

    Args:
        x: what they are put into.
        dim: the axis.
        columns: the columns of the unit matrix at these places.
        last: the same, of equal columns only the last: where several numbers are put, it is the last that
            stays, and they all get the gradient, as torch has it.
        values: the numbers.
    """
    there = replace(
        chosen_alike(values, dim, transpose(columns, 0, 1)),
        chosen_alike(stop(values), dim, transpose(last, 0, 1)),
    )
    return where(_along(amax(columns, 1), x.rank, dim), there, x)


def added_alike(x: Rows, dim: int, columns: Rows, values: Rows) -> Rows:
    """Numbers added likewise."""
    return x + chosen_alike(values, dim, transpose(columns, 0, 1))


def _of_kind(kind: Rows) -> Rows:
    """The number that is not finite, of its kind."""
    return where(eq(kind, INFINITE), math.inf, where(eq(kind, -INFINITE), -math.inf, math.nan))


def _multiplied(chosen: Rows, table: Rows) -> Rows:
    """Axes (..., n) times a table (n, ...)."""
    flat: Axis = tuple(factor for axis in chosen.axes[:-1] for factor in axis)
    matrix = view(table, (table.shape[0], -1))
    out = bmm(chosen.with_axes(((), flat, chosen.axes[-1])), unsqueeze(matrix, 0))
    shape = *chosen.shape[:-1], *table.shape[1:]
    return out.with_axes(regroup(out.axes[1:], shape, table.batch))


def _along(places: Rows, rank: int, dim: int) -> Rows:
    """The places along one axis of several."""
    return places.with_axes((places.axes[0], *((),) * (rank - dim - 1)))
