"""ATen operations as instructions.

:class:`Lowering` sorts the tensors of a traced step:

- *static*: made from weights alone; stays in torch, under autograd, once per call;
- *beforehand*: made from the input alone, and either not in the instruction set (an embedding) or
  itself the operand of a product; stays in torch, under autograd, once for the rows of all steps;
- the rest becomes instructions. Which of their products can run ahead of the loop, since they read the
  input only, the engine sees by itself.

A method called ``op_NAME`` lowers ``aten.NAME``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import Any

import torch

from cello.compile.build import Builder
from cello.compile.instructions import BINARY, Kind, Loop, Piece, Ref, Term, Value, strides_of
from cello.compile.integers import Integers, is_whole, kept_by
from cello.compile.reasons import CannotCompile
from cello.compile.rows import (
    BATCH,
    Axis,
    DoesNotFit,
    Rows,
    axes_of,
    axis_size,
    collapsed,
    contiguous_axes,
    refined,
    regroup,
    split_axis,
)
from cello.compile.trace import FACTORIES, VIEWS, Node, Trace
from cello.foreign.reach import Path
from cello.foreign.scope import words

Operand = Rows | float


RANDOM = words(
    "bernoulli rand rand_like randn randn_like uniform normal native_dropout randint "
    "randint_like exponential"
)

BEFOREHAND_ONLY = words("embedding convolution one_hot _embedding_bag arange")
"""Operations that treat rows alike, but that only torch knows."""

COPIES = VIEWS | words("clone detach lift_fresh lift_fresh_copy cat stack flip roll repeat")
"""Operations that neither compute nor round."""

ELSEWHERE = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Arguments that say what the result is like: its dtype is known and held to what the loop computes in."""

PLAIN = words(
    "neg abs sqrt rsqrt reciprocal exp expm1 log log1p tanh sigmoid erf sin cos sign sgn "
    "floor ceil trunc relu atan asinh acosh erfc maximum minimum lt le gt ge eq ne atan2 hypot fmod "
    "remainder floor_divide"
)
"""Operations that are one instruction of the same name."""

WIDEST = 1 << 16
"""How many numbers a value may hold for each row."""


@dataclass
class Lowered:
    """A step as instructions.

    Attributes:
        loop: the instructions; its one output is the output of the cell.
        statics: for each static value, the tensor of the trace.
        beforehand: for each input, the tensor of the trace.
    """

    loop: Loop
    statics: list[Node]
    beforehand: list[Node]


def operation(node: Node) -> str:
    """The name of a node's operation, without namespace and overload."""
    if node.op is None:
        return ""
    return str(node.op._schema.name).removeprefix("aten::")


