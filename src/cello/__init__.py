"""Cello: write the cell, Cello runs the loop.

Recurrent networks with the interface of ``torch.nn`` whose cell may be any PyTorch code.
"""

from cello import nn
from cello.cells import Cell, CellError, PiecewiseLinear
from cello.engines import EngineError, engine
from cello.inspect import Explanation, Recording, draw, explain, record
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
    "record",
]
