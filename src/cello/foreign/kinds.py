"""The kinds of Python objects that a walk over objects has to tell apart."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
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
from torch import nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from cello.foreign.scope import words

KEPT = "_cello_kept"
"""The attribute of a cell in which is kept what was found for it."""

OWN = frozenset({*vars(nn.Module()), KEPT})
"""The attributes of every module, which are read by name where they count."""


def computes_weight(hook: Any) -> bool:
    """Whether a hook is one of torch's own that compute a weight: old-style weight and spectral norm."""
    return type(hook).__module__.startswith("torch.nn.utils.")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

PLAIN = (type(None), bool, int, str, bytes, range, type(...), type(NotImplemented))


def are_settings(value: Any) -> bool:
    """Whether a value is a tuple or list of a few numbers and texts, such as the sizes of a kernel."""
    is_short = type(value) in (tuple, list) and len(value) <= 64
    return is_short and all(type(n) in (bool, int, float, str) for n in value)


def is_generated(kind: type, name: str) -> bool:
    """Whether something in a class was written by ``namedtuple``, so that it is as constant as code."""
    fields = vars(kind).get("_fields")
    return (
        issubclass(kind, tuple) and type(fields) is tuple and (name in GENERATED or name in fields)
    )


def are_plain_defaults(value: tuple[Any, ...] | dict[str, Any] | None) -> bool:
    """Whether defaults of a function are such as stand in its source: ``None``, numbers, texts."""
    values = value.values() if isinstance(value, dict) else value or ()
    return all(one is None or type(one) in (bool, int, float, str) for one in values)


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for any numbers, since torch.compile or torch.export traces what they do."""
    return isinstance(tensor, FakeTensor | FunctionalTensor)


GENERATED = words("_fields _field_defaults _make _replace _asdict __repr__ __getnewargs__ __new__")
IMMUTABLE = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
VALUES = words(
    "datetime.date datetime.time datetime.datetime datetime.timedelta decimal.Decimal "
    "fractions.Fraction pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath "
    "re.Pattern uuid.UUID pathlib._local.PosixPath"
)
"""Classes of immutable things that are compared by value."""


CODE = (
    FunctionType, MethodType, BuiltinFunctionType, ModuleType, type, property, staticmethod,
    classmethod, functools.partial, nn.Module, MemberDescriptorType, MethodDescriptorType,
)  # fmt: skip
"""What runs, or holds what runs; to be looked into by itself."""

BUILT_IN = frozenset(
    (tuple, list, dict, deque, set, frozenset, MappingProxyType, property, staticmethod, classmethod)
) | {slice, bytearray, weakref.ref}  # fmt: skip


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an instance, without running code of its class."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def slots_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The slots of the instances of a class: names and what reads them."""
    for base in kind.__mro__:
        if not is_c_class(base):
            for name, value in vars(base).items():
                if isinstance(value, MemberDescriptorType):
                    yield name, value


def is_c_class(cls: type) -> bool:
    """Whether a class is written below Python: it then has functions from there that are its own."""
    if not cls.__flags__ & (1 << 9):  # Py_TPFLAGS_HEAPTYPE
        return True
    return any(
        getattr(value, "__objclass__", None) is cls
        for name, value in vars(cls).items()
        if name not in ("__dict__", "__weakref__") and isinstance(value, _BELOW_PYTHON)
    )


_BELOW_PYTHON = (
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)


def is_plain_class(kind: type) -> bool:
    """Whether instances are made of attributes alone: every base but `object` is written in Python."""
    return all(
        base is object or base in _PURE_BASES or not is_c_class(base) for base in kind.__mro__
    )


_PURE_BASES = (
    SimpleNamespace,
    tuple,
    list,
    dict,
    set,
    frozenset,
    int,
    float,
    complex,
    str,
    bytes,
    deque,
)


def is_empty(kind: type) -> bool:
    """Whether a class says which slots its instances have, maybe none."""
    return "__slots__" in vars(kind)


def is_silent(value: Any) -> bool:
    """Whether a step learns nothing from an object by itself: a lock, a logger, an operation of torch.

    What calls one is seen to call it.
    """
    kind = type(value)
    if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    module = kind.__module__.partition(".")[0]
    return module in ("logging", "loguru") or (
        module == "_thread" and "lock" in kind.__name__.lower()
    )


def is_array(value: Any) -> bool:
    """Whether it is an array of numpy or of the standard library, or a number of numpy's."""
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    return (module == "numpy" and hasattr(kind, "tobytes")) or (
        kind.__module__ == "array" and kind.__name__ == "array"
    )


def is_ufunc(value: Any) -> bool:
    """Whether it is a function or a dtype of numpy, which never changes."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "numpy" and kind.__name__ in ("ufunc", "dtype")


def functions_in(value: Any) -> Iterator[CodeType]:
    """The code of what a class attribute runs when it is called, or read."""
    if isinstance(value, FunctionType):
        yield value.__code__
        inner = getattr(value, "__wrapped__", None)
        if isinstance(inner, FunctionType):
            yield inner.__code__
    elif isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from functions_in(part)
    elif isinstance(value, staticmethod | classmethod):
        yield from functions_in(value.__func__)
    elif isinstance(value, functools.cached_property | functools.partial | functools.partialmethod):
        yield from functions_in(value.func)


def parts_of(whole: FunctionType | functools.partial[Any] | type) -> Iterator[Any]:
    """What a function is, beside the global variables that it reads; a partial one; where a class looks."""
    if isinstance(whole, functools.partial):
        yield from (whole.func, whole.args, whole.keywords)
        return
    if isinstance(whole, type):
        yield whole.__mro__
        return
    yield whole.__code__
    yield whole.__defaults__
    yield whole.__kwdefaults__
    for cell in whole.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            yield None
