"""Arithmetic that writes nodes of a trace, as :mod:`cello.compile.arithmetic` writes instructions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cello.compile.arithmetic import Numbers
from cello.compile.node import Node, Op
from cello.foreign.memoryless import Meta, run

aten = torch.ops.aten


@dataclass(eq=False)
class NodeWriter:
    """Writes nodes.

    Attributes:
        nodes: all so far.
        line: the line of the cell that they come from.
        is_detached: whether no gradient flows into them.
    """

    nodes: list[Node] = field(default_factory=list)
    line: str = ""
    is_detached: bool = False

    def add(self, node: Node) -> Node:
        """Add a node."""
        self.nodes.append(node)
        return node

    def write(self, op: Op, *args: Any, index: int | None = None, **kwargs: Any) -> Node:
        """Write an operation on nodes; of several results the one at `index`."""
        found = run(op, _without_memory(args), {k: _without_memory(v) for k, v in kwargs.items()})
        found = found if index is None else found[index]
        kind = tuple(found.shape), found.dtype
        return self.add(
            Node(op, args, kwargs, index, *kind, line=self.line, is_detached=self.is_detached)
        )

    def real(self, op: Op, *args: Any, **kwargs: Any) -> Real:
        """Write an operation on nodes, of which the result is to be computed with."""
        return Real(self.write(op, *args, **kwargs), self)


def _without_memory(value: Any) -> Any:
    if isinstance(value, Node):
        return torch.empty(value.shape, dtype=value.dtype, device=Meta)
    if isinstance(value, tuple | list):
        return [_without_memory(item) for item in value]
    return value


@dataclass(frozen=True, eq=False)
class Real(Numbers):
    """A real tensor of a step, to compute with.

    Attributes:
        node: the tensor.
        writer: writes what is computed with it.
    """

    node: Node
    writer: NodeWriter

    def apply(self, op: str, *operands: Real | float) -> Real:
        """Write the operation of torch that does what an instruction does."""
        given = [o.node if isinstance(o, Real) else o for o in operands]
        if op in _OF_TENSORS:
            given = [g if isinstance(g, Node) else self._full(g) for g in given]
        are_tensors = [isinstance(operand, Node) for operand in given]
        if op == "where":
            overload = _WHERE[are_tensors[1], are_tensors[2]]
        elif len(given) == 1 or op in _OF_TENSORS:
            overload = "default"
        elif are_tensors[0]:
            overload = "Tensor" if are_tensors[1] or op in _ARITHMETIC else "Scalar"
        else:
            return self._after_number(op, *operands)
        return self.writer.real(getattr(getattr(aten, _NAMES.get(op, op)), overload), *given)

    def _after_number(self, op: str, number: Real | float, other: Real | float) -> Real:
        """Write an operation of which the first operand is a number."""
        assert isinstance(other, Real)
        if op == "sub":
            return self.writer.real(aten.rsub.Scalar, other.node, number)
        if op == "div":
            return other.apply("reciprocal", other) * number
        return other.apply(op, other, number)  # a sum or a product

    def _full(self, number: float) -> Node:
        """A tensor of one number, like this one."""
        return self.writer.write(aten.full_like.default, self.node, number)


_WHERE = {(True, True): "self", (True, False): "ScalarOther", (False, True): "ScalarSelf"}
_NAMES = {"stop": "detach"}
_ARITHMETIC = ("add", "sub", "mul", "div")
_OF_TENSORS = ("maximum", "hypot", "atan2")
