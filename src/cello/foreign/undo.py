"""Undoing what a step did to anything that its cell can reach."""

from __future__ import annotations

import ast
import copy
import functools
import random
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cello.foreign.generators import Generators
from cello.foreign.kinds import is_array
from cello.foreign.path import MISSING, Path, Slot
from cello.foreign.reach import Reach

if TYPE_CHECKING:
    from typing_extensions import Self

_ITERATORS = frozenset(
    type(iter(things))
    for things in cast(
        "tuple[Iterable[Any], ...]",
        ([], (), {}, set(), range(0), "", b"", {}.items(), {}.values(), count()),
    )
)
"""Iterators that can be copied, to go on from where they were."""


class Undo:
    """Remembers all that is reached from a cell, and puts it back; in a ``with`` statement at its end.

    Args:
        cell: the cell.
        device: where steps compute with numbers, if they do: they may write into tensors then, and draw
            random numbers there.

    Attributes:
        reach: all that is reached.
        allowed: the attributes that a step has set to a tensor that it may set them to: the dictionary that
            holds each, its name there, and its path.
    """

    def __init__(self, cell: nn.Module, device: torch.device | None = None) -> None:
        self.reach = Reach(cell)
        self.allowed: list[tuple[dict[Any, Any], Any, Path]] = []
        copies = _Copies()
        self._dicts = [
            (content, {key: copies.of(value) for key, value in content.items()}, path)
            for content, path in self.reach.dicts
            if not isinstance(content, MappingProxyType)
        ]
        self._classes = [(cls, _attributes(cls)) for cls in self.reach.classes]
        self._things = [
            (thing, _copied(thing, copies), path.readable) for thing, path in self.reach.things
        ]
        self._things += [
            (thing, _copied(thing, copies), path)
            for thing, (path, _) in zip(self.reach.unknown, self.reach.opaque, strict=True)
            if is_array(thing)
        ]
        self._globals = [
            (content, {name: content.get(name, MISSING) for name in names})
            for content, names in self.reach.globals_set
        ]
        caches = [t for t in self.reach.unknown if isinstance(t, functools._lru_cache_wrapper)]
        self._caches = {id(cache): (cache, cache.cache_info().misses) for cache in caches}
        sources = [random, sys.modules.get("numpy.random"), *self.reach.unknown]
        self._random = [pair for pair in map(_random_state, sources) if pair is not None]
        self._generators = Generators(device or torch.device("cpu"))
        self._tensors = [
            (tensor, tensor.detach().clone())
            for tensor in (() if device is None else self.reach.tensors)
            if type(tensor) in (Tensor, nn.Parameter)
            and not tensor.is_meta  # others may have no numbers
            if tensor.layout == torch.strided
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self, is_allowed: Callable[[Tensor], bool] = lambda _: False) -> list[str]:
        """Put back whatever has changed.

        Args:
            is_allowed: which tensors may be set as attributes without that being a change.

        Returns:
            What had changed, in the words of the cell's author.
        """
        changed: list[str] = []
        copies = _Copies()
        for content, before, path in self._dicts:
            found, allowed = _restore_dict(content, before, path, is_allowed, copies)
            changed += found
            place = path[:-1] if path[-1:] == ("__dict__",) else path
            self.allowed += [(content, key, Path((*place, key))) for key in allowed]
        for cls, attributes in self._classes:
            changed += _restore_class(cls, attributes)
        for thing, before, where in self._things:
            if _restore_thing(thing, before, copies):
                changed.append(f"its attribute {where}")
        for content, values in self._globals:
            for name, value in values.items():
                if content.get(name, MISSING) is value:
                    continue
                changed.append(f"the global variable {name}")
                if value is MISSING:
                    del content[name]
                else:
                    content[name] = value
        for cache, misses in list(self._caches.values()):
            if cache.cache_info().misses != misses:  # it may now hold tensors without memory
                cache.cache_clear()
                self._caches[id(cache)] = cache, 0
        for state, put_back in self._random:
            put_back(state)
        self._generators.put_back()
        with torch.no_grad():
            for tensor, numbers in self._tensors:
                if not torch.allclose(tensor, numbers, 0, 0, equal_nan=True):
                    tensor.copy_(numbers)
        return sorted(dict.fromkeys(changed))


def _attributes(cls: type) -> dict[str, Any]:
    """The attributes of a class, but for those that Python keeps there."""
    return {name: value for name, value in vars(cls).items() if name[:2] != "__"}


def _restore_class(cls: type, before: dict[str, Any]) -> list[str]:
    changed = []
    for name in {**before, **_attributes(cls)}:
        old = before.get(name, MISSING)
        if vars(cls).get(name, MISSING) is old:
            continue
        changed.append(f"the attribute {name} of the class {cls.__name__}")
        if old is MISSING:
            delattr(cls, name)
        else:
            setattr(cls, name, old)
    return changed


