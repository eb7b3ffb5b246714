"""A loop as an engine executes it: stages, and a place in memory for every value.

A step is a sequence of *stages*: matrix products, then a segment of pointwise and row instructions, then
the products that depend on those, and so on. A segment is run for a few rows at a time, so that its
values stay in the innermost cache (space ``TILE``); values that cross from one stage to another have
room for all rows (``WIDE``), and those that are used for several steps at once for a *chunk* of steps
(``CHUNK``). Products with what is known before the loop are done for a whole chunk ahead of its steps,
and gradients that nothing in the loop waits for after them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from itertools import product as combinations
from math import prod
from typing import Any

from cello.compile.instructions import (
    OPCODES,
    Assemble,
    Instruction,
    Kind,
    Loop,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Term,
    Value,
    strides_of,
)

STREAM, CHUNK, STATE, WIDE, STATIC, TILE, CONSTANT, PREVIOUS = range(8)
"""Where a buffer lies; `csrc/schedule.h` has the same list."""

ACCUMULATE = len(OPCODES)
"""The opcode that adds a block of every row to a sum over all rows."""


@dataclass(eq=False)
class Schedule:
    """What an engine needs to run a loop; every list is one of numbers, for `csrc/schedule.h`.

    Attributes:
        buffers: (space, width, index, offset, stride, origin). For STREAM index says which stream, and
            offset and stride where in it; for STATE and STATIC which; for CONSTANT which of `numbers`.
            PREVIOUS is a stream read at the step before; its rows at the first step of a sequence are
            those of the initial state `origin`.
        numbers: the constants.
        instructions: (opcode, n0, n1, n2, then for the result and each operand: buffer, offset, and the
            strides of the three axes).
        matrices: (K, N, then for each piece: static, offset, k_stride, n_stride, k0, n0, K, N).
        terms: (row buffer, offset, result buffer, offset, matrix, first row k0 of the matrix, number K of
            rows, whether to accumulate, partner or -1).
        biases: (term, column, width, static, offset): vectors that a term starts from.
        stages: for each stage (0, terms...) or (1, instructions...).
        before: the terms done ahead of each chunk.
        after: the terms done behind each chunk.
        outers: (row buffer, offset, K, gradient buffer, offset, N, then for each weight: its first column,
            N, static, offset, k_stride, n_stride).
        sums: the widths of the sums over all rows.
        targets: (sum, numbers of it skipped, static, n0, n1, n2, offset, and the strides of the axes).
        streams: the number of streams.
    """

    buffers: list[list[int]] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    instructions: list[list[int]] = field(default_factory=list)
    matrices: list[list[int]] = field(default_factory=list)
    terms: list[list[int]] = field(default_factory=list)
    biases: list[list[int]] = field(default_factory=list)
    stages: list[list[int]] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    outers: list[list[int]] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """A place in a stream: rows of all steps, `stride` numbers apart.

    With an `origin` it is read at the step before, and at the first step from that initial state.
    """

    stream: int
    offset: int
    stride: int
    origin: int | None = None


def schedule(
    loop: Loop, reads: dict[Value, Column], writes: list[tuple[Value, int, int, Column]]
) -> Schedule:
    """Lay out `loop`.

    Args:
        loop: the loop.
        reads: where the rows of inputs (and of saved values) are found.
        writes: (value, first number, last number, place) of what is kept of each step.
    """
    return _Scheduler(loop, reads, writes).run()


class _Scheduler:
    def __init__(
        self,
        loop: Loop,
        reads: dict[Value, Column],
        writes: list[tuple[Value, int, int, Column]],
    ) -> None:
        self.loop, self.reads, self.writes = loop, reads, writes
        self.out = Schedule()
        self.makers: dict[Value, Instruction] = {i.out: i for i in loop.body}
        self.level: dict[Value, int] = {}
        self.home: dict[Value, tuple[int, int]] = {}  # buffer, offset
        self._buffer_of: dict[object, int] = {}
        # Read for all steps of a chunk, when it is over.
        self.late = {v for outer in loop.outers for v in (outer.gradient, outer.row)}
        self.gathered: list[
            tuple[Value, int]
        ] = []  # values to copy into their home, and from where

    def run(self) -> Schedule:
        self._find_levels()
        self._place()
        self._emit()
        return self.out

    # When

    def _find_levels(self) -> None:
        """Level s is the s-th segment; a product of level s comes right before it."""
        read_in_body = {value for i in self.loop.body for value in i.reads()}
        read_in_body.update(self.loop.new_states)
        kept = Counter(value for value, *_ in self.writes)
        self.after: set[Product] = set()
        for instruction in self.loop.body:
            levels = [self.level.get(value, 0) for value in instruction.reads()]
            out = instruction.out
            if isinstance(instruction, Product):
                in_loop = [t for t in instruction.terms if not self._is_known(t.row)]
                is_leaf = kept[out] == 1 and out not in read_in_body and out not in self.late
                if is_leaf and len(in_loop) == len(instruction.terms):
                    self.after.add(instruction)
                    self.late.update(term.row for term in in_loop)
                    continue
                self.level[out] = max(levels, default=0) + 1 if in_loop else 0
            else:
                self.level[out] = max(levels, default=0)
        self.last = max(self.level.values(), default=0)

    def _is_known(self, value: Value) -> bool:
        """Whether its rows are there before the loop starts."""
        return value in self.reads

    # Where

    def _new_buffer(
        self, space: int, width: int, index: int = 0, offset: int = 0, stride: int = 0
    ) -> int:
        self.out.buffers.append([space, width, index, offset, stride, 0])
        return len(self.out.buffers) - 1

    def _stream(self, width: int, column: Column) -> int:
        space = STREAM if column.origin is None else PREVIOUS
        buffer = self._new_buffer(space, width, column.stream, column.offset, column.stride)
        self.out.buffers[buffer][5] = column.origin or 0
        return buffer

    def _place(self) -> None:
        loop = self.loop
        for value, column in self.reads.items():
            self.home[value] = (self._stream(value.width, column), 0)
        for index, value in enumerate(loop.states):
            if value not in self.home:
                self.home[value] = (self._new_buffer(STATE, value.width, index), 0)
            self._buffer_of["state", index] = (
                self.home[value][0]
                if value not in self.reads
                else self._new_buffer(STATE, value.width, index)
            )
        for index, value in enumerate(loop.statics):
            self.home[value] = (self._new_buffer(STATIC, value.width, index), 0)
        self._place_products()
        self._place_operands()
        placed_whole = set()
        for value, first, last, column in self.writes:
            is_whole = (first, last) == (0, value.width)
            if value in self.home or not is_whole or value not in self.makers:
                continue
            self.home[value] = (self._stream(value.width, column), 0)
            placed_whole.add((value, column))
        self.copied = [w for w in self.writes if (w[0], w[3]) not in placed_whole]
        self.copied = [w for w in self.copied if not self._is_after(w[0])]
        self._place_assembled()
        self._place_the_rest()

    def _is_after(self, value: Value) -> bool:
        return self.makers.get(value) in self.after

    def _place_products(self) -> None:
        """The results of one stage lie side by side, those of the same operand next to each other."""
        groups: dict[tuple[int, bool], list[Product]] = defaultdict(list)
        order = {value: place for place, value in enumerate(self.home)}
        for instruction in self.loop.body:
            if not isinstance(instruction, Product):
                continue
            value = instruction.out
            if instruction in self.after:
                (column,) = (c for v, _, _, c in self.writes if v is value)
                self.home[value] = (self._stream(value.width, column), 0)
                continue
            state = self._state_to_be(instruction)
            if state is not None:
                self.home[value] = (state, 0)
                continue
            ahead = any(self._is_known(term.row) for term in instruction.terms)
            groups[self.level[value], ahead].append(instruction)
        for (_, ahead), products in groups.items():
            products.sort(
                key=lambda p: [(order.get(t.row, len(order)), t.offset, t.K) for t in p.terms[:1]]
            )
            width = sum(product.out.width for product in products)
            buffer = self._new_buffer(CHUNK if ahead else WIDE, width)
            offset = 0
            for product in products:
                self.home[product.out] = (buffer, offset)
                offset += product.out.width

    def _state_to_be(self, product: Product) -> int | None:
        """The state's own buffer, where a product can be written there: nothing reads the old one then."""
        value = product.out
        if self.level[value] != self.last or value not in self.loop.new_states:
            return None
        if any(self._is_known(term.row) for term in product.terms):
            return None
        index = self.loop.new_states.index(value)
        old = self.loop.states[index]
        is_read = any(value in i.reads() for i in self.loop.body)
        is_kept = any(value is v for v, *_ in self.writes)
        late = any(
            old in i.reads()
            for i in self.loop.body
            if self.level.get(i.out, self.last) == self.last
        )
        if is_read or is_kept or late or self.loop.new_states.count(value) > 1:
            return None
        if value in self.late:
            return None
        if any(old is v for v, *_ in self.writes):
            return None
        buffer = self._buffer_of["state", index]
        return buffer

    def _place_operands(self) -> None:
        """Operands of products lie side by side as well, so that adjacent ones make one product."""
        groups: dict[tuple[int, bool], list[Value]] = defaultdict(list)
        rows = [t.row for i in self.loop.body if isinstance(i, Product) for t in i.terms]
        rows += [v for outer in self.loop.outers for v in (outer.gradient, outer.row)]
        for value in dict.fromkeys(rows):
            if value in self.reads and self.reads[value].origin is not None:
                self._gathered(value)
                continue
            if value in self.home:
                place = self.out.buffers[self.home[value][0]]
                if value in self.late and place[0] == STATE:
                    self._gathered(value)
                elif value in self.late and place[0] == WIDE:
                    place[0] = CHUNK
                continue
            groups[self.level[value], value in self.late].append(value)
        for (_, is_late), values in groups.items():
            buffer = self._new_buffer(CHUNK if is_late else WIDE, sum(v.width for v in values))
            offset = 0
            for value in values:
                self.home[value] = (buffer, offset)
                offset += value.width

    def _gathered(self, value: Value) -> None:
        """Copy a state before the step into a chunk's room.

        Rows that are read at the step before lie in two places, and products need one distance between
        rows; those of a state are gone behind the step, and some products are done behind the chunk.
        """
        buffer = self._new_buffer(CHUNK, value.width)
        place, _ = self.home[value]
        self.gathered.append((value, place))
        self.home[value] = (buffer, 0)

    def _place_assembled(self) -> None:
        """Let what is put together be computed in its place."""
        for instruction in reversed(self.loop.body):
            if not isinstance(instruction, Assemble):
                continue
            self._place_one(instruction.out)
            if instruction.has_gaps and not all(piece.is_range for piece in instruction.pieces):
                continue
            buffer, offset = self.home[instruction.out]
            for piece in instruction.pieces:
                source = piece.source
                maker = self.makers.get(source.value)
                if (
                    isinstance(maker, Pointwise | Reduce)
                    and source.value not in self.home
                    and source.offset == 0
                    and source.value.width == prod(piece.shape)
                    and source.strides == strides_of(piece.shape)
                    and piece.is_range
                    and self.level[source.value] == self.level[instruction.out]
                ):
                    self.home[source.value] = (buffer, offset + piece.offset)

    def _place_one(self, value: Value) -> None:
        if value in self.home:
            return
        level = self.level[value]
        stays = all(
            self.level.get(i.out, -1) == level for i in self.loop.body if value in set(i.reads())
        )
        stays = stays and all(value is not v or level == self.last for v in self.loop.new_states)
        self.home[value] = (self._new_buffer(TILE if stays else WIDE, value.width), 0)

    def _place_the_rest(self) -> None:
        readers: dict[Value, list[int]] = defaultdict(list)
        for instruction in self.loop.body:
            for value in instruction.reads():
                readers[value].append(self.level.get(instruction.out, -1))
        for value in self.loop.new_states:
            readers[value].append(self.last)
        for value, *_ in self.copied:
            readers[value].append(self.level.get(value, 0))
        for instruction in self.loop.body:
            value = instruction.out
            if value in self.home:
                continue
            stays = all(level == self.level[value] for level in readers[value])
            self.home[value] = (self._new_buffer(TILE if stays else WIDE, value.width), 0)

    # What

    def _emit(self) -> None:
        segments: list[list[int]] = [[] for _ in range(self.last + 1)]
        products: list[list[Product]] = [[] for _ in range(self.last + 1)]
        for value, place in self.gathered:
            segments[0] += self._raw(
                OPCODES["copy"], (value.width,), (*self.home[value], (1,)), (place, 0, (1,))
            )
        for instruction in self.loop.body:
            if isinstance(instruction, Product):
                if instruction not in self.after:
                    products[self.level[instruction.out]].append(instruction)
                continue
            segment = segments[self.level[instruction.out]]
            if isinstance(instruction, Pointwise):
                segment += self._instruction(
                    instruction.op, instruction.shape, instruction.out, *instruction.args
                )
            elif isinstance(instruction, Reduce):
                shape = instruction.shape
                target = (*strides_of(shape[:-1]), 0)
                refs = [Ref(instruction.out, 0, target), instruction.arg]
                segment += self._operation(OPCODES[instruction.op], shape, refs, keep_last=True)
            elif isinstance(instruction, Assemble):
                segment += self._assemble(instruction)
        for value, first, last, column in self.copied:
            level = self.last if value in self.loop.states else self.level.get(value, 0)
            width = last - first
            buffer = self._stream(width, column)
            copy = self._raw(OPCODES["copy"], (width,), (buffer, 0, (1,)), self._at(value, first))
            segments[level] += copy
        sums: dict[object, int] = {}
        for row_sum in self.loop.row_sums:
            ref = row_sum.source
            key = (ref, row_sum.shape)
            if key not in sums:
                sums[key] = len(self.out.sums)
                self.out.sums.append(prod(row_sum.shape))
                buffer, offset = self._home(ref.value)
                level = self.level.get(ref.value, 0)
                segments[level] += self._raw(
                    ACCUMULATE,
                    row_sum.shape,
                    (sums[key], 0, strides_of(row_sum.shape)),
                    (buffer, offset + ref.offset, ref.strides),
                )
            static = self._index(row_sum.vector)
            sizes, (strides,) = _merged(row_sum.shape, [row_sum.strides], False)
            for passed, begin in _outer_places(sizes, strides):
                axes, steps = _padded(sizes[-3:], strides[-3:])
                self.out.targets.append(
                    [sums[key], passed, static, *axes, row_sum.offset + begin, *steps]
                )
        for index, value in enumerate(self.loop.new_states):
            buffer = self._buffer_of["state", index]
            if self._home(value) != (buffer, 0):
                copy = self._raw(
                    OPCODES["copy"], (value.width,), (buffer, 0, (1,)), self._at(value, 0)
                )
                segments[self.last] += copy
        for level in range(self.last + 1):
            terms = self._terms(products[level])
            if terms:
                self.out.stages.append([0, *terms])
            if segments[level]:
                self.out.stages.append([1, *segments[level]])
        behind: list[tuple[Product, Term, bool]] = []
        for product in (i for i in self.loop.body if i in self.after):
            assert isinstance(product, Product)
            behind += [(product, t, a) for t, a in _ordered(product.terms, lambda t: False)]
        self.out.after = self._merge(behind)
        self._start_from_biases([product for product, _, _ in behind], self.out.after)
        self._emit_outers()
        self._drop_matrices()
        self._share_tiles()

    def _emit_outers(self) -> None:
        """Gradients of weights; those of one operand with adjacent other ones are gathered as one."""
        found = []
        for outer in self.loop.outers:
            row, row_at = self._home(outer.row)
            gradient, at = self._home(outer.gradient)
            weight = [self._index(outer.weight), outer.w_offset, outer.k_stride, outer.n_stride]
            place = (row, row_at + outer.offset, outer.K, gradient, at + outer.g_offset, outer.N)
            found.append((outer.weight.is_bfloat16, place, weight))
        is_last_bfloat16 = False
        for is_bfloat16, (*operand, at, N), weight in sorted(found):
            last = self.out.outers[-1] if self.out.outers else None
            same = last is not None and is_last_bfloat16 == is_bfloat16
            is_last_bfloat16 = is_bfloat16
            if last is not None and same and last[:4] == operand and last[4] + last[5] == at:
                last += [last[5], N, *weight]
                last[5] += N
            else:
                self.out.outers.append([*operand, at, N, 0, N, *weight])

    def _drop_matrices(self) -> None:
        """Leave out the matrices that have become parts of others."""
        used = sorted({term[4] for term in self.out.terms})
        self.out.matrices = [self.out.matrices[index] for index in used]
        for term in self.out.terms:
            term[4] = used.index(term[4])

    def _index(self, static: Value) -> int:
        return self.loop.statics.index(static)

    def _home(self, value: Value) -> tuple[int, int]:
        if value.kind is Kind.CONSTANT and value not in self.home:
            self.home[value] = (self._new_buffer(CONSTANT, 1, len(self.out.numbers)), 0)
            self.out.numbers.append(value.number)
        return self.home[value]

    def _at(self, value: Value, first: int) -> tuple[int, int, tuple[int, ...]]:
        buffer, offset = self._home(value)
        return buffer, offset + first, (0 if value.kind is Kind.CONSTANT else 1,)

    def _instruction(self, op: str, shape: tuple[int, ...], out: Value, *args: Ref) -> list[int]:
        return self._operation(OPCODES[op], shape, [Ref(out, 0, strides_of(shape)), *args])

    def _operation(
        self, opcode: int, shape: tuple[int, ...], refs: list[Ref], keep_last: bool = False
    ) -> list[int]:
        places = []
        for ref in refs:
            buffer, offset = self._home(ref.value)
            places.append((buffer, offset + ref.offset, ref.strides))
        return self._raw(opcode, shape, *places, keep_last=keep_last)

    def _raw(
        self,
        opcode: int,
        shape: tuple[int, ...],
        *places: tuple[int, int, tuple[int, ...]],
        keep_last: bool = False,
    ) -> list[int]:
        """Write down an operation; one of more than three axes becomes several."""
        sizes, strides = _merged(shape, [place[2] for place in places], keep_last)
        codes = []
        skipped = [_outer_places(sizes, row) for row in strides]
        for firsts in zip(*skipped, strict=True):
            code = [opcode, *_padded(sizes[-3:], sizes[-3:])[0]]
            for (buffer, offset, _), (_, first), row in zip(places, firsts, strides, strict=True):
                code += [buffer, offset + first, *_padded(sizes[-3:], row[-3:])[1]]
            self.out.instructions.append(code)
            codes.append(len(self.out.instructions) - 1)
        return codes

    def _assemble(self, instruction: Assemble) -> list[int]:
        buffer, offset = self._home(instruction.out)
        codes = []
        for start, end in _gaps(instruction):
            zero = self._home(Value(Kind.CONSTANT, 1, number=0.0))
            to = (buffer, offset + start, (1,))
            codes += self._raw(OPCODES["copy"], (end - start,), to, (zero[0], 0, (0,)))
        for piece in instruction.pieces:
            source, first = self._home(piece.source.value)
            at = (buffer, offset + piece.offset, piece.strides)
            there = (source, first + piece.source.offset, piece.source.strides)
            if at == there:  # it was computed there
                continue
            codes += self._raw(OPCODES["copy"], piece.shape, at, there)
        return codes

    def _terms(self, products: list[Product]) -> list[int]:
        """Write down the products of a level; return those that are done in the loop."""
        before: list[tuple[Product, Term, bool]] = []
        during: list[tuple[Product, Term, bool]] = []
        for product in products:
            for term, accumulate in _ordered(product.terms, lambda t: self._is_known(t.row)):
                known = self._is_known(term.row)
                (before if known else during).append((product, term, accumulate))
        ahead = self._merge(before)
        found = self._merge(during)
        self._pair(ahead, found)
        self._start_from_biases(products, ahead + found)
        self.out.before += ahead
        return found

    def _pair(self, ahead: list[int], during: list[int]) -> None:
        """Put the matrices of two terms with one result into one, so that they can be done at once."""
        free = {tuple(self.out.terms[t][2:4]): t for t in ahead}
        for place, index in enumerate(during):
            term = self.out.terms[index]
            other = free.pop(tuple(term[2:4]), None)
            if other is None:
                continue
            # Both at once come after all that is ahead, and must come before what adds to them.
            is_first = self.out.terms[other][7] or not self._meets(other, ahead)
            if not is_first or self._meets(index, during[:place]):
                continue
            above, below = (self.out.matrices[self.out.terms[t][4]] for t in (other, index))
            if above[1] != below[1] or self._is_bfloat16(above) != self._is_bfloat16(below):
                continue
            K = above[0]
            for at in range(2, len(below), 8):
                below[at + 4] += K
            above[0] += below[0]
            above += below[2:]
            self.out.matrices[term[4]] = above
            term[4], term[5], term[8] = self.out.terms[other][4], K, other

    def _meets(self, term: int, others: list[int]) -> bool:
        """Whether one of other terms writes to columns that a term writes to."""

        def columns(index: int) -> tuple[int, int, int]:
            _, _, out, start, matrix, *_ = self.out.terms[index]
            return out, start, start + self.out.matrices[matrix][1]

        out, start, end = columns(term)
        return any(
            out == there and start < last and first < end
            for there, first, last in (columns(other) for other in others if other != term)
        )

    def _is_bfloat16(self, matrix: list[int]) -> bool:
        return self.loop.statics[matrix[2]].is_bfloat16

    def _start_from_biases(self, products: list[Product], terms: list[int]) -> None:
        """Say which static vectors the first term of each result starts from."""
        for product in dict.fromkeys(products):
            buffer, offset = self._home(product.out)
            for bias in product.biases:
                for index in terms:
                    _, _, out, at, matrix, _, _, accumulate, _ = self.out.terms[index]
                    N = self.out.matrices[matrix][1]
                    start = max(at, offset)
                    width = min(at + N, offset + product.out.width) - start
                    if out == buffer and not accumulate and width > 0:
                        where = bias.offset + start - offset
                        self.out.biases.append(
                            [index, start - at, width, self._index(bias.value), where]
                        )

    def _merge(self, terms: list[tuple[Product, Term, bool]]) -> list[int]:
        """Make one product of terms that share an operand, or a result, and are neighbours."""
        blocks = []
        for product, term, accumulate in terms:
            row, row_offset = self._home(term.row)
            out, out_offset = self._home(product.out)
            piece = [self._index(term.weight), term.w_offset, term.k_stride, term.n_stride]
            blocks.append(
                _Block(
                    row,
                    row_offset + term.offset,
                    term.K,
                    out,
                    out_offset + term.target,
                    term.N,
                    accumulate,
                    term.weight.is_bfloat16,
                    [(*piece, 0, 0, term.K, term.N)],
                )
            )
        blocks.sort(key=lambda b: (b.accumulate, b.row, b.row_at, b.K, b.out, b.out_at))
        blocks = _join(blocks, _beside)
        # Terms of one result with adjacent operands: the first may write where the next accumulate.
        blocks.sort(key=lambda b: (b.out, b.out_at, b.N, b.row, b.row_at))
        blocks = _join(blocks, _below)
        blocks.sort(key=lambda b: b.accumulate)
        found = []
        for block in blocks:
            self.out.matrices.append([block.K, block.N, *(n for p in block.pieces for n in p)])
            self.out.terms.append(
                [
                    block.row,
                    block.row_at,
                    block.out,
                    block.out_at,
                    len(self.out.matrices) - 1,
                    0,
                    block.K,
                    int(block.accumulate),
                    -1,
                ]
            )
            found.append(len(self.out.terms) - 1)
        return found

    def _share_tiles(self) -> None:
        """Let values of a segment that are not alive at the same time share their room."""
        last_use: dict[int, int] = {}
        first_use: dict[int, int] = {}
        time = 0
        for stage in self.out.stages:
            if stage[0] == 0:
                continue
            for code in stage[1:]:
                time += 1
                instruction = self.out.instructions[code]
                start = 9 if instruction[0] == ACCUMULATE else 4
                for place in range(start, len(instruction), 5):
                    buffer = instruction[place]
                    if self.out.buffers[buffer][0] == TILE:
                        first_use.setdefault(buffer, time)
                        last_use[buffer] = time
        slots: list[tuple[int, int]] = []  # free from this time on, width
        for buffer in sorted(first_use, key=lambda b: first_use[b]):
            width = self.out.buffers[buffer][1]
            free = [
                k for k, (until, w) in enumerate(slots) if until < first_use[buffer] and w >= width
            ]
            if free:
                slot = min(free, key=lambda k: slots[k][1])
                slots[slot] = (last_use[buffer], slots[slot][1])
            else:
                slot = len(slots)
                slots.append((last_use[buffer], width))
            self.out.buffers[buffer][2] = slot
        self.out.tiles = [width for _, width in slots]


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


