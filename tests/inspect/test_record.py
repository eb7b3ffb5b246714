"""What is recorded: held against torch.nn's results, equations by hand, autograd and differences."""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple

import pytest
import torch
from foreign_cells import CELLS
from more_foreign_cells import MORE_CELLS
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import cello

T, B, F, H = 6, 3, 5, 4


def lstm_by_hand(layer: nn.LSTM, x: torch.Tensor, suffix: str) -> dict[str, torch.Tensor]:
    """The equations of torch's documentation over weights of `layer`, reading (T, B, F) forward."""
    weights = [
        getattr(layer, f"{name}_{suffix}").chunk(4)
        for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    ]
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    steps = []
    for x_t in x:
        pre = [x_t @ w.T + b + h @ v.T + d for w, b, v, d in zip(*weights, strict=True)]
        i, f, o = (pre[k].sigmoid() for k in (0, 1, 3))
        g = pre[2].tanh()
        c = f * c + i * g
        h = o * c.tanh()
        steps.append({"i": i, "f": f, "g": g, "o": o, "c": c, "h": h, "i#1": pre[0], "g#1": pre[2]})
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


def test_an_lstm_in_two_layers_and_directions():
    stock = nn.LSTM(F, H, num_layers=2, bidirectional=True).double()
    layer = cello.nn.LSTM(F, H, num_layers=2, bidirectional=True).double()
    layer.load_state_dict(stock.state_dict())
    x = torch.randn(T, B, F).double()
    recording = cello.record(layer, x)
    output, (h_n, c_n) = stock(x)
    torch.testing.assert_close(recording.output, output)
    torch.testing.assert_close(recording.state, (h_n, c_n))
    read = x
    for depth in range(2):
        both = []
        for direction, suffix in enumerate((f"l{depth}", f"l{depth}_reverse")):
            there = read.flip(0) if direction else read
            expected = lstm_by_hand(stock, there, suffix)
            for name, rows in expected.items():
                rows = rows.flip(0) if direction else rows
                torch.testing.assert_close(recording[f"{name}_{suffix}"], rows)
                assert recording.at(depth, direction)[name] is recording[f"{name}_{suffix}"]
            torch.testing.assert_close(recording[f"input_{suffix}"], read)
            both.append(recording[f"h_{suffix}"])
        read = torch.cat(both, dim=-1)
    torch.testing.assert_close(output, read)


def test_a_gru_and_an_rnn():
    x = torch.randn(T, B, F)
    gru = cello.nn.GRU(F, H)
    r, z, n, h = (cello.record(gru, x)[name] for name in "rznh")
    before = torch.cat([torch.zeros(1, B, H), h[:-1]])
    pre_x = (x @ gru.weight_ih_l0.T + gru.bias_ih_l0).chunk(3, -1)
    pre_h = (before @ gru.weight_hh_l0.T + gru.bias_hh_l0).chunk(3, -1)
    torch.testing.assert_close(r, torch.sigmoid(pre_x[0] + pre_h[0]))
    torch.testing.assert_close(z, torch.sigmoid(pre_x[1] + pre_h[1]))
    torch.testing.assert_close(n, torch.tanh(pre_x[2] + r * pre_h[2]))
    torch.testing.assert_close(h, (1 - z) * n + z * before)
    rnn = cello.nn.RNN(F, H)
    torch.testing.assert_close(cello.record(rnn, x)["h"], rnn(x)[0])


def test_a_projection():
    layer = cello.nn.LSTM(F, H, proj_size=2)
    recording = cello.record(layer, torch.randn(T, B, F))
    torch.testing.assert_close(recording["h"], recording["h#1"] @ layer.weight_hr_l0.T)
    torch.testing.assert_close(recording["h#1"], recording["o"] * recording["c"].tanh())


