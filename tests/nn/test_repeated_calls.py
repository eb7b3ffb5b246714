"""A call like the one before reuses its plan; any change between two calls must be seen."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import cello

LAYERS = {
    "RNN": lambda **options: cello.nn.RNN(3, 4, **options),
    "LSTM": lambda **options: cello.nn.LSTM(3, 4, **options),
    "GRU": lambda **options: cello.nn.GRU(3, 4, **options),
    "projected": lambda **options: cello.nn.LSTM(3, 4, proj_size=2, **options),
    "no bias": lambda **options: cello.nn.LSTM(3, 4, bias=False, **options),
    "reversed": lambda **options: cello.nn.GRU(3, 4, reverse=True, **options),
    "batch first": lambda **options: cello.nn.GRU(3, 4, batch_first=True, **options),
    "activation": lambda **options: cello.nn.LSTM(3, 4, activation="relu", **options),
}


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[request.param](dtype=torch.float64)


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensors(result: Any) -> list[Tensor]:
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def ordinary(layer: nn.Module, *args: Any) -> list[Tensor]:
    """What a copy that remembers nothing gives, in the Python loop."""
    fresh = copy.deepcopy(layer)
    with cello.engine("reference"):
        return tensors(fresh(*args))


def assert_right(layer: nn.Module, *args: Any) -> None:
    found, expected = tensors(layer(*args)), ordinary(layer, *args)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def remembered(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor | None = None
) -> list[bool]:
    """Call it once, and note from then on which calls took the ordinary way."""
    layer(inputs() if x is None else x)
    took: list[bool] = []
    ordinary_run = cello.nn.base.RecurrentLayer._run_anew

    def run(self, *args):
        took.append(False)
        return ordinary_run(self, *args)

    monkeypatch.setattr(cello.nn.base.RecurrentLayer, "_run_anew", run)
    return took


def test_the_second_call_takes_the_short_way_to_the_same_bits(layer, monkeypatch):
    x = inputs().requires_grad_()
    leaves = [x, *layer.parameters()]

    def call() -> list[Tensor]:
        results = tensors(layer(x))
        loss = sum((k + 1) * part.sin().sum() for k, part in enumerate(results))
        return [*results, *torch.autograd.grad(loss, leaves)]

    first = call()
    took = remembered(layer, monkeypatch)
    for a, b in zip(call(), first, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    assert took == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_take_it_too(layer, dtype, monkeypatch):
    layer, x = layer.to(dtype), inputs(dtype=dtype).requires_grad_()
    leaves = [x, *layer.parameters()]

    def run(*args: Any) -> list[Tensor]:
        if is_first:
            layer._plans.forget()
        return tensors(layer(*args))

    def call() -> list[Tensor]:
        _, *state = run(x)
        state = tuple(state) if len(state) > 1 else state[0]
        results = run(x, state)
        loss = sum((k + 1) * part.sin().sum() for k, part in enumerate(results))
        with torch.no_grad():
            return [*results, *run(x, state), *torch.autograd.grad(loss, leaves)]

    with cello.engine("native"):
        is_first = True
        first = call()
        is_first = False
        took = remembered(layer, monkeypatch, x)
        for a, b in zip(call(), first, strict=True):
            assert a.dtype == dtype
            assert torch.equal(a, b)
    assert took == []


def test_states_and_other_shapes_take_it_too(layer, monkeypatch):
    _, state = layer(inputs())
    took = remembered(layer, monkeypatch)
    _, state = layer(inputs(1), state)
    _, state = layer(inputs(2), state)
    layer(inputs()[:1] if layer.batch_first else inputs()[:, :1])
    layer(torch.randn(5, 2, 6, dtype=torch.float64)[..., ::2])
    assert took == []
    monkeypatch.undo()
    assert_right(layer, inputs(3), state)
    assert_right(layer, torch.randn(5, 2, 6, dtype=torch.float64)[..., ::2])


def test_second_derivatives(layer):
    layer(inputs())
    x = inputs().requires_grad_()
    torch.autograd.gradgradcheck(lambda x: layer(x)[0], [x])


def halve(layer):
    layer.weight_ih_l0.data.mul_(0.5)


def replace_weight(layer):
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() * 0.5)


def replace_data(layer):
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.t().contiguous().t() * 0.5


def normalize(layer):
    parametrizations.weight_norm(layer, "weight_hh_l0")
    layer.parametrizations.weight_hh_l0.original0.data.mul_(0.5)


def load(layer):
    layer.load_state_dict({k: v * 0.5 for k, v in layer.state_dict().items()})


def narrow(layer):
    layer.half().double()


@pytest.mark.parametrize("change", [halve, replace_weight, replace_data, normalize, load, narrow])
def test_changed_weights_show(layer, change):
    layer(inputs())
    before = layer(inputs())[0]
    change(layer)
    assert_right(layer, inputs())
    assert_right(layer, inputs())
    assert not torch.equal(before, layer(inputs())[0])


def test_changed_settings_show():
    layer = cello.nn.GRU(3, 4, dtype=torch.float64)
    layer(inputs())
    for name, value in (
        ("activation", torch.relu),
        ("gate_activation", torch.tanh),
        ("reverse", True),
        ("batch_first", True),
    ):
        before = layer(inputs())[0]
        setattr(layer, name, value)
        assert_right(layer, inputs())
        assert not torch.equal(before, layer(inputs())[0])


def test_copies_do_not_share_what_is_remembered():
    layer = cello.nn.GRU(3, 4, dtype=torch.float64)
    layer(inputs())
    shallow = copy.copy(layer)
    shallow.reverse = True
    for one in (layer, shallow, layer, shallow):
        assert_right(one, inputs())
    for fresh in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert fresh._plans.find(inputs(), False) is None
        assert_right(fresh, inputs())


def test_frozen_weights_and_inputs(layer):
    layer(inputs())
    layer.weight_ih_l0.requires_grad_(False)
    output, _ = layer(inputs())
    output.sum().backward()
    assert layer.weight_ih_l0.grad is None
    assert layer.weight_hh_l0.grad is not None
    layer.requires_grad_(False)
    assert not layer(inputs())[0].requires_grad
    with torch.no_grad():
        assert not layer(inputs().requires_grad_())[0].requires_grad


def test_weights_that_are_computed_are_computed_anew():
    layer = cello.nn.LSTM(3, 4, dtype=torch.float64)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for seed in range(3):
        output, _ = layer(inputs(seed))
        output.sum().backward()
        optimizer.step()
        assert_right(layer, inputs())
    with torch.no_grad():
        layer(inputs())
        layer.parametrizations.weight_hh_l0.original1.add_(1)
        assert_right(layer, inputs())


def leave_a_leak(activation):
    activation[0] = nn.LeakyReLU(0.3)


def add_a_hook(activation):
    activation.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize("change", [leave_a_leak, add_a_hook, lambda a: a.eval()])
def test_changes_within_an_activation_show(change):
    layer = cello.nn.GRU(3, 4, activation=nn.Sequential(nn.ReLU(), nn.Dropout(0.0)))
    layer = layer.double()
    layer(inputs())
    layer(inputs())
    change(layer.activation)
    assert_right(layer, inputs())


def test_subclasses_and_loose_weights():
    class Ones(cello.nn.GRU):
        def _initial_state(self, cell, layer, direction, batch_size, like):
            return (torch.ones(batch_size, 4, dtype=like.dtype),)

    layer = Ones(3, 4, dtype=torch.float64)
    assert torch.equal(layer(inputs())[0], layer(inputs())[0])
    layer = cello.nn.GRU(3, 4, dtype=torch.float64)
    weight = layer.weight_hh_l0.detach().clone()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight
    layer(inputs())
    weight.data = torch.randn(2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        layer(inputs())


def test_functional_calls_and_transforms(layer):
    layer(inputs())
    weights = {name: p.detach() * 0.5 for name, p in layer.named_parameters()}
    other = copy.deepcopy(layer)
    other.load_state_dict(weights)
    expected = ordinary(other, inputs())
    found = tensors(torch.func.functional_call(layer, weights, (inputs(),)))
    torch.testing.assert_close(found, expected)
    gradient = torch.func.grad(lambda x: layer(x)[0].sum())(inputs())
    x = inputs().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(x)[0].sum(), x)[0])
    many = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([inputs(), inputs(1)]))
    torch.testing.assert_close(many[1], layer(inputs(1))[0])


def test_terms_and_onlookers(layer, monkeypatch):
    took = remembered(layer, monkeypatch)
    with cello.engine("reference"):
        layer(inputs())
    layer(inputs())
    assert took == [False, False]  # the second finds out what the first could not
    layer(inputs())
    assert took == [False, False]
    assert cello.explain(layer, inputs()).plans[0].engine == "native"
    assert took == [False, False, False]
    layer(inputs())
    with cello.engine(segment=2):
        layer(inputs())
    assert took[3:] == [False]
    for _ in range(2):
        with cello.engine(strict=True):
            layer(inputs())
    assert took[4:] == [False]


def test_explain_is_true_of_a_step(layer):
    """Which engine runs it, with gradients and without, the first time and with a plan."""
    if layer.reverse:
        pytest.skip("no step backwards")
    x = inputs()[0]
    one = x[:, None] if layer.batch_first else x[None]
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            told = cello.explain(layer, one).plans[0].engine
            with cello.engine(told):
                expected = layer.step(x)
            for _ in range(3):
                for found, wanted in zip(tensors(layer.step(x)), tensors(expected), strict=True):
                    assert torch.equal(found, wanted)


def test_a_step_with_gradients_is_torchs():
    """As in nn.LSTMCell, bit for bit; without gradients and for several steps it is the native engine."""
    layer, cell = cello.nn.LSTM(3, 4), nn.LSTMCell(3, 4)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.named_parameters()})
    x = inputs(dtype=torch.float32)[0]
    h, c = cell(x)
    for _ in range(2):
        output, (h_n, c_n) = layer.step(x)
        assert torch.equal(output, h)
        assert torch.equal(h_n[0], h)
        assert torch.equal(c_n[0], c)
        assert h_n.data_ptr() != output.data_ptr()
    plan = cello.explain(layer, x[None]).plans[0]
    assert plan.engine == "vendor"
    assert "a single step" in plan.reasons["native"][0]
    assert cello.explain(layer, inputs(dtype=torch.float32)).plans[0].engine == "native"
    with torch.no_grad():
        assert cello.explain(layer, x[None]).plans[0].engine == "native"


def test_autocast(layer):
    layer = layer.float()
    x = inputs(dtype=torch.float32)
    layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(copy.deepcopy(layer)(x)[0], first)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: (inputs()[..., :2],), RuntimeError),
        (lambda: (inputs().float(),), ValueError),
        (lambda: (inputs()[0, 0],), ValueError),
        (lambda: (inputs(), torch.zeros(1, 3, 4).double()), RuntimeError),
        (lambda: (inputs(), (torch.zeros(1, 2, 4).double(),)), RuntimeError),
    ],
)
def test_errors_are_those_of_a_first_call(layer, wrong, error):
    layer(inputs())
    with pytest.raises(error) as found:
        layer(*wrong())
    with pytest.raises(error) as expected:
        copy.deepcopy(layer)(*wrong())
    assert str(found.value) == str(expected.value)


def test_no_sequences_and_no_batch(layer):
    layer(inputs())
    assert layer(inputs()[:, 0])[0].dim() == 2
    without_sequences, without_steps = inputs()[:, :0], inputs()[:0]
    if layer.batch_first:
        without_sequences, without_steps = without_steps, without_sequences
    assert layer(without_sequences)[0].numel() == 0
    with pytest.raises(RuntimeError, match="at least one step"):
        layer(without_steps)
