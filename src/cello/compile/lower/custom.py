"""Calls of custom functions of autograd: what their forward made, with the gradient of their backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import NamedTuple

from cello.compile.build import Builder
from cello.compile.instructions import (
    Assemble,
    Given,
    Instruction,
    Kind,
    Piece,
    Pointwise,
    Product,
    Reduce,
    Ref,
    Rule,
    Value,
    strides_of,
)
from cello.compile.integers import filled_with
from cello.compile.lower.axes import BATCH, DoesNotFit, axes_of
from cello.compile.lower.rows import Refused, Rows, align
from cello.compile.node import (
    FACTORIES,
    VIEWS,
    Custom,
    Node,
    all_inputs,
    by_name,
    depends_on_rows,
    operation,
)
from cello.foreign.scope import words

_BATCH_LATER = "makes a tensor in a custom autograd.Function{line} without its batch axis first"


class _Gradient(NamedTuple):
    """The gradient of an argument.

    Attributes:
        node: the argument.
        made: the gradient, or what it is the sum of, over the rows of the batch.
        dims: the axes of that sum; empty where there is none.
    """

    node: Node
    made: Node
    dims: tuple[int, ...]


class CustomCall:
    """A call as instructions.

    Args:
        custom: what was traced.
        build: writes the instructions.
        batch: the size by which the trace knows the batch.

    Attributes:
        rule: the gradient; its instructions are among those of the step until :meth:`take` is called.

    Raises:
        Refused: a result has not its batch axis first.
    """

    def __init__(self, custom: Custom, build: Builder, batch: int) -> None:
        if any(node.shape[:1] != (batch,) for node in custom.results):
            raise Refused(_BATCH_LATER)
        self._custom, self._build, self._batch = custom, build, batch
        self._width = sum(prod(node.shape[1:]) for node in custom.results)
        self.rule = Rule(Value(Kind.COMPUTED, self._width))
        self._gradients = [
            _Gradient(node, *_over_rows(node, gradient))
            for node, gradient in zip(custom.given, custom.gradients, strict=True)
            if gradient is not None
        ]
        self._results: list[Rows] = []

    def reads(self) -> list[Node]:
        """What is lowered before the results."""
        gradients = [gradient.made for gradient in self._gradients]
        return [*self._custom.given, *self._custom.results, *gradients]

    def asked(self) -> list[Rows]:
        """The gradients of the results, which are not known yet."""
        return self._parts(Ref(self.rule.asked, 0, (1,)))

    def results(self, lowered: Callable[[Node], Rows]) -> list[Rows]:
        """The results, once everything else of the call is lowered."""
        if not self._results:
            for node, made, dims in self._gradients:
                found = lowered(made).expanded(made.shape)
                target = _spread(lowered(node), found.rank, dims)
                _, shape, (to, ref) = align([target, found])
                self.rule.given.append(Given(shape, to, ref))
            parts = [lowered(node).expanded(node.shape) for node in self._custom.results]
            ref = self._build.ruled((self._width,), self._joined(parts), self.rule)
            self._results = self._parts(ref)
        return self._results

    def take(self, body: list[Instruction]) -> list[Instruction]:
        """Move the instructions of the rule out of those of the step, and return what is left.

        Raises:
            Refused: the gradient may be another one than zero where that of the results is zero.
        """
        made, rest = {self.rule.asked}, []
        for instruction in body:
            if made.isdisjoint(instruction.reads()):
                rest.append(instruction)
            else:
                made.add(instruction.out)
                self.rule.body.append(instruction)
        zero = {self.rule.asked}
        for instruction in self.rule.body:
            if _is_zero(instruction, zero, made - zero):
                zero.add(instruction.out)
        if any(not _is_in(given.gradient, zero) for given in self.rule.given):
            raise Refused(
                "uses a custom autograd.Function{line} whose backward may return another number than zero "
                "for a gradient of zero, which some steps have"
            )
        return rest

    def _joined(self, parts: list[Rows]) -> Ref:
        """All results of a row, one after the other."""
        if any(rows.axes[0] != (BATCH,) for rows in parts):
            raise Refused(_BATCH_LATER)
        if len(parts) == 1:
            return self._build.contiguous(parts[0].ref, parts[0].block)._replace(strides=(1,))
        pieces, offset = [], 0
        for rows in parts:
            pieces.append(Piece(rows.block, rows.ref, offset, strides_of(rows.block)))
            offset += prod(rows.block)
        return Ref(self._build.assemble(offset, pieces), 0, (1,))

    def _parts(self, ref: Ref) -> list[Rows]:
        """The parts of what :meth:`_joined` has joined."""
        parts, offset = [], ref.offset
        for node in self._custom.results:
            axes = axes_of(node.shape, self._batch)
            parts.append(Rows(ref.value, offset, axes, self._build, self._batch))
            offset += prod(node.shape[1:])
        return parts


def _over_rows(node: Node, gradient: Node) -> tuple[Node, tuple[int, ...]]:
    """What the gradient of a weight is the sum of, over axes of which the first counts the rows.

    Gradients of weights are gathered over all rows anyway, as torch gathers them by this sum. What is
    multiplied with the sum may be multiplied with what is added.
    """
    found, factors = gradient, []
    while operation(found) in _OF_SUMS | VIEWS:
        inner = _of_sum(found)
        if inner is None:
            break
        if operation(found) not in VIEWS:
            factors.append(found)
        found = inner
    made = next(found.inputs(), found)
    if depends_on_rows(node, {}) or operation(found) != "sum" or made.dtype != found.dtype:
        return gradient, ()
    given = by_name(found)
    rank = len(made.shape)
    dims = sorted({dim % rank for dim in given.get("dim") or range(rank)})
    are_leading = dims == list(range(len(dims))) or given.get("keepdim")
    if 0 not in dims or not _keep_order(gradient, found):
        return gradient, ()
    for factor in reversed(factors):
        others = [part for part in factor.inputs() if prod(part.shape) > 1]
        if len(others) > 1 and (factor.shape != found.shape or not are_leading):
            return gradient, ()
        args = tuple([made if _leads_to(argument, found) else argument for argument in factor.args])
        made = replace(factor, args=args, shape=made.shape)
    return made, tuple(dims)


def _of_sum(node: Node) -> Node | None:
    """What a node is a view of, or a multiple by what is the same for all rows; ``None`` if neither."""
    parts = list(node.inputs())
    bound = [part for part in parts if depends_on_rows(part, {})]
    is_multiple = len(bound) == 1 and bound[0].dtype == node.dtype and not node.kwargs
    name = operation(node)
    if not is_multiple or (name == "div" and node.args[0] is not bound[0]):
        return None
    if name not in _OF_SUMS and prod(bound[0].shape) > 1:
        return None
    return bound[0]


def _keep_order(gradient: Node, found: Node) -> bool:
    """Whether a gradient has the numbers of a sum in their order: they differ in axes of size one."""
    sizes = [[size for size in node.shape if size != 1] for node in (gradient, found)]
    return sizes[0] == sizes[1]


def _leads_to(argument: object, found: Node) -> bool:
    return isinstance(argument, Node) and any(part is found for part in all_inputs(argument))


def _spread(target: Rows, rank: int, dims: tuple[int, ...]) -> Rows:
    """A tensor beside one of more axes, whose sum over some of them is of its shape."""
    if not dims:
        return target
    if not target.features:
        return target.with_axes([()] * rank)
    if target.rank == rank:
        return target
    if target.rank != rank - len(dims):
        raise DoesNotFit
    axes = iter(target.axes)
    return target.with_axes([() if dim in dims else next(axes) for dim in range(rank)])


def hold_linear(node: Node) -> None:
    """Check the custom functions in what torch computes, for all steps at once.

    Their backward is called once for all steps, which makes no difference if it is linear.

    Raises:
        Refused: one may not be.
    """
    for part in all_inputs(node):
        gradients = () if part.custom is None else part.custom.gradients
        if not all(map(_Linear().holds, (g for g in gradients if g is not None))):
            raise Refused(
                f"uses a custom autograd.Function{part.line} for tensors that do not depend on the state, "
                "and its backward is not linear in the gradient; call it outside of the step"
            )


class _Linear:
    """Which tensors of a backward are linear functions of the gradient that it is given."""

    def __init__(self) -> None:
        self._bound: dict[int, bool] = {}
        self._linear: dict[int, bool] = {}

    def holds(self, node: Node) -> bool:
        """Whether a tensor is one."""
        stack = [node]
        while stack:  # no recursion: a backward of many operations is deep
            current = stack[-1]
            missing = [part for part in current.inputs() if id(part) not in self._linear]
            if missing and id(current) not in self._linear:
                stack += missing
                continue
            parts = list(current.inputs())
            self._bound[id(current)] = current.source == "gradient" or any(
                self._bound[id(part)] for part in parts
            )
            self._linear[id(current)] = self._is_linear(current, parts)
            stack.pop()
        return self._linear[id(node)]

    def _is_linear(self, node: Node, parts: list[Node]) -> bool:
        if node.source == "gradient" or _is_zeros(node):
            return True
        bound = [part for part in parts if self._bound[id(part)]]
        if any(part.dtype != node.dtype for part in bound) or node.kwargs.get("rounding_mode"):
            return False  # it rounds
        name, are_linear = operation(node), [self._linear[id(part)] for part in parts]
        if name in _MULTIPLIES:
            return len(bound) == 1 and self._linear[id(bound[0])]
        if name == "div":
            return bound == parts[:1] and are_linear[0]
        if name == "where":
            return parts[0] not in bound and all(are_linear[1:])
        if name in ("masked_fill", "index_put"):
            value = node.args[2]
            is_linear = self._linear[id(value)] if isinstance(value, Node) else value == 0
            return is_linear and parts[1] not in bound and are_linear[0]
        if name in ("add", "sub"):
            return len(parts) == 2 and all(are_linear)
        return name in _KEEPS_LINEAR and bool(parts) and all(are_linear)


def _is_zeros(node: Node) -> bool:
    name = operation(node)
    return name in FACTORIES and "empty" not in name and filled_with(node, name) == 0


_OF_SUMS = words("neg mul div clone alias select squeeze unsqueeze view _unsafe_view")
"""What may be done with a sum over the rows that is the gradient of a weight."""

_MULTIPLIES = words("mul mm bmm")
_KEEPS_LINEAR = VIEWS | words("neg clone _to_copy sum mean cat stack flip roll repeat detach")


def _is_in(ref: Ref, zero: set[Value]) -> bool:
    return ref.value in zero or _number(ref) == 0.0


def _number(ref: Ref) -> float | None:
    return ref.value.number if ref.value.kind is Kind.CONSTANT else None


def _is_zero(instruction: Instruction, zero: set[Value], others: set[Value]) -> bool:
    """Whether an instruction makes zeros of the values that are zeros.

    Args:
        instruction: of a rule.
        zero: the values that are zeros.
        others: the other values of the rule, which may be infinite now.
    """
    if not others.isdisjoint(instruction.reads()):
        return False
    if isinstance(instruction, Reduce):
        return _is_in(instruction.args[-1], zero) and instruction.op != "rank"
    if isinstance(instruction, Assemble):
        return all(_is_in(piece.source, zero) for piece in instruction.pieces)
    if isinstance(instruction, Product):
        return not instruction.biases and all(term.row in zero for term in instruction.terms)
    assert isinstance(instruction, Pointwise)
    op, args = instruction.op, instruction.args
    are = [_is_in(arg, zero) for arg in args]
    if op in _BOUNDS:
        low, high = map(_number, args[1:])
        return are[0] and low is not None and high is not None and low <= 0 <= high
    if op == "muladd":
        return (are[0] or are[1]) and are[2]
    if op in _DIVIDES:
        return are[0] and not are[1]
    if op == "mul":
        return any(are)
    if op in _OF_ALL:
        return all(are)
    return {"where": all(are[1:]), "replace": are[-1]}.get(op, op in _OF_FIRST and are[0])


_BOUNDS = words("clamp hardtanh")
_DIVIDES = words("div fmod remainder floor_divide")
_OF_ALL = words("add sub maximum minimum hypot")
_OF_FIRST = words(
    "copy neg abs sqrt expm1 log1p tanh erf sin sign floor ceil round trunc relu stop atan asinh "
    "tanh_gradient sigmoid_gradient inside within"
)
"""Operations that make zero of a first operand of zero."""
