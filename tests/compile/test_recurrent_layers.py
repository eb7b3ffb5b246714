"""Cells that hold a recurrent layer of torch and call it for one step, or for a few."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from steps import Step, assert_left_to_the_loop, compare, random
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import cello

F, H = 4, 6


def one_step(c: Step, x: Tensor, h: Tensor) -> list[Tensor]:
    """As in a decoder, whose layer has time first."""
    output, h = c.layer(x[None], h[None])
    return [output[0], h[0]]


def one_step_of_a_batch(c: Step, x: Tensor, h: Tensor) -> list[Tensor]:
    output, h = c.layer(x[:, None], h[None])
    return [output[:, 0], h[0]]


def with_a_cell_state(c: Step, x: Tensor, h: Tensor, cell: Tensor) -> list[Tensor]:
    output, (h, cell) = c.layer(x[None], (h[None], cell[None]))
    return [output[0], h[0], cell[0]]


def several_steps(c: Step, x: Tensor, h: Tensor) -> list[Tensor]:
    """Two layers in both directions over the two halves of the input."""
    output, last = c.layer(x.view(len(x), 2, F // 2))
    return [output[:, -1], torch.tanh(h + last.sum(0) + output.mean(1)[:, :H])]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[..., list[Tensor]], list[int]]] = {
    "GRU": (lambda: nn.GRU(F, H), one_step, [H]),
    "GRU, batch first": (lambda: nn.GRU(F, H, batch_first=True), one_step_of_a_batch, [H]),
    "GRU without biases": (lambda: nn.GRU(F, H, bias=False), one_step, [H]),
    "RNN": (lambda: nn.RNN(F, H), one_step, [H]),
    "RNN with relu": (lambda: nn.RNN(F, H, nonlinearity="relu"), one_step, [H]),
    "LSTM": (lambda: nn.LSTM(F, H), with_a_cell_state, [H, H]),
    "LSTM without biases": (lambda: nn.LSTM(F, H, bias=False), with_a_cell_state, [H, H]),
    "LSTM with a projection": (lambda: nn.LSTM(F, H, proj_size=3), with_a_cell_state, [3, H]),
    "several": (
        lambda: nn.GRU(F // 2, H, num_layers=2, bidirectional=True, batch_first=True),
        several_steps,
        [H],
    ),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_torch_in_a_step(name: str, rows: int):
    make, function, sizes = LAYERS[name]
    torch.manual_seed(0)
    cell = Step(function, sizes, layer=make().double())
    states = tuple(random(1, rows, size, seed=k) for k, size in enumerate(sizes))
    compare(cell, random(5, rows, F), states)


def test_packed_sequences_are_left_to_torch():
    def step(c: Step, x: Tensor, h: Tensor) -> list[Tensor]:
        packed = pack_padded_sequence(x[None], torch.ones(len(x)).long())
        return [c.layer(packed, h[None])[1][0]] * 2

    layer = cello.Recurrent(Step(step, [H], layer=nn.GRU(F, H)))
    x, h = torch.randn(3, 2, F), torch.zeros(1, 2, H)
    assert_left_to_the_loop("Step", layer, x, (h,))
