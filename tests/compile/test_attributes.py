"""Attributes that a step sets: after a call they are those of the last step, as after a Python loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import loop
from torch import Tensor, nn
from torch.nn.utils import weight_norm

import cello

F, H = 3, 4


class Watched(nn.Module):
    """Keeps its gate to be looked at, in an attribute, a buffer, a dictionary and another module."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_h, self.other = nn.Linear(F, H), nn.Linear(H, H), nn.Identity()
        self.register_buffer("mem", torch.zeros(0), persistent=False)
        self.log: dict[str, Tensor] = {}

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.mem = 2 * h
        self.gate = torch.sigmoid(self.of_x(x) + self.of_h(h))
        self.log["gate"] = self.gate.detach()
        self.other.weight = self.of_h.weight * 2  # of weights alone
        new = torch.tanh(self.of_x(x) + self.mem)
        self.info = {"name": "gates", "parts": [self.gate, (new.detach(), 0.5)]}
        return self.gate * h + (1 - self.gate) * new


def attributes(cell: Any) -> list[Tensor]:
    gate, (new, _) = cell.info["parts"]
    return [cell.mem, cell.gate, cell.log["gate"], cell.other.weight, gate, new]


@pytest.mark.parametrize("rows", [[1, 5, 2], [3]])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_what_is_left_behind_is_that_of_the_last_step(rows: list[int], steps: int) -> None:
    torch.manual_seed(0)
    cell = Watched()
    layer = cello.Recurrent(cell, state_size=H)
    for number in rows:
        x, h = torch.randn(steps, number, F), torch.randn(1, number, H)
        expected = loop(cell, x, h[0])
        left = attributes(cell)
        wanted = torch.autograd.grad(
            expected.sum() + left[0].sum() + left[1].prod(), list(cell.parameters())
        )
        output, h_n = layer(x, h)
        found = attributes(cell)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(h_n[0], expected[-1])
        torch.testing.assert_close(found, left)
        assert [t.requires_grad for t in found] == [t.requires_grad for t in left]
        gradients = torch.autograd.grad(
            output.sum() + found[0].sum() + found[1].prod(), list(cell.parameters())
        )
        torch.testing.assert_close(gradients, wanted)
        plan = cello.explain(layer, x)
        assert plan.plans[0].engine == "native"
        assert (
            "the last step runs in Python, and leaves gate, info, log.gate, mem, other.weight"
            in str(plan)
        )


@pytest.mark.parametrize("options", [{}, {"reverse": True}])
def test_lengths_directions_and_states_of_all_steps(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    layer = cello.Recurrent(Watched(), state_size=H, **options)
    x = torch.randn(6, 4, F)
    with cello.engine("reference"):
        expected = layer(x, lengths=[2, 6, 0, 6], return_states=True)
        left = attributes(layer.cells["l0"])
    with cello.engine("native"):
        found = layer(x, lengths=[2, 6, 0, 6], return_states=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(attributes(layer.cells["l0"]), left)
    if not options:  # a stream, which has one step at a time
        state = None
        for step in x:
            output, state = layer.step(step, state)
        torch.testing.assert_close(output, layer(x)[0][-1])


class Neuron(Watched):
    """Makes its own first state."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = x.new_zeros(len(x), H) if h is None else h
        return super().forward(x, h)


def test_a_cell_that_makes_its_first_state() -> None:
    torch.manual_seed(0)
    cell = Neuron()
    layer = cello.Recurrent(cell)
    for steps in (1, 2, 3, 7):
        x = torch.randn(steps, 2, F)
        expected = loop(cell, x, torch.zeros(2, H))
        left = attributes(cell)
        torch.testing.assert_close(layer(x)[0], expected)
        torch.testing.assert_close(attributes(cell), left)
    assert cello.explain(layer, x).plans[0].engine == "native"


class Reads(Watched):
    """Reads what the step before has left, in one of several ways."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return super().forward(self.read(self, x), h)


def quietly(cell: Any, x: Tensor) -> Tensor:
    try:
        return x + cell.gate.mean()
    except Exception:
        return x


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "attribute": lambda cell, x: x + cell.gate.mean() if hasattr(cell, "gate") else x,
    "item": lambda cell, x: x + cell.log["gate"].mean() if cell.log else x,
    "another module": lambda cell, x: x + getattr(cell.other, "weight", x).mean(),
    "shape of a buffer for two rows": lambda cell, x: x + 1 if cell.mem.shape[:1] == (2,) else x,
    "class": lambda cell, x: x + 1 if isinstance(getattr(cell, "gate", None), Tensor) else x,
    "shape of a buffer": lambda cell, x: x + 1 if cell.mem.numel() else x,
    "buffer": lambda cell, x: x + cell.mem.sum(),
    "caught error": quietly,
    "type": lambda cell, x: x + 1 if type(vars(cell).get("gate")) is Tensor else x,
    "vars": lambda cell, x: x + len(vars(cell)),
}


@pytest.mark.parametrize("name", READS)
def test_a_step_that_reads_what_the_last_one_left_is_not_compiled(name: str) -> None:
    layer, x = cello.Recurrent(Reads(READS[name]), state_size=H), torch.randn(5, 2, F)
    try:
        layer(x)
    except cello.CellError as error:  # the trial has found it out
        assert "at one step and reads it at the next one" in str(error)  # noqa: PT017
    else:
        plan = cello.explain(layer, x).plans[0]
        assert plan.engine == "reference"


class Lazy(nn.Module):
    """Makes a tensor at its first step, found out in one of several ways."""

    scale: Tensor | None

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.of_x = way, nn.Linear(F, H)
        if way == "buffer":
            self.register_buffer("scale", None)
        elif way == "shape":
            self.scale = torch.zeros(0)
        elif way == "none":
            self.scale = None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if self.way == "attribute":
            is_missing = not hasattr(self, "scale")
        else:
            is_missing = self.scale is None or self.scale.numel() == 0
        if is_missing:
            self.scale = torch.linspace(1, 2, H)
        return torch.tanh(self.of_x(x) + h * self.scale)


@pytest.mark.parametrize("way", ["none", "attribute", "buffer", "shape"])
def test_what_is_made_at_the_first_step_keeps_no_later_call_in_python(way: str) -> None:
    torch.manual_seed(0)
    x, h = torch.randn(5, 2, F), torch.zeros(2, H)
    layers = [cello.Recurrent(Lazy(way), state_size=H) for _ in range(2)]
    engines = []
    for layer in layers:
        for _ in range(2):
            engines.append(cello.explain(layer, x).plans[0].engine)
            output, _ = layer(x)
            expected = loop(layer.cells["l0"], x, h)
            torch.testing.assert_close(output, expected)
            weights = list(layer.parameters())
            found = torch.autograd.grad(output.sum(), weights)
            torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), weights))
    assert engines == ["reference", "native"] * 2
    made = Lazy(way)
    made(x[0], h)
    assert cello.explain(cello.Recurrent(made, state_size=H), x).plans[0].engine == "native"