class _Copies:
    """Copies of iterators: of each one, wherever it is held."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """Return the copy of an iterator; anything else as it is."""
        if type(value) not in _ITERATORS:
            return value
        if id(value) not in self._known:
            # Python 3.14 does not copy counters.
            made = _count_like(value) if type(value) is count else copy.copy(value)
            self._known[id(value)] = value, made
        return self._known[id(value)][1]


def _count_like(counter: count[Any]) -> count[Any]:
    """Another counter at the same place; the same one where its numbers are not Python's own."""
    try:
        place = ast.literal_eval(repr(counter).removeprefix("count"))
    except (ValueError, SyntaxError):
        return counter
    return count(*place) if isinstance(place, tuple) else count(place)


def _restore_dict(
    content: dict[Any, Any],
    before: dict[Any, Any],
    path: Path,
    is_allowed: Callable[[Tensor], bool],
    copies: _Copies,
) -> tuple[list[str], list[Any]]:
    keys = list(content)
    same = len(keys) == len(before) and all(a is b for a, b in zip(keys, before, strict=True))
    if same and all(a is b for a, b in zip(content.values(), before.values(), strict=True)):
        return [], []
    changed, allowed = [], []
    if [key for key in content if key in before] != [key for key in before if key in content]:
        changed.append(f"the order of its attribute {path.readable}")
    for key in {**before, **content}:
        old, new = before.get(key, MISSING), dict.get(content, key, MISSING)
        if old is new:
            continue
        if _holds_allowed(new, is_allowed):
            allowed.append(key)
            continue
        if type(old) in _ITERATORS and _place_of(old) == _place_of(new):
            continue
        changed.append(f"its attribute {Path((*path, key)).readable}")
    content.clear()
    content.update({key: copies.of(value) for key, value in before.items()})
    return changed, allowed


def _holds_allowed(value: Any, is_allowed: Callable[[Tensor], bool]) -> bool:
    """Whether a value is an allowed tensor, or a new container of such and of constants."""
    if issubclass(type(value), Tensor):  # without asking what stands for it
        return is_allowed(value)
    parts = list(_parts(value, _DEEP))
    tensors = [part for part in parts if issubclass(type(part), Tensor)]
    others = (part for part in parts if not issubclass(type(part), Tensor))
    return (
        bool(tensors) and all(map(is_allowed, tensors)) and all(type(p) in _PLAIN for p in others)
    )


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """What is in containers of containers, down to some depth; anything else itself."""
    if depth and type(value) in (list, tuple, dict):
        for part in value.values() if type(value) is dict else value:
            yield from _parts(part, depth - 1)
    else:
        yield value


_DEEP = 4
_PLAIN = (int, float, bool, str, type(None))


def _place_of(iterator: Any) -> Any:
    """Where an iterator is, as far as it can be told; itself where it cannot."""
    if type(iterator) not in _ITERATORS:
        return iterator
    if type(iterator) is count:
        return repr(iterator)
    return repr(iterator.__reduce__()[1:])


def _copied(thing: Any, copies: _Copies) -> Any:
    if isinstance(thing, list | deque | set | bytearray):
        return [copies.of(item) for item in thing]
    if isinstance(thing, Slot):
        return thing.content
    return thing.tobytes(), copy.copy(thing)


def _restore_thing(thing: Any, before: Any, copies: _Copies) -> bool:
    """Put one thing back; say whether it had changed."""
    if isinstance(thing, list | deque | bytearray):
        now = list(thing)
        if len(now) == len(before) and all(
            a is b or (type(b) in _ITERATORS and _place_of(a) == _place_of(b))
            for a, b in zip(now, before, strict=True)
        ):
            return False
        thing.clear()
        thing.extend(map(copies.of, before))
        return True
    if isinstance(thing, set):
        if thing == set(before):
            return False
        thing.clear()
        thing.update(before)
        return True
    if isinstance(thing, Slot):
        if thing.read() is thing.content:
            return False
        thing.restore()
        return True
    content, saved = before
    if thing.tobytes() == content:
        return False
    thing[slice(None) if isinstance(thing, array) else ...] = saved
    return True


def _random_state(source: Any) -> tuple[Any, Callable[[Any], object]] | None:
    """The state of a source of random numbers, and what puts it back; ``None`` for anything else."""
    if isinstance(source, torch.Generator) or _is_of_numpy(source, "RandomState"):
        return source.get_state(), source.set_state
    if source is random or isinstance(source, random.Random):
        return source.getstate(), source.setstate
    if _is_of_numpy(source, "Generator"):
        bits = source.bit_generator
        return bits.state, functools.partial(setattr, bits, "state")
    return None


def _is_of_numpy(source: Any, name: str) -> bool:
    module = sys.modules.get("numpy.random")
    if module is None or source is None:
        return False
    return isinstance(source, getattr(module, name)) or (source is module and name == "RandomState")
