"""What a step reads and its code does not show: by computed names, of tensors, slots and classes."""

from __future__ import annotations

import array
import dataclasses
import functools
import logging
import operator
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cello

F = 3


class Cell(nn.Module):
    """A cell with settings, of which a function makes a factor."""

    def __init__(self, factor: Callable[[Any], Any], settings: Any):
        super().__init__()
        self.lin, self.factor, self.settings, self.key = nn.Linear(F, F), factor, settings, "gain"

    def forward(self, x, h):
        return torch.tanh(self.lin(x) + h * self.factor(self))


@dataclasses.dataclass
class Settings:
    """Settings of a cell."""

    gain: float
    training: bool = False


class Slots:
    """Settings in a slot, which may be unset."""

    __slots__ = ("gain",)


class Named:
    """A class with a name of its author's that looks like Python's."""

    __gain__ = 0.5


def matched(cell: Cell) -> float:
    match cell.settings:
        case Settings(gain, _):
            return gain
    raise AssertionError


READS: dict[str, Callable[[Cell], Any]] = {
    "training of another object": lambda cell: 2.0 if cell.settings.training else 0.5,
    "astuple": lambda cell: dataclasses.astuple(cell.settings)[0],
    "asdict": lambda cell: dataclasses.asdict(cell.settings)["gain"],
    "match": matched,
    "reduce": lambda cell: functools.reduce(getattr, ("settings", "gain"), cell),
    "double star": lambda cell: (lambda gain, training: gain)(**cell.settings.__dict__),
    "dict": lambda cell: cell.settings.__dict__[cell.key],
    "attrgetter": lambda cell: operator.attrgetter("settings." + cell.key)(cell),
    "getattribute": lambda cell: cell.settings.__getattribute__(cell.key),
}


