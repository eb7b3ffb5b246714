"""The arguments of an operation, bound to those of the function that lowers it: none is left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cello.compile.lower.rows import Refused, Rows
from cello.compile.node import Node


@dataclass(frozen=True)
class Result:
    """What torch's result is like: for functions that have an argument `result`.

    Attributes:
        shape: its shape in the trace.
        dtype: its dtype.
        index: which of the operation's results it is; 0 where there is only one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    index: int


def result_of(node: Node) -> Result:
    """What the result that a node stands for is like."""
    return Result(node.shape, node.dtype, node.index or 0)


Places = Callable[[int], Rows]
"""Gives the numbers from 0 on, as many as it is told."""


def hold_first(result: Result) -> None:
    """Refuse what torch returns besides the first result.

    Raises:
        Refused: it is not the first.
    """
    if result.index:
        raise Refused


def call(
    function: Callable[..., Rows],
    node: Node,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    places: Places,
) -> Rows:
    """Call a function that lowers an operation.

    Args:
        function: it; its positional arguments are those of the operation in their order, and what may be
            given by name is called as torch calls it.
        node: the result of the operation in the trace.
        args: the operation's arguments.
        kwargs: likewise.
        places: what an argument of this name is given.

    Raises:
        Refused: an argument is one that the function does not have, and says more than nothing.
    """
    signature = _signature(function)
    positions = sum(p.kind != p.KEYWORD_ONLY for p in signature.parameters.values())
    given = {name: kwargs[name] for name in kwargs if name in signature.parameters}
    refuse_others(node, args[positions:], {k: v for k, v in kwargs.items() if k not in given})
    if "result" in signature.parameters:
        given["result"] = result_of(node)
    if "places" in signature.parameters:
        given["places"] = places
    try:
        bound = signature.bind(*args[:positions], **given)
    except TypeError as error:  # another form of the operation, with fewer arguments
        raise Refused(
            f"{_USES} with arguments that are not in the instruction set: {error}"
        ) from None
    return function(*bound.args, **bound.kwargs)


def refuse_others(node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that nothing handles, unless they change nothing.

    Args:
        node: the result of the operation.
        args: the last of its positional arguments.
        kwargs: arguments by name.

    Raises:
        Refused: the message names the argument.
    """
    assert node.op is not None
    schema = node.op._schema.arguments
    names = [argument.name for argument in schema[len(node.args) - len(args) :]]
    defaults = {argument.name: argument.default_value for argument in schema}
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        if not _changes_nothing(name, value, defaults.get(name), node):
            what = "a tensor" if isinstance(value, Rows | Node) else value
            raise Refused(f"{_USES} with {name}={what}, which is not in the instruction set")


_USES = "uses {op}{line}"


def _changes_nothing(name: str, value: Any, default: Any, node: Node) -> bool:
    if name in ("device", "pin_memory", "non_blocking", "memory_format"):
        return True  # where the numbers lie, and not what they are
    if name == "dtype":  # that of the result is held to what the loop computes in
        return value is None or value == node.dtype
    if name == "layout":
        return value is None or value == torch.strided
    return bool(value == default)


@cache
def _signature(function: Callable[..., Rows]) -> inspect.Signature:
    return inspect.signature(function)
