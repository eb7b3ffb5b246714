"""Writing instructions: a thin layer that shares equal ones and leaves trivial ones out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from math import prod

from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Piece,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Rule,
    Ruled,
    Term,
    Value,
    redirect,
    strides_of,
)

Shape = tuple[int, ...]


class Builder:
    """A list of instructions that grows."""

    def __init__(self) -> None:
        self.body: list[Instruction] = []
        self.line = ""
        self._known: dict[object, Value] = {}
        self._constants: dict[str, Value] = {}

    def constant(self, number: float, shape: Shape) -> Ref:
        """A number, seen as a block of `shape`."""
        value = self._constants.setdefault(
            repr(float(number)), Value(Kind.CONSTANT, 1, number=float(number))
        )
        return Ref(value, 0, (0,) * len(shape))

    def pointwise(self, op: str, shape: Shape, *args: Ref | float) -> Ref:
        """Apply `op` to blocks of `shape`."""
        refs = tuple(a if isinstance(a, Ref) else self.constant(a, shape) for a in args)
        numbers = [r.value.number if r.value.kind is Kind.CONSTANT else None for r in refs]
        if op == "mul" and 1.0 in numbers:
            return refs[1 - numbers.index(1.0)]
        if op == "div" and numbers[1] == 1.0:
            return refs[0]
        if op in ("add", "mul", "maximum", "minimum") and _order(refs[0]) > _order(refs[1]):
            refs = (refs[1], refs[0])
        key = (op, shape, tuple((id(r.value), r.offset, r.strides) for r in refs))
        if key not in self._known:
            self._known[key] = self._add(Pointwise(self._computed(shape), op, shape, refs))
        return Ref(self._known[key], 0, strides_of(shape))

    def reduce(self, op: str, shape: Shape, *args: Ref | float) -> Ref:
        """Reduce the last axis of blocks of `shape`."""
        refs = tuple(a if isinstance(a, Ref) else self.constant(a, shape) for a in args)
        if shape[-1] == 1 and len(refs) == 1:
            return refs[0]._replace(strides=refs[0].strides[:-1])
        key = (op, shape, tuple((id(r.value), r.offset, r.strides) for r in refs))
        if key not in self._known:
            self._known[key] = self._add(Reduce(self._computed(shape[:-1]), op, shape, refs))
        return Ref(self._known[key], 0, strides_of(shape[:-1]))

    def assemble(self, width: int, pieces: Iterable[Piece]) -> Value:
        """Put pieces together."""
        kept = tuple(pieces)
        if len(kept) == 1 and not (kept[0].offset or prod(kept[0].shape) != width):
            source = kept[0].source
            whole = source.value.kind is Kind.COMPUTED and source.value.width == width
            if whole and kept[0].is_range and source.strides == kept[0].strides:
                return source.value
        return self._add(Assemble(Value(Kind.COMPUTED, width), kept))

    def contiguous(self, ref: Ref, shape: Shape) -> Ref:
        """The same block, laid out without gaps."""
        if _is_contiguous(ref.strides, shape):
            return Ref(ref.value, ref.offset, strides_of(shape))
        value = self.assemble(prod(shape), [Piece(shape, ref, 0, strides_of(shape))])
        return Ref(value, 0, strides_of(shape))

    def product(
        self, width: int, terms: Iterable[Term], biases: Iterable[Ref] = (), places: int = 1
    ) -> Value:
        """A sum of products with matrices, and of vectors."""
        out = Value(Kind.COMPUTED, width)
        return self._add(Product(out, tuple(terms), tuple(biases), places))

    def ruled(self, shape: Shape, arg: Ref, rule: Rule) -> Ref:
        """A copy with the gradient of a rule."""
        value = self._add(Ruled(self._computed(shape), "stop", shape, (arg,), rule))
        return Ref(value, 0, strides_of(shape))

    def again(self, instruction: Instruction, moved: Callable[[Ref], Ref]) -> Value:
        """Write an instruction again, that reads other values.

        Args:
            instruction: of any kind.
            moved: for what it reads, what it is to read.
        """
        new = copy.copy(instruction)
        new.out = Value(Kind.COMPUTED, instruction.out.width)
        redirect(new, moved)
        self.body.append(new)
        return new.out

    def maker(self, value: Value) -> Instruction | None:
        """The instruction that computes a value, if one has been written."""
        return next((i for i in reversed(self.body) if i.out is value), None)

    def _computed(self, shape: Shape) -> Value:
        return Value(Kind.COMPUTED, prod(shape))

    def _add(self, instruction: Instruction) -> Value:
        instruction.line = self.line
        self.body.append(instruction)
        return instruction.out


def _order(ref: Ref) -> int:
    """Constants and statics go last, so that equal sums and products look equal."""
    return {Kind.CONSTANT: 2, Kind.STATIC: 1}.get(ref.value.kind, 0)


def _is_contiguous(strides: Shape, shape: Shape) -> bool:
    return all(
        size == 1 or stride == expected
        for size, stride, expected in zip(shape, strides, strides_of(shape), strict=True)
    )
