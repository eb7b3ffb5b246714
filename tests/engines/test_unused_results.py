"""What a loss does not use costs nothing, and adds nothing to a gradient, as in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello
import cello.nn
from cello.compile import Wanted, compiled
from cello.engines.native.kernel import NativeKernel


class Readout(nn.Module):
    """Has outputs of which the root has an infinite slope at zero, and a state that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_h = nn.Linear(4, 6), nn.Linear(6, 6)
        self.read = nn.Linear(6, 5)
        self.note = nn.Linear(6, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, note = state
        h = torch.tanh(self.of_x(x) + self.of_h(h))
        note = 0.5 * note + self.note(h)
        return self.read(h) + (h - h).sqrt()[:, :5], (h, note)


def results_of(cell: Readout, x: Tensor, runs_in: str) -> dict[str, Tensor]:
    if runs_in == "layer":
        layer = cello.Recurrent(cell, state_size=(6, 3))
        with cello.engine("native"):
            output, (h_n, note_n) = layer(x)
        return {"output": output, "h": h_n[0], "note": note_n[0]}
    state, outputs = (x.new_zeros(x.shape[1], 6), x.new_zeros(x.shape[1], 3)), []
    for step in x:
        output, state = cell(step, state)
        outputs.append(output)
    return {"output": torch.stack(outputs), "h": state[0], "note": state[1]}


@pytest.mark.parametrize("used", ["h", "note", "h note"])
def test_an_infinite_slope_that_the_loss_does_not_meet_makes_no_nan(used: str):
    torch.manual_seed(0)
    cell = Readout().double()
    x = torch.randn(7, 2, 4, dtype=torch.float64, requires_grad=True)
    variables = {"x": x, **dict(cell.named_parameters())}
    found = {}
    for runs_in in ("layer", "loop"):
        results = results_of(cell, x, runs_in)
        loss = sum(results[name].square().sum() for name in used.split())
        gradients = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
        found[runs_in] = dict(zip(variables, gradients, strict=True))
    for name, expected in found["loop"].items():
        got = found["layer"][name]
        assert (got is None) == (expected is None), name
        if expected is not None:
            assert expected.isfinite().all()
            torch.testing.assert_close(got, expected)
    assert found["layer"]["read.weight"] is None
    assert (found["layer"]["note.weight"] is None) == ("note" not in used)


def test_weight_decay_leaves_a_weight_alone_that_the_loss_does_not_reach():
    torch.manual_seed(0)
    cell = Readout()
    layer = cello.Recurrent(cell, state_size=(6, 3))
    before = {name: p.detach().clone() for name, p in cell.named_parameters()}
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.1)
    _, (h_n, _) = layer(torch.randn(7, 2, 4))
    h_n.square().sum().backward()
    optimizer.step()
    moved = {name for name, p in cell.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"of_x.weight", "of_x.bias", "of_h.weight", "of_h.bias"}


@pytest.mark.parametrize("kind", [cello.nn.RNN, cello.nn.LSTM, cello.nn.GRU])
@pytest.mark.parametrize("keep_states", [False, True])
def test_where_all_results_are_states_one_backward_loop_is_enough(kind: Any, keep_states: bool):
    (cell,) = kind(4, 5)._cells()[0]
    state = [torch.zeros(2, 5) for _ in range(2 if kind is cello.nn.LSTM else 1)]
    program = compiled(cell, torch.zeros(2, 4), state)
    wanted = Wanted((True,) * len(program.loop.inputs), (True,) * len(program.loop.statics))
    whole = NativeKernel.of(program, keep_states, wanted)
    count = len(whole.widths) + len(state)
    for k in range(count):
        used = tuple(k == place for place in range(count))
        assert NativeKernel.of(program, keep_states, wanted, used) is whole


def test_a_state_that_is_used_only_by_a_later_step_gets_its_gradient():
    """The loss uses h alone: h' = sin c, c' = h + x, so that c counts for the step after it."""

    class Crossed(nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
            h, c = state
            return h, (torch.sin(c), h + x)

    layer = cello.Recurrent(Crossed(), state_size=(1, 1))
    x = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1).requires_grad_()
    with cello.engine("native"):
        _, (h_n, _) = layer(x)
    h_n.sum().backward()
    # h4 = sin(c3), c3 = h2 + x3, h2 = sin(c1), c1 = x1.
    expected = torch.zeros(4)
    c1, c3 = torch.tensor(0.1), torch.sin(torch.tensor(0.1)) + 0.3
    expected[0], expected[2] = torch.cos(c3) * torch.cos(c1), torch.cos(c3)
    torch.testing.assert_close(x.grad.flatten(), expected)