@pytest.mark.parametrize("form", ["batch_first", "one", "packed", "lengths", "zero"])
def test_the_layout_of_the_caller(form):
    layer = cello.nn.LSTM(F, H, bidirectional=True, batch_first=form in ("batch_first", "zero"))
    x, given, lengths = torch.randn(T, B, F), {}, [2, 6, 4]
    if layer.batch_first:
        x = x.transpose(0, 1)
    if form == "one":
        x = x[:, 0]
    elif form == "packed":
        x = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    elif form in ("lengths", "zero"):
        given = {"lengths": lengths if form == "lengths" else [0, 6, 0]}
    output, state, states = layer(x, return_states="all", **given)
    recording = cello.record(layer, x, **given)
    for name, rows in states.items():
        found = recording[name]
        if form == "packed":
            assert isinstance(found, PackedSequence)
            assert torch.equal(found.unsorted_indices, rows.unsorted_indices)
            found, rows = pad_packed_sequence(found)[0], pad_packed_sequence(rows)[0]
        torch.testing.assert_close(found, rows)
    found = recording["f_l0"]
    found = found.data if form == "packed" else found
    assert found.shape == (output.data if form == "packed" else output)[..., :H].shape
    torch.testing.assert_close(recording.state, state)
    dense = recording.dense(recording["f_l0"])
    if form == "lengths":
        assert recording.mask.sum(0).tolist() == lengths
        assert (dense[~recording.mask] == 0).all()
        assert (dense[recording.mask] > 0).all()


def test_an_initial_state_and_no_steps_at_all():
    layer = cello.nn.GRU(F, H)
    x, h_0 = torch.randn(T, B, F), torch.randn(1, B, H)
    recording = cello.record(layer, x, h_0)
    torch.testing.assert_close(recording.output, layer(x, h_0)[0])
    empty = cello.record(layer, x, h_0, lengths=[0, 0, 0])
    assert len(empty) == 0
    torch.testing.assert_close(empty.state, h_0)


@pytest.mark.parametrize("name", [*CELLS, *MORE_CELLS])
def test_every_foreign_cell_runs_as_ever(name):
    entry = {**CELLS, **MORE_CELLS}[name]
    torch.manual_seed(0)
    cell = entry.make(6, 6)
    if isinstance(cell, nn.Module):
        cell.eval()
    layer = cello.Recurrent(cell, state_size=entry.state(6, 6))
    x = entry.example(6, T, 4) if hasattr(entry, "example") else torch.randn(T, 4, 6)
    like = next(layer.parameters(), None)
    if x.is_floating_point() and like is not None and like.is_floating_point():
        x = x.to(like.dtype)
    torch.manual_seed(1)
    with cello.engine("reference"):
        output, _ = layer(x)
    torch.manual_seed(1)
    recording = cello.record(layer, x)
    torch.testing.assert_close(recording.output, output, rtol=0, atol=0, equal_nan=True)
    own = recording.get("output", recording[recording.state_names[0]])
    torch.testing.assert_close(own, output.to(own.dtype), rtol=0, atol=0, equal_nan=True)
    assert all(len(rows) == T for rows in recording.values())


class Named(nn.Module):
    """A cell that writes in every style."""

    def __init__(self):
        super().__init__()
        self.inner = Gate()
        self.w = nn.Parameter(torch.randn(H, H))

    def mix(self, x, h):
        both = torch.cat([x, h], -1)
        return both

    def forward(self, x, state=None):
        if state is None:
            start = x.new_ones(len(x), H)
            return (start * 0, start), start
        (h, memory), count = state
        weight = self.w  # no value of a step: it has no rows
        for k in range(3):
            h = torch.tanh(h @ weight + k)
        pair = self.mix(x, h).split(F, dim=-1)
        parts = {"first": pair[0]}
        gate = self.inner(h)
        gate.mul_(2)
        flag = h > 0
        total = 3.5
        del total
        new = (h * gate, memory + parts["first"].sum(-1, keepdim=True))
        return new, count + flag.any()


class Gate(nn.Module):
    def forward(self, z):
        opened = 3 * z
        return opened


def test_names_of_every_kind():
    recording = cello.record(cello.Recurrent(Named(), state_size=((H, H), H)), torch.randn(T, B, F))
    assert set(recording.at()) == {
        "start", "h", "h#1", "h#2", "pair[0]", "pair[1]", "parts['first']", "gate", "gate#1", "flag",
        "mix.both", "inner.opened", "new[0]", "new[1]", "input", "s0", "s1", "s2",
    }  # fmt: skip


