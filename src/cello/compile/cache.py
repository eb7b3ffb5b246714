"""The programs that were found: each is compiled once, for all cells in which it reads the same."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from cello.cells.contract import Cell
from cello.compile.assumed import Numbers, first_other
from cello.compile.inventory import kind_of, plain_fingerprint
from cello.compile.kept import Known, kept_of
from cello.compile.pairs import as_real
from cello.compile.precision import Precision, for_storage
from cello.compile.program import Program, autocast_dtype, loop_dtype, try_to_compile
from cello.compile.reasons import CannotCompile
from cello.foreign.apart import TRIAL_LOCK
from cello.foreign.hooks import has_global_hooks
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.scope import Scope, Watch

_MAX_PROGRAMS, _MAX_SCOPES, _MAX_OTHERS = 512, 8, 4
_MOST_CHANGES = 8
"""Programs that are made one after the other for a cell whose numbers change."""
_STAYS = 5
"""How often such a cell is asked for in a row with the same numbers before these are compiled in."""
_programs: OrderedDict[Hashable, Program | CannotCompile] = OrderedDict()
_scopes: OrderedDict[Hashable, list[Scope]] = OrderedDict()


def compiled(
    cell: Cell, x: Tensor, state: Sequence[Tensor], precision: Precision | None = None
) -> Program:
    """Return the program of a cell, compiled at the first call for what it reads and for these dtypes.

    Args:
        cell: the cell.
        x: rows of its input, (N, ...).
        state: its state, (B, ...) each.
        precision: the dtypes that an engine computes in; without one half precision is for storage.

    Raises:
        CannotCompile: there is none; the message says why.
    """
    precision = precision or for_storage(loop_dtype(cell, x, state))
    settings = _settings(x, state, precision)
    fingerprint = plain_fingerprint(cell)
    if fingerprint is None:
        if has_global_hooks():
            raise CannotCompile(
                f"hooks are registered for all modules, and are to see every step of {cell.label}"
            )
        known = _known_of(cell, settings, x, tuple(state), precision)
    else:
        key = (fingerprint, settings)
        found = _used(key)
        if found is None:
            with TRIAL_LOCK:
                found = _programs.get(key) or try_to_compile(
                    cell, x, tuple(state), precision, Watch()
                )
                if isinstance(found, Program):
                    found.is_plain = True
                _store(key, found)
        known = found
    if isinstance(known, CannotCompile):
        # A new one each time: an exception keeps the frames that it went through, with their tensors.
        raise CannotCompile(*known.args)
    return known


def _settings(x: Tensor, state: Sequence[Tensor], precision: Precision) -> tuple[Hashable, ...]:
    """What a program depends on beside the cell; first what a plan compares at each call."""
    shapes = tuple([(part.shape[1:], part.dtype) for part in (x, *state)])
    modes = torch.get_default_dtype(), Distribution._validate_args, autocast_dtype(x.device)
    # A step may ask for the device, and do something else on another one.
    return (*modes, torch._C._is_any_autocast_enabled(), shapes, precision, x.device)


def other_program(
    cell: Cell, x: Tensor, state: Sequence[Tensor], program: Program, precision: Precision
) -> Program | None:
    """Return the program of a cell for a step that is not as another program has assumed.

    Args:
        cell: the cell.
        x: the rows of the input at this step.
        state: the state before it.
        program: the other program.
        precision: the dtypes that an engine computes in.

    Returns:
        A program for the same state and output, which assumes what is so at this step; ``None`` if there is
        none.
    """
    numbers = Numbers(cell, as_real(x), list(map(as_real, state)))
    place = first_other(program.trace, numbers)
    if place is None:  # it is as assumed, though not for each row by itself
        return program
    settings = _settings(x, state, precision)
    kept = kept_of(cell)
    current = [one for one in kept.others if one.settings == settings and one.reach.holds()]
    for one in current:
        if isinstance(one.program, Program) and first_other(one.program.trace, numbers) is None:
            return one.program if _holds_for(one.program, cell, x, state) else None
    if place in program.dead_ends:
        return None
    watch = Watch()
    with TRIAL_LOCK:
        made = try_to_compile(cell, x, tuple(state), precision, watch, is_second=False)
    if (
        isinstance(made, CannotCompile)
        or not made.can_stand_for(program)
        or not _holds_for(made, cell, x, state)
    ):
        program.dead_ends.add(place)
        return None
    reach = Reach(cell, watch.scope())
    reach.drop_kept()
    if reach.can_be_kept:
        kept.others = [*current, Known(settings, reach, made)][-_MAX_OTHERS:]
    return made


def _holds_for(program: Program, cell: Cell, x: Tensor, state: Sequence[Tensor]) -> bool:
    """Whether a step is the same for as many rows as there are now."""
    if program.asks_for_rows:
        try:
            program.hold_for(cell, x, state, [len(x)])
        except CannotCompile:
            return False
    return True


def _known_of(
    cell: Cell,
    settings: tuple[Hashable, ...],
    x: Tensor,
    state: tuple[Tensor, ...],
    precision: Precision,
) -> Program | CannotCompile:
    """The program of a cell whose code may read anything, or why there is none."""
    kept = kept_of(cell)
    latest = kept.latest
    if latest is not None and latest.settings == settings and latest.reach.holds():
        return cast("Program | CannotCompile", latest.program)
    kind = kind_of(cell)
    with TRIAL_LOCK:
        scopes = _scopes.setdefault(kind, [])
        for scope in scopes:
            reach = Reach(cell, scope)
            known = _used((kind, scope, tuple(reach.marks), settings))
            if known is not None:
                kept.changes = 0
                break
        else:
            if scopes and (restless := _why_restless(cell, Reach(cell, scopes[0]))):
                kept.latest = None
                return restless
            watch = Watch()
            known = try_to_compile(cell, x, state, precision, watch)
            scope = watch.scope()
            reach = Reach(cell, scope)
            if isinstance(known, Program):
                paths = (*known.trace.sets, *map(Path, sorted(scope.values, key=repr)))
                names = [path.readable for path in paths]
                known.outside = tuple(dict.fromkeys([*reach.outside, *names]))
            _store((kind, scope, tuple(reach.marks), settings), known)
        # The latest scope first; each program is known by the scope of its own trace.
        _scopes[kind] = [scope, *(other for other in scopes if other != scope)][:_MAX_SCOPES]
        _scopes.move_to_end(kind)
        while len(_scopes) > _MAX_PROGRAMS:
            _scopes.popitem(last=False)
    reach.drop_kept()
    kept.latest = Known(settings, reach, known) if reach.can_be_kept else None
    return known


def _why_restless(cell: Cell, reach: Reach) -> CannotCompile | None:
    """Why there is to be no program, if a cell reads other numbers at each call; else ``None``.

    To compile takes longer than a call. What stays for a few calls, in each of which engines may ask more
    than once, is compiled.
    """
    kept, marks = kept_of(cell), reach.marks
    before, kept.marks = kept.marks, marks
    if marks != before:
        kept.changes, kept.stays = kept.changes + 1, 0
    elif kept.stays >= _STAYS:
        kept.changes = 0
    kept.stays += 1
    if kept.changes <= _MOST_CHANGES:
        return None
    changed = next((b for a, b in zip(before, marks, strict=False) if a != b), None)
    names = [
        Path((*path, name)).readable
        for content, path in reach.dicts
        for name, value in content.items()
        if type(value) in (float, complex, int) and changed in (value, repr(value))
    ]
    what = f" ({names[0]}, now {changed})" if names else ""
    reason = CannotCompile(
        f"{cell.label} reads a number that was another one in each of the last {_MOST_CHANGES} calls"
        f"{what}, and a number is compiled in; hold it as a tensor (register_buffer), whose numbers may "
        "change"
    )
    if (kept.changes, kept.stays) == (_MOST_CHANGES + 1, 1):
        warnings.warn(
            f"{reason}; until then, and until it stays, the cell runs in a Python loop",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def watched(cell: Cell, program: Program) -> Callable[[], bool] | None:
    """Return what says whether a cell still has the program that was found for it last.

    Args:
        cell: the cell.
        program: what :func:`compiled` has just returned for it.

    Returns:
        A function for an input and a state of the same shapes and dtypes without autocast, which takes
        less time than :func:`compiled`; or ``None`` if that cannot be told without a walk.
    """
    kept = kept_of(cell)
    known = kept.latest
    if known is None or known.program is not program:
        return None
    (default, validates, *_), reach, _ = known

    def is_current() -> bool:
        # The latest entry itself, because the tensors of the cell are looked up in it.
        return (
            kept.latest is known
            and not has_global_hooks()
            and torch.get_default_dtype() is default
            and Distribution._validate_args is validates
            and not torch._C._is_any_autocast_enabled()
            and reach.holds()
        )

    return is_current


def _used(key: Hashable) -> Program | CannotCompile | None:
    """What is stored for a key. Those go first that have not been used for the longest time."""
    found = _programs.get(key)
    if found is not None:
        with suppress(KeyError):  # another thread has stored something else instead
            _programs.move_to_end(key)
    return found


def _store(key: Hashable, known: Program | CannotCompile) -> None:
    _programs[key] = known
    while len(_programs) > _MAX_PROGRAMS:
        _programs.popitem(last=False)
