"""A layer of one's own cells reuses its plan too; whatever can change between two calls must be seen."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import cello

F, H = 3, 4
SCALE = 1.0


class HandLSTM(nn.Module):
    """An LSTM with a module inside, dropout, a buffer, and attributes that its step reads."""

    def __init__(self, features: int = F, hidden: int = H) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.from_x = nn.Linear(features, 4 * hidden)
        self.from_h = nn.Linear(hidden, 4 * hidden, bias=False)
        self.register_buffer("mask", torch.linspace(0.5, 1.0, hidden))
        self.drop = nn.Dropout(0.0)
        self.gain, self.act = 1.0, torch.tanh

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, c = state
        i, f, g, o = (self.from_x(x) + self.from_h(h)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * self.act(g) * self.gain
        h = o.sigmoid() * torch.tanh(c) * self.mask * SCALE
        return self.drop(h), (h, c)


class MGU(cello.Cell):
    """A cello.Cell, which says itself what its state is."""

    def __init__(self, features: int = F, hidden: int = H) -> None:
        super().__init__()
        self.width = hidden
        self.forget, self.new = nn.Linear(features + hidden, hidden), nn.Linear(features, hidden)

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"h": self.width}

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, Any]:
        (h,) = state
        f = torch.sigmoid(self.forget(torch.cat([x, h], dim=1)))
        h = (1 - f) * h + f * torch.tanh(self.new(x))
        return h, (h,)


class Pair(NamedTuple):
    slow: Tensor
    fast: Tensor


class Deep(nn.Module):
    """A named tuple for a state, and a function of the input that is computed for all steps at once."""

    def __init__(self, features: int = F, hidden: int = H) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, hidden))
        self.rate = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, state: Pair) -> tuple[Tensor, Pair]:
        fast = torch.tanh(self.read(x) + state.slow)
        slow = state.slow + torch.sigmoid(self.rate) * (fast - state.slow)
        return fast * slow, Pair(slow, fast)


class Grid(nn.Module):
    """A state of two axes, whose output is its flat sum over one."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(F, 2 * H)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.tanh(self.read(x).view(-1, 2, H) + 0.5 * s)
        return s.sum(1), s


