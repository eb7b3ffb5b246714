"""From a cell to a program: tracing, lowering, differentiation, and layout in memory."""

from cello.compile.derive import Wanted
from cello.compile.program import Program, Run, autocast_dtype, compiled
from cello.compile.reasons import CannotCompile

__all__ = ["CannotCompile", "Program", "Run", "Wanted", "autocast_dtype", "compiled"]
