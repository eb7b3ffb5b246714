"""Products of rows and matrices by torch, rounded and summed up as kernels do."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(out: Tensor, row: Tensor, matrix: Tensor, accumulates: bool) -> None:
    """Let `out` be a product, or add it to what is there.

    Args:
        out: (rows, N); sums are of its dtype.
        row: (rows, K), which is rounded to the dtype of the matrix.
        matrix: (K, N).
        accumulates: whether to add.
    """
    row = row.to(matrix.dtype)
    if matrix.dtype != out.dtype and out.is_cuda:  # of half precision, summed up in float32
        if accumulates:
            out += torch.mm(row, matrix, out_dtype=out.dtype)
        else:
            torch.mm(row, matrix, out_dtype=out.dtype, out=out)
        return
    # With a factor of 0 the numbers that are there do not count, NaN and infinity neither.
    out.addmm_(row.to(out.dtype), matrix.to(out.dtype), beta=int(accumulates))


def block_of(
    tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> Tensor:
    """A part of a static as a matrix."""
    return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)
