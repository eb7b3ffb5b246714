"""A loop as one kernel that goes through all steps.

A program of the kernel owns rows of the batch for all steps, so that programs never wait for each other. In
the kernel of rows, numbers of a row stay in registers within a group of tasks, and go through memory of the
program's own rows between groups; a product reads its matrix anew at each step. In the kernel of units, for
loops where no number of the state meets another one, a program owns a few numbers of its rows, and keeps
the state in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cello.compile.instructions import Ref, Value
from cello.compile.stages import Addend
from cello.engines.triton.groups import is_identity
from cello.engines.triton.writer import Source, Writer, power

DEEP = 64
"""Numbers that a product sums at a time, at most."""
SHALLOW = 16
"""The same without tensor cores, where a thread holds all of these numbers of its rows and columns."""
SHARED = "starts", "T", "B"
"""Arguments that are the same for both directions."""
CONSTANTS = "ROWS", "DTYPE", "PRECISION", "DEEP"
"""What is compiled into a kernel; `DEEP` is how many numbers a product in DTYPE sums at a time, at most."""


@dataclass(frozen=True, eq=False)
class LoopSource(Source):
    """The text of one kernel: a function `loop`, and `both`, which runs it for two directions at once.

    Attributes:
        rows: of the batch, that one program owns.
        tiles: of the numbers of a row, that have a program each.
        warps: of a program, so that the kernels of shipped cells fit the registers.
    """

    rows: int
    tiles: int
    warps: int


class RowWriter(Writer):
    """Writes the kernel of a loop of which a program owns whole rows."""

    rows = 16  # as many as a product on tensor cores needs
    warps = 8

    def write(self) -> LoopSource:
        """Write the kernel."""
        memory = set(self.way.loop.new_states)
        for part in self.parts:
            memory |= {out for out, *_ in part.sums}
            memory |= {a.term.row for *_, addends in part.sums for a in addends}
            for g in part.groups:
                for task in g.tasks:
                    memory |= {r.value for r in task.args if not g.has(r, task.shape)}
        self.keep(memory)
        self.depth = 2
        # It adds 0, which LLVM does not know: else it computes the addresses of all groups ahead of
        # the loop, and registers do not hold them.
        self.line("row = own + tl.load(starts)")
        for part in self.parts:
            if part.sums:
                self.barrier()
            for columns in part.sums:
                self.product(*columns)
            for g in part.groups:
                self.barrier()
                self.group(g)
        self.barrier()
        for state, new in self.updates():
            self.update(state, new)
        return self.source(["    own = row"], [], 1)

    def source(self, begin: Sequence[str], end: Sequence[str], tiles: int) -> LoopSource:
        """Put the kernel together, with lines before the loop and behind it."""
        own = [*self.pointers(), "work", "descending"]
        first, second = ([f"{name}_{way}" for name in own] for way in (1, 2))
        text = [
            *_head("loop", own),
            *self.owned_rows(),
            *begin,
            # Not pipelined: what a step reads ahead, the one before may write.
            "    for step in tl.range(0, T, num_stages=1):",
            *(f"    {line}" for line in self.rows_of_the_step()),
            *self.lines,
            *end,
            "",
            *_head("both", [*first, *second]),
            "    if tl.program_id(2) == 0:",
            f"        loop({', '.join([*first, *SHARED, *CONSTANTS])})",
            "    else:",
            f"        loop({', '.join([*second, *SHARED, *CONSTANTS])})",
            "",
        ]
        stages, ahead, late = self.stages, self.ahead, self.late
        return LoopSource(
            "\n".join(text), stages, ahead, late, self.workspace, self.rows, tiles, self.warps
        )

    def product(self, out: Value, target: int, size: int, addends: list[Addend]) -> None:
        """Write the sum of the products of some columns."""
        width = max(16, min(power(size), self.tile))
        with self.counted(size, width) as (n, inside):
            column = f"{target} + {n}"
            starts_ahead = not addends or addends[0].accumulates
            total = self.name(f"tl.zeros((ROWS, {width}), DTYPE)")
            if starts_ahead:
                self.line(f"{total} += {self.from_ahead(out, column, inside, 2)}")
            else:
                for bias in addends[0].product.biases:
                    at = f"{bias.offset} + {column}"
                    self.line(f"{total} += {self.load(bias.value, at, inside, 2)}")
            for _, term, _ in addends:
                most = min(max(power(term.K), SHALLOW), DEEP)
                deep = f"(DEEP if DEEP < {most} else {most})"
                if most == SHALLOW or term.weight.dtype is not None:  # on tensor cores
                    deep = str(most)
                self.line(f"for k0 in range(0, {term.K}, {deep}):")
                self.depth += 1
                k = self.name(f"k0 + tl.arange(0, {deep})")
                of_row = f"{term.offset} + {k}[None, :]"
                row = self.name(self.load(term.row, of_row, f"{k}[None, :] < {term.K}", 2))
                at = f"w{term.weight.index} + {term.w_offset} + {k}[:, None] * {term.k_stride}"
                at += f" + ({n}) * {term.n_stride}"
                mask = f"mask=({k}[:, None] < {term.K}) & ({inside})"
                matrix = self.name(f"tl.load({at}, {mask}, other=0.0)")
                self.line(f"{total} = F.multiply({row}, {matrix}, {total}, PRECISION)")
                self.depth -= 1
            self.store(out, total, column, inside, 2)


class UnitWriter(RowWriter):
    """Writes the kernel of a loop of which a program owns a tile of the numbers of its rows."""

    rows = 4
    warps = 4

    @property
    def units(self) -> int:
        """How many numbers a row has, if each number of the state depends on its own before; else 0."""
        loop = self.way.loop
        if (
            len(self.parts) != 1
            or self.parts[0].sums
            or not self.parts[0].groups
            or not loop.states
        ):
            return 0
        first, *others = self.parts[0].groups
        copies = [task for g in others for task in g.tasks]
        is_plain = not first.reduces and all(
            task.out is task.args[0].value and task.size == first.size for task in copies
        )
        reads = [(ref, task.shape) for task in first.tasks for ref in task.args]
        if (
            not is_plain
            or any(state.width != first.size for state in loop.states)
            or any(r.value in loop.states and not is_identity(r, shape) for r, shape in reads)
            or any(not first.has(Ref(new, 0, (1,)), (first.size,)) for new in loop.new_states)
            or any(task.size != first.size for task in first.tasks)
        ):
            return 0
        return first.size

    def write(self) -> LoopSource:
        size, loop = self.units, self.way.loop
        self.carried = {state: f"h{k}" for k, state in enumerate(loop.states)}
        self.depth = 2
        held: dict[Value, str] = {}
        for g in self.parts[0].groups:
            self.tasks(g, "i[None, :]", f"i[None, :] < {size}", held)
        for state, new in zip(loop.states, loop.new_states, strict=True):
            name = self.carried[state]
            self.line(f"{name} = tl.where(active[:, None], {held[new]}, {name})")
        begin = [f"    i = tl.program_id(1) * {self.tile} + tl.arange(0, {self.tile})"]
        end = []
        for k, name in enumerate(self.carried.values()):
            at = f"f{k} + row[:, None] * {size} + i[None, :]"
            mask = f"mask=(row[:, None] < B) & (i[None, :] < {size})"
            begin.append(f"    {name} = tl.load({at}, {mask}, other=0.0)")
            end.append(f"    tl.store({at}, {name}, {mask})")
        return self.source(begin, end, -(-size // self.tile))


def _head(name: str, arguments: Sequence[str]) -> list[str]:
    """The first lines of a kernel that has these arguments before those that all have."""
    every = [*arguments, *SHARED]
    numbers = [a for a in every if a in ("T", "B") or a.startswith("descending")]
    constants = (f"{constant}: tl.constexpr" for constant in CONSTANTS)
    return [
        f"@triton.jit(do_not_specialize={numbers})",
        f"def {name}({', '.join([*every, *constants])}):",
    ]
