"""What ran when a step of a cell ran: which code, with which names, and which functions below Python."""

from __future__ import annotations

import builtins
import dis
import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


CONSTANT = words(
    "torch numpy builtins math cmath typing typing_extensions abc _collections_abc "
    "collections functools operator itertools contextlib enum types numbers copy copyreg "
    "dataclasses re string weakref fractions decimal einops einx"
)
"""Packages whose functions, classes and settings are taken not to change while a program runs."""


def is_constant(module: str | None) -> bool:
    """Whether the functions and classes of a module are taken not to change, or are Cello's own."""
    package = module.partition(".")[0] if isinstance(module, str) else ""
    return package in CONSTANT or package == "cello"


@dataclass(frozen=True)
class Scope:
    """What the code of a step can read, as far as that can be told from the code.

    Attributes:
        codes: the code that ran, Cello's and that of constant packages apart.
        names: every name and text in code that ran, of any package but Cello: an attribute with another
            name cannot have been read.
        everything: whether names are computed at run time, so that any attribute may have been read.
        values: the paths of tensors whose numbers were read in Python.
        sets: the paths of attributes that the step sets before it reads them.
        unread: names in that code that it did not come to, each with the code.
    """

    codes: frozenset[CodeType]
    names: frozenset[str]
    everything: bool = False
    values: frozenset[tuple[Any, ...]] = frozenset()
    sets: frozenset[tuple[Any, ...]] = frozenset()
    unread: frozenset[tuple[CodeType, str]] = frozenset()


class Watch:
    """Watches a step run; use as a context manager around it.

    Attributes:
        refusal: why what ran cannot stand for every later run, if it cannot: what it called, and where.
        values: the paths of tensors whose numbers were read in Python; the recorder adds them.
        sets: the paths of attributes that the step sets before it reads them; the trace adds them.
        calls_operators: whether an operator of torch was called by its own name, which may ask anything.
        unread: names that the step did not come to, each with its code; the trace adds them, if need be.
        called_in: where each function was called first, by code outside of the standard library.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None
        self.values: set[tuple[Any, ...]] = set()
        self.sets: set[tuple[Any, ...]] = set()
        self.calls_operators = False
        self.unread: frozenset[tuple[CodeType, str]] = frozenset()
        self.called_in: dict[CodeType, str] = {}
        self._codes: dict[int, tuple[CodeType, bool]] = {}
        self._everything = False
        self._kinds: dict[str, int] = {}
        self._before: Any = None
        self._collects = False
        self._has_autocast = torch._C._is_any_autocast_enabled()

    def __enter__(self) -> Watch:
        self._before = sys.getprofile()
        # One profiler of Python's own cannot be set again as a function can; it pauses.
        if self._before is not None and hasattr(self._before, "disable"):
            self._before.disable()
        # What a collection of garbage runs in between is no part of the step.
        self._collects = gc.isenabled()
        gc.disable()
        self._import = builtins.__import__
        builtins.__import__ = self._import_unseen
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        builtins.__import__ = self._import
        if self._collects:
            gc.enable()
        if self._before is not None:
            if hasattr(self._before, "enable"):
                self._before.enable()
            else:
                sys.setprofile(self._before)

    def _import_unseen(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Import a module for the first time, which takes several times as long while it is watched."""
        profiler = sys.getprofile()
        if name in sys.modules or profiler is None:
            return self._import(name, *args, **kwargs)
        sys.setprofile(None)
        try:
            return self._import(name, *args, **kwargs)
        finally:
            sys.setprofile(profiler)

    def become(self, other: Watch) -> None:
        """Know what another one has seen, and nothing else."""
        vars(self).update(vars(other))

    def scope(self) -> Scope:
        """Return what ran so far."""
        names: set[str] = set()
        for code, is_users in self._codes.values():
            names |= names_in(code, self.unread)
            # A computed name may be read: by the user's code, or for it by a module such as dataclasses.
            if (is_users or _is_standard(code)) and reads_by_name(code):
                self._everything = True
        codes = frozenset([code for code, is_users in self._codes.values() if is_users])
        values, sets = frozenset(self.values), frozenset(self.sets)
        return Scope(codes, frozenset(names), self._everything, values, sets, self.unread)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            kind = self._kind(frame)
            if kind == _USERS and (_is_machinery(frame.f_back) or _is_import(frame)):
                return
            if kind != _CELLO:
                code = frame.f_code
                if _reads_outside(frame) and self._kind(frame.f_back) == _USERS:
                    self.refusal = self.refusal or f"{frame.f_globals['__name__']}.{code.co_name}"
                if id(code) not in self._codes:
                    self._codes[id(code)] = code, kind == _USERS
                    self.called_in[code] = _place_of_user(frame.f_back)
                if kind == _TORCH:
                    self._see_torch(frame)
        elif event == "c_call" and self._kind(frame) == _USERS and not _is_import(frame):
            if getattr(arg, "__name__", "") in _READS_BY_NAME:
                self._everything = True
            if self.refusal is None and not (_is_known(arg) or self._is_off(arg)):
                self.refusal = f"{_named(arg)} ({place(frame.f_code, frame.f_lineno)})"

    def _is_off(self, function: Any) -> bool:
        """Whether a function asks for a mode that is off, and with which no program made now is run."""
        return not self._has_autocast and getattr(function, "__name__", "") in _OF_AUTOCAST

    def _see_torch(self, frame: FrameType) -> None:
        """A function of torch's that is written in Python, called by the cell itself."""
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if (module, name) == ("torch._ops", "__call__") and self._kind(frame.f_back) == _USERS:
            self.calls_operators = True
            if _acts_on_memory(frame.f_locals.get("self")):
                self.refusal = self.refusal or f"{frame.f_locals['self']} by its own name"
        if self.refusal is not None or not _is_about_state(module, name):
            return
        caller = frame.f_back
        # torch wraps some of its functions, more of them once its compiler is imported.
        while caller is not None and caller.f_globals.get("__name__", "").startswith(_WRAPPERS):
            caller = caller.f_back
        if caller is not None and self._kind(caller) == _USERS:
            called = f"{module}.{name}"
            self.refusal = f"{called} ({place(caller.f_code, caller.f_lineno)})"

    def _kind(self, frame: FrameType | None) -> int:
        while frame is not None:
            name = frame.f_globals.get("__name__") or ""
            known = self._kinds.get(name)
            if known is None:
                known = self._kinds[name] = _kind_of(name.partition(".")[0])
            if known != _STANDARD:
                return known
            frame = frame.f_back  # the standard library runs for whoever called it
            if frame is not None and frame.f_globals.get("__name__", "").startswith("torch"):
                return _LIBRARY
        return _USERS


