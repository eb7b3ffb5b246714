"""Which cells one program serves: those of which the step's code reads the same.

A program is known by what its cell *reaches* within the *scope* of the code that ran when it was traced
(:mod:`cello.foreign`). Tensors are looked up anew at each call, by their paths.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from types import BuiltinFunctionType, CodeType
from typing import Any

from torch import Tensor, nn

from cello.cells import Cell, Equations
from cello.foreign.adapt import Adapted, FunctionCell
from cello.foreign.kinds import HOOKS, computes_weight


def plain_fingerprint(cell: Cell) -> tuple[Hashable, ...] | None:
    """The fingerprint of one of Cello's own cells with plain functions in it, or ``None``.

    It is found without a walk, which for a short scan would take longer than the scan.
    """
    if not isinstance(cell, Equations) or not type(cell).__module__.startswith("cello.cells."):
        return None
    attributes = vars(cell)
    marks: list[Any] = [type(cell)]
    tensors: list[Tensor] = []
    for name in (*cell.weights, *cell.options):
        value = attributes[name]
        if isinstance(value, Tensor):
            if any(value is other for other in tensors):
                return None
            tensors.append(value)
            marks += (value.shape, value.dtype)
        elif value is None or isinstance(value, BuiltinFunctionType):
            marks.append(value)
        else:
            return None
    for hooks in HOOKS:
        if attributes[hooks]:
            return None
    return tuple(marks)


def kind_of(cell: Cell) -> Hashable:
    """What cells with the same code have in common, as far as that can be told at a glance."""
    inner: Any = cell.cell if isinstance(cell, Adapted) else cell
    if isinstance(inner, FunctionCell):
        inner = inner.function
        inner = getattr(inner, "__code__", inner)
        return inner if isinstance(inner, CodeType) else hash(type(inner))
    return hash(type(inner))


def hooks_of(cell: nn.Module) -> Iterator[str]:
    """The modules in a cell that have hooks, which are to see every step."""
    for name, module in cell.named_modules():
        for hooks in HOOKS:
            for hook in getattr(module, hooks).values():
                if not computes_weight(hook):
                    yield name.removeprefix("cell.") or type(module).__name__