class Normed(nn.Module):
    """A weight that each call computes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(H, H)), nn.Parameter(torch.ones(H, 1))
        self.read = nn.Linear(F, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        weight = self.g * self.v / self.v.norm(dim=1, keepdim=True)
        return torch.tanh(self.read(x) + nn.functional.linear(h, weight))


def decay(x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(0.8 * h + x.sum(1, keepdim=True))


R = cello.nn.Recurrent
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: R(HandLSTM(), state_size=(H, H)),
    "mgu": lambda: R(MGU()),
    "nested": lambda: R(Deep(), state_size=Pair(H, H)),
    "two axes": lambda: R(Grid(), state_size=torch.Size([2, H])),
    "computed weight": lambda: R(Normed(), state_size=H),
    "function": lambda: R(decay, state_size=H),
    "torch's cell": lambda: R(nn.LSTMCell(F, H)),
    "torch's cell without bias": lambda: R(nn.RNNCell(F, H, bias=False, nonlinearity="relu")),
    "our cell": lambda: R(cello.nn.GRUCell(F, H, activation="relu")),
    "our cell with a module": lambda: R(cello.nn.GRUCell(F, H, activation=nn.PReLU())),
    "two layers": lambda: R(HandLSTM, F, H, num_layers=2, state_size=(H, H)),
    "two of torch's": lambda: R(nn.GRUCell, F, H, num_layers=2),
    "batch first": lambda: R(MGU(), batch_first=True),
    "reversed": lambda: R(MGU(), reverse=True),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name]().double()


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    return made(request.param)


@pytest.fixture
def lstm() -> nn.Module:
    return made("lstm")


def inputs(seed: int = 0, steps: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, steps, F, generator=generator, dtype=torch.float64)


def flat(nested: Any) -> list[Tensor]:
    return [nested] if isinstance(nested, Tensor) else [t for item in nested for t in flat(item)]


def results(layer: nn.Module, x: Tensor, *hx: Any) -> list[Tensor]:
    """Values, and gradients of what wants one."""
    x = x.clone().requires_grad_()
    found = flat(layer(x, *hx))
    wants = [x, *(p for p in layer.parameters() if p.requires_grad)]
    loss = sum((k + 1) * part.sin().sum() for k, part in enumerate(found))
    gradients = torch.autograd.grad(loss, wants, allow_unused=True)
    with torch.no_grad():
        found += flat(layer(x, *hx))
    return [*found, *(torch.zeros(()) if g is None else g for g in gradients)]


def assert_right(layer: nn.Module, x: Tensor, *hx: Any) -> None:
    """As a copy gives it that remembers nothing, in the Python loop; at a first and a second call."""
    fresh = copy.deepcopy(layer)
    with cello.engine("reference"):
        expected = results(fresh, x, *hx)
    for _ in range(2):
        found = results(layer, x, *hx)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, check_dtype=False)


@pytest.fixture
def took(monkeypatch) -> list[str]:
    """A note for each call that took the ordinary way."""
    notes: list[str] = []
    ordinary = cello.nn.base.RecurrentLayer._run_anew

    def run(self, *args):
        notes.append("ordinary")
        return ordinary(self, *args)

    monkeypatch.setattr(cello.nn.base.RecurrentLayer, "_run_anew", run)
    return notes


def test_the_second_call_has_the_bits_and_strides_of_the_first(layer, took):
    first = results(layer, inputs())
    took.clear()
    second = results(layer, inputs())
    assert took == []
    for a, b in zip(second, first, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    assert_right(layer, inputs())


def test_states_shapes_and_layouts_take_it_too(layer, took):
    with torch.no_grad():
        _, state = layer(inputs())
    took.clear()
    with torch.no_grad():
        _, state = layer(inputs(1), state)
    assert took == []
    strided = torch.cat([inputs(2), inputs(3)], dim=2)[..., ::2]
    assert_right(layer, strided, state)
    wide = [torch.stack([part, part], dim=-1)[..., 0] for part in flat(state)]
    nested = layer._structure().unflatten(wide)
    took.clear()
    layer(strided, nested)
    assert took == []
    assert_right(layer, inputs(), nested)
    assert not wide[0].is_contiguous()


def test_steps_are_the_call(layer, took):
    if layer.reverse:
        pytest.skip("no step backwards")
    x = inputs()
    rows = x.unbind(1 if layer.batch_first else 0)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            with cello.engine("reference"):
                expected, _ = copy.deepcopy(layer)(x)
            layer.step(rows[0])
            took.clear()
            state, outputs = None, []
            for row in rows:
                output, state = layer.step(row, state)
                outputs.append(output)
            assert took == []
            found = torch.stack(outputs, dim=1 if layer.batch_first else 0)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(layer, dtype, took):
    layer, x = layer.to(dtype), inputs().to(dtype)
    first = results(layer, x)
    took.clear()
    second = results(layer, x)
    assert took == []
    for a, b in zip(second, first, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def set_scale(layer: nn.Module) -> None:
    global SCALE
    SCALE = 0.5


def patch_method(layer: nn.Module) -> None:
    HandLSTM.forward = lambda self, x, state: (state[0] + x[:, :1], state)


def patch_instance(layer: nn.Module) -> None:
    layer.cells["l0"].forward = lambda x, state: (state[0] + x[:, :1], state)


def replace_cell(layer: nn.Module) -> None:
    torch.manual_seed(1)
    layer.cells["l0"] = HandLSTM().double()


def replace_numbers(layer: nn.Module) -> None:
    weight = layer.cells["l0"].from_h.weight
    weight.data = weight.data.t().contiguous().t() * 0.5


def grow(layer: nn.Module) -> None:
    cell = layer.cells["l0"]
    cell.from_x.bias = None


def tie(layer: nn.Module) -> None:
    cell = layer.cells["l0"]
    cell.from_x.bias = nn.Parameter(torch.zeros(4 * H).double())
    cell.from_x.bias.data = cell.from_x.weight.data[:, 0].contiguous()


def load(layer: nn.Module) -> None:
    layer.load_state_dict({k: v * 0.5 for k, v in layer.state_dict().items()})


def train_with_dropout(layer: nn.Module) -> None:
    layer.cells["l0"].drop.p = 1.0


class OtherLSTM(HandLSTM):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        output, state = super().forward(x, state)
        return 0.5 * output, state


class OtherLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "attribute": lambda layer: setattr(layer.cells["l0"], "gain", 0.5),
    "function": lambda layer: setattr(layer.cells["l0"], "act", torch.relu),
    "numbers of a buffer": lambda layer: layer.cells["l0"].mask.mul_(0.5),
    "buffer": lambda layer: setattr(layer.cells["l0"], "mask", torch.ones(H).double() * 0.3),
    "numbers of a weight": lambda layer: layer.cells["l0"].from_h.weight.data.mul_(0.5),
    "data of a weight": replace_numbers,
    "weight": lambda layer: setattr(
        layer.cells["l0"].from_h, "weight", nn.Parameter(torch.ones(4 * H, H).double())
    ),
    "module": lambda layer: setattr(layer.cells["l0"], "from_h", nn.Linear(H, 4 * H).double()),
    "no bias": grow,
    "another bias": tie,
    "state_dict": load,
    "global variable": set_scale,
    "method of the class": patch_method,
    "method of the object": patch_instance,
    "cell": replace_cell,
    "dropout": train_with_dropout,
    "class of the cell": lambda layer: setattr(layer.cells["l0"], "__class__", OtherLSTM),
    "class within the cell": lambda layer: setattr(
        layer.cells["l0"].from_h, "__class__", OtherLinear
    ),
    "reverse": lambda layer: setattr(layer, "reverse", True),
    "batch_first": lambda layer: setattr(layer, "batch_first", True),
    "weight norm": lambda layer: (
        parametrizations.weight_norm(layer.cells["l0"].from_h),
        layer.cells["l0"].from_h.parametrizations.weight.original0.data.mul_(0.5),
    ),
    "hook of the cell": lambda layer: layer.cells["l0"].register_forward_hook(
        lambda module, args, output: (2 * output[0], output[1])
    ),
    "hook within the cell": lambda layer: layer.cells["l0"].from_h.register_forward_hook(
        lambda module, args, output: 2 * output
    ),
    "hook of the layer": lambda layer: layer.register_forward_hook(
        lambda module, args, output: (2 * output[0], output[1])
    ),
}


@pytest.fixture
def put_back(monkeypatch) -> None:
    global SCALE
    forward, scale = HandLSTM.forward, SCALE
    yield
    HandLSTM.forward, SCALE = forward, scale


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(lstm, change, took):
    before = results(lstm, inputs())
    took.clear()
    results(lstm, inputs())
    assert took == []  # or the change would be seen without a plan
    CHANGES[change](lstm)
    assert_right(lstm, inputs())
    after = results(lstm, inputs())
    assert not torch.equal(before[0], after[0])


STEPPED = sorted(set(CHANGES) - {"reverse", "batch_first"})


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("change", STEPPED)
def test_a_change_shows_in_a_step(lstm, change):
    x = inputs()[0]
    with torch.no_grad():
        _, state = lstm.step(x)
        before, _ = lstm.step(x, state)
        CHANGES[change](lstm)
        with cello.engine("reference"):
            expected, _ = copy.deepcopy(lstm).step(x, state)
        for _ in range(2):
            found, _ = lstm.step(x, state)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        assert not torch.equal(found, before)


STOCK = {
    "weight": lambda cell: setattr(cell, "weight_hh", nn.Parameter(torch.ones(4 * H, H).double())),
    "numbers": lambda cell: cell.weight_hh.data.mul_(0.5),
    "data": lambda cell: setattr(cell.weight_hh, "data", torch.ones(H, 4 * H).double().t()),
    "hook": lambda cell: cell.register_forward_hook(lambda m, a, o: (2 * o[0], o[1])),
    "method": lambda cell: setattr(cell, "forward", lambda x, s: (x.sum(1, True) + s[0], s[1])),
    "parametrization": lambda cell: (
        parametrizations.weight_norm(cell, "weight_hh"),
        cell.parametrizations.weight_hh.original0.data.mul_(0.5),
    ),
}


@pytest.mark.parametrize("change", STOCK)
def test_a_change_of_torchs_cell_shows(change, took):
    layer = made("torch's cell")
    with torch.no_grad():
        _, hx = layer(inputs())
    before = results(layer, inputs(), hx)
    took.clear()
    results(layer, inputs(), hx)
    assert took == []
    STOCK[change](layer.cells["l0"])
    assert_right(layer, inputs(), hx)
    assert not torch.equal(results(layer, inputs(), hx)[0], before[0])


def test_changed_activations_of_our_cell_show(took):
    for name, change in (
        ("our cell", lambda cell: setattr(cell, "activation", torch.tanh)),
        ("our cell", lambda cell: setattr(cell, "gate_activation", torch.tanh)),
        ("our cell with a module", lambda cell: setattr(cell, "activation", nn.ReLU())),
        ("our cell with a module", lambda cell: cell.activation.weight.data.mul_(-1)),
    ):
        layer = made(name)
        before = results(layer, inputs())
        took.clear()
        results(layer, inputs())
        assert took == []
        change(layer.cells["l0"])
        assert_right(layer, inputs())
        assert not torch.equal(results(layer, inputs())[0], before[0])


def test_hooks_for_all_modules_see_every_step(lstm):
    results(lstm, inputs())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module)) or None
    )
    with handle:
        lstm(inputs())
    assert seen.count(HandLSTM) == 5
    seen.clear()
    lstm(inputs())
    assert seen == []


def test_modes_show(lstm):
    lstm.cells["l0"].drop.p = 0.5
    assert lstm.training
    results(lstm, inputs())
    results(lstm, inputs())
    lstm.cells["l0"].drop.p = 1.0
    assert not results(lstm, inputs())[0].any()
    lstm.eval()
    assert_right(lstm, inputs())
    assert results(lstm, inputs())[0].all()
    lstm.train()
    assert not results(lstm, inputs())[0].any()
    lstm.cells["l0"].drop.eval()  # the layer sees nothing of that
    assert results(lstm, inputs())[0].all()


@pytest.mark.parametrize("layers", [1, 2])
def test_random_numbers_are_those_of_a_call_without_a_plan(layers, took):
    layer = R(HandLSTM, F, H, num_layers=layers, state_size=(H, H)).double()
    for name in layer.cells:
        layer.cells[name].drop.p = 0.5

    def drawn() -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(3)
        return results(layer, inputs()), torch.get_rng_state()

    found, state = drawn()
    took.clear()
    for a, b in zip(drawn()[0], found, strict=True):
        assert torch.equal(a, b)
    assert took == []
    assert torch.equal(drawn()[1], state)
    # A change in the last layer is found before the first one draws.
    layer.cells[f"l{layers - 1}"].gain = 0.5
    changed, after = drawn()
    assert took
    layer._plans.forget()
    for a, b in zip(drawn()[0], changed, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(after, state)


def test_dropout_between_layers_is_drawn_anew():
    layer = R(HandLSTM, F, H, num_layers=2, dropout=0.5, state_size=(H, H)).double()
    assert not torch.equal(layer(inputs())[0], layer(inputs())[0])
    layer.eval()
    assert_right(layer, inputs())
    layer.train()
    assert not torch.equal(layer(inputs())[0], layer(inputs())[0])


class Starts(MGU):
    def initial_state(self, batch_size, *, dtype, device):
        return (torch.full((batch_size, self.width), 2.0, dtype=dtype, device=device),)


def own_start(x: Tensor, h: Tensor | None = None) -> Tensor:
    if h is None:
        h = x[:, :1] + 1
    return torch.tanh(0.8 * h + x.sum(1, keepdim=True))


def test_cells_that_start_by_themselves(took):
    for layer in (R(Starts()).double(), R(own_start)):
        assert_right(layer, inputs())
        with torch.no_grad():
            _, hx = layer(inputs())
        assert_right(layer, inputs(), hx)
        took.clear()
        layer(inputs(), hx)
        assert took == []  # with a state there is a plan, and it is not for a call without one
        assert_right(layer, inputs())
        assert_right(layer, inputs(), hx)


def test_an_initial_state_that_is_set_later():
    layer = made("mgu")
    assert_right(layer, inputs())
    cell = layer.cells["l0"]
    cell.initial_state = lambda size, *, dtype, device: (torch.ones(size, H, dtype=dtype),)
    ones = torch.ones(1, 5, H, dtype=torch.float64)
    torch.testing.assert_close(layer(inputs())[0], layer(inputs(), (ones,))[0])
    del cell.initial_state
    zeros = torch.zeros(1, 5, H, dtype=torch.float64)
    assert torch.equal(layer(inputs())[0], layer(inputs(), (zeros,))[0])


def test_a_state_of_another_size_is_refused_as_without_a_plan():
    layer = made("mgu")
    layer(inputs())
    layer.cells["l0"].width = H + 1
    with pytest.raises(Exception) as expected:  # noqa: PT011
        copy.deepcopy(layer)(inputs())
    with pytest.raises(type(expected.value)) as found:
        layer(inputs())
    assert str(found.value) == str(expected.value)


class Counts(nn.Module):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, n = state
        h = torch.tanh(h + x.sum(1, keepdim=True)) / (n + 1)
        return h, (h, n + 1)


def test_a_state_of_integers():
    class Long(Counts):
        def forward(self, x, state=None):
            if state is None:
                state = x.new_zeros(len(x), H), torch.zeros(len(x), 1, dtype=torch.int64)
            return super().forward(x, state)

    layer = R(Long())
    for _ in range(3):
        _, (_, n) = layer(inputs())
        assert n.dtype == torch.int64
        _, (_, n) = layer(inputs(), layer(inputs())[1])
        assert n.dtype == torch.int64
        assert (n == 10).all()


def test_frozen_weights_and_grad_modes(lstm, took):
    results(lstm, inputs())
    lstm.cells["l0"].from_x.weight.requires_grad_(False)
    assert_right(lstm, inputs())
    output, _ = lstm(inputs())
    output.sum().backward()
    assert lstm.cells["l0"].from_x.weight.grad is None
    lstm.requires_grad_(False)
    assert not lstm(inputs())[0].requires_grad
    assert lstm(inputs().requires_grad_())[0].requires_grad
    took.clear()
    with torch.no_grad():
        assert not lstm(inputs().requires_grad_())[0].requires_grad
    with torch.inference_mode():
        assert lstm(inputs())[0].is_inference()
    assert took == []


def test_second_derivatives(layer):
    layer(inputs())
    x = inputs()[:2, :2].contiguous().requires_grad_()
    torch.autograd.gradgradcheck(lambda x: layer(x)[0], [x])


def test_autocast(lstm):
    layer, x = lstm.float(), inputs().float()
    layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = layer(x)[0]
        assert torch.equal(copy.deepcopy(layer)(x)[0], first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x)[0], first)
    assert not torch.equal(layer(x)[0], first)


def test_the_default_dtype_shows():
    def step(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(h + x * torch.tensor([1 / 3]).to(x.dtype))

    layer = R(step, state_size=F)
    before = layer(inputs())[0]
    torch.set_default_dtype(torch.float64)
    try:
        found = layer(inputs())[0]
        assert torch.equal(found, copy.deepcopy(layer)(inputs())[0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(layer(inputs())[0], before)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_functional_calls_and_transforms(layer):
    layer(inputs())
    weights = {name: p.detach() * 0.5 for name, p in layer.named_parameters()}
    other = copy.deepcopy(layer)
    other.load_state_dict({**layer.state_dict(), **weights})
    with cello.engine("reference"):
        expected = flat(other(inputs()))
    found = flat(torch.func.functional_call(layer, weights, (inputs(),)))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert_right(layer, inputs())
    gradient = torch.func.grad(lambda x: layer(x)[0].sum())(inputs())
    x = inputs().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(x)[0].sum(), x)[0])
    many = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([inputs(), inputs(1)]))
    torch.testing.assert_close(many[1], layer(inputs(1))[0])
    _, slope = torch.func.jvp(lambda x: layer(x)[0], (inputs(),), (inputs(1),))
    near = (layer(inputs() + 1e-6 * inputs(1))[0] - layer(inputs() - 1e-6 * inputs(1))[0]) / 2e-6
    torch.testing.assert_close(slope, near, rtol=1e-5, atol=1e-7)


class Named(Tensor):
    """A subclass that torch's operations keep."""


