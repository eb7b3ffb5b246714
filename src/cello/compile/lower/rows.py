"""Tensors of a traced step as views of values, and what can be computed with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from cello.compile.arithmetic import Numbers
from cello.compile.build import Builder
from cello.compile.instructions import Ref, Value, strides_of
from cello.compile.lower.axes import (
    BATCH,
    Axis,
    DoesNotFit,
    Factor,
    axis_size,
    collapsed,
    contiguous_axes,
    refined,
    repeated_axis,
    split_axis,
)

WIDEST = 1 << 18
"""How many numbers a value may hold for each row."""

Dims = int | Sequence[int] | None
"""Axes as torch names them: one, several, or all of them."""


class Refused(Exception):  # noqa: N818 - an answer, not a failure: another engine runs the cell
    """An operation is used in a way that is not in the instruction set.

    Args:
        why: what the cell does, as a sentence without its subject; ``{op}`` and ``{line}`` stand for the
            name of the operation and the line that asked for it. Empty where the name says it all.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why

    def told(self, op: str, line: str) -> str:
        """What the cell does, with the name of the operation and its line."""
        return self.why.replace("{op}", op).replace("{line}", line)


@dataclass(frozen=True, eq=False)
class Rows(Numbers):
    """A tensor of a traced step.

    Attributes:
        value: where its numbers lie.
        offset: the first of them.
        axes: how to step through them.
        build: writes the instructions of what is computed with it.
        batch: the size by which the trace knows the batch.
    """

    value: Value
    offset: int
    axes: tuple[Axis, ...]
    build: Builder
    batch: int

    def __post_init__(self) -> None:
        if sum(BATCH in axis for axis in self.axes) > 1:  # numbers for pairs of rows
            raise DoesNotFit

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes in the trace."""
        return tuple(axis_size(axis, self.batch) for axis in self.axes)

    @property
    def has_batch(self) -> bool:
        """Whether there is an entry for each row of the batch."""
        return any(BATCH in axis for axis in self.axes)

    @property
    def has_split_axis(self) -> bool:
        """Whether features of one axis lie in memory as if they had several."""
        return any(len([f for f in collapsed(axis) if f != BATCH]) > 1 for axis in self.axes)

    @property
    def features(self) -> list[Factor]:
        """All factors but the batch."""
        return [factor for axis in self.axes for factor in axis if factor != BATCH]

    @property
    def block(self) -> tuple[int, ...]:
        """The sizes of `features`: the shape of what one row has."""
        return tuple(size for size, _ in self.features)

    @property
    def ref(self) -> Ref:
        """The block of numbers that a row has."""
        return Ref(self.value, self.offset, tuple(stride for _, stride in self.features))

    # The same numbers, seen in another way

    def with_axes(self, axes: Sequence[Axis], offset: int = 0) -> Rows:
        """Other axes, from `offset` numbers further on."""
        return replace(self, axes=tuple(axes), offset=self.offset + offset)

    def with_axis(self, dim: int, factors: Axis, offset: int = 0) -> Rows:
        """Another axis in the place of one, from `offset` numbers further on."""
        return self.with_axes((*self.axes[:dim], factors, *self.axes[dim + 1 :]), offset)

    def permuted(self, order: Sequence[int]) -> Rows:
        """The axes in another order."""
        return self.with_axes([self.axes[dim] for dim in order])

    def expanded(self, shape: Sequence[int]) -> Rows:
        """Axes of size 1 repeated, and new ones in front; -1 leaves an axis as it is."""
        axes = ((),) * (len(shape) - self.rank) + self.axes
        pairs = zip(axes, shape, strict=True)
        return self.with_axes(
            [a if a or size == -1 else repeated_axis(size, self.batch) for a, size in pairs]
        )

    def dims(self, dims: Dims) -> list[int]:
        """The positions of axes, counted from the front; all of them for ``None`` and for an empty list."""
        if isinstance(dims, int):
            dims = [dims]
        if not dims:
            return list(range(self.rank))
        return [dim % max(self.rank, 1) for dim in dims]  # torch takes 0 and -1 of a single number

    def with_one_factor(self, dim: int) -> tuple[Rows, int, int]:
        """The tensor with an axis of features as one factor, copied if need be; its size and stride.

        Raises:
            DoesNotFit: the axis holds the batch.
        """
        factors = collapsed(self.axes[dim])
        if not factors:
            return self, 1, 0
        if BATCH in factors:
            raise DoesNotFit
        x = self if len(factors) == 1 else self.copied()
        (factor,) = collapsed(x.axes[dim])
        return x.with_axis(dim, (factor,)), *factor

    def part(self, dim: int, start: int, length: int, step: int = 1) -> Rows:
        """A range of an axis of features."""
        x, size, stride = self.with_one_factor(dim)
        if length == size and step == 1:
            return x
        factors: Axis = () if length == 1 else ((length, stride * step),)
        return x.with_axis(dim, factors, start * stride)

    # Other numbers

    def full(self, number: float, shape: Sequence[int]) -> Rows:
        """A number in every place of a tensor of this shape."""
        return full(self.build, self.batch, number, shape)

    def copied(self) -> Rows:
        """The same tensor, without gaps in memory."""
        ref = self.build.contiguous(self.ref, self.block)
        return replace(self, value=ref.value, offset=ref.offset, axes=contiguous_axes(self.axes))

    def apply(self, op: str, *operands: Rows | float) -> Rows:
        """An instruction for each element, with broadcasting."""
        axes, shape, aligned = align([o for o in operands if isinstance(o, Rows)])
        hold_width(shape)
        refs = iter(aligned)
        args = [next(refs) if isinstance(o, Rows) else float(o) for o in operands]
        ref = self.build.pointwise(op, shape, *args)
        if ref.strides == strides_of(shape):
            return replace(self, value=ref.value, offset=ref.offset, axes=contiguous_axes(axes))
        return self._over(ref, axes)

    def reduced(self, op: str, dims: Dims, keepdim: bool) -> Rows:
        """A sum or an extremum over axes of features."""
        gone = self.dims(dims)
        if any(BATCH in self.axes[dim] for dim in gone):
            raise Refused("mixes the rows of a batch in {op}{line}")
        inner = collapsed([f for dim in gone for f in self.axes[dim]])
        kept = [() if dim in gone else axis for dim, axis in enumerate(self.axes)]
        outer = [f for axis in kept for f in axis if f != BATCH]
        ref = Ref(self.value, self.offset, tuple(stride for _, stride in (*outer, *inner)))
        shape = tuple(size for size, _ in (*outer, *inner))
        while len(shape) > len(outer):
            ref = self.build.reduce(op, shape, ref)
            shape = shape[:-1]
        if not keepdim:
            kept = [axis for dim, axis in enumerate(kept) if dim not in gone]
        return self._over(ref, kept)

    def contracted(self, op: str, *operands: Rows | float) -> Rows:
        """A reduction of several tensors, with broadcasting, over their last axis."""
        if any(BATCH in o.axes[-1] for o in operands if isinstance(o, Rows)):
            raise Refused("mixes the rows of a batch in {op}{line}")
        given = [o.with_one_factor(o.rank - 1)[0] if isinstance(o, Rows) else o for o in operands]
        axes, shape, aligned = align([o for o in given if isinstance(o, Rows)])
        if not axes[-1]:
            shape, aligned = (*shape, 1), [r._replace(strides=(*r.strides, 0)) for r in aligned]
        hold_width(shape[:-1])
        refs = iter(aligned)
        args = [next(refs) if isinstance(o, Rows) else o for o in given]
        return self._over(self.build.reduce(op, shape, *args), axes[:-1])

    def _over(self, ref: Ref, axes: Sequence[Axis]) -> Rows:
        """A result whose features lie as `ref` says."""
        steps = iter(ref.strides)
        return replace(
            self,
            value=ref.value,
            offset=ref.offset,
            axes=tuple(
                tuple(f if f == BATCH else (f[0], next(steps)) for f in axis) for axis in axes
            ),
        )


Operand = Rows | float


def align(tensors: Sequence[Rows]) -> tuple[list[Axis], tuple[int, ...], list[Ref]]:
    """Broadcast tensors against each other.

    Returns:
        The axes that they have in common, the shape of what one row has, and each as a block of it.

    Raises:
        DoesNotFit: they cannot be broadcast, or hold their numbers in orders that do not meet.
    """
    rank = max(t.rank for t in tensors)
    padded = [t.with_axes(((),) * (rank - t.rank) + t.axes) for t in tensors]
    if not _meet(padded):
        padded = [t.copied() if t.has_split_axis else t for t in padded]
        padded = [t.with_axes(tuple(tuple(collapsed(axis)) for axis in t.axes)) for t in padded]
    axes: list[Axis] = []
    strides: list[list[int]] = [[] for _ in padded]
    for position in range(rank):
        here = [t.axes[position] for t in padded]
        given = [axis for axis in here if axis]
        if len({axis_size(axis, tensors[0].batch) for axis in given}) > 1:
            raise DoesNotFit
        sizes = refined(given) if given else []
        axes.append(tuple(BATCH if size == -1 else (size, 0) for size in sizes))
        for axis, row in zip(here, strides, strict=True):
            split = split_axis(axis, sizes) if axis else ((0, 0),) * len(sizes)
            row += [f[1] for f, size in zip(split, sizes, strict=True) if size != -1]
    shape = tuple(f[0] for axis in axes for f in axis if f != BATCH)
    refs = [Ref(t.value, t.offset, tuple(row)) for t, row in zip(padded, strides, strict=True)]
    return axes, shape, refs


def _meet(tensors: Sequence[Rows]) -> bool:
    """Whether each axis of tensors of one rank can be split into the same sizes in all of them."""
    try:
        for axes in zip(*(t.axes for t in tensors), strict=True):
            if given := [axis for axis in axes if axis]:
                refined(given)
    except DoesNotFit:
        return False
    return True


def hold_width(shape: tuple[int, ...]) -> None:
    """Refuse a value of more numbers than a row may hold."""
    if prod(shape) > WIDEST:
        raise Refused(f"makes {prod(shape)} numbers for each row{{line}}")


def full(build: Builder, batch: int, number: float, shape: Sequence[int]) -> Rows:
    """A number in every place of a tensor of this shape."""
    axes = tuple(repeated_axis(size, batch) for size in shape)
    return Rows(build.constant(number, ()).value, 0, axes, build, batch)
