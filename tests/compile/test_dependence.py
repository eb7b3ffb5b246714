"""How the numbers of a new state depend on the old ones: cells whose form is known from their equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from steps import Step, program_of
from torch import Tensor
from torch.nn import functional as fn

import cello
from cello.compile.dependence import Form, verdicts

H = 4
States = tuple[Tensor, ...]


class Case(NamedTuple):
    """A step on x (B, 3 H) and parts of a state (B, H), and the form and parts of each new one."""

    step: Callable[..., States]
    expected: list[tuple[Form, tuple[int, ...]]]


def minimal_gru(x: Tensor, h: Tensor) -> States:
    z = torch.sigmoid(x[:, :H])
    return ((1 - z) * h + z * x[:, H : 2 * H],)


def simple_recurrent_unit(x: Tensor, h: Tensor, c: Tensor) -> States:
    a, f, o = x.chunk(3, 1)
    f = torch.sigmoid(f)
    c = f * c + (1 - f) * a
    return torch.sigmoid(o) * torch.tanh(c), c


def momentum(x: Tensor, h: Tensor, v: Tensor) -> States:
    v = 0.9 * v + 0.1 * (x[:, :H] - h)
    return h + v, v


def spiking(x: Tensor, v: Tensor) -> States:
    v = 0.9 * v + x[:, :H]
    return (v - (v > 1).to(v.dtype),)


def rotation(x: Tensor, a: Tensor, b: Tensor) -> States:
    return a * x[:, :H] - b * x[:, H : 2 * H], a * x[:, H : 2 * H] + b * x[:, :H]


CASES = {
    "minimal GRU": Case(minimal_gru, [(Form.AFFINE, (0,))]),
    "average": Case(lambda x, h: (0.999 * h + x[:, :H],), [(Form.AFFINE, (0,))]),
    "divided": Case(lambda x, h: (h / (1 + x[:, :H] ** 2),), [(Form.AFFINE, (0,))]),
    "divides": Case(lambda x, h: (x[:, :H] / (1 + h**2),), [(Form.ELEMENTWISE, (0,))]),
    "square": Case(lambda x, h: (h * h,), [(Form.ELEMENTWISE, (0,))]),
    "chosen by x": Case(lambda x, h: (torch.where(x[:, :H] > 0, h, -h),), [(Form.AFFINE, (0,))]),
    "chosen by h": Case(
        lambda x, h: (torch.where(h > 0, h, x[:, :H]),), [(Form.ELEMENTWISE, (0,))]
    ),
    "simple recurrent unit": Case(
        simple_recurrent_unit, [(Form.ELEMENTWISE, (1,)), (Form.AFFINE, (1,))]
    ),
    "momentum": Case(momentum, [(Form.AFFINE, (0, 1))] * 2),
    "rotation": Case(rotation, [(Form.AFFINE, (0, 1))] * 2),
    "spiking": Case(spiking, [(Form.ELEMENTWISE, (0,))]),
    "free": Case(lambda x, h: (x[:, :H].tanh(),), [(Form.FREE, ())]),
    "shift register": Case(
        lambda x, h: (torch.cat([x[:, :1], h[:, :-1]], 1),), [(Form.MIXED, (0,))]
    ),
    "flipped": Case(lambda x, h: (h.flip(1),), [(Form.MIXED, (0,))]),
    "normed": Case(lambda x, h: (fn.layer_norm(h, (H,)),), [(Form.MIXED, (0,))]),
    "pairs": Case(
        lambda x, h: (h + h.view(-1, 2, 2).sum(-1, keepdim=True).expand(-1, 2, 2).reshape(-1, H),),
        [(Form.MIXED, (0,))],
    ),
    "product": Case(lambda x, h: (h @ torch.eye(H, dtype=h.dtype),), [(Form.MIXED, (0,))]),
}


@pytest.mark.parametrize("name", CASES)
def test_cells(name: str):
    case = CASES[name]

    def step(_: Any, x: Tensor, *state: Tensor) -> States:
        new = case.step(x, *state)
        return (new[0], *new)

    cell = Step(step, [H] * len(case.expected))
    program = program_of(cell, torch.zeros(1, 1, 3 * H))
    assert [(v.form, v.parts) for v in verdicts(program.loop)] == case.expected


def test_the_line_where_units_meet():
    layer = cello.nn.GRU(3, H)
    (cell,) = layer._cells()[0]
    (verdict,) = verdicts(program_of(cell, torch.zeros(1, 1, 3)).loop)
    assert verdict.form is Form.MIXED
    assert "gru.py" in verdict.line
    assert f"h' mixes the units of h{verdict.line}" in str(
        cello.explain(layer, torch.zeros(2, 1, 3))
    )


def test_what_is_affine_is_so():
    """By numbers: the step's Jacobian is diagonal, and the same at every state."""
    torch.manual_seed(0)
    x = torch.randn(1, 3 * H, dtype=torch.float64)
    for name, case in CASES.items():
        if case.expected != [(Form.AFFINE, (0,))]:
            continue
        found = [
            torch.autograd.functional.jacobian(
                lambda h, step=case.step: step(x, h)[0][0], torch.randn(1, H, dtype=torch.float64)
            )[:, 0]
            for _ in range(2)
        ]
        torch.testing.assert_close(*found, msg=name)
        torch.testing.assert_close(found[0], torch.diag(found[0].diag()), msg=name)
