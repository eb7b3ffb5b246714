"""Matrix products of complex numbers, and Fourier transforms of a few numbers, which are such."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cello.compile.complex_numbers import Complex, Part, mul, plus
from cello.compile.constant import CONSTANT
from cello.compile.node import Op
from cello.compile.real_nodes import NodeWriter, Real, aten
from cello.foreign.memoryless import Meta

MOST_WAVES = 1 << 14
"""The numbers of a transform's matrix; of more, torch's own transform takes less time."""


def multiplied(op: Op, a: Complex, b: Complex, negates_left: bool = False) -> Complex:
    """A product of matrices, of which a part may be the number zero.

    Args:
        op: the product of real matrices.
        a: the left one.
        b: the right one.
        negates_left: whether the minus sign of i^2 is put on the left one.
    """

    def product(one: Part, other: Part) -> Part:
        if isinstance(one, Real) and isinstance(other, Real):
            return one.writer.real(op, one.node, other.node)
        return 0.0

    minus = product(-a.im, b.im) if negates_left else product(a.im, -b.im)
    re, im = (product(a.re, b.re), minus), (product(a.re, b.im), product(a.im, b.re))
    return Complex(plus(*re), plus(*im))


@dataclass(frozen=True)
class DFTMatrix:
    """The matrix of a transform: ``exp(sign 2 pi i n k / period)`` in row n and column k.

    Attributes:
        rows: how many numbers go in.
        columns: how many come out.
        period: how many steps a turn has.
        sign: -1 for a transform, 1 for its inverse.
        is_half: whether what goes in stands for its conjugates, too, as the half of a real signal's waves.
    """

    rows: int
    columns: int
    period: int
    sign: int
    is_half: bool = False

    @property
    def is_small(self) -> bool:
        """Whether a product with it is to be preferred."""
        return self.rows * self.columns <= MOST_WAVES

    def written(self, writer: NodeWriter, dtype: torch.dtype) -> Complex:
        """The matrix in a trace."""
        re, im = (self._part(writer, dtype, function) for function in (_cos, _sin))
        return Complex(re, im)

    def _part(
        self, writer: NodeWriter, dtype: torch.dtype, function: Callable[[int, int], float]
    ) -> Real:
        numbers = tuple(
            # All but the first and, of an even period, the one in the middle have a conjugate.
            (2.0 if self.is_half and n and 2 * n != self.period else 1.0)
            * function(self.sign * n * k, self.period)
            for n in range(self.rows)
            for k in range(self.columns)
        )
        return writer.real(CONSTANT, numbers, (self.rows, self.columns), dtype, Meta)


def _cos(k: int, n: int) -> float:
    """``cos(2 pi k / n)``, with the same number for what is mirrored, and exact zeros."""
    k = min(k % n, -k % n)  # in the upper half
    if 4 * k == n:
        return 0.0
    return math.cos(math.tau * k / n) if 4 * k < n else -math.cos(math.pi * (n - 2 * k) / n)


def _sin(k: int, n: int) -> float:
    """``sin(2 pi k / n)``, likewise."""
    if 2 * k % n == 0:
        return 0.0
    k %= n
    if 2 * k > n:
        return -_sin(n - k, n)
    return math.sin(math.pi * min(2 * k, n - 2 * k) / n)


def matrices_of(name: str, given: dict[str, Any]) -> list[tuple[int, DFTMatrix]]:
    """The axes of a transform, in the order in which they are transformed, and the matrix for each.

    Args:
        name: ``_fft_c2c``, ``_fft_r2c`` or ``_fft_c2r``.
        given: the arguments of the operation.
    """
    shape, dims, found = given["self"].shape, given["dim"], []
    for dim in dims:
        rows, is_last = shape[dim], dim == dims[-1]
        period = given["last_dim_size"] if name == "_fft_c2r" and is_last else rows
        is_shortened = name == "_fft_r2c" and given["onesided"] and is_last
        columns = rows // 2 + 1 if is_shortened else period
        sign = 1 if name == "_fft_c2r" or given.get("forward") is False else -1
        is_half = name == "_fft_c2r" and is_last
        rows = period // 2 + 1 if is_half else rows
        found.append((dim, DFTMatrix(rows, columns, period, sign, is_half)))
    return found


def scaled(z: Complex, mode: int, matrices: list[tuple[int, DFTMatrix]]) -> Complex:
    """What comes out of a transform, as torch numbers the ways to scale it: not, by a root, by the size."""
    scale = math.prod(matrix.period for _, matrix in matrices) ** (-mode / 2)
    return z if scale == 1 else mul(z, Complex(scale, 0.0))


def along(z: Complex, dim: int, matrix: Complex) -> Complex:
    """The numbers along an axis times a matrix."""
    rows: list[Part] = []
    shape: tuple[int, ...] = ()
    for part in z:
        if isinstance(part, Real):
            rows_of_part, shape = _last_axis(part, dim)
            rows.append(rows_of_part)
        else:
            rows.append(part)
    found = multiplied(aten.mm.default, Complex(*rows), matrix)
    re, im = (_as_before(part, dim, shape) for part in found if isinstance(part, Real))
    return Complex(re, im)


def _last_axis(x: Real, dim: int) -> tuple[Real, tuple[int, ...]]:
    """A tensor as rows of what lies along an axis, and its shape with this axis as the last one."""
    turned = x.writer.write(aten.transpose.int, x.node, dim, -1)
    whole = x.writer.write(aten.clone.default, turned, memory_format=torch.contiguous_format)
    rows = [math.prod(whole.shape[:-1]), whole.shape[-1]]
    return x.writer.real(aten.view.default, whole, rows), whole.shape


def _as_before(x: Real, dim: int, shape: tuple[int, ...]) -> Real:
    """Rows in the shape that they were made from, with other numbers along the axis."""
    whole = x.writer.write(aten.view.default, x.node, [*shape[:-1], x.node.shape[-1]])
    return x.writer.real(aten.transpose.int, whole, dim, -1)
