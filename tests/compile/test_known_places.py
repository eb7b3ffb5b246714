"""Indices along several axes whose numbers are known: triangles, diagonals and other parts of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import assert_close, assert_left_to_the_loop, evaluate
from torch import Tensor, nn

import cello

H, N = 4, 3
ROWS, COLUMNS = torch.tril_indices(N, N)
Write = Callable[[Any, Tensor, Tensor], object]


class Matrix(nn.Module):
    """A step that writes six numbers v of each row into a matrix m."""

    def __init__(self, write: Write, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.write, self.lin = write, nn.Linear(H, 6, dtype=dtype)
        self.register_buffer("rows", ROWS.clone())
        self.register_buffer("columns", COLUMNS.clone())

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        v = self.lin(h)
        m = v[:, :N, None] * v[:, None, N:]
        found = self.write(self, m, v)
        m = m if found is None else found
        m = m.flatten(1) * 0.1
        return 0.5 * x + (m * m).sum(1, keepdim=True) + m.sin()[:, :1]


def lists(c: Any, m: Tensor, v: Tensor) -> None:
    m[:, [0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]] = v


def made_in_the_step(c: Any, m: Tensor, v: Tensor) -> None:
    i, j = torch.tril_indices(N, N)
    m[:, i, j] = v


def made_before(c: Any, m: Tensor, v: Tensor) -> None:
    m[:, ROWS, COLUMNS] = v


def buffers(c: Any, m: Tensor, v: Tensor) -> None:
    m[:, c.rows, c.columns] = v
    r = torch.arange(N)
    m[:, r, r] = m[:, r, r].exp()


def last_axes(c: Any, m: Tensor, v: Tensor) -> Tensor:
    four = m[:, None].repeat(1, 2, 1, 1)
    four[..., c.rows, c.columns] += v[:, None] * v[0, :1].new_tensor([[1.0], [2.0]])
    return four.prod(1)


def first_axes(c: Any, m: Tensor, v: Tensor) -> Tensor:
    return torch.stack([m, m * m], 3)[:, [0, 2, 1], [1, -1, 0]]


def a_table(c: Any, m: Tensor, v: Tensor) -> Tensor:
    return m[:, torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 1])]


def one_axis_by_a_table(c: Any, m: Tensor, v: Tensor) -> Tensor:
    return m[:, :, torch.tensor([[0, 1], [2, 0]])].sum(2)


def one_number(c: Any, m: Tensor, v: Tensor) -> None:
    m[:, [0, 2], [2, 0]] = 0.5


def of_all_rows_alike(c: Any, m: Tensor, v: Tensor) -> None:
    m[:, [0, 2], [2, 0]] = c.lin.bias[:2]


def added(c: Any, m: Tensor, v: Tensor) -> Tensor:
    rows, columns = torch.tensor([0, -1]), torch.tensor([2, 0])
    return m.index_put((torch.arange(len(m))[:, None], rows, columns), v[:, :2], accumulate=True)


def copied(c: Any, m: Tensor, v: Tensor) -> None:
    m.diagonal(dim1=-2, dim2=-1).copy_(v[:, :N])


def diagonals(c: Any, m: Tensor, v: Tensor) -> None:
    m.diagonal(1, 1, 2).add_(v[:, :2])
    torch.diagonal(m, -1, 2, 1)[:] = v[:, 2:4]
    m.diagonal(dim1=1, dim2=2).exp_()


WRITES: list[Write] = [
    lists, made_in_the_step, made_before, buffers, last_axes, first_axes, a_table, one_axis_by_a_table,
    one_number, of_all_rows_alike, added, copied, diagonals,
]  # fmt: skip


def agree(layer: Any, rows: int, dtype: torch.dtype = torch.float64) -> None:
    generator = torch.Generator().manual_seed(1)
    x, h = (torch.randn(n, rows, H, dtype=dtype, generator=generator) for n in (4, 1))
    assert_close(*(evaluate(layer, x, [h], e, lambda s: s[0]) for e in ("native", "reference")))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_values_and_gradients_are_those_of_the_loop(write: Write, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    if dtype.is_complex and write in (last_axes, copied, diagonals):
        return  # they use what is not compiled of complex numbers
    layer = cello.Recurrent(Matrix(write, dtype), state_size=H)
    for rows in (1, 3, 33):
        agree(layer, rows, dtype)


def test_a_change_of_the_numbers_is_seen() -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Matrix(buffers), state_size=H)
    agree(layer, 3)
    layer.cells["l0"].rows.copy_(COLUMNS)
    layer.cells["l0"].columns.copy_(ROWS)
    agree(layer, 3)
    layer.cells["l0"].rows[0] = N
    with pytest.raises(IndexError):
        layer(torch.randn(3, 2, H, dtype=torch.float64))


def meets(c: Any, m: Tensor, v: Tensor) -> None:
    m[:, [0, 0], [1, -2]] = v[:, :2]


def apart(c: Any, m: Tensor, v: Tensor) -> Tensor:
    return torch.stack([m, m * m], 3)[:, [0, 2], :, [1, 0]].sum(0)


def outside(c: Any, m: Tensor, v: Tensor) -> Tensor:
    """Counted over both axes together the place is one of the matrix."""
    return m[:, [0, 1], [1, 4]]


@pytest.mark.parametrize(
    ("write", "reason"),
    [(meets, "puts several numbers in at places that may be the same"), (apart, "uses index")],
)
def test_others_are_left_to_the_loop(write: Write, reason: str) -> None:
    layer = cello.Recurrent(Matrix(write), state_size=H)
    assert_left_to_the_loop(reason, layer, torch.randn(3, 2, H, dtype=torch.float64))


def test_what_lies_outside_of_one_axis_is_an_error() -> None:
    layer = cello.Recurrent(Matrix(outside), state_size=H)
    with pytest.raises(IndexError):
        layer(torch.randn(3, 2, H, dtype=torch.float64))
