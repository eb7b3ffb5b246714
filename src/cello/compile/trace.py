"""A step of a cell traced with batches of different sizes, for which it must be the same.

What one run of the step does is written down by :mod:`cello.compile.tracer`. Here the runs are compared: a
step that depends on the number of rows, or reads an attribute before it sets it, cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile.assumed import Numbers
from cello.compile.node import Node, Trace, may_count
from cello.compile.reasons import DEPENDS_ON_ROWS, DOES_OTHERWISE, CannotCompile
from cello.compile.tracer import TooLongError, Tracer, hold_calls
from cello.foreign.kinds import HOOKS, computes_weight
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.scope import Scope, Watch, place
from cello.foreign.undo import Undo
from cello.foreign.unread import Passed, line_with


def trace(
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    label: str,
    watch: Watch,
    autocast: torch.dtype | None = None,
    answers: Sequence[bool] = (),
    numbers: Numbers | None = None,
) -> Trace:
    """Trace one step of `cell` with batches of different sizes, for which it must be the same.

    Args:
        cell: the cell; whatever the step changes in it, or elsewhere, is put back.
        x: rows of its input; only shape and dtype count.
        state: a state, likewise.
        label: what messages call the cell.
        watch: is shown what runs.
        autocast: the dtype that torch.autocast casts to now, or ``None`` where it is off.
        answers: what the step is told where it asks for truth values that may be others at each step, as
            far as that is known.
        numbers: numbers that answer instead, if there are any.

    Raises:
        CannotCompile: the step depends on values of tensors or on the number of rows, changes the cell,
            draws on a tensor that the cell does not hold, or on anything else that may be another at the
            next call without Cello's seeing it.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in cell.modules()):
        raise CannotCompile(
            f"{label} is made by torch.jit, or holds a module that is, and what that computes cannot be "
            "read; give the module that it was made from"
        )
    if any("_orig_mod" in vars(module).get("_modules", {}) for module in cell.modules()):
        raise CannotCompile(
            f"{label} is made by torch.compile, or holds a module that is; give the module itself"
        )
    undo = Undo(cell)
    sizes = {s for t in (x, *state) for s in t.shape[1:]}
    sizes |= {s for tensor in undo.reach.tensors for s in tensor.shape}
    primes = (p for p in _PRIMES if all(size % p for size in sizes if size))
    tracer = Tracer(cell, x, state, label, autocast, undo, answers, numbers)
    prime = next(primes)
    try:
        first = tracer.trace(prime, watch, tells_rows=True, most=_LONG)
    except TooLongError:
        two, three = (tracer.trace(rows) for rows in (2, 3))
        if len(two.nodes) != len(three.nodes):
            where = _first_other_line(two, three)
            raise CannotCompile(DOES_OTHERWISE.format(label, where)) from None
        first = tracer.trace(prime, watch, tells_rows=True)
    hold_calls(label, watch)
    tracer = replace(tracer, answers=first.answers, numbers=None)
    by_torch = _set_by_torch(cell)
    sets = {
        path for held, name, path in undo.allowed if (id(held), name) not in by_torch
    } - watch.sets
    watch.sets |= sets
    scope = watch.scope()
    reach = Reach(cell, scope)
    if reach.opaque:  # which the step may not come to
        with Passed(scope.codes) as passed:
            tracer.trace(prime, tells_rows=True)
        watch.unread = passed.unread()
        scope = watch.scope()
        reach = Reach(cell, scope)
    try:
        _hold_reads(label, scope, reach, watch.called_in)
        if undo.allowed:
            _hold_unread(first, tracer)
        second = tracer.trace(next(primes), watch, reach=reach, tells_rows=True)
        _compare(first, second, label)
    except CannotCompile:
        watch.sets -= (
            sets  # the reason may be what is there before the step, and last as long as that
        )
        raise
    if first.counted:
        for few in (*_numbers(reach), *_FEW):
            again = tracer.trace(few, watch, reach=reach)
            _compare_calls(first, again, label)
            if few == _FEW[-1]:
                _compare(first, again, label)
    return replace(second, sets=tuple(sorted(map(Path, watch.sets), key=repr)))


