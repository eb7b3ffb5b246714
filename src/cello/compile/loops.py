"""The loops of a program: its step and the gradient of that, with the streams that they read and write.

A *stream* is a matrix with one row for each row of each step, (N, width): the layer's input is one, its
output another. :class:`Loops` is where the compile step ends and an engine of programs begins: it says
what is computed at each step, and in which streams the numbers lie that are not computed there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import count
from typing import Generic, NamedTuple, TypeVar

import torch

from cello.compile.derive import Used, Wanted, derive
from cello.compile.instructions import Assemble, Instruction, Loop, Pointwise, Value, ranges_read
from cello.compile.save import choose_saved
from cello.compile.simplify import drop_unread, forget_gradients, fuse

T = TypeVar("T")


@dataclass
class Streams(Generic[T]):
    """Something for each stream of a loop: its width, its tensor, its address.

    Streams are numbered in the order of these attributes. The forward loop has no seeds and no gradients.

    Attributes:
        seeds: the gradients of the results; all or some may be missing, which counts as zeros.
        inputs: the inputs of the program.
        results: the output, the states after each step where they are kept, and the check of what is
            assumed where anything is.
        saved: one stream of what the forward loop saves for the backward loop.
        gradients: those of the inputs that want one.
    """

    seeds: Sequence[T] = ()
    inputs: Sequence[T] = ()
    results: Sequence[T] = ()
    saved: Sequence[T] = ()
    gradients: Sequence[T] = ()

    def in_order(self) -> tuple[T, ...]:
        """All of them, by their numbers."""
        return self.ordered(self.seeds, self.inputs, self.results, self.saved, self.gradients)

    @staticmethod
    def ordered(
        seeds: Sequence[T],
        inputs: Sequence[T],
        results: Sequence[T],
        saved: Sequence[T],
        gradients: Sequence[T],
    ) -> tuple[T, ...]:
        """The same without an object, for engines at each call."""
        return (*seeds, *inputs, *results, *saved, *gradients)

    def numbers(self) -> Streams[int]:
        """The number of each stream."""
        numbers = count()
        groups = [getattr(self, field.name) for field in fields(self)]
        return Streams(*(tuple([next(numbers) for _ in group]) for group in groups))


class Column(NamedTuple):
    """The place of a value in a stream: from `offset` on in each row.

    Where only a part of a value is kept, `offset` is that of the whole value and may be negative.

    Attributes:
        stream: the number of the stream.
        offset: where the value's first number is.
        origin: for a state as it was before the step, which is read one step earlier than the rest: the
            number of the state, whose initial rows stand in for what is before the first step.
    """

    stream: int
    offset: int
    origin: int | None = None


class Write(NamedTuple):
    """Numbers ``first : end`` of a value, kept of each step: number `first` goes to ``column.offset``."""

    value: Value
    first: int
    end: int
    column: Column


@dataclass(eq=False)
class Pass:
    """One way through all steps: forward, or backward.

    Attributes:
        loop: the instructions. Its inputs are what it reads of streams, its outputs what it writes to them.
        streams: the width of each stream.
        reads: the place of each input.
        writes: what goes where, in the order of the outputs.
    """

    loop: Loop
    streams: Streams[int]
    reads: Mapping[Value, Column]
    writes: Sequence[Write]


@dataclass(frozen=True, eq=False)
class Loops:
    """All that an engine needs to run a program, but for its tensors.

    In both loops a state is carried from step to step: forward the cell's states, from their initial
    values on; backward their gradients, which start as the gradients of the final states and end as those
    of the initial ones. The backward loop runs through the steps in the opposite order, and gathers the
    gradients of the statics over all of them (``loop.outers`` and ``loop.row_sums``).

    Attributes:
        label: what messages call the cell.
        dtype: the dtype of all streams and states, and of all that is computed.
        static_shapes: the shape of each static.
        forward: the forward loop.
        backward: the backward loop, or ``None`` where no gradients are wanted.
        wanted: which inputs and statics are to get gradients; the states all do.
        used: which results and final states have gradients, or ``None`` where the backward loop is that
            for all of them.
    """

    label: str
    dtype: torch.dtype
    static_shapes: tuple[tuple[int, ...], ...]
    forward: Pass
    backward: Pass | None
    wanted: Wanted
    used: Used | None = None

    @property
    def state_widths(self) -> tuple[int, ...]:
        """How many numbers each state has."""
        return tuple([state.width for state in self.forward.loop.states])

    @property
    def static_dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtype of each static."""
        return tuple([value.dtype or self.dtype for value in self.forward.loop.statics])

    @cached_property
    def gets_gradient(self) -> tuple[bool, ...]:
        """Whether each input, static and state gets a gradient.

        A static that none reaches gets none, and not zeros, with which an optimizer would decay a weight.
        """
        reached: set[int] = set()
        if self.backward is not None:
            loop = self.backward.loop
            reached = {product.weight.index for product in loop.outers}
            reached |= {total.vector.index for total in loop.row_sums}
        statics = (is_one and k in reached for k, is_one in enumerate(self.wanted.statics))
        return (*self.wanted.inputs, *statics, *(True for _ in self.state_widths))

    @property
    def saved_width(self) -> int:
        """How many numbers of each row of each step are saved for the backward loop."""
        return self.forward.streams.saved[0]

    @property
    def reads_results(self) -> tuple[bool, ...]:
        """For the output and each kept state whether the backward loop reads it."""
        if self.backward is None:
            return tuple([False for _ in self.forward.streams.results])
        read = {column.stream for column in self.backward.reads.values()}
        return tuple([k in read for k in self.backward.streams.numbers().results])


