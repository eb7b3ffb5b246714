"""Integers and truth values of a step, which the loop computes as floating-point numbers.

That is exact as long as they stay within what the dtype counts to: 2^24 in float32, 2^53 in float64. They
come from comparisons, constants and weights, so that a bound of each can be found; where it cannot, or
where torch would wrap around, the step is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from cello.compile.constant import CONSTANT
from cello.compile.node import FACTORIES, VIEWS, Node, by_name, operation
from cello.compile.reasons import CannotCompile
from cello.foreign.path import Path
from cello.foreign.scope import words

Span = tuple[float, float]
"""The least and the greatest that an integer may be."""

MOST_IN_STATE = 1 << 22
"""What the integers of a state may reach: float32 counts to four times as many."""

CHOOSES = VIEWS | words(
    "clone lift_fresh detach cat stack flip roll repeat copy constant_pad_nd slice_scatter "
    "select_scatter diagonal_scatter where masked_fill index_put maximum minimum amax amin max min clamp "
    "clamp_min clamp_max floor ceil trunc fmax fmin index index_select gather scatter sort topk kthvalue "
    "median nanmedian cummax cummin"
)
"""Operations whose results are numbers that their operands hold."""

PRODUCTS = words("index index_select")
"""Those of them that the loop does as a product with a matrix of zeros and ones."""

COMPARES = words("lt le gt ge eq ne")

DECIDES = words(
    "logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not any all "
    "isnan isinf isfinite isposinf isneginf isreal add mul"
)
"""Operations that make truth values of truth values, or of anything."""


def is_whole(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype are integers or truth values."""
    return not dtype.is_floating_point and not dtype.is_complex