def _set_by_torch(cell: Cell) -> set[tuple[int, str]]:
    """The attributes that torch's own hooks compute, each by the dictionary that holds it and its name."""
    return {
        (id(vars(module)), getattr(hook, "name", ""))
        for module in cell.modules()
        for hooks in HOOKS
        for hook in getattr(module, hooks).values()
        if computes_weight(hook)
    }


class _Unread:
    """What stands in the place of an attribute that a step is not to read before it sets it.

    What reads one is written down: the step may catch the error.
    """

    def _refuse(self, *_: object) -> Any:
        _reads.append(type(self))
        raise CannotCompile("it is read")

    __getattribute__ = __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = _refuse
    __eq__ = __hash__ = __call__ = __float__ = __int__ = __index__ = _refuse


_reads: list[type] = []
"""The reads of what is not to be read, in the trace that is under way; one is at a time."""


def _hold_unread(first: Trace, tracer: Tracer) -> None:
    """Refuse a step that reads an attribute before it sets it: from the second step on it reads another.

    Raises:
        CannotCompile: it does something else where the attribute is not there, or is there already.
    """
    allowed = {(id(content), name): content for content, name, _ in tracer.undo.allowed}
    names = ", ".join(dict.fromkeys(str(name) for _, name in allowed))
    try:
        # An object that cannot be read, and a tensor that nobody knows: a step may ask what it is.
        for make in (_Unread, partial(torch.zeros, 1)):
            for (_, name), content in allowed.items():
                dict.__setitem__(content, name, make())
            _reads.clear()
            again = tracer.trace(first.rows, tells_rows=True)
            _compare_calls(first, again, tracer.label)
            if _reads:
                raise CannotCompile("it is read")
    except CannotCompile:
        raise CannotCompile(
            f"the cell changes its attribute {names} in a step that reads it before; what the next step "
            "needs belongs in the state, and what is made once in __init__"
        ) from None
    finally:
        tracer.undo.restore()


def hold_for(
    traced: Trace,
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    label: str,
    numbers_of_rows: Iterable[int],
) -> None:
    """Check that a step that has asked for the number of rows does the same for some numbers.

    Python lets a number be used in more ways than it can see; so the step is traced on these.

    Args:
        traced: the step.
        cell: the cell.
        x: rows of its input; only shape and dtype count.
        state: a state, likewise.
        label: what messages call the cell.
        numbers_of_rows: those that a call has.

    Raises:
        CannotCompile: the step does something else.
    """
    tracer = Tracer(cell, x, state, label, traced.autocast, Undo(cell), traced.answers)
    for rows in numbers_of_rows:
        _compare_calls(traced, tracer.trace(rows), label)


def _compare_calls(first: Trace, again: Trace, label: str) -> None:
    """Refuse a step that calls something else of torch for another number of rows.

    Operations below these calls are not compared: on the fewest rows torch itself takes other ways.

    Raises:
        CannotCompile: it does.
    """

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(same, a, b))
        if type(a) is int and type(b) is int and a and a % first.rows == 0:
            return a // first.rows * again.rows == b
        try:
            return type(a) is type(b) and bool(a == b or (a != a and b != b))
        except Exception:  # of something that cannot be compared
            return a is b

    if not same(first.calls, again.calls):
        pairs = enumerate(zip(first.calls, again.calls, strict=False))
        place = next((k for k, pair in pairs if not same(*pair)), None)
        where = _first_other_line(first, again) if place is None else first.lines[place]
        raise CannotCompile(DOES_OTHERWISE.format(label, where))


def _first_other_line(first: Trace, again: Trace) -> str:
    """The first line that one of two traces has where the other one has another: in the longer one."""
    pairs = zip(first.lines, again.lines, strict=False)
    place = next((k for k, (one, other) in enumerate(pairs) if one != other), None)
    longer = max(first.lines, again.lines, key=len)
    if place is None:
        place = min(len(first.lines), len(again.lines), len(longer) - 1)
    return longer[place]


