"""Hooks of modules, which are for the steps that count: a trial of a cell is none of them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from cello.foreign.kinds import HOOKS, computes_weight

GLOBAL_HOOKS: tuple[dict[int, Any], ...] = tuple(
    getattr(torch_module, f"_global{name}") for name in HOOKS
)
"""The hooks that are registered for all modules, of the same four kinds."""


def has_global_hooks() -> bool:
    """Whether hooks are registered that are to see every call of every module."""
    return any(GLOBAL_HOOKS)


class Hooks:
    """The hooks that a call of a cell runs; but for those that compute a weight they can be put off.

    Args:
        cell: the cell.
    """

    def __init__(self, cell: nn.Module) -> None:
        own = [getattr(module, name) for module in cell.modules() for name in HOOKS]
        self._hooks = [(hooks, dict(hooks)) for hooks in (*own, *GLOBAL_HOOKS)]

    def put_off(self) -> None:
        """Take the hooks away; all that has been registered since is taken away as well."""
        for hooks, _ in self._hooks:
            for key, hook in list(hooks.items()):
                if not computes_weight(hook):
                    del hooks[key]

    def put_back(self) -> None:
        """Put them back, in their order."""
        for hooks, before in self._hooks:
            hooks.clear()
            hooks.update(before)

    def __enter__(self) -> None:
        self.put_off()

    def __exit__(self, *_: object) -> None:
        self.put_back()
