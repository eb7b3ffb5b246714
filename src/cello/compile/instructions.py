"""The instruction set: what a step of a cell is made of, once it is compiled.

A step works on rows, one for each sequence of the batch. A :class:`Value` is a row's worth of numbers;
every instruction treats all rows alike and none mixes them, so that an engine may split a batch as it
likes. A :class:`Ref` reads a value, or a part of it, with any strides, so that `split`, `slice`,
`transpose` and broadcasting need no instructions. Comparisons give 0 and 1.

There are four instructions: :class:`Pointwise`, :class:`Reduce`, :class:`Assemble` and :class:`Product`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import NamedTuple

import torch


class Kind(Enum):
    """Where a value comes from."""

    INPUT = "input"  # rows of all steps: the layer's input, or what was computed from it beforehand
    STATE = "state"  # carried from step to step
    STATIC = "static"  # the same for all rows and steps: a weight, or computed from weights
    CONSTANT = "constant"  # one number
    COMPUTED = "computed"  # by an instruction of the step


@dataclass(eq=False)
class Value:
    """The numbers of one row, laid out one after the other.

    Attributes:
        kind: where it comes from.
        width: how many numbers a row holds.
        index: which input, state or static it is.
        number: of a constant.
        dtype: of a static that is only multiplied with, its dtype where that is another one than everything
            else is computed in.
    """

    kind: Kind
    width: int
    index: int = 0
    number: float = 0.0
    dtype: torch.dtype | None = None


class Ref(NamedTuple):
    """A view of a value: element (i, j, ...) lies at offset + i * strides[0] + j * strides[1] + ..."""

    value: Value
    offset: int
    strides: tuple[int, ...]


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous block of this shape."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def places_among(
    axes: Iterable[tuple[int, int]], among: Iterable[tuple[int, int]]
) -> list[int] | None:
    """Where each of some axes (stride, size) is among others.

    ``None`` if these are not the same axes in some order, or if there are equal ones.
    """
    given, others = list(axes), list(among)
    if len(set(others)) < len(others) or sorted(given) != sorted(others):
        return None
    return [others.index(axis) for axis in given]


@dataclass(eq=False)
class Instruction:
    """What all instructions have.

    Attributes:
        out: the value that it computes, in full.
        line: the line of the cell that it comes from.
    """

    out: Value
    line: str = field(default="", kw_only=True)

    def reads(self) -> Iterator[Value]:
        """The values that it reads, statics and constants included."""
        raise NotImplementedError


@dataclass(eq=False)
class Pointwise(Instruction):
    """``out[i] = op(args[0][i], args[1][i], ...)`` for every index i of `shape`."""

    op: str
    shape: tuple[int, ...]
    args: tuple[Ref, ...]

    def reads(self) -> Iterator[Value]:
        return (ref.value for ref in self.args)


class Given(NamedTuple):
    """A gradient that a rule gives to a block of a value, which may be broadcast in it."""

    shape: tuple[int, ...]
    target: Ref
    gradient: Ref


@dataclass(eq=False)
class Rule:
    """The gradient of a custom function, as its author wrote it.

    Attributes:
        asked: stands for the gradient of the function's results.
        body: the instructions that read it.
        given: what they make of it.
    """

    asked: Value
    body: list[Instruction] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)

    def reads(self) -> Iterator[Value]:
        """The values of the step that it depends on, and those that it gives gradients to."""
        own = {self.asked, *(instruction.out for instruction in self.body)}
        for instruction in self.body:
            yield from (value for value in instruction.reads() if value not in own)
        for _, target, gradient in self.given:
            yield target.value
            if gradient.value not in own:
                yield gradient.value


@dataclass(eq=False)
class Ruled(Pointwise):
    """A copy of what a custom function returns, with the gradient of its author.

    Only a step has them: its loops have the gradient in their instructions, and plain copies.
    """

    rule: Rule

    def reads(self) -> Iterator[Value]:
        yield from super().reads()
        yield from self.rule.reads()

    def plain(self) -> Pointwise:
        """The copy without the gradient."""
        return Pointwise(self.out, "stop", self.shape, self.args, line=self.line)


@dataclass(eq=False)
class Reduce(Instruction):
    """The sum or extremum over the last axis of `shape`; the axes before it are kept.

    ``dot(a, b)`` is the sum of the products; a loop has it in the place of both, a step does not.
    ``rank(a, b, i, j)`` is the number of b that come before a: that are smaller, or equal and j < i; NaN is
    larger than any number. ``select(a, b, c)`` is the sum of the c where a = b, and -0 where there is none.
    """

    op: str
    shape: tuple[int, ...]
    args: tuple[Ref, ...]

    def reads(self) -> Iterator[Value]:
        return (ref.value for ref in self.args)


class Piece(NamedTuple):
    """A part of a value that is put together: `source`, of this shape, goes to `target` of it."""

    shape: tuple[int, ...]
    source: Ref
    offset: int
    strides: tuple[int, ...]

    @property
    def is_range(self) -> bool:
        """Whether it fills a contiguous range."""
        return self.strides == strides_of(self.shape)


@dataclass(eq=False)
class Assemble(Instruction):
    """A value made of pieces that do not overlap, and of zeros where there is no piece."""

    pieces: tuple[Piece, ...]

    def reads(self) -> Iterator[Value]:
        return (piece.source.value for piece in self.pieces)

    @property
    def has_gaps(self) -> bool:
        """Whether the pieces leave anything out."""
        return sum(prod(piece.shape) for piece in self.pieces) < self.out.width


class Term(NamedTuple):
    """``out[target : target+N] += row @ W``, for the K numbers of `row` from `offset` on.

    W[k, n] is found in the static `weight` at w_offset + k * k_stride + n * n_stride. In a product at
    several places the K numbers of each place begin `row_step` numbers behind those of the place before.
    """

    row: Value
    offset: int
    K: int
    weight: Value
    w_offset: int
    k_stride: int
    n_stride: int
    N: int
    target: int
    row_step: int = 0


@dataclass(eq=False)
class Product(Instruction):
    """A sum of products of rows with static matrices, and of static vectors.

    The numbers of a vector lie next to each other, and every number of the result is that of a product.
    The same sum may be taken at several `places`: then the result consists of as many blocks of equal
    width, one behind the other, and `terms` and `biases` say what each of them is. The places of a term's
    row may overlap, as those of a convolution do.
    """

    terms: tuple[Term, ...]
    biases: tuple[Ref, ...] = ()
    places: int = 1

    @property
    def block(self) -> int:
        """How many numbers the result has at each place."""
        return self.out.width // self.places

    def reads(self) -> Iterator[Value]:
        for bias in self.biases:
            yield bias.value
        for term in self.terms:
            yield term.row
            yield term.weight


class Outer(NamedTuple):
    """A gradient gathered over all rows of all steps: ``dW[k, n] += sum row[k] * gradient[n]``.

    At several places the numbers of each place begin `row_step` and `g_step` numbers behind those of the
    place before, and the sum is over the places as well.
    """

    row: Value
    offset: int
    K: int
    gradient: Value
    g_offset: int
    N: int
    weight: Value
    w_offset: int
    k_stride: int
    n_stride: int
    places: int = 1
    row_step: int = 0
    g_step: int = 0


class RowSum(NamedTuple):
    """A gradient gathered over all rows of all steps: ``dv[...] += sum source[...]``."""

    shape: tuple[int, ...]
    source: Ref
    vector: Value
    offset: int
    strides: tuple[int, ...]


@dataclass
class Loop:
    """What happens at every step, forward or backward in time.

    Attributes:
        inputs: rows of all steps that are read.
        states: carried from step to step.
        statics: read by all steps.
        body: the instructions in order.
        outputs: values of which the rows of all steps are kept.
        new_states: what `states` become.
        outers: gradients of matrices.
        row_sums: gradients of vectors.
    """

    inputs: list[Value]
    states: list[Value]
    statics: list[Value]
    body: list[Instruction]
    outputs: list[Value]
    new_states: list[Value]
    outers: list[Outer] = field(default_factory=list)
    row_sums: list[RowSum] = field(default_factory=list)


def redirect(instruction: Instruction, moved: Callable[[Ref], Ref]) -> None:
    """Make an instruction read other values, in place.

    Args:
        instruction: of any kind.
        moved: for what it reads, what it is to read.
    """
    if isinstance(instruction, Pointwise | Reduce):
        instruction.args = tuple(map(moved, instruction.args))
    elif isinstance(instruction, Assemble):
        pieces = instruction.pieces
        instruction.pieces = tuple([p._replace(source=moved(p.source)) for p in pieces])
    elif isinstance(instruction, Product):
        rows = [moved(Ref(term.row, term.offset, (1,))) for term in instruction.terms]
        pairs = zip(instruction.terms, rows, strict=True)
        instruction.terms = tuple(
            [term._replace(row=row.value, offset=row.offset) for term, row in pairs]
        )


def ranges_read(value: Value, loop: Loop) -> list[tuple[int, int]]:
    """The first number and the end of every part of a value that a loop reads."""
    reads: list[tuple[Ref, tuple[int, ...]]] = []
    for instruction in loop.body:
        if isinstance(instruction, Pointwise | Reduce):
            reads += [(arg, instruction.shape) for arg in instruction.args]
        elif isinstance(instruction, Assemble):
            reads += [(piece.source, piece.shape) for piece in instruction.pieces]
        elif isinstance(instruction, Product):
            places = instruction.places
            reads += [
                (Ref(t.row, t.offset, (t.row_step, 1)), (places, t.K)) for t in instruction.terms
            ]
    for outer in loop.outers:
        row = Ref(outer.row, outer.offset, (outer.row_step, 1))
        gradient = Ref(outer.gradient, outer.g_offset, (outer.g_step, 1))
        reads += [(row, (outer.places, outer.K)), (gradient, (outer.places, outer.N))]
    reads += [(row_sum.source, row_sum.shape) for row_sum in loop.row_sums]
    return [reached(ref, shape) for ref, shape in reads if ref.value is value]


def reached(ref: Ref, shape: tuple[int, ...]) -> tuple[int, int]:
    """The first number that a block of this shape reaches and the end."""
    steps = [(size - 1) * stride for size, stride in zip(shape, ref.strides, strict=True)]
    first = ref.offset + sum(min(0, step) for step in steps)
    return first, ref.offset + sum(max(0, step) for step in steps) + 1


def _names(text: str) -> list[str]:
    return text.split()


UNARY = _names(
    "copy neg abs sqrt exp expm1 log log1p tanh sigmoid erf sin cos sign floor ceil round "
    "trunc relu not reciprocal rsqrt stop atan asinh acosh erfc"
)
BINARY = _names(
    "add sub mul div pow maximum minimum lt le gt ge eq ne tanh_gradient sigmoid_gradient replace "
    "atan2 hypot fmod remainder floor_divide"
)
TERNARY = _names("where muladd clamp hardtanh")
QUATERNARY = _names("inside within")
"""``inside(a, x, low, high)`` is a where low < x < high, and 0 elsewhere; `within` has <=."""
REDUCTIONS = {"sum": 1, "amax": 1, "amin": 1, "dot": 2, "rank": 4, "select": 3}
"""How many operands each reduction has."""

OF_PAIRS = ("rank", "select")
"""Reductions that compare all pairs."""

OPERANDS = {
    name: count
    for count, names in enumerate((UNARY, BINARY, TERNARY, QUATERNARY), 1)
    for name in names
}
"""How many operands each pointwise operation has."""
