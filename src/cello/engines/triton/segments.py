"""A loop as a graph of steps: products by torch, and one kernel for what is between them.

A *segment* is what lies between two products; the last one of a step and the first one of the next step are
computed by one kernel where that is possible. A kernel reads the number of the step, T and the addresses of
all tensors from a table in memory, so that other tensors run the same launches. Numbers that are multiplied
are written to memory of their own, in the dtype of the matrix, and sums of products are completed by
whoever reads them, with what was computed ahead of the loop.

Where no number of a kernel depends on another one of its row, a program owns a tile of the numbers of a
row, and what it has computed stays in registers. Otherwise a program owns whole rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch

from cello.compile.instructions import Ref, Value
from cello.compile.stages import Addend, Gemm, Place, joined
from cello.engines.triton.groups import Group, copy_of, is_identity
from cello.engines.triton.writer import TYPES, Source, Writer, of_rows, power

BASE, STEPS, DESCENDING, TENSORS = range(4)
"""What the table holds: the step that k counts from, T, the direction, and from there on addresses."""


class Launch(NamedTuple):
    """A kernel of a step.

    Attributes:
        name: of the function.
        tiles: of the numbers of a row, that have a program each.
    """

    name: str
    tiles: int


class Stretch(NamedTuple):
    """Products of a step, and the kernel that follows, if one does.

    Attributes:
        gemms: the products. Memory 0 is the workspace, the others are those of what is multiplied.
        launch: the kernel.
    """

    gemms: list[Gemm]
    launch: Launch | None


@dataclass(frozen=True, eq=False)
class GraphSource(Source):
    """The text of the kernels of a graph of steps.

    Attributes:
        before: the kernel that is launched once, ahead of the first step.
        step: products and kernels in turn.
        memories: the dtype and the width of each memory of what is multiplied, from memory 1 on; ``None``
            is the dtype of the loop.
        beginnings: the states that are multiplied, by their numbers, and where.
        addresses: how many the table holds.
    """

    before: Launch | None
    step: list[Stretch]
    memories: dict[torch.dtype | None, int]
    beginnings: list[tuple[int, Place]]
    addresses: int


@dataclass
class Segment:
    """What is computed between two products of one step.

    Attributes:
        groups: the instructions.
        updates: the states that change at its end, and what they become.
        later: 1 if it belongs to the step after the products, else 0.
    """

    groups: list[Group]
    updates: list[tuple[Value, Value]] = field(default_factory=list)
    later: int = 0

    @property
    def computed(self) -> set[Value]:
        """The values that it computes, apart from those that it only copies to where they are kept."""
        tasks = (task for g in self.groups for task in g.tasks)
        return {t.out for t in tasks if t.reduces or all(t.out is not r.value for r in t.args)}

    @property
    def sizes(self) -> list[int]:
        """How many numbers of a row each part of it goes through."""
        return [g.size for g in self.groups] + [state.width for state, _ in self.updates]

    def reads(self) -> Iterator[tuple[Ref, tuple[int, ...]]]:
        """What it reads."""
        for g in self.groups:
            for task in g.tasks:
                yield from ((ref, task.shape) for ref in task.args)
        yield from self.updated()

    def updated(self) -> Iterator[tuple[Ref, tuple[int, ...]]]:
        """What it reads of the new states."""
        yield from ((Ref(new, 0, (1,)), (new.width,)) for _, new in self.updates)


class OperandWriter(Writer):
    """Writes kernels that leave what is multiplied in memory of its own.

    Attributes:
        home: the name of the rows where they leave it.
    """

    home: ClassVar[str] = "row"

    def collect(self) -> list[Segment]:
        """Give what is multiplied a place, and return the segments of a step."""
        addends = [a for part in self.parts for *_, found in part.sums for a in found]
        self.summed = {product.out: product for product, *_ in addends}
        self.memories: dict[torch.dtype | None, int] = {}
        self.operands: dict[tuple[Value, torch.dtype | None], Place] = {}
        for _, term, _ in addends:
            self._operand(term.row, term.weight.dtype)
        self._copy_the_rest()
        segments = [Segment(part.groups) for part in self.parts]
        segments[-1].updates = self.updates()
        return segments

    def beginnings(self) -> list[tuple[int, Place]]:
        """The states that are multiplied, by their numbers, and where."""
        return [
            (self.way.loop.states.index(value), place)
            for (value, _), place in self.operands.items()
            if value in self.way.loop.states
        ]

    def _operand(self, value: Value, dtype: torch.dtype | None) -> None:
        """Give something that is multiplied with a matrix of this dtype a place."""
        offset = self.memories.setdefault(dtype, 0)
        if (value, dtype) not in self.operands:
            self.operands[value, dtype] = Place(list(self.memories).index(dtype) + 1, offset)
            self.memories[dtype] += value.width

    def _copy_the_rest(self) -> None:
        """Add copies of what has a place and is neither computed by a task nor a state of the loop."""
        computed = {value for part in self.parts for value in Segment(part.groups).computed}
        wanted = [value for value, _ in self.operands] + [
            v for v in self.summed if v in self.copied
        ]
        for value in dict.fromkeys(wanted):
            if value not in computed and value not in self.way.loop.states:
                part = self.parts[self.stages.levels.get(value, 0)]
                part.groups.append(Group(value.width, False, [copy_of(value, value)]))

    def store(self, value: Value, name: str, index: str, inside: str, rank: int) -> None:
        super().store(value, name, index, inside, rank)
        self._store_operand(value, name, index, inside, rank)

    def _store_operand(self, value: Value, name: str, index: str, inside: str, rank: int) -> None:
        rows, mask = of_rows(inside, rank)
        for dtype, width in self.memories.items():
            place = self.operands.get((value, dtype))
            if place is not None:
                at = f"x{place.memory} + {self.home}{rows} * {width} + {place.offset} + ({index})"
                self.line(f"tl.store({at}, {name}, mask={mask})")


class GraphWriter(OperandWriter):
    """Writes the kernels of a graph of steps."""

    tile = 256
    longest = 1024
    reduced = 4096

    def write(self) -> GraphSource:
        """Write the kernels."""
        segments = self.collect()
        kernels = _in_turn(segments)
        self._keep(kernels)
        self.text: list[str] = []
        launches = [self._kernel(pieces) for pieces in kernels]
        gemms = [self._gemms(part.sums) for part in self.parts[1:]]
        before = launches.pop(0) if len(segments) > 1 else None
        gemms += [[] for _ in range(len(launches) - len(gemms))]
        self._fill()
        return GraphSource(
            "\n".join(self.text),
            self.stages,
            self.ahead,
            self.late,
            self.workspace,
            before,
            [Stretch(*pair) for pair in zip(gemms, launches, strict=True)],
            self.memories,
            self.beginnings(),
            len(self.addresses()),
        )

    # Places

    def _keep(self, kernels: list[list[Segment]]) -> None:
        """Give what goes from one kernel or one group to another a place in memory."""
        memory: set[Value] = set(self.summed)
        for pieces in kernels:
            is_split = can_be_split(pieces)
            for piece in pieces:
                own = piece.computed if is_split else set()
                memory |= {ref.value for ref, _ in piece.updated()} - own
                for g in piece.groups:
                    for task in g.tasks:
                        read = {r.value for r in task.args if not g.has(r, task.shape)}
                        memory |= read - own
        self.keep(memory)

    def _gemms(self, sums: list[tuple[Value, int, int, list[Addend]]]) -> list[Gemm]:
        """The products of a stage, those that begin a sum first."""
        own: dict[torch.dtype | None, list[Addend]] = {}
        for *_, addends in sums:
            for number, (product, term, _) in enumerate(addends):
                found = Addend(product, term, number > 0)
                own.setdefault(term.weight.dtype, []).append(found)
        outs = {out for out, *_ in sums}

        def joined_of(dtype: torch.dtype | None) -> list[Gemm]:
            def home(value: Value) -> Place:
                is_out = value in outs
                return Place(0, self.places[value]) if is_out else self.operands[value, dtype]

            return joined(own[dtype], home)

        return sorted((g for dtype in own for g in joined_of(dtype)), key=lambda g: g.accumulates)

    # Text

    def _kernel(self, pieces: list[Segment]) -> Launch | None:
        """Write the kernel of some segments, each of which has something to do."""
        if not pieces:
            return None
        self.lines, self.constants = [], {}
        size = max(size for piece in pieces for size in piece.sizes)
        self.is_split = can_be_split(pieces)
        width = min(power(size), self.tile)
        for piece in pieces:
            if piece is not pieces[0]:
                self.barrier()
            self.line(f"number = base + k + {piece.later}")
            self.line("step = tl.minimum(number, T - 1)")
            self.lines += self.rows_of_the_step()
            self.line("active = row < tl.where(number < T, count, 0)")
            self._segment(piece)
        name = f"segment{len(self.text)}"
        types = self.addresses()
        used = set(re.findall(r"\w+", "\n".join(self.lines))) & set(types)
        self.text.append("\n".join([
            '@triton.jit(do_not_specialize=["k"])',
            f"def {name}(table, k, ROWS: tl.constexpr, DTYPE: tl.constexpr):",
            f"    base = tl.load(table + {BASE})",
            f"    T = tl.load(table + {STEPS})",
            f"    descending = tl.load(table + {DESCENDING})",
            *(
                f"    {name} = tl.load(table + {at}).to(tl.pointer_type({type_}))"
                for at, (name, type_) in enumerate(types.items(), TENSORS)
                if name in used
            ),
            *self.owned_rows(),
            *([f"    i = tl.program_id(1) * {width} + tl.arange(0, {width})"] if self.is_split else []),
            *self.lines,
            "",
        ]))  # fmt: skip
        return Launch(name, -(-size // width) if self.is_split else 1)

    def addresses(self) -> dict[str, str]:
        """What the table has the addresses of, and the types of the numbers there."""
        types = {dtype: TYPES[dtype] if dtype else "DTYPE" for dtype in self.memories}
        memories = {f"x{k}": types[dtype] for k, dtype in enumerate(self.memories, 1)}
        return {**self.pointers(), "starts": "tl.int64", "work": "DTYPE", **memories}

    def _fill(self) -> None:
        """Write the kernel that fills the table."""
        names = ["T", "descending", *self.addresses()]
        self.text.append("\n".join([
            f"@triton.jit(do_not_specialize={names})",
            f"def fill(table, {', '.join(names)}):",
            f"    tl.store(table + {BASE}, 0)",
            f"    tl.store(table + {STEPS}, T)",
            f"    tl.store(table + {DESCENDING}, descending)",
            *(
                f"    tl.store(table + {at}, {name}.to(tl.int64))"
                for at, name in enumerate(names[2:], TENSORS)
            ),
            "",
        ]))  # fmt: skip

    def _segment(self, piece: Segment) -> None:
        held: dict[Value, str] = {}
        for number, g in enumerate(piece.groups):
            if self.is_split:
                with self.tiles(g.size, self.tile) as tile:
                    self.tasks(g, *tile, held)
                continue
            if number > 0:
                self.barrier()
            self.group(g)
        if not piece.updates:
            return
        if self.is_split:
            names = []
            for state, new in piece.updates:
                with self.tiles(state.width, self.tile) as tile:
                    names.append(held.get(new) or self.name(self.load(new, *tile, 2)))
            self.barrier()  # other threads may still read what changes now
            for (state, _), name in zip(piece.updates, names, strict=True):
                with self.tiles(state.width, self.tile) as tile:
                    self.change(state, name, *tile)
            return
        self.barrier()
        for state, new in piece.updates:
            self.update(state, new)

    def tiles(self, size: int, limit: int) -> AbstractContextManager[tuple[str, str]]:
        if self.is_split:  # the program's own
            return nullcontext(("i[None, :]", f"i[None, :] < {size}"))
        return super().tiles(size, limit)

    def from_work(self, value: Value, index: str, inside: str, rank: int) -> str:
        found = super().from_work(value, index, inside, rank)
        product = self.summed.get(value)
        if product is None:
            return found
        rest = [
            self.load(bias.value, f"{bias.offset} + ({index}) % {product.block}", inside, rank)
            for bias in product.biases
        ]
        if value in self.ahead:
            rest = [self.from_ahead(value, index, inside, rank)]
        return " + ".join([found, *rest])

    def change(self, state: Value, name: str, index: str, inside: str) -> None:
        super().change(state, name, index, inside)
        self._store_operand(state, name, index, inside, 2)


def _in_turn(segments: list[Segment]) -> list[list[Segment]]:
    """The kernels of a loop: the one ahead of the first step, then those of each step.

    Where there are products in the loop, the first segment is computed at the end of the step before.
    """
    if len(segments) == 1:
        return [segments]
    first, *others = segments
    kernels = [[segment] if segment.sizes else [] for segment in (first, *others)]
    if first.sizes:
        next_one = replace(first, later=1)
        both = [*kernels[-1], next_one]
        if can_be_split(both) or not any(can_be_split([piece]) for piece in both):
            kernels[-1] = both
        else:
            kernels.append([next_one])
    return kernels


def can_be_split(pieces: list[Segment]) -> bool:
    """Whether a kernel needs of what it computes or changes no other number than the one at each turn.

    Nor may it write a number twice, zeros and then a piece, at turns that different programs take.
    """
    written = {value for piece in pieces for value in piece.computed}
    written |= {state for piece in pieces for state, _ in piece.updates}
    tasks = [task for piece in pieces for g in piece.groups for task in g.tasks]
    scattered = {task.out for task in tasks if not task.is_whole}
    filled = {task.out for task in tasks if task.is_whole}
    return not (scattered & filled or any(task.reduces for task in tasks)) and all(
        is_identity(ref, shape) and ref.value not in scattered
        for piece in pieces
        for ref, shape in piece.reads()
        if ref.value in written
    )
