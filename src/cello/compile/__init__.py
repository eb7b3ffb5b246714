"""From a cell to a program: tracing, lowering, differentiation, and the loops that engines run."""

from cello.compile.cache import compiled, other_program, watched
from cello.compile.derive import Used, Wanted
from cello.compile.links import Links
from cello.compile.loops import Loops
from cello.compile.pairs import as_real
from cello.compile.precision import Precision, for_storage
from cello.compile.program import Program, autocast_dtype, loop_dtype
from cello.compile.reasons import CannotCompile

__all__ = [
    "CannotCompile",
    "Links",
    "Loops",
    "Precision",
    "Program",
    "Used",
    "Wanted",
    "as_real",
    "autocast_dtype",
    "compiled",
    "for_storage",
    "loop_dtype",
    "other_program",
    "watched",
]
