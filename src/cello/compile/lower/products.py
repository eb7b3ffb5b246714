"""Matrix products: with static matrices an instruction of their own, else sums of products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product as combinations
from math import prod
from typing import NamedTuple

import torch

from cello.compile.arithmetic import copy
from cello.compile.instructions import Kind, Term, strides_of
from cello.compile.lower.axes import (
    BATCH,
    Axis,
    DoesNotFit,
    Factor,
    axis_size,
    collapsed,
    regroup,
)
from cello.compile.lower.rows import Rows
from cello.compile.lower.views import unsqueeze, view
from cello.compile.node import Node


def bmm(a: Rows, b: Rows) -> Rows:
    """Axes (P, M, K) times (P, K, N)."""
    once = Kind.STATIC, Kind.CONSTANT
    if a.value.kind in once and b.value.kind in once:
        # Both are the same for all rows: of a constant with as many rows as the batch each has its own.
        if b.has_batch and not a.has_batch:
            b = copy(b)
        else:
            a = copy(a)
    if Kind.CONSTANT in (a.value.kind, b.value.kind):
        return _times_constant(a, b)
    if b.value.kind is Kind.STATIC:
        return _times_static(a, b)
    if a.value.kind is Kind.STATIC:
        return _times_static(b.permuted((0, 2, 1)), a.permuted((0, 2, 1))).permuted((0, 2, 1))
    return _times_rows(a, b)


def mm(a: Rows, b: Rows) -> Rows:
    out = bmm(unsqueeze(a, 0), unsqueeze(b, 0))
    return out.with_axes(out.axes[1:])


def mv(a: Rows, b: Rows) -> Rows:
    out = mm(a, unsqueeze(b, 1))
    return out.with_axes(out.axes[:1])


def addmm(c: Rows, a: Rows, b: Rows, beta: float = 1, alpha: float = 1) -> Rows:
    return _scaled_sum(c, mm(a, b), beta, alpha)


def baddbmm(c: Rows, a: Rows, b: Rows, beta: float = 1, alpha: float = 1) -> Rows:
    return _scaled_sum(c, bmm(a, b), beta, alpha)


def _scaled_sum(c: Rows, product: Rows, beta: float, alpha: float) -> Rows:
    product = product if alpha == 1 else product * alpha
    if beta == 0:  # then c does not count, whatever it holds
        return product
    return product + (c if beta == 1 else c * beta)


def trilinear(
    a: Rows,
    b: Rows,
    c: Rows,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    unroll_dim: int = 1,
) -> Rows:
    """The sum over some axes of a * b * c, each with axes of size 1 put in; `unroll_dim` is about speed."""
    for dim in sorted(expand_a):
        a = unsqueeze(a, dim)
    for dim in sorted(expand_b):
        b = unsqueeze(b, dim)
    for dim in sorted(expand_c):
        c = unsqueeze(c, dim)
    pairs = a * c
    if b.value.kind is Kind.STATIC and list(summed) == [2, 3] and pairs.shape[1] == b.shape[0] == 1:
        # The same weights for all rows: the products of all pairs, times a matrix.
        matrix = view(b, [b.shape[1], -1])
        return mm(view(pairs, [pairs.shape[0], -1]), matrix.permuted((1, 0)))
    return (pairs * b).reduced("sum", summed, False)


class _Lead(NamedTuple):
    """An axis of features along which rows are multiplied: its size, and both operands' strides."""

    size: int
    step: int
    w_step: int

    @property
    def is_repeated(self) -> bool:
        """Whether the same is multiplied along it again and again."""
        return not (self.step or self.w_step)


def _times_static(row: Rows, static: Rows) -> Rows:
    """Multiply rows by static matrices.

    Args:
        row: axes (P, R, K): the batch is in P or in R.
        static: axes (P, K, N); its P does not depend on the batch, and may be of size 1.

    Returns:
        Axes (P, R, N).
    """
    row = _with_neighbours(row)
    p_static, k_axis, n_axis = static.axes
    k, n = collapsed(k_axis), collapsed(n_axis)
    if len(k) > 1 or len(n) > 1 or BATCH in k or BATCH in n:
        raise DoesNotFit
    if BATCH in row.axes[1] and BATCH in p_static:
        raise DoesNotFit
    K = axis_size(row.axes[2], row.batch)
    k_stride = k[0][1] if k else 0
    N, n_stride = n[0] if n else (1, 0)
    leads, places = _leads(row, p_static), _places(row, p_static)
    if places is None:
        row = row.copied()
        leads, places = _leads(row, p_static), _places(row, p_static)
    count, row_step = places or (1, 0)
    # Where the matrix is another one, a block of the product has more columns.
    apart = [lead for lead in leads if lead.w_step or (lead.step and places is None)]
    sizes = tuple(lead.size for lead in apart)
    block = prod(sizes) * N
    columns = [step * N for step in strides_of(sizes)]
    terms = []
    for place in combinations(*map(range, sizes)):
        offset = row.offset + sum(i * lead.step for i, lead in zip(place, apart, strict=True))
        w_offset = static.offset + sum(
            i * lead.w_step for i, lead in zip(place, apart, strict=True)
        )
        target = sum(i * step for i, step in zip(place, columns, strict=True))
        where = w_offset, k_stride, n_stride, N, target, row_step
        terms.append(Term(row.value, offset, K, static.value, *where))
    value = row.build.product(count * block, terms, places=count)
    same = tuple(lead.size for lead in leads if lead not in apart and not lead.is_repeated)
    blocks, steps = (step * block for step in strides_of(same)), iter(columns)
    made = iter(
        [
            (lead.size, 0 if lead.is_repeated else next(steps if lead in apart else blocks))
            for lead in leads
        ]
    )
    p_out, r_out = (
        tuple(BATCH if factor == BATCH else next(made) for factor in axis)
        for axis in (row.axes[0] or p_static, row.axes[1])
    )
    return replace(row, value=value, offset=0, axes=(p_out, r_out, () if N == 1 else ((N, 1),)))