def test_subclasses_and_other_inputs(lstm):
    lstm(inputs())
    assert type(lstm(inputs().as_subclass(Named))[0]) is type(
        copy.deepcopy(lstm)(inputs().as_subclass(Named))[0]
    )
    other = made("lstm")
    for each in (lstm, other):
        weight = each.cells["l0"].from_h.weight
        each.cells["l0"].from_h.weight = nn.Parameter(weight.detach().as_subclass(Named))
    found, expected = lstm(inputs())[0], other(inputs())[0]
    assert type(found) is type(expected)
    assert torch.equal(found, expected)
    lstm = made("lstm")
    lstm(inputs())
    for wrong in (inputs()[..., :2], inputs()[0, 0], inputs()[:0]):
        with pytest.raises((RuntimeError, ValueError)) as found:
            lstm(wrong)
        with pytest.raises(type(found.value)) as expected:
            copy.deepcopy(lstm)(wrong)
        assert str(found.value) == str(expected.value)
    assert lstm(inputs()[:, :0])[0].shape == (5, 0, H)
    torch.testing.assert_close(lstm(inputs()[:, 0])[0], lstm(inputs())[0][:, 0])


def test_weights_elsewhere_are_an_error_and_no_crash(layer):
    """A weight moved in place is the same object, and its memory is not the CPU's."""
    layer(inputs())
    if not [*layer.parameters()]:
        pytest.skip("it has no weights")
    layer.to("meta")
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
            layer(inputs())


