"""Integers and truth values in a state, beside floating-point numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steps import assert_left_to_the_loop
from torch import Tensor, nn

import cello

T, B, F, H = 9, 4, 3, 4


class Refractory(nn.Module):
    """Neurons that rest after a spike (bools) and count their spikes (integers)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(F, H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> Any:
        v, rests, count = state
        v = 0.9 * v + self.weight(x) * ~rests
        spikes = v > 0.2
        busy = (spikes.sum(-1, keepdim=True) > 2).long()
        count = count + spikes + 2 * busy
        return v * torch.cos(count.to(v.dtype)), (torch.where(spikes, v - 0.2, v), spikes, count)


class Clockwork(nn.Module):
    """A clock that the cell starts itself, and that chooses a row of a table."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start, self.weight, self.table = start, nn.Linear(F, H), nn.Embedding(5, H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        if state is None:
            state = x.new_zeros(len(x), H), torch.full((len(x),), self.start)
        h, t = state
        h = torch.tanh(self.weight(x) + self.table(t % 5) + 0.5 * h)
        return h, (h, t + 1)


class Several(nn.Module):
    """Integers that are reset, bounded, chosen and negative, of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(F, H)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> Any:
        h, since, down, best, phase, seen = state
        moved = (2 * since + down + 2 * best).to(x.dtype)
        h = torch.tanh(self.weight(x) + 0.5 * h + 0.05 * moved)
        since = torch.where(h > 0.3, 0, since + 1)
        down = (down - 2 * (h < 0)).clamp(min=-9)
        phase = (phase + 3).remainder(7)
        return h * phase + seen, (
            h,
            since,
            down,
            h.argmax(-1, True),
            phase.abs(),
            seen.bool() | (h > 0.5),
        )


def start(cell: nn.Module, dtype: torch.dtype = torch.float64) -> Any:
    h = torch.randn(1, B, H, dtype=dtype, requires_grad=True)
    if isinstance(cell, Refractory):
        return h, torch.rand(1, B, H) > 0.5, torch.randint(0, 5, (1, B, H))
    if isinstance(cell, Clockwork):
        return h, torch.full((1, B), 7)
    whole = [torch.randint(0, 5, (1, B, H), dtype=d) for d in (torch.int32, torch.int64)]
    return h, *whole, torch.zeros(1, B, 1, dtype=torch.int64), whole[1] % 7, whole[0] > 2


def results(layer: Any, x: Tensor, hx: Any, **options: Any) -> list[Tensor]:
    output, end, states = layer(x, hx, return_states=True, **options)
    inputs = [x, *layer.parameters(), *([hx[0]] if hx else [])]
    loss = output.sin().sum() + sum(t.sin().sum() for t in states.values() if t.is_floating_point())
    return [output, *end, *states.values(), *torch.autograd.grad(loss, inputs)]


def check(native: list[Tensor], reference: list[Tensor]) -> None:
    for ours, theirs in zip(native, reference, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


BOUNDED: dict[str, Any] = {
    "reset by a product": lambda n, h: (n + 1) * (h <= 0),
    "twice a bound": lambda n, h: n.clamp(0, 3) * 2,
    "a bound added": lambda n, h: n + (2 * n).clamp(0, 3),
    "ones": lambda n, h: n + torch.ones_like(n),
    "scaled": lambda n, h: torch.add(n, (h > 0).long(), alpha=3),
    "taken away": lambda n, h: torch.rsub(n, 5) * (h > 0),
    "taken away twice": lambda n, h: torch.sub(n, (h > 0).long(), alpha=2),
    "a complement": lambda n, h: (~(n.clamp(0, 200).to(torch.uint8))).long(),
    "a remainder": lambda n, h: (n + 5) % 7,
    "a quotient": lambda n, h: (n - 7) // 2 + torch.div(n, 3, rounding_mode="floor"),
    "put in": lambda n, h: n.scatter(-1, h.argmax(-1, keepdim=True), 3),
    "places added": lambda n, h: (n + torch.arange(F)) % 5,
}
"""Integers that grow by a bounded number, or not at all."""


@pytest.mark.parametrize("name", BOUNDED)
def test_integers_that_stay_small(name: str):
    torch.manual_seed(0)
    change = BOUNDED[name]

    def step(x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, n = state
        h = torch.tanh(x + h + 0.1 * n.to(x.dtype))
        return h, (h, change(n, h))

    layer = cello.Recurrent(step)
    x, hx = torch.randn(T, B, F), (torch.zeros(1, B, F), torch.randint(0, 9, (1, B, F)))
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, (_, n) = layer(x, hx)
        found.append((output, n))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("make", [Refractory, Clockwork, Several])
def test_they_are_those_of_the_loop(make: type[nn.Module], given: bool):
    torch.manual_seed(0)
    sizes = {Refractory: (H, H, H), Several: (H, H, H, 1, H, H)}
    layer = cello.Recurrent(make().double(), state_size=sizes.get(make))
    x = torch.randn(T, B, F, dtype=torch.float64, requires_grad=True)
    hx = start(layer.cells["l0"]) if given else None
    assert cello.explain(layer, x, hx).plans[0].engine == "native", cello.explain(layer, x, hx)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            found.append(results(layer, x, hx, lengths=[9, 4, 7, 1]))
    check(*found)


@pytest.mark.parametrize("make", [Refractory, Clockwork, Several])
def test_in_segments_backwards_and_twice_differentiated(make: type[nn.Module]):
    torch.manual_seed(0)
    layer = cello.Recurrent(make().double(), reverse=True)
    x = torch.randn(T, B, F, dtype=torch.float64, requires_grad=True)
    hx = start(layer.cells["l0"])
    found = []
    for engine, segment in (("native", None), ("native", 4), ("reference", None)):
        layer.segment = segment
        with cello.engine(engine):
            output, _ = layer(x, hx)
        (first,) = torch.autograd.grad(output.sin().sum(), x, create_graph=segment is None)
        found.append([output, first])
        if segment is None:
            found[-1] += torch.autograd.grad(first.square().sum(), [x, hx[0]])
    check(found[0], found[2])
    check(found[1], found[2][:2])


def test_a_counter_that_may_grow_further_than_the_loop_counts():
    layer, x = cello.Recurrent(Clockwork()), torch.randn(T, B, F)
    for first, engine in (((1 << 22) - T, "native"), ((1 << 22) - T + 1, "reference")):
        hx = torch.zeros(1, B, H), torch.full((1, B), first)
        plan = cello.explain(layer, x, hx).plans[0]
        assert plan.engine == engine
        assert layer(x, hx)[1][1].tolist() == [[first + T] * B]
    assert "may grow beyond 4194304 in 9 steps" in plan.reasons["native"][0]
    hx = torch.zeros(1, B, H), torch.full((1, B), -(1 << 23))
    assert cello.explain(layer, x, hx).plans[0].engine == "reference"
    with cello.engine("native"), pytest.raises(cello.EngineError, match="may grow beyond"):
        layer(x, hx)


def test_a_counter_that_the_cell_starts_far_out():
    """What follows the cell's own first step runs in Python, too."""
    layer = cello.Recurrent(Clockwork(start=(1 << 40) + 1))
    _, (_, t) = layer(torch.randn(T, B, F))
    assert t.tolist() == [[(1 << 40) + 1 + T] * B]


REFUSED: dict[str, tuple[Any, str]] = {
    "doubled": (lambda x, s: (s[0] + x, (s[0], 2 * s[1])), "may grow beyond 4194304"),
    "added to itself": (lambda x, s: (s[0] + x, (s[0], s[1] + s[1])), "may grow beyond 4194304"),
    "of two": (lambda x, s: (s[0] + x, (s[0], s[1] + s[1].flip(-1))), "may grow beyond 4194304"),
    "scaled": (
        lambda x, s: (s[0] + x, (s[0], torch.add(s[1], s[1].sign(), alpha=1 << 22))),
        "may grow beyond 4194304",
    ),
    "small": (
        lambda x, s: (s[0] + x, (s[0], (s[1].clamp(0, 127).to(torch.int8) + 1).long())),
        "int8 in add .*, which may not hold the result",
    ),
    "doubled by its factor": (
        lambda x, s: (s[0] + x, (s[0], torch.rsub(s[1], 5, alpha=2))),
        "may grow beyond 4194304",
    ),
    "shifted": (lambda x, s: (s[0] + x, (s[0], s[1] >> 1)), "__rshift__|bitwise_right_shift"),
    "of numbers": (lambda x, s: (s[0] + x, (s[0], s[1] + s[0].long())), "converts to torch.int64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_integers_are_left_to_the_loop(name: str):
    step, reason = REFUSED[name]
    layer = cello.Recurrent(step)
    hx = torch.zeros(1, B, F), torch.ones(1, B, F, dtype=torch.int64)
    assert_left_to_the_loop(reason, layer, torch.randn(T, B, F), hx)


def test_steps_of_whole_numbers_alone():
    """A counter of large inputs is all of the state."""
    layer = cello.Recurrent(lambda x, n: (x * n, n + (x > 0)))
    x, hx = torch.randn(T, B, F), torch.zeros(1, B, F, dtype=torch.int64)
    with cello.engine("native"):
        output, n = layer(x, hx)
    before = (x > 0).cumsum(0) - (x > 0).long()
    assert torch.equal(output, x * before)
    assert torch.equal(n[0], (x > 0).sum(0))


def test_in_a_compiled_graph():
    """The size of a counter is not known there, that of a truth value is."""
    torch._dynamo.reset()
    layer = cello.Recurrent(Clockwork())
    x, hx = torch.randn(T, B, F), (torch.zeros(1, B, H), torch.full((1, B), 3))
    expected = layer(x, hx)
    found = torch.compile(layer, backend="aot_eager")(x, hx)
    torch.testing.assert_close(found, expected)

    def once(x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, seen = state
        h = torch.tanh(x + h * ~seen)
        return h, (h, seen | (h > 0.9))

    resting, hx = cello.Recurrent(once), (torch.zeros(1, B, F), torch.zeros(1, B, F) > 0)
    expected = resting(x, hx)
    with cello.engine("native"):
        found = torch.compile(resting, backend="aot_eager", fullgraph=True)(x, hx)
    torch.testing.assert_close(found, expected)
