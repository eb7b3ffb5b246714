"""Which results require gradients and which tensors get one, also where it is zero: as in a Python loop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import cello


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (a > 0).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return gradient / (1 + a.abs())


def without_gradients(w: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        return w * h


class Case(NamedTuple):
    """A step ``(w, v, x, *states) -> output, *new states``, whose states have these widths."""

    step: Callable[..., Any]
    widths: tuple[int, ...] = (4,)
    is_random: bool = False


CASES = {
    "a counter": Case(lambda w, v, x, h, t: (torch.tanh(x * w + h), h + x, t + 1), (4, 1)),
    "a state that is detached": Case(
        lambda w, v, x, h, c: (x * w + h, x + c, h.detach() * 2), (4, 4)
    ),
    "all of the state": Case(lambda w, v, x, h: (x * w + h, (x * w + h).detach())),
    "a memory": Case(lambda w, v, x, h, m: (torch.tanh(h + m), h * w + x, m), (4, 4)),
    "states that take turns": Case(lambda w, v, x, h, c: (h * w, c + x, h), (4, 4)),
    "round": Case(lambda w, v, x, h: (torch.round(w * h), torch.tanh(x + torch.ceil(v * h)))),
    "sign": Case(lambda w, v, x, h: (torch.sign(w * h), h + x)),
    "whole quotients": Case(lambda w, v, x, h: (torch.div(w * h, v, rounding_mode="floor"), h + x)),
    "a comparison": Case(lambda w, v, x, h: ((w * h > 0).to(x.dtype) * x, h * v)),
    "a choice": Case(lambda w, v, x, h: (torch.where(w * h > 0, 1.0, v), h + x)),
    "the largest": Case(
        lambda w, v, x, h: (nn.functional.one_hot((h * w).argmax(-1), 4).to(x.dtype) * v, h + x)
    ),
    "the largest two": Case(lambda w, v, x, h: ((h * w).topk(2)[0].sum(-1, True) + x, h + v)),
    "without gradients": Case(lambda w, v, x, h: (without_gradients(w, h) + x, h * v)),
    "a custom function": Case(lambda w, v, x, h: (Spike.apply(h * w), h + x)),
    "a coin": Case(lambda w, v, x, h: (torch.bernoulli(torch.sigmoid(w + h)), h + x), (4,), True),
    "times zero": Case(lambda w, v, x, h: (0 * w + h, h)),
    "a new state of nothing": Case(lambda w, v, x, h: (h * v, torch.ones_like(h))),
}


class Found(NamedTuple):
    """What a layer gives.

    Attributes:
        require: whether each result requires a gradient.
        gradients: of a loss of one result each, and of all of them, that of each tensor that requires one.
    """

    require: list[bool]
    gradients: list[list[Tensor | None]]


def run(
    case: Case, engine: str, flags: tuple[bool, bool, bool], steps: int, **options: Any
) -> Found:
    """Run a layer of which the input, the first state and the others require gradients, or not."""
    weights = [torch.linspace(-1, 0.7, 4).double().requires_grad_() for _ in range(2)]

    def step(x: Tensor, state: Any) -> Any:
        states = state if len(case.widths) > 1 else (state,)
        output, *new = case.step(*weights, x, *states)
        return output, tuple(new) if len(new) > 1 else new[0]

    x = torch.linspace(-1, 1, steps * 12).double().view(steps, 3, 4).requires_grad_(flags[0])
    hx = [
        torch.linspace(-0.5, 1, 3 * width).double().view(1, 3, width).requires_grad_(flag)
        for width, flag in zip(case.widths, flags[1:], strict=False)
    ]
    sizes = case.widths if len(hx) > 1 else case.widths[0]
    layer = cello.Recurrent(step, state_size=sizes)
    torch.manual_seed(0)
    with cello.engine(engine):
        output, state = layer(x, tuple(hx) if len(hx) > 1 else hx[0], **options)
    results = [output, *(state if len(hx) > 1 else [state])]
    leaves = [tensor for tensor in (*weights, x, *hx) if tensor.requires_grad]
    made = []
    for chosen in [[k] for k in range(len(results))] + [list(range(len(results)))]:
        losses = [results[k].sin().sum() for k in chosen if results[k].requires_grad]
        if losses:
            loss = torch.stack(losses).sum()
            made.append(
                list(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))
            )
    return Found([result.requires_grad for result in results], made)


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_linked_as_in_a_loop(name: str):
    case = CASES[name]
    for flags, steps in product(product([False, True], repeat=3), (1, 4)):
        found, expected = (run(case, engine, flags, steps) for engine in ("native", "reference"))
        assert found.require == expected.require
        for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
            assert [g is None for g in ours] == [g is None for g in theirs]
            if not case.is_random:
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_sequences_of_several_lengths(name: str):
    """Where they end at other steps, a tensor may get zeros in the place of nothing."""
    case = CASES[name]
    for flags in product([False, True], repeat=3):
        found, expected = (
            run(case, engine, flags, 5, lengths=[2, 5, 0]) for engine in ("native", "reference")
        )
        assert [
            a or b for a, b in zip(found.require, expected.require, strict=True)
        ] == found.require
        if found.require != expected.require or case.is_random:
            continue
        for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a is not None or b is None
                if a is not None:
                    torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


class Counted(cello.Cell):
    state_sizes = {"h": 4, "steps": 1}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h, steps = state
        h = self.cell(x / (1 + steps), h)
        return h, (h, steps + 1)


@pytest.mark.parametrize("options", [{}, {"lengths": [5, 2, 3]}], ids=str)
def test_truncated_backpropagation_detaches_what_it_has_to(options: dict[str, Any]):
    layer, state = cello.Recurrent(Counted()), None
    for _ in range(3):
        output, (h, steps) = layer(torch.randn(5, 3, 4), state, **options)
        output.sum().backward()
        state = h.detach(), steps
    assert not steps.requires_grad
