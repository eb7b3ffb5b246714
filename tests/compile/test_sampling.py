"""Samples that depend on the state: their frequencies, and gradients beside a loop with equal samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import assert_left_to_the_loop
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    LogNormal,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)
from torch.nn import functional as F

import cello

T, B, H = 400, 25, 6


@pytest.fixture(autouse=True)
def validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile switches the checks of distributions off, once it is used."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


def samples_of(draw: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """What steps draw whose state stays the same, (T * B, ...)."""
    layer = cello.Recurrent(lambda x, h: (draw(h) + 0 * x, h), state_size=len(state))
    x = torch.zeros(T, B, 1, dtype=state.dtype)
    start = state.expand(1, B, -1)
    assert cello.explain(layer, x, start).plans[0].engine == "native"
    torch.manual_seed(0)
    with cello.engine("native"):
        output = layer(x, start)[0]
        torch.manual_seed(0)
        assert torch.equal(layer(x, start)[0], output)
        assert not torch.equal(layer(x, start)[0], output)
    return output.flatten(0, 1)


def assert_mean(samples: Tensor, mean: Tensor, deviation: Tensor) -> None:
    """The mean of samples lies within five of its deviations of the true one."""
    bound = 5 * deviation / len(samples) ** 0.5 + 1e-6
    assert ((samples.double().mean(0) - mean).abs() <= bound).all(), samples.mean(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli(dtype: torch.dtype):
    p = torch.tensor([0.0, 0.01, 0.3, 0.5, 0.99, 1.0], dtype=dtype)
    found = samples_of(torch.bernoulli, p)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert_mean(found, p.double(), (p * (1 - p)).sqrt().double())
    assert (found[:, 0] == 0).all()
    assert (found[:, -1] == 1).all()


def test_bernoulli_of_a_number():
    found = samples_of(lambda h: torch.empty_like(h).bernoulli_(0.2), torch.zeros(H))
    assert_mean(found, torch.full((H,), 0.2), torch.full((H,), 0.4))


P = torch.tensor([0.0, 0.5, 0.2, 0.05, 0.25, 0.0], dtype=torch.float64)
CATEGORIES: dict[str, Callable[[Tensor], Tensor]] = {
    "multinomial": lambda h: F.one_hot(torch.multinomial(h, 1)[:, 0], H).to(h.dtype),
    "multinomial of weights": lambda h: F.one_hot(
        torch.multinomial(7 * h, 1, replacement=True)[:, 0], H
    ).to(h.dtype),
    "Categorical": lambda h: F.one_hot(Categorical(h + 1e-30).sample(), H).to(h.dtype),
    "OneHotCategorical": lambda h: OneHotCategorical(h + 1e-30).sample(),
    "of logarithms": lambda h: OneHotCategorical(logits=(h + 1e-30).log()).sample(),
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories(name: str):
    found = samples_of(CATEGORIES[name], P)
    assert torch.equal(found.sum(1), torch.ones(T * B, dtype=P.dtype))
    assert_mean(found, P, (P * (1 - P)).sqrt())
    # Neighbouring steps and rows are independent of each other.
    for shift in (1, B):
        both = (found[shift:] * found[:-shift]).mean(0)
        torch.testing.assert_close(both, P * P, rtol=0, atol=0.02)


def test_without_replacement():
    weights = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3, 0.0], dtype=torch.float64)
    found = samples_of(lambda h: torch.multinomial(h, 2).to(h.dtype), weights).long()
    assert (found[:, 0] != found[:, 1]).all()
    first = F.one_hot(found[:, 0], H).double()
    assert_mean(first, weights, (weights * (1 - weights)).sqrt())
    # The second one by what the first one leaves.
    second = torch.zeros(H, dtype=torch.float64)
    for i in range(H):
        rest = weights.clone()
        rest[i] = 0
        second += weights[i] * rest / rest.sum()
    assert_mean(F.one_hot(found[:, 1], H).double(), second, (second * (1 - second)).sqrt())


def test_groups_of_categories():
    """As the latents of a recurrent state-space model, several for each row."""
    p = torch.tensor([[0.2, 0.8, 0.0], [0.3, 0.3, 0.4]], dtype=torch.float64)
    found = samples_of(_draw_groups, p.flatten())
    assert_mean(found, p.flatten(), (p * (1 - p)).sqrt().flatten())


def _draw_groups(h: Tensor) -> Tensor:
    return Independent(OneHotCategorical(h.view(-1, 2, 3) + 1e-30), 1).sample().flatten(1)


NUMBERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "normal": (lambda h: torch.normal(h, 0.5), lambda h: h, 0.5),
    "normal of deviations": (lambda h: torch.normal(1.0, h.abs()), torch.ones_like, 2.0),
    "normal of both": (lambda h: torch.normal(h, h * h), lambda h: h, 4.0),
    "Normal": (lambda h: Normal(h, 0.5).sample(), lambda h: h, 0.5),
    "Laplace": (lambda h: Laplace(h, 1.0).rsample(), lambda h: h, 2**0.5),
    "LogNormal": (lambda h: LogNormal(h, 0.1).rsample(), lambda h: (h + 0.005).exp(), 0.8),
    "Bernoulli": (lambda h: Bernoulli(logits=h).sample(), torch.sigmoid, 0.5),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str):
    draw, mean, deviation = NUMBERS[name]
    state = torch.tensor([-2.0, -1.0, -0.1, 0.0, 1.0, 2.0], dtype=torch.float64)
    found = samples_of(draw, state)
    assert_mean(found, mean(state), torch.full((H,), deviation, dtype=torch.float64))
    if name == "normal of both":
        torch.testing.assert_close(found.std(0), state * state, rtol=0.05, atol=1e-12)


class StateSpace(nn.Module):
    """A recurrent state-space model with discrete latents, through which gradients go straight."""

    given: list[Tensor] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.prior = nn.GRUCell(3 + H, H), nn.Linear(H, H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, z = state
        h = self.cell(torch.cat([x, z], -1), h)
        latent = OneHotCategoricalStraightThrough(logits=self.prior(h).view(-1, 2, 3))
        if self.given is None:
            z = Independent(latent, 1).rsample().flatten(1)
        else:
            z = (self.given.pop(0).view(-1, 2, 3) + latent.probs - latent.probs.detach()).flatten(1)
        return z, (h, z)


def test_gradients_go_straight_through_samples():
    torch.manual_seed(0)
    cell = StateSpace().double()
    layer = cello.Recurrent(cell, state_size=(H, H))
    x = torch.randn(7, 4, 3, dtype=torch.float64, requires_grad=True)
    assert cello.explain(layer, x).plans[0].engine == "native"
    weights = torch.randn(7, 4, H, dtype=torch.float64)
    output, (h, _) = layer(x)
    found = torch.autograd.grad((output * weights).sum() + h.sin().sum(), [x, *cell.parameters()])
    assert set(output.detach().round(decimals=9).unique().tolist()) == {0.0, 1.0}

    cell.given, state = list(output.detach().round()), (torch.zeros(4, H, dtype=torch.float64),) * 2
    loss = torch.zeros((), dtype=torch.float64)
    for row, weight in zip(x, weights, strict=True):
        z, state = cell(row, state)
        loss = loss + (z * weight).sum()
    expected = torch.autograd.grad(loss + state[0].sin().sum(), [x, *cell.parameters()])
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize(
    ("draw", "error"),
    [
        (torch.bernoulli, "p"),
        (lambda h: torch.multinomial(h, 1).to(h.dtype), "probability tensor|invalid multinomial"),
        (lambda h: torch.normal(h, h), "std"),
        (lambda h: Bernoulli(h).sample(), "probs"),
    ],
)
def test_what_torch_refuses_is_refused(draw: Callable[[Tensor], Tensor], error: str):
    layer = cello.Recurrent(lambda x, h: 0 * draw(h) + h + x, state_size=H)
    x, start = torch.zeros(5, 3, H), torch.full((1, 3, H), 0.5)
    assert cello.explain(layer, x, start).plans[0].engine == "native"
    x[2] = -1.0
    with pytest.raises((RuntimeError, ValueError), match=error):
        layer(x, start)


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (torch.poisson, "draws random numbers by poisson"),
        (
            lambda h: torch.multinomial(h, 2, replacement=True).sum(1, True).to(h.dtype),
            "multinomial",
        ),
        (lambda h: torch.bernoulli(h, generator=torch.default_generator), "draws random numbers"),
        (
            lambda h: torch.bernoulli(h.bfloat16()).to(h.dtype),
            "torch.bfloat16|draws random numbers",
        ),
    ],
)
def test_other_samples_are_left_to_the_loop(draw: Callable[[Tensor], Tensor], reason: str):
    layer = cello.Recurrent(lambda x, h: 0.5 + 0.1 * torch.tanh(x + draw(h)), state_size=H)
    assert_left_to_the_loop(reason, layer, torch.randn(5, 3, H), torch.full((1, 3, H), 0.5))
