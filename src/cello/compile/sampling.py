"""Samples whose distribution depends on the state, made of random numbers that do not.

These can be drawn for all steps at once, ahead of the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from cello.compile.node import Node, Op

aten = torch.ops.aten

Write = Callable[..., Node]
"""Writes an operation on nodes, as a node."""

Draw = Callable[[Op, Node], Node]
"""Draws a random number by an operation for each number of a node."""

Sample = tuple[Node, list[Node]]
"""A sample; truth values that all hold where torch does not refuse the parameters of the distribution."""


def sampled(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, write: Write
) -> Sample | None:
    """Return a sample as torch's operation draws it; ``None`` if there is no rule for it.

    Args:
        name: the operation.
        args: its arguments; tensors are nodes.
        kwargs: likewise.
        rows: the number of rows of the traced batch.
        write: writes operations.
    """
    if name not in _RULES or kwargs.get("generator") is not None:
        return None
    tensors = [value for value in args if isinstance(value, Node)]
    if any(t.dtype not in _FINE or math.prod(t.shape) % rows for t in tensors):
        return None

    def draw(op: Op, like: Node) -> Node:
        if len(like.shape) == 2 and like.shape[0] == rows:
            return write(op, like)
        # Random numbers are drawn row by row.
        flat = write(aten.view.default, like, [rows, math.prod(like.shape) // rows])
        return write(aten.view.default, write(op, flat), list(like.shape))

    return _RULES[name](args, write, draw)


def _bernoulli(args: tuple[Any, ...], write: Write, draw: Draw) -> Sample | None:
    like, p = args[0], args[-1]
    truths = []
    if not isinstance(p, Node):
        is_one = write(aten.lt.Scalar, draw(aten.rand_like.default, like), p)
    elif like.shape == p.shape:
        is_one = write(aten.lt.Tensor, draw(aten.rand_like.default, p), p)
        truths = [write(aten.ge.Scalar, p, 0), write(aten.le.Scalar, p, 1)]
    else:
        return None
    found = write(aten._to_copy.default, is_one, dtype=like.dtype)
    if isinstance(p, Node):  # autograd gives it zeros; its sign is 1 where the result can be
        found = write(aten.mul.Tensor, found, write(aten.sign.default, p))
    return found, truths


def _multinomial(args: tuple[Any, ...], write: Write, draw: Draw) -> Sample | None:
    """The first ones that ring of several exponential clocks, of rates p."""
    p, count, replacement = (*args, False)[:3]
    if count != 1 and (replacement or count > p.shape[-1]):
        return None
    uniform = draw(aten.rand_like.default, p)
    clocks = write(aten.neg.default, write(aten.log.default, uniform))
    rates = write(aten.div.Tensor, p, clocks)
    # Without replacement torch refuses a row with fewer numbers above zero.
    enough = write(aten.sum.dim_IntList, write(aten.gt.Scalar, p, 0), [-1])
    truths = [
        write(aten.ge.Scalar, p, 0),
        write(aten.lt.Scalar, p, math.inf),
        write(aten.ge.Scalar, enough, count),
    ]
    if count == 1:
        return write(aten.argmax.default, rates, -1, True), truths
    return write(aten.topk.default, rates, count, index=1), truths


def _normal(args: tuple[Any, ...], write: Write, draw: Draw) -> Sample | None:
    mean, deviation = (*args, 1.0)[:2]
    nodes = [value for value in (mean, deviation) if isinstance(value, Node)]
    if len({node.shape for node in nodes}) != 1:
        return None
    noise = draw(aten.randn_like.default, nodes[0])
    truths = []
    if isinstance(deviation, Node):
        truths = [write(aten.ge.Scalar, deviation, 0)]
        noise = write(aten.mul.Tensor, noise, deviation)
    else:
        noise = write(aten.mul.Scalar, noise, deviation)
    add = aten.add.Tensor if isinstance(mean, Node) else aten.add.Scalar
    return write(aten.detach.default, write(add, noise, mean)), truths


_FINE = torch.float32, torch.float64
"""In narrower dtypes random numbers are too coarse to be compared with probabilities."""

_RULES: dict[str, Callable[[tuple[Any, ...], Write, Draw], Sample | None]] = {
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "normal": _normal,
}
