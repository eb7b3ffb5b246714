"""Look inside a layer: its shapes, its engines, and every value of every step."""

from cello.inspect.explain import Explanation, LayerPlan, draw, explain
from cello.inspect.record import record
from cello.inspect.recording import Recording, Recordings, Values
from cello.inspect.shapes import Shapes

__all__ = [
    "Explanation", "LayerPlan", "Recording", "Recordings", "Shapes", "Values", "draw", "explain",
    "record",
]  # fmt: skip