@dataclass
class _Block:
    row: int
    row_at: int
    K: int
    out: int
    out_at: int
    N: int
    accumulate: bool
    is_bfloat16: bool
    pieces: list[tuple[int, ...]]


def _beside(a: _Block, b: _Block) -> _Block | None:
    """One operand, adjacent results: the matrices side by side."""
    same = (a.row, a.row_at, a.K, a.out, a.accumulate, a.is_bfloat16) == (
        b.row,
        b.row_at,
        b.K,
        b.out,
        b.accumulate,
        b.is_bfloat16,
    )
    if not same or a.out_at + a.N != b.out_at:
        return None
    moved = [(*p[:5], p[5] + a.N, *p[6:]) for p in b.pieces]
    return replace(a, N=a.N + b.N, pieces=a.pieces + moved)


def _below(a: _Block, b: _Block) -> _Block | None:
    """One result, adjacent operands: the matrices one below the other."""
    same = (a.row, a.out, a.out_at, a.N) == (b.row, b.out, b.out_at, b.N)
    same = same and a.is_bfloat16 == b.is_bfloat16
    if not same or a.row_at + a.K != b.row_at:
        return None
    moved = [(*p[:4], p[4] + a.K, *p[5:]) for p in b.pieces]
    accumulate = a.accumulate and b.accumulate
    return replace(a, K=a.K + b.K, accumulate=accumulate, pieces=a.pieces + moved)


