"""How the numbers of a new state depend on those of the state before the step.

In an LSTM each number of the new state depends on all numbers of the old one, through a matrix. In other
cells each number (a *unit*) depends on its own old value alone, and in some of these the dependence is
affine: s' = a s + b, where a and b do not depend on the state. Then no step needs to exchange numbers, and
an affine recurrence can even be computed in parallel over time (Martin and Cundy 2018,
https://arxiv.org/abs/1709.04057). What is found here holds for the step as it is written, whatever the
numbers are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import product as indices
from math import prod
from typing import NamedTuple

from cello.compile.instructions import (
    Assemble,
    Instruction,
    Loop,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Value,
)


class Form(IntEnum):
    """What a number is of the state before the step, from the simplest to the most general."""

    FREE = 0  # nothing
    AFFINE = 1  # a s + b of one unit, where a and b are free
    ELEMENTWISE = 2  # any function of one unit
    MIXED = 3  # of several units


class Number(NamedTuple):
    """What one number depends on.

    Attributes:
        form: how.
        unit: on which number of the parts of the state.
        parts: on which parts of the state: bit k stands for part k.
        line: for a mixed number, the line of the cell where the units meet.
    """

    form: Form
    unit: int = 0
    parts: int = 0
    line: str = ""


_FREE = Number(Form.FREE)


@dataclass(frozen=True)
class Verdict:
    """What the new value of one part of the state depends on.

    Attributes:
        form: how, at worst.
        parts: the parts of the state that it depends on, by their places.
        line: for a mixed part, the line of the cell where units meet.
    """

    form: Form
    parts: tuple[int, ...] = ()
    line: str = ""


def verdicts(loop: Loop) -> tuple[Verdict, ...]:
    """Return the verdict for each part of the state of a step."""
    known: dict[Value, list[Number]] = {
        state: [Number(Form.AFFINE, unit, 1 << part) for unit in range(state.width)]
        for part, state in enumerate(loop.states)
    }
    lines = {instruction.out: instruction.line for instruction in loop.body}
    for instruction in loop.body:
        known[instruction.out] = _computed(instruction, known)
    return tuple(
        _verdict(_of(new, known), len(loop.states), lines.get(new, "")) for new in loop.new_states
    )


def _of(value: Value, known: dict[Value, list[Number]]) -> list[Number]:
    return known.get(value) or [_FREE] * value.width


def _verdict(numbers: list[Number], count: int, line: str) -> Verdict:
    # A unit keeps its place, or its numbers would meet those of others at the next steps.
    moved = [n for unit, n in enumerate(numbers) if n.form is not Form.FREE and n.unit != unit]
    mixed = [n for n in numbers if n.form is Form.MIXED]
    parts = 0
    for number in numbers:
        parts |= number.parts
    found = tuple(k for k in range(count) if parts >> k & 1)
    if mixed or moved:
        return Verdict(Form.MIXED, found, mixed[0].line if mixed else line)
    return Verdict(max((n.form for n in numbers), default=Form.FREE), found)


def _computed(instruction: Instruction, known: dict[Value, list[Number]]) -> list[Number]:
    line = instruction.line
    if isinstance(instruction, Pointwise):
        columns = [_block(ref, instruction.shape, known) for ref in instruction.args]
        return [_applied(instruction.op, args, line) for args in zip(*columns, strict=True)]
    if isinstance(instruction, Reduce):
        last = instruction.shape[-1]
        operands = [list(_block(ref, instruction.shape, known)) for ref in instruction.args]
        rows = [
            [number for operand in operands for number in operand[k : k + last]]
            for k in range(0, len(operands[0]), last)
        ]
        op = "add" if instruction.op == "sum" else instruction.op
        return [_joined(row, line, is_affine=op == "add") for row in rows]
    if isinstance(instruction, Assemble):
        out = [_FREE] * instruction.out.width
        for shape, source, offset, strides in instruction.pieces:
            target = Ref(instruction.out, offset, strides)
            for place, number in zip(
                _places(target, shape), _block(source, shape, known), strict=True
            ):
                out[place] = number
        return out
    assert isinstance(instruction, Product)
    out = [_FREE] * instruction.out.width
    for place, term in indices(range(instruction.places), instruction.terms):
        start = term.offset + place * term.row_step
        row = _of(term.row, known)[start : start + term.K]
        if any(number.form is not Form.FREE for number in row):
            number = _joined(row, line, is_affine=True)
            if len(row) > 1 or term.N > 1:  # one number each, or a matrix
                number = Number(Form.MIXED, 0, number.parts, line)
            first = place * instruction.block + term.target
            for unit in range(first, first + term.N):
                out[unit] = _joined([out[unit], number], line, is_affine=True)
    return out


def _applied(op: str, args: tuple[Number, ...], line: str) -> Number:
    """What a pointwise operation makes of its operands."""
    if op == "replace":
        return args[1]
    joined = _joined(args, line, is_affine=False)
    if joined.form is not Form.ELEMENTWISE:
        return joined
    return joined._replace(form=Form.AFFINE) if _is_affine(op, args) else joined


def _is_affine(op: str, args: tuple[Number, ...]) -> bool:
    """Whether an operation on affine and free operands is affine."""
    if any(number.form > Form.AFFINE for number in args):
        return False
    free = [number.form is Form.FREE for number in args]
    if op in ("copy", "neg", "add", "sub"):
        return True
    if op == "mul":
        return any(free)
    if op == "muladd":
        return any(free[:2])
    if op == "div":
        return free[1]
    if op == "where":
        return free[0]
    return op in ("inside", "within") and all(free[1:])


def _joined(numbers: list[Number] | tuple[Number, ...], line: str, *, is_affine: bool) -> Number:
    """A function of several numbers."""
    bound = [number for number in numbers if number.form is not Form.FREE]
    if not bound:
        return _FREE
    parts = 0
    for number in bound:
        parts |= number.parts
    for number in bound:
        if number.form is Form.MIXED:
            return number._replace(parts=parts)
    if any(number.unit != bound[0].unit for number in bound):
        return Number(Form.MIXED, 0, parts, line)
    worst = max(number.form for number in bound)
    return Number(worst if is_affine else Form.ELEMENTWISE, bound[0].unit, parts)


def _block(ref: Ref, shape: tuple[int, ...], known: dict[Value, list[Number]]) -> Iterator[Number]:
    """The numbers of a block, in order."""
    if ref.value not in known:
        return iter([_FREE] * prod(shape))
    numbers = known[ref.value]
    return (numbers[place] for place in _places(ref, shape))


def _places(ref: Ref, shape: tuple[int, ...]) -> Iterator[int]:
    """Where the numbers of a block lie in a row."""
    for index in indices(*map(range, shape)):
        yield ref.offset + sum(i * stride for i, stride in zip(index, ref.strides, strict=True))
