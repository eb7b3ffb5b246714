"""A loop as one kernel whose programs own units for all steps, and exchange numbers at each step.

A program owns some *units* of a tile of rows: the numbers i of every value of a step, for some i. What it
computes of the state stays in registers, and the columns of the matrices that its units need stay in
shared memory. A product reads all numbers of a row, which other programs have computed: they go through
memory, in the dtype of the matrix, and between writing and reading lies an *exchange*, at which the
programs of a tile of rows wait for each other. Of that memory there are two copies, for even and odd
steps, so that one exchange for each level of products is enough: whoever writes a copy again has passed an
exchange that all programs reach after they have read it.

A step is written as *phases*, functions of Triton's between which there is an exchange. The kernel `loop`
calls them in turn. The kernels `alone0`, `alone1`, ... call one of them each and nothing else, so that a
host can launch them one after the other where programs do not run at the same time, as in Triton's
interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from math import prod
from typing import NamedTuple

import torch

from cello.compile.instructions import Kind, Ref, Term, Value, reached
from cello.compile.loops import Pass
from cello.compile.stages import Place
from cello.engines.triton.groups import Group, Task, is_identity
from cello.engines.triton.segments import OperandWriter, can_be_split
from cello.engines.triton.writer import Source, index_of

DEEP = 64, 32, 16
"""How many numbers of a row a warp may multiply at a time."""
DEEPEST = 128
"""Bytes of a row that a warp multiplies at a time, at most, so that they fit the registers."""
MOST_COLUMNS = 8
"""Blocks of columns that a phase sums up at the same time, at most, so that the sums fit the registers."""
APART = 16
"""Numbers between the counters of two tiles of rows, which do not share a line of a cache then."""
UNITS = "i[None, :]"
"""The units of a program, in texts."""
CONSTANTS = "ROWS", "DTYPE", "PRECISION"
"""What is compiled in."""
HELD = 128 * 1024
"""Bytes of matrices that a program holds in shared memory, at most."""
BESIDE = 16 * 1024
"""Bytes of shared memory that a program needs for the rest."""


@dataclass(frozen=True, eq=False)
class PersistentSource(Source):
    """The text of a function `loop`, and of a function ``alone0``, ``alone1``, ... for each phase.

    Attributes:
        rows: of the batch, that one program owns.
        tiles: of the units, that have a program each.
        warps: of a program.
        phases: how many functions there are beside `loop`.
        memories: the dtype and the width of each memory of what is multiplied; ``None`` is the dtype of the
            loop.
        beginnings: the states that are multiplied, by their numbers, and where.
        units: how many there are.
        kept: how many values go from one phase to another.
    """

    rows: int
    tiles: int
    warps: int
    phases: int
    memories: dict[torch.dtype | None, int]
    beginnings: list[tuple[int, Place]]
    units: int
    kept: int


@dataclass
class _Phase:
    """What is computed between two exchanges.

    Attributes:
        fetched: lines of what is read before the exchange, for it does not depend on other programs.
        lines: the others.
        is_after_exchange: whether it reads what other programs have computed.
    """

    is_after_exchange: bool
    fetched: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Room(NamedTuple):
    """What a GPU has for the programs of a kernel.

    Attributes:
        programs: how many there may be for a tile of rows at the same time.
        held: bytes of matrices that one may hold.
    """

    programs: int
    held: int


class _Sum(NamedTuple):
    """Columns of a product that the units of a program read, one each."""

    value: Value
    numbers: str


class _Use(NamedTuple):
    """A product that is a part of a sum.

    Attributes:
        total: the name of the sum.
        term: the product.
        column: the name of which of its columns.
        inside: which of these there are.
    """

    total: str
    term: Term
    column: str
    inside: str


class PersistentWriter(OperandWriter):
    """Writes the kernel of a loop of which a program owns units.

    Args:
        way: the loop.
        missing: the numbers of the streams that are not there and count as zeros.
        dtype: what it computes in.

    Attributes:
        own: units of a program.
    """

    rows = 16  # as many as a product on tensor cores needs
    warps = 8
    own = 16
    home = "mine"

    def __init__(self, way: Pass, missing: frozenset[int], dtype: torch.dtype) -> None:
        super().__init__(way, missing)
        self.dtype = dtype
        self.segments = self.collect()
        self.is_local = can_be_split(self.segments) and all(
            is_identity(ref, shape)
            for piece in self.segments
            for ref, shape in piece.reads()
            if ref.value in way.loop.states
        )
        self._split_copies()

    # What it fits

    @cached_property
    def units(self) -> int:
        """How many there are: the widest block that is computed, apart from copies."""
        sizes = [
            task.size
            for piece in self.segments
            for g in piece.groups
            for task in g.tasks
            if not _is_copy(task)
        ]
        return max([*sizes, *(state.width for state in self.way.loop.states)])

    @property
    def tiles_of_units(self) -> int:
        """Programs that own a tile of rows together."""
        return -(-self.units // self.own)

    @property
    def held(self) -> int:
        """Bytes of matrices that a program holds."""
        return sum(
            self._padded(term.K, DEEP[-1]) * self.own * (term.weight.dtype or self.dtype).itemsize
            for number in range(len(self.parts))
            for sums in self._columns(number).items()
            for term in self._terms(*sums)
        )

    def _padded(self, depth: int, deep: int) -> int:
        """A multiple of what the warps multiply at a time."""
        chunk = self.warps * deep
        return -(-depth // chunk) * chunk

    def why_not(self, room: Room) -> str | None:
        """Say why the loop cannot run so on a GPU that has this room."""
        if not self.summed:
            return "there are no products in the loop"
        if not self.is_local:
            return "numbers of the state meet outside of products"
        columns = max(len(self._columns(number)) for number in range(len(self.parts)))
        if columns > MOST_COLUMNS:
            return f"{columns} blocks of columns would be summed up at once, at most {MOST_COLUMNS} can"
        tiles = self.tiles_of_units
        if tiles > room.programs:
            many = f"{tiles} programs for {self.rows} sequences"
            return f"{many} would have to run at once, {room.programs} can"
        if self.held > room.held:
            size, most = self.held // 1024, room.held // 1024
            return f"a program would hold {size:,} KB of matrices, more than {most} KB"
        return None

    def _split_copies(self) -> None:
        """Take copies of more numbers than there are units apart."""
        for piece in self.segments:
            found: list[Group] = []
            for g in piece.groups:
                (task, *others) = g.tasks
                if others or not _is_copy(task) or g.size <= self.units:
                    found.append(g)
                    continue
                for first in range(0, g.size, self.units):
                    size = min(self.units, g.size - first)
                    ref = Ref(task.out, first, (1,))
                    part = Task(task.out, (size,), (ref,), "copy", False, first, (1,))
                    found.append(Group(size, False, [part]))
            piece.groups[:] = found

    def _columns(self, number: int) -> dict[_Sum, list[tuple[Ref, tuple[int, ...]]]]:
        """The columns of products of a phase that are read, in it and in later ones, and by what."""
        sums = {out for out, *_ in self.parts[number].sums}
        found: dict[_Sum, list[tuple[Ref, tuple[int, ...]]]] = {}
        for piece in self.segments:
            for ref, shape in piece.reads():
                if ref.value in sums:
                    index = index_of(ref.offset, shape, ref.strides, UNITS)
                    found.setdefault(_Sum(ref.value, index), []).append((ref, shape))
        return found

    def _terms(self, key: _Sum, reads: list[tuple[Ref, tuple[int, ...]]]) -> Iterator[Term]:
        """The products that columns are the sum of, apart from what is computed ahead."""
        ranges = [reached(*read) for read in reads]
        first, end = min(a for a, _ in ranges), max(b for _, b in ranges)
        for part in self.parts:
            for out, target, size, addends in part.sums:
                if out is key.value and first < target + size and target < end:
                    yield from (addend.term for addend in addends)

    # Text

    def write(self) -> PersistentSource:
        """Write the kernels."""
        self.begin: list[str] = []
        self.names: dict[str, str] = {}
        self.known: dict[tuple[Value, str], str] = {}
        self.carried = {state: f"h{k}" for k, state in enumerate(self.way.loop.states)}
        self.depth = 0
        self.phases: list[_Phase] = []
        held: dict[Value, str] = {}
        for number, piece in enumerate(self.segments):
            if number == 0 and not piece.groups:
                continue
            self.phases.append(_Phase(number > 0))
            self.lines = self.phases[-1].lines
            self._products(number)
            for g in piece.groups:
                self.tasks(g, UNITS, f"{UNITS} < {g.size}", held)
        text, kept = self._text(self._updates(held))
        return PersistentSource(
            text,
            self.stages,
            self.ahead,
            self.late,
            self.workspace,
            self.rows,
            self.tiles_of_units,
            self.warps,
            len(self.phases),
            self.memories,
            self.beginnings(),
            self.units,
            kept,
        )

    def _updates(self, held: dict[Value, str]) -> dict[str, str]:
        """Write what states become; return the names of that by the names of the states."""
        changed = {}
        for state, new in self.segments[-1].updates:
            inside = f"{UNITS} < {state.width}"
            name = held.get(new) or self.load(new, f"({UNITS})", inside, 2)
            self._store_operand(state, name, f"({UNITS})", inside, 2)
            old = self.carried[state]
            changed[old] = self.name(f"tl.where(active[:, None], {name}, {old})")
        return changed

    def _products(self, number: int) -> None:
        """Write the sums of products that a phase begins with."""
        uses: dict[tuple[Value, torch.dtype | None, int, int], list[_Use]] = {}
        totals: dict[_Sum, str] = {}
        for key, reads in self._columns(number).items():
            totals[key] = self.name(f"tl.zeros(({self.warps}, ROWS, {self.own}), DTYPE)")
            size = max(prod(shape) for _, shape in reads)
            for term in self._terms(key, reads):
                column = self.begun(f"({key.numbers})[None, :, :] - {term.target}")
                inside = f"({UNITS}[None, :, :] < {size}) & ({column} >= 0) & ({column} < {term.N})"
                numbers = term.row, term.weight.dtype, term.offset, term.K
                uses.setdefault(numbers, []).append(_Use(totals[key], term, column, inside))
        for (row, dtype, offset, depth), found in uses.items():
            least = self._padded(depth, DEEP[-1])
            few = DEEPEST // (dtype or self.dtype).itemsize
            deep = next(d for d in DEEP if d <= few and self._padded(depth, d) == least)
            for first in range(0, depth, self.warps * deep):
                of_warps = f"{first} + tl.arange(0, {self.warps})[:, None] * {deep}"
                k = self.begun(f"{of_warps} + tl.arange(0, {deep})[None, :]")
                read = self.name(self._exchanged(row, dtype, offset, k, depth))
                for total, term, column, inside in found:
                    at = f"w{term.weight.index} + {term.w_offset} + {column} * {term.n_stride}"
                    at += f" + {k}[:, :, None] * {term.k_stride}"
                    mask = f"mask=({k}[:, :, None] < {depth}) & {inside}"
                    matrix = self.begun(f"tl.load({at}, {mask}, other=0.0)")
                    product = f"F.multiply({read}, {matrix}, {total}, PRECISION)"
                    self.line(f"{total} = {product}")
        for (value, index), total in totals.items():
            inside = f"({index}) < {value.width}"
            if value in self.ahead:
                rest = [self._fetched(value, index, inside)]
            else:
                biases = self.summed[value].biases
                rest = [self.load(b.value, f"{b.offset} + {index}", inside, 2) for b in biases]
            self.known[value, index] = self.name(" + ".join([f"tl.sum({total}, 0)", *rest]))

    def _exchanged(
        self, value: Value, dtype: torch.dtype | None, offset: int, k: str, depth: int
    ) -> str:
        """Read numbers of rows that other programs have written, other ones for each warp."""
        place = self.operands[value, dtype]
        rows = "theirs" if value in self.way.loop.states else "mine"
        at = f"x{place.memory} + {rows}[None, :, None] * {self.memories[dtype]}"
        at += f" + {place.offset + offset} + {k}[:, None, :]"
        mask = f"active[None, :, None] & ({k}[:, None, :] < {depth})"
        # Not from the cache of a processor, which does not see what others write.
        return f'tl.load({at}, mask={mask}, other=0.0, cache_modifier=".cg")'

    def load(self, value: Value, index: str, inside: str, rank: int) -> str:
        if value.kind is Kind.CONSTANT or value in self.carried:
            return super().load(value, index, inside, rank)
        if value in self.summed:
            return self.known[value, index]
        if value.kind is Kind.STATIC:
            return self.begun(super().load(value, index, inside, rank))
        return self._fetched(value, index, inside)

    def _fetched(self, value: Value, index: str, inside: str) -> str:
        """Read numbers of a stream, or computed ahead of the loop, once in a step."""
        key = value, f"{index} {inside}"
        if key not in self.known:
            with self._instead(self.phases[-1].fetched):
                is_ahead = value in self.ahead
                read = self.from_ahead if is_ahead else super().load
                self.known[key] = self.name(read(value, index, inside, 2))
        return self.known[key]

    def begun(self, text: str) -> str:
        """Give what is the same in all steps a name, ahead of the loop."""
        if text not in self.names:
            with self._instead(self.begin):
                self.names[text] = self.name(text)
        return self.names[text]

    @contextmanager
    def _instead(self, lines: list[str]) -> Iterator[None]:
        """Write other lines."""
        before, self.lines = self.lines, lines
        yield
        self.lines = before

    # Kernels

    def _text(self, changed: dict[str, str]) -> tuple[str, int]:
        """Put the kernels together.

        Args:
            changed: the names of what states become, by the names of the states.

        Returns:
            The text, and how many values go from one phase to another.
        """
        operands = [f"x{k}" for k in range(1, len(self.memories) + 1)]
        arguments = [*self.pointers(), *operands, "starts", "T", "B", "descending"]
        begin = [line[4:] for line in self.owned_rows()]
        begin += [f"i = tl.program_id(1) * {self.own} + tl.arange(0, {self.own})", *self.begin]
        loads, stores = [], []
        for (state, name), number in zip(self.carried.items(), count()):
            at = f"f{number} + row[:, None] * {state.width} + {UNITS}"
            mask = f"mask=(row[:, None] < B) & ({UNITS} < {state.width})"
            loads.append(f"{name} = tl.load({at}, {mask}, other=0.0)")
            stores += [f"tl.store({at}, {name}, {mask})"] if name in changed else []
        ready = [line[4:] for line in self.rows_of_the_step()]
        ready += ["mine = step % 2 * B + row", "theirs = (1 - step % 2) * B + row"]
        changes = [f"{name} = {new}" for name, new in changed.items()]
        scope = {*arguments, *_made([*begin, *loads, *ready])}
        is_there = f"(row[:, None] < B) & ({UNITS} < {self.units})"
        fetched: list[str] = []
        passed: list[str] = []
        text: list[str] = []
        steps = [] if self.phases[0].is_after_exchange else [*ready]
        for number, phase in enumerate(self.phases):
            is_last = phase is self.phases[-1]
            fetched += phase.fetched
            used = _named(phase.lines)
            given = sorted(used & {*scope, *passed, *_made(fetched)})
            later = _named([line for other in self.phases[number + 1 :] for line in other.lines])
            made = sorted(_made(phase.lines) & {*later, *changed.values()})
            ends = [f"return {', '.join(made)}"] if made else []
            text += _function(f"phase{number}", given, [*phase.lines, *ends])
            call = f"phase{number}({', '.join([*given, *CONSTANTS])})"
            call = f"{', '.join(made)} = {call}" if made else call
            slots = {name: _slot(slot, self.units) for slot, name in enumerate([*passed, *made])}
            alone = [
                f"{v} = tl.load({slots[v]}, mask={is_there}, other=0.0)"
                for v in passed
                if v in used
            ]
            alone += [*fetched, call]
            if is_last:
                alone += [*changes, *stores]
            else:
                alone += [f"tl.store({slots[v]}, {v}, mask={is_there})" for v in made]
                passed += made
            text += _function(
                f"alone{number}", ["step", "kept", *arguments], [*begin, *loads, *ready, *alone]
            )
            if phase.is_after_exchange:
                steps += ["F.arrive(counter)", "goal = goal + programs"]
                steps += ready if number == 0 else []
                steps += [*phase.fetched, "F.wait(counter, goal)"]
            else:
                steps += phase.fetched
            steps.append(call)
        begin += [*loads, "programs = tl.num_programs(1).to(tl.int64)", "goal = programs * 0"]
        begin.append(f"counter = counters + tl.program_id(0) * {APART}")
        loop = ["for step in range(T):", *(f"    {line}" for line in [*steps, *changes])]
        text += _function("loop", ["counters", *arguments], [*begin, *loop, *stores])
        return "\n".join(text), len(passed)


def _function(name: str, arguments: list[str], lines: list[str]) -> list[str]:
    """A function of Triton's."""
    numbers = [n for n in ("step", "T", "B", "descending") if n in arguments]
    constants = [f"{constant}: tl.constexpr" for constant in CONSTANTS]
    return [
        f"@triton.jit(do_not_specialize={numbers})",
        f"def {name}({', '.join([*arguments, *constants])}):",
        *(f"    {line}" for line in lines),
        "",
    ]


def _slot(slot: int, units: int) -> str:
    """Where a value lies that goes from one phase to another."""
    return f"kept + ({slot} * B + row[:, None]) * {units} + {UNITS}"


def _made(lines: list[str]) -> set[str]:
    """The names that lines give."""
    found = (re.match(r" *(\w+) = ", line) for line in lines)
    return {match[1] for match in found if match}


def _named(lines: list[str]) -> set[str]:
    """The names in lines, apart from those of arguments."""
    return set(re.findall(r"\b[A-Za-z]\w*\b(?!=)", "\n".join(lines)))


def _is_copy(task: Task) -> bool:
    return task.op == "copy" and task.out is task.args[0].value
