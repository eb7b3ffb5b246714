"""Numbers of the tensors that a cell holds, on which its program may depend."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from cello.compile.node import Node, all_inputs, depends_on_rows, is_random
from cello.compile.replay import Replay
from cello.foreign.path import Path, find, has_numbers
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
        is_plain = is_plain and has_numbers(tensor)
        if not is_plain or tensor.requires_grad or not 0 < tensor.numel() <= MOST_HELD:
            return None
        return tensor

    def values(self, node: Node, rows: int) -> Tensor | None:
        """Return the numbers of a tensor of the step that are the same at every step, if they are known.

        The program then depends on the numbers of the cell that they are made of.

        Args:
            node: the tensor.
            rows: the number of rows of the traced batch.
        """
        parts = list(all_inputs(node))
        is_static = not depends_on_rows(node, {}) and not is_random(node)
        if not is_static or any(size and size % rows == 0 for n in parts for size in n.shape):
            return None
        paths = [part.source for part in parts if isinstance(part.source, Path)]
        tensors = [self.numbers(path) for path in paths]
        known = [tensor for tensor in tensors if tensor is not None]
        if len(known) < len(paths) or prod(node.shape) > MOST_HELD:
            return None
        device = known[0].device if known else torch.device("cpu")
        with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
            found = Replay(rows, self._cell, rows, device)(node).cpu()
        self.depend_on(paths)
        return found

    def depend_on(self, paths: list[Path]) -> None:
        """Note that the program is one for the numbers at these paths."""
        self._watch.values.update(paths)
