"""Operations that look at their operand in another way, or put tensors together: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod

import torch

from cello.compile.arithmetic import stop
from cello.compile.instructions import Piece, strides_of
from cello.compile.lower.arguments import Result
from cello.compile.lower.axes import (
    BATCH,
    Axis,
    DoesNotFit,
    contiguous_axes,
    refined,
    regroup,
    repeated_axis,
    split_axis,
)
from cello.compile.lower.pointwise import truth
from cello.compile.lower.rows import Dims, Refused, Rows


def same(x: Rows) -> Rows:
    return x


def to_copy(x: Rows, *, result: Result) -> Rows:
    return truth(x) if result.dtype == torch.bool else x


def copy(x: Rows, source: Rows, *, result: Result) -> Rows:
    return to_copy(source, result=result).expanded(x.shape)


# Shapes


def view(x: Rows, shape: Sequence[int] | torch.dtype) -> Rows:
    if isinstance(shape, torch.dtype):
        raise Refused("looks at the bits of numbers with {op}{line}")
    if -1 in shape:
        known = prod(size for size in shape if size != -1)
        shape = [prod(x.shape) // known if size == -1 else size for size in shape]
    try:
        return x.with_axes(regroup(x.axes, shape, x.batch))
    except DoesNotFit:
        x = x.copied()
        return x.with_axes(regroup(x.axes, shape, x.batch))


def expand(x: Rows, shape: Sequence[int], implicit: bool = False) -> Rows:
    return x.expanded(shape)


def permute(x: Rows, dims: Sequence[int]) -> Rows:
    return x.permuted(x.dims(dims))


def transpose(x: Rows, a: int, b: int) -> Rows:
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return x.permuted(order)


def t(x: Rows) -> Rows:
    return x.permuted(range(x.rank)[::-1])


def unsqueeze(x: Rows, dim: int) -> Rows:
    dim %= x.rank + 1
    return x.with_axes((*x.axes[:dim], (), *x.axes[dim:]))


def squeeze(x: Rows, dims: Dims = None) -> Rows:
    chosen = x.dims(dims)
    return x.with_axes([axis for dim, axis in enumerate(x.axes) if dim not in chosen or axis])


def repeat(x: Rows, repeats: Sequence[int]) -> Rows:
    axes = ((),) * (len(repeats) - x.rank) + x.axes
    pairs = zip(axes, repeats, strict=True)
    return x.with_axes([(*repeated_axis(count, x.batch), *axis) for axis, count in pairs])


# Parts


def slice_(
    x: Rows, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Rows:
    (dim,) = x.dims(dim)
    first, last, _ = slice(start, end, step).indices(x.shape[dim])
    length = max(0, -(-(last - first) // step))
    if length == x.shape[dim] and step == 1:
        return x
    if length == 0:
        raise Refused("slices nothing out of a tensor{line}")
    return x.part(dim, first, length, step)


def select(x: Rows, dim: int, index: int) -> Rows:
    (dim,) = x.dims(dim)
    x, size, stride = x.with_one_factor(dim)
    return x.with_axes((*x.axes[:dim], *x.axes[dim + 1 :]), (index % size) * stride)


def split(x: Rows, sizes: int | Sequence[int], dim: int = 0, *, result: Result) -> Rows:
    (dim,) = x.dims(dim)
    size = x.shape[dim]
    widths = [min(sizes, size)] * size if isinstance(sizes, int) else list(sizes)
    start = sum(widths[: result.index])
    return x.part(dim, start, min(widths[result.index], size - start))


def unbind(x: Rows, dim: int = 0, *, result: Result) -> Rows:
    return select(x, dim, result.index)


def flip(x: Rows, dims: Sequence[int]) -> Rows:
    for dim in x.dims(dims):
        x, size, stride = x.with_one_factor(dim)
        if size > 1:
            x = x.with_axis(dim, ((size, -stride),), (size - 1) * stride)
    return x


def diagonal(x: Rows, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Rows:
    a, b = x.dims([dim1])[0], x.dims([dim2])[0]
    x = x.with_one_factor(a)[0].with_one_factor(b)[0]
    (_, high, down), (_, wide, right) = x.with_one_factor(a), x.with_one_factor(b)
    length = min(high + min(offset, 0), wide - max(offset, 0))
    if length <= 0:
        raise Refused
    start = max(offset, 0) * right + max(-offset, 0) * down
    rest = [axis for dim, axis in enumerate(x.axes) if dim not in (a, b)]
    return x.with_axes((*rest, _axis(length, down + right)), start)


def unfold(x: Rows, dim: int, size: int, step: int) -> Rows:
    (dim,) = x.dims([dim])
    count = (x.shape[dim] - size) // step + 1
    # Windows may overlap, which no view of a value does.
    return stack([x.part(dim, k, count, step) for k in range(size)], x.rank)


def rot90(x: Rows, k: int = 1, dims: Sequence[int] = (0, 1)) -> Rows:
    a, b = dims
    if k % 2 == 0:
        return flip(x, dims) if k % 4 else x
    return transpose(flip(x, [b if k % 4 == 1 else a]), a, b)


def _axis(size: int, stride: int) -> Axis:
    return () if size == 1 else ((size, stride),)


def _strides(axes: Sequence[Axis]) -> tuple[int, ...]:
    """Of all their factors but the batch."""
    return tuple(factor[1] for axis in axes for factor in axis if factor != BATCH)


# Parts put together


def diag_embed(x: Rows, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Rows:
    x, count, _ = x.with_one_factor(x.rank - 1)
    size = count + abs(offset)
    axes = contiguous_axes([*x.axes[:-1], _axis(size, 0), _axis(size, 0)])
    start = max(offset, 0) + max(-offset, 0) * size
    targets = (*_strides(axes[:-2]), *_strides([_axis(count, size + 1)]))
    made = _assembled(x, axes, [Piece(x.block, x.ref, start, targets)])
    a, b = made.dims([dim1])[0], made.dims([dim2])[0]
    order = list(range(made.rank - 2))
    for place, axis in sorted([(a, made.rank - 2), (b, made.rank - 1)]):
        order.insert(place, axis)
    return made.permuted(order)


def tril(x: Rows, diagonal: int = 0) -> Rows:
    return _triangle(x, lambda i, wide: (0, min(max(i + diagonal + 1, 0), wide)))


def triu(x: Rows, diagonal: int = 0) -> Rows:
    return _triangle(x, lambda i, wide: (min(max(i + diagonal, 0), wide), wide))


def _triangle(x: Rows, kept: Callable[[int, int], tuple[int, int]]) -> Rows:
    """What is kept of each row of a matrix, from one column to another, and zeros."""
    x = x.with_one_factor(x.rank - 2)[0].with_one_factor(x.rank - 1)[0]
    high, wide = x.shape[-2:]
    axes = contiguous_axes([*x.axes[:-2], _axis(high, 0), _axis(wide, 0)])
    pieces = []
    for i in range(high):
        first, end = kept(i, wide)
        if first < end:
            part = x.part(x.rank - 2, i, 1).part(x.rank - 1, first, end - first)
            targets = (*_strides(axes[:-2]), *_strides([_axis(end - first, 1)]))
            pieces.append(Piece(part.block, part.ref, i * wide + first, targets))
    return _assembled(x, axes, pieces) if pieces else x.full(0.0, x.shape)


def cat(tensors: Sequence[Rows], dim: int = 0) -> Rows:
    tensors = [x for x in tensors if x.shape != (0,)]
    first = tensors[0]
    (dim,) = first.dims(dim)
    if any(BATCH in x.axes[dim] for x in tensors):
        raise DoesNotFit
    ends = list(accumulate(x.shape[dim] for x in tensors))
    starts = [0, *ends[:-1]]
    return _put(dim, ends[-1], [(x, start, 1) for x, start in zip(tensors, starts, strict=True)])


def _put(dim: int, size: int, parts: Sequence[tuple[Rows, int, int]]) -> Rows:
    """Tensors side by side in an axis of this size, each from a place on, at every so many places."""
    first = parts[0][0]
    tensors = [x for x, _, _ in parts]
    shape = [*first.shape[:dim], size, *first.shape[dim + 1 :]]
    wide: list[Axis] = [((n, 0),) if n > 1 else () for n in shape]
    for d in range(first.rank):
        # Rows and features in one axis are put together in one order.
        given = [x.axes[d] for x in tensors if x.axes[d]]
        if any(BATCH in axis for axis in given):
            sizes = refined(given)
            wide[d] = tuple([BATCH if n == -1 else (n, 0) for n in sizes])
            tensors = [x.with_axis(d, split_axis(x.axes[d], sizes)) for x in tensors]
    axes = contiguous_axes(wide)
    step = axes[dim][0][1] if axes[dim] else 1
    pieces = []
    for x, (_, start, every) in zip(tensors, parts, strict=True):
        block: list[int] = []
        targets: list[int] = []
        for d, axis in enumerate(x.axes):
            factors = [factor for factor in axis if factor != BATCH]
            block += [n for n, _ in factors]
            if BATCH in axis:
                targets += [stride for _, stride in axes[d] if stride]
            else:  # the target's one stride, over the factors of the source
                stride = (axes[d][0][1] if axes[d] else step) * (every if d == dim else 1)
                targets += [stride * n for n in strides_of(tuple([n for n, _ in factors]))]
        pieces.append(Piece(tuple(block), x.ref, start * step, tuple(targets)))
    return _assembled(first, axes, pieces)


def _assembled(x: Rows, axes: Sequence[Axis], pieces: Sequence[Piece]) -> Rows:
    """Pieces put together; zero between them."""
    width = prod(factor[0] for axis in axes for factor in axis if factor != BATCH)
    return replace(x, value=x.build.assemble(width, pieces), offset=0, axes=tuple(axes))


def taken(x: Rows, dim: int, places: Sequence[int]) -> Rows:
    """What stands along an axis at places that are known."""
    return cat([x.part(dim, first, count) for first, count in _runs(places)], dim)


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places that follow each other: the first, and how many there are."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and sum(runs[-1]) == place:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((place, 1))
    return runs


def put_in(x: Rows, dim: int, index: Sequence[int], values: Rows) -> Rows:
    """Numbers put along an axis at places that are known, of which none is named twice."""
    source = [(x, place) for place in range(x.shape[dim])]
    for number, place in enumerate(index):
        source[place] = values, number
    runs: list[tuple[Rows, int, int]] = []  # parts of both, one behind the other
    for part, place in source:
        if runs and runs[-1][0] is part and runs[-1][1] + runs[-1][2] == place:
            runs[-1] = part, runs[-1][1], runs[-1][2] + 1
        else:
            runs.append((part, place, 1))
    return cat([part.part(dim, first, count) for part, first, count in runs], dim)


def diagonal_scatter(x: Rows, source: Rows, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Rows:
    a, b = x.dims([dim1])[0], x.dims([dim2])[0]
    if any(BATCH in x.axes[dim] for dim in (a, b)):
        raise DoesNotFit
    order = [*(dim for dim in range(x.rank) if dim not in (a, b)), a, b]
    turned = x.permuted(order)
    high, wide = turned.shape[-2:]
    length = min(high + min(offset, 0), wide - max(offset, 0))
    places = [(i + max(-offset, 0)) * wide + i + max(offset, 0) for i in range(length)]
    flat = view(turned, [*turned.shape[:-2], high * wide])
    source = source.expanded([*flat.shape[:-1], length])
    made = view(put_in(flat, flat.rank - 1, places, source), turned.shape)
    return made.permuted([order.index(dim) for dim in range(x.rank)])


def stack(tensors: Sequence[Rows], dim: int = 0) -> Rows:
    return cat([unsqueeze(x, dim) for x in tensors], dim)


def slice_scatter(
    x: Rows,
    source: Rows,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Rows:
    (dim,) = x.dims(dim)
    size = x.shape[dim]
    first, last, _ = slice(start, end, step).indices(size)
    shape = [*x.shape[:dim], max(0, last - first), *x.shape[dim + 1 :]]
    if first == 0 and last == size and step == 1:
        return source.expanded(shape)
    count = max(0, -(-(last - first) // step))
    shape[dim] = count
    if not count:
        return x
    parts = [(source.expanded(shape), first, step)]
    for rest in range(step):
        # Of the places that leave this rest, those before and behind the ones that are written.
        here = range(rest, size, step)
        taken = range(first, first + count * step, step) if rest == first % step else range(0)
        for places in (
            (range(rest, taken.start, step), range(taken.stop, size, step)) if taken else (here,)
        ):
            if places:
                parts.append((x.part(dim, places[0], len(places), step), places[0], step))
    return _put(dim, size, parts)


def select_scatter(x: Rows, source: Rows, dim: int, index: int) -> Rows:
    (dim,) = x.dims(dim)
    index %= x.shape[dim]
    return slice_scatter(x, unsqueeze(source, dim), dim, index, index + 1)


def constant_pad_nd(x: Rows, pad: Sequence[int], value: float = 0.0) -> Rows:
    for k in range(0, len(pad), 2):  # a negative width takes away
        dim, cut, end = x.rank - 1 - k // 2, max(-pad[k], 0), max(-pad[k + 1], 0)
        if cut or end:
            length = x.shape[dim] - cut - end
            if length <= 0:
                raise Refused
            x = x.part(dim, cut, length)
    for dim, *widths in _sides(x, [max(width, 0) for width in pad]):
        before, after = (
            [x.full(value, [*x.shape[:dim], width, *x.shape[dim + 1 :]])] if width else []
            for width in widths
        )
        x = cat([*before, x, *after], dim)
    return x


def replication_pad(x: Rows, padding: Sequence[int]) -> Rows:
    for dim, before, after in _sides(x, padding):
        ends = (x.part(dim, 0, 1), before), (x.part(dim, x.shape[dim] - 1, 1), after)
        front, behind = (
            [end.expanded([*x.shape[:dim], count, *x.shape[dim + 1 :]])] if count else []
            for end, count in ends
        )
        x = cat([*front, x, *behind], dim)
    return x


def reflection_pad(x: Rows, padding: Sequence[int]) -> Rows:
    for dim, before, after in _sides(x, padding):
        front = [flip(x.part(dim, 1, before), [dim])] if before else []
        behind = [flip(x.part(dim, x.shape[dim] - 1 - after, after), [dim])] if after else []
        x = cat([*front, x, *behind], dim)
    return x


def _sides(x: Rows, padding: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The axes, the last one first, with what is put in front and behind."""
    for k in range(0, len(padding), 2):
        before, after = padding[k], padding[k + 1]
        if min(before, after) < 0:
            raise Refused
        if before or after:
            yield x.rank - 1 - k // 2, before, after


