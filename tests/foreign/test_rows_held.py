"""Cells that hold a row for each sequence of a batch, whose order is not that of the rows of a step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import cello

F, H = 3, 4


class Holding(nn.Module):
    """Subclasses do something with `rows`, (B, H) or (B, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(F + H, H)
        self.rows = torch.empty(0)

    def computed(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([x, h], -1)))


class Added(Holding):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.computed(x, h) + self.rows[: len(x)]


class Joined(Holding):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        first, _ = torch.cat([self.computed(x, h), self.rows[: len(x)]], 1).chunk(2, 1)
        return first + 0.5 * self.rows[: len(x), :1]


class Started(Holding):
    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return self.computed(x, self.rows[: len(x)] if h is None else h)


class Chosen(Holding):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.computed(x, h)
        return torch.where(self.rows[: len(x)] > 0, h, 0.5 * h)


class Multiplied(Holding):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.computed(x, h)
        memory = self.rows[: len(x)].double().float().unsqueeze(2)
        return h + torch.bmm(memory, h.unsqueeze(1)).sum(2)


class Neighbours(Holding):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.computed(x, self.rows[: len(x), : len(x)] @ h)


KINDS = [Added, Joined, Started, Chosen, Multiplied, Neighbours]


def layer_of(kind: type[Holding], batch: int, **options: Any) -> tuple[Any, Holding]:
    torch.manual_seed(0)
    cell = kind()
    cell.rows = torch.randn(batch, batch if kind is Neighbours else H)
    return cello.Recurrent(cell, state_size=H, **options), cell


def by_hand(cell: Holding, x: Tensor, lengths: list[int]) -> Tensor:
    """All rows of the batch at every step; what comes after the end of a sequence is zero."""
    h, outputs = None if isinstance(cell, Started) else torch.zeros(x.shape[1], H), []
    for t, row in enumerate(x):
        h = cell(row, h)
        outputs.append(h * (t < torch.tensor(lengths))[:, None])
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_another_order_is_refused(kind: type[Holding]):
    layer, _ = layer_of(kind, 3)
    x = torch.randn(5, 3, F)
    shape = (3, 3) if kind is Neighbours else (3, H)
    where = re.escape(f"{kind.__name__} holds rows {shape} and pairs it with the 3 sequences")
    with pytest.raises(cello.CellError, match=where):
        layer(x, lengths=[2, 5, 4])
    with pytest.raises(cello.CellError, match=where):
        layer(pack_padded_sequence(x, [2, 5, 4], enforce_sorted=False))
    with pytest.raises(cello.CellError, match=where), cello.engine(segment=2):
        layer(x, lengths=[2, 5, 4])


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 4, 2]], ids=str)
@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Neighbours])
def test_the_order_of_the_batch_is_right(kind: type[Holding], lengths: list[int]):
    layer, cell = layer_of(kind, 3)
    x = torch.randn(5, 3, F)
    torch.testing.assert_close(layer(x, lengths=lengths)[0], by_hand(cell, x, lengths))


def test_a_tensor_for_all_rows_after_the_end_of_some():
    class Masked(Holding):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.computed(x, h) * self.rows

    layer, _ = layer_of(Masked, 3)
    x = torch.randn(5, 3, F)
    with pytest.raises(RuntimeError, match="At this step 2 of 3 sequences go on"):
        layer(x, lengths=[5, 4, 2])
    layer, _ = layer_of(Masked, 2)
    with pytest.raises(
        cello.CellError, match=r"expected 1 rows\. At this step 1 of 2 sequences go on"
    ):
        layer(x[:, :2], lengths=[5, 4])


class Harmless(Holding):
    """Tensors of as many rows as the batch that do not belong to its sequences, in the Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(H, H))
        self.heads = nn.Parameter(torch.randn(H, 1, 1))
        self.register_buffer("table", torch.randn(H, H))
        self.register_buffer("scale", torch.rand(H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        noise = torch.zeros(len(x), H) + torch.zeros_like(h).bernoulli_(1.0)
        h = self.computed(x, h) @ self.table * self.scale + noise
        h = h + torch.bmm(h.T.unsqueeze(2), self.heads).squeeze(2).T
        h = h + self.table[h.argmax(1)] + self.weight[0]
        return h if float(h.detach().sum()) < 1e9 else -h


def test_other_tensors_are_allowed():
    layer, cell = layer_of(Harmless, 0)
    x, lengths = torch.randn(5, H, F), [2, 5, 0, 4]  # B = H
    torch.testing.assert_close(layer(x, lengths=lengths)[0], by_hand(cell, x, lengths))


class OfNumbers(Holding):
    """What NumPy makes of the rows is the cell's no more than they are."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.computed(x, h).detach()
        return h * torch.from_numpy(h.numpy() ** 2) + torch.tensor(h.tolist())


def test_numbers_that_leave_torch_and_come_back():
    layer, cell = layer_of(OfNumbers, 0)
    x, lengths = torch.randn(5, 3, F), [2, 5, 4]
    torch.testing.assert_close(layer(x, lengths=lengths)[0], by_hand(cell, x, lengths))


def test_transforms_of_torch_func():
    layer, _ = layer_of(Harmless, 0)
    layer.cells = nn.ModuleDict({"l0": nn.GRUCell(F, H)})
    x = torch.randn(5, 3, F)

    def loss(x: Tensor) -> Tensor:
        with cello.engine("reference"):
            return layer(x, lengths=[2, 5, 4])[0].sin().sum()

    torch.testing.assert_close(
        torch.func.grad(loss)(x), torch.autograd.grad(loss(x.requires_grad_()), x)[0]
    )


class Filled(nn.Module):
    """Adds a matrix of the cell to one of each row, written by its parts; refuses negative states."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(F, 3)
        self.register_buffer("eye", torch.eye(3))

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        if bool((p < 0).any()):
            raise ValueError("a variance is negative")
        made, v = torch.zeros(len(x), 3, 3), self.linear(x)
        for a in range(3):
            made[:, a, a] = v[:, a] ** 2
        return 0.5 * p + (made + self.eye)


class FilledOnce(Filled):
    """Fills a copy of rows that belong to the sequences."""

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        rows = self.eye.clone()
        rows[:, 0] = p[:, 0, 0]
        return 0.5 * p + rows[:, :, None] * self.linear(x).square()[:, None]


def test_what_is_written_by_its_parts_belongs_to_the_rows():
    torch.manual_seed(0)
    cell, x, lengths = Filled(), torch.randn(5, 3, F), [3, 5, 1]
    layer = cello.Recurrent(cell, state_size=torch.Size([3, 3]))
    p, outputs = torch.zeros(3, 3, 3), []
    for t, row in enumerate(x):
        p = cell(row, p)
        outputs.append(p * (t < torch.tensor(lengths))[:, None, None])
    with cello.engine("reference"):
        torch.testing.assert_close(layer(x, lengths=lengths)[0], torch.stack(outputs))


def test_rows_of_the_cell_stay_rows_where_a_part_is_written():
    layer = cello.Recurrent(FilledOnce(), state_size=torch.Size([3, 3]))
    with cello.engine("reference"), pytest.raises(cello.CellError, match="FilledOnce holds eye"):
        layer(torch.randn(5, 3, F), lengths=[3, 5, 1])
