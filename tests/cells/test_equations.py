"""The equations of cello.cells against torch's cells, and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cello import cells

F, H, B = 3, 4, 5


def weights_of(cell: nn.Module) -> list[Tensor]:
    return [cell.weight_ih, cell.weight_hh, *((cell.bias_ih, cell.bias_hh) if cell.bias else ())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_one_step_is_that_of_torch(name: str, bias: bool):
    torch.manual_seed(0)
    theirs = getattr(nn, f"{name}Cell")(F, H, bias, dtype=torch.float64)
    ours = getattr(cells, name)(*weights_of(theirs))
    x = torch.randn(B, F, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in ours.state_names]
    output, new = ours(x, tuple(state))
    expected = theirs(x, tuple(state) if name == "LSTM" else state[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(new, expected, **close)
    torch.testing.assert_close(output, expected[0], **close)
    variables = [x, *state, *theirs.parameters()]
    seeds = [torch.randn(B, H, dtype=torch.float64) for _ in expected]
    torch.testing.assert_close(
        torch.autograd.grad(new, variables, seeds),
        torch.autograd.grad(expected, variables, seeds),
        **close,
    )
    assert ours.state_sizes == dict.fromkeys(("h", "c")[: len(state)], H)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_lstm_by_hand():
    """One unit; the weights of x and h are 1, 2, 3, 4 and 0.1, 0.2, 0.3, 0.4 in the order i f g o."""
    cell = cells.LSTM(column(1, 2, 3, 4), column(0.1, 0.2, 0.3, 0.4))
    x, h, c = column(0.5), column(-1.0), column(2.0)
    _, (new_h, new_c) = cell(x, (h, c))
    i, f, g, o = (w * 0.5 - u for w, u in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)))
    memory = sigmoid(f) * 2.0 + sigmoid(i) * math.tanh(g)
    assert new_c.item() == pytest.approx(memory, rel=1e-14)
    assert new_h.item() == pytest.approx(sigmoid(o) * math.tanh(memory), rel=1e-14)


def test_the_gru_by_hand():
    """The reset gate multiplies the recurrent product with its bias, as in cuDNN."""
    bias_ih, bias_hh = (torch.tensor(b, dtype=torch.float64) for b in ([0.1] * 3, [0.0, 0.0, 0.7]))
    cell = cells.GRU(column(1, 2, 3), column(0.5, -0.5, 0.25), bias_ih, bias_hh)
    _, (h,) = cell(column(0.4), (column(-2.0),))
    r, z = sigmoid(0.4 + 0.1 - 1.0), sigmoid(0.8 + 0.1 + 1.0)
    n = math.tanh(1.2 + 0.1 + r * (-0.5 + 0.7))
    assert h.item() == pytest.approx((1 - z) * n + z * -2.0, rel=1e-14)


def test_the_rnn_by_hand():
    cell = cells.RNN(column(2), column(-0.5), activation=torch.relu)
    _, (h,) = cell(column(0.5, 0.1), (column(1.0, 1.0),))
    assert h.flatten().tolist() == pytest.approx([0.5, 0.0], rel=1e-14)


def test_the_projection_by_hand():
    """h is one unit made of two: the state sizes differ."""
    weight_ih = torch.tensor([0, 0, 9, 9, 5, -5, 9, 9], dtype=torch.float64)[:, None]
    cell = cells.LSTM(
        weight_ih, torch.zeros(8, 1, dtype=torch.float64), weight_hr=column(1.0, 10.0).T
    )
    assert cell.state_sizes == {"h": 1, "c": 2}
    output, (h, c) = cell(column(1.0), (column(0.0), torch.zeros(1, 2, dtype=torch.float64)))
    first = sigmoid(0) * math.tanh(5)
    assert c.flatten().tolist() == pytest.approx([first, -first], rel=1e-14)
    assert h.item() == pytest.approx(sigmoid(9) * math.tanh(first) * (1 - 10), rel=1e-13)
    assert output is h


def test_activations_go_where_they_belong():
    """Gates forced to 1/4 and the candidate to 8: each is told apart from the other."""
    kind = {"activation": lambda x: x + 8, "gate_activation": lambda x: x + 0.25}
    zeros = torch.zeros(4, 1), torch.zeros(4, 1)
    _, (h, c) = cells.LSTM(*zeros, **kind)(torch.zeros(1, 1), (torch.zeros(1, 1), torch.ones(1, 1)))
    assert c.item() == 0.25 * 1 + 0.25 * 8
    assert h.item() == 0.25 * (c.item() + 8)
    zeros = torch.zeros(3, 1), torch.zeros(3, 1)
    _, (h,) = cells.GRU(*zeros, **kind)(torch.zeros(1, 1), (torch.ones(1, 1),))
    assert h.item() == 0.75 * 8 + 0.25 * 1


def test_the_initial_state_is_zero_in_the_shapes_of_the_cell():
    cell = cells.LSTM(torch.zeros(8, 1), torch.zeros(8, 1), weight_hr=torch.zeros(1, 2))
    h, c = cell.initial_state(3, dtype=torch.float64, device=torch.device("cpu"))
    assert (h.shape, c.shape, h.dtype) == ((3, 1), (3, 2), torch.float64)
    assert not h.any()
    assert not c.any()


def test_a_cell_that_declares_too_little_is_refused():
    with pytest.raises(TypeError, match=r"Stateless\.state: expected the parts of the state"):

        class Stateless(cells.Equations):
            weight_ih: Tensor = cells.weight("input weights", "H", "F")

    with pytest.raises(TypeError, match="has a size H, and there are no gates"):

        class Gateless(cells.Equations):
            weight_ih: Tensor = cells.weight("input weights", "G*H", "F")

            state = (cells.StatePart("h", "hidden state", "H"),)
