"""Hold a program that was read from a text to the memory that it will be given.

A program is numbers, so loading one runs no code; but the engine reads and writes where the numbers say.
This is what a text has to pass before its first run, so that a damaged or a crafted file gives an error
and never reaches memory that is not its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import combinations
from math import prod
from typing import Any, NoReturn

from cello.compile.instructions import BINARY, OPCODES, QUATERNARY, TERNARY
from cello.compile.schedule import (
    ACCUMULATE,
    CHUNK,
    CONSTANT,
    PREVIOUS,
    STATE,
    STATIC,
    STREAM,
    TILE,
    WIDE,
    Schedule,
)

_OPERANDS = {OPCODES[op]: k for k, ops in enumerate((BINARY, TERNARY, QUATERNARY), 2) for op in ops}
_LIMIT = 1 << 31
"""No number of a program is as large, so that the product of two fits 64 bits."""

_Span = tuple[int, int]  # a number of steps, and how far each goes


def check(content: dict[str, Any]) -> None:
    """Hold both loops of a kernel to its tensors.

    Args:
        content: what :attr:`Kernel.text` writes down.

    Raises:
        ValueError: something is missing, of another form, or would leave its tensor.
    """
    try:
        inputs, widths = _widths(content["input_widths"]), _widths(content["widths"])
        states = _widths(content["state_widths"])
        statics = [prod(_sizes(shape)) for shape in content["static_shapes"]]
        (saved,) = _sizes([content["saved_width"]])
        bfloat16 = _flags(content["bfloat16"])
        _expect(len(bfloat16) == len(statics), "its flags")
        _expect(not any(bfloat16) or content["dtype"] == "float32", "its dtype")
        gets_gradient = [_flags(content[name]) for name in ("inputs", "statics", "reads")]
        forward, backward = content["forward"], content["backward"]
        _expect(content["dtype"] in ("float32", "float64"), "its dtype")
        of_inputs, of_statics, reads = gets_gradient
        lengths = [len(flags) for flags in gets_gradient]
        _expect(lengths == [len(inputs), len(statics), len(widths)], "its flags")
        _Loop(
            forward,
            [*inputs, *widths, saved],
            states,
            statics,
            bfloat16,
            first_written=len(inputs),
        ).check()
        if backward is not None:
            gradients = [w for w, is_wanted in zip(inputs, of_inputs, strict=True) if is_wanted]
            loop = _Loop(
                backward,
                [*widths, *inputs, *widths, saved, *gradients],
                states,
                statics,
                bfloat16,
                first_written=2 * len(widths) + len(inputs) + 1,
            )
            first_kept = len(widths) + len(inputs)
            loop.present = {*range(len(widths), first_kept), first_kept + len(widths)}
            loop.present |= {first_kept + k for k, is_read in enumerate(reads) if is_read}
            loop.gradients = {k for k, is_wanted in enumerate(of_statics) if is_wanted}
            loop.check()
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"malformed program: {error!r}") from error


class _Loop:
    """One loop and what it is given.

    Args:
        lists: a :class:`Schedule` as a dictionary.
        streams: the width of each stream.
        states: the width of each state.
        statics: how many numbers each static holds.
        bfloat16: for each static whether it is in bfloat16.
        first_written: the first stream that may be written; those before are only read.

    Attributes:
        present: the streams that are there in every run; others may be null, which reads as zeros.
        gradients: the statics that get gradients.
    """

    def __init__(
        self,
        lists: dict[str, Any],
        streams: list[int],
        states: list[int],
        statics: list[int],
        bfloat16: list[bool],
        first_written: int,
    ) -> None:
        if set(lists) != {entry.name for entry in fields(Schedule)}:
            _fail("the names of its lists")
        self.lists = Schedule(**lists)
        self.streams, self.states, self.statics = streams, states, statics
        self.bfloat16 = bfloat16
        self.first_written = first_written
        self.present: set[int] = set()
        self.gradients: set[int] = set()

    def check(self) -> None:
        """Go through all lists."""
        lists = self.lists
        for name in ("buffers", "instructions", "matrices", "terms", "biases", "stages", "outers"):
            _integers(n for row in getattr(lists, name) for n in row)
        _integers(n for row in lists.targets for n in row)
        _integers([*lists.before, *lists.after])
        _expect(all(isinstance(number, float | int) for number in lists.numbers), "a number")
        _sizes([*lists.sums, *lists.tiles])
        for buffer in lists.buffers:
            self._check_buffer(*buffer)
        for instruction in lists.instructions:
            self._check_instruction(instruction)
        for matrix in lists.matrices:
            self._check_matrix(matrix)
        for term in lists.terms:
            self._check_term(*term)
        for bias in lists.biases:
            self._check_bias(*bias)
        for kind, *items in lists.stages:
            _expect(kind in (0, 1), "a stage")
            for item in items:
                _item(lists.instructions if kind else lists.terms, item, "a stage")
        for index in (*lists.before, *lists.after):
            row, _, out, *_ = _item(lists.terms, index, "a term")
            # It is done for all rows of a chunk, and the others hold one step.
            self._expect_chunk(row)
            self._expect_chunk(out)
        for outer in lists.outers:
            self._check_outer(outer)
        for target in lists.targets:
            self._check_target(*target)

    def _check_buffer(
        self, space: int, width: int, index: int, offset: int, stride: int, origin: int
    ) -> None:
        _expect(width >= 0, "a buffer")
        if space in (STREAM, PREVIOUS):
            _expect(stride == _item(self.streams, index, "a stream"), "a stream")
        if space == PREVIOUS:
            # A row of it may be a row of a state, with no offset.
            is_state = _item(self.states, origin, "an initial state") == width
            _expect(is_state and index in self.present, "a stream read at the step before")
        elif space == STATE:
            _expect(_item(self.states, index, "a state") == width, "a state")
        elif space == STATIC:
            _expect(width <= _item(self.statics, index, "a static"), "a static")
        elif space == TILE:
            _expect(width <= _item(self.lists.tiles, index, "a tile"), "a tile")
        elif space == CONSTANT:
            _item(self.lists.numbers, index, "a constant")
            _expect(width == 1, "a constant")
        else:
            _expect(space in (STREAM, CHUNK, WIDE), "a buffer")

    def _check_place(
        self, buffer: int, offset: int, spans: Sequence[_Span], written: bool = False
    ) -> None:
        """Hold a block of each row of a buffer to the row."""
        space, width, index, skipped, stride, _ = _item(self.lists.buffers, buffer, "a buffer")
        _fits(offset, spans, width)
        _expect(space != STATIC or not self.bfloat16[index], "a vector in bfloat16")
        if space in (STREAM, PREVIOUS):
            _fits(offset + skipped, spans, stride)
        if written:
            _expect(space not in (STATIC, CONSTANT, PREVIOUS), "a place to write to")
            _expect(space != STREAM or index >= self.first_written, "a stream to write to")

    def _check_rows(self, buffer: int, offset: int, width: int, written: bool = False) -> None:
        """Hold an operand or a result of a product to what products can address."""
        space = _item(self.lists.buffers, buffer, "a buffer")[0]
        _expect(space not in (TILE, PREVIOUS), "an operand of a product")
        self._check_place(buffer, offset, [(width, 1)], written)

    def _expect_chunk(self, buffer: int) -> None:
        space = self.lists.buffers[buffer][0]
        _expect(space in (STREAM, CHUNK, STATIC, CONSTANT), "a term of a chunk")

    def _check_instruction(self, instruction: list[int]) -> None:
        opcode, *sizes = instruction[:4]
        places = [instruction[at : at + 5] for at in range(4, len(instruction), 5)]
        _expect(0 <= opcode <= ACCUMULATE, "an opcode")
        _expect(len(places) == 1 + _OPERANDS.get(opcode, 1), "the operands of an instruction")
        _expect(all(len(place) == 5 for place in places), "an instruction")
        out, *operands = places
        spans = [list(zip(sizes, place[2:], strict=True)) for place in places]
        if opcode == ACCUMULATE:
            _fits(out[1], spans[0], _item(self.lists.sums, out[0], "a sum"))
        else:
            self._check_place(out[0], out[1], spans[0], written=True)
        for operand, span in zip(operands, spans[1:], strict=True):
            self._check_place(operand[0], operand[1], span)

    def _check_matrix(self, matrix: list[int]) -> None:
        K, N, *rest = matrix
        _expect(K > 0 and N > 0 and len(rest) % 8 == 0, "a matrix")
        self._expect_one_dtype(rest[::8])
        covered: list[tuple[int, int, int, int]] = []
        for at in range(0, len(rest), 8):
            static, offset, k_stride, n_stride, k0, n0, rows, columns = rest[at : at + 8]
            size = _item(self.statics, static, "a static")
            _fits(offset, [(rows, k_stride), (columns, n_stride)], size)
            _fits(k0, [(rows, 1)], K)
            _fits(n0, [(columns, 1)], N)
            # As many numbers as there are, so that no product of sizes leaves 64 bits.
            _expect(rows * columns <= size, "a matrix")
            covered.append((k0, k0 + rows, n0, n0 + columns))
        _expect(sum((b - a) * (d - c) for a, b, c, d in covered) == K * N, "a matrix")
        for one, other in combinations(covered, 2):
            is_apart = one[1] <= other[0] or other[1] <= one[0]
            _expect(is_apart or one[3] <= other[2] or other[3] <= one[2], "a matrix")

    def _check_term(
        self,
        row: int,
        row_offset: int,
        out: int,
        out_offset: int,
        matrix: int,
        k0: int,
        K: int,
        _accumulate: int,
        partner: int,
    ) -> None:
        rows, columns = _item(self.lists.matrices, matrix, "a matrix")[:2]
        _fits(k0, [(K, 1)], rows)
        self._check_rows(row, row_offset, K)
        self._check_rows(out, out_offset, columns, written=True)
        if partner == -1:
            return
        other = _item(self.lists.terms, partner, "a partner")
        # Both are done as one: the partner's rows of the matrix, and right below this term's.
        _expect(other[4] == matrix and other[5] + other[6] == k0, "a partner")

    def _check_bias(self, term: int, column: int, width: int, static: int, offset: int) -> None:
        matrix = _item(self.lists.terms, term, "a term")[4]
        _fits(column, [(width, 1)], self.lists.matrices[matrix][1])
        _fits(offset, [(width, 1)], _item(self.statics, static, "a static"))
        _expect(not self.bfloat16[static], "a vector in bfloat16")

    def _expect_one_dtype(self, statics: list[int]) -> None:
        dtypes = {_item(self.bfloat16, static, "a static") for static in statics}
        _expect(len(dtypes) == 1, "weights of one product in two dtypes")

    def _check_outer(self, outer: list[int]) -> None:
        row, row_offset, K, gradient, gradient_offset, N, *rest = outer
        _expect(len(rest) > 0 and len(rest) % 6 == 0, "an outer product")
        self._check_rows(row, row_offset, K)
        self._check_rows(gradient, gradient_offset, N)
        self._expect_chunk(row)
        self._expect_chunk(gradient)
        self._expect_one_dtype(rest[2::6])
        total = 0
        for at in range(0, len(rest), 6):
            first, columns, static, offset, k_stride, n_stride = rest[at : at + 6]
            _expect(static in self.gradients, "a gradient")
            _fits(first, [(columns, 1)], N)
            _fits(offset, [(K, k_stride), (columns, n_stride)], self.statics[static])
            _expect(K * columns <= self.statics[static], "an outer product")
            total += columns
        _expect(total == N, "an outer product")
        # A gradient of one weight is gathered in its place, all columns of it.
        _expect(len(rest) > 6 or rest[:2] == [0, N], "an outer product")

    def _check_target(
        self,
        total: int,
        skipped: int,
        static: int,
        n0: int,
        n1: int,
        n2: int,
        offset: int,
        *rest: int,
    ) -> None:
        _expect(static in self.gradients, "a gradient")
        _fits(skipped, [(n0 * n1 * n2, 1)], _item(self.lists.sums, total, "a sum"))
        _fits(offset, list(zip((n0, n1, n2), rest, strict=True)), self.statics[static])


def _fits(offset: int, spans: Sequence[_Span], size: int) -> None:
    """Hold a block that starts at `offset` to a memory of `size` numbers."""
    ends = [(count - 1) * step for count, step in spans]
    first = offset + sum(min(0, end) for end in ends)
    last = offset + sum(max(0, end) for end in ends)
    is_inside = first >= 0 and last < size and all(count > 0 for count, _ in spans)
    _expect(is_inside, f"numbers {first} to {last} of {size}")


def _item(items: Sequence[Any], index: int, what: str) -> Any:
    _expect(0 <= index < len(items), what)
    return items[index]


def _integers(numbers: Iterable[Any]) -> None:
    _expect(all(type(n) is int and -_LIMIT < n < _LIMIT for n in numbers), "a number")


def _sizes(numbers: list[Any]) -> list[int]:
    _integers(numbers)
    _expect(all(n >= 0 for n in numbers), "a size")
    return numbers


def _widths(numbers: list[Any]) -> list[int]:
    _expect(all(n > 0 for n in _sizes(numbers)), "a width")
    return numbers


def _flags(flags: list[Any]) -> list[bool]:
    _expect(all(type(flag) is bool for flag in flags), "a flag")
    return flags


def _expect(holds: bool, what: str) -> None:
    if not holds:
        _fail(what)


def _fail(what: str) -> NoReturn:
    raise ValueError(f"malformed program: {what}")