def make_loops(
    loop: Loop,
    keep_states: bool,
    wanted: Wanted | None,
    used: Used | None = None,
    *,
    label: str,
    dtype: torch.dtype,
    static_shapes: tuple[tuple[int, ...], ...],
) -> Loops:
    """Return the loops of a step.

    Args:
        loop: the step.
        keep_states: whether the states of all steps are results.
        wanted: which gradients are, or ``None`` for none.
        used: which results and final states have gradients, or ``None`` for all. Where the others add
            nothing but zeros to sums, the loops are those for all.
        label: what messages call the cell.
        dtype: the dtype that it computes in.
        static_shapes: the shape of each static.
    """
    forward = _copy(loop)
    forward.outputs = results(loop, keep_states)
    streams = Streams(
        inputs=tuple([value.width for value in loop.inputs]),
        results=tuple([value.width for value in forward.outputs]),
        saved=(0,),
    )
    if wanted is None:
        forget_gradients(forward)
        backward = None
        stored: list[Write] = []
        wanted = Wanted((False,) * len(loop.inputs), (False,) * len(loop.statics))
    else:
        stored, backward, used = _make_backward(forward, wanted, used, streams)
        streams = replace(streams, saved=backward.streams.saved)
    numbers = streams.numbers()
    reads = {value: Column(k, 0) for k, value in zip(numbers.inputs, loop.inputs, strict=True)}
    writes = [_whole(v, k) for k, v in zip(numbers.results, forward.outputs, strict=True)]
    writes += [
        write._replace(column=Column(numbers.saved[0], write.column.offset)) for write in stored
    ]
    forward.outputs = [write.value for write in writes]
    drop_unread(forward)
    fuse(forward)
    return Loops(
        label=label,
        dtype=dtype,
        static_shapes=static_shapes,
        forward=Pass(forward, streams, reads, writes),
        backward=backward,
        wanted=wanted,
        used=used,
    )


def results(loop: Loop, keep_states: bool) -> list[Value]:
    """What a step leaves for each row: its output, the new states if they are kept, and what is checked."""
    output, *checks = loop.outputs
    return [output, *(loop.new_states if keep_states else []), *checks]


