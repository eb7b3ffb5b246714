"""A traced step whose complex numbers are pairs of real ones.

The instruction set is one of real numbers. So a step that computes with complex ones is written again,
before anything else: in the place of each complex tensor there are two real ones. What is given to the step
or comes out of it, such as its state, has an axis of two after the batch, so that each part lies together.
Complex tensors that depend on neither the input nor the state stay: torch computes them once per call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cello.compile.complex_numbers import (
    ARITHMETIC,
    FUNCTIONS,
    Complex,
    Part,
    absolute,
    add,
    angle,
    div,
    mul,
    polar,
    power,
    sub,
)
from cello.compile.complex_products import along, matrices_of, multiplied, scaled
from cello.compile.integers import filled_with, is_whole
from cello.compile.node import (
    FACTORIES,
    VIEWS,
    Custom,
    Node,
    Question,
    Trace,
    by_name,
    depends_on_rows,
    operation,
)
from cello.compile.real_nodes import NodeWriter, Real, aten
from cello.compile.reasons import CannotCompile
from cello.foreign.memoryless import Meta
from cello.foreign.path import Path
from cello.foreign.scope import words


def as_real(rows: Tensor) -> Tensor:
    """Return complex rows, (N, ...), as their two parts, (N, 2, ...); others as they are."""
    return torch.stack([rows.real, rows.imag], 1) if rows.is_complex() else rows


def in_pairs(trace: Trace, label: str) -> Trace:
    """Return a step without complex tensors but for those that are the same at all steps.

    Args:
        trace: a step.
        label: what messages call the cell.

    Raises:
        CannotCompile: an operation on complex numbers cannot be written with real ones.
    """
    if not any(node.dtype.is_complex for node in trace.nodes):
        return trace
    return _Pairs(trace, label).trace()


_BY_PARTS = VIEWS | words(
    "clone detach lift_fresh resolve_conj cat stack flip roll repeat slice_scatter select_scatter "
    "constant_pad_nd sum mean cumsum index index_select index_put gather where masked_fill copy"
)
"""Operations that treat the real parts as they treat the imaginary ones."""

_UNCHANGED = {"where": 0, "gather": 2, "index_select": 2} | dict.fromkeys(
    ("masked_fill", "index", "index_put"), 1
)
"""Which of their arguments is a condition, or places."""

_NUMBERS = {"where": (1, 2), "masked_fill": (2,), "constant_pad_nd": (2,)}
"""Which of their arguments may be numbers that are parted, too."""

_PRODUCTS = {"mm": "mm", "bmm": "bmm", "mv": "mv", "addmm": "mm", "baddbmm": "bmm", "addmv": "mv"}
"""Matrix products, and the product in each."""

_USUAL = {"alpha": 1, "beta": 1, "rounding_mode": None}
"""Arguments that scale or round, where they do not."""

_OF_NEGATIVES = {"_neg_view": aten.neg.default, "resolve_neg": aten.clone.default}
"""Operations on views of negative numbers, and what does the same on numbers."""

_OF_BOTH = {"eq": aten.logical_and, "isfinite": aten.logical_and} | dict.fromkeys(
    ("ne", "isnan", "isinf"), aten.logical_or
)
"""Questions about complex numbers, and what makes one answer of those about both parts."""


class _Pairs:
    """Writes a step again.

    Args:
        trace: the step.
        label: what messages call the cell.
    """

    def __init__(self, trace: Trace, label: str) -> None:
        self._trace, self._label = trace, label
        self._writer = NodeWriter()
        self._depend: dict[int, bool] = {}
        self._kept: set[int] = set()
        self._complex: dict[int, Complex] = {}
        self._wholes: dict[int, Node] = {}  # of complex nodes with a batch axis: their two parts
        self._real: dict[int, Node] = {}  # what stands for other real nodes
        self._customs: dict[int, Custom] = {}

    def trace(self) -> Trace:
        """Return the step with real numbers."""
        for node in self._trace.nodes:
            self._writer.line, self._writer.is_detached = node.line, node.is_detached
            if self._is_kept(node):
                self._kept.add(id(node))
                self._writer.add(node)
            elif node.dtype.is_complex:
                self._complex[id(node)] = self._spread(self._complex_node(node), node)
            else:
                self._real[id(node)] = self._real_node(node)
        self._writer.is_detached = False  # what follows only hands on
        ends = self._trace.x, *self._trace.state, self._trace.output, *self._trace.new_state
        x, *rest = [self._whole(n) if n.dtype.is_complex else self._mapped(n) for n in ends]
        count = len(self._trace.state)
        return replace(
            self._trace,
            nodes=tuple(self._writer.nodes),
            x=x,
            state=tuple(rest[:count]),
            output=rest[count],
            new_state=tuple(rest[count + 1 :]),
            questions=tuple(map(self._question, self._trace.questions)),
        )

    def _question(self, question: Question) -> Question:
        assumed = [one._replace(node=self._mapped(one.node)) for one in question.assumed]
        return question._replace(node=self._mapped(question.node), assumed=tuple(assumed))

    def _is_kept(self, node: Node) -> bool:
        """Whether a node stays as it is."""
        parts = list(node.inputs())
        if node.custom is not None:
            parts += _nodes_of(node.custom)
        if operation(node) in _OF_NEGATIVES:
            return False
        if any(p.dtype.is_complex and id(p) not in self._kept for p in parts):
            return False
        if not node.dtype.is_complex:
            return not any(id(part) in self._real for part in parts)
        counts_rows = any(size and size % self._trace.rows == 0 for size in node.shape)
        return not depends_on_rows(node, self._depend) and not counts_rows

    def _unknown(self, node: Node) -> CannotCompile:
        name = operation(node) or "a tensor"
        return CannotCompile(
            f"{self._label} uses {name} of complex numbers{node.line}, which is not in the instruction set"
        )

    # What stands for a node

    def _mapped(self, value: Any) -> Any:
        """Arguments with the real nodes that stand for others."""
        if isinstance(value, Node):
            return self._real.get(id(value), value)
        if isinstance(value, tuple | list):
            return type(value)(map(self._mapped, value))
        return value

    def _parts(self, value: Any) -> Complex:
        """The parts of an operand, which may be a real tensor or a number."""
        if not isinstance(value, Node):
            return Complex(float(value.real), float(value.imag))
        if not value.dtype.is_complex:
            return Complex(Real(self._mapped(value), self._writer), 0.0)
        if id(value) not in self._complex:
            if operation(value) == "scalar_tensor":
                return self._parts(value.args[0])
            self._complex[id(value)] = self._apart(value)
        return self._complex[id(value)]

    def _apart(self, node: Node) -> Complex:
        """The parts of a node that stays as it is, for all that read it."""
        is_detached, self._writer.is_detached = self._writer.is_detached, False
        plain = self._writer.write(aten.resolve_conj.default, node)
        halves = self._halves(self._writer.write(aten.view_as_real.default, plain), -1)
        re, im = (self._writer.real(aten.clone.default, half.node) for half in halves)
        self._writer.is_detached = is_detached
        return Complex(re, im)

    def _spread(self, parts: Complex, node: Node) -> Complex:
        """Parts of which one came from a smaller operand, in the shape of both."""
        re, im = (
            self._writer.real(aten.expand.default, part.node, list(node.shape))
            if isinstance(part, Real) and part.node.shape != node.shape
            else part
            for part in parts
        )
        return Complex(re, im)

    def _halves(self, whole: Node, dim: int) -> tuple[Real, Real]:
        """The parts of a tensor that has both along an axis."""
        re, im = (self._writer.real(aten.select.int, whole, dim, place) for place in (0, 1))
        return re, im

    def _whole(self, node: Node) -> Node:
        """Both parts of a complex node in one tensor, (B, 2, ...)."""
        if id(node) not in self._wholes:
            self._wholes[id(node)] = self._stacked(node, 1)
        return self._wholes[id(node)]

    def _stacked(self, node: Node, dim: int) -> Node:
        return self._writer.write(aten.stack.default, list(self._numbers(node)), dim)

    def _tensors(self, value: Node) -> tuple[Real, Real]:
        """Both parts of an operand as tensors, also where one is a number."""
        re, im = self._parts(value)
        return self._tensor(re, value), self._tensor(im, value)

    def _tensor(self, part: Part, value: Node) -> Real:
        if isinstance(part, Real):
            return part
        like = next((p.node for p in self._parts(value) if isinstance(p, Real)), None)
        return self._full(part, value, like)

    def _full(self, number: Part, node: Node, like: Node | None) -> Real:
        """A real tensor of one number, in the shape of a complex node.

        Args:
            number: the number.
            node: the complex node.
            like: a real node of this shape, if there is one.
        """
        dtype = node.dtype.to_real()
        if like is not None:
            return self._writer.real(aten.full_like.default, like, number, dtype=dtype)
        shape = list(node.shape)
        return self._writer.real(aten.full.default, shape, number, dtype=dtype, device=Meta)

    def _with_zero(self, value: Node) -> Complex:
        """The parts of an operand, of which the imaginary one may be the number zero."""
        re, im = self._parts(value)
        is_real = isinstance(im, float) and im == 0
        return Complex(self._tensor(re, value), 0.0 if is_real else self._tensor(im, value))

    # Real nodes

    def _real_node(self, node: Node) -> Node:
        """What stands for a real node that is made of complex ones, or of what stands for others."""
        name = operation(node)
        if name in _OF_NEGATIVES:  # a view of the imaginary part of a conjugate
            return self._writer.write(_OF_NEGATIVES[name], self._mapped(node.args[0]))
        if node.custom is not None or not any(part.dtype.is_complex for part in node.inputs()):
            return self._again(node)
        z = node.args[0]
        if name in FACTORIES | {"rand_like", "randn_like"}:  # of which only the shape counts
            kwargs = {**node.kwargs, "dtype": node.dtype}
            return self._copy(node, self._tensors(z)[0].node, *node.args[1:], **kwargs)
        if name == "view_as_real":
            return self._stacked(z, -1)
        if name in ("abs", "angle"):
            found = (absolute if name == "abs" else angle)(*self._tensors(z))
            assert isinstance(found, Real)
            return found.node
        if name == "linalg_vector_norm":
            size = absolute(*self._tensors(z))
            assert isinstance(size, Real)
            return self._copy(node, size.node, *node.args[1:], **node.kwargs)
        if name == "_to_copy" and node.dtype != torch.bool:
            return self._copy(node, self._tensors(z)[0].node, **node.kwargs)
        if name in ("_to_copy", "logical_not"):
            re, im = (self._writer.write(aten.ne.Scalar, part.node, 0) for part in self._tensors(z))
            is_there = self._writer.write(aten.logical_or.default, re, im)
            if name == "_to_copy":
                return is_there
            return self._writer.write(aten.logical_not.default, is_there)
        if name == "_fft_c2r":
            signal = self._transform(node).re
            assert isinstance(signal, Real)
            return signal.node
        if name in _OF_BOTH:
            assert node.op is not None
            pairs = [self._numbers(value) for value in node.args]
            re, im = (self._writer.write(node.op, *parts) for parts in zip(*pairs, strict=True))
            return self._writer.write(_OF_BOTH[name].default, re, im)
        raise self._unknown(node)

    def _copy(self, node: Node, *args: Any, **kwargs: Any) -> Node:
        """A real node like another one, of other operands."""
        dtype = node.dtype.to_real()
        return self._writer.add(replace(node, args=args, kwargs=kwargs, dtype=dtype))

    def _numbers(self, value: Any) -> tuple[Any, Any]:
        """The parts of an operand of an operation."""
        if not isinstance(value, Node):
            return value.real, value.imag
        re, im = self._tensors(value)
        return re.node, im.node

    def _again(self, node: Node) -> Node:
        """A real node that is made of what stands for others."""
        custom = node.custom
        if custom is not None:
            if any(part.dtype.is_complex for part in (*node.inputs(), *_nodes_of(custom))):
                raise self._unknown(node)
            if id(custom) not in self._customs:
                of_nodes = custom.given, custom.results, custom.asked, custom.gradients
                self._customs[id(custom)] = Custom(custom.function, *map(self._mapped, of_nodes))
            custom = self._customs[id(custom)]
        return self._writer.add(
            replace(
                node,
                args=self._mapped(node.args),
                kwargs={key: self._mapped(value) for key, value in node.kwargs.items()},
                in_place_of=self._mapped(node.in_place_of),
                custom=custom,
            )
        )

    # Complex nodes

    def _complex_node(self, node: Node) -> Complex:
        """The parts of a complex node."""
        name = operation(node)
        if node.in_place_of is not None:
            raise CannotCompile(
                f"{self._label} overwrites complex numbers{node.line} without their gradient"
            )
        if node.op is None:
            if isinstance(node.source, Path):  # with as many rows as the batch
                raise self._unknown(node)
            dtype = node.dtype.to_real()
            shape = node.shape[0], 2, *node.shape[1:]
            whole = self._writer.add(replace(node, shape=shape, dtype=dtype))
            self._wholes[id(node)] = whole
            return Complex(*self._halves(whole, 1))
        if name in FACTORIES:
            return self._factory(node)
        if name == "view_as_complex":
            return Complex(*self._halves(self._mapped(node.args[0]), -1))
        if name in ("complex", "polar"):
            re, im = (Real(self._mapped(part), self._writer) for part in node.args)
            return Complex(re, im) if name == "complex" else polar(re, im)
        if name == "_to_copy":
            return self._converted(node)
        if name in FUNCTIONS:
            return FUNCTIONS[name](*self._tensors(node.args[0]))
        if name == "pow" and isinstance(node.args[0], Node):
            found = power(Complex(*self._tensors(node.args[0])), self._parts(node.args[1]))
            if found is not None:
                return found
        given = by_name(node)
        if name in ("add", "sub") and given["alpha"] != 1:
            more = mul(self._parts(given["other"]), self._parts(given["alpha"]))
            return (add if name == "add" else sub)(self._parts(given["self"]), more)
        is_plain = all(given.get(key, usual) == usual for key, usual in _USUAL.items())
        if name in ("addcmul", "addcdiv") and given["value"] == 1:
            a, b, c = map(self._parts, node.args[:3])
            made = mul(b, c) if name == "addcmul" else div(b, c)
            if made is not None:
                return add(a, made)
        if name in ARITHMETIC and is_plain:
            count = 1 if "other" not in given else 2
            made = ARITHMETIC[name](*map(self._parts, node.args[:count]))
            if made is not None:
                return made
        if name in _PRODUCTS and is_plain:
            return self._product(node, _PRODUCTS[name])
        if name in ("_fft_c2c", "_fft_r2c"):
            return self._transform(node)
        if name in _BY_PARTS:
            return self._by_parts(node, name)
        raise self._unknown(node)

    def _factory(self, node: Node) -> Complex:
        """A tensor of one number."""
        number = filled_with(node, operation(node))
        if isinstance(number, Node):
            raise self._unknown(node)
        given, like = node.args[0] if node.args else None, None
        if isinstance(given, Node) and given.shape == node.shape:
            like = self._tensors(given)[0].node
        re, im = self._parts(number)
        return Complex(
            self._full(re, node, like), self._full(im, node, like) if number.imag else 0.0
        )

    def _converted(self, node: Node) -> Complex:
        """Numbers in another dtype."""
        given = (self._trace.x, *self._trace.state)
        known = {n.dtype.to_real() for n in given if not is_whole(n.dtype)}
        if node.shape and node.dtype.to_real() not in known:
            of_state = " and ".join(sorted(str(dtype.to_complex()) for dtype in known))
            raise CannotCompile(f"{self._label} mixes {node.dtype} with {of_state}{node.line}")
        kwargs = {**node.kwargs, "dtype": node.dtype.to_real()}
        re, im = self._with_zero(node.args[0])
        parts = [
            Real(self._copy(node, part.node, **kwargs), self._writer)
            if isinstance(part, Real)
            else part
            for part in (re, im)
        ]
        return Complex(*parts)

    def _by_parts(self, node: Node, name: str) -> Complex:
        """An operation of the real parts, and the same one of the imaginary parts."""
        kwargs = dict(node.kwargs)
        if kwargs.get("dtype") is not None:
            kwargs["dtype"] = node.dtype.to_real()
        made = []
        for place in (0, 1):
            args = [
                self._mapped(value)
                if index == _UNCHANGED.get(name)
                else self._numbers(value)[place]
                if index in _NUMBERS.get(name, ())
                else self._one_part(value, place)
                for index, value in enumerate(node.args)
            ]
            made.append(Real(self._copy(node, *args, **kwargs), self._writer))
        return Complex(*made)

    def _one_part(self, value: Any, place: int) -> Any:
        """The real or the imaginary part of an argument."""
        if isinstance(value, Node):
            return self._numbers(value)[place]
        if isinstance(value, tuple | list) and any(isinstance(item, Node) for item in value):
            return [self._one_part(item, place) for item in value]
        return value

    # Matrix products, and Fourier transforms, which are such

    def _product(self, node: Node, name: str) -> Complex:
        """A matrix product, and what is added to it."""
        *added, a, b = node.args
        # The minus sign is for a matrix that is the same at all steps, if there is one.
        is_left = depends_on_rows(b, self._depend) and not depends_on_rows(a, self._depend)
        op = getattr(aten, name).default
        found = multiplied(op, self._with_zero(a), self._with_zero(b), is_left)
        for value in added:
            found = add(self._parts(value), found)
        return found

    def _transform(self, node: Node) -> Complex:
        """A Fourier transform, one axis after the other."""
        given = by_name(node)
        z, matrices = self._with_zero(given["self"]), matrices_of(operation(node), given)
        for dim, matrix in matrices:
            is_batch = given["self"].shape[dim] % self._trace.rows == 0
            if is_batch or not matrix.is_small:
                raise self._unknown(node)
            z = along(z, dim, matrix.written(self._writer, node.dtype.to_real()))
        return scaled(z, given["normalization"], matrices)


def _nodes_of(custom: Custom) -> Iterator[Node]:
    for group in (custom.given, custom.results, custom.asked, custom.gradients):
        yield from (node for node in group if node is not None)