def _numbers(reach: Reach) -> list[int]:
    """Return the numbers that a step may compare the number of rows with, and those after them."""
    constants = {c for code in reach.codes for c in code.co_consts if type(c) is int}
    settings = {value for kind, value in pairwise(reach.marks) if kind is int}
    found = {n + more for n in constants | settings for more in (0, 1)}
    return sorted(n for n in found.difference(_FEW) if 0 < n < _MOST)


def _hold_reads(label: str, scope: Scope, reach: Reach, called_in: dict[CodeType, str]) -> None:
    """Refuse a step that may read what cannot be compared with what it will read at another call.

    Raises:
        CannotCompile: the message names it.
    """
    for path, kind in reach.opaque:
        names = reversed(path.split("."))
        found = (line_with(name, scope.codes, scope.unread) for name in names)
        where = next((f" ({place(*one)})" for one in found if one is not None), "")
        raise CannotCompile(
            f"{label} reads {path}, a {kind}{where}, whose content cannot be compared from call to call"
        )
    unknown = scope.codes - reach.codes
    for code in sorted(unknown, key=lambda code: (code.co_filename, code.co_firstlineno)):
        raise CannotCompile(
            f"{label} runs {code.co_name} ({place(code, code.co_firstlineno)}), called in "
            f"{called_in.get(code, '')}, and where it comes from cannot be found, nor what it reads"
        )


def _compare(first: Trace, second: Trace, label: str) -> None:
    """Refuse a step that computes with the number of rows, in the one place where it shows.

    Raises:
        CannotCompile: the traces differ.
    """
    places = [{id(n): k for k, n in enumerate(trace.nodes)} for trace in (first, second)]

    def same(a: Any, b: Any, counts: bool) -> bool:
        if isinstance(a, Node) and isinstance(b, Node):
            return places[0][id(a)] == places[1][id(b)]
        if isinstance(a, tuple | list) and isinstance(b, tuple | list):
            return len(a) == len(b) and all(map(same, a, b, [counts] * len(a)))
        if type(a) is int and type(b) is int and counts and a and a % first.rows == 0:
            return b % second.rows == 0 and a // first.rows == b // second.rows
        return type(a) is type(b) and (a == b or a != a)

    def same_arguments(a: Node, b: Node) -> bool:
        given = [[*node.args, *node.kwargs.values()] for node in (a, b)]
        counts = [may_count(a, value) for value in given[0]]
        return len(given[0]) == len(given[1]) and all(map(same, *given, counts))

    def same_shape(a: Node, b: Node) -> bool:
        return len(a.shape) == len(b.shape) and all(
            n * first.rows == m * second.rows if m and m % first.rows == 0 else m == n
            for m, n in zip(a.shape, b.shape, strict=True)
        )

    pairs = list(zip(first.nodes, second.nodes, strict=False))
    differing = [
        a
        for a, b in pairs
        if (a.op, _kind_of(a.source), a.dtype, a.is_detached)
        != (b.op, _kind_of(b.source), b.dtype, b.is_detached)
        or not same_arguments(a, b)
        or not same_shape(a, b)
    ]
    assumed = [
        [(place[id(one.node)], *one[1:]) for one in trace.assumed]
        for place, trace in zip(places, (first, second), strict=True)
    ]
    if differing or len(first.nodes) != len(second.nodes) or assumed[0] != assumed[1]:
        where = differing[0].line if differing else _first_other_line(first, second)
        is_longer = len(first.nodes) != len(second.nodes)
        raise CannotCompile((DOES_OTHERWISE if is_longer else DEPENDS_ON_ROWS).format(label, where))


def _kind_of(source: str | int | Path | None) -> str | int | None:
    """The source of a node, of which a path may differ: it is looked for in another order."""
    return "path" if isinstance(source, Path) else source


_FEW = (1, 2, 3, 4, 5, 8, 64, 6)
"""Other batch sizes to trace with where a step asks for the number of rows."""

_LONG = 3000
"""A step of so many operations may have some for each row of a batch, of which a trace has many."""

_MOST = 2**31
"""Above all batch sizes."""

_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091)
