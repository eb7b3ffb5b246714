"""What someone puts in the place of torch's functions, and what is to see each operation."""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import loop
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import cello

H = 3
LOG = logging.getLogger("cello.tests.replaced")


class Base(nn.Module):
    """A cell whose step is of torch's functions, methods and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_h = nn.Linear(2, H), nn.Linear(H, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.of_x(x) + self.of_h(h)) * math.pi
        return F.softsign(new) + h.sigmoid()


def by_hand(cell: nn.Module, x: Tensor) -> Tensor:
    return loop(cell, x, x.new_zeros(x.shape[1], H))


def engine_of(layer: cello.Recurrent, x: Tensor) -> str:
    return cello.explain(layer, x).plans[0].engine


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def halved(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: function(*args) / 2


@pytest.mark.parametrize(
    ("owner", "name", "new"),
    [
        (torch, "tanh", halved(torch.tanh)),
        (math, "pi", 3.0),
        (F, "softsign", halved(F.softsign)),
        (Tensor, "sigmoid", halved(Tensor.sigmoid)),
        (nn.Linear, "forward", halved(nn.Linear.forward)),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_put_in_the_place_of_a_function(owner: Any, name: str, new: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 2)
    layer, other = (cello.Recurrent(Base(), state_size=H) for _ in range(2))
    before = layer(x)[0]
    assert engine_of(layer, x) == "native"
    with replaced(owner, name, new):
        for one in (layer, other, cello.Recurrent(Base(), state_size=H)):
            expected = by_hand(one.cells["l0"], x)
            torch.testing.assert_close(one(x)[0], expected)
        assert not torch.allclose(by_hand(layer.cells["l0"], x), before)
    torch.testing.assert_close(layer(x)[0], before)
    assert engine_of(layer, x) == "native"


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_of_torch_with_another_forward(kind: Any) -> None:
    torch.manual_seed(0)
    x, cell, usual = torch.randn(4, 2, 2), kind(2, H), kind.forward
    layer = cello.Recurrent(cell)
    before = layer(x)[0]

    def forward(self: Any, x: Tensor, hx: Any = None) -> Any:
        return usual(self, x * 2, hx)

    with replaced(kind, "forward", forward):
        for one in (layer, cello.Recurrent(cell)):
            torch.testing.assert_close(one(x)[0], cello.Recurrent(cell)(x)[0])
            assert not torch.allclose(one(x)[0], before)
            assert engine_of(one, x) == "reference"
    torch.testing.assert_close(layer(x)[0], before)
    torch.testing.assert_close(layer(2 * x)[0], cello.Recurrent(cell)(2 * x)[0])


class Half(TorchFunctionMode):
    """Halves what tanh gives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out / 2 if func is torch.tanh else out


class Seen(Tensor):
    """A tensor that halves what tanh gives, of all that is computed from it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out / 2 if func is torch.tanh else out


class Plain(Tensor):
    """A tensor with a name of its own, and nothing else."""


def test_modes_that_see_each_operation() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(4, 2, 2), cello.Recurrent(Base(), state_size=H)
    cell = layer.cells["l0"]
    for prepared in (False, True):
        with Half():
            expected = by_hand(cell, x)
            found = layer(x)[0]
            assert engine_of(layer, x) == "reference"
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, layer(x)[0]), prepared
    with torch.device("cpu"):  # which is a mode, too
        assert engine_of(layer, x) == "native"
        torch.testing.assert_close(layer(x)[0], by_hand(cell, x))


class Doubled(TorchDispatchMode):
    """Doubles what tanh gives, below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.ops.aten.tanh.default else out


def test_modes_below_autograd() -> None:
    x, layer = torch.randn(4, 2, 2), cello.Recurrent(Base(), state_size=H)
    before = layer(x)[0]
    with torch.no_grad(), Doubled():
        found = layer(x)[0]
        torch.testing.assert_close(found, by_hand(layer.cells["l0"], x))
    assert not torch.allclose(found, before)
    torch.testing.assert_close(layer(x)[0], before)


def test_tensors_that_see_each_operation() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(4, 2, 2), cello.Recurrent(Base(), state_size=H)
    cell = layer.cells["l0"]
    layer(x)
    seen = x.as_subclass(Seen)
    torch.testing.assert_close(
        layer(seen)[0].as_subclass(Tensor), by_hand(cell, seen).as_subclass(Tensor)
    )
    assert engine_of(layer, seen) == "reference"
    assert engine_of(layer, x.as_subclass(Plain)) == "native"
    h = torch.randn(1, 2, H)
    assert not torch.allclose(layer(x, h.as_subclass(Seen))[0].as_subclass(Tensor), layer(x, h)[0])


class Logged(Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = super().forward(x, h)
        return h / 2 if LOG.level == logging.DEBUG else h


class Mark(abc.ABC):  # noqa: B024  # classes are registered as its own
    """An abstract class."""


class Option:
    """A setting."""


class Marked(Base):
    option = Option()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = super().forward(x, h)
        return h / 2 if isinstance(self.option, Mark) else h


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Logged, lambda: LOG.setLevel(logging.DEBUG)),
        (Marked, lambda: Mark.register(Option)),
    ],
)
def test_the_level_of_a_logger_and_registered_classes(
    kind: type[Base], change: Callable[[], None]
) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(4, 2, 2), cello.Recurrent(kind(), state_size=H)
    before = layer(x)[0]
    assert engine_of(layer, x) == "native"
    change()
    torch.testing.assert_close(layer(x)[0], by_hand(layer.cells["l0"], x))
    assert not torch.allclose(layer(x)[0], before)
