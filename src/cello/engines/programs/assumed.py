"""What the programs of a call assume of its numbers: whether it can be checked, and was so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile import CannotCompile, Program
from cello.engines.contract import Direction, Scan
from cello.engines.programs.scan import OneWay, are_readable, have_memory


class NotAsAssumedError(Exception):
    """A step would have gone another way than the one that its program has assumed."""


def hold_assumed(scan: Scan, direction: Direction, program: Program) -> None:
    """Hold what a step assumes to where the numbers can be looked at.

    Raises:
        CannotCompile: they cannot.
    """
    if not program.assumed:
        return
    given = (scan.sequence.data, *(direction.state or ()))
    if not are_readable(given) or not have_memory(direction.cell.parameters()):
        draws = program.trace.is_random
        does = "draws random numbers, whose parameters are checked" if draws else "asks in Python"
        raise CannotCompile(
            f"{program.label} {does} for what depends on the values of tensors, which a graph cannot "
            f"check: {'; '.join(program.assumed)}"
        )


def first_unlike_assumed(scan: Scan, way: OneWay, results: list[Tensor]) -> int | None:
    """Take the check of what is assumed off the results; return the first step that is not so."""
    check = results.pop().detach()
    if not check.any():
        return None
    if way.descending:
        check = scan.sequence.reverse_rows(check)
    row = int(check.flatten().nonzero()[0])
    ends = torch.as_tensor(scan.sequence.layout.sizes).cumsum(0)
    return int(torch.searchsorted(ends, row, right=True))


def mends_left(program: Program, first: int, steps: int, mends: int | None) -> int:
    """Return how many more steps may be run by other programs, after one that is not as assumed.

    Args:
        program: what has assumed it.
        first: this step.
        steps: how many steps the call has.
        mends: how many steps may be run so now; ``None`` for a call in which none was yet.

    Raises:
        NotAsAssumedError: there are more, or one after the other.
    """
    is_next = mends is not None and first == 0
    if mends is None:
        mends = max(1, min(_MOST_MENDS, steps // 8))
    # What is run anew has other random numbers; what sets attributes sets them at each step.
    if is_next or not mends or program.trace.is_random or program.sets_attributes:
        raise not_as_assumed(program)
    return mends - 1


def not_as_assumed(program: Program) -> NotAsAssumedError:
    """Return what to say of a call whose numbers are otherwise."""
    return NotAsAssumedError(
        f"{program.label} asks in Python for what depends on the values of tensors, and in this call it "
        f"was not as assumed: {'; '.join(program.assumed)}"
    )


@contextmanager
def declined_if(assumed: list[str]) -> Iterator[None]:
    """Take an error for a sign that something assumed does not hold, if anything is assumed.

    Raises:
        NotAsAssumedError: there was an error.
    """
    try:
        yield
    except Exception as error:
        if not assumed:
            raise
        raise NotAsAssumedError(f"{error}; assumed was: {'; '.join(assumed)}") from error


class Waits:
    """How many calls of a cell go by until its program is tried again, where that was in vain.

    After two such calls in succession there are two, and then ever more. A checkpoint, which runs a call
    again, is to do the same in it as before; so where tensors are saved by hooks, nothing is remembered.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Cell, tuple[int, int]] = WeakKeyDictionary()

    def is_over(self, cell: Cell) -> bool:
        """Whether the program of a cell is to be tried in this call."""
        failures, left = self._known.get(cell, (0, 0))
        if not left or _may_run_again():
            return True
        self._known[cell] = failures, left - 1
        return False

    def note(self, cell: Cell, *, held: bool) -> None:
        """Remember whether what a program assumes did hold in a call."""
        if held:
            self._known.pop(cell, None)
        elif not _may_run_again():
            failures = self._known.get(cell, (0, 0))[0] + 1
            self._known[cell] = failures, min(2**failures, 1024) - 2


def _may_run_again() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


_MOST_MENDS = 4
"""So many steps of a call may be run by other programs since they are not as assumed."""
