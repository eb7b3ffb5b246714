"""What a step asks of all rows in Python, such as ``if h.isnan().any():``, and what is assumed.

A program holds one run of a step, so it goes one way where the step has two. Which one depends on the
numbers of a whole batch. So an answer is assumed that follows from what each row tells by itself: that
there is no NaN if no row has one, or that something is positive if each row has something that is. The loop
computes beside the rest, for each row, whether it is so. An engine looks at that when the loop is done, and
runs the steps in which it was not so by another program, for other answers, or all steps in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile.node import VIEWS, Assumption, Node, Trace, hold_the_same, operation
from cello.compile.replay import Replay
from cello.foreign.generators import Generators
from cello.foreign.scope import words

aten = torch.ops.aten

Write = Callable[..., Node]
"""Writes an operation on nodes, as a node."""


class Numbers(NamedTuple):
    """What a step is given: the cell with its weights, rows of its input, and a state of as many rows."""

    cell: Cell
    x: Tensor
    state: Sequence[Tensor]


def usual_answer(node: Node) -> bool | None:
    """The answer to ``bool(node)`` that says the same of every number; ``None`` if neither does."""
    name = operation(node)
    if name in _QUANTIFIERS:
        return _QUANTIFIERS[name]
    if name in _SAME:
        return usual_answer(node.args[0])
    if name in _NOT and node.dtype == torch.bool:
        answer = usual_answer(node.args[0])
        return None if answer is None else not answer
    if _is_junction(node):
        value = _JUNCTIONS[name]
        return value if all(usual_answer(part) is value for part in node.args) else None
    if _is_about_nan(node):
        return name == "eq"
    return _COMPARED.get((_end(node), name))


def assumptions(node: Node, answer: bool, write: Write) -> list[Assumption] | None:
    """What is enough for ``bool(node)`` to have an answer; ``None`` if no row can tell by itself.

    Args:
        node: a truth value that has a usual answer.
        answer: that one, or the other one.
        write: writes operations that the step has not computed.
    """
    name = operation(node)
    if name in _QUANTIFIERS:
        return _of_all(node.args[0], _QUANTIFIERS[name], answer, write)
    if name in _NOT:
        return assumptions(node.args[0], not answer, write)
    if name in _SAME:
        is_one = prod(node.args[0].shape) == 1 or answer is usual_answer(node)
        return assumptions(node.args[0], answer, write) if is_one else None
    if name in _JUNCTIONS:
        if answer is not _JUNCTIONS[name]:
            return None
        parts = [assumptions(part, answer, write) for part in node.args]
        return [one for part in parts for one in part or ()]
    if _is_about_nan(node):
        return _without_nan(node.args[0], write) if answer is usual_answer(node) else None
    end, other = node.args
    kind, usual = _ENDS[operation(end)], _COMPARED[_end(node), name]
    numbers = _numbers_of(end)
    if kind == "count":
        return _of_all(numbers, False, answer is not usual, write)
    assert node.op is not None
    found = _of_all(write(node.op, numbers, other), usual, answer, write)
    if answer and not usual:  # which a NaN elsewhere would undo
        found.append(Assumption(write(aten.ne.Tensor, numbers, numbers), False, True))
    return found


def told_of(node: Node) -> str:
    """What a truth value with a usual answer says, in words."""
    name = operation(node)
    if name in _QUANTIFIERS:
        return f"{name.removeprefix('_is_').removesuffix('_true')}()"
    if name in _SAME:
        return told_of(node.args[0])
    if name in _NOT:
        return f"not {told_of(node.args[0])}"
    if name in _JUNCTIONS:
        return f" {'and' if _JUNCTIONS[name] else 'or'} ".join(map(told_of, node.args))
    if _is_about_nan(node):
        return f"{operation(node.args[0])}() is {'' if name == 'eq' else 'not '}a number"
    end, other = node.args
    number = "a tensor" if isinstance(other, Node) else f"{other:g}"
    return f"{operation(end)}() {_SYMBOLS[name]} {number}"


def first_other(trace: Trace, numbers: Numbers) -> int | None:
    """The first question to which a step would get another answer than in a trace, for some numbers."""
    with apart(numbers.x.device):
        replay = replay_for(trace.rows, trace.x, trace.state, numbers)
        for place, question in enumerate(trace.questions):
            if bool(replay(question.node)) is not question.answer:
                return place
    return None


def next_state(trace: Trace, numbers: Numbers) -> list[Tensor]:
    """The state after a step that goes the way of a trace."""
    with apart(numbers.x.device):
        replay = replay_for(trace.rows, trace.x, trace.state, numbers)
        return [replay(node) for node in trace.new_state]


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Compute what is no part of a call: without gradients, and with random numbers that are put back."""
    with torch.no_grad(), Generators(device):
        yield


def replay_for(rows: int, x: Node, state: Sequence[Node], numbers: Numbers) -> Replay:
    """Computes nodes of a step for some numbers.

    Args:
        rows: the number of rows of the traced batch.
        x: its input.
        state: its state.
        numbers: the numbers.
    """
    replay = Replay(rows, numbers.cell, len(numbers.x), numbers.x.device)
    for node, tensor in zip((x, *state), (numbers.x, *numbers.state), strict=True):
        replay.give(node, tensor)
    return replay