def agree(cell: Cell, x: Tensor) -> None:
    """Compare a new layer, and the gradient of the input, with a loop over the cell."""
    results = []
    for run in (lambda x: cello.Recurrent(cell, state_size=F)(x)[0], lambda x: by_hand(cell, x)):
        given = x.clone().requires_grad_()
        out = run(given)
        out.sum().backward()
        results.append((out, given.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def by_hand(cell: nn.Module, x: Tensor) -> Tensor:
    h, rows = torch.full((x.shape[1], F), 0.0), []
    for step in x:
        h = cell(step, h)
        rows.append(h)
    return torch.stack(rows)


@pytest.mark.parametrize("name", READS)
def test_settings_read_by_names_that_are_not_in_the_code(name: str):
    x = torch.randn(3, 2, F)
    for settings in (Settings(0.5), Settings(2.0, True), Settings(0.25)):
        cell = Cell(READS[name], settings)
        agree(cell, x)
        settings.gain, settings.training = 3.0, not settings.training
        agree(cell, x)


def test_namespaces_that_are_compared_whole():
    default = SimpleNamespace(gain=1)
    for gain in (1, 2, 1):
        namespace = SimpleNamespace(gain=gain)
        agree(
            Cell(lambda c: 2.0 if c.settings == default else 0.5, namespace), torch.randn(3, 2, F)
        )


TEMPLATE = "{0.settings.gain}"


@pytest.mark.parametrize(
    "factor",
    [
        lambda c: float(TEMPLATE.format(c)),
        lambda c: float("{.settings.gain}".format(c)),  # noqa: UP032
        lambda c: float("{:{c.settings.gain}}".format("2", c=c)) if c.key == "" else 0.5,
    ],
)
def test_names_in_texts_that_are_filled_in(factor: Callable[[Any], float]):
    settings = SimpleNamespace(gain=0.5)
    cell = Cell(factor, settings)
    for gain in (0.5, 2.0):
        settings.gain = gain
        agree(cell, torch.randn(3, 2, F))


class Checked(nn.Module):
    """A step that may write a message, and holds what cannot be compared and is not read."""

    def __init__(self):
        super().__init__()
        self.lin, self.source = nn.Linear(F, F), np.random.RandomState(0)

    def forward(self, x, h):
        if h.dim() != 2:
            raise ValueError("a state of {} axes, {!r:>4}".format(h.dim(), "not two"))
        return torch.tanh(self.lin(x) + h)


def test_a_message_reads_no_names():
    layer = cello.Recurrent(Checked(), state_size=F)
    assert cello.explain(layer, torch.randn(3, 2, F)).plans[0].engine == "native"


class Loud(dict[str, float]):
    """A dictionary that is asked in another way, as that of torch's shared memory."""

    def get(self, key: str) -> float:  # type: ignore[override]
        return super().__getitem__(key)


def test_dictionaries_of_a_class_of_their_own():
    settings = Loud(gain=0.5)
    cells = [
        Cell(lambda c: c.settings["gain"], settings),
        Cell(lambda c: c.settings.get("gain"), settings),
    ]
    for gain in (0.5, 2.0):
        settings["gain"] = gain
        for cell in cells:
            agree(cell, torch.randn(3, 2, F))


def test_attributes_of_tensors():
    for where in (torch.tensor(0.5), nn.Parameter(torch.tensor(0.5))):
        cell = Cell(lambda c: c.settings.gain, where)
        for gain in (0.5, 2.0):
            where.gain = gain
            agree(cell, torch.randn(3, 2, F))


def test_attributes_of_partials():
    scaled = functools.partial(torch.mul, other=1.0)
    cell = Cell(lambda c: c.settings.gain, scaled)
    for gain in (0.5, 2.0):
        scaled.gain = gain
        agree(cell, torch.randn(3, 2, F))


@torch.no_grad()
def test_strides_of_weights():
    cell = Cell(lambda c: 0.5 if c.lin.weight.is_contiguous() else 2.0, None)
    x = torch.randn(3, 2, F)
    layer = cello.Recurrent(cell, state_size=F)
    for _ in range(3):
        cell.lin.weight.data = cell.lin.weight.data.t()
        torch.testing.assert_close(layer(x)[0], by_hand(cell, x))


class Subclass(nn.Parameter):
    """A parameter that says what it is."""


class Mild:
    factor = staticmethod(lambda: 0.5)


class Strong:
    factor = staticmethod(lambda: 2.0)


class Heir(Mild):
    """It has what its base has."""


def plain_function() -> None:
    """It may be given an attribute."""


def changed_class(cell: Cell) -> None:
    cell.settings.__class__ = Subclass


def changed_bases(cell: Cell) -> None:
    Heir.__bases__ = (Strong,)


def changed_function(cell: Cell) -> None:
    cell.settings.gain = 2.0


def changed_partial(cell: Cell) -> None:
    cell.settings.__setstate__((min, (2.0, 3.0), {}, {}))


def changed_order(cell: Cell) -> None:
    cell.settings = np.asfortranarray(cell.settings)


LATER = {
    "the class of a tensor": (
        lambda c: 2.0 if type(c.settings) is Subclass else 0.5,
        lambda: nn.Parameter(torch.zeros(1)),
        changed_class,
    ),
    "the bases of a class": (lambda c: c.settings.factor(), Heir, changed_bases),
    "the first attribute of a function": (
        lambda c: getattr(c.settings, "gain", 0.5),
        lambda: plain_function,
        changed_function,
    ),
    "what a partial calls": (
        lambda c: c.settings(),
        lambda: functools.partial(min, 0.5, 1.0),
        changed_partial,
    ),
    "the order of an array": (
        lambda c: 0.5 if c.settings.flags.c_contiguous else 2.0,
        lambda: np.arange(4.0).reshape(2, 2),
        changed_order,
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_what_changes_between_calls(name: str):
    factor, settings, change = LATER[name]
    cell = Cell(factor, settings())
    layer, x = cello.Recurrent(cell, state_size=F), torch.randn(3, 2, F)
    try:
        for _ in range(3):
            before = by_hand(cell, x)
            torch.testing.assert_close(layer(x)[0], before)
        change(cell)
        assert not torch.allclose(by_hand(cell, x), before)
        torch.testing.assert_close(layer(x)[0], by_hand(cell, x))
    finally:
        Heir.__bases__ = (Mild,)
        plain_function.__dict__.clear()


def test_slots_that_are_not_set():
    cell = Cell(lambda c: 0.5 if hasattr(c.settings, "gain") else 2.0, Slots())
    agree(cell, torch.randn(3, 2, F))
    cell.settings.gain = None
    agree(cell, torch.randn(3, 2, F))


def test_a_trial_leaves_slots_and_arrays_as_they_were():
    def count(cell: Cell) -> float:
        slots, numbers = cell.settings
        slots.gain = slots.gain + 1 if hasattr(slots, "gain") else 0
        numbers[0] += 1
        return 0.5 if slots.gain == numbers[0] - 1 else 2.0

    cell, other = (Cell(count, (Slots(), array.array("d", [0.0]))) for _ in range(2))
    other.load_state_dict(cell.state_dict())
    x = torch.randn(4, 2, F)
    torch.testing.assert_close(cello.Recurrent(cell, state_size=F)(x)[0], by_hand(other, x))
    assert cell.settings[1][0] == len(x)


def test_names_of_a_class_that_look_like_pythons():
    cell = Cell(lambda c: c.settings.__gain__, Named())
    for gain in (0.5, 2.0):
        Named.__gain__ = gain
        agree(cell, torch.randn(3, 2, F))


TABLE = torch.linspace(0, 1, 4096 * F).view(4096, F)
AN_ODD_BATCH = 10
PARITY = {
    "an index": lambda x: [0.5, 2.0][x.shape[0] % 2],
    "a factor": lambda x: x.shape[0] % 2 + 0.5,
    "a part of a list": lambda x: sum([0.1, 0.2, 0.3, 0.4][: x.shape[0]]),
    "a range": lambda x: 0.5 if 4 in range(x.shape[0]) else 2.0,
    "between": lambda x: 0.5 if 3 < len(x) < 9 else 1.0,
    "one number": lambda x: 0.5 if len(x) == 11 else 1.0,
    "a number that is set": lambda x: 0.5 if len(x) == AN_ODD_BATCH else 1.0,
    "above a number": lambda x: 0.5 if len(range(x.shape[0])) > 2000 else 1.0,
    "every fifth": lambda x: 0.5 if len(x) % 5 == 0 else 1.0,
    "a quotient": lambda x: x.shape[0] // 3,
    "real": lambda x: 0.5 if x.shape[0].real > 4 else 2.0,
    "numpy": lambda x: 1.5 if np.shape(x)[0] > 4 else 0.5,
    "numpy's product": lambda x: 1.5 if np.prod(np.shape(x)) > 12 else 0.5,
    "a part of a table": lambda x: TABLE[: x.shape[0]].mean(0),
    "the last of a part": lambda x: TABLE[: x.shape[0]][-1],
    "expanded": lambda x: TABLE[0].expand(x.shape[0], -1).sum(0),
    "numbers": lambda x: torch.arange(8)[: x.shape[0]].sum(),
}


@pytest.mark.parametrize("name", PARITY)
def test_the_number_of_rows_in_other_guises(name: str):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(F, F)

        def forward(self, x, h):
            return torch.tanh(self.lin(x) + h) * PARITY[name](x)

    cell = Counts()
    layer = cello.Recurrent(cell, state_size=F)
    for rows in (3, 1, 2, 4, 5, 6, 10, 11, 2001):
        x = torch.randn(3, rows, F)
        torch.testing.assert_close(layer(x)[0], by_hand(cell, x))


def test_a_deviation_of_equal_numbers():
    """Of the first state, zeros, too: its gradient is zero, as in torch."""

    class Deviates(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(F, F)

        def forward(self, x, h):
            mean = torch.std_mean(h, 1, keepdim=True)[1]
            return self.w(x) + 0.1 * h + h.std(1, keepdim=True) + h.std(1, False, True) + mean

    cell = Deviates().double()
    for start in (torch.zeros(2, F), torch.ones(2, F)):
        gradients = []
        x = torch.randn(3, 2, F, dtype=torch.float64)
        for run in (True, False):
            h = start.double().requires_grad_()
            if run:
                out = cello.Recurrent(cell, state_size=F)(x, h[None])[0][-1]
            else:
                out = h
                for step in x:
                    out = cell(step, out)
            gradients.append(torch.autograd.grad(out.sum(), h)[0])
        assert gradients[0].isfinite().all()
        torch.testing.assert_close(*gradients)


class Quiet(nn.Module):
    """Holds a lock and a logger, and may use one."""

    def __init__(self, uses: str):
        super().__init__()
        self.lin, self.uses = nn.Linear(F, F), uses
        self.lock, self.log = threading.Lock(), logging.getLogger(__name__)

    def forward(self, x, h):
        if self.uses == "log" and self.log is not None:
            self.log.debug("a step")
        if self.uses == "lock":
            with self.lock:
                return torch.tanh(self.lin(x) + h)
        return torch.tanh(self.lin(x) + h)


@pytest.mark.parametrize(
    ("uses", "engine"), [("", "native"), ("lock", "reference"), ("log", "reference")]
)
def test_locks_and_loggers(uses: str, engine: str, caplog: pytest.LogCaptureFixture):
    layer, x = cello.Recurrent(Quiet(uses), state_size=F), torch.randn(3, 2, F)
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == engine
    if uses == "log":
        line = Quiet.forward.__code__.co_firstlineno + 2
        assert f"called in test_hidden_reads.py:{line}, and" in plan.reasons["native"][0]
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        layer(x)
    assert len(caplog.records) == (3 if uses == "log" else 0)


def test_what_the_machine_has_is_the_same_at_every_step():
    def step(x: Tensor, h: Tensor) -> Tensor:
        device = "cuda" if torch.cuda.is_available() and x.is_cuda else "cpu"
        return torch.tanh(x + h + torch.ones(F, device=device))

    layer, x = cello.Recurrent(step, state_size=F), torch.randn(3, 2, F)
    assert cello.explain(layer, x).plans[0].engine == "native"
    h = torch.zeros(2, F)
    for row in x:
        h = step(row, h)
    torch.testing.assert_close(layer(x)[0][-1], h)
