"""Steps of a cell that do not count: hooks do not see them, and they leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cello.foreign.hooks import Hooks
from cello.foreign.undo import Undo

TRIAL_LOCK = threading.RLock()
"""One trial or trace at a time: while it runs, the parameters of the cell may be meta tensors."""


@contextmanager
def apart(cell: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Run steps of a cell on numbers that are none of the steps that its user asked for.

    Args:
        cell: the cell.
        device: where it computes.

    Yields:
        What makes the cell, its tensors and all sources of random numbers again what they were, so that the
        next of these steps begins like the first one. It is called at the end as well.
    """
    with TRIAL_LOCK:
        undo, hooks = Undo(cell, device), Hooks(cell)

        def begin_anew() -> None:
            undo.restore()
            hooks.put_off()

        try:
            hooks.put_off()
            yield begin_anew
        finally:
            hooks.put_back()
            undo.restore()


@contextmanager
def unobserved() -> Iterator[None]:
    """Hide steps from whatever watches the layer, such as torch.export: they are no part of the call."""
    modes = []
    while torch._C._len_torch_function_stack() > 0:
        modes.append(torch.overrides._pop_mode())
    try:
        with torch.utils._python_dispatch._disable_current_modes():
            yield
    finally:
        for mode in reversed(modes):
            torch.overrides._push_mode(mode)