def _leads(row: Rows, p_static: Axis) -> list[_Lead]:
    """The axes of features of P and R."""
    p_row, r_axis, _ = row.axes
    leads = [_Lead(size, step, 0) for size, step in r_axis if size != -1]
    found = [f for f in p_row or p_static if f != BATCH]
    p_steps = [f[1] for f in p_row if f != BATCH] or [0] * len(found)
    w_steps = [f[1] for f in p_static if f != BATCH] or [0] * len(found)
    sizes = [size for size, _ in found]
    return [*map(_Lead, sizes, p_steps, w_steps), *leads]


def _places(row: Rows, p_static: Axis) -> Factor | None:
    """How often one matrix is multiplied and the distance in the row; ``None``, if they are several."""
    same = [(size, step) for size, step, w_step in _leads(row, p_static) if step and not w_step]
    factors = collapsed(same) or [(1, 0)]
    return factors[0] if len(factors) == 1 else None


def _with_neighbours(x: Rows) -> Rows:
    """The numbers along the last axis next to each other in memory."""
    factors = collapsed(x.axes[-1])
    if len(factors) == 0 or (len(factors) == 1 and factors[0][1] == 1):
        return x
    return x.copied()


def _times_constant(a: Rows, b: Rows) -> Rows:
    """A product with a matrix of equal numbers: sums of rows, or of columns."""
    if sum(BATCH in axis for axis in (a.axes[0] or b.axes[0], a.axes[1], b.axes[2])) > 1:
        raise DoesNotFit
    is_left = a.value.kind is Kind.CONSTANT
    number, other, along = (a, b, 1) if is_left else (b, a, 2)
    total = other.reduced("sum", along, True) * number.value.number

    def spread(axis: Axis) -> Axis:
        return tuple(f if f == BATCH else (f[0], 0) for f in axis)

    p, m, n = total.axes
    axes = (p or spread(number.axes[0]), spread(a.axes[1]) if is_left else m)
    return total.with_axes((*axes, n if is_left else spread(b.axes[2])))


def _times_rows(a: Rows, b: Rows) -> Rows:
    """A product of two tensors that both differ from row to row."""
    for x in (a, b):
        if BATCH in x.axes[1] or BATCH in x.axes[2]:
            raise DoesNotFit
    left = unsqueeze(a, 2)  # (P, M, 1, K)
    right = unsqueeze(b.permuted((0, 2, 1)), 1)  # (P, 1, N, K)
    return (left * right).reduced("sum", 3, False)


def columns_of(size: int, index: Node, dtype: torch.dtype, *, from_end: bool) -> Node:
    """Columns of the unit matrix of this size, in the order of a static index: computed by torch.

    Args:
        size: the size.
        index: the numbers of the columns.
        dtype: the dtype of the matrix.
        from_end: whether negative numbers count from the end, as in ``h[:, [0, -1]]``; else torch refuses
            them.
    """
    if from_end:
        index = _counted(index, size)
    eye = Node(
        torch.ops.aten.eye.default,
        (size,),
        {"dtype": dtype, "device": torch.device("meta")},
        None,
        (size, size),
        dtype,
    )
    shape = size, index.shape[0]
    return Node(torch.ops.aten.index_select.default, (eye, 1, index), {}, None, shape, dtype)


def last_of(columns: Node) -> Node:
    """Columns of the unit matrix, of equal ones only the last; the others are zeros."""
    aten, kind = torch.ops.aten, (columns.shape, columns.dtype)
    turned = Node(aten.flip.default, (columns, [1]), {}, None, *kind)
    counts = Node(aten.cumsum.default, (turned, 1), {}, None, *kind)
    behind = Node(aten.flip.default, (counts, [1]), {}, None, *kind)
    is_last = Node(aten.eq.Scalar, (behind, 1), {}, None, columns.shape, torch.bool)
    return Node(aten.mul.Tensor, (columns, is_last), {}, None, *kind)


def _counted(index: Node, size: int) -> Node:
    """A static index whose negative numbers are counted from the end."""
    aten, shape = torch.ops.aten, index.shape
    is_negative = Node(aten.lt.Scalar, (index, 0), {}, None, shape, torch.bool)
    ahead = Node(aten.add.Scalar, (index, size), {}, None, shape, index.dtype)
    return Node(aten.where.self, (is_negative, ahead, index), {}, None, shape, index.dtype)


def chosen_by(x: Rows, dim: int, columns: Rows) -> Rows:
    """Features in another order: a product with columns of the unit matrix."""
    x, _, _ = x.with_one_factor(dim)
    order = [d for d in range(x.rank) if d != dim] + [dim]
    moved = x.permuted(order)
    flat: Axis = tuple(factor for axis in moved.axes[:-1] for factor in axis)
    out = _times_static(moved.with_axes(((), flat, moved.axes[-1])), unsqueeze(columns, 0))
    shape = [*moved.shape[:-1], columns.shape[1]]
    back = sorted(range(len(order)), key=lambda place: order[place])
    return out.with_axes(regroup(out.axes, shape, x.batch)).permuted(back)


PRODUCTS: dict[str, Callable[..., Rows]] = {
    "bmm": bmm,
    "mm": mm,
    "mv": mv,
    "addmm": addmm,
    "baddbmm": baddbmm,
    "_trilinear": trilinear,
}