def _of_all(node: Node, usual: bool, answer: bool, write: Write) -> list[Assumption]:
    """What is enough for ``any()``, if usually false, or ``all()``, if usually true, of some numbers."""
    if answer is usual:
        return _everywhere(node, usual, write)
    return [Assumption(_truths(node, write), answer, False)]


def _everywhere(node: Node, value: bool, write: Write) -> list[Assumption]:
    """What is enough for all of some numbers to be true, or false."""
    name = operation(node)
    is_bool = node.dtype == torch.bool
    if name in _SAME and node.args[0].dtype == torch.bool:
        return _everywhere(node.args[0], value, write)
    if name in _NOT and is_bool:
        return _everywhere(node.args[0], not value, write)
    if _QUANTIFIERS.get(name) is value:  # along some axes
        return _everywhere(node.args[0], value, write)
    if _is_junction(node) and _JUNCTIONS[name] is value:
        parts = [_everywhere(part, value, write) for part in node.args]
        return [one for part in parts for one in part]
    return [Assumption(_truths(node, write), value, True)]


def _truths(node: Node, write: Write) -> Node:
    """Whether numbers are other than zero."""
    return node if node.dtype == torch.bool else write(aten.ne.Scalar, node, 0)


def _is_junction(node: Node) -> bool:
    """Whether a node joins two tensors of truth values."""
    are_nodes = all(isinstance(part, Node) for part in node.args)
    return operation(node) in _JUNCTIONS and node.dtype == torch.bool and are_nodes


def _is_about_nan(node: Node) -> bool:
    """Whether a node asks if one number of all, such as their sum, is NaN: if it is equal to itself."""
    name = operation(node)
    if name not in ("isnan", "eq", "ne") or len(node.args) != 1 + (name != "isnan"):
        return False
    one, other = node.args[0], node.args[-1]
    if not isinstance(one, Node) or not isinstance(other, Node) or one.shape or one.kwargs:
        return False
    is_total = operation(one) in _TOTALS and len(one.args) == 1 and one.index is None
    return is_total and one.dtype in _LARGEST_TO_ADD and hold_the_same(one, other)


def _without_nan(total: Node, write: Write) -> list[Assumption]:
    """What is enough for the sum of numbers, or their mean or an extremum, to be a number."""
    (numbers,) = total.args
    if operation(total) in _ENDS and operation(total) != "sum":
        return [Assumption(write(aten.ne.Tensor, numbers, numbers), False, True)]
    largest = _LARGEST_TO_ADD[numbers.dtype]
    return [
        Assumption(write(aten.lt.Scalar, write(aten.abs.default, numbers), largest), True, True)
    ]


def _end(comparison: Node) -> str:
    """What is compared with a number: the largest or smallest of all numbers, or how many are true."""
    if len(comparison.args) != 2:
        return ""
    end, other = comparison.args
    if not isinstance(end, Node):
        return ""
    # A tensor of one number and one of many are compared in another dtype than two of one number.
    if isinstance(other, Node) and (other.shape or other.dtype != end.dtype):
        return ""
    kind = _ENDS.get(operation(end), "")
    is_of_all = not end.shape and end.index is None
    if kind == "count" and (other != 0 or end.args[0].dtype != torch.bool or end.kwargs):
        return ""
    return kind if is_of_all else ""


def _numbers_of(end: Node) -> Node:
    """The numbers of which it is the largest, the smallest or the sum, be it by several operations."""
    kind = _ENDS[operation(end)]
    node: Node = end.args[0]
    while kind != "count" and _ENDS.get(operation(node)) == kind and node.index is None:
        node = node.args[0]
    return node


_QUANTIFIERS = {"any": False, "_is_any_true": False, "all": True, "_is_all_true": True}
"""For operations on truth values: which answer says the same of all of them."""

_JUNCTIONS = {"logical_and": True, "bitwise_and": True, "logical_or": False, "bitwise_or": False}
"""For operations on two truth values: which result says the same of both."""

_NOT = words("logical_not bitwise_not")

_SAME = VIEWS | words("clone detach _to_copy")

_ENDS = {"max": "most", "amax": "most", "min": "least", "amin": "least", "sum": "count"}

_TOTALS = words("sum mean max min amax amin")

_LARGEST_TO_ADD = {torch.float32: 2.0**96, torch.float64: 2.0**960}
"""Of numbers below, no sum of 2^31 is infinite, in whatever order they are added."""

_SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}

_COMPARED = {
    ("most", "gt"): False,
    ("most", "ge"): False,
    ("most", "lt"): True,
    ("most", "le"): True,
    ("least", "gt"): True,
    ("least", "ge"): True,
    ("least", "lt"): False,
    ("least", "le"): False,
    ("count", "gt"): False,
    ("count", "ne"): False,
    ("count", "eq"): True,
}
"""For comparisons of such a number of all: which answer says the same of every number."""
