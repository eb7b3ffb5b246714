"""The axes of a tensor of a traced step, batch axis and all.

A tensor of the trace has one entry of each kind for every row of the batch, and its batch axis may be
anywhere, or merged with another one: ``view(B * n, k)``, ``h.t()``, ``permute(1, 0, 2)``. Each axis is
therefore a sequence of factors, outermost first, of which one in the whole tensor is the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Factor = tuple[int, int]
"""A size, and the stride in the row's numbers."""

BATCH: Factor = (-1, 0)

Axis = tuple[Factor, ...]
"""An axis of size 1 has no factors."""


class DoesNotFit(Exception):  # noqa: N818 - says that a layout cannot be had without a copy
    """Axes cannot be split as asked."""


def axis_size(axis: Axis, rows: int) -> int:
    """The size of an axis in the trace."""
    return prod(rows if factor == BATCH else factor[0] for factor in axis)


def collapsed(factors: Sequence[Factor]) -> list[Factor]:
    """Merge neighbours that step through memory as one."""
    out: list[Factor] = []
    for factor in factors:
        if out and factor != BATCH and out[-1] != BATCH and out[-1][1] == factor[0] * factor[1]:
            out[-1] = (out[-1][0] * factor[0], factor[1])
        else:
            out.append(factor)
    return out


def refined(axes: Sequence[Axis]) -> list[int]:
    """The sizes into which all of these axes, of one total size, can be split; -1 is the batch."""
    sizes = [size for size, _ in axes[0]]
    for axis in axes[1:]:
        left, right, out = list(sizes), [size for size, _ in axis], []
        while left and right:
            a, b = left.pop(), right.pop()
            if a == b:
                out.append(a)
            elif -1 in (a, b) or max(a, b) % min(a, b):
                raise DoesNotFit
            else:
                out.append(min(a, b))
                (left if a > b else right).append(max(a, b) // min(a, b))
        if left or right:
            raise DoesNotFit
        sizes = out[::-1]
    return sizes


def split_axis(axis: Axis, sizes: Sequence[int]) -> Axis:
    """Split the factors of an axis into these sizes."""
    rest, out = list(axis), []
    for wanted in reversed(sizes):
        size, stride = rest.pop()
        if size != wanted:
            if -1 in (size, wanted) or size % wanted:
                raise DoesNotFit
            rest.append((size // wanted, stride * wanted))
        out.append((wanted, stride))
    return tuple(reversed(out))


def regroup(axes: Sequence[Axis], shape: Sequence[int], rows: int) -> tuple[Axis, ...]:
    """The axes of a view of another shape.

    Raises:
        DoesNotFit: it cannot be a view.
    """
    rest = collapsed([factor for axis in axes for factor in axis])
    out: list[Axis] = []
    for size in reversed(shape):
        axis: list[Factor] = []
        while size > 1:
            if not rest:
                raise DoesNotFit
            factor = rest.pop()
            length = rows if factor == BATCH else factor[0]
            if size % length == 0:
                axis.append(factor)
                size //= length
            elif factor != BATCH and length % size == 0:
                axis.append((size, factor[1]))
                rest.append((length // size, factor[1] * size))
                size = 1
            else:
                raise DoesNotFit
        out.append(tuple(reversed(axis)))
    return tuple(reversed(out))


def contiguous_axes(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The same axes over numbers laid out one after the other."""
    stride = prod(factor[0] for axis in axes for factor in axis if factor != BATCH)
    out = []
    for axis in axes:
        factors = []
        for factor in axis:
            if factor == BATCH:
                factors.append(BATCH)
            else:
                stride //= factor[0]
                factors.append((factor[0], stride))
        out.append(tuple(factors))
    return tuple(out)


def repeated_axis(size: int, rows: int) -> Axis:
    """An axis along which nothing changes; a size that `rows` divides counts rows."""
    if size == rows:
        return (BATCH,)
    if size % rows == 0 and size:
        return (BATCH, (size // rows, 0))
    return () if size == 1 else ((size, 0),)


def axes_of(shape: Sequence[int], rows: int) -> tuple[Axis, ...]:
    """The axes of a contiguous tensor of the trace; a size that `rows` divides counts rows.

    Raises:
        DoesNotFit: rows and features are merged in one axis of an unknown order.
    """
    axes = [repeated_axis(size, rows) for size in shape]
    if any(BATCH in axis and len(axis) > 1 for axis in axes):
        raise DoesNotFit
    return contiguous_axes(axes)