def test_attributes_that_are_no_tensors_run_in_the_python_loop() -> None:
    class Counts(Watched):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            self.size = len(self.log)
            self.kept = {h}
            return super().forward(x, h)

    layer, x = cello.Recurrent(Counts(), state_size=H), torch.randn(5, 2, F)
    layer(x)
    assert cello.explain(layer, x).plans[0].engine == "reference"
    assert layer.cells["l0"].size == 1


def test_a_weight_that_torch_computes_costs_no_step() -> None:
    """A hook of torch's sets it before each step, and nobody looks for that of the last step."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with pytest.warns(FutureWarning):
                self.lin = weight_norm(nn.Linear(F + H, H))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            if not x.is_meta:
                steps.append(len(x))
            return torch.tanh(self.lin(torch.cat([x, h], 1)))

    steps: list[int] = []
    layer, x = cello.Recurrent(Normed(), state_size=H), torch.randn(5, 2, F)
    layer(x)
    steps.clear()
    layer(x)
    assert not steps or cello.explain(layer, x).plans[0].engine == "reference"


def test_a_graph_leaves_the_layer_out() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    layer, x = cello.Recurrent(Watched(), state_size=H), torch.randn(5, 2, F)
    with torch.no_grad():
        expected, _ = layer(x)
        left = attributes(layer.cells["l0"])
        compiled = torch.compile(lambda x: layer(x)[0] * 2, backend="eager")
        torch.testing.assert_close(compiled(x), expected * 2)
    torch.testing.assert_close(attributes(layer.cells["l0"]), left)


class Ring(nn.Module):
    """Reads the order of what it sets."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {"a": None, "b": None}

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        key = next(iter(self.kept))
        new = torch.tanh(x + h) if key == "a" else torch.sigmoid(x + h)
        del self.kept[key]
        self.kept[key] = new.detach()
        return new


class Twice(dict[str, Tensor]):
    """A dictionary that changes what is put into it."""

    def __setitem__(self, key: str, value: Tensor) -> None:
        super().__setitem__(key, value * 2)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = Twice()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.log["h"] = torch.tanh(x + h)
        return torch.tanh(x + h)


class Tagged(nn.Module):
    """Sets attributes of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.t = nn.Parameter(torch.ones(H)), torch.ones(H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new: Any = torch.tanh(x + h * self.w)
        if hasattr(self.t, "seen"):
            new = new * 2
        self.t.seen = True  # type: ignore[attr-defined]
        self.w.last = new.detach()  # type: ignore[attr-defined]
        return new  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Ring, Doubled, Tagged])
def test_odd_places_of_what_a_step_leaves(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x, ours, theirs = torch.randn(4, 3, H), kind(), kind()
    layer = cello.Recurrent(ours, state_size=H)
    for _ in range(3):
        torch.testing.assert_close(layer(x)[0], loop(theirs, x, torch.zeros(3, H)))
    if isinstance(ours, Doubled) and isinstance(theirs, Doubled):
        torch.testing.assert_close(ours.log["h"], theirs.log["h"])
    if isinstance(ours, Tagged):
        assert ours.w.last.shape == (3, H)
        assert not ours.w.last.is_meta