def _make_backward(
    forward: Loop, wanted: Wanted, used: Used | None, streams: Streams[int]
) -> tuple[list[Write], Pass, Used | None]:
    """Return what the forward loop is to save, placed in a stream of its own, and the backward loop.

    What is saved is the same whatever is used, which only the backward pass will know. The last result is
    `used`, or ``None`` where that makes no difference.
    """
    gradient = derive(forward, wanted)
    part = derive(forward, wanted, used)
    forget_gradients(forward, gradient, part)
    drop_unread(gradient)
    drop_unread(part)
    if _work(part) == _work(gradient):
        used = None
    saved, befores, again = choose_saved(forward, gradient)
    gradient.body = [*map(copy.copy, again), *gradient.body]
    windows = {value: _window(value, gradient) for value in saved}
    # Which value of the step is which state of the next one.
    after = [(forward.new_states[forward.states.index(state)], state) for state in befores]
    for value in dict.fromkeys(value for value, _ in after):
        parts = [state for new, state in after if new is value]
        parts += [value] if ranges_read(value, gradient) else []
        reached = [_window(part, gradient) for part in parts]
        windows[value] = min(a for a, _ in reached), max(b for _, b in reached)
    stored = [value for value in saved if value not in (*forward.inputs, *forward.outputs)]
    own = Streams(
        seeds=tuple([seed.width for seed in gradient.inputs]),
        inputs=streams.inputs,
        results=streams.results,
        saved=(sum(windows[value][1] - windows[value][0] for value in stored),),
        gradients=tuple([value.width for value in gradient.outputs]),
    )
    numbers = own.numbers()
    reads: dict[Value, Column] = {}
    for group, values in ((numbers.inputs, forward.inputs), (numbers.results, forward.outputs)):
        reads |= {
            value: Column(k, 0) for k, value in zip(group, values, strict=True) if value in saved
        }
    writes = []
    place = 0
    for value in stored:
        first, end = windows[value]
        writes.append(Write(value, first, end, Column(numbers.saved[0], place)))
        reads[value] = Column(numbers.saved[0], place - first)
        place += end - first
    for value, state in after:
        reads[state] = reads[value]._replace(origin=forward.states.index(state))
    if used is not None:
        gradient = part
        gradient.body = [*map(copy.copy, again), *gradient.body]
        drop_unread(gradient)
    reads |= {seed: Column(k, 0) for k, seed in zip(numbers.seeds, gradient.inputs, strict=True)}
    reads = {value: column for value, column in reads.items() if ranges_read(value, gradient)}
    fuse(gradient)
    gradient.inputs = list(reads)
    pairs = zip(numbers.gradients, gradient.outputs, strict=True)
    made = Pass(gradient, own, reads, [_whole(value, k) for k, value in pairs])
    return writes, made, used


def _work(gradient: Loop) -> tuple[int, int, int]:
    """How much a gradient computes, beside sums and what only moves numbers."""
    count = sum(not _only_adds(instruction) for instruction in gradient.body)
    return count, len(gradient.outers), len(gradient.row_sums)


def _only_adds(instruction: Instruction) -> bool:
    is_sum = isinstance(instruction, Pointwise) and instruction.op in ("add", "copy")
    return is_sum or isinstance(instruction, Assemble)


def _whole(value: Value, stream: int) -> Write:
    return Write(value, 0, value.width, Column(stream, 0))


def _copy(loop: Loop) -> Loop:
    """A loop with instructions of its own, which may be rewritten."""
    body = [copy.copy(instruction) for instruction in loop.body]
    return replace(loop, body=body)


def _window(value: Value, loop: Loop) -> tuple[int, int]:
    """The first number of a value that a loop reads and the end; all of it where it reads none."""
    ranges = ranges_read(value, loop)
    if not ranges:
        return 0, value.width
    return min(first for first, _ in ranges), max(end for _, end in ranges)
