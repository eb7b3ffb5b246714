"""What the texts of all kinds of kernels share: where the numbers of a row are, and how tasks become lines.

The text is made of numbers and names of this package, one operation a line. T, B and lengths are no part of
it: another batch runs the same kernel. What is known before the loop is multiplied ahead of it, and weight
gradients behind it, by torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from cello.compile.instructions import Kind, Product, Value
from cello.compile.loops import Pass
from cello.compile.stages import Addend, Stages, make_stages
from cello.engines.triton.groups import Group, Task, copy_of, group, is_identity, merged

MANY = 12
"""Tasks from which on a group takes half as many numbers, so that what it holds fits the registers."""

TYPES = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
}
"""Dtypes of torch, as Triton calls them."""


@dataclass(frozen=True, eq=False)
class Source:
    """The text of the kernels of a loop, and what they need.

    Attributes:
        text: the kernels, as functions.
        stages: what is done ahead of the loop and behind it.
        ahead: the products of which some numbers are computed ahead, in the order of the arguments.
        late: the values of which the rows of all steps are written for what comes behind the loop.
        workspace: how many numbers of memory each row needs.
    """

    text: str
    stages: Stages
    ahead: list[Value]
    late: list[Value]
    workspace: int


@dataclass
class Part:
    """A stage of a step, as kernels compute it.

    Attributes:
        sums: the columns of products that are complete here: which of which value, how many, and what is
            added up. Columns without addends were computed ahead.
        groups: the instructions that follow.
    """

    sums: list[tuple[Value, int, int, list[Addend]]]
    groups: list[Group]


class Writer:
    """Writes kernels of one loop.

    Args:
        way: the loop.
        missing: the numbers of the streams that are not there and count as zeros.

    Attributes:
        tile: numbers of a row at a time, at most.
        longest: numbers of an axis that a reduction takes at a time, at most.
        reduced: numbers of a row that it takes at a time, at most.
        places: where in the memory of its row a value lies that goes from one group to another.
        carried: the names of states that stay in registers.
        summed: products that are summed up apart from what reads them, which completes the sums.
    """

    tile: ClassVar[int] = 64
    longest: ClassVar[int] = 128
    reduced: ClassVar[int] = 64

    def __init__(self, way: Pass, missing: frozenset[int]) -> None:
        self.way, self.missing = way, missing
        self.stages = make_stages(way)
        self.lines: list[str] = []
        self.depth = 1
        self.places: dict[Value, int] = {}
        self.constants: dict[str, str] = {}
        self.carried: dict[Value, str] = {}
        self.summed: dict[Value, Product] = {}
        self.count = self.workspace = 0
        loop = way.loop
        self.widths = way.streams.in_order()
        late = set(self.stages.late) | {row_sum.source.value for row_sum in loop.row_sums}
        self.late = [
            value
            for value in [*loop.states, *loop.inputs, *(i.out for i in loop.body)]
            if value in late and not self.stages.is_known(value)
        ]
        self.ahead = list(
            dict.fromkeys(a.product.out for stage in self.stages.steps for a in stage.ahead)
        )
        in_loop = [a.product.out for stage in self.stages.steps for a in stage.addends]
        self.only_ahead = set(self.ahead) - set(in_loop)
        self.copied = {w.value for w in way.writes} | set(self.late)
        self.parts = self._parts()

    def _parts(self) -> list[Part]:
        found = []
        for stage in self.stages.steps:
            sums: dict[tuple[Value, int, int], list[Addend]] = {}
            for addend in stage.ahead:
                if addend.product.out not in self.only_ahead:
                    sums.setdefault(_columns(addend), [])
            for addend in stage.addends:
                sums.setdefault(_columns(addend), []).append(addend)
            found.append(
                Part([(*key, addends) for key, addends in sums.items()], group(stage.fusion))
            )
        loop = self.way.loop
        known = [v for v in dict.fromkeys([*loop.inputs, *loop.states]) if v in self.copied]
        known += [v for v in self.only_ahead if v in self.copied]
        for value in known:  # kept, and not computed here
            found[-1].groups.append(Group(value.width, False, [copy_of(value, value)]))
        return found

    def keep(self, values: set[Value]) -> None:
        """Give those of these values that a step computes a place in memory."""
        for instruction in self.way.loop.body:
            out = instruction.out
            if out in values and out not in self.only_ahead:
                self.places[out] = self.workspace
                self.workspace += out.width

    def pointers(self) -> dict[str, str]:
        """The names of the tensors that kernels read and write, in order, and their dtypes."""
        loop = self.way.loop
        groups = {
            "s": self.widths,
            "f": loop.states,
            "o": loop.states,
            "a": self.ahead,
            "l": self.late,
        }
        statics = {
            f"w{k}": TYPES[v.dtype] if v.dtype else "DTYPE" for k, v in enumerate(loop.statics)
        }
        return statics | {
            f"{n}{k}": "DTYPE" for n, group in groups.items() for k in range(len(group))
        }

    def updates(self) -> list[tuple[Value, Value]]:
        """The states that a step changes, and what they become."""
        loop = self.way.loop
        pairs = zip(loop.states, loop.new_states, strict=True)
        return [(state, new) for state, new in pairs if state is not new]

    # Text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def name(self, value: str) -> str:
        """Give a number a name of its own: in Triton a name keeps its shape in a loop."""
        self.count += 1
        self.line(f"v{self.count} = {value}")
        return f"v{self.count}"

    def constant(self, number: float) -> str:
        text = repr(float(number))
        text = f'float("{text}")' if text.strip("-") in ("inf", "nan") else text
        return self.constants.setdefault(text, f"c{len(self.constants)}")

    def barrier(self) -> None:
        """Wait until what the threads of this program have written can be read by all of them."""
        self.line("tl.debug_barrier()")

    # Places

    def load(self, value: Value, index: str, inside: str, rank: int) -> str:
        """Read numbers of a value.

        Args:
            value: the value.
            index: which of its numbers, an expression over the axes behind that of the rows.
            inside: which of these there are.
            rank: the axes of the block, with that of the rows.
        """
        rows, mask = of_rows(inside, rank)
        if value.kind is Kind.CONSTANT:
            return self.constant(value.number)
        if value.kind is Kind.STATIC:
            return f"tl.load(w{value.index} + ({index}), mask={inside}, other=0.0).to(DTYPE)"
        if value in self.only_ahead:
            return self.from_ahead(value, index, inside, rank)
        if value in self.carried:
            return self.carried[value]
        if value.kind is Kind.STATE and value in self.way.loop.states:
            at = f"f{self.way.loop.states.index(value)} + row{rows} * {value.width} + ({index})"
            return f"tl.load({at}, mask={mask}, other=0.0)"
        if value in self.way.reads:
            return self._from_stream(value, index, mask, rows)
        return self.from_work(value, index, inside, rank)

    def from_ahead(self, value: Value, index: str, inside: str, rank: int) -> str:
        """Read numbers of a product that are computed ahead of the loop."""
        rows, mask = of_rows(inside, rank)
        at = f"a{self.ahead.index(value)} + pos{rows} * {value.width} + ({index})"
        return f"tl.load({at}, mask={mask}, other=0.0)"

    def from_work(self, value: Value, index: str, inside: str, rank: int) -> str:
        """Read numbers of a value that this step has left in memory."""
        rows, mask = of_rows(inside, rank)
        at = f"work + row{rows} * {self.workspace} + {self.places[value]} + ({index})"
        return f"tl.load({at}, mask={mask}, other=0.0)"

    def _from_stream(self, value: Value, index: str, mask: str, rows: str) -> str:
        column = self.way.reads[value]
        if column.stream in self.missing:
            return self.constant(0.0)
        at = f"{self.widths[column.stream]} + {column.offset} + ({index})"
        stream = f"s{column.stream}"
        if column.origin is None:
            return f"tl.load({stream} + pos{rows} * {at}, mask={mask}, other=0.0)"
        went = self.name(
            f"tl.load({stream} + before{rows} * {at}, mask={mask} & going{rows}, other=0.0)"
        )
        start = f"o{column.origin} + row{rows} * {value.width} + ({index})"
        began = self.name(f"tl.load({start}, mask={mask} & (going{rows} == 0), other=0.0)")
        return f"tl.where(going{rows}, {went}, {began})"

    def store(self, value: Value, name: str, index: str, inside: str, rank: int) -> None:
        """Write numbers of a value to wherever they are kept."""
        rows, mask = of_rows(inside, rank)
        if value in self.places and value not in self.summed:
            at = f"work + row{rows} * {self.workspace} + {self.places[value]} + ({index})"
            self.line(f"tl.store({at}, {name}, mask={mask})")
        for write in self.way.writes:
            if write.value is not value:
                continue
            at = f"{self.widths[write.column.stream]} + {write.column.offset - write.first} + ({index})"
            kept = mask
            if (write.first, write.end) != (0, value.width):
                kept = f"{mask} & (({index}) >= {write.first}) & (({index}) < {write.end})"
            self.line(f"tl.store(s{write.column.stream} + pos{rows} * {at}, {name}, mask={kept})")
        if value in self.late:
            at = f"l{self.late.index(value)} + pos{rows} * {value.width} + ({index})"
            self.line(f"tl.store({at}, {name}, mask={mask})")

    # Work

    def owned_rows(self) -> list[str]:
        """The lines that number the rows of a program, and constants."""
        # Before Triton 3.9 a constant of -0.0 is 0.0.
        constants = (
            f"    {name} = tl.full((1, 1), {'0.0' if text == '-0.0' else text}, DTYPE)"
            + " * -1.0" * (text == "-0.0")
            for text, name in self.constants.items()
        )
        return ["    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)", *constants]

    def rows_of_the_step(self) -> list[str]:
        """The lines that find the rows of step number `step` of T in the streams."""
        lines = [
            "    t = step + descending * (T - 1 - 2 * step)",
            "    start = tl.load(starts + t)",
            "    count = tl.load(starts + t + 1) - start",
            "    active = row < count",
            "    pos = start + row",
        ]
        if any(column.origin is not None for column in self.way.reads.values()):
            lines += [
                "    other = t + 1 - 2 * descending",
                "    is_there = (other >= 0) & (other < T)",
                "    first = tl.load(starts + other, mask=is_there, other=0)",
                "    end = tl.load(starts + other + 1, mask=is_there, other=0)",
                "    going = row < end - first",
                "    before = first + row",
            ]
        return lines

    def update(self, state: Value, new: Value) -> None:
        """Let a state be the new one, for all numbers of the rows."""
        with self.tiles(state.width, self.tile) as (index, inside):
            self.change(state, self.name(self.load(new, index, inside, 2)), index, inside)

    def change(self, state: Value, name: str, index: str, inside: str) -> None:
        """Write numbers of a state."""
        rows, mask = of_rows(inside, 2)
        at = f"f{self.way.loop.states.index(state)} + row{rows} * {state.width} + ({index})"
        self.line(f"tl.store({at}, {name}, mask={mask})")

    def tiles(self, size: int, limit: int) -> AbstractContextManager[tuple[str, str]]:
        """Go through so many numbers of a row, at most `limit` at a time: which, and which there are."""
        return self.counted(size, min(power(size), limit))

    @contextmanager
    def counted(self, size: int, width: int) -> Iterator[tuple[str, str]]:
        """Go through so many numbers of a row, `width` at a time."""
        if size > width:
            self.line(f"for u in range(0, {size}, {width}):")
            self.depth += 1
            i = self.name(f"u + tl.arange(0, {width})")
        else:
            i = self.name(f"tl.arange(0, {width})")
        yield f"{i}[None, :]", f"{i}[None, :] < {size}"
        if size > width:
            self.depth -= 1

    def group(self, g: Group) -> None:
        """Write the tasks of a group for all numbers of the rows."""
        if g.reduces:
            self.reduction(g.tasks[0])
            return
        with self.tiles(g.size, self.tile if len(g.tasks) <= MANY else self.tile // 2) as tile:
            self.tasks(g, *tile, {})

    def tasks(self, g: Group, flat: str, inside: str, held: dict[Value, str]) -> None:
        """Write the tasks of a group for the numbers `flat`.

        Args:
            g: the group.
            flat: which numbers.
            inside: which of them there are.
            held: the names of whole values that are known for these numbers; what is computed is added.
        """
        read: dict[tuple[Value, str], str] = {}
        for task in g.tasks:
            names = []
            for ref in task.args:
                if ref.value in held and is_identity(ref, task.shape):
                    names.append(held[ref.value])
                    continue
                index = index_of(ref.offset, task.shape, ref.strides, flat)
                key = ref.value, index
                if key not in read:
                    read[key] = self.name(self.load(ref.value, index, inside, 2))
                names.append(read[key])
            name = self.name(f"F.{_function(task.op)}({', '.join(names)})")
            if task.is_whole:
                held[task.out] = name
            index = index_of(task.offset, task.shape, task.strides, flat)
            self.store(task.out, name, index, inside, 2)

    def reduction(self, task: Task) -> None:
        *kept, last = task.shape
        count = prod(kept)
        blank = {"amax": 'float("-inf")', "amin": 'float("inf")'}.get(task.op, "0.0")
        if task.op == "select":
            blank = f"{self.constant(-0.0)}[:, :, None]"
        combine = {"amax": "maximum", "amin": "minimum"}.get(task.op, "add")
        width = min(power(last), self.longest)
        with self.tiles(count, max(1, self.reduced // width)) as (flat, inside):
            j = flat.replace("[None, :]", "[None, :, None]")
            inside_j = inside.replace("[None, :]", "[None, :, None]")
            total = ""
            for first in range(0, last, width):
                i = self.name(f"{first} + tl.arange(0, {width})[None, None, :]")
                within = self.name(f"({inside_j}) & ({i} < {last})")
                names = []
                for ref in task.args:
                    outer = index_of(ref.offset, tuple(kept), ref.strides[:-1], j)
                    at = f"{outer} + {i} * {ref.strides[-1]}"
                    names.append(self.name(self.load(ref.value, at, within, 3)))
                x = names[0] if len(names) == 1 else f"F.{task.op}({', '.join(names)})"
                x = self.name(f"tl.where({within}, {x}, {blank}).to(DTYPE)")
                reduced = task.op if len(names) == 1 else "sum"
                part = self.name(f"F.{reduced}({x}, 2)")
                total = self.name(f"F.{combine}({total}, {part})") if total else part
            self.store(task.out, total, flat, inside, 2)


def index_of(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], flat: str) -> str:
    """Number `flat` of a block, as an expression."""
    axes = merged(shape, strides)
    terms = [str(offset)] if offset else []
    inner = 1
    for place, (size, stride) in reversed(list(enumerate(axes))):
        part = flat if inner == 1 else f"{flat} // {inner}"
        if place > 0:
            part = f"{part} % {size}"
        inner *= size
        if stride != 0:
            terms.append(f"({part}) * {stride}" if stride != 1 else f"({part})")
    if all(stride == 0 for _, stride in axes):  # the same number for the whole block
        terms.append(f"{flat} * 0")
    return " + ".join(terms)


def _columns(addend: Addend) -> tuple[Value, int, int]:
    """The columns of a product that an addend is added to."""
    return addend.product.out, addend.term.target, addend.term.N


def of_rows(inside: str, rank: int) -> tuple[str, str]:
    """The index that gives something of each row the axes of a block, and the mask of the block."""
    rows = f"[:, {', '.join(['None'] * (rank - 1))}]"
    return rows, f"active{rows} & ({inside})"


def power(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, size - 1).bit_length()


def _function(op: str) -> str:
    return "not_" if op == "not" else op
