"""The way from a cell to something that it reads, and what is there."""

from __future__ import annotations

import sys
import weakref
from collections import deque
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cello.foreign.kinds import is_traced
from cello.foreign.scope import words

IMPORTED = "__imported__"
"""The step of a path to a module that a function imports as it runs."""

ATTRIBUTE = "__attribute__"
"""The step of a path before that to an attribute of a container, which may have an item of that name."""

_HIDDEN = words(
    "_parameters _buffers _modules __closure__ cell_contents __globals__ __imported__ __dict__ __func__ "
    "__self__ __attribute__"
)
"""Steps of a path that nobody writes."""


class Path(tuple[Any, ...]):
    """The way from a cell to one of its tensors: names of attributes, keys, and positions."""

    __slots__ = ()

    @property
    def readable(self) -> str:
        """The path as the cell's author writes it."""
        steps = [str(step) for step in self if step not in _HIDDEN]
        while len(steps) > 1 and steps[0] in ("cell", "function"):
            steps.pop(0)
        return ".".join(steps)


MISSING = object()
"""What stands for nothing at all."""


class Slot:
    """One place of an object that has no dictionary: a slot, or a variable of a closure."""

    def __init__(self, owner: Any, descriptor: Any, content: Any) -> None:
        self.owner, self.descriptor, self.content = owner, descriptor, content

    def read(self) -> Any:
        """What is there now."""
        if self.descriptor is None:
            return self.owner.cell_contents
        try:
            return self.descriptor.__get__(self.owner, type(self.owner))
        except AttributeError:
            return MISSING

    def restore(self) -> None:
        """Put back what was there."""
        if self.descriptor is None:
            self.owner.cell_contents = self.content
        elif self.content is MISSING:
            self.descriptor.__delete__(self.owner)
        else:
            self.descriptor.__set__(self.owner, self.content)


def find(cell: nn.Module, path: Path) -> Tensor:
    """Return the tensor at `path`.

    Raises:
        LookupError: there is none any more.
    """
    value: Any = cell
    before: Any = None
    for step in path:
        if isinstance(value, weakref.ref):
            value = value()
        try:
            value = _after(value, step, is_attribute=before == ATTRIBUTE)
        except (AttributeError, LookupError, TypeError, StopIteration):
            raise LookupError(path.readable) from None
        before = step
    if not isinstance(value, Tensor):
        raise LookupError(path.readable)
    return value


def _after(value: Any, step: Any, *, is_attribute: bool) -> Any:
    """What is one step further on."""
    if step == ATTRIBUTE:
        return value
    if step == IMPORTED:
        return sys.modules
    if not is_attribute and step not in ("__class__", "__dict__"):
        if isinstance(value, dict):
            return dict.__getitem__(value, step)
        if isinstance(value, MappingProxyType | list | tuple | deque):
            return value[step]
        if isinstance(value, set | frozenset):
            return next(islice(value, step, None))
    return _private(value, step) if step[:1] == "_" else getattr(value, step)


def _private(value: Any, name: str) -> Any:
    return vars(value)[name] if name in getattr(value, "__dict__", ()) else getattr(value, name)


def has_numbers(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: not while a graph is traced."""
    return not is_traced(tensor) and torch._C._len_torch_dispatch_stack() == 0


def content_of(tensor: Tensor) -> bytes:
    """The numbers of a tensor as bytes; none where a graph is traced, in which they are not known."""
    if not has_numbers(tensor):
        return b""
    with torch.no_grad():
        flat = tensor.detach().cpu().contiguous().view(-1)
        return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