def test_engines_and_onlookers(lstm, took):
    lstm(inputs())
    lstm(inputs())
    assert took == ["ordinary"]
    with cello.engine("reference"):
        lstm(inputs())
    assert took == 2 * ["ordinary"]
    lstm(inputs())
    lstm(inputs())
    assert took == 3 * ["ordinary"]
    plan = cello.explain(lstm, inputs()).plans[0]
    assert plan.engine == "native"
    lstm(inputs())  # explain ran a copy of the buffer, and the program was found for that
    took.clear()
    lstm(inputs())
    assert took == []
    with cello.engine(segment=2):
        lstm(inputs())
    assert took == ["ordinary"]
    lstm(inputs())
    assert took == ["ordinary"]
    with cello.engine("vendor"), pytest.raises(cello.EngineError):
        lstm(inputs())


def test_explain_is_true_of_a_step(layer):
    if layer.reverse:
        pytest.skip("no step backwards")
    x = inputs()[0]
    one = x[:, None] if layer.batch_first else x[None]
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            told = cello.explain(layer, one).plans[0].engine
            with cello.engine(told):
                expected = flat(copy.deepcopy(layer).step(x))
            for _ in range(3):
                for found, wanted in zip(flat(layer.step(x)), expected, strict=True):
                    assert torch.equal(found, wanted)


