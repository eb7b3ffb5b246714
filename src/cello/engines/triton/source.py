"""A loop as the text of one Triton kernel.

A program of the kernel owns `ROWS` rows of the batch for all steps, so that programs never wait for each
other. Numbers of the row stay in registers within a group of tasks, and go through memory of the program's
own rows between groups; a product reads its matrix anew at each step. What is known before the loop is
multiplied ahead of it, and weight gradients behind it, by torch.

Where no number of the state meets another one (`units`), a program owns a few numbers of its rows as
well, and keeps the state in registers.

The text is made of numbers and names of this package, one operation a line. T, B and lengths are arguments:
another batch runs the same kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from cello.compile.instructions import Kind, Ref, Value
from cello.compile.loops import Pass
from cello.compile.stages import Addend, Stages, make_stages
from cello.engines.triton.groups import Group, Task, copy_of, group, is_identity, merged

TILE = 64
"""Numbers of a row at a time, at most."""
MANY = 12
"""Tasks from which on a group takes half as many, so that what it holds fits the registers."""
DEEP = 64
"""Numbers that a product sums at a time, at most."""
LONGEST = 1024
"""Numbers of an axis that a reduction takes at a time, at most."""


@dataclass(frozen=True)
class Source:
    """The text of a kernel, and what its arguments are.

    Attributes:
        text: the kernel, a function `loop`.
        stages: what is done ahead of the loop and behind it.
        ahead: the products of which some numbers are computed ahead, in the order of the arguments.
        late: the values of which the rows of all steps are written for what comes behind the loop.
        workspace: how many numbers of memory each row needs.
        units: how many numbers a row has, where a program owns :data:`TILE` of them; 0 where it owns all.
    """

    text: str
    stages: Stages
    ahead: list[Value]
    late: list[Value]
    workspace: int
    units: int


@dataclass
class _Writer:
    """Writes the kernel of one loop."""

    way: Pass
    missing: frozenset[int]
    stages: Stages = field(init=False)
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    places: dict[Value, int] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    count: int = 0
    units: int = 0

    def __post_init__(self) -> None:
        self.stages = make_stages(self.way)
        loop = self.way.loop
        self.widths = self.way.streams.in_order()
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
        self.carried: dict[Value, str] = {}
        self.workspace = 0
        for instruction in loop.body:
            if instruction.out not in self.only_ahead:
                self.places[instruction.out] = self.workspace
                self.workspace += instruction.out.width

    # Text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def name(self, value: str) -> str:
        """Give a number a name."""
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
        rows, mask = _of_rows(inside, rank)
        if value.kind is Kind.CONSTANT:
            return self.constant(value.number)
        if value.kind is Kind.STATIC:
            return f"tl.load(w{value.index} + ({index}), mask={inside}, other=0.0).to(DTYPE)"
        if value in self.only_ahead:
            at = f"a{self.ahead.index(value)} + pos{rows} * {value.width} + ({index})"
            return f"tl.load({at}, mask={mask}, other=0.0)"
        if value in self.carried:
            return self.carried[value]
        if value.kind is Kind.STATE and value in self.way.loop.states:
            at = f"f{self.way.loop.states.index(value)} + row{rows} * {value.width} + ({index})"
            return f"tl.load({at}, mask={mask}, other=0.0)"
        if value in self.way.reads:
            return self._from_stream(value, index, mask, rows)
        at = f"work + row{rows} * WORK + {self.places[value]} + ({index})"
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
        rows, mask = _of_rows(inside, rank)
        if value in self.places and value in self.in_memory:
            at = f"work + row{rows} * WORK + {self.places[value]} + ({index})"
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

    def plan(self) -> list[tuple[list[tuple[Value, int, int, list[Addend]]], list[Group]]]:
        """The products and the groups of each stage, and in `in_memory` what goes through memory."""
        found = []
        for stage in self.stages.steps:
            sums: dict[tuple[Value, int, int], list[Addend]] = {}
            for addend in stage.ahead:
                if addend.product.out not in self.only_ahead:
                    sums.setdefault(_columns(addend), [])
            for addend in stage.addends:
                sums.setdefault(_columns(addend), []).append(addend)
            products = [(*key, addends) for key, addends in sums.items()]
            found.append((products, group(stage.fusion)))
        loop = self.way.loop
        copied = {w.value for w in self.way.writes} | set(self.late)
        known = [v for v in dict.fromkeys([*loop.inputs, *loop.states]) if v in copied]
        known += [v for v in self.only_ahead if v in copied]
        for value in known:  # kept, and not computed here
            found[-1][1].append(Group(value.width, False, [copy_of(value, value)]))
        self.in_memory = {value for value in loop.new_states if value in self.places}
        self.in_memory |= {out for products, _ in found for out, *_ in products}
        for products, groups in found:
            for *_, addends in products:
                self.in_memory |= {addend.term.row for addend in addends}
            for g in groups:
                for task in g.tasks:
                    inner = {r.value for r in task.args if g.has(r, task.shape)}
                    self.in_memory |= {r.value for r in task.args} - inner
        return found

    def kernel(self) -> None:
        stages = self.plan()
        self.depth = 2
        self.units = self._units(stages)
        if self.units:
            self.elementwise(stages[0][1][0])
            return
        for products, groups in stages:
            if products:
                self.barrier()
            for out, target, size, addends in products:
                self.product(out, target, size, addends)
            for g in groups:
                self.barrier()
                self.group(g)
        self.barrier()
        loop = self.way.loop
        pairs = zip(loop.states, loop.new_states, strict=True)
        for state, new in pairs:
            if state is not new:
                self.update(state, new)

    def _units(self, stages: list[tuple[list[Any], list[Group]]]) -> int:
        """How many numbers a row has, if each number of the state depends on its own before; else 0."""
        if len(stages) != 1 or stages[0][0] or not stages[0][1] or not self.way.loop.states:
            return 0
        first, *others = stages[0][1]
        states, news = self.way.loop.states, self.way.loop.new_states
        copies = [task for g in others for task in g.tasks]
        is_plain = not first.reduces and all(
            task.out is task.args[0].value and task.size == first.size for task in copies
        )
        reads = [(ref, task.shape) for task in first.tasks for ref in task.args]
        if (
            not is_plain
            or any(state.width != first.size for state in states)
            or any(r.value in states and not is_identity(r, shape) for r, shape in reads)
            or any(not first.has(Ref(new, 0, (1,)), (first.size,)) for new in news)
            or any(task.size != first.size for task in first.tasks)
        ):
            return 0
        first.tasks += copies
        return first.size

    def elementwise(self, group: Group) -> None:
        """Write the loop of a program that owns a tile of units."""
        loop = self.way.loop
        self.carried = {state: f"h{k}" for k, state in enumerate(loop.states)}
        self.in_memory = set()
        flat, inside = "i[None, :]", f"i[None, :] < {self.units}"
        held = self.tasks(group, flat, inside)
        for state, new in zip(loop.states, loop.new_states, strict=True):
            name = self.carried[state]
            self.line(f"{name} = tl.where(active[:, None], {held[new]}, {name})")

    def update(self, state: Value, new: Value) -> None:
        """Let a state be the new one."""
        with self.tiles(state.width) as (index, inside):
            name = self.name(self.load(new, index, inside, 2))
            at = f"f{self.way.loop.states.index(state)} + row[:, None] * {state.width} + ({index})"
            self.line(f"tl.store({at}, {name}, mask=active[:, None] & ({inside}))")

    def tiles(self, size: int, limit: int = TILE) -> _Tiles:
        """A loop over so many numbers of a row."""
        return _Tiles(self, size, limit)

    def group(self, g: Group) -> None:
        if g.reduces:
            self.reduction(g.tasks[0])
            return
        with self.tiles(g.size, TILE if len(g.tasks) <= MANY else TILE // 2) as (flat, inside):
            self.tasks(g, flat, inside)

    def tasks(self, g: Group, flat: str, inside: str) -> dict[Value, str]:
        """Write the tasks of a group for the numbers `flat`; return the names of what they compute."""
        held: dict[Value, str] = {}
        read: dict[tuple[Value, str], str] = {}
        for task in g.tasks:
            names = []
            for ref in task.args:
                if ref.value in held and g.has(ref, task.shape):
                    names.append(held[ref.value])
                    continue
                index = _index(ref.offset, task.shape, ref.strides, flat)
                key = ref.value, index
                if key not in read:
                    read[key] = self.name(self.load(ref.value, index, inside, 2))
                names.append(read[key])
            name = self.name(f"F.{_function(task.op)}({', '.join(names)})")
            if task.is_whole:
                held[task.out] = name
            index = _index(task.offset, task.shape, task.strides, flat)
            self.store(task.out, name, index, inside, 2)
        return held

    def reduction(self, task: Task) -> None:
        *kept, last = task.shape
        count = prod(kept)
        (ref,) = task.args
        blank = {"sum": "0.0", "amax": 'float("-inf")', "amin": 'float("inf")'}[task.op]
        combine = {"sum": "add", "amax": "maximum", "amin": "minimum"}[task.op]
        with self.tiles(count, 16) as (flat, inside):
            j = flat.replace("[None, :]", "[None, :, None]")
            inside_j = inside.replace("[None, :]", "[None, :, None]")
            width = min(_power(last), LONGEST)
            total = ""
            for first in range(0, last, width):
                i = self.name(f"{first} + tl.arange(0, {width})[None, None, :]")
                outer = _index(ref.offset, tuple(kept), ref.strides[:-1], j)
                within = self.name(f"({inside_j}) & ({i} < {last})")
                x = self.name(self.load(ref.value, f"{outer} + {i} * {ref.strides[-1]}", within, 3))
                x = self.name(f"tl.where({within}, {x}, {blank}).to(DTYPE)")
                part = self.name(f"F.{task.op}({x}, 2)")
                total = self.name(f"F.{combine}({total}, {part})") if total else part
            self.store(task.out, total, flat, inside, 2)

    def product(self, out: Value, target: int, size: int, addends: list[Addend]) -> None:
        with self.tiles(size) as (n, inside):
            column = f"{target} + {n}"
            starts_ahead = not addends or addends[0].accumulates
            self.line(f"total = tl.zeros((ROWS, {_width(size, TILE)}), DTYPE)")
            if starts_ahead:
                at = f"a{self.ahead.index(out)} + pos[:, None] * {out.width} + {column}"
                self.line(f"total += tl.load({at}, mask=active[:, None] & ({inside}), other=0.0)")
            else:
                for bias in addends[0].product.biases:
                    at = f"{bias.offset} + {column}"
                    self.line(f"total += {self.load(bias.value, at, inside, 2)}")
            for _, term, _ in addends:
                deep = _width(term.K, DEEP)
                self.line(f"for k0 in range(0, {term.K}, {deep}):")
                self.depth += 1
                self.line(f"k = k0 + tl.arange(0, {deep})")
                row = self.name(
                    self.load(term.row, f"{term.offset} + k[None, :]", f"k[None, :] < {term.K}", 2)
                )
                at = f"w{term.weight.index} + {term.w_offset} + k[:, None] * {term.k_stride}"
                at += f" + ({n}) * {term.n_stride}"
                matrix = self.name(
                    f"tl.load({at}, mask=(k[:, None] < {term.K}) & ({inside}), other=0.0)"
                )
                self.line(f"total = F.multiply({row}, {matrix}, total, PRECISION, IS_EMULATED)")
                self.depth -= 1
            self.store(out, "total", column, inside, 2)


class _Tiles:
    """A loop over the numbers of a row in the text; use as a context manager."""

    def __init__(self, writer: _Writer, size: int, limit: int) -> None:
        self.writer, self.size = writer, size
        self.width = _width(size, limit)

    def __enter__(self) -> tuple[str, str]:
        writer = self.writer
        self.loops = self.size > self.width
        if self.loops:
            writer.line(f"for u in range(0, {self.size}, {self.width}):")
            writer.depth += 1
            writer.line(f"i = u + tl.arange(0, {self.width})")
        else:
            writer.line(f"i = tl.arange(0, {self.width})")
        return "i[None, :]", f"i[None, :] < {self.size}"

    def __exit__(self, *_: object) -> None:
        if self.loops:
            self.writer.depth -= 1


def write(way: Pass, missing: frozenset[int] = frozenset()) -> Source:
    """Write the kernel of a loop.

    Args:
        way: the loop.
        missing: the numbers of the streams that are not there and count as zeros.
    """
    writer = _Writer(way, missing)
    writer.kernel()
    loop = way.loop
    arguments = [
        *(f"s{k}" for k in range(len(writer.widths))),
        *(f"w{k}" for k in range(len(loop.statics))),
        *(f"f{k}" for k in range(len(loop.states))),
        *(f"o{k}" for k in range(len(loop.states))),
        *(f"a{k}" for k in range(len(writer.ahead))),
        *(f"l{k}" for k in range(len(writer.late))),
        *("work", "starts", "T", "B", "descending"),
    ]
    constants = [
        f"    {name} = tl.full((1, 1), {text}, DTYPE)" for text, name in writer.constants.items()
    ]
    begin, end = [], []
    if writer.units:
        begin = [f"    i = tl.program_id(1) * {TILE} + tl.arange(0, {TILE})"]
        for k, (state, name) in enumerate(writer.carried.items()):
            at = f"f{k} + row[:, None] * {state.width} + i[None, :]"
            mask = f"mask=(row[:, None] < B) & (i[None, :] < {state.width})"
            begin.append(f"    {name} = tl.load({at}, {mask}, other=0.0)")
            end.append(f"    tl.store({at}, {name}, {mask})")
    head = [
        "@triton.jit",
        f"def loop({', '.join(arguments)}, WORK: tl.constexpr, ROWS: tl.constexpr, "
        "DTYPE: tl.constexpr, PRECISION: tl.constexpr, IS_EMULATED: tl.constexpr):",
        "    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)",
        *constants,
        *begin,
        "    for step in range(T):",
        "        t = step + descending * (T - 1 - 2 * step)",
        "        start = tl.load(starts + t)",
        "        active = row < tl.load(starts + t + 1) - start",
        "        pos = start + row",
    ]
    if any(column.origin is not None for column in way.reads.values()):
        head += [
            "        other = t + 1 - 2 * descending",
            "        is_there = (other >= 0) & (other < T)",
            "        first = tl.load(starts + other, mask=is_there, other=0)",
            "        end = tl.load(starts + other + 1, mask=is_there, other=0)",
            "        going = row < end - first",
            "        before = first + row",
        ]
    return Source(
        "\n".join([*head, *writer.lines, *end, ""]),
        writer.stages,
        writer.ahead,
        writer.late,
        0 if writer.units else writer.workspace,
        writer.units,
    )


def _index(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], flat: str) -> str:
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
    return " + ".join(terms) or f"{flat} * 0"


def _columns(addend: Addend) -> tuple[Value, int, int]:
    """The columns of a product that an addend is added to."""
    return addend.product.out, addend.term.target, addend.term.N


def _of_rows(inside: str, rank: int) -> tuple[str, str]:
    """The index that gives something of each row the axes of a block, and the mask of the block."""
    rows = f"[:, {', '.join(['None'] * (rank - 1))}]"
    return rows, f"active{rows} & ({inside})"


def _width(size: int, limit: int) -> int:
    """How many numbers to take at a time: a power of two, as many as a product needs at least."""
    return max(16, min(_power(size), limit))


def _power(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, size - 1).bit_length()


def _function(op: str) -> str:
    return "not_" if op == "not" else op
