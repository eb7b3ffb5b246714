"""``cello::scan`` in ONNX: a ``Scan`` of the instructions of a step, with products ahead and behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from math import prod

import numpy as np
import onnx_ir as ir

from cello.compile import Loops, text
from cello.compile.instructions import (
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
from cello.compile.stages import Addend, make_stages
from cello.onnx.functions import POINTWISE, REDUCTIONS, exact_sigmoid
from cello.onnx.writer import Block, Writer, merged, places_of

Sums = dict[tuple[int, int], ir.Value]
"""Sums (R, N) or (R, places, N) of a product so far, by their first column and N."""


def write_scan(
    prefix: str,
    program: str,
    inputs: Sequence[ir.Value],
    statics: Sequence[ir.Value],
    states: Sequence[ir.Value],
    rows: ir.Value | int,
    descending: bool,
    lengths: ir.Value | None,
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Write all steps of a direction.

    Args:
        prefix: what the names of its tensors begin with.
        program: the loops, as a text.
        inputs: (T*B, width) each.
        statics: what is the same for all steps.
        states: (B, width) each.
        rows: T*B.
        descending: whether time runs from T - 1 to 0.
        lengths: (B,) how many steps of each sequence count, or ``None`` if all do.

    Returns:
        The nodes; and of the output and the kept states, (T*B, width) each, of the final states, and of
        what is saved the tensors.
    """
    writing = _Writing(prefix, text.read(program), inputs, statics, states, rows, lengths)
    found = writing.run(descending)
    return writing.outer.nodes, found


