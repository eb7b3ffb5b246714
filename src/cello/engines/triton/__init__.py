"""Programs on a GPU, as Triton kernels."""

from cello.engines.triton.engine import Triton

__all__ = ["Triton"]