def _acts_on_memory(operator: Any) -> bool:
    """Whether an operator of torch writes in place, or makes views."""
    if isinstance(operator, torch._ops.OpOverloadPacket):
        operator = getattr(operator, operator.overloads()[0])
    return isinstance(operator, torch._ops.OpOverload) and (
        operator._schema.is_mutable or operator.is_view
    )


def _reads_outside(frame: FrameType) -> bool:
    """Whether it is a function, written in Python, that reads files or finds modules by their names."""
    names = _READS_OUTSIDE.get((frame.f_globals.get("__name__") or "").partition(".")[0])
    return names is not None and frame.f_code.co_name in names


_READS_OUTSIDE = {
    "importlib": words("import_module reload"),
    "numpy": words(
        "load loadtxt genfromtxt fromregex save savez savez_compressed savetxt __new__ open"
    ),
}


def _kind_of(package: str) -> int:
    if package in ("cello", "torch"):
        return _CELLO if package == "cello" else _TORCH
    # A named tuple is made by a function that collections writes, in a module of its own.
    if package in CONSTANT or package.startswith("namedtuple_"):
        return _LIBRARY
    return _STANDARD if package in sys.stdlib_module_names and package != "__main__" else _USERS


_CELLO, _TORCH, _LIBRARY, _STANDARD, _USERS = range(5)


