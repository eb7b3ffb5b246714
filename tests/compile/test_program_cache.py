"""The cache of programs: it works under inference_mode, and keeps nothing of the calls alive."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from steps import loop
from torch import Tensor, nn

import cello
from cello.compile import compiled
from cello.engines.native.library import library


@pytest.mark.skipif(library() is None, reason="the native engine is not built")
def test_the_first_call_may_be_under_inference_mode() -> None:
    layer = cello.nn.LSTM(3, 13, activation=cello.PiecewiseLinear([-2, 2], [-1, 1]))
    x = torch.randn(4, 2, 3)
    compiled.__globals__["_programs"].clear()
    with torch.inference_mode(), cello.engine("native"):
        inference = layer(x)[0]
    with cello.engine("reference"):
        torch.testing.assert_close(inference.clone(), layer(x)[0])
    with cello.engine("native"):  # what was found then takes gradients now
        layer(x)[0].sum().backward()
    assert layer.weight_hh_l0.grad is not None


class Gammas(nn.Module):
    """A cell of an operation that no program has."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + torch.lgamma(1 + (x + h).abs())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_cannot_be_compiled_keeps_nothing_of_its_calls(mode: type) -> None:
    layer = cello.Recurrent(Gammas(), state_size=4)
    assert "lgamma" in str(cello.explain(layer, torch.randn(3, 2, 4)))

    def tensors() -> int:
        with mode():
            for _ in range(5):
                layer(torch.randn(3, 2, 4))
        gc.collect()
        return sum(type(found) is Tensor for found in gc.get_objects())

    tensors()
    before = tensors()
    assert tensors() <= before  # fewer, where a collection found what other tests left


class Counting(nn.Module):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, count = state
        h = torch.tanh(x + h)
        return h, (h, count + 1)


def test_a_call_that_is_refused_for_its_numbers_keeps_nothing_alive() -> None:
    layer = cello.Recurrent(Counting(), state_size=(4, 1))
    leaf = torch.randn(5, 2, 4, requires_grad=True)
    many = torch.full((1, 2, 1), 2**40)  # more than a program counts up to
    layer(2 * leaf, (torch.zeros(1, 2, 4), many))
    found = weakref.ref(leaf)
    del leaf
    gc.collect()
    assert found() is None


@pytest.mark.parametrize("kind", ["module", "cell"])
def test_a_cell_that_leads_back_to_its_layer_is_freed(kind: str) -> None:
    class Plain(nn.Module if kind == "module" else cello.Cell):
        state_sizes: ClassVar[dict[str, int]] = {"h": 4}

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor, state: Any) -> Any:
            h = state if kind == "module" else state[0]
            h = torch.tanh(x + self.w * h)
            return h if kind == "module" else (h, (h,))

    cell = Plain()
    layer = cello.Recurrent(cell)
    cell.__dict__["owner"] = [layer]
    layer(torch.randn(3, 2, 4))
    assert cello.explain(layer, torch.randn(3, 2, 4)).plans[0].engine == "native"
    for copied in (copy.deepcopy(layer), copy.copy(layer)):
        torch.testing.assert_close(copied(torch.ones(3, 2, 4)), layer(torch.ones(3, 2, 4)))
    found = weakref.ref(layer)
    del cell, layer, copied
    for _ in range(3):  # one collection may free only what holds back the next
        gc.collect()
    assert found() is None