def test_values_and_their_order():
    """Names of a loop, of a helper, of a submodule; in-place work; steps without a name's value."""
    cell = Named()
    x = torch.randn(T, B, F)
    recording = cello.record(cello.Recurrent(cell, state_size=((H, H), H)), x)
    old = recording["s0"][:-1]
    with torch.no_grad():
        chain = [old]
        for k in range(3):
            chain.append(torch.tanh(chain[-1] @ cell.w + k))
    for name, expected in zip(("h#1", "h#2", "h"), chain[1:], strict=True):
        torch.testing.assert_close(recording[name][1:], expected)
        assert recording[name][0].isnan().all()  # the first step ended before
    assert recording["start"][1:].isnan().all()
    torch.testing.assert_close(recording["gate#1"][1:], 3 * chain[3])
    torch.testing.assert_close(recording["gate"][1:], 6 * chain[3])
    torch.testing.assert_close(recording["mix.both"][1:], torch.cat([x[1:], chain[3]], -1))
    assert recording["opened"] is recording["inner.opened"]
    assert recording["flag"].dtype == torch.bool
    assert not recording["flag"][0].any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_functions_partials_compiled_and_scripted_code():
    def leaky(x, h, rate):
        new = h + rate * (x - h)
        return new

    x = torch.randn(T, B, H)
    half = functools.partial(leaky, rate=0.5)
    recording = cello.record(cello.Recurrent(half, state_size=H), x)
    assert torch.equal(recording["new"], recording["h"])
    for cell, names in ((torch.compile(Sum()), {"new"}), (torch.jit.script(add), set())):
        recording = cello.record(cello.Recurrent(cell, state_size=H), x)
        torch.testing.assert_close(recording["h"], torch.cumsum(x, 0))
        assert set(recording.at()) == {"input", "h"} | names


def add(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    new = x + h
    return new


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        new = x + h
        return new


def test_a_layer_inside_a_cell_is_not_recorded():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = cello.nn.GRU(F, H)

        def forward(self, x, h):
            _, state = self.layer(x[None], h[None])
            return state[0]

    recording = cello.record(cello.Recurrent(Outer(), state_size=H), torch.randn(T, B, F))
    assert list(recording.reverse) == ["l0"]
    assert set(recording.at()) == {"input", "h"}


def test_the_layer_and_everything_around_it_stay_as_they_were():
    layer = cello.nn.LSTM(F, H, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, F, requires_grad=True)
    tracer, random = sys.gettrace(), torch.get_rng_state()
    recording = cello.record(layer, x, gradients=True)
    assert sys.gettrace() is tracer
    assert torch.equal(torch.get_rng_state(), random)
    assert x.grad is None
    assert all(p.grad is None for p in layer.parameters())
    assert not recording.output.requires_grad
    assert not recording["f_l0"].requires_grad
    with cello.engine("reference"):  # the dropout that a call would have drawn
        torch.testing.assert_close(layer(x)[0].detach(), recording.output)


def test_an_error_of_the_cell_leaves_no_trace_function_behind():
    def broken(x, h):
        if len(x) == 2 and not x.is_meta:
            raise ArithmeticError("broken")
        return x + h

    before = sys.gettrace()
    with pytest.raises(ArithmeticError, match="broken"):
        cello.record(cello.Recurrent(broken, state_size=H), torch.randn(T, 2, H))
    assert sys.gettrace() is before
    # The recording engine is not selected any more either.
    plan = cello.explain(cello.nn.RNN(2, H), torch.randn(T, 2, 2)).plans[0]
    assert plan.engine != "record"


def test_buffers_are_not_written_to():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x, h):
            self.count += 1
            return x + h

    layer = cello.Recurrent(Counting(), state_size=H)
    cello.record(layer, torch.randn(T, B, H))
    assert layer.cells["l0"].count == 0


# Gradients