def _is_import(frame: FrameType | None) -> bool:
    """Whether a frame belongs to the first import of a module, which no later step repeats."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "importlib._bootstrap":
            return True
        if name == "cello.compile.trace":
            return False
        frame = frame.f_back
    return False


def _is_machinery(frame: FrameType | None) -> bool:
    """Whether it is Cello's own trace that calls, for itself, something that was put in torch's place."""
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    is_ours = name.startswith("cello.compile.") or name == "cello.foreign.memoryless"
    return is_ours and frame is not None and frame.f_code.co_name not in _CALLS_THE_USERS


_CALLS_THE_USERS = words("step length _forward _backward")
"""Functions of the trace that call the step, a `len`, and the methods of a custom function."""


def place(code: CodeType, line: int) -> str:
    """``file.py:12``: a line of the file that code comes from."""
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{line}"


def _place_of_user(frame: FrameType | None) -> str:
    """The line that runs in the innermost frame outside of the standard library."""
    while frame is not None:
        if _kind_of((frame.f_globals.get("__name__") or "").partition(".")[0]) != _STANDARD:
            return place(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""


def _is_standard(code: CodeType) -> bool:
    """Whether code comes from one of the modules that read the attributes of what they are given."""
    return code.co_filename.endswith(("/dataclasses.py", "/copy.py", "/pprint.py", "/operator.py"))


# Functions below Python

_READS_BY_NAME = words(
    "getattr hasattr setattr delattr format attrgetter methodcaller format_map __dict__ vars "
    "__getattribute__ asdict astuple"
)
"""Functions that are given the name of what they read, and may be given a computed one."""

_IMPURE = words(
    "print input open exec eval compile globals locals vars dir id hash breakpoint __import__ "
    "import_module"
)
"""Built-in functions that read or change more than their arguments."""

_PURE_MODULES = words(
    "builtins math cmath _operator itertools _functools _collections _abc _bisect _heapq "
    "_struct _decimal _sre re"
)

_PURE_TYPES = (str, bytes, bytearray, int, float, complex, tuple, list, dict, set, frozenset, range)

_TENSOR_IDENTITY = words(
    "data_ptr storage untyped_storage storage_offset element_size share_memory_ is_shared "
    "register_hook register_post_accumulate_grad_hook retain_grad backward requires_grad_ "
    "_is_view"
)
"""Methods of a tensor that say or change something of it that is not its numbers."""

_TORCH_STATE = (
    "torch.random",
    "torch.cuda",
    "torch.backends",
    "torch.utils.data",
    "torch.distributed",
    "torch.serialization",
    "torch.hub",
    "torch.autograd",
    "torch.func",
)
"""Modules of torch whose functions read or change more than their arguments."""

_WRAPPERS = (
    "torch._dynamo",
    "torch._compile",
    "torch.utils._contextlib",
    "contextlib",
    "functools",
)

_STATE_OF_TORCH_ITSELF = ("set_", "get_", "use_", "are_", "is_deterministic", "is_warn", "seed")
"""Beginnings of the names of such functions in torch itself."""


def _is_about_state(module: str, name: str) -> bool:
    """Whether a function of torch's, written in Python, reads or changes more than its arguments."""
    if module in ("torch.autograd.grad_mode", "torch.autograd.function") or name in _OF_MACHINE:
        return False
    if module == "torch":
        return name.startswith(_STATE_OF_TORCH_ITSELF) and name not in _TORCH_CONSTANT
    return any(module == state or module.startswith(f"{state}.") for state in _TORCH_STATE)


_OF_MACHINE = words("is_available is_built device_count")
"""Functions that answer what the machine has."""

_OPERATIONS = words(
    "torch._C._nn torch._C._linalg torch._C._fft torch._C._special torch._C._nested"
)
"""Modules of torch's operations that are written below Python."""

_TORCH_CONSTANT = words("get_default_dtype is_storage")
"""Functions of torch's that answer what is part of the key, or what is recorded as it is asked."""


_OF_AUTOCAST = words("is_autocast_enabled is_autocast_cpu_enabled")