def roll(x: Rows, shifts: Sequence[int], dims: Sequence[int] = ()) -> Rows:
    if len(shifts) != len(dims):
        raise Refused
    for shift, dim in zip(shifts, x.dims(dims), strict=True):
        size = x.shape[dim]
        cut = -shift % size
        if cut:
            x = cat([x.part(dim, cut, size - cut), x.part(dim, 0, cut)], dim)
    return x


VIEWS: dict[str, Callable[..., Rows]] = {
    "alias": same,
    "clone": same,
    "lift_fresh": same,
    "detach": stop,
    "_to_copy": to_copy,
    "copy": copy,
    "view": view,
    "_unsafe_view": view,
    "expand": expand,
    "permute": permute,
    "transpose": transpose,
    "t": t,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "repeat": repeat,
    "slice": slice_,
    "select": select,
    "split": split,
    "split_with_sizes": split,
    "unsafe_split": split,
    "unsafe_split_with_sizes": split,
    "unbind": unbind,
    "flip": flip,
    "rot90": rot90,
    "diagonal": diagonal,
    "unfold": unfold,
    "diag_embed": diag_embed,
    "tril": tril,
    "triu": triu,
    "roll": roll,
    "cat": cat,
    "stack": stack,
    "slice_scatter": slice_scatter,
    "select_scatter": select_scatter,
    "diagonal_scatter": diagonal_scatter,
    "constant_pad_nd": constant_pad_nd,
    **{f"replication_pad{n}d": replication_pad for n in (1, 2, 3)},
    **{f"reflection_pad{n}d": reflection_pad for n in (1, 2, 3)},
}