def is_integer(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype are integers."""
    return is_whole(dtype) and dtype != torch.bool


ORDERED = words("max min sort topk kthvalue median nanmedian cummax cummin")
"""Operations that say of each result where along an axis it comes from."""


def is_place(node: Node) -> bool:
    """Whether a node holds places along an axis."""
    name = operation(node)
    return name in ("argmax", "argmin") or (name in ORDERED and node.index == 1)


def are_distinct(node: Node, dim: int) -> bool:
    """Whether a node holds places of which none is there twice along an axis, as an order does."""
    while node.op is not None and operation(node) in ("slice", "flip", "clone", "detach"):
        node = node.args[0]
    is_order = operation(node) in ("sort", "topk") and node.index == 1
    rank = max(len(node.shape), 1)
    return is_order and by_name(node)["dim"] % rank == dim % rank


def kept_by(dtype: torch.dtype) -> Span:
    """The integers that a dtype holds, up to the first one that it does not."""
    if dtype == torch.bool:
        return 0, 1
    if dtype.is_floating_point:
        most = 2 / torch.finfo(dtype).eps
        return -most, most
    info = torch.iinfo(dtype)
    return info.min, info.max


class Integers:
    """The bounds of a step's integers.

    Args:
        label: what messages call the cell.
        dtype: what the loop computes in.
        looked_up: gives the numbers of a tensor of the cell, if they are to count and are known; without it
            only its dtype counts.
    """

    def __init__(
        self,
        label: str,
        dtype: torch.dtype,
        looked_up: Callable[[Path], Tensor | None] | None = None,
    ) -> None:
        self._label = label
        self._dtype = dtype
        self._looked_up = looked_up
        self._limit = 2.0**53 if dtype == torch.float64 else 2.0**24
        self._spans: dict[int, Span] = {}

    def check(self, node: Node, name: str) -> None:
        """Check that the loop computes an operation as torch does.

        Args:
            node: its result.
            name: what torch calls it.

        Raises:
            CannotCompile: the loop would give other numbers.
        """
        if name in COMPARES and all(map(self._counts, operands_of(node))):
            spans = map(self.span, operands_of(node))
            if not any(map(self._is_exact, spans)):  # beside an exact one the other may be rounded
                raise self._refusal(node, name)
        if node.dtype == torch.bool:
            self._check_truth(node, name)
        elif is_whole(node.dtype):
            self._spans[id(node)] = self._made(node, name)

    def holds(self, node: Node, name: str) -> bool:
        """Whether numbers that torch computes in a narrower dtype are integers, which are exact there.

        Such are truth values as numbers in the default dtype: ``1 - mask.float()``.
        """
        with suppress(CannotCompile):
            self._spans[id(node)] = self._made(node, name)
            return True
        return False

    def check_result(self, node: Node) -> None:
        """Hold an integer that the cell returns to what the loop counts to.

        Raises:
            CannotCompile: it may be larger.
        """
        if is_whole(node.dtype) and not self._is_exact(self.span(node)):
            raise CannotCompile(
                f"{self._label} returns integers of {node.dtype}{node.line} that may be larger than "
                f"{self._limit:.0f}, which is how far {self._dtype} counts"
            )

    def _check_truth(self, node: Node, name: str) -> None:
        if name in CHOOSES | FACTORIES and name != "copy":
            operands = [filled_with(node, name)] if name in FACTORIES else list(operands_of(node))
            is_known = all(self._counts(o) and self.span(o)[0] >= 0 for o in operands)
            is_known = is_known and all(self.span(o)[1] <= 1 for o in operands)
        else:
            is_known = name in COMPARES | DECIDES | {"_to_copy", "copy"}
            is_known = is_known and node.kwargs.get("alpha", 1) == 1
        if not is_known:
            raise self._refusal(node, name)

    def _made(self, node: Node, name: str) -> Span:
        if is_place(node):
            return 0, self._size_along(node) - 1
        if name == "arange":
            given = by_name(node)
            ends = given.get("start", 0), given["end"]
            return self._within(node, name, (min(ends), max(ends)))
        operands = [filled_with(node, name)] if name in FACTORIES else list(operands_of(node))
        if name == "_to_copy" and not all(map(self._counts, operands)):
            raise CannotCompile(
                f"{self._label} converts to {node.dtype}{node.line}; only floating-point numbers and "
                "comparisons are computed in the loop"
            )
        if not all(map(self._counts, operands)):
            raise self._refusal(node, name)
        spans = [self.span(operand) for operand in operands]
        if node.op is CONSTANT:
            spans = [(int(number), int(number)) for number in node.args[0]]
        if not spans:
            raise self._refusal(node, name)
        if node.op is CONSTANT or name in CHOOSES | FACTORIES | {"_to_copy"}:
            span = min(low for low, _ in spans), max(high for _, high in spans)
            if name.startswith("clamp"):
                span = self._clamped(node, name, spans[0], span)
            if name in PRODUCTS and max(-span[0], span[1]) > 256:  # beyond, bfloat16 rounds
                raise self._refusal(node, name)
            return self._within(node, name, span)
        if not all(map(self._is_exact, spans)):
            raise self._refusal(node, name)
        span = self._within(node, name, self._computed(node, name, spans))
        if not self._is_exact(span):
            raise self._refusal(node, name)
        return span

    def _computed(self, node: Node, name: str, spans: list[Span]) -> Span:
        (low, high), *rest = spans
        if name in ("add", "sub", "rsub"):
            first, second = (low, high), rest[0]
            alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
            if name == "rsub":
                first, second = second, first
            if alpha != int(alpha):
                raise self._refusal(node, name)
            sign = alpha if name == "add" else -alpha
            ends = [sign * end for end in second]
            return first[0] + min(ends), first[1] + max(ends)
        if name == "mul":
            ends = [a * b for a in (low, high) for b in rest[0]]
            return min(ends), max(ends)
        if name == "neg":
            return -high, -low
        if name == "abs":
            return 0, max(abs(low), abs(high))
        is_by_number = name == "remainder" and isinstance(node.args[0], Node)
        if is_by_number and rest and rest[0][0] == rest[0][1] >= 1:
            return 0, rest[0][0] - 1
        is_floored = name == "floor_divide" or node.kwargs.get("rounding_mode") == "floor"
        if is_floored and rest and rest[0][0] == rest[0][1] >= 1:
            return low // rest[0][0], high // rest[0][0]
        if name in ("sign", "sgn"):
            return -1, 1
        if name == "relu":
            return max(low, 0), max(high, 0)
        if name in ("sum", "cumsum"):
            source = next(node.inputs())
            count = prod(source.shape) // max(1, prod(node.shape))
            if name == "cumsum":
                count = source.shape[node.args[1]] if source.shape else 1
            return min(low, low * count), max(high, high * count)
        if name == "pow" and type(node.args[1]) is int and node.args[1] >= 0:
            most = max(abs(low), abs(high), 1) ** node.args[1]
            return min(low, 0) and -most, most
        if name == "bitwise_not":
            ones = sum(kept_by(node.dtype))  # -1, or the largest of those without a sign
            return ones - high, ones - low
        is_binary = all(a >= 0 and b <= 1 for a, b in spans)
        if name in ("bitwise_and", "bitwise_or", "bitwise_xor") and is_binary:
            return 0, 1
        raise self._refusal(node, name)

    def _clamped(self, node: Node, name: str, span: Span, widest: Span) -> Span:
        """The bounds of an integer that is kept within two numbers, one of which may be missing."""
        bounds = node.args[1:3]
        if any(isinstance(bound, Node) for bound in bounds):
            return widest
        low, high = (None, *bounds) if name == "clamp_max" else (*bounds, None, None)[:2]
        least, most = -inf if low is None else low, inf if high is None else high
        first, last = (min(max(end, least), most) for end in span)
        return first, last

    def _size_along(self, node: Node) -> int:
        """How many numbers an operation along an axis, or along all of them, looks at."""
        shape, dim = next(node.inputs()).shape, by_name(node)["dim"]
        return prod(shape) if dim is None else shape[dim] if shape else 1

    def _within(self, node: Node, name: str, span: Span) -> Span:
        low, high = kept_by(node.dtype)
        if span[0] < low or span[1] > high:
            raise CannotCompile(
                f"{self._label} computes {str(node.dtype).removeprefix('torch.')} in {name}{node.line}, "
                "which may not hold the result, so that torch wraps around; the loop does not"
            )
        return span

    def _is_exact(self, span: Span) -> bool:
        return -self._limit <= span[0] and span[1] <= self._limit

    def span(self, operand: Any) -> Span:
        """The bounds of an operand; of what torch computes once per call those of its dtype, if need be."""
        if not isinstance(operand, Node):
            return operand, operand
        if id(operand) not in self._spans:
            span = kept_by(operand.dtype)
            if type(operand.source) is int and operand.dtype != torch.bool:  # a part of the state
                span = max(span[0], -MOST_IN_STATE), min(span[1], MOST_IN_STATE)
            if isinstance(operand.source, Path) and is_integer(operand.dtype):
                span = self._held(operand.source) or span
            if operand.op is not None and is_integer(operand.dtype):
                with suppress(CannotCompile):
                    span = self._made(operand, operation(operand))
            self._spans[id(operand)] = span
        return self._spans[id(operand)]

    def _held(self, path: Path) -> Span | None:
        """The least and the greatest number of a tensor of the cell, if they are to count."""
        numbers = None if self._looked_up is None else self._looked_up(path)
        if numbers is None:
            return None
        least, greatest = numbers.aminmax()
        return int(least), int(greatest)

    def with_numbers(self, looked_up: Callable[[Path], Tensor | None]) -> Integers:
        """Bounds for which the numbers count that the cell holds."""
        return Integers(self._label, self._dtype, looked_up)

    def _counts(self, operand: Any) -> bool:
        """Whether an operand is known to be an integer, or a tensor of such."""
        if not isinstance(operand, Node):
            return isinstance(operand, bool | int | float) and operand == operand // 1
        if is_whole(operand.dtype) or id(operand) in self._spans:
            return True
        if operand.op is None:
            return False
        name = operation(operand)
        return name in FACTORIES and self.holds(operand, name)

    def _refusal(self, node: Node, name: str) -> CannotCompile:
        if any(name.endswith("_ex") for name in (name, *map(operation, node.inputs()))):
            return CannotCompile(
                f"{self._label} asks whether an equation has a solution{node.line}, which the loop does "
                "not compute; torch.distributions ask so, but not with validate_args=False"
            )
        return CannotCompile(
            f"{self._label} computes {str(node.dtype).removeprefix('torch.')} in {name}{node.line}; in the "
            f"loop integers are numbers of {self._dtype}, which serves sums, differences, products and "
            "remainders that are sure to stay small: write .to(x.dtype) before anything else"
        )


def operands_of(node: Node) -> Iterator[Any]:
    """The tensors that an operation computes with, and the numbers beside them."""
    name = operation(node)
    if name in ("where", "masked_fill", "index_put"):
        chosen = {"where": node.args[1:], "masked_fill": (node.args[0], node.args[2])}
        yield from chosen.get(name, (node.args[0], node.args[2]))
        return
    if name == "constant_pad_nd":
        yield node.args[0]
        yield node.args[2] if len(node.args) > 2 else 0
        return
    if name == "copy":
        yield node.args[1]
        return
    if name in PRODUCTS or name == "gather":
        yield node.args[0]
        return
    if name == "scatter":
        yield node.args[0]
        yield node.args[3]
        return
    yield from node.inputs()
    if node.op is not None:
        for argument, value in zip(node.op._schema.arguments, node.args, strict=False):
            # torch hands on a number in the place of a tensor, too.
            kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
            is_number = isinstance(value, bool | int | float | complex)
            if kind in ("number", "Tensor") and is_number and argument.name != "alpha":
                yield value


def filled_with(node: Node, name: str) -> Any:
    """The number, or the tensor of one, that a constant is full of."""
    if name in ("full", "full_like", "fill"):
        return node.args[1]
    if name == "new_full":
        return node.args[2]
    if name == "scalar_tensor":
        return node.args[0]
    return 1 if "ones" in name else 0
