"""Numbers of the tensors that a cell holds, on which its program may depend."""

from __future__ import annotations

from torch import Tensor, nn

from cello.foreign.path import Path, find
from cello.foreign.scope import Watch

MOST_HELD = 4096
"""From so many numbers on it costs too much to compare them at each call."""


class Held:
    """Looks up numbers of a cell's own tensors.

    Args:
        cell: the cell.
        watch: is told which numbers a program depends on, so that they are compared at each call.
    """

    def __init__(self, cell: nn.Module, watch: Watch) -> None:
        self._cell, self._watch = cell, watch

    def numbers(self, path: Path) -> Tensor | None:
        """Return a tensor, if it has numbers, few enough to compare, and none that training changes."""
        tensor = find(self._cell, path)
        is_plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
        if not is_plain or tensor.requires_grad or not 0 < tensor.numel() <= MOST_HELD:
            return None
        return tensor

    def depend_on(self, paths: list[Path]) -> None:
        """Note that the program is one for the numbers at these paths."""
        self._watch.values.update(paths)
