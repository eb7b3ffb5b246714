"""What `explain` says, and that saying it changes nothing."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence

import cello
from cello.engines.native import engine as native_engine

X = torch.zeros(5, 2, 3)


def test_a_layer_on_the_native_engine():
    told = cello.explain(cello.nn.LSTM(3, 4, num_layers=2, bidirectional=True), X)
    assert [(p.layer, p.cells, p.engine, p.reasons) for p in told.plans] == [
        (k, ("LSTM", "LSTM"), "native", {}) for k in range(2)
    ]
    lines = [line for line in told.running.splitlines() if line.startswith("  layer")]
    assert lines == [f"  layer {k}: LSTM x 2 directions on 'native'" for k in range(2)]


def test_why_not_a_faster_one(monkeypatch):
    monkeypatch.setattr(native_engine, "library", lambda: None)
    layer = cello.nn.LSTM(3, 4, gate_activation="hardsigmoid")
    told = cello.explain(layer, X, return_states=True)
    assert told.plans[0].engine == "reference"
    assert told.plans[0].reasons == {
        "native": [
            "the native engine was not built: there was no C++ compiler",
        ],
        "vendor": [
            "torch's kernel has sigmoid gates built in, not hardsigmoid",
            "torch's kernels do not return the cell states of all steps",
        ],
        "triton": ["the Triton engine runs on devices of type cuda or xpu, not on cpu"],
    }
    assert "    not 'native': the native engine was not built" in str(told)
    assert "    not 'vendor': torch's kernel has sigmoid gates built in" in str(told)


def test_layers_have_their_numbers_where_they_run_in_segments():
    with cello.engine(segment=2):
        told = cello.explain(cello.nn.LSTM(3, 4, num_layers=2, bidirectional=True), X)
    assert [(plan.layer, plan.cells) for plan in told.plans] == [(k, ("LSTM",) * 2) for k in (0, 1)]


def test_a_foreign_cell_by_its_own_name():
    told = cello.explain(cello.Recurrent(Normed(), state_size=4), X)
    assert told.plans[0].cells == ("Normed",)
    assert str(told).startswith("Recurrent(Normed, state_size=4)\n  T=5 time")
    assert told.running.startswith("  layer 0: Normed on 'reference'\n")


def test_packed_input_lengths_and_no_steps_at_all():
    gru = cello.nn.GRU(3, 4)
    packed = pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)])
    assert (
        len(cello.explain(gru, packed).plans)
        == len(cello.explain(gru, X, lengths=[3, 0]).plans)
        == 1
    )
    assert cello.explain(gru, X, lengths=[0, 0]).plans == ()


def test_the_terms_of_the_caller_count():
    gru = cello.nn.GRU(3, 4)
    with cello.engine("reference"):
        assert cello.explain(gru, X).plans[0].engine == "reference"


def test_nothing_is_changed():
    layer = cello.nn.GRU(3, 4, num_layers=2, dropout=0.5)
    x = torch.zeros(5, 2, 3, requires_grad=True)
    state = torch.get_rng_state()
    cello.explain(layer, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert x.grad is None


class Normed(nn.Module):
    """A cell with a buffer that counts, and a layer of its own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.inner = cello.Recurrent(nn.GRUCell(3, 4))

    def forward(self, x, h):
        return self.inner.step(self.norm(x), h[None])[1][0]


def test_buffers_stay_and_layers_inside_a_cell_are_not_told():
    layer = cello.Recurrent(Normed(), state_size=4)
    for _ in range(2):  # the first call tries the cell
        told = cello.explain(layer, X)
        assert [(plan.layer, plan.cells) for plan in told.plans] == [(0, ("Normed",))]
        assert layer.cells["l0"].norm.num_batches_tracked == 0


def test_only_layers_of_cello():
    with pytest.raises(TypeError, match=r"must be a layer of cello\.nn, got LSTM"):
        cello.explain(nn.LSTM(3, 4), X)


class Leaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_size = 4
        self.x, self.h = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x, h):
        return torch.tanh(self.x(x) + self.h(h))


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_a_custom_cell_on_a_gpu(device: str):
    """The tensors are torch's fakes, which may be on a device that is not here."""
    layer = cello.Recurrent(Leaky())
    with FakeTensorMode(), torch.no_grad():
        for module in layer.modules():
            for name, weight in module._parameters.items():
                fake = torch.empty(weight.shape, device=device)
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)
        (plan,) = cello.explain(layer, torch.empty(5, 2, 3, device=device)).plans
    assert plan.engine == "reference"
    assert plan.reasons["native"] == [f"the native engine runs on the CPU, not on {device}"]
    (reason,) = plan.reasons["triton"]
    is_mps = "runs on devices of type cuda or xpu, not on mps" in reason
    assert is_mps == (device == "mps")


def test_a_cell_is_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.steps = nn.Linear(4, 4), 0
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x, h):
            self.steps += 1
            self.mean += x.mean(0)
            return torch.tanh(x + self.linear(h)) + 0.1 * torch.rand_like(h)

    layer, x = cello.Recurrent(Counting(), state_size=4), torch.randn(5, 2, 4)
    cell = layer.cells["l0"]
    layer(x)
    before, mean = torch.get_rng_state(), cell.mean.clone()
    assert cell.steps == 5
    cello.explain(layer, x)
    cello.record(layer, x, gradients=True)
    assert cell.steps == 5
    assert torch.equal(cell.mean, mean)
    assert torch.equal(torch.get_rng_state(), before)


class Parts(NamedTuple):
    x: torch.Tensor
    output: torch.Tensor


def test_parts_of_the_state_that_are_called_x_and_output():
    def step(x: torch.Tensor, state: Parts) -> tuple[torch.Tensor, Parts]:
        return x * state.output, Parts(x + state.x, x - state.output)

    layer = cello.Recurrent(step, state_size=Parts(4, 4))
    program = cello.explain(layer, torch.randn(3, 2, 4)).plans[0].program
    lines = [line.partition(" (")[0].strip() for line in program]
    for line in ("v1 = x#0 * output", "v2 = x#0 + x", "v3 = x#0 - output",
                 "output#0 = v1", "x' = v2", "output' = v3"):  # fmt: skip
        assert line in lines
