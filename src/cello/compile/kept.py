"""What was found for a cell, kept in the cell: all that it read may lead back to the cell."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from torch import Tensor

from cello.cells.contract import Cell
from cello.foreign.kinds import KEPT
from cello.foreign.path import Path, find

if TYPE_CHECKING:
    from cello.foreign.reach import Reach


class Known(NamedTuple):
    """What was found for a cell.

    Attributes:
        settings: for which settings.
        reach: what tells whether it still holds.
        program: the program, or why there is none.
    """

    settings: tuple[Hashable, ...]
    reach: Reach
    program: object


class Kept:
    """What is kept in one cell; a copy of the cell begins with nothing.

    Attributes:
        cell: the cell, as a weak reference.
        latest: what was found last.
        others: the programs of steps that were not as that one has assumed.
        marks: what the cell read when there was no program for it last.
        changes: how many times in a row that was something else.
        stays: how many times in a row it was asked for the same.
    """

    def __init__(self, cell: Cell | None = None) -> None:
        self.cell = None if cell is None else ref(cell)
        self.latest: Known | None = None
        self.others: list[Known] = []
        self.marks: list[Any] = []
        self.changes = self.stays = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


def kept_of(cell: Cell) -> Kept:
    """What is kept in a cell, from now on if nothing was."""
    kept = _own(cell)
    if kept is None:
        kept = vars(cell)[KEPT] = Kept(cell)
    return kept


def _own(cell: Cell) -> Kept | None:
    kept: Kept | None = vars(cell).get(KEPT)
    is_own = kept is not None and kept.cell is not None and kept.cell() is cell
    return kept if is_own else None  # and not that of the cell that this is a copy of


def places_in(cell: Cell) -> Mapping[Path, Tensor]:
    """The tensors of a cell by their paths, as they were when its program was last asked for."""
    kept = _own(cell)
    return {} if kept is None or kept.latest is None else kept.latest.reach.places


def found(cell: Cell, path: Path, held: Mapping[str, Any], places: Mapping[Path, Tensor]) -> Tensor:
    """The tensor of a cell at a path, whose attributes and places are given."""
    tensor = held[path[0]] if len(path) == 1 and path[0] in held else places.get(path)
    return find(cell, path) if tensor is None else tensor
