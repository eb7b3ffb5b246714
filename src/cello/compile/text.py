"""Loops as text, which a graph or a file can hold: numbers and names, no code.

Reading one trusts nothing. What comes back are loops in which every reference lies inside its value and
every value is computed before it is read, so that an engine need not ask again whether it stays within the
tensors that it is given, as long as these have the shapes that the loops say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from math import prod
from typing import Any, NoReturn

import torch

from cello.compile.derive import Wanted
from cello.compile.instructions import (
    OPERANDS,
    REDUCTIONS,
    Assemble,
    Instruction,
    Kind,
    Loop,
    Outer,
    Piece,
    Pointwise,
    Product,
    Reduce,
    Ref,
    RowSum,
    Term,
    Value,
    reached,
)
from cello.compile.loops import Column, Loops, Pass, Streams, Write

FORMAT = 4
"""The version of the text. It rises when anything in it changes its meaning."""

LARGEST, WIDEST, WIDEST_ROW = 1 << 40, 1 << 20, 1 << 28
"""The bounds of all numbers, of those that a value holds for each row, and of those that all of them do."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(loops: Loops) -> str:
    """Return loops as text."""
    statics = zip(loops.static_shapes, loops.forward.loop.statics, strict=True)
    content = {
        "format": FORMAT,
        "label": loops.label,
        "dtype": _NAMES[loops.dtype],
        "states": [state.width for state in loops.forward.loop.states],
        "statics": [
            [list(shape), None if value.dtype is None else _NAMES[value.dtype]]
            for shape, value in statics
        ],
        "wanted": [list(flags) for flags in loops.wanted],
        "forward": _Writer(loops.forward).content(),
        "backward": None if loops.backward is None else _Writer(loops.backward).content(),
    }
    return json.dumps(content, separators=(",", ":"))


class _Writer:
    """Numbers the values of a loop: those that are read, states, statics, constants, computed ones."""

    def __init__(self, way: Pass) -> None:
        self.way, self.loop = way, way.loop
        given = [*way.reads, *self.loop.states, *self.loop.statics]
        mentioned = [value for i in self.loop.body for value in i.reads()]
        mentioned += [row_sum.source.value for row_sum in self.loop.row_sums]
        mentioned += [*self.loop.new_states, *(write.value for write in way.writes)]
        constants = [value for value in mentioned if value.kind is Kind.CONSTANT]
        self.constants = list(dict.fromkeys(constants))
        computed = [instruction.out for instruction in self.loop.body]
        numbered = (*given, *self.constants, *computed)
        self.number = {value: number for number, value in enumerate(numbered)}

    def content(self) -> dict[str, Any]:
        number = self.number
        return {
            "streams": asdict(self.way.streams),
            "reads": [[value.width, *column] for value, column in self.way.reads.items()],
            "constants": [value.number for value in self.constants],
            "body": [self._instruction(instruction) for instruction in self.loop.body],
            "new_states": [number[value] for value in self.loop.new_states],
            "writes": [
                [number[w.value], w.first, w.end, w.column.stream, w.column.offset]
                for w in self.way.writes
            ],
            "outers": [
                [n if isinstance(n, int) else number[n] for n in o[: 10 if o.places == 1 else None]]
                for o in self.loop.outers
            ],
            "row_sums": [
                [r.shape, self._ref(r.source), number[r.vector], r.offset, r.strides]
                for r in self.loop.row_sums
            ],
        }

    def _ref(self, ref: Ref) -> list[Any]:
        return [self.number[ref.value], ref.offset, ref.strides]

    def _instruction(self, instruction: Instruction) -> list[Any]:
        if isinstance(instruction, Pointwise | Reduce):
            return [instruction.op, instruction.shape, *map(self._ref, instruction.args)]
        if isinstance(instruction, Assemble):
            pieces = [
                [p.shape, self._ref(p.source), p.offset, p.strides] for p in instruction.pieces
            ]
            return ["assemble", instruction.out.width, *pieces]
        assert isinstance(instruction, Product)
        is_at_one = instruction.places == 1
        terms = [
            [n if isinstance(n, int) else self.number[n] for n in t[: 9 if is_at_one else None]]
            for t in instruction.terms
        ]
        biases = [[self.number[bias.value], bias.offset] for bias in instruction.biases]
        places = [] if is_at_one else [instruction.places]
        return ["product", instruction.out.width, terms, biases, *places]


