"""Values that a step reads: after a change of one, a layer still computes what the loop over its cell does."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import math
import os
import random as python_random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from steps import loop
from torch import Tensor, nn

import cello

RATE = 2.0
FLAG = True
NAMES = ["tanh"]
TABLE = {"rate": 2.0}
NESTED = {"inner": [{"rate": 2.0}]}
PAIR = (2.0, 1.0)
TEXT = "tanh"
SPACE = types.SimpleNamespace(rate=2.0)
ARGS = argparse.Namespace(rate=2.0)
ACT: Callable[[Tensor], Tensor] = torch.tanh
SCALAR = torch.tensor(2.0)
VECTOR = torch.full((4,), 2.0)
ARRAY = np.array([2.0])
QUEUE = collections.deque([2.0])
CHOICES = {"a", "b"}
PARTIAL = functools.partial(torch.mul, other=2.0)
module = types.ModuleType("settings_of_a_test")
module.RATE = 2.0
module.VECTOR = torch.full((4,), 2.0)
module.deep = types.SimpleNamespace(rate=2.0)
sys.modules["settings_of_a_test"] = module
here = sys.modules[__name__]


@dataclass
class Config:
    rate: float = 2.0


@dataclass(slots=True)
class Slots:
    rate: float = 2.0


CONFIG, SLOTS = Config(), Slots()


class Holder:
    rate = 2.0
    table = {"rate": 2.0}
    scalar = torch.tensor(2.0)

    @property
    def computed(self) -> float:
        return RATE

    @staticmethod
    def static() -> float:
        return RATE

    @classmethod
    def of_class(cls) -> float:
        return cls.rate

    def __getattr__(self, name: str) -> float:
        if name.startswith("__"):
            raise AttributeError(name)
        return RATE

    def __getitem__(self, key: str) -> float:
        return RATE

    def __len__(self) -> int:
        return int(RATE)


HOLDER = Holder()


def helper() -> float:
    return RATE


def outer() -> float:
    def inner() -> float:
        return RATE

    return inner()


def imports() -> float:
    from settings_of_a_test import RATE as found

    return found


class Choice(Enum):
    HIGH, LOW = 2.0, 0.5


class Number(float):
    """A number of a class of its own."""


class Table(dict[str, float]):
    extra = 2.0
    vector = torch.full((4,), 2.0)


class Descriptor:
    def __get__(self, owner: Any, kind: type) -> float:
        return RATE


class Metaclass(type):
    @property
    def rate(cls) -> float:
        return RATE


class WithMetaclass(metaclass=Metaclass):
    described = Descriptor()

    def method(self) -> float:
        return 2.0


CHOICE, NUMBER, SUBTABLE, FUNCTIONS = Choice.HIGH, Number(2.0), Table(), {"f": lambda: 2.0}
OTHER_TABLE, INSTANCE, FIRST_METHOD = Table(), WithMetaclass(), WithMetaclass.method
OTHER_TABLE.extra = 0.5
REFERENCE = weakref.ref(ARGS)


@functools.lru_cache
def cached() -> float:
    return RATE


@functools.singledispatch
def dispatched(value: Any) -> float:
    return RATE


@contextlib.contextmanager
def context() -> Iterator[float]:
    yield RATE


def in_context() -> float:
    with context() as rate:
        return rate


def perhaps() -> float:
    try:
        return NOT_YET  # type: ignore[name-defined]
    except NameError:
        return 2.0


def imports_vector() -> Tensor:
    from settings_of_a_test import VECTOR as found

    return found * 1.5


def set_global(name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(here, name, value)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = {
    # what the step reads, a change, and its undoing
    "number": (lambda: RATE, set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "flag": (lambda: 2.0 if FLAG else 0.5, set_global("FLAG", False), set_global("FLAG", True)),
    "an int for a float": (lambda: RATE / 4 if type(RATE) is float else 0.1, set_global("RATE", 2), set_global("RATE", 2.0)),
    "sign of zero": (lambda: math.copysign(1.0, RATE), set_global("RATE", -0.0), set_global("RATE", 0.0)),
    "list": (lambda: 2.0 if NAMES == ["tanh"] else 0.5, lambda: NAMES.append("x"), lambda: NAMES.pop()),
    "dict": (lambda: TABLE["rate"], lambda: TABLE.update(rate=0.5), lambda: TABLE.update(rate=2.0)),
    "dict.get": (lambda: TABLE.get("other", 2.0), lambda: TABLE.update(other=0.5), lambda: TABLE.pop("other")),
    "nested": (lambda: NESTED["inner"][0]["rate"], lambda: NESTED["inner"][0].update(rate=0.5), lambda: NESTED["inner"][0].update(rate=2.0)),
    "tuple": (lambda: PAIR[0], set_global("PAIR", (0.5, 1.0)), set_global("PAIR", (2.0, 1.0))),
    "text": (lambda: 2.0 if TEXT == "tanh" else 0.5, set_global("TEXT", "relu"), set_global("TEXT", "tanh")),
    "namespace": (lambda: SPACE.rate, lambda: setattr(SPACE, "rate", 0.5), lambda: setattr(SPACE, "rate", 2.0)),
    "argparse": (lambda: ARGS.rate, lambda: setattr(ARGS, "rate", 0.5), lambda: setattr(ARGS, "rate", 2.0)),
    "dataclass": (lambda: CONFIG.rate, lambda: setattr(CONFIG, "rate", 0.5), lambda: setattr(CONFIG, "rate", 2.0)),
    "slots": (lambda: SLOTS.rate, lambda: setattr(SLOTS, "rate", 0.5), lambda: setattr(SLOTS, "rate", 2.0)),
    "another object": (lambda: CONFIG.rate, set_global("CONFIG", Config(0.5)), set_global("CONFIG", CONFIG)),
    "environment": (lambda: float(os.environ.get("CELLO_TEST_RATE", "2")), lambda: os.environ.update(CELLO_TEST_RATE="0.5"), lambda: os.environ.pop("CELLO_TEST_RATE")),
    "class attribute": (lambda: Holder.rate, lambda: setattr(Holder, "rate", 0.5), lambda: setattr(Holder, "rate", 2.0)),
    "class dict": (lambda: Holder.table["rate"], lambda: Holder.table.update(rate=0.5), lambda: Holder.table.update(rate=2.0)),
    "shadowed class attribute": (lambda: HOLDER.rate, lambda: setattr(HOLDER, "rate", 0.5), lambda: delattr(HOLDER, "rate")),
    "property": (lambda: HOLDER.computed, set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "static method": (lambda: Holder.static(), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "class method": (lambda: HOLDER.of_class(), lambda: setattr(Holder, "rate", 0.5), lambda: setattr(Holder, "rate", 2.0)),
    "__getattr__": (lambda: HOLDER.anything, set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "__getitem__": (lambda: HOLDER["a"], set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "__len__": (lambda: float(len(HOLDER)), set_global("RATE", 3), set_global("RATE", 2.0)),
    "helper": (lambda: helper(), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "inner function": (lambda: outer(), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "lambda": (lambda: (lambda: RATE)(), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "comprehension": (lambda: sum([RATE for _ in range(2)]), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "generator": (lambda: sum(RATE for _ in range(2)), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "map": (lambda: sum(map(lambda k: RATE * k, (1, 2))), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "getattr": (lambda: getattr(SPACE, "ra" + "te"), lambda: setattr(SPACE, "rate", 0.5), lambda: setattr(SPACE, "rate", 2.0)),
    "vars": (lambda: vars(SPACE)["rate"], lambda: setattr(SPACE, "rate", 0.5), lambda: setattr(SPACE, "rate", 2.0)),
    "globals()": (lambda: globals()["RATE"], set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "eval": (lambda: eval("RATE"), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "module": (lambda: module.RATE, lambda: setattr(module, "RATE", 0.5), lambda: setattr(module, "RATE", 2.0)),
    "deep in a module": (lambda: module.deep.rate, lambda: setattr(module.deep, "rate", 0.5), lambda: setattr(module.deep, "rate", 2.0)),
    "import in the step": (lambda: imports(), lambda: setattr(module, "RATE", 0.5), lambda: setattr(module, "RATE", 2.0)),
    "function": (lambda: 2.0 if ACT is torch.tanh else 0.5, set_global("ACT", torch.relu), set_global("ACT", torch.tanh)),
    "partial": (lambda: PARTIAL(torch.ones(())), set_global("PARTIAL", functools.partial(torch.mul, other=0.5)), set_global("PARTIAL", PARTIAL)),
    "0-dim tensor": (lambda: SCALAR, lambda: SCALAR.fill_(0.5), lambda: SCALAR.fill_(2.0)),
    "another 0-dim tensor": (lambda: SCALAR, set_global("SCALAR", torch.tensor(0.5)), set_global("SCALAR", SCALAR)),
    "0-dim tensor of a class": (lambda: Holder.scalar, lambda: Holder.scalar.fill_(0.5), lambda: Holder.scalar.fill_(2.0)),
    "item of a tensor": (lambda: SCALAR.item(), lambda: SCALAR.fill_(0.5), lambda: SCALAR.fill_(2.0)),
    "tensor": (lambda: VECTOR, lambda: VECTOR.fill_(0.5), lambda: VECTOR.fill_(2.0)),
    "array": (lambda: float(ARRAY[0]), lambda: ARRAY.fill(0.5), lambda: ARRAY.fill(2.0)),
    "deque": (lambda: QUEUE[0], lambda: QUEUE.appendleft(0.5), lambda: QUEUE.popleft()),
    "set": (lambda: 2.0 if "c" in CHOICES else 0.5, lambda: CHOICES.add("c"), lambda: CHOICES.remove("c")),
    "enumeration": (lambda: CHOICE.value, set_global("CHOICE", Choice.LOW), set_global("CHOICE", Choice.HIGH)),
    "number of a class": (lambda: NUMBER * 1, set_global("NUMBER", Number(0.5)), set_global("NUMBER", Number(2.0))),
    "subclass of dict": (lambda: SUBTABLE.extra, set_global("SUBTABLE", OTHER_TABLE), set_global("SUBTABLE", Table())),
    "tensor of an import": (lambda: imports_vector(), lambda: module.VECTOR.fill_(0.5), lambda: module.VECTOR.fill_(2.0)),
    "tensor of a subclass of dict": (lambda: SUBTABLE.vector * 1.5, lambda: Table.vector.fill_(0.5), lambda: Table.vector.fill_(2.0)),
    "descriptor": (lambda: INSTANCE.described, set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "metaclass": (lambda: WithMetaclass.rate, set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "a method replaced": (lambda: INSTANCE.method(), lambda: setattr(WithMetaclass, "method", lambda self: 0.5), lambda: setattr(WithMetaclass, "method", FIRST_METHOD)),
    "a function of a dict": (lambda: FUNCTIONS["f"](), lambda: FUNCTIONS.update(f=lambda: 0.5), lambda: FUNCTIONS.update(f=lambda: 2.0)),
    "weak reference": (lambda: REFERENCE().rate, lambda: setattr(ARGS, "rate", 0.5), lambda: setattr(ARGS, "rate", 2.0)),
    "lru_cache": (lambda: cached(), lambda: (setattr(here, "RATE", 0.5), cached.cache_clear()), lambda: (setattr(here, "RATE", 2.0), cached.cache_clear())),
    "singledispatch": (lambda: dispatched(1), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "contextmanager": (lambda: in_context(), set_global("RATE", 0.5), set_global("RATE", 2.0)),
    "a name that comes to be": (lambda: perhaps(), set_global("NOT_YET", 0.5), lambda: delattr(here, "NOT_YET")),
}  # fmt: skip
# ruff: noqa: E501, C417, RUF012, N811, SIM905


class Cell(nn.Module):
    """A cell that reads something from outside."""

    def __init__(self, read: Callable[[], Any]):
        super().__init__()
        self.i, self.r, self.read = nn.Linear(3, 4), nn.Linear(4, 4), read

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.i(x) + self.r(h)) * self.read()


def check(layer: cello.Recurrent, x: Tensor) -> None:
    """Compare a layer with the loop over its cell, values and the gradient of x."""
    cell = layer.cells["l0"]
    cell = getattr(cell, "function", cell) if not isinstance(cell, Cell) else cell
    expected = loop(cell, x, torch.zeros(2, 4))
    seed = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    (gradient,) = torch.autograd.grad(expected, x, seed)
    got = layer(x)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    (found,) = torch.autograd.grad(got, x, seed.to(got.dtype))
    torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_change_outside_of_the_cell_is_seen(case: str):
    read, change, undo = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(5, 2, 3, requires_grad=True)
    layer = cello.Recurrent(Cell(read), state_size=4)
    if case == "sign of zero":
        undo()
    try:
        check(layer, x)
        check(layer, x)
        change()
        check(layer, x)
        check(cello.Recurrent(Cell(read), state_size=4), x)  # programs are shared between layers
        undo()
        check(layer, x)
    finally:
        here.RATE, here.CONFIG, here.SCALAR, here.PARTIAL = 2.0, CONFIG, SCALAR, PARTIAL


def test_an_activation_that_reads_a_setting():
    x = torch.randn(5, 2, 3)
    layer = cello.nn.LSTM(3, 4, activation=lambda v: torch.tanh(v) * TABLE["rate"])
    try:
        for rate in (2.0, 0.5, 1.0):
            TABLE["rate"] = rate
            with cello.engine("reference"):
                expected = layer(x)[0]
            torch.testing.assert_close(layer(x)[0], expected, atol=1e-5, rtol=1e-5)
            stepped, state = [], None
            with torch.no_grad():
                for row in x:
                    output, state = layer.step(row, state)
                    stepped.append(output)
            torch.testing.assert_close(torch.stack(stepped), expected, atol=1e-5, rtol=1e-5)
    finally:
        TABLE["rate"] = 2.0


def test_most_settings_are_compiled():
    """The law may be kept by refusing everything; this holds what is understood to its list."""
    slow = set()
    for case, (read, _, _) in CASES.items():
        layer = cello.Recurrent(Cell(read), state_size=4)
        if "native" not in cello.explain(layer, torch.randn(2, 1, 3)).plans[0].engine:
            slow.add(case)
    # The first dispatch on a type fills a cache, which is a change.
    assert slow <= {"vars", "globals()", "eval", "__getattr__", "lru_cache", "singledispatch"}


# Functions that answer otherwise at another call


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "random.random": lambda h: python_random.random(),
    "random.gauss": lambda h: python_random.gauss(0, 1),
    "numpy.random": lambda h: float(np.random.rand()),
    "id": lambda h: float(id(h) % 2),
    "time": lambda h: __import__("time").time() % 1,
    "is_grad_enabled": lambda h: 2.0 if torch.is_grad_enabled() else 0.5,
    "requires_grad": lambda h: 2.0 if h.requires_grad else 0.5,
    "grad_fn": lambda h: 2.0 if h.grad_fn is None else 0.5,
    "is_leaf": lambda h: 2.0 if h.is_leaf else 0.5,
    "initial_seed": lambda h: 1.0 if torch.initial_seed() % 2 else 0.5,
    "print": lambda h: print(end="") or 1.0,
    "noise without rows": lambda h: torch.rand(1, 4),
    "dropout without rows": lambda h: nn.functional.dropout(torch.ones(1, 4)),
    "randint": lambda h: torch.randint(0, 3, (1,)).float(),
    "hook": lambda h: h.register_hook(lambda g: g * 0) and 1.0 if h.requires_grad else 1.0,
}


@pytest.mark.parametrize("case", CALLS)
def test_what_may_be_otherwise_at_the_next_step_runs_in_the_loop(case: str):
    function = CALLS[case]
    weight = nn.Linear(3, 4)

    def cell(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(weight(x) + h) * function(h)

    explained = cello.explain(cello.Recurrent(cell, state_size=4), torch.randn(3, 2, 3))
    assert explained.plans[0].engine == "reference"
    assert "could not be traced" not in str(explained.plans[0].reasons["native"])


def data(z: Tensor) -> Tensor:
    return z.data


def clamped(z: Tensor) -> Tensor:
    z.data.clamp_(-0.5, 0.5)
    return z


def clamped_view(z: Tensor) -> Tensor:
    z.data[:, 1:].clamp_(-0.5, 0.5)
    return z


def clamped_detached(z: Tensor) -> Tensor:
    z.detach().clamp_(-0.5, 0.5)
    return z


def clamped_piece(z: Tensor) -> Tensor:
    z.detach()[:, :2].mul_(0.5)
    return z


def straight(z: Tensor) -> Tensor:
    return z + (z.round() - z).detach()


@pytest.mark.parametrize(
    "function", [data, clamped, clamped_view, clamped_detached, clamped_piece, straight]
)
def test_gradients_that_are_cut_or_let_through(function: Callable[[Tensor], Tensor]):
    weight = nn.Linear(3, 4)

    def cell(x: Tensor, h: Tensor) -> Tensor:
        z = weight(x) + 0.5 * h
        return torch.tanh(function(z) + z * 0.1)

    x = torch.randn(5, 2, 3, requires_grad=True)
    check(cello.Recurrent(cell, state_size=4), x)


# The trial and the trace leave nothing behind


COUNT = 0
SEEN: list[Any] = []


class Counts(nn.Module):
    """A cell that counts its calls in a place of its own."""

    def __init__(self, place: str):
        super().__init__()
        self.place = place
        self.w = nn.Linear(3, 4)
        self.number, self.listed, self.nested = 0, [0], {"a": [0]}
        self.array = np.zeros(1)
        self.object = types.SimpleNamespace(count=0)
        self.slots = Slots(0)
        self.iterator = iter(range(1000))
        self.register_buffer("buffer", torch.zeros(()))
        count = 0

        def closure() -> int:
            nonlocal count
            count += 1
            return count

        self.closure = closure

    def counted(self) -> float:
        return {
            "attribute": lambda: self.number, "list": lambda: self.listed[0],
            "nested list": lambda: self.nested["a"][0], "array": lambda: self.array[0],
            "object": lambda: self.object.count, "slots": lambda: self.slots.rate,
            "buffer": lambda: self.buffer.item(), "global": lambda: COUNT,
            "iterator": lambda: next(self.iterator), "closure": lambda: self.closure() - 1,
        }[self.place]()  # fmt: skip

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        global COUNT
        if self.place == "attribute":
            self.number += 1
        elif self.place == "list":
            self.listed[0] += 1
        elif self.place == "nested list":
            self.nested["a"][0] += 1
        elif self.place == "array":
            self.array[0] += 1
        elif self.place == "object":
            self.object.count += 1
        elif self.place == "slots":
            self.slots.rate += 1
        elif self.place == "buffer":
            self.buffer += 1
        elif self.place == "global":
            COUNT += 1
        elif self.place == "iterator":
            next(self.iterator)
        elif self.place == "closure":
            self.closure()
        return torch.tanh(self.w(x) + h)


@pytest.mark.parametrize(
    "place",
    [*"attribute list array object slots buffer global iterator closure".split(), "nested list"],
)
def test_a_step_that_counts_is_called_as_often_as_there_are_steps(place: str):
    here.COUNT = 0
    cell = Counts(place)
    layer = cello.Recurrent(cell, state_size=4)
    layer(torch.randn(5, 2, 3))
    assert cell.counted() == 5
    layer(torch.randn(4, 2, 3))
    assert cell.counted() == (9 if place not in ("iterator", "closure") else 10)


def test_a_list_of_states_holds_the_real_ones():
    def cell(x: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(x + h)
        SEEN.append(h)
        return h

    SEEN.clear()
    output, _ = cello.Recurrent(cell, state_size=4)(torch.randn(5, 2, 4))
    assert len(SEEN) == 5
    torch.testing.assert_close(torch.stack(SEEN), output)


def test_a_forward_pre_hook_sees_every_step_once():
    cell, calls = nn.LSTMCell(3, 4), []
    inner = Cell(lambda: 1.0)
    inner.register_forward_pre_hook(lambda *_: calls.append(1))
    cello.Recurrent(inner, state_size=4)(torch.randn(5, 2, 3))
    assert len(calls) == 5
    del cell


# The cell's own numbers


class Mode(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(3, 4)
        self.register_buffer("mode", torch.tensor(2))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("scales", torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.tanh(self.w(x) + h)
        if self.mode == 2:
            z = z * 0.5
        for scale in self.scales.tolist():
            z = z * scale
        return z + z[:, self.mask].sum(1, keepdim=True)


def test_a_cells_own_numbers_may_be_read_in_python():
    layer = cello.Recurrent(Mode(), state_size=4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    cell = layer.cells["l0"]

    def same() -> None:
        torch.testing.assert_close(
            layer(x)[0], loop(cell, x, torch.zeros(2, 4)), atol=1e-5, rtol=1e-5
        )

    same()
    assert cello.explain(layer, x).plans[0].engine == "native"
    cell.mode.fill_(3)
    same()
    cell.scales.mul_(0.3)
    same()
    cell.mask.copy_(torch.tensor([False, False, False, True]))
    same()


def test_a_failing_trace_is_not_blamed_on_what_the_step_does_not_read():
    class Locked(Cell):
        def __init__(self):
            super().__init__(lambda: 1.0)
            self.lock = threading.Lock()

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return super().forward(x + torch.zeros(100)[: x.shape[0], None], h)

    plan = cello.explain(cello.Recurrent(Locked(), state_size=4), torch.randn(3, 2, 3)).plans[0]
    (reason,) = plan.reasons["native"]
    assert "RuntimeError: The size of tensor" in reason


class Experts(nn.Module):
    """What a step depends on is a choice of the input, made with weights."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 2)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        chosen = self.gate(x + h).argmax(-1)
        return torch.tanh(x + h) if chosen.sum() > 1 else h


class Cached(nn.Module):
    """A tensor that is made at the first step."""

    mask: Tensor | None = None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.tril(torch.ones(4, 4))
        return torch.tanh(x + h @ self.mask)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Experts(), "Experts depends on the values of tensors in Python"),
        (
            Cached(),
            "what the next step needs belongs in the state, and what is made once in __init__",
        ),
        (
            lambda x, h: nn.functional.batch_norm(
                (x + h).view(-1, 2, 2), None, None, training=True
            ).flatten(1),
            "normalises over the batch .*, or with an instance, layer or group norm, it compiles",
        ),
    ],
)
def test_reasons_name_what_the_author_can_change(cell: Any, reason: str):
    (plan,) = cello.explain(cello.Recurrent(cell, state_size=4), torch.randn(3, 2, 4)).plans
    assert plan.engine == "reference"
    assert re.search(reason, plan.reasons["native"][0])
