"""The comparison of ways to run a layer: what is compared, what is refused, in which order it is timed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence

import cello
from cello.inspect import measure
from cello.inspect.measure import alternate, compare, torch_layer, why_no_torch

T, B, F, H = 6, 3, 5, 4


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
        ("LSTM", {"bias": False, "batch_first": True}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"nonlinearity": "relu"}),
        ("RNN", {"bidirectional": True}),
    ],
    ids=str,
)
def test_the_layer_of_torch_gives_the_same(kind, options):
    layer = getattr(cello.nn, kind)(F, H, dtype=torch.float64, **options)
    twin = torch_layer(layer)
    assert type(twin) is getattr(nn, kind)
    assert why_no_torch(layer) == ""
    x = torch.randn(T, B, F, dtype=torch.float64)
    torch.testing.assert_close(twin(x), layer(x))


def test_why_torch_has_no_such_layer():
    told = {
        cello.nn.LSTM(F, H, gate_activation="hardsigmoid"): "gate_activation=hardsigmoid",
        cello.nn.GRU(F, H, bidirectional=True, merge="sum"): "merge='sum'",
        cello.nn.RNN(F, H, reverse=True): "reverse",
        cello.nn.LSTM(F, (H, H), num_layers=2): "layers of different widths",
        cello.nn.GRU(F, H, learn_initial_state=True): "learn_initial_state",
        cello.nn.RNN(F, H, activation="elu"): "activation=elu",
    }
    for layer, reason in told.items():
        assert why_no_torch(layer) == f"torch.nn has no {reason}"
    foreign = cello.Recurrent(nn.GRUCell(F, H))
    assert why_no_torch(foreign) == "torch.nn has no layer of this cell"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_ways_agree_and_are_timed(packed, dtype):
    # Of dense bfloat16 LSTMs the native engine keeps away.
    kind = cello.nn.GRU if dtype == torch.bfloat16 else cello.nn.LSTM
    layer = kind(F, H, num_layers=2, dropout=0.5, bidirectional=True, dtype=dtype)
    x = torch.randn(T, B, F, dtype=dtype)
    given = pack_sequence([x[:, 0], x[:4, 1]]) if packed else x
    before = {name: p.clone() for name, p in layer.named_parameters()}
    found = compare(layer, given, engines=("native", "vendor", "reference"), seconds=0.01)
    names = ["torch.nn", "cello", "native", "vendor", "reference"]
    assert [t.way for t in found.timings] == names * 2
    assert [t.training for t in found.timings] == [False] * 5 + [True] * 5
    for timing in found.timings:
        assert timing.reason == ""
        assert timing.rounds >= 3
        assert timing.quartiles[0] <= timing.seconds <= timing.quartiles[1]
        assert set(timing.engines) <= ({timing.way} if timing.way in names[2:] else set(names))
    assert found.timings[0].difference == 0
    assert found.ratio(found.timings[5]) == 1
    assert layer.dropout == 0.5  # the layer itself is not touched
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in layer.named_parameters()
    )


def test_where_torch_has_none_the_loop_comes_first():
    layer = cello.nn.LSTM(F, H, gate_activation="hardsigmoid")
    found = compare(layer, torch.randn(T, B, F), seconds=0.01)
    assert [t.way for t in found.timings[:4]] == ["reference", "cello", "native", "vendor"]
    assert "gate_activation=hardsigmoid" in found.no_torch
    (refused,) = [t for t in found.timings if t.reason and not t.training]
    assert refused.way == "vendor"
    assert refused.reason == "torch's kernel has sigmoid gates built in, not hardsigmoid"
    assert not refused.differs


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_frozen_weights_get_no_gradient(kind):
    layer = getattr(cello.nn, kind)(F, H, bidirectional=True)
    layer.weight_ih_l0.requires_grad_(False)
    found = compare(layer, torch.randn(T, B, F), seconds=0.01)
    assert not any(timing.reason for timing in found.timings)
    assert not torch_layer(layer).weight_ih_l0.requires_grad
    compare(layer.requires_grad_(False), torch.randn(T, B, F), seconds=0.01)


def test_other_results_are_not_timed(monkeypatch):
    """Weights that are not those of the layer: what is compared are numbers, not names."""

    def other_weights(layer):
        twin = torch_layer(layer)
        with torch.no_grad():
            twin.weight_hh_l0[0, 0] += 1
        return twin

    monkeypatch.setattr(measure, "torch_layer", other_weights)
    found = compare(cello.nn.GRU(F, H), torch.randn(T, B, F), seconds=0.01)
    for timing in found.timings:
        assert timing.differs == (timing.way != "torch.nn")
        assert timing.differs == timing.reason.startswith("results differ by ")
        assert timing.rounds == 0 or timing.way == "torch.nn"


def test_a_cell_that_draws_random_numbers_is_timed():
    class Noisy(nn.GRUCell):
        def forward(self, x, h):
            return torch.bernoulli(torch.full_like(h, 0.5)) * super().forward(x, h)

    found = compare(cello.Recurrent(Noisy(F, H)), torch.randn(T, B, F), seconds=0.01)
    names = [
        (timing.way, bool(timing.rounds), math.isnan(timing.difference)) for timing in found.timings
    ]
    assert ("reference", True, False) in names
    assert ("cello", True, True) in names


def test_results_without_numbers_are_no_random_ones():
    class Lost(nn.GRUCell):
        def forward(self, x, h):
            return super().forward(x, h) * torch.nan

    found = compare(cello.Recurrent(Lost(F, H)), torch.randn(T, B, F), seconds=0.01)
    ran = [timing for timing in found.timings if timing.way != "vendor"]
    assert {timing.way for timing in ran} == {"reference", "cello", "native"}
    for timing in ran:
        assert timing.differs
        assert timing.reason == "results hold NaN or infinities, and cannot be compared"


def test_wrong_gradients_alone_are_found(monkeypatch):
    class Wrong(nn.GRU):
        def forward(self, x, hx=None):
            output, state = super().forward(x)
            return output + 0.1 * (output - output.detach()), state

    def wrong(layer):
        twin = Wrong(F, H)
        twin.load_state_dict(layer.state_dict())
        return twin

    monkeypatch.setattr(measure, "torch_layer", wrong)
    found = compare(cello.nn.GRU(F, H), torch.randn(T, B, F), engines=(), seconds=0.01)
    assert [t.differs for t in found.timings] == [False, False, False, True]


def test_ways_run_in_turn():
    order = []
    times = alternate({name: lambda name=name: order.append(name) for name in "abc"}, seconds=0)
    assert order == list("abc") * 3
    assert {name: len(rounds) for name, rounds in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert alternate({}, seconds=0) == {}


def test_threads_are_as_before():
    before = torch.get_num_threads()
    with measure.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_picture_has_a_bar_for_each_time():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    found = compare(cello.nn.GRU(F, H), torch.randn(T, B, F), seconds=0.01)
    figure = measure.draw_comparison([found])
    forward, training = figure.subfigs[0].axes
    for axes, timings in ((forward, found.timings[:4]), (training, found.timings[4:])):
        bars = [bar.get_width() for bar in axes.patches]
        assert bars == pytest.approx([1e3 * timing.seconds for timing in timings])


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x, h):
        return torch.tanh(self.table(x[:, 0]) + h)


def test_integers_have_no_gradient():
    layer = cello.Recurrent(Letters(), state_size=4)
    found = compare(layer, torch.randint(7, (5, 2, 1)), engines=["native"], seconds=0.01)
    assert {(t.way, t.training) for t in found.timings if t.rounds} == {
        (way, training) for way in ("reference", "cello", "native") for training in (False, True)
    } or not all(t.reason == "" for t in found.timings)


def test_computed_weights_are_compared_with_the_loop():
    layer = cello.nn.LSTM(3, 4)
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    found = compare(layer, torch.randn(5, 2, 3), engines=[], seconds=0.01)
    assert "computed" in found.no_torch
    assert found.timings[0].way == "reference"


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"layer must be a layer of cello\.nn, got LSTM"):
        compare(nn.LSTM(F, H), torch.randn(T, B, F))
    with pytest.raises(ValueError, match=r"must be one of native, .* got 'fast'"):
        compare(cello.nn.LSTM(F, H), torch.randn(T, B, F), engines=["fast"])


def test_a_difference_of_imaginary_parts_counts():
    expected = torch.tensor([3 + 4j])
    assert measure._distance(torch.tensor([3 - 1j]), expected) == pytest.approx(1)
    assert measure._distance(expected, expected) == 0


def test_complex_output_is_trained():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = nn.Parameter(torch.randn(H, dtype=torch.complex64))

        def forward(self, x, h):
            return self.turn * h + x

    x = torch.randn(T, B, H, dtype=torch.complex64)
    found = compare(cello.Recurrent(Turning(), state_size=H), x, engines=["native"], seconds=0.01)
    assert [(t.way, t.reason) for t in found.timings if t.training] == [
        (way, "") for way in ("reference", "cello", "native")
    ]


def test_gradients_are_those_of_both_parts_and_zero_where_there_are_none():
    row = torch.tensor([1 + 2j], requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    # The sum of the parts of r * (3 + 4j), where r = a + bj, is 7 a - b.
    slope, zero = measure._slopes([row * (3 + 4j)], [row, unused])
    torch.testing.assert_close(slope, torch.tensor([7 - 1j]))
    assert zero.tolist() == [0, 0]


def test_a_weight_that_the_output_does_not_reach():
    class Spare(nn.GRUCell):
        def __init__(self):
            super().__init__(F, H)
            self.spare = nn.Linear(2, 2)

    found = compare(cello.Recurrent(Spare()), torch.randn(T, B, F), engines=[], seconds=0.01)
    assert [t.reason for t in found.timings] == [""] * 4


def test_nothing_to_train():
    layer = cello.Recurrent(Letters(), state_size=4).requires_grad_(False)
    found = compare(layer, torch.randint(7, (5, 2, 1)), engines=["native"], seconds=0.01)
    for timing in found.timings:
        assert bool(timing.rounds) != timing.training
        assert timing.reason.startswith("nothing to train") == timing.training
    assert not found.is_rough


def pruned_layer():
    layer = cello.nn.LSTM(F, H)
    prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
    return layer


def layer_of_a_pruned_cell():
    layer = cello.Recurrent(nn.GRUCell(F, H))
    prune.l1_unstructured(layer.cells["l0"], "weight_hh", 0.5)
    return layer


@pytest.mark.parametrize("make", [pruned_layer, layer_of_a_pruned_cell])
def test_pruned_weights_are_compared_with_the_loop(make):
    layer, x = make(), torch.randn(T, B, F)
    layer(x)  # leaves a computed weight in the layer
    found = compare(layer, x, engines=["native"], seconds=0.01)
    assert [(t.way, t.reason) for t in found.timings] == [
        (way, "") for way in ("reference", "cello", "native")
    ] * 2
    assert found.no_torch