def _join(blocks: list[_Block], merge: Any) -> list[_Block]:
    out: list[_Block] = []
    for block in blocks:
        merged = merge(out[-1], block) if out else None
        if merged is None:
            out.append(block)
        else:
            out[-1] = merged
    return out


def _ordered(terms: tuple[Term, ...], is_known: Any) -> list[tuple[Term, bool]]:
    """Split terms at each other's borders, known ones first, and say which add to what is there."""
    borders = sorted({b for t in terms for b in (t.target, t.target + t.N)})
    split = []
    for term in sorted(terms, key=lambda t: not is_known(t)):
        inner = [b for b in borders if term.target <= b < term.target + term.N]
        inner.append(term.target + term.N)
        for start, end in pairwise(inner):
            skipped = start - term.target
            offset = term.w_offset + skipped * term.n_stride
            split.append(term._replace(target=start, N=end - start, w_offset=offset))
    written: set[int] = set()
    out = []
    for term in split:
        out.append((term, term.target in written))
        written.add(term.target)
    return out


def _merged(
    shape: tuple[int, ...], strides: list[tuple[int, ...]], keep_last: bool
) -> tuple[list[int], list[list[int]]]:
    """Merge axes that all operands step through alike."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        is_last = axis == len(shape) - 1
        if size == 1 and not (keep_last and is_last):
            continue
        here = [s[axis] for s in strides]
        if (
            sizes
            and not (keep_last and is_last)
            and all(row[-1] == size * step for row, step in zip(steps, here, strict=True))
        ):
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


def _padded(sizes: list[int], steps: list[int]) -> tuple[list[int], list[int]]:
    """Three axes of fewer."""
    missing = 3 - len(sizes)
    return [1] * missing + sizes, [0] * missing + steps


def _outer_places(sizes: list[int], steps: list[int]) -> list[tuple[int, int]]:
    """For each place of the axes before the last three: how many blocks come before, and the offset."""
    outer = list(zip(sizes[:-3], steps[:-3], strict=True))
    places = combinations(*(range(size) for size, _ in outer))
    block = prod(sizes[-3:])
    return [
        (index * block, sum(i * step for i, (_, step) in zip(place, outer, strict=True)))
        for index, place in enumerate(places)
    ]