def test_gradients_by_hand():
    """For h' = a h + x the gradient of the last state falls by a at each step back."""

    def decay(x, h):
        return 0.5 * h + x

    recording = cello.record(
        cello.Recurrent(decay, state_size=H), torch.randn(T, B, H), gradients=True
    )
    powers = 0.5 ** torch.arange(T - 1, -1, -1.0)
    expected = powers[:, None, None].expand(T, B, H)
    torch.testing.assert_close(recording.gradients["h"], expected)
    torch.testing.assert_close(recording.gradients["input"], expected)
    reach = 0.5 ** torch.arange(T)[:, None].expand(T, B) * H**0.5
    torch.testing.assert_close(recording.reach(), reach)


def test_gradients_by_autograd_of_the_equations():
    layer = cello.nn.LSTM(F, H).double()
    x = torch.randn(T, B, F).double()
    weights = torch.randn(T, B, H).double()
    recording = cello.record(
        layer, x, gradients=True, of=lambda output, _: (output * weights).sum()
    )
    steps = [[] for _ in "ifgoch"]
    h = c = torch.zeros(B, H).double()
    outputs = []
    for x_t in x:
        pre = x_t @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T
        i, f, g, o = (pre + layer.bias_hh_l0).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        for kept, tensor in zip(steps, (i, f, g, o, c, h), strict=True):
            kept.append(tensor)
        outputs.append(h)
    loss = (torch.stack(outputs) * weights).sum()
    for name, kept in zip("ifgoch", steps, strict=True):
        expected = torch.autograd.grad(loss, kept, retain_graph=True, allow_unused=True)
        expected = [torch.zeros(B, H).double() if slope is None else slope for slope in expected]
        torch.testing.assert_close(recording.gradients[name], torch.stack(expected))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gradients_by_finite_differences(kind):
    """The gradient at h_t is the change of the loss when h_t is changed."""
    layer = getattr(cello.nn, kind)(F, H).double()
    x = torch.randn(T, 1, F).double()
    recording = cello.record(layer, x, gradients=True)
    t, step = 2, 1e-6
    state = tuple(recording[name][t][None] for name in recording.state_names)

    def loss(h):
        hx = (h, *state[1:]) if kind == "LSTM" else h
        final = layer(x[t + 1 :], hx)[1]
        return (final[0] if kind == "LSTM" else final).sum()

    with torch.no_grad():
        for unit in range(H):
            change = torch.zeros_like(state[0])
            change[..., unit] = step
            slope = (loss(state[0] + change) - loss(state[0] - change)) / (2 * step)
            torch.testing.assert_close(
                recording.gradients["h"][t, 0, unit], slope, rtol=1e-5, atol=1e-9
            )


@pytest.mark.parametrize("packed", [False, True])
def test_reach_of_sequences_of_different_lengths_in_both_directions(packed):
    layer = cello.Recurrent(lambda f: Decay(), H, bidirectional=True)
    x, lengths = torch.randn(T, B, H), torch.tensor([2, 6, 4])
    if packed:
        given = pack_padded_sequence(x, lengths, enforce_sorted=False)
        recording = cello.record(layer, given, gradients=True)
    else:
        recording = cello.record(layer, x, lengths=lengths, gradients=True)
    for direction in range(2):
        reach = recording.reach(direction=direction)
        for b, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(reach[:length, b], 2 * 0.5 ** torch.arange(length))
            assert reach[length:, b].isnan().all()


class Decay(nn.Module):
    def forward(self, x, h):
        return 0.5 * h + x


def test_no_gradient_of_what_was_written_over():
    layer = cello.Recurrent(Named(), state_size=((H, H), H))
    recording = cello.record(layer, torch.randn(T, B, F), gradients=True)
    assert "gate#1" in recording
    assert "gate#1" not in recording.gradients
    assert {"gate", "h#1", "mix.both"} <= {name.split("_l")[0] for name in recording.gradients}


