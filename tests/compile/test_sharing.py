"""One program for all that is alike, and never one for what differs."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from steps import Step, assert_close, count_compilations, evaluate, random
from torch import Tensor, nn

import cello
from cello.compile.cache import _programs


@pytest.fixture(autouse=True)
def nothing_is_known():
    _programs.clear()


def check(layer: cello.Recurrent, width: int = 4, **options: Any) -> dict[str, Tensor]:
    """The layer on the native engine, after a comparison with the Python loop."""
    dtype = next(layer.parameters()).dtype
    x, h = random(3, 2, 4, dtype=dtype), random(1, 2, width, dtype=dtype, seed=1)
    got = evaluate(layer, x, (h,), "native", lambda s: s[0], **options)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_close(got, evaluate(layer, x, (h,), "reference", lambda s: s[0], **options), tolerance)
    return got


# The same program


class Cell(nn.Module):
    """A cell with an attribute of every kind."""

    def __init__(self, activation: Any = torch.tanh, **attributes: Any):
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)
        self.drop = nn.Dropout(0.0)
        self.register_buffer("scale", torch.ones(4))
        self.activation, self.factor = activation, 2.0
        self.config: Any = None
        self.plain = torch.full((4,), 0.5)
        for name, value in attributes.items():
            setattr(self, name, value)

    def number(self) -> float:
        config = self.config
        if config is None:
            return 1.0
        if isinstance(config, dict):
            return config.get("alpha", 3.0)
        return config.alpha

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.drop(self.norm(self.linear(torch.cat([x, h], 1)))) * self.scale
        return self.activation(h) * self.factor * self.number() + h * self.plain.to(h.dtype)


def layer_of(*args: Any, **attributes: Any) -> cello.Recurrent:
    torch.manual_seed(0)
    return cello.Recurrent(Cell(*args, **attributes).double())


def test_a_program_serves_every_batch_and_every_layer_of_its_kind(monkeypatch):
    with count_compilations(monkeypatch) as compiled:
        check(layer_of())
        assert compiled == ["Cell"]
        layer = layer_of()
        for batch, steps in ((1, 1), (1, 7), (5, 2), (33, 3)):
            with cello.engine("native"):
                x = random(steps, batch, 4)
                layer(x)
                layer(x, lengths=[steps] + [1] * (batch - 1), return_states=True)
                with torch.no_grad():
                    layer(x)
        stack = cello.Recurrent(lambda f: Cell().double(), 4, num_layers=3, bidirectional=False)
        with cello.engine("native"):
            stack(random(3, 2, 4))[0].sum().backward()
        assert compiled == ["Cell"]


def test_a_program_serves_all_layers_of_cello_with_the_same_options(monkeypatch):
    with count_compilations(monkeypatch) as compiled, cello.engine("native"):
        for _ in range(2):
            layer = cello.nn.LSTM(4, 4, 3, bidirectional=True, dropout=0.5)
            layer(torch.randn(3, 2, 4))
            layer.eval()(torch.randn(5, 1, 4), lengths=[3])
            assert len(compiled) == 2  # the layers above the first read both directions
        cello.nn.LSTM(4, 4)(torch.randn(3, 2, 4))
        assert len(compiled) == 2
        cello.nn.LSTM(4, 4, bias=False)(torch.randn(3, 2, 4))
        assert len(compiled) == 3


CHANGES: dict[str, Callable[[cello.Recurrent], Any]] = {
    "train": lambda layer: layer.train(not layer.training),
    "a submodule's mode": lambda layer: layer.cells["l0"].drop.eval(),
    "dtype": lambda layer: layer.float(),
    "activation": lambda layer: setattr(layer.cells["l0"], "activation", torch.sigmoid),
    "number": lambda layer: setattr(layer.cells["l0"], "factor", 3.0),
    "a submodule's number": lambda layer: setattr(layer.cells["l0"].norm, "eps", 0.5),
    "a submodule's probability": lambda layer: setattr(layer.cells["l0"].drop, "p", 1.0),
    "a submodule": lambda layer: setattr(layer.cells["l0"], "norm", nn.Identity()),
    "a missing weight": lambda layer: setattr(layer.cells["l0"].linear, "bias", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_equations_gets_its_own_program(change: str, monkeypatch):
    layer = layer_of()
    with count_compilations(monkeypatch) as compiled:
        check(layer)
        CHANGES[change](layer)
        check(layer)
        assert len(compiled) == 2


@dataclass
class Config:
    alpha: float


@dataclass(frozen=True)
class Frozen:
    alpha: float


class Plain:
    def __init__(self, alpha: float):
        self.alpha = alpha


class Choice(Enum):
    LOW, HIGH = 0.25, 4.0

    @property
    def alpha(self) -> float:
        return self.value


def scaled(h: Tensor, by: float = 1.0) -> Tensor:
    return torch.tanh(h) * by


class Scaled:
    """A callable that is no module."""

    def __init__(self, by: float):
        self.by = by

    def __call__(self, h: Tensor) -> Tensor:
        return torch.tanh(h) * self.by


def closure(by: float) -> Callable[[Tensor], Tensor]:
    return lambda h: torch.tanh(h) * by


def default(by: float) -> Callable[[Tensor], Tensor]:
    return lambda h, by=by: torch.tanh(h) * by


def keyword(by: float) -> Callable[[Tensor], Tensor]:
    def function(h: Tensor, *, by: float = by) -> Tensor:
        return torch.tanh(h) * by

    return function


PAIRS: dict[str, Callable[[float], dict[str, Any]]] = {
    "a number": lambda a: {"factor": a},
    "a closure": lambda a: {"activation": closure(a)},
    "a default argument": lambda a: {"activation": default(a)},
    "a keyword argument": lambda a: {"activation": keyword(a)},
    "a partial function": lambda a: {"activation": functools.partial(scaled, by=a)},
    "a callable object": lambda a: {"activation": Scaled(a)},
    "a bound method": lambda a: {"activation": Scaled(a).__call__},
    "a dataclass": lambda a: {"config": Config(a)},
    "a frozen dataclass": lambda a: {"config": Frozen(a)},
    "a namespace": lambda a: {"config": SimpleNamespace(alpha=a)},
    "an object": lambda a: {"config": Plain(a)},
    "an enumeration": lambda a: {"config": Choice(a)},
    "a dictionary": lambda a: {"config": {"alpha": a}},
    "a key of a dictionary": lambda a: {"config": {"alpha" if a > 1 else "beta": 0.5}},
    "a nested list": lambda a: {"config": SimpleNamespace(alpha=a, more=[a])},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_cells_that_differ_in_what_they_hold_do_not_share_a_program(kind: str):
    results = [check(layer_of(**PAIRS[kind](value))) for value in (0.25, 4.0)]
    assert not torch.equal(results[0]["output"], results[1]["output"])


MUTABLE = ("a callable object", "a dataclass", "a namespace", "an object", "a dictionary")


@pytest.mark.parametrize("kind", MUTABLE)
def test_a_change_of_what_a_cell_holds_is_seen(kind: str):
    layer = layer_of(**PAIRS[kind](0.25))
    first = check(layer)
    cell = layer.cells["l0"]
    if kind == "a callable object":
        cell.activation.by = 4.0
    elif kind == "a dictionary":
        cell.config["alpha"] = 4.0
    else:
        cell.config.alpha = 4.0
    assert not torch.equal(check(layer)["output"], first["output"])


def test_a_hook_of_one_cell_is_not_lost_on_the_program_of_another():
    check(layer_of())
    layer = layer_of()
    seen = []
    layer.cells["l0"].linear.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        layer(random(3, 2, 4))
    assert len(seen) == 3


class Two(nn.Module):
    """Two weights, which may be one."""

    def __init__(self, tied: bool, order: tuple[str, str] = ("a", "b")):
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(4, 4, bias=False))
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.a(x) + self.b(h))


@pytest.mark.parametrize("first", [True, False])
def test_tied_and_free_weights_do_not_share_a_program(first: bool):
    for tied in (first, not first):
        torch.manual_seed(0)
        check(cello.Recurrent(Two(tied).double()))


class Shares(nn.Module):
    """Two tensors in plain attributes, which may be one."""

    def __init__(self, a: Tensor, b: Tensor):
        super().__init__()
        self.a, self.b, self.linear = a, b, nn.Linear(4, 4, bias=False).double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) * self.a + h * self.b)


def test_tensors_that_are_one_object_in_one_cell_and_two_in_another():
    a, b = random(4, seed=1), random(4, seed=2)
    for pair in ((a, a), (a, b), (b, b), (b, a)):
        torch.manual_seed(0)
        check(cello.Recurrent(Shares(*pair)))


def test_modules_that_are_one_object_in_one_cell_and_two_in_another():
    class Norms(nn.Module):
        def __init__(self, shared: bool):
            super().__init__()
            self.linear = nn.Linear(8, 4)
            self.first = nn.LayerNorm(4)
            self.second = self.first if shared else nn.LayerNorm(4)
            for weight in self.parameters():
                nn.init.uniform_(weight)

        def forward(self, x, h):
            return self.second(torch.tanh(self.first(self.linear(torch.cat([x, h], 1)))))

    for shared in (True, False, True):
        torch.manual_seed(0)
        check(cello.Recurrent(Norms(shared).double()))


# Values are looked up at each call


def test_a_parameter_that_changes_or_is_replaced():
    layer = layer_of()
    first = check(layer)
    cell = layer.cells["l0"]
    with torch.no_grad():
        cell.linear.weight.mul_(0.5)
    second = check(layer)
    cell.linear.weight = nn.Parameter(random(4, 8, seed=5))
    third = check(layer)
    cell.linear.weight.data = random(4, 8, seed=6)
    fourth = check(layer)
    cell.linear.load_state_dict({"weight": random(4, 8, seed=7), "bias": random(4, seed=7)})
    fifth = check(layer)
    outputs = [r["output"] for r in (first, second, third, fourth, fifth)]
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))


def test_a_buffer_and_a_plain_tensor_that_change(monkeypatch):
    layer = layer_of()
    first = check(layer)
    with count_compilations(monkeypatch) as compiled:
        layer.cells["l0"].scale.mul_(2)
        second = check(layer)
        layer.cells["l0"].scale = torch.full((4,), 0.25).double()
        third = check(layer)
        layer.cells["l0"].plain = torch.zeros(4)
        fourth = check(layer)
        assert compiled == []
    outputs = [r["output"] for r in (first, second, third, fourth)]
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))


def test_a_parametrization_and_functional_call():
    layer = layer_of()
    first = check(layer)
    nn.utils.parametrizations.weight_norm(layer.cells["l0"].linear, "weight")
    got = check(layer)
    torch.testing.assert_close(got["output"], first["output"], rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        layer.cells["l0"].linear.parametrizations.weight.original0.mul_(3)
    assert not torch.equal(check(layer)["output"], got["output"])
    nn.utils.parametrize.remove_parametrizations(layer.cells["l0"].linear, "weight")
    check(layer)

    layer = layer_of()
    weights = {k: random(*v.shape, seed=9).requires_grad_() for k, v in layer.named_parameters()}
    x, results = random(3, 2, 4), []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = torch.func.functional_call(layer, weights, (x,))
        grads = torch.autograd.grad(output.square().sum(), list(weights.values()))
        results.append(dict(zip(["output", *weights], [output, *grads], strict=True)))
    assert_close(*results)
    assert not torch.allclose(results[0]["output"], layer(x)[0])


def test_an_old_style_weight_norm_and_a_pruned_weight():
    layer = layer_of()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer.cells["l0"].linear)
    check(layer)
    nn.utils.remove_weight_norm(layer.cells["l0"].linear)
    torch.nn.utils.prune.random_unstructured(layer.cells["l0"].linear, "weight", 0.5)
    check(layer)


@pytest.mark.parametrize("frozen", ["linear.weight", "linear.bias", "norm.weight", "all"])
def test_frozen_weights(frozen: str):
    layer = layer_of()
    check(layer)
    for name, weight in layer.cells["l0"].named_parameters():
        weight.requires_grad_(frozen not in (name, "all"))
    got = check(layer)
    assert ("gradient of cells.l0.norm.bias" in got) == (frozen != "all")
    for weight in layer.parameters():
        weight.requires_grad_(True)
    check(layer)


@pytest.mark.parametrize("kind", ["layer input", "state", "one of two results"])
def test_gradients_of_some_only(kind: str):
    """What is not asked for is not computed, and what is does not change."""
    layer, x, h = layer_of(), random(3, 2, 4), random(1, 2, 4, seed=1)
    results = []
    for engine in ("native", "reference"):
        inputs = [
            x.clone().requires_grad_(kind != "state"),
            h.clone().requires_grad_(kind != "layer input"),
        ]
        with cello.engine(engine):
            output, final = layer(*inputs)
        chosen = final if kind == "one of two results" else output[1:2]
        wanted = [v for v in inputs if v.requires_grad]
        got = torch.autograd.grad(chosen.square().sum(), wanted, retain_graph=True)
        twice = torch.autograd.grad(chosen.square().sum(), wanted)
        results.append({str(k): g for k, g in enumerate((*got, *twice))})
    assert_close(*results)


def test_a_weight_that_is_used_through_views_of_it():
    """Blocks of one weight, and the whole of it, in one step."""

    def function(c, x, h):
        w = c.W
        out = x @ w[:4] + h @ w[4:] + (torch.cat([x, h], 1) @ w).tanh() + (h @ w.t())[:, :4]
        return out, out

    cell = Step(function, [4], W=random(8, 4) * 0.3)
    x, h = random(3, 2, 4), random(1, 2, 4, seed=1)
    got, expected = (evaluate(cello.Recurrent(cell), x, (h,), e) for e in ("native", "reference"))
    assert_close(got, expected)


RATE = 0.25


def squash(h: Tensor) -> Tensor:
    return torch.tanh(h)


class ReadsGlobals(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return RATE * squash(self.linear(torch.cat([x, h], 1)))


@pytest.mark.parametrize(
    ("name", "value"), [("RATE", 4.0), ("squash", torch.sigmoid)], ids=["number", "function"]
)
def test_a_global_of_the_cells_module_that_changes(name: str, value: Any, monkeypatch):
    """As where a cell of a notebook is run again."""
    torch.manual_seed(0)
    layer = cello.Recurrent(ReadsGlobals().double())
    check(layer)
    monkeypatch.setitem(globals(), name, value)
    check(layer)


def test_an_attribute_of_the_class_that_changes(monkeypatch):
    class Classy(ReadsGlobals):
        rate = 0.5

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.rate * torch.tanh(self.linear(torch.cat([x, h], 1)))

    torch.manual_seed(0)
    layer = cello.Recurrent(Classy().double())
    check(layer)
    Classy.rate = 2.0
    check(layer)


@pytest.mark.parametrize("make", [lambda: Cell(), lambda: Step(lambda cell, x, h: (h, h + x), [4])])
def test_what_is_known_of_a_cell_does_not_keep_it_alive(make):
    layer = cello.Recurrent(make())
    for _ in range(2):
        with torch.no_grad():
            layer(random(3, 2, 4, dtype=torch.float32))
    cell = weakref.ref(layer.cells["l0"])
    del layer
    gc.collect()
    assert cell() is None
