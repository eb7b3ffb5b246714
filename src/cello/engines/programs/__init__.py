"""What all engines share that run programs: cells as loops over instructions (:mod:`cello.compile`)."""

from cello.engines.programs.engine import ProgramEngine, why_no_program
from cello.engines.programs.kernel import Kernel

__all__ = ["Kernel", "ProgramEngine", "why_no_program"]
