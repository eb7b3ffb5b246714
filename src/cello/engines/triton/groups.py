"""Which instructions of a fusion share a loop over the numbers of a row.

A *task* computes one block of numbers: a pointwise operation, a reduction, or one piece of a value that is
put together. Tasks over as many numbers form a *group*, in which a number that one task computes stays in a
register for the next. What a task needs of other numbers it reads from memory, and then it is in a later
group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Pointwise,
    Reduce,
    Ref,
    Value,
    strides_of,
)


@dataclass(frozen=True, eq=False)
class Task:
    """One block of numbers to compute.

    Attributes:
        out: the value that it is a part of.
        shape: of the block; for a reduction with the axis that is reduced, the last one.
        args: what it reads.
        op: the operation.
        reduces: whether it is a reduction.
        offset: where the block begins in `out`.
        strides: how it lies there.
    """

    out: Value
    shape: tuple[int, ...]
    args: tuple[Ref, ...]
    op: str
    reduces: bool
    offset: int
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it goes through."""
        return prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether number i of the block is number i of the value, for all of it."""
        return is_identity(Ref(self.out, self.offset, self.strides), self.shape)


@dataclass
class Group:
    """Tasks that go through as many numbers.

    Attributes:
        size: how many.
        reduces: whether it is one reduction.
        tasks: the tasks in order.
    """

    size: int
    reduces: bool
    tasks: list[Task] = field(default_factory=list)

    def has(self, ref: Ref, shape: tuple[int, ...]) -> bool:
        """Whether the group computes the numbers that are read here, each at its own turn."""
        if self.reduces or not is_identity(ref, shape):
            return False
        return any(task.out is ref.value and task.is_whole for task in self.tasks)


def is_identity(ref: Ref, shape: tuple[int, ...]) -> bool:
    """Whether a block of this shape is all of a value, number by number."""
    return merged(shape, ref.strides) == [(ref.value.width, 1)] and ref.offset == 0


def merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """The sizes and strides of a block, with axes as one where they can be; one of size 1 is left out."""
    out: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if out and out[-1][1] == size * stride:
            out[-1] = out[-1][0] * size, stride
        else:
            out.append((size, stride))
    return out or [(1, 1)]


def copy_of(value: Value, out: Value) -> Task:
    """The task that copies a value."""
    return Task(out, (value.width,), (Ref(value, 0, (1,)),), "copy", False, 0, (1,))


def tasks_of(instruction: Instruction) -> list[Task]:
    """Take an instruction that is no product apart."""
    out = instruction.out
    if isinstance(instruction, Pointwise):
        shape = instruction.shape
        return [Task(out, shape, instruction.args, instruction.op, False, 0, strides_of(shape))]
    if isinstance(instruction, Reduce):
        shape = instruction.shape
        strides = (*strides_of(shape[:-1]), 0)
        return [Task(out, shape, instruction.args, instruction.op, True, 0, strides)]
    assert isinstance(instruction, Assemble)
    tasks = [
        Task(out, piece.shape, (piece.source,), "copy", False, piece.offset, piece.strides)
        for piece in instruction.pieces
    ]
    if instruction.has_gaps:
        zero = Ref(Value(Kind.CONSTANT, 1, number=0.0), 0, (0,))
        tasks.insert(0, Task(out, (out.width,), (zero,), "copy", False, 0, (1,)))
    return tasks


def group(instructions: Iterable[Instruction]) -> list[Group]:
    """Put the instructions of a fusion into groups, which depend on earlier ones only."""
    waiting = [task for instruction in instructions for task in tasks_of(instruction)]
    groups: list[Group] = []
    while waiting:
        found = Group(0, False)
        left: list[Task] = []
        for task in waiting:
            # What is not complete yet, apart from what this group has computed.
            missing = {other.out for other in left}
            own = {done.out for done in found.tasks}
            fits = not found.tasks or (
                (task.size, task.reduces) == (found.size, False) and not found.reduces
            )
            # Zeros for all of a value come before its pieces.
            is_next = not any(other.out is task.out and other.is_whole for other in left)
            reads = all(
                ref.value not in missing and (ref.value not in own or found.has(ref, task.shape))
                for ref in task.args
            )
            if fits and is_next and reads:
                found.size, found.reduces = task.size, task.reduces
                found.tasks.append(task)
            else:
                left.append(task)
        groups.append(found)
        waiting = left
    return groups