class Lowering:
    """Makes instructions of one trace.

    Args:
        trace: the step.
        label: what messages call the cell.
        dtype: the dtype of the cell's state.
        compute: the dtype that the loop computes in.
    """

    def __init__(self, trace: Trace, label: str, dtype: torch.dtype, compute: torch.dtype) -> None:
        self.trace, self.label, self.dtype, self.compute = trace, label, dtype, compute
        self.rows = trace.rows
        self.build = Builder()
        self.statics: list[Node] = []
        self.beforehand: list[Node] = []
        self.inputs: list[Value] = []
        self.static_values: list[Value] = []
        self._lowered: dict[int, Rows] = {}
        self._node: Node = trace.x
        self._integers = Integers(label, compute)
        self._on_x: set[int] = set()
        self._on_state: set[int] = set()
        self._in_torch: set[int] = set()
        for node in trace.nodes:
            parts = list(node.inputs())
            if node.source == "x" or any(id(part) in self._on_x for part in parts):
                self._on_x.add(id(node))
            if isinstance(node.source, int) or any(id(part) in self._on_state for part in parts):
                self._on_state.add(id(node))
        for node in trace.nodes:
            self._choose_torch(node)

    def lower(self) -> Lowered:
        """Return the step as instructions.

        Raises:
            CannotCompile: an operation is not in the instruction set.
        """
        states = [
            Value(Kind.STATE, math.prod(n.shape[1:]), i) for i, n in enumerate(self.trace.state)
        ]
        for node, value in zip(self.trace.state, states, strict=True):
            self._lowered[id(node)] = Rows(value, 0, axes_of(node.shape, self.rows))
        results = []
        for node, old in zip(
            (self.trace.output, *self.trace.new_state), (None, *self.trace.state), strict=True
        ):
            if old is not None and node.dtype != old.dtype:
                raise CannotCompile(
                    f"{self.label} takes a state of {old.dtype} and returns {node.dtype}"
                )
            results.append(self._result(node))
        return Lowered(
            Loop(
                inputs=self.inputs,
                states=states,
                statics=self.static_values,
                body=self.build.body,
                outputs=results[:1],
                new_states=results[1:],
            ),
            self.statics,
            self.beforehand,
        )

    # What goes where

    def _choose_torch(self, node: Node) -> None:
        """Mark what is made from the input alone and stays in torch."""
        name = operation(node)
        random = name in RANDOM or name.rstrip("_") in RANDOM
        if random and not self._counts_rows(node):
            # Drawn once it would be the same at all steps, which the cell's own loop is not.
            raise CannotCompile(
                f"{self.label} draws random numbers{node.line} that are no tensor (B, ...), new at each "
                "step; draw them for each row, or outside of the step"
            )
        if random:
            if id(node) in self._on_state and any(
                id(part) in self._on_state and operation(part) not in FACTORIES
                for part in node.inputs()
                if "like" not in name
            ):
                raise CannotCompile(
                    f"{self.label} draws random numbers that depend on its state{node.line}"
                )
            self._in_torch.add(id(node))
        if not self._is_beforehand(node):
            return
        reads_integers = any(_is_integer(part) for part in node.inputs())
        if name in BEFOREHAND_ONLY or (reads_integers and not _is_integer(node)):
            self._in_torch.add(id(node))
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            for part in node.inputs():
                base = part
                while _is_the_same(base) and base is not self.trace.x:
                    base = next(base.inputs())
                has_rows = base.shape[:1] == (self.rows,)
                if (
                    has_rows
                    and self._is_beforehand(base)
                    and (base is not self.trace.x or not base.dtype.is_floating_point)
                ):
                    self._in_torch.add(id(base))

    def _is_beforehand(self, node: Node) -> bool:
        return id(node) in self._on_x and id(node) not in self._on_state

    def _is_static(self, node: Node) -> bool:
        return id(node) not in self._on_x and id(node) not in self._on_state

    def _counts_rows(self, node: Node) -> bool:
        return any(size and size % self.rows == 0 for size in node.shape)

    def _result(self, node: Node) -> Value:
        """The whole of a node as a value of its own, row by row."""
        rows = self.get(node)
        rows = self._expand(rows, node.shape)
        if not rows.axes or rows.axes[0] != (BATCH,):
            raise CannotCompile(f"{self.label} returns a tensor without its batch axis first")
        self._integers.check_result(node)
        shape = rows.shape()
        width = math.prod(shape)
        flat = self._flat(rows)
        if flat.value.kind is Kind.COMPUTED and flat.value.width == width and flat.offset == 0:
            return flat.value
        return self.build.pointwise("copy", (width,), flat).value

    def _flat(self, rows: Rows) -> Ref:
        """The numbers of a row one after the other."""
        return self.build.contiguous(rows.ref(), rows.shape())._replace(strides=(1,))

    def get(self, node: Node) -> Rows:
        """The node as a view of a value."""
        stack = [node]
        while stack:  # no recursion: a step of many substeps is deep
            current = stack[-1]
            if id(current) in self._lowered:
                stack.pop()
                continue
            missing = [part for part in self._operands(current) if id(part) not in self._lowered]
            if missing:
                stack += missing
                continue
            rows = self._lower(current)
            if current.is_detached and rows.value.kind is not Kind.STATIC:
                old = current.in_place_of
                rows = (
                    self._stop(rows)
                    if old is None
                    else self.pointwise("replace", self._lowered[id(old)], rows)
                )
            self._lowered[id(current)] = rows
            stack.pop()
        return self._lowered[id(node)]

    def _operands(self, node: Node) -> list[Node]:
        """The nodes that must be lowered before this one."""
        if id(node) in self._in_torch or self._stays_static(node):
            return []
        if operation(node).endswith("_like") or operation(node).startswith("new_"):
            return []
        return list(node.inputs())

    def _stays_static(self, node: Node) -> bool:
        """Whether torch computes it once per call."""
        if not self._is_static(node) or self._counts_rows(node):
            return False
        return operation(node) not in VIEWS and operation(node) not in FACTORIES

    def _lower(self, node: Node) -> Rows:
        self._node = node
        self.build.line = node.line
        if node.source == "x" or id(node) in self._in_torch:
            return self._input(node)
        if self._stays_static(node):
            return self._static(node)
        name = operation(node)
        args = [self._argument(a) for a in node.args]
        kwargs = {k: self._argument(a) for k, a in node.kwargs.items() if k not in ELSEWHERE}
        method: Callable[..., Rows] | None = getattr(self, f"op_{name}", None)
        if method is None and name in PLAIN:
            method = self._plain_binary if name in BINARY else self._plain_unary
        if method is None:
            raise CannotCompile(self._unknown(node))
        try:
            bound = inspect.signature(method).bind(*args, **kwargs)
        except TypeError as error:
            raise CannotCompile(
                f"{self.label} uses {name}{node.line} with arguments that are not in the instruction set: "
                f"{error}"
            ) from None
        self._integers.check(node, name)
        self._check_dtype(node)
        try:
            return method(*bound.args, **bound.kwargs)
        except DoesNotFit:
            raise CannotCompile(
                f"{self.label} arranges batch and features in {name}{node.line} in a way that does not "
                "keep the rows of a batch apart"
            ) from None

    def _plain_unary(self, x: Operand) -> Rows:
        name = operation(self._node)
        return self.pointwise("sign" if name == "sgn" else name, x)

    def _plain_binary(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise(operation(self._node), a, b)

    def _unknown(self, node: Node) -> str:
        return (
            f"{self.label} uses {operation(node)}{node.line}, which is not in the instruction set; "
            "pointwise functions, linear maps with weights, and sums, means, variances, extrema and "
            "softmax along the features are"
        )

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self._lowered.get(id(argument), argument)
        if isinstance(argument, list | tuple):
            return [self._argument(item) for item in argument]
        return argument

    def _input(self, node: Node) -> Rows:
        if is_whole(node.dtype) and node.dtype != torch.bool:
            raise CannotCompile(
                f"{self.label} computes with integers made from its input{node.line}; convert them "
                "with .float() or look them up in an embedding first"
            )
        if not node.shape or node.shape[0] != self.rows:
            raise CannotCompile(
                f"{self.label} makes a tensor{node.line} that has not its batch axis first"
            )
        self._check_given(node)
        value = Value(Kind.INPUT, math.prod(node.shape[1:]), len(self.inputs))
        self.inputs.append(value)
        self.beforehand.append(node)
        return Rows(value, 0, axes_of(node.shape, self.rows))

    def _static(self, node: Node) -> Rows:
        self._check_given(node)
        value = Value(Kind.STATIC, math.prod(node.shape), len(self.statics))
        if isinstance(node.source, tuple):
            value.label = str(node.source[-1])
        self.statics.append(node)
        self.static_values.append(value)
        return Rows(value, 0, axes_of(node.shape, self.rows))

    def _dtypes(self) -> tuple[torch.dtype | None, ...]:
        """The dtypes that are computed in one and the same."""
        return self.dtype, self.compute, self.trace.autocast

    def _check_given(self, node: Node) -> None:
        """Refuse a tensor whose numbers the loop cannot hold; a single one counts as torch counts it."""
        if node.dtype.is_complex or (node.shape and not self._holds(node.dtype)):
            raise self._mixture(node)

    def _holds(self, dtype: torch.dtype) -> bool:
        """Whether numbers of a dtype are what they are in the loop."""
        return dtype in self._dtypes() or torch.promote_types(dtype, self.dtype) == self.dtype

    def _check_dtype(self, node: Node) -> None:
        """Refuse an operation that torch computes in another dtype, and rounds to it."""
        if not node.dtype.is_complex and not node.dtype.is_floating_point:
            return
        if node.dtype in self._dtypes() or operation(node) in FACTORIES or not node.shape:
            return
        if self._holds(node.dtype) and self._integers.holds(node, operation(node)):
            return
        is_copied = all(part.dtype == node.dtype for part in node.inputs())
        if not (is_copied and operation(node) in COPIES):
            raise self._mixture(node)

    def _mixture(self, node: Node) -> CannotCompile:
        held = f" of {node.source.readable}" if isinstance(node.source, Path) else ""
        return CannotCompile(
            f"{self.label} mixes {node.dtype}{held} with {self.dtype}{node.line}; write .to(x.dtype)"
        )

    # Blocks of numbers

    def number(self, number: float, shape: Sequence[int]) -> Rows:
        """A constant of this shape."""
        axes: list[Axis] = []
        for size in shape:
            if size == self.rows:
                axes.append((BATCH,))
            elif size % self.rows == 0 and size:
                axes.append((BATCH, (size // self.rows, 0)))
            else:
                axes.append(() if size == 1 else ((size, 0),))
        return Rows(self.build.constant(number, ()).value, 0, tuple(axes))

    def pointwise(self, op: str, *operands: Operand) -> Rows:
        """Apply an operation of the instruction set, with broadcasting."""
        tensors = [o for o in operands if isinstance(o, Rows)]
        rank = max((len(t.axes) for t in tensors), default=0)
        padded = [t._replace(axes=((),) * (rank - len(t.axes)) + t.axes) for t in tensors]
        axes: list[Axis] = []
        strides: list[list[int]] = [[] for _ in padded]
        for position in range(rank):
            here = [t.axes[position] for t in padded]
            full = [axis for axis in here if axis]
            if len({axis_size(axis, self.rows) for axis in full}) > 1:
                raise DoesNotFit
            sizes = refined(full) if full else []
            axes.append(tuple(BATCH if size == -1 else (size, 0) for size in sizes))
            for axis, row in zip(here, strides, strict=True):
                split = split_axis(axis, sizes) if axis else ((0, 0),) * len(sizes)
                row += [f[1] for f, size in zip(split, sizes, strict=True) if size != -1]
        shape = tuple(f[0] for axis in axes for f in axis if f != BATCH)
        if math.prod(shape) > WIDEST:
            raise CannotCompile(
                f"{self.label} makes {math.prod(shape)} numbers for each row{self._node.line}"
            )
        refs = iter(
            Ref(t.value, t.offset, tuple(row)) for t, row in zip(padded, strides, strict=True)
        )
        args = [next(refs) if isinstance(o, Rows) else float(o) for o in operands]
        ref = self.build.pointwise(op, shape, *args)
        if ref.strides == strides_of(shape):
            return Rows(ref.value, ref.offset, contiguous_axes(axes, self.rows))
        steps = iter(ref.strides)
        return Rows(
            ref.value,
            ref.offset,
            tuple(tuple(f if f == BATCH else (f[0], next(steps)) for f in a) for a in axes),
        )

    def _reduce(self, op: str, x: Rows, dims: Sequence[int] | int | None, keepdim: bool) -> Rows:
        dims = self._dims(x, dims)
        if any(BATCH in x.axes[dim] for dim in dims):
            raise CannotCompile(
                f"{self.label} mixes the rows of a batch in {operation(self._node)}{self._node.line}"
            )
        inner = [f for dim in dims for f in x.axes[dim]]
        outer = [f for d, axis in enumerate(x.axes) if d not in dims for f in axis if f != BATCH]
        ref = Ref(x.value, x.offset, tuple(f[1] for f in (*outer, *collapsed(inner))))
        shape = tuple(f[0] for f in (*outer, *collapsed(inner)))
        while len(shape) > len(outer):
            ref = self.build.reduce(op, shape, ref)
            shape = shape[:-1]
        steps = iter(ref.strides)
        axes: list[Axis] = []
        for dim, axis in enumerate(x.axes):
            if dim in dims:
                axes += [()] if keepdim else []
            else:
                axes.append(tuple(f if f == BATCH else (f[0], next(steps)) for f in axis))
        return Rows(ref.value, ref.offset, tuple(axes))

    @staticmethod
    def _dims(x: Rows, dims: Sequence[int] | int | None) -> list[int]:
        rank = len(x.axes)
        if dims is None or (not isinstance(dims, int) and not dims):
            return list(range(rank))
        return [d % rank for d in ([dims] if isinstance(dims, int) else dims)]

    def _count(self, x: Rows, dims: Sequence[int] | int | None) -> int:
        return math.prod(axis_size(x.axes[d], self.rows) for d in self._dims(x, dims))

    def _expand(self, x: Rows, shape: Sequence[int]) -> Rows:
        axes = ((),) * (len(shape) - len(x.axes)) + x.axes
        out: list[Axis] = []
        for axis, size in zip(axes, shape, strict=True):
            if axis or size in (1, -1):
                out.append(axis)
            elif size == self.rows:
                out.append((BATCH,))
            elif size % self.rows == 0:
                out.append((BATCH, (size // self.rows, 0)))
            else:
                out.append(((size, 0),))
        return x._replace(axes=tuple(out))

    def _copy(self, x: Rows) -> Rows:
        ref = self.build.contiguous(x.ref(), x.shape())
        return Rows(ref.value, ref.offset, contiguous_axes(x.axes, self.rows))

    # Views

    def op_view(self, x: Rows, shape: Sequence[int]) -> Rows:
        shape = self._node.shape
        try:
            return x._replace(axes=regroup(x.axes, shape, self.rows))
        except DoesNotFit:
            x = self._copy(x)
            return x._replace(axes=regroup(x.axes, shape, self.rows))

    op__unsafe_view = op_reshape = op__reshape_alias = op_view

    def op_alias(self, x: Rows) -> Rows:
        return x

    op_clone = op_lift_fresh_copy = op_lift_fresh = op_view_as = op_alias
    op_positive = op_conj_physical = op_alias

    def op_detach(self, x: Rows) -> Rows:
        return self._stop(x)

    def _stop(self, x: Rows) -> Rows:
        """A copy through which no gradient flows."""
        return self.pointwise("stop", x)

    def op_expand(self, x: Rows, shape: Sequence[int], implicit: bool = False) -> Rows:
        return self._expand(x, self._node.shape)

    def op_permute(self, x: Rows, dims: Sequence[int]) -> Rows:
        return x.permuted(self._dims(x, dims))

    def op_transpose(self, x: Rows, a: int, b: int) -> Rows:
        order = list(range(len(x.axes)))
        order[a], order[b] = order[b], order[a]
        return x.permuted(order)

    def op_t(self, x: Rows) -> Rows:
        return x.permuted(range(len(x.axes))[::-1])

    def op_unsqueeze(self, x: Rows, dim: int) -> Rows:
        dim %= len(x.axes) + 1
        return x._replace(axes=(*x.axes[:dim], (), *x.axes[dim:]))

    def op_squeeze(self, x: Rows, dims: Sequence[int] | int | None = None) -> Rows:
        chosen = self._dims(x, dims)
        return x._replace(axes=tuple(a for d, a in enumerate(x.axes) if d not in chosen or a))

    def _axis(self, x: Rows, dim: int) -> tuple[Rows, int, int, int]:
        """A tensor with an axis as one factor: it, the axis' number, its size, its stride."""
        dim %= len(x.axes)
        factors = collapsed(x.axes[dim])
        if not factors:
            return x, dim, 1, 0
        if BATCH in factors:
            raise DoesNotFit
        if len(factors) > 1:
            x = self._copy(x)
            factors = collapsed(x.axes[dim])
        return x, dim, *factors[0]

    def _range(self, x: Rows, dim: int, start: int, length: int, step: int = 1) -> Rows:
        x, dim, size, stride = self._axis(x, dim)
        if length == size and step == 1:
            return x
        factors: Axis = () if length == 1 else ((length, stride * step),)
        return x._replace(offset=x.offset + start * stride).with_axis(dim, factors)

    def op_slice(
        self, x: Rows, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
    ) -> Rows:
        position = dim % len(x.axes)
        size = axis_size(x.axes[position], self.rows)
        first, last, _ = slice(start, end, step).indices(size)
        length = max(0, -(-(last - first) // step))
        if length == size and step == 1:
            return x
        if length == 0:
            raise CannotCompile(f"{self.label} slices nothing out of a tensor{self._node.line}")
        return self._range(x, dim, first, length, step)

    def op_narrow(self, x: Rows, dim: int, start: int, length: int) -> Rows:
        return self._range(x, dim, start, length)

    def op_select(self, x: Rows, dim: int, index: int) -> Rows:
        x, dim, size, stride = self._axis(x, dim)
        x = x._replace(offset=x.offset + (index % size) * stride)
        return x._replace(axes=(*x.axes[:dim], *x.axes[dim + 1 :]))

    def op_split(self, x: Rows, sizes: int | Sequence[int], dim: int = 0) -> Rows:
        size = axis_size(x.axes[dim % len(x.axes)], self.rows)
        widths = [min(sizes, size)] * size if isinstance(sizes, int) else list(sizes)
        index = self._node.index or 0
        start = sum(widths[:index])
        return self._range(x, dim, start, min(widths[index], size - start))

    op_split_with_sizes = op_unsafe_split = op_unsafe_split_with_sizes = op_split

    def op_unbind(self, x: Rows, dim: int = 0) -> Rows:
        return self.op_select(x, dim, self._node.index or 0)

    def op_cat(self, tensors: Sequence[Rows], dim: int = 0) -> Rows:
        tensors = [t for t in tensors if t.axes != (((0, 0),),)]
        dim %= len(tensors[0].axes)
        if any(BATCH in t.axes[dim] for t in tensors):
            raise DoesNotFit
        shape = self._node.shape
        axes = list(axes_of(shape, self.rows))
        out = contiguous_axes(axes, self.rows)
        strides = {d: axis[0][1] for d, axis in enumerate(out) if axis and axis != (BATCH,)}
        step = strides.get(dim, 1)
        pieces, start = [], 0
        for tensor in tensors:
            length = axis_size(tensor.axes[dim], self.rows)
            full = self._expand(tensor, [*shape[:dim], length, *shape[dim + 1 :]])
            block, targets = [], []
            for d, axis in enumerate(full.axes):
                # The target's one stride, over the factors of the source.
                sizes = [f[0] for f in axis if f != BATCH]
                block += sizes
                targets += [strides.get(d, step) * s for s in strides_of(tuple(sizes))]
            pieces.append(Piece(tuple(block), full.ref(), start * step, tuple(targets)))
            start += length
        width = math.prod(f[0] for axis in out for f in axis if f != BATCH)
        return Rows(self.build.assemble(width, pieces), 0, out)

    def op_stack(self, tensors: Sequence[Rows], dim: int = 0) -> Rows:
        return self.op_cat([self.op_unsqueeze(t, dim) for t in tensors], dim)

    def op_slice_scatter(
        self,
        x: Rows,
        source: Rows,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> Rows:
        size = axis_size(x.axes[dim % len(x.axes)], self.rows)
        first, last, _ = slice(start, end, step).indices(size)
        if first == 0 and last == size and step == 1:
            return self._expand(source, self._node.shape)
        if step != 1:
            raise CannotCompile(self._unknown(self._node))
        parts = [self._range(x, dim, 0, first)] if first else []
        shape = list(self._node.shape)
        shape[dim] = last - first
        parts.append(self._expand(source, shape))
        parts += [self._range(x, dim, last, size - last)] if last < size else []
        return self.op_cat([self._expand_but(p, dim) for p in parts], dim)

    def _expand_but(self, x: Rows, dim: int) -> Rows:
        shape = list(self._node.shape)
        shape[dim] = axis_size(x.axes[dim], self.rows)
        return self._expand(x, shape)

    def op_select_scatter(self, x: Rows, source: Rows, dim: int, index: int) -> Rows:
        size = axis_size(x.axes[dim % len(x.axes)], self.rows)
        return self.op_slice_scatter(
            x, self.op_unsqueeze(source, dim), dim, index % size, index % size + 1
        )

    def op_constant_pad_nd(self, x: Rows, pad: Sequence[int], value: float = 0.0) -> Rows:
        for k in range(0, len(pad), 2):
            dim = len(x.axes) - 1 - k // 2
            left, right = pad[k], pad[k + 1]
            if left < 0 or right < 0:
                raise CannotCompile(self._unknown(self._node))
            if not (left or right):
                continue
            shape = [axis_size(axis, self.rows) for axis in x.axes]
            parts = [x]
            for length, place in ((left, 0), (right, len(parts))):
                if length:
                    block = self.number(value, [*shape[:dim], length, *shape[dim + 1 :]])
                    parts.insert(0 if place == 0 else len(parts), block)
            final = [*shape[:dim], shape[dim] + left + right, *shape[dim + 1 :]]
            x = self._cat_to(parts, dim, final)
        return x

    def _cat_to(self, parts: Sequence[Rows], dim: int, shape: Sequence[int]) -> Rows:
        node = self._node
        self._node = Node(node.op, (), {}, None, tuple(shape), node.dtype, line=node.line)
        out = self.op_cat(parts, dim)
        self._node = node
        return out

    def op_repeat(self, x: Rows, repeats: Sequence[int]) -> Rows:
        axes = ((),) * (len(repeats) - len(x.axes)) + x.axes
        out: list[Axis] = []
        for axis, count in zip(axes, repeats, strict=True):
            if count % self.rows == 0:
                out.append((BATCH, *axis) if count == self.rows else ((count, 0), *axis))
            else:
                out.append(axis if count == 1 else ((count, 0), *axis))
        return x._replace(axes=tuple(out))

    def op_roll(self, x: Rows, shifts: Sequence[int], dims: Sequence[int] = ()) -> Rows:
        if len(shifts) != len(dims):
            raise CannotCompile(self._unknown(self._node))
        for shift, dim in zip(shifts, dims, strict=True):
            size = axis_size(x.axes[dim], self.rows)
            cut = -shift % size
            if cut:
                parts = [self._range(x, dim, cut, size - cut), self._range(x, dim, 0, cut)]
                x = self._cat_to(parts, dim, self._node.shape)
        return x

    def op_flip(self, x: Rows, dims: Sequence[int]) -> Rows:
        for dim in self._dims(x, dims):
            x, dim, size, stride = self._axis(x, dim)
            if size > 1:
                x = x._replace(offset=x.offset + (size - 1) * stride)
                x = x.with_axis(dim, ((size, -stride),))
        return x

    # Constants

    def op_full(self, *args: Any) -> Rows:
        name, node = operation(self._node), self._node
        number: Any = {"ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}.get(name, 0.0)
        if name in ("full", "full_like", "new_full", "fill", "scalar_tensor"):
            number = node.args[{"new_full": 2, "scalar_tensor": 0}.get(name, 1)]
        if isinstance(number, Node):
            return self._expand(self.get(number), node.shape)
        if node.dtype.is_floating_point:
            number = torch.tensor(number, dtype=node.dtype).item()  # as torch rounds it
            if node.shape and not self._holds(node.dtype):
                own = torch.tensor(number, dtype=self.dtype).item()
                if own != number and number == number:
                    raise self._mixture(node)
        return self.number(float(number), node.shape)

    op_zeros = op_ones = op_empty = op_zeros_like = op_ones_like = op_full_like = op_full
    op_empty_like = op_new_zeros = op_new_ones = op_new_full = op_new_empty = op_full
    op_scalar_tensor = op_fill = op_zero = op_empty_strided = op_new_empty_strided = op_full

    def op_copy(self, x: Any, source: Rows, non_blocking: bool = False) -> Rows:
        node = self._node
        if node.dtype == torch.bool:
            source = self.pointwise("ne", source, 0.0)
        return self._expand(source, node.shape)

    def op__to_copy(self, x: Rows) -> Rows:
        return self.pointwise("ne", x, 0.0) if self._node.dtype == torch.bool else x

    # Products

    def _vector_of_k(self, x: Rows, axis: int) -> Rows:
        """`x` with the numbers along an axis next to each other in memory."""
        factors = collapsed(x.axes[axis])
        if len(factors) == 0 or (len(factors) == 1 and factors[0][1] == 1):
            return x
        order = [d for d in range(len(x.axes)) if d != axis] + [axis]
        copied = self._copy(x.permuted(order))
        back = sorted(range(len(order)), key=lambda place: order[place])
        return copied.permuted(back)

    def _product(self, row: Rows, static: Rows, shared: int) -> Rows:
        """Multiply rows by static matrices.

        Args:
            row: axes (P, R, K): the batch is in P or in R.
            static: axes (P, K, N); its P does not depend on the batch.
            shared: 0 if there is no P, which is then of size 1.

        Returns:
            Axes (P, R, N).
        """
        row = self._vector_of_k(row, 2)
        (p_row, r_axis, k_row), (p_static, k_axis, n_axis) = row.axes, static.axes
        K = axis_size(k_row, self.rows)
        k = collapsed(k_axis)
        n = collapsed(n_axis)
        if len(k) > 1 or len(n) > 1 or BATCH in k or BATCH in n:
            raise DoesNotFit
        if BATCH in r_axis and BATCH in p_static:
            raise DoesNotFit
        N, n_stride = n[0] if n else (1, 0)
        k_stride = k[0][1] if k else 0
        p_sizes = [f[0] for f in (p_row or p_static) if f != BATCH]
        leads = [f for f in r_axis if f != BATCH]
        p_steps = [f[1] for f in p_row if f != BATCH] or [0] * len(p_sizes)
        w_steps = [f[1] for f in p_static if f != BATCH] or [0] * len(p_sizes)
        out_shape = (*p_sizes, *(f[0] for f in leads), N)
        steps = strides_of(out_shape)
        terms = []
        for place in combinations(*(range(size) for size in out_shape[:-1])):
            p_place, r_place = place[: len(p_sizes)], place[len(p_sizes) :]
            offset = row.offset + sum(i * s for i, s in zip(p_place, p_steps, strict=True))
            offset += sum(i * f[1] for i, f in zip(r_place, leads, strict=True))
            w_offset = static.offset + sum(i * s for i, s in zip(p_place, w_steps, strict=True))
            target = sum(i * s for i, s in zip(place, steps, strict=False))
            terms.append(
                Term(row.value, offset, K, static.value, w_offset, k_stride, n_stride, N, target)
            )
        value = self.build.product(math.prod(out_shape), terms)
        p_out = tuple(f if f == BATCH else (f[0], 0) for f in (p_row or p_static))
        n_out: Axis = () if N == 1 else ((N, 1),)
        return Rows(value, 0, contiguous_axes((p_out, r_axis, n_out), self.rows))

    def _matmul(self, a: Rows, b: Rows) -> Rows:
        """Axes (P, M, K) times (P, K, N)."""
        kinds = Kind.STATIC, Kind.CONSTANT
        if a.value.kind in kinds and b.value.kind in kinds:
            # Both are the same for all rows: of a constant with as many rows as the batch each has its own.
            if b.has_batch and not a.has_batch:
                b = self.pointwise("copy", b)
            else:
                a = self.pointwise("copy", a)
        if Kind.CONSTANT in (a.value.kind, b.value.kind):
            return self._times_constant(a, b)
        if b.value.kind is Kind.STATIC:
            return self._product(a, b, 0)
        if a.value.kind is Kind.STATIC:
            out = self._product(b.permuted((0, 2, 1)), a.permuted((0, 2, 1)), 0)
            return out.permuted((0, 2, 1))
        return self._row_by_row(a, b)

    def _times_constant(self, a: Rows, b: Rows) -> Rows:
        """A product with a matrix of equal numbers: sums of rows, or of columns."""
        if sum(BATCH in axis for axis in (a.axes[0] or b.axes[0], a.axes[1], b.axes[2])) > 1:
            raise DoesNotFit
        is_left = a.value.kind is Kind.CONSTANT
        number, other, along = (a, b, 1) if is_left else (b, a, 2)
        total = self.pointwise("mul", self._reduce("sum", other, along, True), number.value.number)

        def spread(axis: Axis) -> Axis:
            return tuple(f if f == BATCH else (f[0], 0) for f in axis)

        p, m, n = total.axes
        axes = (p or spread(number.axes[0]), spread(a.axes[1]) if is_left else m)
        return total._replace(axes=(*axes, n if is_left else spread(b.axes[2])))

    def _row_by_row(self, a: Rows, b: Rows) -> Rows:
        """A product of two tensors that both differ from row to row."""
        for x in (a, b):
            if BATCH in x.axes[1] or BATCH in x.axes[2]:
                raise DoesNotFit
        left = self.op_unsqueeze(a, 2)  # (P, M, 1, K)
        right = self.op_unsqueeze(b.permuted((0, 2, 1)), 1)  # (P, 1, N, K)
        return self._reduce("sum", self.pointwise("mul", left, right), 3, False)

    def op_bmm(self, a: Rows, b: Rows) -> Rows:
        return self._matmul(a, b)

    def op_mm(self, a: Rows, b: Rows) -> Rows:
        out = self._matmul(self.op_unsqueeze(a, 0), self.op_unsqueeze(b, 0))
        return out._replace(axes=out.axes[1:])

    def op_mv(self, a: Rows, b: Rows) -> Rows:
        out = self.op_mm(a, self.op_unsqueeze(b, 1))
        return out._replace(axes=out.axes[:1])

    def op_addmm(self, c: Rows, a: Rows, b: Rows, beta: float = 1, alpha: float = 1) -> Rows:
        return self._scaled_sum(c, self.op_mm(a, b), beta, alpha)

    def op_baddbmm(self, c: Rows, a: Rows, b: Rows, beta: float = 1, alpha: float = 1) -> Rows:
        return self._scaled_sum(c, self.op_bmm(a, b), beta, alpha)

    def _scaled_sum(self, c: Rows, product: Rows, beta: float, alpha: float) -> Rows:
        c = c if beta == 1 else self.pointwise("mul", c, beta)
        product = product if alpha == 1 else self.pointwise("mul", product, alpha)
        return self.pointwise("add", product, c)

    def op__trilinear(
        self,
        a: Rows,
        b: Rows,
        c: Rows,
        expand_a: Sequence[int],
        expand_b: Sequence[int],
        expand_c: Sequence[int],
        summed: Sequence[int],
        unroll_dim: int = 1,
    ) -> Rows:
        for dims, index in ((expand_a, 0), (expand_b, 1), (expand_c, 2)):
            for dim in sorted(dims):
                x = self.op_unsqueeze((a, b, c)[index], dim)
                a, b, c = (x if k == index else t for k, t in enumerate((a, b, c)))
        return self._reduce(
            "sum", self.pointwise("mul", self.pointwise("mul", a, c), b), summed, False
        )

    # Reductions

    def op_sum(
        self,
        x: Rows,
        dim: Sequence[int] | int | None = None,
        keepdim: bool = False,
    ) -> Rows:
        return self._reduce("sum", x, dim, keepdim)

    def op_mean(
        self, x: Rows, dim: Sequence[int] | int | None = None, keepdim: bool = False
    ) -> Rows:
        return self.pointwise("div", self.op_sum(x, dim, keepdim), float(self._count(x, dim)))

    def op_amax(
        self, x: Rows, dim: Sequence[int] | int | None = None, keepdim: bool = False
    ) -> Rows:
        return self._reduce("amax", x, dim, keepdim)

    def op_amin(
        self, x: Rows, dim: Sequence[int] | int | None = None, keepdim: bool = False
    ) -> Rows:
        return self._reduce("amin", x, dim, keepdim)

    def op_any(
        self, x: Rows, dim: Sequence[int] | int | None = None, keepdim: bool = False
    ) -> Rows:
        return self._reduce("amax", self.pointwise("ne", x, 0.0), dim, keepdim)

    def op_all(
        self, x: Rows, dim: Sequence[int] | int | None = None, keepdim: bool = False
    ) -> Rows:
        return self._reduce("amin", self.pointwise("ne", x, 0.0), dim, keepdim)

    def op_max(self, x: Rows, dim: int | None = None, keepdim: bool = False) -> Rows:
        return self._first("amax", x, dim, keepdim)

    def op_min(self, x: Rows, dim: int | None = None, keepdim: bool = False) -> Rows:
        return self._first("amin", x, dim, keepdim)

    def _first(self, op: str, x: Rows, dim: int | None, keepdim: bool) -> Rows:
        """An extremum whose gradient goes to the first place that has it."""
        if dim is None or self._node.index == 1:
            raise CannotCompile(self._unknown(self._node))
        size = axis_size(x.axes[dim % len(x.axes)], self.rows)
        best = self._range(x, dim, 0, 1)
        better = "gt" if op == "amax" else "lt"
        for place in range(1, size):
            other = self._range(x, dim, place, 1)
            is_better = self.pointwise(better, other, best)
            is_nan = self.pointwise("ne", other, other)
            chosen = self.pointwise("maximum", is_better, is_nan)
            best = self.pointwise("where", chosen, other, best)
        return best if keepdim else self.op_squeeze(best, dim)

    def op_var(
        self,
        x: Rows,
        dim: Sequence[int] | int | None = None,
        correction: float | None = 1,
        keepdim: bool = False,
    ) -> Rows:
        correction = 1 if correction is None or correction is True else float(correction)
        centred = self.pointwise("sub", x, self.op_mean(x, dim, True))
        squares = self.op_sum(self.pointwise("mul", centred, centred), dim, keepdim)
        return self.pointwise("div", squares, float(self._count(x, dim) - correction))

    def op_std(
        self,
        x: Rows,
        dim: Sequence[int] | int | None = None,
        correction: float | None = 1,
        keepdim: bool = False,
    ) -> Rows:
        return self.pointwise("sqrt", self.op_var(x, dim, correction, keepdim))

    def op_var_mean(
        self,
        x: Rows,
        dim: Sequence[int] | int | None = None,
        correction: float | None = 1,
        keepdim: bool = False,
    ) -> Rows:
        if self._node.index == 1:
            return self.op_mean(x, dim, keepdim)
        return self.op_var(x, dim, correction, keepdim)

    def op_std_mean(
        self,
        x: Rows,
        dim: Sequence[int] | int | None = None,
        correction: float | None = 1,
        keepdim: bool = False,
    ) -> Rows:
        if self._node.index == 1:
            return self.op_mean(x, dim, keepdim)
        return self.op_std(x, dim, correction, keepdim)

    def op_linalg_vector_norm(
        self,
        x: Rows,
        ord: float = 2,
        dim: Sequence[int] | None = None,
        keepdim: bool = False,
    ) -> Rows:
        if ord == 2:
            total = self.op_sum(self.pointwise("mul", x, x), dim, keepdim)
            # At zero torch's gradient is zero, and not that of the square root.
            is_zero = self.pointwise("eq", total, 0.0)
            safe = self.pointwise("where", is_zero, 1.0, total)
            return self.pointwise("where", is_zero, 0.0, self.pointwise("sqrt", safe))
        if ord == 1:
            return self.op_sum(self.pointwise("abs", x), dim, keepdim)
        if ord == math.inf:
            return self.op_amax(self.pointwise("abs", x), dim, keepdim)
        raise CannotCompile(self._unknown(self._node))

    def op_norm(
        self, x: Rows, p: float | None = 2, dim: Sequence[int] | None = None, keepdim: bool = False
    ) -> Rows:
        return self.op_linalg_vector_norm(x, 2 if p is None else p, dim, keepdim)

    def op_logsumexp(self, x: Rows, dim: Sequence[int] | int, keepdim: bool = False) -> Rows:
        top = self._stop(self._reduce("amax", x, dim, True))
        top = self._finite(top)
        total = self.op_sum(self._exp(self.pointwise("sub", x, top)), dim, True)
        out = self.pointwise("add", self.pointwise("log", total), top)
        return out if keepdim else self.op_squeeze(out, dim)

    def _finite(self, x: Rows) -> Rows:
        """Zeros in the place of what is infinite or NaN."""
        return self.pointwise(
            "where", self.pointwise("lt", self.pointwise("abs", x), math.inf), x, 0.0
        )

    def op__softmax(self, x: Rows, dim: int, half_to_float: bool = False) -> Rows:
        e = self._exp(self.pointwise("sub", x, self._stop(self._reduce("amax", x, dim, True))))
        return self.pointwise("div", e, self.op_sum(e, dim, True))

    op_softmax = op__safe_softmax = op__softmax

    def op__log_softmax(self, x: Rows, dim: int, half_to_float: bool = False) -> Rows:
        centred = self.pointwise("sub", x, self._stop(self._reduce("amax", x, dim, True)))
        total = self.op_sum(self._exp(centred), dim, True)
        return self.pointwise("sub", centred, self.pointwise("log", total))

    op_log_softmax = op__log_softmax

    def op_native_layer_norm(
        self, x: Rows, shape: Sequence[int], weight: Any, bias: Any, eps: float
    ) -> Rows:
        dims = list(range(-len(shape), 0))
        centred = self.pointwise("sub", x, self.op_mean(x, dims, True))
        return self._normalised(centred, centred, dims, weight, bias, eps)

    def _normalised(
        self, x: Rows, centred: Rows, dims: Sequence[int], weight: Any, bias: Any, eps: float
    ) -> Rows:
        variance = self.op_mean(self.pointwise("mul", centred, centred), dims, True)
        if self._node.index in (1, 2):
            raise CannotCompile(self._unknown(self._node))
        out = self.pointwise("mul", x, self._rsqrt(self.pointwise("add", variance, eps)))
        if isinstance(weight, Rows):
            out = self.pointwise("mul", out, weight)
        return self.pointwise("add", out, bias) if isinstance(bias, Rows) else out

    def op__fused_rms_norm(
        self, x: Rows, shape: Sequence[int], weight: Any = None, eps: float | None = None
    ) -> Rows:
        dims = list(range(-len(shape), 0))
        eps = torch.finfo(self._node.dtype).eps if eps is None else eps
        return self._normalised(x, x, dims, weight, None, eps)

    op_rms_norm = op__fused_rms_norm

    def op_native_group_norm(
        self, x: Rows, weight: Any, bias: Any, N: int, C: int, HxW: int, groups: int, eps: float
    ) -> Rows:
        if BATCH not in x.axes[0]:
            raise DoesNotFit
        shape = [axis_size(axis, self.rows) for axis in x.axes]
        grouped = x._replace(axes=regroup(x.axes, [shape[0], groups, C // groups * HxW], self.rows))
        centred = self.pointwise("sub", grouped, self.op_mean(grouped, 2, True))
        out = self._normalised(centred, centred, [2], None, None, eps)
        out = out._replace(axes=regroup(out.axes, shape, self.rows))
        for op, vector in (("mul", weight), ("add", bias)):
            if isinstance(vector, Rows):
                full = vector._replace(axes=(*vector.axes, *((),) * (len(shape) - 2)))
                out = self.pointwise(op, out, full)
        return out

    def op_native_batch_norm(
        self,
        x: Rows,
        weight: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Rows:
        if training or not isinstance(mean, Rows) or not isinstance(variance, Rows):
            raise CannotCompile(
                f"{self.label} normalises over the batch{self._node.line}, which mixes its rows; in "
                "evaluation mode, or with a layer norm, it compiles"
            )
        scale = self._rsqrt(self.pointwise("add", variance, eps))
        trailing = ((),) * (len(x.axes) - 2)

        def feature(vector: Rows) -> Rows:
            return vector._replace(axes=(*vector.axes, *trailing))

        out = self.pointwise("mul", self.pointwise("sub", x, feature(mean)), feature(scale))
        out = self.pointwise("mul", out, feature(weight)) if isinstance(weight, Rows) else out
        return self.pointwise("add", out, feature(bias)) if isinstance(bias, Rows) else out

    def op__native_batch_norm_legit_no_training(
        self, x: Rows, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
    ) -> Rows:
        return self.op_native_batch_norm(x, weight, bias, mean, variance, False, momentum, eps)

    op_cudnn_batch_norm = op_native_batch_norm

    def op_index(self, x: Rows, indices: Sequence[Any]) -> Rows:
        chosen = [dim for dim, index in enumerate(indices) if index is not None]
        if len(chosen) != 1:
            raise CannotCompile(self._unknown(self._node))
        return self.op_index_select(x, chosen[0], indices[chosen[0]])

    def op_index_select(self, x: Rows, dim: int, index: Any) -> Rows:
        """Features in another order: a product with columns of the unit matrix."""
        *_, node = self._node.inputs()
        if (
            not self._is_static(node)
            or len(node.shape) != 1
            or not is_whole(node.dtype)
            or node.dtype.itemsize < 4
        ):
            raise CannotCompile(self._unknown(self._node))
        x, dim, size, _ = self._axis(x, dim)
        eye = Node(
            torch.ops.aten.eye.default,
            (size,),
            {"dtype": self.dtype, "device": torch.device("meta")},
            None,
            (size, size),
            self.dtype,
        )
        columns = Node(
            torch.ops.aten.index_select.default,
            (eye, 1, node),
            {},
            None,
            (size, node.shape[0]),
            self.dtype,
        )
        order = [d for d in range(len(x.axes)) if d != dim] + [dim]
        moved = x.permuted(order)
        flat: Axis = tuple(factor for axis in moved.axes[:-1] for factor in axis)
        row = moved._replace(axes=((), flat, moved.axes[-1]))
        out = self._product(row, self.op_unsqueeze(self._static(columns), 0), 0)
        back = sorted(range(len(order)), key=lambda place: order[place])
        shape_out = [self._node.shape[d] for d in order]
        return out._replace(axes=regroup(out.axes, shape_out, self.rows)).permuted(back)

    def op_index_put(
        self, x: Rows, indices: Sequence[Any], value: Operand, accumulate: bool = False
    ) -> Rows:
        nodes = [n for n in self._node.inputs() if n.dtype == torch.bool]
        scalar = isinstance(value, Rows) and not value.has_batch and not value.features()
        if accumulate or len(indices) != 1 or len(nodes) != 1 or not scalar:
            raise CannotCompile(self._unknown(self._node))
        return self.pointwise("where", indices[0], value, x)

    def op_cumsum(self, x: Rows, dim: int) -> Rows:
        x, dim, size, _ = self._axis(x, dim)
        parts = [self._range(x, dim, 0, 1)]
        for place in range(1, size):
            parts.append(self.pointwise("add", parts[-1], self._range(x, dim, place, 1)))
        return self.op_cat(parts, dim)

    # Pointwise functions that are more than one instruction

    def _exp(self, x: Operand) -> Rows:
        return self.pointwise("exp", x)

    def _rsqrt(self, x: Operand) -> Rows:
        return self.pointwise("rsqrt", x)

    def op_add(self, a: Operand, b: Operand, alpha: float = 1) -> Rows:
        if self._node.dtype == torch.bool:
            return self.op_bitwise_or(a, b)
        return self.pointwise("add", a, b if alpha == 1 else self._times(b, alpha))

    def op_sub(self, a: Operand, b: Operand, alpha: float = 1) -> Rows:
        return self.pointwise("sub", a, b if alpha == 1 else self._times(b, alpha))

    def _times(self, a: Operand, number: float) -> Operand:
        return self.pointwise("mul", a, number) if isinstance(a, Rows) else a * number

    def op_rsub(self, a: Operand, b: Operand, alpha: float = 1) -> Rows:
        return self.op_sub(b, a, alpha)

    def op_mul(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise("mul", a, b)

    def op_div(self, a: Operand, b: Operand, rounding_mode: str | None = None) -> Rows:
        if rounding_mode == "floor":
            return self.pointwise("floor_divide", a, b)
        out = self.pointwise("div", a, b)
        return out if rounding_mode is None else self.pointwise(rounding_mode, out)

    def op_pow(self, a: Operand, b: Operand) -> Rows:
        if isinstance(a, Rows) and not isinstance(b, Rows):
            if b in (1, 2, 3, 4):
                out = a
                for _ in range(int(b) - 1):
                    out = self.pointwise("mul", out, a)
                return out
            simple = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
            if b in simple:
                return self.pointwise(simple[b], a)
        return self.pointwise("pow", a, b)

    def op_round(self, x: Rows, *, decimals: int = 0) -> Rows:
        if decimals == 0:
            return self.pointwise("round", x)
        op, back = ("mul", "div") if decimals > 0 else ("div", "mul")
        power = 10.0 ** abs(decimals)
        return self.pointwise(back, self.pointwise("round", self.pointwise(op, x, power)), power)

    def op_square(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, x)

    def op_where(self, condition: Rows, a: Operand, b: Operand) -> Rows:
        return self.pointwise("where", condition, a, b)

    def op_masked_fill(self, x: Rows, mask: Rows, value: Operand) -> Rows:
        return self.pointwise("where", mask, value, x)

    def op_clamp(self, x: Rows, min: Any = None, max: Any = None) -> Rows:
        low = -math.inf if min is None else min
        high = math.inf if max is None else max
        out = self.pointwise("clamp", x, low, high)
        if not isinstance(min, Rows) and not isinstance(max, Rows):
            return out
        # The operand that has the gradient, which is not always the one that the result is: NaN has none.
        is_within = self.pointwise(
            "mul", self.pointwise("ge", x, low), self.pointwise("le", x, high)
        )
        chosen = self.pointwise("where", is_within, x, self._stop(x))
        if isinstance(min, Rows):
            is_below = self.pointwise("lt", x, min)
            if max is not None:
                is_below = self.pointwise("mul", is_below, self.pointwise("lt", min, max))
            chosen = self.pointwise("where", is_below, min, chosen)
        if isinstance(max, Rows):
            is_above = self.pointwise("gt", x, max)
            if min is not None:
                is_above = self.pointwise("maximum", is_above, self.pointwise("lt", max, min))
            chosen = self.pointwise("where", is_above, max, chosen)
        return self.pointwise("replace", chosen, out)

    def op_clamp_min(self, x: Rows, min: Any) -> Rows:
        return self.op_clamp(x, min=min)

    def op_clamp_max(self, x: Rows, max: Any) -> Rows:
        return self.op_clamp(x, max=max)

    def op_hardtanh(self, x: Rows, low: float = -1.0, high: float = 1.0) -> Rows:
        return self.pointwise("hardtanh", x, low, high)

    def op_relu6(self, x: Rows) -> Rows:
        return self.op_hardtanh(x, 0.0, 6.0)

    def op_hardsigmoid(self, x: Rows) -> Rows:
        # Bounded last, so that what the gradient reads is the result, which has to be kept anyway. A sixth
        # is rounded up: with one rounded down, 3 times it would not quite reach the bounds.
        line = self.pointwise("add", self.pointwise("mul", x, math.nextafter(1 / 6, 1)), 0.5)
        return self.op_hardtanh(line, 0.0, 1.0)

    def op_hardswish(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, self.op_hardsigmoid(x))

    def op_leaky_relu(self, x: Rows, slope: float = 0.01) -> Rows:
        return self.pointwise(
            "where", self.pointwise("gt", x, 0.0), x, self.pointwise("mul", x, slope)
        )

    def op__prelu_kernel(self, x: Rows, weight: Rows) -> Rows:
        return self.pointwise(
            "where", self.pointwise("gt", x, 0.0), x, self.pointwise("mul", x, weight)
        )

    def op_threshold(self, x: Rows, threshold: float, value: float) -> Rows:
        return self.pointwise("where", self.pointwise("le", x, threshold), value, x)

    def op_elu(
        self, x: Rows, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
    ) -> Rows:
        # The negative side is computed from min(x, 0): beyond, exp would overflow and spoil gradients.
        is_positive = self.pointwise("gt", x, 0.0)
        below = self.pointwise("where", is_positive, 0.0, x)
        below = self.pointwise("expm1", self._times(below, input_scale))
        return self.pointwise(
            "where", is_positive, self._times(x, scale), self._times(below, alpha * scale)
        )

    def op_celu(self, x: Rows, alpha: float = 1.0) -> Rows:
        return self.op_elu(x, alpha, 1.0, 1.0 / alpha)

    def op_selu(self, x: Rows) -> Rows:
        return self.op_elu(x, 1.6732632423543772, 1.0507009873554805)

    def op_silu(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, self.pointwise("sigmoid", x))

    def op_gelu(self, x: Rows, approximate: str = "none") -> Rows:
        half = self.pointwise("mul", x, 0.5)
        if approximate == "tanh":
            cube = self.pointwise("mul", self.pointwise("mul", x, x), x)
            inner = self.pointwise("add", x, self.pointwise("mul", cube, 0.044715))
            curve = self.pointwise("tanh", self.pointwise("mul", inner, math.sqrt(2 / math.pi)))
        else:
            curve = self.pointwise("erf", self.pointwise("mul", x, math.sqrt(0.5)))
        return self.pointwise("mul", half, self.pointwise("add", curve, 1.0))

    def op_softplus(self, x: Rows, beta: float = 1.0, threshold: float = 20.0) -> Rows:
        scaled = self._times(x, beta)
        is_linear = self.pointwise("gt", scaled, threshold)
        # As with elu: keep exp from overflowing where its result is not used.
        curved = self.pointwise("where", is_linear, 0.0, scaled)
        curved = self.pointwise("log1p", self._exp(curved))
        return self.pointwise("where", is_linear, x, self.pointwise("div", curved, beta))

    def op_mish(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, self.pointwise("tanh", self.op_softplus(x)))

    def op_log_sigmoid_forward(self, x: Rows) -> Rows:
        below = self.pointwise("minimum", x, 0.0)
        tail = self._exp(self.pointwise("neg", self.pointwise("abs", x)))
        return self.pointwise("sub", below, self.pointwise("log1p", tail))

    op_log_sigmoid = op_log_sigmoid_forward

    def op_logit(self, x: Rows, eps: float | None = None) -> Rows:
        x = x if eps is None else self.pointwise("clamp", x, eps, 1 - eps)
        return self.pointwise("log", self.pointwise("div", x, self._sub(1.0, x)))

    def op_frac(self, x: Rows) -> Rows:
        return self._sub(x, self.pointwise("trunc", x))

    def op_rrelu_with_noise(
        self,
        x: Rows,
        noise: Any,
        lower: float = 0.125,
        upper: float = 1 / 3,
        training: bool = False,
        generator: Any = None,
    ) -> Rows:
        if training:
            raise CannotCompile(self._unknown(self._node))
        return self.op_leaky_relu(x, (lower + upper) / 2)

    def op_softshrink(self, x: Rows, bound: float = 0.5) -> Rows:
        inside = self.pointwise("le", self.pointwise("abs", x), bound)
        above, below = self._minus(x, bound), self.pointwise("add", x, bound)
        outside = self.pointwise("where", self.pointwise("gt", x, 0.0), above, below)
        return self.pointwise("where", inside, 0.0, outside)

    def _minus(self, x: Operand, number: float) -> Rows:
        return self.pointwise("sub", x, number)

    def op_hardshrink(self, x: Rows, bound: float = 0.5) -> Rows:
        inside = self.pointwise("le", self.pointwise("abs", x), bound)
        return self.pointwise("where", inside, 0.0, x)

    def op_glu(self, x: Rows, dim: int = -1) -> Rows:
        x, _, size, _ = self._axis(x, dim)
        a, b = self._range(x, dim, 0, size // 2), self._range(x, dim, size // 2, size // 2)
        return self.pointwise("mul", a, self.pointwise("sigmoid", b))

    def op_logaddexp(self, a: Rows, b: Rows) -> Rows:
        apart = self._negative(self.pointwise("abs", self._sub(b, a)))
        more = self.pointwise("log1p", self._exp(apart))
        out = self.pointwise("add", self.pointwise("maximum", a, b), more)
        # Two equal infinities are one; their difference, and with it the gradient, is NaN.
        is_infinite = self.pointwise("eq", self.pointwise("abs", a), math.inf)
        is_same = self.pointwise("mul", is_infinite, self.pointwise("eq", a, b))
        return self.pointwise("where", is_same, self.pointwise("replace", out, self._stop(a)), out)

    def _sub(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise("sub", a, b)

    def op_logaddexp2(self, a: Rows, b: Rows) -> Rows:
        both = self.op_logaddexp(self._times_ln2(a), self._times_ln2(b))
        return self.pointwise("mul", both, 1 / math.log(2))

    def _times_ln2(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, math.log(2))

    def op_fmax(self, a: Rows, b: Rows) -> Rows:
        return self._unless_nan("ge", a, b)

    def op_fmin(self, a: Rows, b: Rows) -> Rows:
        return self._unless_nan("le", a, b)

    def _unless_nan(self, better: str, a: Rows, b: Rows) -> Rows:
        """An extremum that is NaN where both are; at a tie the first one has the gradient."""
        is_nan = self.pointwise("ne", b, b)
        is_first = self.pointwise("maximum", self.pointwise(better, a, b), is_nan)
        return self.pointwise("where", is_first, a, b)

    def op_xlogy(self, a: Operand, b: Operand) -> Rows:
        return self._times_log("log", a, b, end=0.0, root=1.0)

    def op_special_xlog1py(self, a: Operand, b: Operand) -> Rows:
        return self._times_log("log1p", a, b, end=-1.0, root=0.0)

    def _times_log(self, log: str, a: Operand, b: Operand, end: float, root: float) -> Rows:
        """A product with a logarithm, whose domain ends at `end` and which is zero at `root`.

        No times anything but NaN is nothing.
        """
        is_zero = self._compare("eq", a, 0.0)
        is_nothing = self.pointwise("mul", is_zero, self._compare("le", b, end))
        product = self.pointwise(
            "mul", a, self.pointwise(log, self.pointwise("where", is_nothing, root, b))
        )
        is_nothing = self.pointwise("mul", is_zero, self._compare("eq", b, math.inf))
        nothing = self.pointwise("replace", product, 0.0)
        return self.pointwise("where", is_nothing, nothing, product)

    def _compare(self, op: str, a: Operand, b: float) -> Operand:
        if isinstance(a, Rows):
            return self.pointwise(op, a, b)
        return float(a <= b if op == "le" else a == b)

    def op_ldexp(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise("mul", a, self.pointwise("pow", 2.0, b))

    def op_sinc(self, x: Rows) -> Rows:
        is_zero = self.pointwise("eq", x, 0.0)
        turned = self.pointwise("mul", self.pointwise("where", is_zero, 1.0, x), math.pi)
        wave = self.pointwise("div", self.pointwise("sin", turned), turned)
        return self.pointwise("where", is_zero, 1.0, wave)

    def op_nan_to_num(
        self,
        x: Rows,
        nan: float | None = None,
        posinf: float | None = None,
        neginf: float | None = None,
    ) -> Rows:
        kind = torch.finfo(self._node.dtype) if self._node.dtype.is_floating_point else None
        if kind is None:
            return x
        out = self.pointwise("where", self.pointwise("ne", x, x), nan or 0.0, x)
        for infinite, number in (
            (math.inf, kind.max if posinf is None else posinf),
            (-math.inf, kind.min if neginf is None else neginf),
        ):
            out = self.pointwise("where", self.pointwise("eq", x, infinite), number, out)
        return out

    def op_angle(self, x: Rows) -> Rows:
        turned = self.pointwise("where", self.pointwise("lt", x, 0.0), math.pi, 0.0)
        return self.pointwise("where", self.pointwise("ne", x, x), self._stop(x), turned)

    def op_isnan(self, x: Rows) -> Rows:
        return self.pointwise("ne", x, x)

    def op_isinf(self, x: Rows) -> Rows:
        return self.pointwise("eq", self.pointwise("abs", x), math.inf)

    def op_isposinf(self, x: Rows) -> Rows:
        return self.pointwise("eq", x, math.inf)

    def op_isneginf(self, x: Rows) -> Rows:
        return self.pointwise("eq", x, -math.inf)

    def op_deg2rad(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, math.pi / 180)

    def op_rad2deg(self, x: Rows) -> Rows:
        return self.pointwise("mul", x, 180 / math.pi)

    def op_lerp(self, a: Rows, b: Rows, weight: Operand) -> Rows:
        return self.pointwise("add", a, self.pointwise("mul", weight, self._sub(b, a)))

    def op_addcmul(self, a: Rows, b: Rows, c: Rows, value: float = 1) -> Rows:
        return self.pointwise("add", a, self._times(self.pointwise("mul", b, c), value))

    def op_addcdiv(self, a: Rows, b: Rows, c: Rows, value: float = 1) -> Rows:
        return self.pointwise("add", a, self._times(self.pointwise("div", b, c), value))

    def op_exp2(self, x: Rows) -> Rows:
        return self._exp(self.pointwise("mul", x, math.log(2)))

    def op_log2(self, x: Rows) -> Rows:
        return self.pointwise("mul", self.pointwise("log", x), 1 / math.log(2))

    def op_log10(self, x: Rows) -> Rows:
        return self.pointwise("mul", self.pointwise("log", x), 1 / math.log(10))

    def op_tan(self, x: Rows) -> Rows:
        return self.pointwise("div", self.pointwise("sin", x), self.pointwise("cos", x))

    def op_sinh(self, x: Rows) -> Rows:
        up = self.pointwise("expm1", x)
        down = self.pointwise("expm1", self.pointwise("neg", x))
        return self.pointwise("mul", self._sub(up, down), 0.5)

    def op_cosh(self, x: Rows) -> Rows:
        both = self.pointwise("add", self._exp(x), self._exp(self.pointwise("neg", x)))
        return self.pointwise("mul", both, 0.5)

    def op_asin(self, x: Rows) -> Rows:
        rest = self.pointwise("sqrt", self._sub(1.0, self.pointwise("mul", x, x)))
        # Half the angle: at the ends the gradient is then infinite, and not NaN.
        half = self.pointwise("atan", self.pointwise("div", x, self.pointwise("add", rest, 1.0)))
        return self.pointwise("mul", half, 2.0)

    def op_acos(self, x: Rows) -> Rows:
        return self._sub(math.pi / 2, self.op_asin(x))

    def _negative(self, x: Rows) -> Rows:
        return self.pointwise("neg", x)

    def op_atanh(self, x: Rows) -> Rows:
        up, down = self.pointwise("log1p", x), self.pointwise("log1p", self._negative(x))
        return self.pointwise("mul", self._sub(up, down), 0.5)

    def op_bitwise_not(self, x: Rows) -> Rows:
        if self._node.dtype == torch.bool:
            return self.pointwise("not", x)
        # -1 is all ones, or the largest number of those without a sign.
        return self._sub(float(sum(kept_by(self._node.dtype))), x)

    def op_bitwise_and(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise("mul", self._truth(a), self._truth(b))

    def op_bitwise_or(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise("maximum", self._truth(a), self._truth(b))

    def op_bitwise_xor(self, a: Operand, b: Operand) -> Rows:
        return self.pointwise("ne", self._truth(a), self._truth(b))

    def op_logical_not(self, x: Rows) -> Rows:
        return self.pointwise("not", x)

    def _truth(self, x: Operand) -> Operand:
        return self.pointwise("ne", x, 0.0) if isinstance(x, Rows) else float(bool(x))

    op_logical_and, op_logical_or = op_bitwise_and, op_bitwise_or
    op_logical_xor = op_bitwise_xor


def _is_the_same(node: Node) -> bool:
    """Whether a node has the numbers of another one, in another shape or in another precision."""
    if operation(node) == "_to_copy":
        return all(part.dtype.is_floating_point for part in (node, next(node.inputs())))
    return operation(node) in VIEWS


def _is_integer(node: Node) -> bool:
    return is_whole(node.dtype) and node.dtype != torch.bool
