"""Fourier transforms of a few numbers, as products with matrices of waves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cello.compile.constant import CONSTANT
from cello.compile.node import Op
from cello.compile.real_nodes import Real, Writer, aten
from cello.foreign.memoryless import Meta

MOST_WAVES = 1 << 14
"""The numbers of a matrix; of more, torch's own transform takes less time."""


@dataclass(frozen=True)
class Waves:
    """The matrix of a transform: ``weight(n) exp(sign 2 pi i n k / period)``, for n in and k out.

    Attributes:
        count: how many numbers go in.
        found: how many come out.
        period: how many steps a turn has.
        sign: -1 for a transform, 1 for its inverse.
        is_half: whether what goes in stands for its conjugates, too, as the half of a real signal's waves.
    """

    count: int
    found: int
    period: int
    sign: int
    is_half: bool = False

    def matrices(self, writer: Writer, dtype: torch.dtype) -> tuple[Real, Real]:
        """The real and the imaginary part."""
        re, im = (self._matrix(writer, dtype, function) for function in (math.cos, math.sin))
        return re, im

    def _matrix(
        self, writer: Writer, dtype: torch.dtype, function: Callable[[float], float]
    ) -> Real:
        numbers = tuple(
            # All but the first and, of an even period, the one in the middle have a conjugate.
            (2.0 if self.is_half and n and 2 * n != self.period else 1.0)
            * function(math.tau * (self.sign * n * k % self.period) / self.period)
            for n in range(self.count)
            for k in range(self.found)
        )
        return writer.real(CONSTANT, numbers, (self.count, self.found), dtype, Meta)


def last_axis(x: Real, dim: int) -> tuple[Real, tuple[int, ...]]:
    """A tensor as rows of what lies along an axis, and its shape with this axis as the last one."""
    writer, node = x.writer, x.node
    turned = writer.write(aten.transpose.int, node, dim, -1)
    whole = writer.write(aten.clone.default, turned, memory_format=torch.contiguous_format)
    rows = [math.prod(whole.shape[:-1]), whole.shape[-1]]
    return writer.real(aten.view.default, whole, rows), whole.shape


def as_before(x: Real, dim: int, shape: tuple[int, ...]) -> Real:
    """Rows in the shape from which :func:`last_axis` has made them, with other numbers along the axis."""
    op: Op = aten.view.default
    whole = x.writer.write(op, x.node, [*shape[:-1], x.node.shape[-1]])
    return x.writer.real(aten.transpose.int, whole, dim, -1)