@lru_cache(maxsize=512)
def read(text: str) -> Loops:
    """Return the loops that a text describes.

    Raises:
        ValueError: it describes none, or is of another version of Cello.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(
                "this program was written by another version of Cello; export the model again"
            )
        return _loops(content)
    except (KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"malformed program: {error!r}") from error


def _loops(content: dict[str, Any]) -> Loops:
    dtype = _DTYPES[content["dtype"]]
    shapes = [_sizes(shape, LARGEST) for shape, _ in content["statics"]]
    statics = [
        Value(Kind.STATIC, prod(shape), index, dtype=None if name is None else _DTYPES[name])
        for index, (shape, (_, name)) in enumerate(zip(shapes, content["statics"], strict=True))
    ]
    states = tuple([_width(width) for width in content["states"]])
    wanted = Wanted(*(tuple(flags) for flags in content["wanted"]))
    _expect(all(type(flag) is bool for flags in wanted for flag in flags), "a flag")
    _expect(isinstance(content["label"], str) and len(states) > 0, "its states")
    forward = _Reader(content["forward"], statics, states)
    streams = forward.streams
    inputs, results, saved = streams.inputs, streams.results, streams.saved
    lengths = len(wanted.inputs), len(wanted.statics)
    _expect(lengths == (len(inputs), len(statics)), "its flags")
    _expect(streams == Streams((), inputs, results, saved), "its streams")
    is_known = any(len(results) in (1 + checks, 1 + len(states) + checks) for checks in (0, 1))
    _expect(len(saved) == 1 and is_known, "its streams")
    _expect(all(width > 0 for width in (*inputs, *results)), "its streams")
    made = forward.read(streams.numbers().inputs, earlier=(), wanted=())
    backward = None
    if content["backward"] is not None:
        reader = _Reader(content["backward"], statics, states)
        pairs = zip(inputs, wanted.inputs, strict=True)
        gradients = tuple([width for width, is_wanted in pairs if is_wanted])
        _expect(
            reader.streams == Streams(results, inputs, results, saved, gradients), "its streams"
        )
        numbers = reader.streams.numbers()
        earlier = (*numbers.inputs, *numbers.results, *numbers.saved)
        backward = reader.read((*numbers.seeds, *earlier), earlier, wanted.statics)
    return Loops(content["label"], dtype, tuple(shapes), made, backward, wanted)


class _Reader:
    """Reads one loop.

    Args:
        content: the loop, as :class:`_Writer` makes it.
        statics: the statics of both loops.
        states: the widths of the states.
    """

    def __init__(
        self, content: dict[str, Any], statics: list[Value], states: tuple[int, ...]
    ) -> None:
        self.content, self.statics = content, statics
        self.states = [Value(Kind.STATE, width, index) for index, width in enumerate(states)]
        streams = content["streams"]
        _expect(isinstance(streams, dict), "its streams")
        self.streams = Streams(**{name: tuple(widths) for name, widths in streams.items()})
        self.widths = self.streams.in_order()
        _expect(all(type(n) is int and 0 <= n <= WIDEST_ROW for n in self.widths), "a stream")
        self.reads: dict[Value, Column] = {}
        self.values: list[Value] = []

    def read(self, readable: Sequence[int], earlier: Sequence[int], wanted: Sequence[bool]) -> Pass:
        """Return the loop.

        Args:
            readable: the streams that it may read; the others it has to write.
            earlier: those of them that it may read one step earlier, which are always there.
            wanted: which statics get gradients.
        """
        for width, stream, offset, origin in self.content["reads"]:
            value = Value(Kind.INPUT, _width(width), len(self.reads))
            _expect(type(stream) is int and stream in readable, "a stream to read")
            if origin is not None:
                is_whole = _item(self.states, origin).width == width
                _expect(is_whole and stream in earlier, "a state before the step")
            self.reads[value] = Column(stream, _integer(offset), origin)
        numbers = self.content["constants"]
        _expect(all(type(number) in (int, float) for number in numbers), "a constant")
        constants = [Value(Kind.CONSTANT, 1, number=float(number)) for number in numbers]
        self.values = [*self.reads, *self.states, *self.statics, *constants]
        body = []
        for item in self.content["body"]:
            body.append(self._instruction(*item))
            self.values.append(body[-1].out)
        _expect(sum(i.out.width for i in body) <= WIDEST_ROW, "a step")
        new_states = [_item(self.values, index) for index in self.content["new_states"]]
        for state, new in zip(self.states, new_states, strict=True):
            self._hold(Ref(new, 0, (1,)), (new.width,))
            _expect(new.width == state.width, "a new state")
        writes = [self._write(*item) for item in self.content["writes"]]
        for stream, width in enumerate(self.widths):
            ranges = [
                (w.column.offset, w.end - w.first) for w in writes if w.column.stream == stream
            ]
            _expect(not ranges if stream in readable else _is_covered(ranges, width), "its writes")
        loop = Loop(
            inputs=list(self.reads),
            states=self.states,
            statics=self.statics,
            body=body,
            outputs=[write.value for write in writes],
            new_states=new_states,
            outers=[self._outer(wanted, *item) for item in self.content["outers"]],
            row_sums=[self._row_sum(wanted, *item) for item in self.content["row_sums"]],
        )
        return Pass(loop, self.streams, self.reads, writes)

    def _hold(self, ref: Ref, shape: Sequence[int]) -> None:
        """Hold a block to the numbers of its value that there are."""
        first, end = reached(ref, tuple(shape))
        _expect(first >= 0 and end <= ref.value.width, f"numbers {first} to {end}")
        _expect(ref.value.dtype is None, "a static that is only multiplied with")
        column = self.reads.get(ref.value)
        if column is not None:
            width = self.widths[column.stream]
            _expect(column.offset + first >= 0 and column.offset + end <= width, "a stream")

    def _ref(self, shape: Sequence[int], index: int, offset: int, strides: list[int]) -> Ref:
        ref = Ref(_item(self.values, index), _integer(offset), _integers(strides))
        self._hold(ref, shape)
        return ref

    def _row(self, index: int, offset: int, width: int, places: int, step: int) -> Value:
        """The value of parts of a row that are multiplied."""
        value = self._ref((places, _width(width)), index, offset, [step, 1]).value
        _expect(value.kind is not Kind.CONSTANT, "an operand of a product")
        return value

    def _matrix(self, index: int, offset: int, sizes: list[int], strides: list[int]) -> Value:
        """The static that a matrix lies in."""
        value: Value = _item(self.values, index)
        ref = Ref(value, _integer(offset), _integers(strides))
        first, end = reached(ref, _sizes(sizes, LARGEST))
        # One that repeats numbers has more than the static, but is packed all the same.
        is_inside = first >= 0 and end <= value.width
        is_inside = is_inside and prod(sizes) <= max(value.width, WIDEST_ROW)
        _expect(value.kind is Kind.STATIC and is_inside, "a matrix")
        return value

    def _instruction(self, name: str, size: Any, *items: Any) -> Instruction:
        if name == "product":
            return self._product(_width(size), *items)
        if name == "assemble":
            width = _width(size)
            return Assemble(
                Value(Kind.COMPUTED, width), tuple([self._piece(width, *item) for item in items])
            )
        shape = _sizes(size)
        refs = tuple([self._ref(shape, *item) for item in items])
        if name in REDUCTIONS:
            _expect(len(refs) == REDUCTIONS[name] and len(shape) > 0, "a reduction")
            return Reduce(Value(Kind.COMPUTED, prod(shape[:-1])), name, shape, refs)
        _expect(len(refs) == OPERANDS[name], "the operands of an instruction")
        return Pointwise(Value(Kind.COMPUTED, prod(shape)), name, shape, refs)

    def _piece(
        self, width: int, shape: list[int], source: list[Any], offset: int, strides: list[int]
    ) -> Piece:
        sizes = _sizes(shape)
        piece = Piece(sizes, self._ref(sizes, *source), _integer(offset), _integers(strides))
        first, end = reached(Ref(piece.source.value, piece.offset, piece.strides), sizes)
        _expect(first >= 0 and end <= width, "a piece")
        return piece

    def _product(self, width: int, terms: list[Any], biases: list[Any], places: int = 1) -> Product:
        made = []
        block = width // _width(places)
        _expect(block * places == width, "the places of a product")
        for row, offset, K, weight, w_offset, k_stride, n_stride, N, target, *step in terms:
            (row_step,) = _integers(step) or (0,)
            value = self._row(row, offset, K, places, row_step)
            static = self._matrix(weight, w_offset, [K, N], [k_stride, n_stride])
            _expect(_integer(target) >= 0 and target + N <= block, "a product")
            made.append(
                Term(value, offset, K, static, w_offset, k_stride, n_stride, N, target, row_step)
            )
        _expect(_is_covered([(term.target, term.N) for term in made], block), "a product")
        refs = tuple([self._ref((block,), index, offset, [1]) for index, offset in biases])
        _expect(all(ref.value.kind is Kind.STATIC for ref in refs), "a bias")
        return Product(Value(Kind.COMPUTED, width), tuple(made), refs, places)

    def _write(self, index: int, first: int, end: int, stream: int, offset: int) -> Write:
        value = _item(self.values, index)
        self._hold(Ref(value, _integer(first), (1,)), (_width(end - _integer(first)),))
        _expect(
            _integer(offset) >= 0 and offset + end - first <= _item(self.widths, stream), "a write"
        )
        return Write(value, first, end, Column(stream, offset))

    def _outer(self, wanted: Sequence[bool], *item: int) -> Outer:
        row, offset, K, gradient, g_offset, N, weight, w_offset, k_stride, n_stride, *several = item
        places, row_step, g_step = _integers(several) or (1, 0, 0)
        left = self._row(row, offset, K, _width(places), row_step)
        right = self._row(gradient, g_offset, N, places, g_step)
        static = self._matrix(weight, w_offset, [K, N], [k_stride, n_stride])
        _expect(_item(wanted, static.index), "a gradient that is not wanted")
        steps = places, row_step, g_step
        return Outer(
            left, offset, K, right, g_offset, N, static, w_offset, k_stride, n_stride, *steps
        )

    def _row_sum(
        self,
        wanted: Sequence[bool],
        shape: list[int],
        source: list[Any],
        vector: int,
        offset: int,
        strides: list[int],
    ) -> RowSum:
        sizes = _sizes(shape)
        static = self._matrix(vector, offset, shape, strides)
        _expect(_item(wanted, static.index), "a gradient that is not wanted")
        return RowSum(sizes, self._ref(sizes, *source), static, offset, _integers(strides))


def _is_covered(ranges: Iterable[tuple[int, int]], width: int) -> bool:
    """Whether these starts and lengths leave out nothing of `width` numbers."""
    reach = 0
    for start, length in sorted(ranges):
        if start > reach:
            return False
        reach = max(reach, start + length)
    return reach >= width


def _item(items: Sequence[Any], index: int) -> Any:
    _expect(type(index) is int and 0 <= index < len(items), "a reference")
    return items[index]


def _integer(number: Any) -> int:
    _expect(type(number) is int and abs(number) < LARGEST, "a number")
    return int(number)


def _integers(numbers: Iterable[Any]) -> tuple[int, ...]:
    return tuple([_integer(number) for number in numbers])


def _sizes(numbers: Iterable[Any], largest: int = WIDEST) -> tuple[int, ...]:
    sizes = _integers(numbers)
    _expect(all(size > 0 for size in sizes) and prod(sizes) <= largest, "a size")
    return sizes


def _width(number: Any) -> int:
    return _sizes([number])[0]


def _expect(holds: bool, what: str) -> None:
    if not holds:
        _fail(what)


def _fail(what: str) -> NoReturn:
    raise ValueError(f"malformed program: {what}")
