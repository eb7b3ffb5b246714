"""What a cell holds: its tensors, by where they are found, and everything else that its code may read.

A program is compiled once for each *fingerprint* of a cell: the classes, numbers, flags and functions
in it, and the shapes of its tensors. Tensors are looked up anew at each call, by their paths.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from cello.cells import GRU, LSTM, RNN, Cell
from cello.compile.reasons import CannotCompile

_OWN = frozenset(vars(nn.Module()))
"""What every module has; read by name where it counts."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_CONSTANT = ("torch", "cello", "builtins", "typing", "abc", "collections", "numpy", "math")
"""Packages whose functions and classes do not change while a program runs."""

_MAX_DEPTH = 12

_HIDDEN = ("_parameters", "_buffers", "_modules", "__closure__", "cell_contents", "__globals__")
"""Steps of a path that nobody writes."""


class Path(tuple[Any, ...]):
    """The way from a cell to one of its tensors: names of attributes, keys, and positions."""

    __slots__ = ()

    @property
    def readable(self) -> str:
        """The path as the cell's author writes it."""
        steps = [str(step) for step in self if step not in _HIDDEN]
        return ".".join(steps[1:] if len(steps) > 1 and steps[0] in ("cell", "function") else steps)


def plain_fingerprint(cell: Cell) -> tuple[Hashable, ...] | None:
    """The fingerprint of one of Cello's own cells with plain functions in it, or ``None``.

    It is found without an :class:`Inventory`, which for a short scan would take longer than the scan.
    """
    if type(cell) not in _OWN_CELLS:
        return None
    attributes = vars(cell)
    marks: list[Any] = [type(cell)]
    tensors: list[Tensor] = []
    for name in _OWN_CELLS[type(cell)]:
        value = attributes[name]
        if isinstance(value, Tensor):
            if any(value is other for other in tensors):
                return None
            tensors.append(value)
            marks += (value.shape, value.dtype)
        elif value is None or isinstance(value, BuiltinFunctionType):
            marks.append(value)
        else:
            return None
    for hooks in _HOOKS:
        if attributes[hooks]:
            return None
    return tuple(marks)


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "activation")

_OWN_CELLS = {
    LSTM: (*_WEIGHTS, "weight_hr", "gate_activation"),
    GRU: (*_WEIGHTS, "gate_activation"),
    RNN: _WEIGHTS,
}


_Items = tuple[Any, tuple[Any, ...], tuple[Any, ...]]
"""A dictionary, its keys and its values at one moment."""


