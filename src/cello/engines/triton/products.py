"""Products of rows and matrices by torch, rounded and summed up as kernels do."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(out: Tensor, row: Tensor, matrix: Tensor, accumulates: bool) -> None:
    """Let `out` be a product, or add it to what is there.

    Args:
        out: (rows, N), or (rows, places, N); sums are of its dtype.
        row: (rows, K), or (rows, places, K), which is rounded to the dtype of the matrix.
        matrix: (K, N).
        accumulates: whether to add.
    """
    if out.dim() == 3:
        made = out.new_empty(out.shape)
        multiply(made.flatten(0, 1), row.flatten(0, 1), matrix, False)
        (out.add_ if accumulates else out.copy_)(made)
        return
    row = row.to(matrix.dtype)
    if matrix.dtype != out.dtype and out.is_cuda:  # of half precision, summed up in float32
        if accumulates:
            out += torch.mm(row, matrix, out_dtype=out.dtype)
        else:
            torch.mm(row, matrix, out_dtype=out.dtype, out=out)
        return
    # With a factor of 0 the numbers that are there do not count, NaN and infinity neither.
    out.addmm_(row.to(out.dtype), matrix.to(out.dtype), beta=int(accumulates))


def at_places(rows: Tensor, offset: int, width: int, places: int, step: int) -> Tensor:
    """So many numbers of each row, (rows, width); at several places, (rows, places, width)."""
    if places == 1:
        return rows[:, offset : offset + width]
    if step < 0:  # torch has no negative strides
        return at_places(rows, offset + (places - 1) * step, width, places, -step).flip(1)
    shape, strides = (len(rows), places, width), (rows.stride(0), step, 1)
    return rows.as_strided(shape, strides, rows.storage_offset() + offset)


def block_of(
    tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> Tensor:
    """A part of a static as a matrix."""
    return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)
