"""A cell that Cello is to ship is three steps, those of CONTRIBUTING.md: all else follows from them.

The cell is an LSTM with coupled gates and peepholes: it has a weight that torch's cells have not,
two states and a projection.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from by_hand import coupled, layers_by_hand, with_gradients
from cases import F, H, P, assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cello
from cello.cells import Equations, State, StatePart, weight
from cello.inspect.measure import compare
from cello.nn import RNNBase

T, B, L = 5, 3, 2
ROOMS = cello.cells, cello.nn
STEPS = Path(__file__).parent / "new_cell"


@pytest.fixture(scope="module", autouse=True)
def shipped() -> Iterator[None]:
    """The files of the steps stand where they belong, and the packages export what is in them."""
    with pytest.MonkeyPatch.context() as patch:
        for room, name in zip(ROOMS, ("Coupled", "CoupledLSTM"), strict=True):
            folder = STEPS / room.__name__.removeprefix("cello.")
            patch.setattr(room, "__path__", [*room.__path__, str(folder)])
            module = import_module(f"{room.__name__}.coupled")
            patch.setattr(room, name, getattr(module, name), raising=False)  # step 2
        yield


def make(**options: Any) -> RNNBase:
    torch.manual_seed(0)
    return cello.nn.CoupledLSTM(F, H, **{"num_layers": L, "dtype": torch.float64} | options)


def inputs(**options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        T, B, F, generator=generator, dtype=torch.float64, requires_grad=True, **options
    )


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("options", [{}, {"proj_size": P}, {"bidirectional": True}], ids=str)
def test_values_and_gradients_are_those_of_a_loop_by_hand(engine: str, options: dict[str, Any]):
    layer, x = make(**options), inputs()
    variables = [x, *layer.parameters()]
    with cello.engine(engine):
        found = with_gradients(layer(x), variables)
    assert_same(
        found, with_gradients(layers_by_hand(coupled, layer, x), variables), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_packed_sequences(engine: str):
    layer, x, lengths = make(bidirectional=True, proj_size=P), inputs(), [5, 3, 1]
    variables = [x, *layer.parameters()]
    with cello.engine(engine):
        output, state = layer(pack_padded_sequence(x, lengths))
    rows, parts = [], []
    for b, length in enumerate(lengths):
        row, part = layers_by_hand(coupled, layer, x[:length, b : b + 1])
        rows.append(functional.pad(row, (0, 0, 0, 0, 0, T - length)))
        parts.append(part)
    expected = torch.cat(rows, 1), tuple(torch.cat(p, 1) for p in zip(*parts, strict=True))
    found = with_gradients((pad_packed_sequence(output)[0], state), variables)
    assert_same(found, with_gradients(expected, variables), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"proj_size": P}], ids=str)
def test_steps_are_the_sequence(options: dict[str, Any], grad: bool):
    layer, x, state = make(**options), inputs(), None
    expected, (h, c) = layers_by_hand(coupled, layer, x)
    outputs = []
    with torch.set_grad_enabled(grad):
        for row in x:
            output, state = layer.step(row, state)
            outputs.append(output)
    assert_same((torch.stack(outputs), state), (expected, (h, c)), rtol=1e-10, atol=1e-12)


def test_other_functions_and_a_learned_start():
    layer = make(activation="relu", gate_activation="hardsigmoid", learn_initial_state=True)
    assert layer.activation is torch.relu
    assert repr(layer).endswith(
        "learn_initial_state=True, activation=relu, gate_activation=hardsigmoid)"
    )
    assert layer.initial_c_l1.shape == (H,)
    x = inputs()
    with torch.no_grad():
        layer.initial_c_l1.fill_(0.5)
    with cello.engine("reference"):
        expected = layer(x)
    assert_same(layer(x), expected)
    layer.initial_c_l1.data.zero_()
    assert not torch.equal(layer(x)[0], expected[0])


def test_state_dict_and_copies():
    layer, x = make(proj_size=P), inputs()
    names = ["weight_ih", "weight_hh", "weight_ch", "bias_ih", "bias_hh", "weight_hr"]
    assert list(layer.state_dict()) == [f"{name}_l{k}" for k in range(L) for name in names]
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items() if k.endswith("l1")} == {
        "weight_ih_l1": (3 * H, P),
        "weight_hh_l1": (3 * H, P),
        "bias_ih_l1": (3 * H,),
        "bias_hh_l1": (3 * H,),
        "weight_ch_l1": (2 * H,),
        "weight_hr_l1": (P, H),
    }
    other = cello.nn.CoupledLSTM(F, H, L, proj_size=P, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(same(x), layer(x))
    bare = make(bias=False, num_layers=1)
    assert list(bare.state_dict()) == ["weight_ih_l0", "weight_hh_l0", "weight_ch_l0"]


def test_explain_draw_and_record(tmp_path):
    layer, x = make(proj_size=P), inputs()
    told = cello.explain(layer, x)
    assert [plan.engine for plan in told.plans] == ["native", "native"]
    assert [(g.name, g.meaning, g.function, g.rows) for g in told.shapes.gates] == [
        ("f", "forget gate", "sigmoid", "0:H"),
        ("g", "candidate", "tanh", "H:2*H"),
        ("o", "output gate", "sigmoid", "2*H:3*H"),
    ]
    shapes = {w.name: (w.letters, w.numbers) for w in told.shapes.weights}
    assert shapes["weight_ch_l1"] == (("2*H",), (2 * H,))
    assert shapes["weight_ih_l1"] == (("G*H", "D*P"), (3 * H, P))
    assert shapes["weight_hr_l0"] == (("P", "H"), (P, H))
    assert told.shapes.places[0].counts == {
        "input weights": 3 * H * F,
        "recurrent weights": 3 * H * P,
        "biases": 6 * H,
        "peepholes": 2 * H,
        "projection": P * H,
    }
    assert "output[-1" in told.shapes.places[1].output
    pytest.importorskip("matplotlib")
    cello.draw(layer, x, tmp_path / "layer.png")
    assert (tmp_path / "layer.png").stat().st_size > 1000
    recording = cello.record(layer, x)
    assert recording.shown() == ("f", "g", "o", "h", "c")
    assert_same(recording.output, layers_by_hand(coupled, layer, x)[0], rtol=1e-10, atol=1e-12)


def test_compare():
    found = compare(make(), inputs().detach(), seconds=0.01)
    assert found.no_torch == "torch.nn has no layer of this cell"
    timed = {t.way: t for t in found.timings if t.training}
    assert list(timed) == ["reference", "cello", "native", "vendor"]
    assert timed["native"].difference < 1e-9
    assert "not a cell like Coupled" in timed["vendor"].reason


def test_calls_like_the_one_before():
    layer = make()
    for seed in range(3):
        x = torch.randn(T, B, F, generator=torch.Generator().manual_seed(seed)).double()
        expected, state = layers_by_hand(coupled, layer, x)
        with torch.no_grad():
            assert_same(layer(x), (expected, state), rtol=1e-10, atol=1e-12)
            assert_same(layer.step(x[0])[0], expected[0], rtol=1e-10, atol=1e-12)
            layer.weight_ch_l0.mul_(2)
    layer.activation = torch.relu
    with torch.no_grad(), cello.engine("reference"):
        expected = layer(x)
    with torch.no_grad():
        assert_same(layer(x), expected)


def test_torch_compile():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.layer(x + 1)[0]

    model, x = Model(), inputs()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    variables = [x, *model.parameters()]
    expected = 2 * layers_by_hand(coupled, model.layer, x + 1)[0]
    found = with_gradients(compiled(x), variables)
    assert_same(found, with_gradients(expected, variables), rtol=1e-10, atol=1e-12)


def test_a_cell_of_few_fields_and_what_it_does_not_have():
    class Leaky(Equations):
        weight_ih: Tensor = weight("input weights", "H", "F")
        rate: float = 0.5

        state = (StatePart("h", "hidden state", "H"),)

        def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
            h = state[0] + self.rate * (functional.linear(x, self.weight_ih) - state[0])
            return h, (h,)

    class LeakyLayers(RNNBase):
        equations = Leaky

    class Slow(LeakyLayers):
        def __init__(self, *args: Any, rate: float, **options: Any) -> None:
            self.rate = rate
            super().__init__(*args, **options)

    for name, value in {"proj_size": 1, "activation": "relu", "gate_activation": "relu"}.items():
        with pytest.raises(ValueError, match=f"{name}: LeakyLayers has no"):
            LeakyLayers(F, H, **{name: value})
    with pytest.raises(TypeError, match="RNNBase is abstract"):
        RNNBase(F, H)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'weight_ih'"):
        Leaky()
    x = inputs()
    layers = LeakyLayers(F, H, dtype=torch.float64), Slow(F, H, dtype=torch.float64, rate=0.125)
    for layer, rate in zip(layers, (0.5, 0.125), strict=True):
        h, rows = torch.zeros(B, H, dtype=torch.float64), []
        for row in x:
            h = (1 - rate) * h + rate * (row @ layer.weight_ih_l0.T)
            rows.append(h)
        variables = [x, layer.weight_ih_l0]
        expected = with_gradients((torch.stack(rows), h[None]), variables)
        assert_same(with_gradients(layer(x), variables), expected)
        assert cello.explain(layer, x).shapes.gates == ()


def test_a_task_takes_it_by_name():
    estimators = pytest.importorskip("cello.tasks.estimators")
    texts = ["a fine film", "a dull film", "so fine", "so dull"] * 10
    model = estimators.RecurrentClassifier(
        cell="coupledlstm", hidden=8, epochs=8, learning_rate=0.02
    )
    model.fit(texts, ["good", "bad"] * 20)
    assert list(model.predict(["fine", "dull"])) == ["good", "bad"]
    assert type(model.predictor_.model.recurrent) is cello.nn.CoupledLSTM
