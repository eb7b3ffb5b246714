"""All that the code of a step can read, found from the cell on: a walk over objects and code.

A program is what one trace of a step did, so it serves a call only if whatever that call could read is
the same. The walk begins at the cell and follows attributes, items, closures, default arguments, classes
and the global variables that code names. It understands a closed list of kinds of things. What is not in
that list is noted as *opaque*: whoever needs to know all of it then has to give up.
"""

from __future__ import annotations

import builtins
import functools
import sys
import weakref
from abc import ABCMeta, get_cache_token
from collections import deque
from itertools import repeat
from operator import is_
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Tensor, nn

from cello.foreign.kinds import (
    BUILT_IN,
    CODE,
    HOOKS,
    IMMUTABLE,
    OWN,
    PLAIN,
    VALUES,
    are_plain_defaults,
    are_settings,
    attributes_of,
    functions_in,
    is_array,
    is_c_class,
    is_empty,
    is_generated,
    is_plain_class,
    is_silent,
    is_ufunc,
    parts_of,
    slots_of,
)
from cello.foreign.path import ATTRIBUTE, IMPORTED, MISSING, Path, Slot, content_of
from cello.foreign.scope import (
    Scope,
    codes_in,
    globals_in,
    imports_in,
    is_constant,
    names_in,
    words,
)

_MAX_DEPTH, _MAX_THINGS, _MAX_BYTES = 60, 20_000, 1 << 16

_LAYOUT = words(
    "stride is_contiguous is_non_overlapping_and_dense storage_offset suggest_memory_format "
    "view view_as as_strided contiguous"
)
"""Where code names one of these, it counts how the tensors that it reads lie in their memory."""