def test_gradients_with_frozen_weights_and_of_integers():
    layer = cello.nn.GRU(F, H).requires_grad_(False)
    recording = cello.record(layer, torch.randn(T, B, F), gradients=True)
    assert recording.gradients["h"].shape == (T, B, H)
    with torch.inference_mode():
        inside = cello.record(layer, torch.randn(T, B, F), gradients=True)
    assert inside.gradients["h"].abs().sum() > 0


def test_inputs_that_are_integers_or_complex():
    class Symbols(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, H)

        def forward(self, x, h):
            e = self.table(x[:, 0])
            return torch.tanh(e + h)

    layer = cello.Recurrent(Symbols(), state_size=H)
    x = torch.randint(9, (T, B, 1))
    recording = cello.record(layer, x, lengths=[6, 0, 2], gradients=True)
    torch.testing.assert_close(recording["e"][:, 0], layer.cells["l0"].table(x[:, 0, 0]).detach())
    assert recording.mask.sum(0).tolist() == [6, 0, 2]
    assert "input" not in recording.gradients

    def rotate(x, h):
        turned = 1j * h + x
        return turned

    turning = cello.Recurrent(rotate, state_size=H)
    x = torch.randn(T, B, H, dtype=torch.complex64)
    recording = cello.record(turning, x, gradients=True)
    assert recording["turned"].dtype == torch.complex64
    # Of the real part of the last h, where each step turns h by 90 degrees.
    turns = torch.tensor([(-1j) ** (T - 1 - t) for t in range(T)])
    for name in ("turned", "input"):
        expected = turns[:, None, None].expand(T, B, H)
        torch.testing.assert_close(recording.gradients[name], expected)


# Words to the caller


def test_what_is_refused():
    layer, x = cello.nn.GRU(F, H, num_layers=2), torch.randn(T, B, F)
    with pytest.raises(TypeError, match=r"layer must be a layer of cello\.nn, got GRU"):
        cello.record(nn.GRU(F, H), x)
    with pytest.raises(ValueError, match="needs gradients=True"):
        cello.record(layer, x, of=lambda output, state: output.sum())
    with pytest.raises(ValueError, match=r"scalar .* got a tensor \(6, 3, 4\)"):
        cello.record(layer, x, gradients=True, of=lambda output, state: output)
    with pytest.raises(ValueError, match=r"scalar .* got float"):
        cello.record(layer, x, gradients=True, of=lambda output, state: 1.0)
    spare = nn.Parameter(torch.ones(3))
    for loss in (spare.sum(), spare.detach().sum()):
        with pytest.raises(ValueError, match=r"scalar .* got one that depends on none of them"):
            cello.record(layer, x, gradients=True, of=lambda output, state, loss=loss: loss)
    with pytest.raises(ValueError, match=r"real scalar .* got a complex tensor \(\)"):
        cello.record(layer, x, gradients=True, of=lambda output, state: output.sum() * 1j)
    with pytest.raises(ValueError, match="the last state depends on nothing that can have a grad"):
        cello.record(layer, x, lengths=[0] * B, gradients=True)
    nothing = cello.record(layer, x, lengths=[0] * B)
    with pytest.raises(KeyError, match="'h': no sequence has a step, so nothing was recorded"):
        nothing["h"]
    with pytest.raises(IndexError, match="no sequence has a step, so nothing was recorded"):
        nothing.value("h")
    recording = cello.record(layer, 100 * x)
    with pytest.raises(KeyError, match="'r' must end with a place, one of _l0, _l1"):
        recording["r"]
    with pytest.raises(
        KeyError, match="'q_l0' is not a unique name in the recording; available: x_r,"
    ):
        recording["q_l0"]
    with pytest.raises(IndexError, match="has 2 layers and 1 directions"):
        recording.at(2)
    with pytest.raises(ValueError, match="gradients=True"):
        recording.reach()
    with pytest.raises(
        ValueError, match="'x_r' is not a gate: expected values from 0 or -1 to 1, got"
    ):
        recording.saturation("x_r", layer=0)


class Crossed(NamedTuple):
    output: torch.Tensor
    input: torch.Tensor


class CrossedNames(nn.Module):
    def forward(self, x, state):
        return 3 * state.output, Crossed(state.output * 0.5 + x, state.input + x)


