"""Equations, inverses, determinants and factors of small matrices in a step, against torch in a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from steps import Step, assert_left_to_the_loop, compare, random
from torch import Tensor

import cello


def elimination(size: int, function: str) -> Step:
    """A step that asks for a matrix of each row, which is its state."""

    def step(c: Step, x: Tensor, h: Tensor) -> list[Tensor]:
        a = h.view(-1, size, size)
        if function == "inverse":
            out = torch.linalg.inv(a).sum(-1)
        elif function == "solve":
            out = torch.linalg.solve(a, x)
        else:
            out = torch.linalg.det(a)[:, None] * x
        return [out, (h + 0.1 * x.repeat(1, size)).cos()]

    return Step(step, [size * size])


FUNCTIONS = ("inverse", "solve", "determinant")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_matrices_of_every_size(size: int, function: str):
    cell = elimination(size, function)
    compare(cell, random(3, 4, size), (random(1, 4, size * size, seed=1),))


PIVOTS = {
    "exchanges": [[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 0.0]],
    "equal pivots": [[1.0, 2.0, -1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    "one exchange": [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]],
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", PIVOTS)
def test_pivots_of_each_row(name: str, function: str):
    """Every row of the batch has its own: the matrices are in another order in each of them."""
    matrix = torch.tensor(PIVOTS[name], dtype=torch.float64)
    rows = torch.stack([matrix, matrix.flip(0), matrix.t(), matrix.roll(1, 0)])
    compare(elimination(3, function), random(1, 4, 3), (rows.flatten(1)[None],))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rank", [0, 1, -1])
def test_the_determinant_of_a_singular_matrix(size: int, rank: int):
    """It is zero, and its gradient the adjugate, which is computed here from the smaller determinants."""
    generator = torch.Generator().manual_seed(size)
    left, right = torch.randint(
        -2, 3, (2, size, size), generator=generator
    ).double() + 3 * torch.eye(size)
    left[:, rank % size if size > 1 else 0 :] = 0
    matrix = (left @ right)[None].requires_grad_()
    layer = cello.Recurrent(lambda x, h: torch.linalg.det(x)[:, None] + 0 * h, state_size=1)
    output, _ = layer(matrix[None], torch.zeros(1, 1, 1, dtype=torch.float64))
    assert output.item() == pytest.approx(0.0, abs=1e-9)
    (gradient,) = torch.autograd.grad(output.sum(), matrix)
    rows = range(size)
    cofactors = [
        [(-1) ** (i + j) * torch.linalg.det(without(matrix[0].detach(), i, j)) for j in rows]
        for i in rows
    ]
    torch.testing.assert_close(
        gradient[0], torch.tensor(cofactors, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def without(matrix: Tensor, row: int, column: int) -> Tensor:
    keep = [torch.arange(len(matrix)) != skipped for skipped in (row, column)]
    return matrix[keep[0]][:, keep[1]]


def test_a_singular_matrix_gives_no_number_that_looks_like_one():
    """Torch raises; a compiled step cannot."""
    layer = cello.Recurrent(
        lambda x, h: torch.linalg.solve(h.view(-1, 2, 2), x).repeat(1, 2), state_size=4
    )
    state = torch.tensor([[[1.0, 2.0, 2.0, 4.0], [1.0, 0.0, 0.0, 1.0]]])
    output, _ = layer(torch.ones(1, 2, 2), state)
    assert not output[0, 0].isfinite().any()
    assert output[0, 1].eq(1.0).all()


def test_a_matrix_without_a_factor_gives_nan():
    layer = cello.Recurrent(
        lambda x, h: torch.linalg.cholesky(h.view(-1, 2, 2)).flatten(1) + x, state_size=4
    )
    state = torch.tensor([[[1.0, 2.0, 2.0, 1.0], [4.0, 0.0, 0.0, 9.0]]])
    output, _ = layer(torch.zeros(1, 2, 4), state)
    assert output[0, 0].isnan().any()
    assert output[0, 1].tolist() == [2.0, 0.0, 0.0, 3.0]


@pytest.mark.parametrize("function", [torch.linalg.inv, torch.linalg.cholesky])
def test_large_matrices_are_left_to_torch(function: Callable[[Tensor], Tensor]):
    layer = cello.Recurrent(lambda x, h: function(h.view(-1, 9, 9)).flatten(1), state_size=81)
    state = torch.eye(9).reshape(1, 1, 81)
    assert torch.equal(layer(torch.ones(2, 1, 1), state)[0][-1], state[0])
    assert_left_to_the_loop("eliminates 9 unknowns for each row", layer, torch.ones(2, 1, 1), state)
