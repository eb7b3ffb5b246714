"""Gives every operation of a loop its addresses, which makes a schedule of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations
from math import prod
from typing import Any, NamedTuple

from cello.compile.instructions import (
    Assemble,
    Instruction,
    Kind,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Value,
    strides_of,
)
from cello.compile.loops import Pass
from cello.compile.stages import Gemm, Place, joined, make_stages
from cello.engines.native.place import Placement, Space
from cello.engines.native.schedule import (
    Bias,
    Code,
    Matrix,
    MatrixTerm,
    Operand,
    OuterProduct,
    Schedule,
    ScheduledStage,
    Shape,
    Slice,
    Target,
)

AXES = 3
"""So many axes an operation has; one with more is written down as several."""


def make_schedule(way: Pass) -> Schedule:
    """Lay out a loop."""
    return _Scheduler(way).run()


class _Use(NamedTuple):
    """The first and the last time that a buffer is used."""

    first: int
    last: int


class _Gathered(NamedTuple):
    """Gradients of matrices, with what says which of them can be gathered as one.

    Attributes:
        dtype: the dtype of the matrices.
        product: the gradients; at first of one matrix.
        static: the number of the first matrix.
    """

    dtype: str
    product: OuterProduct
    static: int

    def order(self) -> tuple[Any, ...]:
        """What sorts those that can be gathered as one next to each other."""
        own, first = self.product, self.product.slices[0]
        where = (self.static, first.offset, first.k_stride, first.n_stride)
        return self.dtype, own.row, own.K, own.steps, own.gradient, own.N, where

    def follows(self, other: _Gathered) -> bool:
        """Whether the columns of `other` end where these begin, with the same rows."""
        own, there = self.product, other.product
        return self.dtype == other.dtype and (own.row, own.K, own.steps, own.gradient) == (
            there.row,
            there.K,
            there.steps,
            there.gradient.after(there.N),
        )


class _Scheduler:
    def __init__(self, way: Pass) -> None:
        self.loop = way.loop
        self.stages = make_stages(way)
        self.placement = Placement(self.stages)
        self.home = self.placement.home
        self.out = Schedule(
            way.loop.statics, buffers=self.placement.buffers, numbers=self.placement.numbers
        )

    def run(self) -> Schedule:
        out, stages, levels = self.out, self.stages, self.stages.levels
        fusions: list[list[int]] = [[] for _ in stages.steps]
        for copy in self.placement.gathered:
            target = self.home(copy.value).after(copy.first)
            fusions[0] += self._copy(copy.end - copy.first, target, copy.source)
        for instruction in self.loop.body:
            if not isinstance(instruction, Product):
                fusions[levels[instruction.out]] += self._instruction(instruction)
        for write in self.placement.copied:
            value, width = write.value, write.end - write.first
            level = stages.last if value in self.loop.states else levels.get(value, 0)
            target = self.placement.stream(width, write.column)
            fusions[level] += self._copy_value(width, target, value, write.first)
        self._sum_rows(fusions)
        for buffer, value in zip(self.placement.states, self.loop.new_states, strict=True):
            if self.home(value) != Place(buffer, 0):
                fusions[-1] += self._copy_value(value.width, Place(buffer, 0), value)
        for fusion, stage in zip(fusions, stages.steps, strict=True):
            ahead, during = (
                self._terms(joined(addends, self.home)) for addends in (stage.ahead, stage.addends)
            )
            self._pair(ahead, during)
            self._start_from_biases(stage.products, ahead + during)
            out.ahead += ahead
            if during:
                out.stages.append(ScheduledStage(False, during))
            if fusion:
                out.stages.append(ScheduledStage(True, fusion))
        out.behind = self._terms(joined(stages.addends_behind(), self.home))
        self._start_from_biases(stages.behind, out.behind)
        self._gather_gradients()
        self._drop_matrices()
        self._share_tiles()
        return out

    # Operations

    def _instruction(self, instruction: Instruction) -> list[int]:
        if isinstance(instruction, Assemble):
            return self._assemble(instruction)
        if isinstance(instruction, Pointwise):
            shape = instruction.shape
            refs = [Ref(instruction.out, 0, strides_of(shape)), *instruction.args]
            return self._write(instruction.op, shape, [self._operand(ref) for ref in refs])
        assert isinstance(instruction, Reduce)
        shape = instruction.shape
        refs = [Ref(instruction.out, 0, (*strides_of(shape[:-1]), 0)), *instruction.args]
        operands = [self._operand(ref) for ref in refs]
        return self._write(instruction.op, shape, operands, keep_last=True)

    def _assemble(self, instruction: Assemble) -> list[int]:
        home = self.home(instruction.out)
        codes = []
        for start, end in _gaps(instruction):
            zero = Value(Kind.CONSTANT, 1, number=0.0)
            codes += self._copy_value(end - start, home.after(start), zero)
        for piece in instruction.pieces:
            to = Operand(home.after(piece.offset), piece.strides)
            source = self._operand(piece.source)
            if to != source:  # else it was computed there
                codes += self._write("copy", piece.shape, [to, source])
        return codes

    def _operand(self, ref: Ref) -> Operand:
        return Operand(self.home(ref.value).after(ref.offset), ref.strides)

    def _copy_value(self, width: int, target: Place, value: Value, first: int = 0) -> list[int]:
        stride = 0 if value.kind is Kind.CONSTANT else 1
        return self._copy(width, target, self.home(value).after(first), stride)

    def _copy(self, width: int, target: Place, source: Place, stride: int = 1) -> list[int]:
        return self._write("copy", (width,), [Operand(target, (1,)), Operand(source, (stride,))])

    def _write(
        self, op: str, shape: Shape, operands: Sequence[Operand], keep_last: bool = False
    ) -> list[int]:
        """Write down an operation, the result's block first; return where."""
        sizes, strides = _merged(shape, [operand.strides for operand in operands], keep_last)
        first = len(self.out.codes)
        for index in combinations(*(range(size) for size in sizes[:-AXES])):
            out, *rest = (
                Operand(operand.place.after(_dot(index, steps)), _padded(steps[-AXES:], 0))
                for operand, steps in zip(operands, strides, strict=True)
            )
            self.out.codes.append(Code(op, _padded(sizes[-AXES:], 1), out, tuple(rest)))
        return list(range(first, len(self.out.codes)))

    def _sum_rows(self, fusions: list[list[int]]) -> None:
        """Gradients of vectors: sums over all rows, of which several vectors may get the same."""
        sums: dict[object, int] = {}
        for shape, source, vector, offset, strides in self.loop.row_sums:
            number = sums.setdefault((source, shape), len(sums))
            if number == len(self.out.sums):
                self.out.sums.append(prod(shape))
                total = Operand(Place(number, 0), strides_of(shape))
                fusions[self.stages.levels.get(source.value, 0)] += self._write(
                    "accumulate", shape, [total, self._operand(source)]
                )
            sizes, (steps,) = _merged(shape, [strides], False)
            block = prod(sizes[-AXES:])
            for place, index in enumerate(combinations(*(range(size) for size in sizes[:-AXES]))):
                self.out.targets.append(
                    Target(
                        number,
                        place * block,
                        vector,
                        _padded(sizes[-AXES:], 1),
                        offset + _dot(index, steps),
                        _padded(steps[-AXES:], 0),
                    )
                )

    # Products

    def _terms(self, gemms: list[Gemm]) -> list[int]:
        """Write down products; return where."""
        first = len(self.out.terms)
        for gemm in gemms:
            matrix = len(self.out.matrices)
            self.out.matrices.append(Matrix(gemm.K, gemm.N, gemm.blocks))
            self.out.terms.append(
                MatrixTerm(gemm.row, gemm.out, matrix, 0, gemm.K, gemm.accumulates, *gemm.steps)
            )
        return list(range(first, len(self.out.terms)))

    def _pair(self, ahead: list[int], during: list[int]) -> None:
        """Put the matrices of two terms with one result into one, so that they can be done at once."""
        terms, matrices = self.out.terms, self.out.matrices
        free = {(terms[t].out, terms[t].places, terms[t].out_step): t for t in ahead}
        for place, index in enumerate(during):
            term = terms[index]
            other = free.pop((term.out, term.places, term.out_step), None)
            if other is None:
                continue
            # Both at once come after all that is ahead, and must come before what adds to them.
            is_first = terms[other].accumulates or not self._meets(other, ahead)
            if not is_first or self._meets(index, during[:place]):
                continue
            above, below = matrices[terms[other].matrix], matrices[term.matrix]
            if above.N != below.N or above.dtype != below.dtype:
                continue
            moved = tuple([block._replace(k0=block.k0 + above.K) for block in below.blocks])
            both = Matrix(above.K + below.K, above.N, above.blocks + moved)
            matrices[terms[other].matrix] = both
            term.matrix, term.k0, term.partner = terms[other].matrix, above.K, other

    def _columns(self, index: int) -> tuple[int, int, int]:
        """Which buffer a term writes to, from where to where; at the first place, if it has several.

        Terms that write to the same numbers do so at the same places.
        """
        term = self.out.terms[index]
        return term.out.memory, term.out.offset, term.out.offset + self.out.matrices[term.matrix].N

    def _meets(self, term: int, others: list[int]) -> bool:
        """Whether one of other terms writes to columns that a term writes to."""
        out, start, end = self._columns(term)
        return any(
            out == there and start < last and first < end
            for there, first, last in (self._columns(other) for other in others if other != term)
        )

    def _start_from_biases(self, products: list[Product], terms: list[int]) -> None:
        """Say which static vectors the first term of each result starts from."""
        for product in products:
            home, width = self.home(product.out), product.block
            for bias in product.biases:
                for index in terms:
                    out, at, end = self._columns(index)
                    start, last = max(at, home.offset), min(end, home.offset + width)
                    is_first = out == home.memory and not self.out.terms[index].accumulates
                    if is_first and start < last:
                        where = bias.offset + start - home.offset
                        self.out.biases.append(
                            Bias(index, start - at, last - start, bias.value, where)
                        )

    def _gather_gradients(self) -> None:
        """Gradients of matrices; those of one operand with adjacent other ones are gathered as one."""
        index = {static: place for place, static in enumerate(self.loop.statics)}
        gathered = [
            _Gathered(
                str(outer.weight.dtype or ""),
                OuterProduct(
                    self.home(outer.row).after(outer.offset),
                    outer.K,
                    self.home(outer.gradient).after(outer.g_offset),
                    outer.N,
                    [
                        Slice(
                            0, outer.N, outer.weight, outer.w_offset, outer.k_stride, outer.n_stride
                        )
                    ],
                    *(outer.places, outer.row_step, outer.g_step),
                ),
                index[outer.weight],
            )
            for outer in self.loop.outers
        ]
        last: _Gathered | None = None
        for item in sorted(gathered, key=_Gathered.order):
            if last is not None and item.follows(last):
                above, below = last.product, item.product
                above.slices.append(below.slices[0]._replace(first=above.N))
                above.N += below.N
            else:
                self.out.outers.append(item.product)
                last = item

    def _drop_matrices(self) -> None:
        """Leave out the matrices that have become parts of others."""
        used = sorted({term.matrix for term in self.out.terms})
        self.out.matrices = [self.out.matrices[index] for index in used]
        for term in self.out.terms:
            term.matrix = used.index(term.matrix)

    def _share_tiles(self) -> None:
        """Let values of a fusion that are not alive at the same time share their room."""
        uses: dict[int, _Use] = {}
        fusions = (stage.items for stage in self.out.stages if stage.is_fusion)
        for time, index in enumerate(index for items in fusions for index in items):
            code = self.out.codes[index]
            operands = code.operands if code.op == "accumulate" else (code.out, *code.operands)
            for operand in operands:
                buffer = operand.place.memory
                if self.out.buffers[buffer].space is Space.TILE:
                    first = uses[buffer].first if buffer in uses else time
                    uses[buffer] = _Use(first, time)
        free_from: list[int] = []  # for each tile
        for number in sorted(uses, key=lambda number: uses[number].first):
            use, room = uses[number], self.out.buffers[number]
            free = [
                k
                for k, width in enumerate(self.out.tiles)
                if free_from[k] < use.first and width >= room.width
            ]
            if free:
                room.index = min(free, key=lambda k: self.out.tiles[k])
                free_from[room.index] = use.last
            else:
                room.index = len(self.out.tiles)
                free_from.append(use.last)
                self.out.tiles.append(room.width)