def _is_known(function: Any) -> bool:
    """Whether a function below Python gives the same for the same arguments, and changes nothing else."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or ""
    if isinstance(owner, Tensor):
        return name not in _TENSOR_IDENTITY
    if isinstance(owner, torch.Size) and name == "numel":
        return False  # it may count the rows of a batch
    if isinstance(owner, _PURE_TYPES) or any(owner is pure for pure in _PURE_TYPES):
        return True
    if str(getattr(function, "__qualname__", "")).startswith("_VariableFunctionsClass."):
        return True
    owner_module = getattr(owner, "__name__", "") if isinstance(owner, type(sys)) else ""
    if owner_module in _OPERATIONS or module in _OPERATIONS:
        return True
    if module.startswith("torch") or owner_module.startswith("torch"):
        return name in _TORCH_CONSTANT or (isinstance(owner, type) and issubclass(owner, Tensor))
    root = (module or owner_module).partition(".")[0]
    if root in _PURE_MODULES:
        return name not in _IMPURE
    if isinstance(owner, type):
        return owner.__module__.partition(".")[0] in _PURE_MODULES
    if owner is not None and type(owner).__module__.partition(".")[0] in ("collections", "re"):
        return True
    if owner is not None and type(owner) in (type({}.keys()), type({}.values()), type({}.items())):
        return True
    if "numpy" in sys.modules and _is_of_numpy(function, owner, module):
        return True
    return owner is None and not module and hasattr(torch, name)


def _is_of_numpy(function: Any, owner: Any, module: str) -> bool:
    import numpy

    name = getattr(function, "__name__", "")
    if name in ("tofile", "dump") or (name.startswith("from") and owner is None):
        return False
    if isinstance(owner, numpy.ndarray | numpy.generic | numpy.ufunc | numpy.dtype):
        return True
    return module.startswith("numpy") and not module.startswith("numpy.random")


def _named(function: Any) -> str:
    """What a function is called by whoever calls it."""
    name = str(getattr(function, "__qualname__", None) or getattr(function, "__name__", function))
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type(sys)):
        return name if owner.__name__ == "builtins" else f"{owner.__name__}.{name}"
    return name


# Code


@lru_cache(maxsize=1 << 16)
def codes_in(code: CodeType) -> frozenset[CodeType]:
    """A code object, and those of the functions and classes that it defines."""
    found = {code}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= codes_in(constant)
    return frozenset(found)


@lru_cache(maxsize=1 << 16)
def reads_by_name(code: CodeType) -> bool:
    """Whether code may read attributes by names that are not in it."""
    return any(map(_may_read_by_name, codes_in(code)))


def _may_read_by_name(code: CodeType) -> bool:
    if not _READS_BY_NAME.isdisjoint({*code.co_names} - {"format"}):
        return True
    before = None
    for step in dis.get_instructions(code):
        if step.opname == "MATCH_CLASS":
            return True
        is_format = step.argval == "format" and step.opname.startswith("LOAD")
        text = before.argval if before is not None and before.opname == "LOAD_CONST" else None
        if is_format and not _is_plain_format(text):
            return True
        before = step
    return False


def _is_plain_format(text: object) -> bool:
    """Whether a text has no fields like ``{0.name}`` or ``{0[name]}``, which read what they name."""
    if not isinstance(text, str):
        return False
    try:
        fields = [(field or "") + (spec or "") for _, field, spec, _ in Formatter().parse(text)]
    except ValueError:
        return False
    return not any(set(field) & set(".[{") for field in fields)


@lru_cache(maxsize=1 << 16)
def names_in(
    code: CodeType, unread: frozenset[tuple[CodeType, str]] = frozenset()
) -> frozenset[str]:
    """Every name in a code object that may be that of an attribute, and every text.

    Args:
        code: the code.
        unread: names that are left out, each with its code.
    """
    return frozenset(_names(code, unread))


def _names(code: CodeType, unread: frozenset[tuple[CodeType, str]]) -> Iterator[str]:
    for part in codes_in(code):
        yield from (name for name in part.co_names if (part, name) not in unread)
        yield from _texts(part.co_consts)


def _texts(constants: Any) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            if len(constant) < 64:
                yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _texts(constant)


@lru_cache(maxsize=1 << 16)
def globals_in(
    code: CodeType, unread: frozenset[tuple[CodeType, str]] = frozenset()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the global variables of a code object, and of those among them that it sets.

    Args:
        code: the code.
        unread: names that are left out, each with its code.
    """
    read: dict[str, None] = {}
    written: dict[str, None] = {}
    for part in codes_in(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname in _GLOBALS and (part, instruction.argval) not in unread:
                read[instruction.argval] = None
                if instruction.opname in _WRITES:
                    written[instruction.argval] = None
    return tuple(read), tuple(written)


_WRITES = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL"))
_GLOBALS = _WRITES | {"LOAD_GLOBAL", "LOAD_NAME"}


@lru_cache(maxsize=1 << 16)
def imports_in(
    code: CodeType, unread: frozenset[tuple[CodeType, str]] = frozenset()
) -> tuple[tuple[str, int], ...]:
    """The modules that a code object imports as it runs: name and level.

    Args:
        code: the code.
        unread: names that are left out, each with its code.
    """
    found = []
    for part in codes_in(code):
        level: Any = 0
        before: list[Any] = []
        for instruction in dis.get_instructions(part):
            name = instruction.argval
            if instruction.opname == "IMPORT_NAME" and (part, name) not in unread:
                level = next((v for v in before[-2:] if type(v) is int), 0)
                found.append((str(name), int(level)))
            before.append(name)
    return tuple(found)
