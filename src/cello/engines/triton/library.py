"""Whether Triton can be used here, and if not, why."""

from __future__ import annotations

import os
from functools import cache


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