def _gaps(instruction: Assemble) -> list[tuple[int, int]]:
    """The ranges that no piece fills; everything, where pieces are not ranges themselves."""
    if not instruction.has_gaps:
        return []
    width = instruction.out.width
    if not all(piece.is_range for piece in instruction.pieces):
        return [(0, width)]
    filled = sorted((p.offset, p.offset + prod(p.shape)) for p in instruction.pieces)
    edges = [0, *(edge for piece in filled for edge in piece), width]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _merged(
    shape: Shape, strides: Sequence[Shape], keep_last: bool
) -> tuple[list[int], list[list[int]]]:
    """Merge axes that all operands step through alike."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        is_kept = keep_last and axis == len(shape) - 1
        if size == 1 and not is_kept:
            continue
        here = [s[axis] for s in strides]
        fits = all(row[-1:] == [size * step] for row, step in zip(steps, here, strict=True))
        if sizes and not is_kept and fits:
            sizes[-1] *= size
            for row, step in zip(steps, here, strict=True):
                row[-1] = step
        else:
            sizes.append(size)
            for row, step in zip(steps, here, strict=True):
                row.append(step)
    if not sizes:
        sizes, steps = [1], [[1] for _ in strides]
    return sizes, steps


def _padded(numbers: Sequence[int], number: int) -> Shape:
    """As many numbers as there are axes, with `number` in front of the others."""
    return (*[number] * (AXES - len(numbers)), *numbers)


def _dot(index: Shape, steps: Sequence[int]) -> int:
    """How far a place along the first axes is from where they start."""
    return sum(i * step for i, step in zip(index, steps, strict=False))
