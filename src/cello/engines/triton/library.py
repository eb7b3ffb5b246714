"""Whether Triton can be used here, and if not, why; and how text becomes kernels."""

from __future__ import annotations

import hashlib
import linecache
import os
import weakref
from functools import cache
from types import ModuleType
from typing import Any

import torch


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def why_missing() -> str | None:
    """Say what is missing for kernels to be compiled; ``None`` if nothing is."""
    import shutil
    import sysconfig
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("triton") is None:
        return "Triton is not installed; torch's builds for GPUs bring it on Linux"
    if is_interpreted():
        return None
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))):
        return "Triton needs a C compiler for its launcher, and there is none"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Triton needs Python's headers (Python.h) for its launcher"
    return None


def build(text: str) -> ModuleType:
    """Make a module of the text of kernels, which Triton compiles when they are launched."""
    import triton
    import triton.language as tl

    from cello.engines.triton import functions

    # Triton reads the text of a function from its file.
    name = f"<cello-{hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    module = ModuleType(name)
    weakref.finalize(module, linecache.cache.pop, name, None)
    vars(module).update(triton=triton, tl=tl, F=functions)
    exec(compile(text, name, "exec"), vars(module))
    return module


def in_triton(dtype: torch.dtype) -> Any:
    """A dtype that loops compute in, as Triton's."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]