class Inventory:
    """All that is found in a cell.

    Attributes:
        fingerprint: equal for two cells if one program serves both.
        tensors: every tensor.
        places: the tensor at each path.
    """

    def __init__(self, cell: nn.Module) -> None:
        self._cell = ref(cell)
        self._seen: dict[int, int] = {}
        self._paths: dict[int, Path] = {}
        self.tensors: list[Tensor] = []
        # What was looked at, to find out whether it is still the same; None where that cannot be told.
        self._items: list[_Items] | None = []
        self._lists: list[tuple[list[Any], tuple[Any, ...]]] = []
        self._functions: list[tuple[FunctionType, tuple[Any, ...]]] = []
        self._hooks: list[Any] = []
        marks: list[Any] = []
        self._take(cell, (), marks, 0)
        self.fingerprint: tuple[Hashable, ...] = tuple(marks)
        self.places = {self._paths[id(tensor)]: tensor for tensor in self.tensors}
        self._kinds = [(tensor.shape, tensor.dtype) for tensor in self.tensors]

    @staticmethod
    def of(cell: nn.Module) -> Inventory:
        """Return the inventory of a cell, the last one if the cell is still the same."""
        known = _inventories.get(cell)
        if known is not None and known.holds():
            return known
        made = Inventory(cell)
        _inventories.pop(cell, None)
        # What is computed anew at each call is not to live on here.
        if all(type(t) in (Tensor, nn.Parameter) and t.grad_fn is None for t in made.tensors):
            _inventories[cell] = made
        return made

    def holds(self) -> bool:
        """Whether every attribute, item and weight that was found is still in its place."""
        if self._items is None or any(self._hooks):
            return False
        for items, keys, values in self._items:
            if len(items) != len(keys) or not all(map(is_, items.values(), values)):
                return False
            if not all(map(is_, items, keys)):
                return False
        for given, values in self._lists:
            if len(given) != len(values) or not all(map(is_, given, values)):
                return False
        for function, read in self._functions:
            if not all(map(is_, _read_by(function), read)):
                return False
        return all(
            tensor.dtype is dtype and tensor.shape == shape
            for tensor, (shape, dtype) in zip(self.tensors, self._kinds, strict=True)
        )

    def _remember(self, items: Mapping[Any, Any]) -> None:
        if self._items is not None:
            self._items.append((items, tuple(items), tuple(items.values())))

    def path(self, tensor: Tensor) -> Path | None:
        """Return where the cell holds `tensor`, or ``None``."""
        return self._paths.get(id(tensor))

    def _take(self, value: Any, path: tuple[Any, ...], marks: list[Any], depth: int) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
            marks.append(value)
            return
        if isinstance(value, Tensor):
            # Which one it is matters, too: a program for tied weights reads them at one place only.
            marks += (tuple(value.shape), value.dtype, self._number(value))
            if id(value) not in self._paths:
                self._paths[id(value)] = Path(path)
                self.tensors.append(value)
            return
        known = len(self._seen)
        marks.append(self._number(value))
        if marks[-1] < known or depth > _MAX_DEPTH:
            if value is self._cell():  # remembered, it would keep itself alive
                self._items = None
            return
        if isinstance(value, nn.Module):
            self._take_module(value, path, marks, depth)
        elif isinstance(value, tuple | list):
            marks.append(len(value))
            if isinstance(value, list):
                self._lists.append((value, tuple(value)))
            for index, item in enumerate(value):
                self._take(item, (*path, index), marks, depth + 1)
        elif isinstance(value, dict):
            marks.append(len(value))
            self._remember(value)
            for key, item in value.items():
                marks.append(key)
                self._take(item, (*path, key), marks, depth + 1)
        elif isinstance(value, FunctionType):
            self._take_function(value, path, marks, depth)
        elif isinstance(value, partial):
            marks.append(partial)
            for name in ("func", "args", "keywords"):
                self._take(getattr(value, name), (*path, name), marks, depth + 1)
        elif isinstance(value, set):
            marks.append(frozenset(value))
            self._items = None
        elif isinstance(value, MethodType):
            self._take(value.__func__, (*path, "__func__"), marks, depth + 1)
            self._take(value.__self__, (*path, "__self__"), marks, depth + 1)
        elif hasattr(value, "tobytes"):  # an array of numpy
            marks += (type(value), value.tobytes())
            self._items = None
        elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
            marks.append(type(value))
            self._remember(vars(value))
            for name, item in vars(value).items():
                marks.append(name)
                self._take(item, (*path, name), marks, depth + 1)
            self._take_class(type(value), path, marks, depth)
        elif isinstance(value, Hashable):
            marks.append(value)

    def _number(self, value: Any) -> int:
        """How many other things were found before this one."""
        return self._seen.setdefault(id(value), len(self._seen))

    def _take_module(
        self, module: nn.Module, path: tuple[Any, ...], marks: list[Any], depth: int
    ) -> None:
        marks.append(type(module))
        marks.append(module.training)
        attributes = vars(module)
        self._remember(attributes)
        self._hooks += [attributes[hooks] for hooks in _HOOKS]
        for holder in ("_parameters", "_buffers", "_modules"):
            self._remember(attributes[holder])
            for name, value in attributes[holder].items():
                self._take(value, (*path, holder, name), marks, depth + 1)
        for name, value in attributes.items():
            if name not in _OWN:
                marks.append(name)
                self._take(value, (*path, name), marks, depth + 1)
        marks.append(any(attributes[hooks] for hooks in _HOOKS))
        self._take_class(type(module), path, marks, depth)

    def _take_class(self, cls: type, path: tuple[Any, ...], marks: list[Any], depth: int) -> None:
        """Take the attributes of a class, and what its methods read beside: torch's own are constant."""
        for base in cls.__mro__:
            if base.__module__.split(".")[0] in _CONSTANT or id(base) in self._seen:
                continue
            self._number(base)
            self._remember(vars(base))
            for name, value in vars(base).items():
                place = (*path, "__class__", name)
                if isinstance(value, FunctionType):
                    self._take(value, place, marks, depth + 1)
                elif isinstance(value, bool | int | float | str | Tensor) and name[:2] != "__":
                    marks.append(name)
                    self._take(value, place, marks, depth + 1)

    def _take_function(
        self, function: FunctionType, path: tuple[Any, ...], marks: list[Any], depth: int
    ) -> None:
        marks.append(function.__code__)
        self._functions.append((function, tuple(_read_by(function))))
        for holder in ("__defaults__", "__kwdefaults__"):
            self._take(getattr(function, holder), (*path, holder), marks, depth + 1)
        for index, cell in enumerate(function.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            place = (*path, "__closure__", index, "cell_contents")
            self._take(content, place, marks, depth + 1)
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            module = getattr(value, "__module__", None) or ""
            if isinstance(value, FunctionType) and module.split(".")[0] in _CONSTANT:
                continue
            if isinstance(value, Tensor | nn.Module | bool | int | float | FunctionType):
                self._take(value, (*path, "__globals__", name), marks, depth + 1)

    def hooks(self) -> Iterator[str]:
        """The modules in the cell that have hooks, which are to see every step."""
        for name, module in self._modules():
            for hooks in _HOOKS:
                for hook in getattr(module, hooks).values():
                    # torch's old-style weight norm and spectral norm compute a weight in a hook.
                    if not type(hook).__module__.startswith("torch.nn.utils."):
                        yield name or type(module).__name__

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        cell = self._cell()
        assert cell is not None
        yield from cell.named_modules()

    @contextmanager
    def unchanged(self, is_static: Callable[[Tensor], bool]) -> Iterator[None]:
        """Put back every attribute that a step sets, and refuse a cell that sets one of its own.

        Raises:
            CannotCompile: on leaving, if an attribute changed.
        """
        modules = dict(self._modules())
        before = {name: dict(vars(module)) for name, module in modules.items()}
        contents = {
            (name, key): value.copy()
            for name, attributes in before.items()
            for key, value in attributes.items()
            if isinstance(value, list | dict | set)
        }
        try:
            yield
        finally:
            changed = []
            for name, module in modules.items():
                now = module.__dict__
                for key in set(now) | set(before[name]):
                    old, new = before[name].get(key), now.get(key)
                    if old is new:
                        saved = contents.get((name, key))
                        if saved is not None and not _same_items(saved, new):
                            changed.append(f"{name}.{key}" if name else key)
                            container: Any = new
                            container.clear()
                            if isinstance(container, list):
                                container.extend(saved)
                            else:
                                container.update(saved)
                        continue
                    if not (isinstance(new, Tensor) and is_static(new)):
                        changed.append(f"{name}.{key}" if name else key)
                    if key in before[name]:
                        now[key] = old
                    else:
                        del now[key]
        if changed:
            names = ", ".join(sorted(key.removeprefix("cell.") for key in changed))
            raise CannotCompile(
                f"the cell changes its attribute {names} at every step; make it a part of the state"
            )


_inventories: WeakKeyDictionary[nn.Module, Inventory] = WeakKeyDictionary()


def places_in(cell: nn.Module) -> Mapping[Path, Tensor]:
    """The tensors of a cell by their paths, as they were when its inventory was last asked for."""
    known = _inventories.get(cell)
    return {} if known is None else known.places


def _read_by(function: FunctionType) -> Iterator[Any]:
    """What a function is and reads, beside its arguments."""
    yield function.__code__
    yield function.__defaults__
    yield function.__kwdefaults__
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            yield None
    yield from map(function.__globals__.get, function.__code__.co_names)


def _same_items(before: Any, after: Any) -> bool:
    if len(before) != len(after):
        return False
    if isinstance(before, dict):
        return all(key in after and after[key] is value for key, value in before.items())
    return all(a is b for a, b in zip(before, after, strict=True))


def find(cell: nn.Module, path: Path) -> Tensor:
    """Return the tensor at `path`."""
    value: Any = cell
    for step in path:
        if isinstance(value, dict | list | tuple) or isinstance(step, int):
            value = value[step]
        else:
            value = getattr(value, step) if step[:1] != "_" else _private(value, step)
    assert isinstance(value, Tensor)
    return value


def _private(value: Any, name: str) -> Any:
    return vars(value)[name] if name in getattr(value, "__dict__", ()) else getattr(value, name)
