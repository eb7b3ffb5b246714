"""Nodes of an ONNX graph, written one after the other, and blocks of the rows that they compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float16: ir.DataType.FLOAT16,
}


class Block(NamedTuple):
    """Numbers of rows: (R, ...), or (1, ...) where all rows have the same.

    Attributes:
        value: the tensor.
        shape: its shape without the axis of the rows. An axis along which all numbers are equal may be 1.
    """

    value: ir.Value
    shape: tuple[int, ...]


class Writer:
    """Writes the nodes of a graph.

    Args:
        prefix: what the names of the graph's tensors begin with.
        dtype: the dtype that is computed in.
        outer: the writer of the graph around this one, which may read all that is computed there.
    """

    def __init__(self, prefix: str, dtype: torch.dtype, outer: Writer | None = None) -> None:
        self.nodes: list[ir.Node] = []
        self.dtype = dtype
        self.prefix = prefix
        self._outer = outer
        self._names = count()
        self._truths: dict[ir.Value, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def write(self, op: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node.

        Args:
            op: the operator.
            *inputs: what it reads.
            outputs: how many tensors it has as results.
            **attributes: its attributes.

        Returns:
            The result, or a list of them where there are several.
        """
        node = ir.node(op, inputs, attributes, num_outputs=outputs)
        name = f"{self.prefix}_{op.lower()}{next(self._names)}"
        node.name = name
        for index, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}_{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def input(self, shape: tuple[int, ...], is_truth: bool = False) -> ir.Value:
        """Return rows (R, `shape`) that the graph is given, for a body of a loop."""
        name = f"{self.prefix}_in{next(self._names)}"
        kind = ir.TensorType(ir.DataType.BOOL if is_truth else DTYPES[self.dtype])
        return ir.Value(name=name, shape=ir.Shape([None, *shape]), type=kind)

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """Return a tensor of numbers, in the outermost graph: one for all equal ones."""
        if self._outer is not None:
            return self._outer.constant(array)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.write("Constant", value=ir.tensor(array))
        return self._constants[key]

    def number(self, number: float) -> ir.Value:
        """Return a number in the dtype of the graph."""
        kind = np.float64 if self.dtype == torch.float64 else np.float32
        return self.constant(np.array(number, kind))

    def sizes(self, *sizes: int) -> ir.Value:
        """Return whole numbers, such as a shape."""
        return self.constant(np.array(sizes, np.int64))

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """Return a tensor in another dtype."""
        found: ir.Value = self.write("Cast", value, to=DTYPES[dtype])
        return found

    def truth(self, value: ir.Value) -> ir.Value:
        """Return where numbers are not zero."""
        known = self._truths.get(value)
        return self.write("Cast", value, to=ir.DataType.BOOL) if known is None else known

    def floats(self, truth: ir.Value) -> ir.Value:
        """Return 1 for true and 0 for false."""
        found = self.cast(truth, self.dtype)
        self._truths[found] = truth
        return found

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Return rows (R, ...) in another shape (R, `shape`)."""
        return self.write("Reshape", value, self.sizes(0, *shape))  # type: ignore[no-any-return]

    def all_rows(self, steps: ir.Value, width: int) -> ir.Value:
        """Return rows (T, B, width) as (T*B, width)."""
        return self.write("Reshape", steps, self.sizes(-1, width))  # type: ignore[no-any-return]

    def sliced(self, value: ir.Value, axes: Iterable[tuple[int, int, int]]) -> ir.Value:
        """Return a part of a tensor: for some axes the first place and the end."""
        numbers, firsts, ends = zip(*axes, strict=True)
        # With its steps: without them onnxscript 0.7 joins two slices to a split, which it puts behind
        # what reads the second one, and which parts an odd width in other places.
        steps = self.sizes(*(1 for _ in numbers))
        bounds = self.sizes(*firsts), self.sizes(*ends), self.sizes(*numbers), steps
        return self.write("Slice", value, *bounds)  # type: ignore[no-any-return]

    def concatenated(self, parts: Sequence[ir.Value], axis: int = -1) -> ir.Value:
        """Return tensors one behind the other."""
        if len(parts) == 1:
            return parts[0]
        return self.write("Concat", *parts, axis=axis)  # type: ignore[no-any-return]

    def expanded(self, block: Block, shape: tuple[int, ...]) -> ir.Value:
        """Return a block in its full shape, with the axes along which all is equal."""
        if block.shape == shape:
            return block.value
        return self.write("Expand", block.value, self.sizes(1, *shape))  # type: ignore[no-any-return]

    def block(
        self,
        rows: ir.Value,
        width: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> Block:
        """Return a block of each row: number (i, j, ...) lies at offset + i * strides[0] + ...

        Args:
            rows: (R, width).
            width: how many numbers a row has.
            offset: where the first number is.
            shape: the shape of the block.
            strides: how far apart neighbours are.
        """
        kept = tuple([1 if stride == 0 else n for n, stride in zip(shape, strides, strict=True)])
        if (offset, kept, strides) == (0, (width,), (1,)):
            return Block(rows, kept)
        found = self._sliced_block(rows, width, offset, kept, strides)
        if found is None:
            places = self.constant(_places(kept, offset, strides))
            found = self.write("Gather", rows, places, axis=1)
        return Block(found, kept)

    def _sliced_block(
        self,
        rows: ir.Value,
        width: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> ir.Value | None:
        """A block as a slice of the rows in a suitable shape, if it is one."""
        order = sorted(
            (axis for axis, n in enumerate(shape) if n > 1), key=lambda axis: -strides[axis]
        )
        total, sizes, cuts = width, [], []
        for place, axis in enumerate(order):
            n, stride = shape[axis], strides[axis]
            inner = sum((shape[k] - 1) * strides[k] for k in order[place + 1 :])
            first, rest = divmod(offset, stride) if stride > 0 else (0, 0)
            if stride <= 0 or total % stride or rest + inner >= stride:
                return None
            sizes.append(total // stride)
            cuts.append((first, first + n))
            offset, total = rest, stride
        if total > 1:
            sizes.append(total)
            cuts.append((offset, offset + 1))
        if tuple(sizes) != (width,):
            rows = self.reshape(rows, sizes)
        parts = [
            (axis, first, end)
            for axis, ((first, end), size) in enumerate(zip(cuts, sizes, strict=True), 1)
            if (first, end) != (0, size)
        ]
        rows = self.sliced(rows, parts) if parts else rows
        now = [shape[axis] for axis in order] + [1] * (total > 1)
        if order != sorted(order):
            turned = [order.index(axis) for axis in sorted(order)]
            turned += range(len(order), len(now))
            rows = self.write("Transpose", rows, perm=[0, *(k + 1 for k in turned)])
            now = [now[k] for k in turned]
        return rows if tuple(now) == shape else self.reshape(rows, shape)


def merged(
    shape: tuple[int, ...], groups: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Make one axis of neighbours that can be one in all operands.

    Args:
        shape: the shape of the block.
        groups: the strides of each operand.

    Returns:
        The shape and the strides with fewer axes: at least one.
    """
    axes = [axis for axis, n in enumerate(shape) if n != 1] or [0] * bool(shape)
    if not axes:
        return (1,), [(0,) for _ in groups]
    sizes = [shape[axes[0]]]
    steps = [[strides[axes[0]]] for strides in groups]
    for axis in axes[1:]:
        n = shape[axis]
        if all(own[-1] == strides[axis] * n for own, strides in zip(steps, groups, strict=True)):
            sizes[-1] *= n
            for own, strides in zip(steps, groups, strict=True):
                own[-1] = strides[axis]
        else:
            sizes.append(n)
            for own, strides in zip(steps, groups, strict=True):
                own.append(strides[axis])
    return tuple(sizes), [tuple(own) for own in steps]


def places_of(
    pieces: Iterable[tuple[tuple[int, ...], int, tuple[int, ...]]], width: int
) -> np.ndarray[Any, Any]:
    """For each number of a row which number of the pieces, one behind the other, it is.

    Args:
        pieces: of each piece its shape, and the offset and the strides of its target.
        width: how many numbers the row has. The one behind all pieces stands for those that no piece sets.
    """
    pieces = list(pieces)
    total = sum(prod(shape) for shape, _, _ in pieces)
    found = np.full(width, total, np.int64)
    start = 0
    for shape, offset, strides in pieces:
        places = _places(shape, offset, strides)
        found[places.ravel()] = np.arange(start, start + prod(shape))
        start += prod(shape)
    return found


def _places(shape: tuple[int, ...], offset: int, strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Where the numbers of a block lie in a row, in its shape."""
    places = np.full(shape, offset, np.int64)
    for numbers, stride in zip(np.indices(shape), strides, strict=True):
        places += numbers * stride
    return places