def test_an_attribute_of_a_module_that_appears_later(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModuleType("settings")

    class Reading(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            try:
                factor = settings.FACTOR
            except AttributeError:
                factor = 1.0
            return factor * torch.tanh(x + h)

    layer, x = cello.Recurrent(Reading(), state_size=4), torch.randn(3, 2, 4)
    torch.testing.assert_close(layer(x)[0], loop(layer.cells["l0"], x, torch.zeros(2, 4)))
    settings.FACTOR = 3.0  # type: ignore[attr-defined]
    torch.testing.assert_close(layer(x)[0], loop(layer.cells["l0"], x, torch.zeros(2, 4)))


def test_an_imported_module_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(factor: float) -> ModuleType:
        module = ModuleType("replaceable")
        module.FACTOR = factor  # type: ignore[attr-defined]
        return module

    class Importing(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            import replaceable  # type: ignore[import-not-found]

            return replaceable.FACTOR * torch.tanh(x + h)

    layer, x = cello.Recurrent(Importing(), state_size=4), torch.randn(3, 2, 4)
    for factor in (1.0, 2.0):
        monkeypatch.setitem(sys.modules, "replaceable", named(factor))
        torch.testing.assert_close(layer(x)[0], loop(layer.cells["l0"], x, torch.zeros(2, 4)))


class Words(dict[str, Tensor]):
    rate: Tensor


class Numbers(list[Tensor]):
    rate: Tensor


def in_words() -> Words:
    words = Words(rate=torch.zeros(4))
    words.rate = torch.full((4,), 2.0)
    return words


def in_numbers() -> Numbers:
    numbers = Numbers([torch.zeros(4)])
    numbers.rate = torch.full((4,), 2.0)
    return numbers


@pytest.mark.parametrize("make", [in_words, in_numbers], ids=["dict", "list"])
def test_an_attribute_of_a_container_is_no_item_of_it(make: Callable[[], Any]) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = make()

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + h * (0.5 * self.held.rate))

    layer, x = cello.Recurrent(Reading(), state_size=4), torch.randn(3, 2, 4)
    assert cello.explain(layer, x).plans[0].engine == "native"
    torch.testing.assert_close(layer(x)[0], loop(layer.cells["l0"], x, torch.zeros(2, 4)))


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_tensor_in_a_set(kind: Any) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = kind([torch.full((4,), 2.0)])

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + h * (0.5 * next(iter(self.held))))

    layer, x = cello.Recurrent(Reading(), state_size=4), torch.randn(3, 2, 4)
    torch.testing.assert_close(layer(x)[0], loop(layer.cells["l0"], x, torch.zeros(2, 4)))


def test_the_same_class_with_a_tensor_in_other_places():
    """A program finds its tensors by their places, which differ from instance to instance."""

    class Anywhere(nn.Module):
        def __init__(self, where: str):
            super().__init__()
            w = torch.rand(3)
            if where == "buffer":
                self.register_buffer("w", w)
            else:
                self.w = nn.Parameter(w) if where == "parameter" else w

        def forward(self, x, h):
            return torch.tanh(self.w * h + x)

    x = torch.randn(4, 2, 3)
    for places in itertools.permutations(["buffer", "parameter", "attribute"]):
        for where in places:
            cell = Anywhere(where)
            layer = cello.Recurrent(cell, state_size=3)
            torch.testing.assert_close(layer(x)[0], loop(cell, x, torch.zeros(2, 3)))
            assert cello.explain(layer, x).plans[0].engine == "native"


class Scaled(nn.Module):
    """A cell with a temperature that is lowered at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.temperature = 4, 1.0

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh((x + h) / self.temperature)


def test_a_number_that_changes_at_each_call_is_not_compiled_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    real = compiled.__globals__["try_to_compile"]
    monkeypatch.setitem(
        compiled.__globals__, "try_to_compile", lambda *a, **k: made.append(a) or real(*a, **k)
    )
    cell, x = Scaled(), torch.randn(3, 2, 4)
    layer = cello.Recurrent(cell)

    def check() -> None:
        found, _ = layer(x)
        with cello.engine("reference"):
            torch.testing.assert_close(found, layer(x)[0])

    for _ in range(9):
        cell.temperature *= 0.9
        check()
    few = len(made)
    cell.temperature *= 0.9
    with pytest.warns(
        RuntimeWarning, match=r"reads a number that was another .*\(temperature, now"
    ):
        check()
    for _ in range(5):
        cell.temperature *= 0.9
        check()
    assert len(made) == few
    for _ in range(8):  # it stays
        check()
    assert len(made) == few + 1
    with cello.engine("native"):
        check()