def test_copies_begin_with_none(lstm):
    keys = list(lstm.state_dict())
    lstm(inputs())
    assert list(lstm.state_dict()) == keys
    shallow = copy.copy(lstm)
    shallow.reverse = True
    for one in (lstm, shallow, lstm, shallow):
        assert_right(one, inputs())
    for fresh in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert fresh._plans.find(inputs(), False) is None
        fresh.cells["l0"].gain = 0.5
        assert_right(fresh, inputs())
        assert_right(lstm, inputs())


def test_a_plan_keeps_no_layer_alive(layer):
    layer(inputs())
    layer.step(inputs()[0]) if not layer.reverse else None
    gone = [weakref.ref(layer), *(weakref.ref(cell) for cell in layer.cells.values())]
    fresh = copy.deepcopy(layer)
    fresh(inputs())
    gone = [weakref.ref(fresh), *(weakref.ref(cell) for cell in fresh.cells.values())]
    del fresh
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


def test_threads_share_a_layer(lstm):
    wanted = [flat(copy.deepcopy(lstm)(inputs(seed)))[0] for seed in range(8)]

    def call(seed: int) -> bool:
        with torch.no_grad():
            found = [lstm(inputs(seed))[0] for _ in range(20)]
        lstm.step(inputs(seed)[0])
        return all(torch.allclose(one, wanted[seed], rtol=1e-11) for one in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(8)))