def test_parts_of_the_state_that_are_called_input_and_output():
    layer = cello.Recurrent(CrossedNames(), state_size=Crossed(F, F))
    x = torch.randn(T, B, F)
    recording = cello.record(layer, x, gradients=True)
    assert {*recording} == {"input#0_l0", "output_l0", "input_l0", "output#0_l0"}
    torch.testing.assert_close(recording["input#0"], x)
    torch.testing.assert_close(recording["input"], x.cumsum(0))
    state = torch.zeros(B, F)
    for t in range(T):
        torch.testing.assert_close(recording["output#0"][t], 3 * state)
        state = 0.5 * state + x[t]
        torch.testing.assert_close(recording["output"][t], state)
    assert recording.shown() == ("output", "input")
    norms = F**0.5 * 0.5 ** torch.arange(T)
    torch.testing.assert_close(recording.reach(), norms[:, None].expand(T, B))


def test_a_variable_whose_name_ends_like_a_place():
    def step(x, h):
        gate_l0 = torch.sigmoid(h)
        return gate_l0 * x

    layer, x = cello.Recurrent(step, state_size=F), torch.randn(T, B, F)
    recording = cello.record(layer, x)
    for key in ("gate_l0", "gate_l0_l0"):
        torch.testing.assert_close(recording[key] * x, recording["h"])
    with pytest.raises(KeyError, match="'q_l0' is not a unique name"):
        recording["q_l0"]


class Sometimes(nn.Module):
    """Assigns `gate` at every step but the first."""

    def forward(self, x, h):
        mask = x > 0
        count = mask.sum(1, keepdim=True)
        if bool((h != 0).any()):
            gate = torch.sigmoid(h)
            h = h * gate
        return h + x + 0 * count


def test_saturation_leaves_out_steps_that_assign_nothing():
    layer = cello.Recurrent(Sometimes(), state_size=F)
    recording = cello.record(layer, 9 * torch.randn(T, B, F))
    assert recording["gate"][0].isnan().all()
    values = recording["gate"][1:].flatten(0, 1)
    ends = [(values <= 0.05).float().mean(0), (values >= 0.95).float().mean(0)]
    torch.testing.assert_close(recording.saturation("gate"), torch.stack(ends, 1))
    assert recording.gates() == ("gate",)
    for name, dtype in (("mask", "bool"), ("count", "int64")):
        with pytest.raises(ValueError, match=f"'{name}' is not a gate: expected floating.*{dtype}"):
            recording.saturation(name)


def test_a_value_of_one_number_a_row():
    def step(x, h):
        gate = torch.sigmoid(h[:, 0])
        return x * gate[:, None]

    recording = cello.record(cello.Recurrent(step, state_size=F), torch.randn(T, B, F))
    closed = (recording["gate"] >= 0.95).float().mean()
    torch.testing.assert_close(recording.saturation("gate")[:, 1], closed[None])


def test_the_text_tells_like_layers_once():
    text = str(cello.record(cello.nn.GRU(F, H, bidirectional=True), torch.randn(T, B, F)))
    assert text.splitlines()[:2] == ["GRU(5, 4, bidirectional=True)", "  l0, l0_reverse"]
    assert text.count("    h      (6, 3, 4)  state") == 1


def test_saturation_by_counting():
    layer = cello.nn.LSTM(F, H)
    with torch.no_grad():
        layer.bias_ih_l0[:] = 0
        layer.bias_ih_l0[H] = 50.0  # the first forget gate is always open
        layer.bias_ih_l0[H + 1] = -50.0  # the second is always shut
    recording = cello.record(layer, torch.randn(T, B, F), lengths=[2, 6, 4])
    assert recording.gates() == ("i", "f", "o")
    shares = recording.saturation("f")
    assert shares[:2].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    values = recording["g"][recording.mask]
    expected = torch.stack([(values <= -0.8).float().mean(0), (values >= 0.8).float().mean(0)], 1)
    torch.testing.assert_close(recording.saturation("g", margin=0.1), expected)
