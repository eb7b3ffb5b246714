"""The extension module, where it was built."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

from cello.compile.instructions import OPERANDS, REDUCTIONS
from cello.engines.native.place import Space

_ABSENT = "it does not build on Windows yet" if os.name == "nt" else "there was no C++ compiler"

_warned = False


def library() -> ModuleType | None:
    """Return the extension module, or ``None`` (and say so once) where it was not built.

    Raises:
        ValueError: the environment variable ``CELLO_ISA`` names an instruction set that there is not.
    """
    global _warned
    module, reason = _load()
    if module is None and not _warned:
        _warned = True
        warnings.warn(
            f"cello runs without its native engine, which was not built ({reason}): cells that torch has "
            "no kernel for run in a Python loop. Cello's wheels for Linux and macOS have the engine, and "
            "so has an installation from its sources where there is a C++ compiler.",
            stacklevel=2,
        )
    return module


def why_missing() -> str:
    """Return why there is no extension module."""
    return _load()[1] or _ABSENT


def multiplies_bfloat16() -> bool:
    """Whether the engine, which is there, multiplies bfloat16 numbers as they are on this processor."""
    module, _ = _load()
    return module is not None and bool(module.multiplies_bfloat16())


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    try:
        from cello.engines.native import _native
    except ImportError as error:
        is_there = find_spec("cello.engines.native._native") is not None
        return None, str(error) if is_there else _ABSENT
    if not hasattr(_native, "Schedule") or not _knows_all(numbers_of(_native)):
        return None, "it was built from other sources than these"
    _native.instruction_sets()
    return _native, ""


class Numbers(NamedTuple):
    """By which numbers the extension module knows what has a name in Python.

    Attributes:
        operations: those of the instruction set, and ``accumulate``, which adds a block of each row to a
            sum over all rows.
        spaces: the kinds of memory.
    """

    operations: Mapping[str, int]
    spaces: Mapping[str, int]


@lru_cache(maxsize=1)
def numbers_of(module: ModuleType) -> Numbers:
    """Return the numbers that an extension module goes by."""
    names = module.operations(), module.spaces()
    return Numbers(*({name: number for number, name in enumerate(group)} for group in names))


def _knows_all(numbers: Numbers) -> bool:
    operations = {*OPERANDS, *REDUCTIONS, "accumulate"}
    spaces = {space.value for space in Space}
    return operations <= numbers.operations.keys() and spaces <= numbers.spaces.keys()
