"""From a cell to a program: tracing, lowering, differentiation, and layout in memory."""

from cello.compile.compiled import Program, Run, compiled
from cello.compile.derive import Wanted
from cello.compile.reasons import CannotCompile

__all__ = ["CannotCompile", "Program", "Run", "Wanted", "compiled"]
