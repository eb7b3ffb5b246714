"""Where the values of a loop lie while the native engine runs it.

A fusion is computed for a few rows at a time, so that its values stay in the innermost cache (``TILE``).
Values that cross from one stage to another have room for all rows of a step (``WIDE``), and those that are
used for several steps at once have room for all rows of a *chunk* of steps (``CHUNK``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod

from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Pointwise,
    Product,
    Reduce,
    Value,
    ranges_read,
    strides_of,
)
from cello.compile.loops import Column, Write
from cello.compile.stages import Place, Stages


class Space(Enum):
    """The kinds of memory, by the names that `csrc/schedule.h` has for them."""

    STREAM = "stream"
    CHUNK = "chunk"
    STATE = "state"
    WIDE = "wide"
    STATIC = "static"
    TILE = "tile"
    CONSTANT = "constant"
    PREVIOUS = "previous"


@dataclass
class Buffer:
    """Room for some numbers of each row.

    Attributes:
        space: in which kind of memory.
        width: how many numbers.
        index: which stream, state, static, constant or tile.
        offset: of a stream, where in its rows.
        stride: of a stream, from row to row.
        origin: of ``PREVIOUS``, a stream that is read at the step before: the state whose initial rows it
            has at the first step of a sequence.
    """

    space: Space
    width: int
    index: int = 0
    offset: int = 0
    stride: int = 0
    origin: int = 0


@dataclass(frozen=True)
class Copy:
    """Numbers ``first : end`` of a value, copied from one place to another at each step."""

    value: Value
    first: int
    end: int
    source: Place


class Placement:
    """A place for every value of a loop.

    Attributes:
        buffers: the memories, to which places refer by their numbers.
        numbers: the constants.
        states: for each state the buffer that carries it from step to step.
        gathered: what is copied into a value's home from elsewhere as each step begins.
        copied: those of the loop's writes whose value is not computed right where it is to go.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages, self.loop, self.reads = stages, stages.way.loop, stages.way.reads
        self.buffers: list[Buffer] = []
        self.numbers: list[float] = []
        self.states: list[int] = []
        self.gathered: list[Copy] = []
        self._homes: dict[Value, Place] = {}
        self._makers: dict[Value, Instruction] = {i.out: i for i in self.loop.body}
        self._place_given()
        self._place_products()
        self._place_operands()
        self.copied = self._place_written()
        self._place_assembled()
        self._place_the_rest()

    def home(self, value: Value) -> Place:
        """Where a value lies."""
        if value.kind is Kind.CONSTANT and value not in self._homes:
            self._homes[value] = self._new(Buffer(Space.CONSTANT, 1, len(self.numbers)))
            self.numbers.append(value.number)
        return self._homes[value]

    def stream(self, width: int, column: Column) -> Place:
        """Make a place of a part of a stream."""
        space = Space.STREAM if column.origin is None else Space.PREVIOUS
        stride = self.stages.way.streams.in_order()[column.stream]
        return self._new(
            Buffer(space, width, column.stream, column.offset, stride, column.origin or 0)
        )

    def _new(self, buffer: Buffer) -> Place:
        self.buffers.append(buffer)
        return Place(len(self.buffers) - 1, 0)

    def _side_by_side(self, space: Space, values: Iterable[Value]) -> None:
        """Give values one buffer."""
        kept = list(values)
        place = self._new(Buffer(space, sum(value.width for value in kept)))
        for value in kept:
            self._homes[value] = place
            place = place.after(value.width)

    def _place_given(self) -> None:
        """What is there before a step."""
        for value, column in self.reads.items():
            self._homes[value] = self.stream(value.width, column)
        for index, value in enumerate(self.loop.states):
            place = self._new(Buffer(Space.STATE, value.width, index))
            self._homes.setdefault(value, place)
            self.states.append(place.memory)
        for index, value in enumerate(self.loop.statics):
            self._homes[value] = self._new(Buffer(Space.STATIC, value.width, index))

    def _place_products(self) -> None:
        """The results of one stage lie side by side, those of the same operand next to each other."""
        groups: dict[tuple[int, bool], list[Product]] = defaultdict(list)
        order = {value: place for place, value in enumerate(self._homes)}
        behind = set(self.stages.behind)
        for product in (i for i in self.loop.body if isinstance(i, Product)):
            value = product.out
            if product in behind:
                (column,) = (w.column for w in self.stages.way.writes if w.value is value)
                self._homes[value] = self.stream(value.width, column)
                continue
            state = self._state_to_be(product)
            if state is not None:
                self._homes[value] = Place(state, 0)
                continue
            ahead = any(self.stages.is_known(term.row) for term in product.terms)
            groups[self.stages.levels[value], ahead].append(product)
        for (_, ahead), products in groups.items():
            products.sort(
                key=lambda p: [(order.get(t.row, len(order)), t.offset, t.K) for t in p.terms[:1]]
            )
            self._side_by_side(Space.CHUNK if ahead else Space.WIDE, (p.out for p in products))

    def _state_to_be(self, product: Product) -> int | None:
        """The state's own buffer, where a product can be written there: nothing reads the old one then."""
        value, stages, loop = product.out, self.stages, self.loop
        if stages.levels[value] != stages.last or loop.new_states.count(value) != 1:
            return None
        if value in stages.late or any(stages.is_known(term.row) for term in product.terms):
            return None
        index = loop.new_states.index(value)
        old = loop.states[index]
        is_read = any(value in i.reads() for i in loop.body)
        is_read_late = any(
            old in i.reads()
            for i in loop.body
            if stages.levels.get(i.out, stages.last) == stages.last
        )
        is_kept = any(write.value in (value, old) for write in stages.way.writes)
        return None if is_read or is_read_late or is_kept else self.states[index]

    def _place_operands(self) -> None:
        """Operands of products lie side by side as well, so that adjacent ones make one product."""
        groups: dict[tuple[int, bool], list[Value]] = defaultdict(list)
        rows = [t.row for i in self.loop.body if isinstance(i, Product) for t in i.terms]
        rows += [v for outer in self.loop.outers for v in (outer.gradient, outer.row)]
        late = self.stages.late
        for value in dict.fromkeys(rows):
            if value in self.reads and self.reads[value].origin is not None:
                self._gather(value)
            elif value not in self._homes:
                groups[self.stages.levels[value], value in late].append(value)
            elif value in late:
                buffer = self.buffers[self._homes[value].memory]
                if buffer.space is Space.STATE:
                    self._gather(value)
                elif buffer.space is Space.WIDE:
                    buffer.space = Space.CHUNK
        for (_, is_late), values in groups.items():
            self._side_by_side(Space.CHUNK if is_late else Space.WIDE, values)

    def _gather(self, value: Value) -> None:
        """Copy a state before the step into a chunk's room.

        Rows that are read at the step before lie in two places, and products need one distance between
        rows; those of a state are gone behind the step, and some products are done behind the chunk.
        """
        ranges = ranges_read(value, self.loop)
        first, end = min(first for first, _ in ranges), max(end for _, end in ranges)
        self.gathered.append(Copy(value, first, end, self._homes[value].after(first)))
        self._homes[value] = self._new(Buffer(Space.CHUNK, value.width))

    def _place_written(self) -> list[Write]:
        """Compute what is written where it is to go; return what has to be copied there."""
        copied = []
        behind = {product.out for product in self.stages.behind}
        for write in self.stages.way.writes:
            value = write.value
            is_whole = (write.first, write.end) == (0, value.width)
            if value in self._homes or not is_whole or value not in self._makers:
                if value not in behind:
                    copied.append(write)
            else:
                self._homes[value] = self.stream(value.width, write.column)
        return copied

    def _place_assembled(self) -> None:
        """Let what is put together be computed in its place."""
        levels = self.stages.levels
        for instruction in reversed(self.loop.body):
            if not isinstance(instruction, Assemble):
                continue
            self._place_one(instruction.out)
            home = self.home(instruction.out)
            in_tile = self.buffers[home.memory].space is Space.TILE
            if instruction.has_gaps and not all(piece.is_range for piece in instruction.pieces):
                continue
            for piece in instruction.pieces:
                source = piece.source
                if (
                    isinstance(self._makers.get(source.value), Pointwise | Reduce)
                    and source.value not in self._homes
                    and source.offset == 0
                    and source.value.width == prod(piece.shape)
                    and source.strides == strides_of(piece.shape)
                    and piece.is_range
                    and levels[source.value] == levels[instruction.out]
                    and (self._stays(source.value) or not in_tile)
                ):
                    self._homes[source.value] = home.after(piece.offset)

    def _place_one(self, value: Value) -> None:
        if value not in self._homes:
            space = Space.TILE if self._stays(value) else Space.WIDE
            self._homes[value] = self._new(Buffer(space, value.width))

    def _place_the_rest(self) -> None:
        for value in self._makers:
            self._place_one(value)

    def _stays(self, value: Value) -> bool:
        """Whether a value is read in its own stage alone, while its rows are in a tile."""
        level = self.stages.levels[value]
        return all(read == level for read in self._levels_read[value])

    @cached_property
    def _levels_read(self) -> dict[Value, list[int]]:
        """The stages that read each value."""
        found: dict[Value, list[int]] = defaultdict(list)
        for instruction in self.loop.body:
            for value in instruction.reads():
                found[value].append(self.stages.levels.get(instruction.out, -1))
        for value in self.loop.new_states:
            found[value].append(self.stages.last)
        return found
