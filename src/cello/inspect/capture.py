"""The intermediate values of a cell's step, by the names of the variables in its code.

While a step runs, Python calls a trace function (:func:`sys.settrace`) for each line of the cell's code.
A line has assigned a value if a local variable is another tensor than before. The cell needs no changes:
it registers no names and has no base class.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cello.cells.contract import Cell
from cello.foreign.adapt import Adapted, FunctionCell


class Value(NamedTuple):
    """The value of a name at one moment.

    Attributes:
        tensor: the tensor, in the graph of autograd.
        copy: a copy of its values at that moment.
        version: how often it had been written to at that moment.
    """

    tensor: Tensor
    copy: Tensor
    version: int

    @staticmethod
    def of(tensor: Tensor) -> Value:
        """Copy the current values of a tensor."""
        return Value(tensor, tensor.detach().clone(), _version(tensor))

    @property
    def is_current(self) -> bool:
        """Whether the tensor has not been written to since."""
        return _version(self.tensor) == self.version


Captured = dict[str, list[Value]]
"""The values of each name during a step, in order."""

_ROOM = str(Path(__file__).parents[1]) + "/"
_LIBRARIES = (str(Path(torch.__file__).parent) + "/", _ROOM)


class CellCode:
    """The functions that are the code of a cell: its methods, those of its submodules, or its function.

    Methods of torch's and Cello's modules do not count, unless the cell itself is one of Cello's.

    Args:
        cell: the cell, as engines get it.
    """

    def __init__(self, cell: Cell) -> None:
        root: nn.Module = cell.cell if isinstance(cell, Adapted) else cell
        # torch.compile moves the module that it wraps one level down.
        self._paths = {
            id(module): ".".join(part for part in path.split(".") if part != "_orig_mod")
            for path, module in root.named_modules()
        }
        self._own = _code(type(root).forward) if root is cell else None
        self._function = _code(root.function) if isinstance(root, FunctionCell) else None

    def prefix(self, frame: FrameType) -> str | None:
        """Return the prefix for the variables of a function, or ``None`` if it is not code of the cell.

        Variables of the cell's `forward` have no prefix. The prefix of a submodule is its path, and that of
        another method its name: ``"gate.x"``, ``"_mix.w"``.
        """
        code = frame.f_code
        if code is self._function:
            return ""
        if code is not self._own and _is_library(code):
            return None
        if code.co_argcount == 0:
            return None
        path = self._paths.get(id(frame.f_locals.get(code.co_varnames[0])))
        if path is None:
            return None
        parts = [path, "" if code.co_name in ("forward", "__call__") else code.co_name]
        return "".join(f"{part}." for part in parts if part)


@functools.lru_cache(maxsize=4096)
def _is_library(code: CodeType) -> bool:
    return code.co_filename.startswith(_LIBRARIES)


def _code(function: Any) -> CodeType | None:
    """Return the code of a function, a bound method, a partial or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004  # the method itself
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


@contextmanager
def captured(code: CellCode) -> Iterator[Captured]:
    """Collect the values that a cell's code assigns inside the ``with``, in this thread.

    A debugger or a coverage tool uses the same trace function, so it does not see the cell inside the
    ``with``.
    """
    values: Captured = {}

    def enter(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        prefix = code.prefix(frame)
        return None if prefix is None else _Watch(prefix, frame, values)

    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # compiled code has no lines
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        before = sys.gettrace()
        sys.settrace(enter)
        try:
            yield values
        finally:
            sys.settrace(before)


class _Watch:
    """The trace function of one call of one function."""

    def __init__(self, prefix: str, frame: FrameType, values: Captured) -> None:
        self.prefix, self.values = prefix, values
        self.seen: dict[str, tuple[Tensor, int]] = {}
        for name, tensor in _tensors(frame):  # the arguments
            self.seen[name] = tensor, _version(tensor)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> _Watch:
        if event in ("line", "return"):
            for name, tensor in _tensors(frame):
                before = self.seen.get(name)
                if before is None or before[0] is not tensor or before[1] != _version(tensor):
                    self.seen[name] = tensor, _version(tensor)
                    self.values.setdefault(f"{self.prefix}{name}", []).append(Value.of(tensor))
        return self


def _version(tensor: Tensor) -> int:
    """Return how often a tensor has been written to."""
    return 0 if tensor.is_inference() else tensor._version


def _tensors(frame: FrameType) -> list[tuple[str, Tensor]]:
    return [
        pair
        for name, value in list(frame.f_locals.items())
        for pair in _named(name, value, depth=2)
    ]


def _named(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a variable: itself, or the items of a tuple, list or dict."""
    if isinstance(value, Tensor):
        yield name, value
    elif depth and isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        for k, item in enumerate(value):
            yield from _named(f"{name}.{fields[k]}" if fields else f"{name}[{k}]", item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _named(f"{name}[{key!r}]", item, depth - 1)