def _layout_of(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return (tensor.layout,)
    return tensor.stride(), tensor.storage_offset()


def _facts_of(array: Any) -> tuple[Any, ...]:
    """What an array of numpy or of the standard library is."""
    dtype, *form = (getattr(array, name, None) for name in ("dtype", "shape", "strides"))
    return str(dtype), *form, array.tobytes()


class Reach:
    """All that is reached from a cell.

    Args:
        cell: where the walk begins.
        scope: the code that counts: attributes that it does not name are left out, and so is what other
            functions read. ``None`` takes every function and every attribute that is found.

    Attributes:
        marks: what was found, in order; equal for two cells where code within the scope reads the same.
        tensors: every tensor.
        places: the tensor at each path.
        opaque: the paths of things that are not understood, with their classes.
        codes: the code of the functions that were found.
        hooks: the dictionaries of hooks of all modules.
        dicts: every dictionary, with those of attributes.
        classes: every class that is not constant.
        things: every other container whose content may change.
        unknown: the things at the paths that are opaque.
        outside: the paths of what was read beside code and the tensors and plain attributes of modules.
        globals_set: dictionaries of global variables, with names in them that code sets.
    """

    def __init__(self, cell: nn.Module, scope: Scope | None = None) -> None:
        self._cell, self._scope = weakref.ref(cell), scope
        self._seen: dict[int, int] = {}
        self.classes: set[type] = set()
        self._paths: dict[int, Path] = {}
        self._keep: list[Any] = []  # what was made on the way, so that no id is used again
        self.marks: list[Any] = []
        self.tensors: list[Tensor] = []
        self.opaque: list[tuple[str, str]] = []
        self.outside: list[str] = []
        self._is_ours = False  # what is Cello's own does not change
        self.codes: set[CodeType] = set()
        self._names: set[str] = set()  # in all of that code
        self.hooks: list[Any] = []
        self.dicts: list[tuple[Any, Path]] = []
        self.things: list[tuple[Any, Path]] = []
        self.unknown: list[Any] = []
        self.globals_set: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        # What was looked at, to find out whether it is still the same; None where that cannot be told.
        self._read: list[tuple[Any, Any, Any]] | None = []
        self._keys: list[tuple[Any, tuple[Any, ...]]] = []
        self._contents: list[tuple[Any, tuple[Any, ...]]] = []
        self._arrays: list[tuple[Any, tuple[Any, ...]]] = []
        self._parts: list[tuple[Any, tuple[Any, ...]]] = []
        self._objects: list[tuple[weakref.ref[Any], type]] = []
        self._methods: dict[tuple[type, str], Any] = {}
        self._wanted: list[str] | None = None  # the names in the code of the step
        # What tells one state of the registered classes from another, where abstract ones are reached.
        self._registered: list[object] = []
        self._reads_layout = any(map(self._wants, _LAYOUT))
        self._take(cell, (), 0)
        if scope is not None:  # methods of tensors, which someone may have replaced
            self._take_replaced(Tensor, self._users_names(vars(torch._C.TensorBase)))
        self.places = {self._paths[id(tensor)]: tensor for tensor in self.tensors}
        self._kinds = [(type(t), t.shape, t.dtype, t.device) for t in self.tensors]
        self._layouts = [_layout_of(t) for t in self.tensors if self._reads_layout]
        self._is_computed = any(
            type(t) not in (Tensor, nn.Parameter) or t.grad_fn is not None for t in self.tensors
        )
        self._values: list[tuple[Tensor, bytes]] = []
        for path in sorted(scope.values, key=repr) if scope else ():
            tensor = self.places.get(Path(path))
            content = MISSING if tensor is None else content_of(tensor)
            self.marks.append(content)
            if isinstance(content, bytes) and tensor is not None:
                self._values.append((tensor, content))

    @property
    def can_be_kept(self) -> bool:
        """Whether :meth:`holds` can tell that all is as it was, and nothing is kept alive for it."""
        return self._read is not None and not self._is_computed and not any(self.hooks)

    def holds(self) -> bool:
        """Whether all that was found is still in its place."""
        if self._read is None or any(self.hooks):
            return False
        for (cls, name), method in self._methods.items():
            if getattr(cls, name, None) is not method:
                return False
        if self._registered and self._registered[0] != get_cache_token():
            return False
        for mapping, name, value in self._read:
            if mapping.get(name, MISSING) is not value:
                return False
        for mapping, keys in self._keys:
            if len(mapping) != len(keys) or (keys and not all(map(is_, mapping, keys))):
                return False
        for reference, kind in self._objects:
            if type(reference()) is not kind:
                return False
        for container, items in self._contents:
            if len(container) != len(items) or not all(map(is_, container, items)):
                return False
        for whole, parts in self._parts:
            if not all(map(is_, parts_of(whole), parts)):
                return False
        for array, was in self._arrays:
            if _facts_of(array) != was:
                return False
        for tensor, content in self._values:
            if content_of(tensor) != content:
                return False
        if self._layouts != [_layout_of(t) for t in self.tensors if self._reads_layout]:
            return False
        return all(
            type(tensor) is kind
            and tensor.dtype is dtype
            and tensor.shape == shape
            and tensor.device == device
            for tensor, (kind, shape, dtype, device) in zip(self.tensors, self._kinds, strict=True)
        )

    def path(self, tensor: Tensor) -> Path | None:
        """Return where the cell holds `tensor`, or ``None``."""
        return self._paths.get(id(tensor))

    # Names

    def _wants(self, name: Any) -> bool:
        scope = self._scope
        return scope is None or scope.everything or name in scope.names

    def _sets(self, path: tuple[Any, ...], name: Any) -> bool:
        """Whether the step sets what is there before it reads it."""
        sets = self._scope.sets if self._scope is not None else ()
        return bool(sets) and (*path, name) in sets

    def _ran(self, code: CodeType) -> bool:
        return self._scope is None or not self._scope.codes.isdisjoint(codes_in(code))

    def _look(self, mapping: Any, names: tuple[Any, ...]) -> list[tuple[Any, Any]]:
        """Read names in a dictionary, and remember what was there."""
        get = mapping.get
        if isinstance(mapping, dict) and type(mapping).get is not dict.get:
            get = functools.partial(dict.get, mapping)
            self._read = None  # to look again would ask its own `get`
        values = tuple([get(name, MISSING) for name in names])
        if self._read is not None:
            self._read += zip(repeat(mapping), names, values)
        return [(n, v) for n, v in zip(names, values, strict=True) if v is not MISSING]

    # Things

    def _note(self, value: Any, path: tuple[Any, ...]) -> None:
        """Note a value that is read from elsewhere than a module, unless it is code."""
        if not self._is_ours and not isinstance(value, CODE):
            self.outside.append(Path(path).readable)

    def _note_class(self, value: Any) -> None:
        """Remember the class of an object, which can be set to another."""
        try:
            self._objects.append((weakref.ref(value), type(value)))
        except TypeError:  # a class with slots and none for references
            self._read = None

    def _refuse(self, value: Any, path: tuple[Any, ...]) -> None:
        kind = type(value)
        name = kind.__qualname__
        if kind.__module__ != "builtins":
            name = f"{kind.__module__}.{name}"
        self.opaque.append((Path(path).readable or "the cell", name))
        self.unknown.append(value)
        self.marks.append(id(value))
        self._keep.append(value)
        self._read = None

    def _take(self, value: Any, path: tuple[Any, ...], depth: int) -> None:
        marks, kind = self.marks, type(value)
        if kind in PLAIN or kind in IMMUTABLE:
            marks += (kind, value)
            return
        if kind is float or kind is complex:
            marks += (kind, repr(value))  # 0.0 is not -0.0, and NaN is NaN
            return
        if isinstance(value, Tensor):
            # Which one it is matters, too: a program for tied weights reads them at one place only.
            marks += (kind, tuple(value.shape), value.dtype, value.layout, self._number(value))
            if self._reads_layout:
                marks.append(_layout_of(value))
            if id(value) not in self._paths:
                self._paths[id(value)] = Path(path)
                self.tensors.append(value)
                attributes = attributes_of(value)
                # Others keep torch's own things there.
                if attributes is not None and kind in (Tensor, nn.Parameter):
                    self.dicts.append((attributes, Path((*path, "__dict__"))))
                    self._take_names(attributes, path, depth, object)
            return
        known = len(self._seen)
        marks.append(self._number(value))
        if marks[-1] < known:
            if value is self._cell():  # remembered, it would keep itself alive
                self._read = None
            return
        if depth > _MAX_DEPTH or known > _MAX_THINGS:
            self._refuse(value, path)
        elif isinstance(value, nn.Module):
            self._take_module(value, path, depth)
        elif isinstance(value, type):
            marks.append(value)
            self._take_class(value, (*path, "__class__"), depth)
        elif isinstance(value, FunctionType):
            self._take_function(value, path, depth)
        elif isinstance(value, MethodType):
            self._take(value.__func__, (*path, "__func__"), depth + 1)
            self._take(value.__self__, (*path, "__self__"), depth + 1)
        elif isinstance(value, ModuleType):
            self._take_package(value, path, depth)
        elif kind is BuiltinFunctionType:
            marks.append(value)
            owner = value.__self__
            if owner is not None and not isinstance(owner, ModuleType | type):
                self._take(owner, (*path, "__self__"), depth + 1)
        elif not self._take_known(value, path, depth):
            self._take_object(value, path, depth)

    def _take_known(self, value: Any, path: tuple[Any, ...], depth: int) -> bool:
        """Take a container or another thing of a kind that is known; say whether it was."""
        marks, kind = self.marks, type(value)
        self._note(value, path)
        if isinstance(value, tuple | list | deque | set | frozenset):
            marks += (kind, len(value))
            if isinstance(value, deque):
                marks.append(value.maxlen)
            if not isinstance(value, tuple | frozenset):
                self.things.append((value, Path(path)))
                self._contents.append((value, tuple(value)))
            for index, item in enumerate(value):
                self._take(item, (*path, index), depth + 1)
        elif isinstance(value, dict | MappingProxyType):
            marks += (kind, len(value))
            self.dicts.append((value, Path(path)))
            self._keys.append((value, tuple(value)))
            keys = tuple([key for key in value if not self._sets(path, key)])
            for key, item in self._look(value, keys):
                self._take(key, (*path, key), depth + 1)
                self._take(item, (*path, key), depth + 1)
        elif isinstance(value, functools.partial):
            marks.append(kind)
            self._parts.append((value, tuple(parts_of(value))))
            for name in ("func", "args", "keywords"):
                self._take(getattr(value, name), (*path, name), depth + 1)
        elif isinstance(value, property):
            marks.append(kind)
            for name in ("fget", "fset"):
                self._take(getattr(value, name), (*path, name), depth + 1)
        elif isinstance(value, staticmethod | classmethod):
            marks.append(kind)
            self._take(value.__func__, (*path, "__func__"), depth + 1)
        elif kind is slice:
            for part in (value.start, value.stop, value.step):
                self._take(part, path, depth + 1)
        elif isinstance(value, bytearray):
            marks.append(bytes(value))
            self.things.append((value, Path(path)))
            self._contents.append((value, tuple(value)))
        elif isinstance(value, weakref.ref):
            marks.append(kind)
            self._take(value(), path, depth + 1)
        elif f"{kind.__module__}.{kind.__qualname__}" in VALUES:
            marks += (kind, value)
            return True
        elif kind.__name__ == "_tuplegetter" or kind in (
            MemberDescriptorType, GetSetDescriptorType, MethodDescriptorType, WrapperDescriptorType
        ) or isinstance(value, CodeType) or is_ufunc(value):  # fmt: skip
            marks.append(value)
            return True
        elif is_array(value):
            self._take_array(value, path)
            return True
        else:
            return False
        if kind not in BUILT_IN:
            self._take_attributes(value, (*path, ATTRIBUTE), depth)
        return True

    def _take_array(self, value: Any, path: tuple[Any, ...]) -> None:
        """An array or a number of numpy, or an array.array."""
        has_objects = getattr(getattr(value, "dtype", None), "hasobject", False)
        if getattr(value, "nbytes", 0) > _MAX_BYTES or has_objects:
            self._refuse(value, path)
            return
        facts = _facts_of(value)
        self.marks += (type(value), *facts)
        self._arrays.append((value, facts))
        self.things.append((value, Path(path)))

    def _take_object(self, value: Any, path: tuple[Any, ...], depth: int) -> None:
        """An instance of a class, by its attributes."""
        kind = type(value)
        if is_silent(value):
            self.marks.append(id(value))
            self._keep.append(value)
            held = attributes_of(value) or {}
            plain = tuple([n for n, v in held.items() if self._wants(n) and type(v) in PLAIN])
            self.marks += self._look(held, plain)  # as the level of a logger
            return
        is_number = isinstance(value, int | float | complex | str | bytes)
        if is_number:
            self.marks += (kind, repr(value) if isinstance(value, float | complex) else value)
        is_whole = self._take_attributes(value, path, depth)
        if not is_whole and not is_number and kind is not object:
            self._refuse(value, path)

    def _take_attributes(self, value: Any, path: tuple[Any, ...], depth: int) -> bool:
        """Take the attributes of an object and of its class; say whether it is made of these alone."""
        kind = type(value)
        self.marks.append(kind)
        self._note_class(value)
        attributes = attributes_of(value)
        slots = list(slots_of(kind))
        if attributes is not None:
            self.dicts.append((attributes, Path((*path, "__dict__"))))
            self._take_names(attributes, path, depth, kind)
        for name, descriptor in slots:
            if self._wants(name):
                try:
                    content = descriptor.__get__(value, kind)
                except AttributeError:
                    content = MISSING
                self.things.append((Slot(value, descriptor, content), Path((*path, name))))
                self._read = None  # a slot has no dictionary to look into
                self.marks += (name, content is MISSING)
                if content is not MISSING:
                    self._take(content, (*path, name), depth + 1)
        self._take_class(kind, (*path, "__class__"), depth)
        return is_plain_class(kind) and (attributes is not None or bool(slots) or is_empty(kind))

    def _take_names(
        self, attributes: dict[str, Any], path: tuple[Any, ...], depth: int, kind: type
    ) -> None:
        """Take the attributes that code in the scope names; all of them of Cello's own objects."""
        is_ours = _is_cellos(kind.__module__)
        own = OWN if issubclass(kind, nn.Module) else ()  # which are read by name
        wants_all = is_ours or issubclass(kind, SimpleNamespace)  # which are compared below Python
        names = tuple(
            [
                n
                for n in attributes
                if n not in own and (wants_all or self._wants(n)) and not self._sets(path, n)
            ]
        )
        self._keys.append((attributes, tuple(attributes)))
        before, self._is_ours = self._is_ours, self._is_ours or is_ours
        for name, item in self._look(attributes, names):
            self.marks.append(name)
            if isinstance(item, Tensor):
                self._note(item, (*path, name))
            # Numbers side by side are as plain as one number of a module.
            held, is_plain = self._is_ours, issubclass(kind, nn.Module) and are_settings(item)
            self._is_ours = held or is_plain
            self._take(item, (*path, name), depth + 1)
            self._is_ours = held
        self._is_ours = before

    def _take_module(self, module: nn.Module, path: tuple[Any, ...], depth: int) -> None:
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            self._refuse(module, path)
            return
        attributes = vars(module)
        self.marks += (kind, module.training)
        self._note_class(module)
        self._look(attributes, ("training",))
        self.hooks += [attributes[hooks] for hooks in HOOKS]
        if self._scope is not None:
            self._take_replaced(kind, ("forward", "__call__"))
        self.dicts.append((attributes, Path((*path, "__dict__"))))
        for holder in ("_parameters", "_buffers", "_modules"):
            content = attributes[holder]
            self.dicts.append((content, Path((*path, holder))))
            self._keys.append((content, tuple(content)))
            names = tuple([name for name in content if not self._sets((*path, holder), name)])
            for name, value in self._look(content, names):
                self.marks += (holder, name)  # by which a program finds the tensor of another cell
                self._take(value, (*path, holder, name), depth + 1)
        self._take_names(attributes, path, depth, kind)
        self.marks.append(any(attributes[hooks] for hooks in HOOKS))
        self._take_class(kind, (*path, "__class__"), depth)

    def _take_class(self, cls: type, path: tuple[Any, ...], depth: int) -> None:
        """Take the functions of a class that run, and the attributes that they name."""
        metaclass: type = type(cls)
        if isinstance(cls, ABCMeta) and not is_constant(cls.__module__) and not self._registered:
            self._registered.append(get_cache_token())  # another one once a class is registered
            self.marks += self._registered
        if not is_constant(cls.__module__) and not is_c_class(cls):
            self._parts.append((cls, tuple(parts_of(cls))))
        for base in (*cls.__mro__, *metaclass.__mro__):
            if is_constant(base.__module__) or base in self.classes or is_c_class(base):
                continue
            self.classes.add(base)
            content = vars(base)
            self._keys.append((content, tuple(content)))
            names = []
            for name, value in content.items():
                codes = list(functions_in(value))
                if any(self._ran(code) for code in codes) or (
                    self._wants(name) and (codes or _is_data(name, value))
                ):
                    names.append(name)
            for name, value in self._look(content, tuple(names)):
                if isinstance(value, MemberDescriptorType | GetSetDescriptorType):
                    continue
                self.marks.append(name)
                if isinstance(value, functools.cached_property):
                    value = value.func
                held, self._is_ours = self._is_ours, self._is_ours or is_generated(base, name)
                self._note(value, (*path, name))
                self._take(value, (*path, name), depth + 1)
                self._is_ours = held

    def _take_package(self, module: ModuleType, path: tuple[Any, ...], depth: int) -> None:
        """Take the global variables of a module that code names as its attributes."""
        name = module.__name__
        self.marks.append(name)
        draws = self._scope is not None and "random" in _all_names(self._scope)
        if name.startswith("numpy.random") or (name == "numpy" and draws):
            self._refuse(module, (*path, "random"))
            return
        if name == "importlib":  # whose modules are those that it is asked for
            return
        if is_constant(name):
            self._take_constants(module, path, depth)
            return
        content = vars(module)
        names = self._names if self._scope is None else self._scope.names
        if self._scope is not None and self._scope.everything:
            self._read = None
        self._keys.append((content, tuple(content)))  # a name that is not there may come
        for name, value in self._look(content, tuple([n for n in content if n in names])):
            self.marks.append(name)
            self._note(value, (*path, name))
            self._take(value, (*path, name), depth + 1)

    def _take_constants(self, module: ModuleType, path: tuple[Any, ...], depth: int) -> None:
        """Take what code names of a package that does not change, in case that someone changes it."""
        if self._scope is None:
            return
        content = vars(module)
        for name, value in self._look(content, self._users_names(content)):
            if isinstance(value, ModuleType):
                self._take(value, (*path, name), depth + 1)
            else:
                self.marks += (name, id(value))
                self._keep.append(value)

    def _take_replaced(self, kind: type, names: tuple[str, ...]) -> None:
        """Take methods of torch's own classes, in the place of which someone may put others."""
        for name in names:
            method = getattr(kind, name, None)
            if (kind, name) not in self._methods and method is getattr(kind, name, None):
                self._methods[kind, name] = method
                self.marks += (name, id(method))

    def _users_names(self, content: Any) -> tuple[str, ...]:
        """The names in a dictionary that are in the code of the step."""
        assert self._scope is not None
        if self._wanted is None:
            parts = {part for code in self._scope.codes for part in codes_in(code)}
            names = {(part, name) for part in parts for name in part.co_names}
            self._wanted = sorted({name for _, name in names - self._scope.unread})
        return tuple([name for name in self._wanted if name in content])

    def _take_function(self, function: FunctionType, path: tuple[Any, ...], depth: int) -> None:
        code = function.__code__
        self.marks.append(code)
        # Not its __module__, which functools.wraps takes from another function.
        module = function.__globals__.get("__name__")
        is_users = not is_constant(module)
        if not is_users:
            self.marks.append(id(function))
            self._keep.append(function)
            if function.__closure__ is None:
                return
        before = self._is_ours
        self._is_ours = _is_cellos(module) or module == "collections"  # written by namedtuple
        if is_users:
            self.dicts.append((function.__dict__, Path((*path, "__dict__"))))
            self._take_names(function.__dict__, path, depth, FunctionType)
        if not is_users or self._ran(code):
            self._take_what_it_reads(function, path, depth)
        self._is_ours = before

    def _take_what_it_reads(
        self, function: FunctionType, path: tuple[Any, ...], depth: int
    ) -> None:
        code = function.__code__
        self.codes |= codes_in(code)
        self._names |= names_in(code)
        self._parts.append((function, tuple(parts_of(function))))
        for holder in ("__defaults__", "__kwdefaults__"):
            value, before = getattr(function, holder), self._is_ours
            self._is_ours = before or are_plain_defaults(value)  # which are a part of the code
            self._take(value, (*path, holder), depth + 1)
            self._is_ours = before
        for index, cell in enumerate(function.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            self.things.append((Slot(cell, None, content), Path((*path, code.co_freevars[index]))))
            place = (*path, "__closure__", index, "cell_contents")
            self._note(content, place)
            self._take(content, place, depth + 1)
        if is_constant(function.__globals__.get("__name__")):
            return
        unread = frozenset() if self._scope is None else self._scope.unread
        read, written = globals_in(code, unread)
        if written:
            self.globals_set.append((function.__globals__, written))
        found = self._look(function.__globals__, read)
        for name, value in found:
            self.marks.append(name)
            self._note(value, (*path, "__globals__", name))
            self._take(value, (*path, "__globals__", name), depth + 1)
        others = set(read).difference(name for name, _ in found)
        for name, value in self._look(vars(builtins), tuple(sorted(others))):
            self.marks += (name, id(value))
            self._keep.append(value)
        for name, level in imports_in(code, unread):
            package = function.__globals__.get("__package__") or ""
            full = name
            if level:
                root = package.rsplit(".", level - 1)[0]
                full = f"{root}.{name}" if name else root
            modules = dict(self._look(sys.modules, (full.partition(".")[0], full)))
            if modules.get(full) is None:
                self._refuse(function, path)
            else:
                for place, module in modules.items():
                    self._take(module, (*path, IMPORTED, place), depth + 1)

    def _number(self, value: Any) -> int:
        """How many other things were found before this one."""
        number = self._seen.setdefault(id(value), len(self._seen))
        if number == len(self._seen) - 1:
            self._keep.append(value)
        return number

    def drop_kept(self) -> None:
        """Let go of what only a walk under way needs."""
        self._keep, self._seen = [], {}


def _is_data(name: str, value: Any) -> bool:
    """Whether an attribute of a class is its author's, and not one that Python keeps there."""
    if name in ("_abc_impl", "__doc__", "__module__", "__qualname__", "__firstlineno__"):
        return False
    return name[:2] != "__" or isinstance(value, bool | int | float | str)


def _all_names(scope: Scope) -> set[str]:
    """Every name in the code of a scope that it comes to."""
    return {name for code in scope.codes for name in names_in(code, scope.unread)}


def _is_cellos(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "cello"