def test_a_cell_shared_by_two_layers_and_dtypes(took):
    cell = MGU().double()
    one, two = R(cell), R(cell, batch_first=True)
    for _ in range(2):
        assert_right(one, inputs())
        assert_right(two, inputs())
    # The tensors are those of now, though the cell was another one between two calls of one dtype.
    weight = cell.new.weight
    cell.float()
    one(inputs().float())
    cell.new.weight = nn.Parameter(torch.zeros(H, F))
    one(inputs().float())
    cell.new.weight = weight
    cell.double()
    assert_right(one, inputs())


class Halved(nn.Module):
    """A cell of one's own with a ready one inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.inner(x, h) * 0.5


@pytest.mark.parametrize("kind", [cello.nn.GRUCell, cello.nn.RNNCell, nn.GRUCell])
def test_a_ready_cell_inside_compiles(kind):
    layer = R(Halved(kind(F, H).double()))
    with cello.engine(strict=True):
        layer(inputs())
    assert_right(layer, inputs())


@pytest.mark.parametrize("make", [lambda: cello.nn.LSTM(F, H), lambda: R(MGU())])
def test_steps_see_a_patched_forward(make):
    layer, calls = make().double(), []
    original = layer.forward

    def patched(*args, **options):
        calls.append(1)
        return original(*args, **options)

    layer.forward = patched
    state = None
    for _ in range(4):
        _, state = layer.step(inputs()[0], state)
    assert len(calls) == 4


@pytest.mark.filterwarnings("ignore")  # a trace warns of all that a layer checks
def test_a_trace_takes_no_plan():
    layer = cello.nn.LSTM(F, H).double()
    x = inputs()
    layer(x[:1])
    traced = torch.jit.trace(layer, (x[:1],), check_trace=False)
    torch.testing.assert_close(traced(x)[0], layer(x)[0])


def test_an_engine_that_takes_no_single_row():
    class Pairs(type(cello.engines.ENGINES[-1])):
        name = "pairs"

        def why_not(self, scan):
            rows = scan.sequence.layout.batch_size
            return [] if rows > 1 else ["needs two rows"]

    layer, x = R(MGU().double()), inputs()
    with cello.engine(Pairs()):
        found = [layer(x)[0] for _ in range(3)]
    torch.testing.assert_close(found[2], found[0])