class _Rows:
    """Values of some rows, as a graph has them: of all steps, or of one of them in the body of the loop.

    Args:
        writer: writes the graph.
        known: (R, width) of each value that is there.

    Attributes:
        exact: sigmoids that are needed to all their digits, also where they are small.
    """

    def __init__(self, writer: Writer, known: dict[Value, ir.Value]) -> None:
        self.writer, self.values = writer, known
        self.exact: set[Value] = set()

    def rows(self, value: Value) -> ir.Value:
        """The rows (R, width) of a value."""
        return self.values[value]

    def block(self, ref: Ref, shape: tuple[int, ...]) -> Block:
        """A block of each row of a value."""
        value = ref.value
        if value.kind is Kind.CONSTANT:
            return Block(self.writer.number(value.number), tuple(1 for _ in shape))
        return self.writer.block(self.rows(value), value.width, ref.offset, shape, ref.strides)

    def multiply(self, product: Product, term: Term, weight: ir.Value) -> ir.Value:
        """The numbers of a term's row times its matrix (K, N): (R, N), or (R, places, N)."""
        w = self.writer
        places = _several(product)
        shape, steps = (*places, term.K), (term.row_step,) * len(places)
        rows = w.expanded(self.block(Ref(term.row, term.offset, (*steps, 1)), shape), shape)
        dtype = term.weight.dtype
        if dtype is not None and dtype != w.dtype:
            rows = w.cast(w.cast(rows, dtype), w.dtype)
        return w.write("MatMul", rows, weight)  # type: ignore[no-any-return]

    def compute(self, instruction: Instruction) -> None:
        """Write an instruction that is no product."""
        w, out = self.writer, instruction.out
        if isinstance(instruction, Assemble):
            self.values[out] = self._assembled(instruction)
            return
        assert isinstance(instruction, Pointwise | Reduce)
        shape, strides = instruction.shape, [ref.strides for ref in instruction.args]
        if isinstance(instruction, Pointwise):
            shape, strides = merged(shape, [*strides, strides_of(shape)])
            strides.pop()
        args = [
            self.block(ref._replace(strides=own), shape)
            for ref, own in zip(instruction.args, strides, strict=True)
        ]
        if isinstance(instruction, Pointwise):
            function = exact_sigmoid if out in self.exact else POINTWISE[instruction.op]
            value = function(w, *(arg.value for arg in args))
            found = tuple(np.broadcast_shapes(*(arg.shape for arg in args)))
        else:
            if all(arg.shape[-1] == 1 for arg in args):
                whole = *args[0].shape[:-1], shape[-1]
                args[0] = Block(w.expanded(args[0], whole), whole)
            value = REDUCTIONS[instruction.op](w, *(arg.value for arg in args))
            shape = shape[:-1]
            found = tuple(np.broadcast_shapes(*(arg.shape[:-1] for arg in args)))
        # A step may compute with what all rows share.
        is_row = any(self._is_row(ref.value) for ref in instruction.args)
        if found != shape or not is_row:
            value = self._whole(value, shape)
        self.values[out] = value if shape == (out.width,) else w.reshape(value, (out.width,))

    def _is_row(self, value: Value) -> bool:
        return value.kind not in (Kind.CONSTANT, Kind.STATIC)

    def _whole(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The tensor of a block with all its rows and numbers."""
        w = self.writer
        sizes = w.concatenated([self.count(), w.sizes(*shape)], 0) if shape else self.count()
        return w.write("Expand", value, sizes)  # type: ignore[no-any-return]

    def count(self) -> ir.Value:
        """The number of rows, (1,)."""
        first = next(rows for value, rows in self.values.items() if self._is_row(value))
        return self.writer.write("Shape", first, start=0, end=1)  # type: ignore[no-any-return]

    def _assembled(self, instruction: Assemble) -> ir.Value:
        w, width = self.writer, instruction.out.width
        parts = []
        for piece in instruction.pieces:
            block = self.block(piece.source, piece.shape)
            size = prod(piece.shape)
            value = block.value
            if block.shape != piece.shape or not self._is_row(piece.source.value):
                value = self._whole(value, piece.shape)
            parts.append(value if piece.shape == (size,) else w.reshape(value, (size,)))
        if instruction.has_gaps:
            parts.append(self._whole(w.number(0), (1,)))
        places = places_of([(p.shape, p.offset, p.strides) for p in instruction.pieces], width)
        together = w.concatenated(parts)
        if np.array_equal(places, np.arange(len(places))) and not instruction.has_gaps:
            return together
        return w.write("Gather", together, w.constant(places), axis=1)  # type: ignore[no-any-return]


class _Step(_Rows):
    """The values of one step, in the body of the loop. What is known ahead of it is scanned.

    Args:
        writer: writes the body.
        ahead: the values of all steps that are known ahead of the loop.
        states: the rows of the states before the step.
        shared: what all rows share, (1, width), in the graph around it.
    """

    def __init__(
        self,
        writer: Writer,
        ahead: _Rows,
        states: dict[Value, ir.Value],
        shared: _Rows,
    ) -> None:
        super().__init__(writer, states)
        self.ahead, self.shared = ahead, shared
        self.scanned: dict[ir.Value, tuple[ir.Value, tuple[int, ...]]] = {}

    def rows(self, value: Value) -> ir.Value:
        if value.kind is Kind.STATIC:
            return self.shared.rows(value)
        if value not in self.values:
            self.values[value] = self.scan(self.ahead.rows(value), (value.width,))
        return self.values[value]

    def block(self, ref: Ref, shape: tuple[int, ...]) -> Block:
        if ref.value.kind is Kind.STATIC:  # once, ahead of the loop
            return self.shared.block(ref, shape)
        return super().block(ref, shape)

    def scan(self, rows: ir.Value, shape: tuple[int, ...], is_truth: bool = False) -> ir.Value:
        """The rows (B, ...) of this step, of rows (T*B, ...) of all steps."""
        if rows not in self.scanned:
            self.scanned[rows] = self.writer.input(shape, is_truth), shape
        return self.scanned[rows][0]


def _several(product: Product) -> tuple[int, ...]:
    """The axis of the places, if there are several."""
    return (product.places,) if product.places > 1 else ()


def _exact_sigmoids(loop: Loop) -> set[Value]:
    """Sigmoids whose digits are needed where they are small, too: a logarithm or a quotient reads them.

    Products, sums and copies need no more digits than what reads them.
    """
    rough = {"mul", "muladd", "add", "sub", "copy", "stop", "where"}
    needed: set[Value] = set()
    count = -1
    while count < len(needed):  # a state may be read so at the next step
        count = len(needed)
        pairs = zip(loop.states, loop.new_states, strict=True)
        needed |= {new for state, new in pairs if state in needed}
        for instruction in reversed(loop.body):
            is_exact = isinstance(instruction, Pointwise) and instruction.op not in rough
            is_exact |= isinstance(instruction, Reduce) and instruction.op != "sum"
            if is_exact or (instruction.out in needed and not isinstance(instruction, Product)):
                needed.update(instruction.reads())
    is_sigmoid = (isinstance(i, Pointwise) and i.op == "sigmoid" for i in loop.body)
    return {i.out for i, is_one in zip(loop.body, is_sigmoid, strict=True) if is_one} & needed


class _Writing:
    """One scan on its way into a graph."""

    def __init__(
        self,
        prefix: str,
        loops: Loops,
        inputs: Sequence[ir.Value],
        statics: Sequence[ir.Value],
        states: Sequence[ir.Value],
        rows: ir.Value | int,
        lengths: ir.Value | None,
    ) -> None:
        self._way, self._stages = loops.forward, make_stages(loops.forward)
        self._states, self._rows, self._lengths = states, rows, lengths
        self.outer = w = Writer(prefix, loops.dtype)
        self._body = Writer(f"{prefix}_step", loops.dtype, w)
        loop = self._way.loop
        shared: dict[Value, ir.Value] = {}
        for static, value in zip(statics, loop.statics, strict=True):
            if value.dtype is not None and value.dtype != loops.dtype:
                static = w.cast(static, loops.dtype)
            shared[value] = w.write("Reshape", static, w.sizes(1, value.width))
        self._shared = _Rows(w, shared)
        known = {
            value: inputs[column.stream]
            for value, column in self._way.reads.items()
            if self._stages.is_known(value)
        }
        self._all = _Rows(w, known)
        before = {value: self._body.input((value.width,)) for value in loop.states}
        self._step = _Step(self._body, self._all, before, self._shared)
        self._step.exact = _exact_sigmoids(loop)
        self._sums: dict[Product, Sums] = defaultdict(dict)

    def run(self, descending: bool) -> list[ir.Value]:
        """Write everything; return the results, the final states and what is saved."""
        w, step, loop = self.outer, self._step, self._way.loop
        begun = list(step.values.values())
        for stage in self._stages.steps:
            for addend in stage.ahead:
                self._multiply(self._all, addend, self._sums[addend.product])
            own: dict[Product, Sums] = {
                product: {
                    place: step.scan(rows, (*_several(product), place[1]))
                    for place, rows in self._sums[product].items()
                }
                for product in stage.products
            }
            for addend in stage.addends:
                self._multiply(step, addend, own[addend.product])
            for product in stage.products:
                step.values[product.out] = self._joined(self._body, product, own[product])
            for instruction in stage.fusion:
                step.compute(instruction)
        after = [step.rows(value) for value in loop.new_states]
        if self._lengths is not None:
            alive = step.scan(self._alive, (1,), is_truth=True)
            pairs = zip(after, begun, strict=True)
            after = [self._body.write("Where", alive, new, old) for new, old in pairs]
        behind = {product.out for product in self._stages.behind}
        late = [write.value for write in self._way.writes if write.value not in behind]
        late += [term.row for product in self._stages.behind for term in product.terms]
        kept = [value for value in dict.fromkeys(late) if value not in self._all.values]
        finals, found = self._loop(descending, begun, after, [step.rows(value) for value in kept])
        for value, rows in zip(kept, found, strict=True):
            self._all.values[value] = w.all_rows(rows, value.width)
        for addend in self._stages.addends_behind():
            self._multiply(self._all, addend, self._sums[addend.product])
        for product in self._stages.behind:
            self._all.values[product.out] = self._joined(w, product, self._sums[product])
        results, saved = self._streams()
        return [*results, *finals, *saved]

    def _multiply(self, rows: _Rows, addend: Addend, sums: Sums) -> None:
        """Add a product to the sum of its columns, or begin that with the biases."""
        product, term, accumulates = addend
        w, outer, place = rows.writer, self.outer, (term.target, term.N)
        matrix = Ref(term.weight, term.w_offset, (term.k_stride, term.n_stride))
        block = self._shared.block(matrix, (term.K, term.N))
        weight = outer.write(
            "Reshape", outer.expanded(block, (term.K, term.N)), outer.sizes(term.K, term.N)
        )
        found = rows.multiply(product, term, weight)
        if accumulates:
            sums[place] = w.write("Add", sums[place], found)
            return
        for bias in product.biases:
            vector = bias._replace(offset=bias.offset + term.target)
            found = w.write("Add", found, self._shared.block(vector, (term.N,)).value)
        sums[place] = found

    def _joined(self, w: Writer, product: Product, sums: Sums) -> ir.Value:
        """The result (R, width) of a product, of its columns."""
        parts = [rows for _, rows in sorted(sums.items(), key=lambda item: item[0])]
        together = w.concatenated(parts)
        return w.reshape(together, (product.out.width,)) if product.places > 1 else together

    @cached_property
    def _alive(self) -> ir.Value:
        """(T*B, 1) whether a sequence has the step."""
        w = self.outer
        assert self._lengths is not None
        alive = w.write("Less", self._numbers, self._lengths)  # (T, B)
        return w.write("Reshape", alive, w.sizes(-1, 1))  # type: ignore[no-any-return]

    @cached_property
    def _numbers(self) -> ir.Value:
        """(T, 1) the number of each step."""
        w = self.outer
        given = self._rows
        rows = w.sizes(given) if isinstance(given, int) else w.write("Reshape", given, w.sizes(1))
        steps = w.write("Squeeze", w.write("Div", rows, self._batch()), w.sizes(0))
        zero, one = w.constant(np.array(0)), w.constant(np.array(1))
        return w.write(  # type: ignore[no-any-return]
            "Unsqueeze", w.write("Range", zero, steps, one), w.sizes(1)
        )

    def _batch(self) -> ir.Value:
        """B, (1,)."""
        return self.outer.write("Shape", self._states[0], start=0, end=1)  # type: ignore[no-any-return]

    def _loop(
        self,
        descending: bool,
        before: list[ir.Value],
        after: list[ir.Value],
        kept: list[ir.Value],
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        """Write the loop; return the final states, and the rows (T, B, ...) of what is kept."""
        w, scanned = self.outer, self._step.scanned
        batch = self._batch()
        inputs = []
        for rows, (_, axes) in scanned.items():
            shape = w.concatenated([w.sizes(-1), batch, w.sizes(*axes)], 0)
            inputs.append(w.write("Reshape", rows, shape))
        own = [own for own, _ in scanned.values()]
        if not inputs:  # a step that does not read its input: there are as many steps
            inputs = [w.cast(self._numbers, w.dtype)]
            own = [self._body.input(())]
        # A result of the body is one of its own nodes, and of one only.
        results = [self._body.write("Identity", value) for value in (*after, *kept)]
        body = ir.Graph(
            [*before, *own],
            results,
            nodes=self._body.nodes,
            name=self._body.prefix,
        )
        way = int(descending)
        found = w.write(
            "Scan",
            *self._states,
            *inputs,
            outputs=len(results),
            body=body,
            num_scan_inputs=len(inputs),
            scan_input_directions=[way for _ in inputs],
            **({"scan_output_directions": [way for _ in kept]} if kept else {}),
        )
        found = [found] if isinstance(found, ir.Value) else found
        return found[: len(after)], found[len(after) :]

    def _streams(self) -> tuple[list[ir.Value], list[ir.Value]]:
        """The rows of all steps of the results, and of what is saved."""
        w, streams = self.outer, self._way.streams
        numbers, parts = streams.numbers(), defaultdict(list)
        for value, first, end, (stream, offset, _) in self._way.writes:
            rows = self._all.rows(value)
            if (first, end) != (0, value.width):
                rows = w.sliced(rows, [(1, first, end)])
            parts[stream].append((offset, rows))
        joined = {
            stream: w.concatenated([rows for _, rows in sorted(own, key=lambda part: part[0])])
            for stream, own in parts.items()
        }
        if self._lengths is not None:
            alive, zero = self._alive, w.number(0)
            joined = {s: w.write("Where", alive, rows, zero) for s, rows in joined.items()}
        # Two results may be one value, and each needs a name of its own.
        results = [w.write("Identity", joined[stream]) for stream in numbers.results]
        return results, [joined[stream] for stream in numbers.saved if stream in joined]
