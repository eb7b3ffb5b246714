"""Cello: write the cell, Cello runs the loop.

Recurrent networks with the interface of ``torch.nn`` whose cell may be any PyTorch code.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING


def _is_command() -> bool:
    """Return whether this process is the command ``cello``; its help is shown without torch."""
    program = Path(sys.argv[0]).name if getattr(sys, "argv", None) else ""
    return program in ("cello", "cello.exe") or (
        program == "-m" and "cello.cli.main" in sys.orig_argv
    )


if not TYPE_CHECKING and _is_command():  # which imports what it needs, from where it is

    def __getattr__(name: str) -> object:
        """Load what is asked for, as in a process of one's own."""
        from importlib import import_module

        for package in ("cells", "engines", "inspect", "nn", "onnx") if name in __all__ else ():
            module = import_module(f"cello.{package}")
            if name in (package, *module.__all__):
                return module if name == package else getattr(module, name)
        raise AttributeError(f"module 'cello' has no attribute {name!r}")

else:
    from cello import nn, onnx
    from cello.cells import Cell, CellError, PiecewiseLinear
    from cello.engines import EngineError, engine
    from cello.inspect import (
        Explanation,
        Recording,
        draw,
        explain,
        record,
    )
    from cello.nn import Recurrent

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "CellError",
    "EngineError",
    "Explanation",
    "PiecewiseLinear",
    "Recording",
    "Recurrent",
    "draw",
    "engine",
    "explain",
    "nn",
    "onnx",
    "record",
]
