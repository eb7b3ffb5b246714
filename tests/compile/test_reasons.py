"""Reasons why a step runs in the Python loop: they are true, and name the line and what can be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import loop
from torch import Tensor, nn

import cello

H = 4


class Keeps(nn.Module):
    """A step that updates a buffer in one of several ways."""

    def __init__(self, update: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.update = update
        self.register_buffer("mean", torch.ones(H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(x + h)
        self.update(self, h.detach())
        return h * self.mean


def set_anew(c: Any, h: Tensor) -> None:
    c.mean = c.mean * 0.9 + h.mean(0) * 0.1


def copied(c: Any, h: Tensor) -> None:
    c.mean.copy_(h[0])


def without_gradients(c: Any, h: Tensor) -> None:
    with torch.no_grad():
        c.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)


def added(c: Any, h: Tensor) -> None:
    c.mean += h[0]


def into_a_part(c: Any, h: Tensor) -> None:
    c.mean[0:2].copy_(h[0, :2])


UPDATES: dict[Callable[[Any, Tensor], None], str] = {
    set_anew: "changes its attribute mean in a step that reads it before",
    copied: "writes into mean at every step (test_reasons.py:{line})",
    without_gradients: "writes into mean at every step (test_reasons.py:{line})",
    added: "writes into mean at every step (test_reasons.py:{line})",
    into_a_part: "writes into a part of a tensor that it holds (test_reasons.py:{line})",
}


@pytest.mark.parametrize("update", UPDATES)
def test_a_buffer_that_a_step_updates(update: Callable[[Any, Tensor], None]) -> None:
    ours, theirs = Keeps(update), Keeps(update)
    layer, x = cello.Recurrent(ours, state_size=H), torch.randn(3, 2, H)
    (reason,) = cello.explain(layer, x).plans[0].reasons["native"]
    line = update.__code__.co_firstlineno + (2 if update is without_gradients else 1)
    assert UPDATES[update].format(line=line) in reason
    torch.testing.assert_close(layer(x)[0], loop(theirs, x, torch.zeros(2, H)))
    torch.testing.assert_close(ours.mean, theirs.mean)


def of_a_normal(x: Tensor, h: Tensor, **options: Any) -> Tensor:
    covariance = torch.diag_embed(h.sigmoid() + 1)
    made = torch.distributions.MultivariateNormal(h, covariance_matrix=covariance, **options)
    return torch.tanh(x + made.log_prob(x)[:, None])


def of_a_checked_normal(x: Tensor, h: Tensor) -> Tensor:
    return of_a_normal(x, h, validate_args=True)


def row_by_row(x: Tensor, h: Tensor) -> Tensor:
    rows = []
    for b in range(len(x)):
        rows.append(torch.tanh(x[b] + h[b]))
    return torch.stack(rows)


BAG = nn.EmbeddingBag(5, H)
ARRAY = torch.ones(H).numpy()

STEPS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "squeeze": (lambda x, h: torch.tanh(x + h).squeeze(), "squeeze(dim) in the place of squeeze()"),
    "rows": (
        lambda x, h: torch.stack([torch.tanh(a + b) for a, b in zip(x, h, strict=True)]),
        "in the place of a loop over them",
    ),
    "rows by number": (row_by_row, "in the place of a loop over them"),
    "an array": (lambda x, h: torch.tanh(x + h * torch.from_numpy(ARRAY)), "write torch.tensor in"),
    "a distribution": (of_a_checked_normal, "but not with validate_args=False"),
    "a gradient": (
        lambda x, h: torch.tanh(x + torch.func.grad(lambda a: (a * a).sum())(h)),
        "calls torch.func.grad",
    ),
    "a bag": (
        lambda x, h: torch.tanh(h + BAG(x.abs().long().clamp(0, 4))),
        "uses _embedding_bag",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_reasons_name_the_line_and_what_to_write(name: str) -> None:
    step, told = STEPS[name]
    layer, x = cello.Recurrent(step, state_size=H), torch.randn(3, 2, H)
    (reason,) = cello.explain(layer, x).plans[0].reasons["native"]
    assert told in reason
    start, end = (
        step.__code__.co_firstlineno,
        max(line for *_, line in step.__code__.co_lines() if line),
    )
    if step is of_a_checked_normal:
        start = of_a_normal.__code__.co_firstlineno
    named = [f"(test_reasons.py:{line})" for line in range(start, end + 1)]
    assert any(place in reason for place in named), reason


def test_a_distribution_that_does_not_ask() -> None:
    layer = cello.Recurrent(lambda x, h: of_a_normal(x, h, validate_args=False), state_size=H)
    assert cello.explain(layer, torch.randn(3, 2, H)).plans[0].engine == "native"
