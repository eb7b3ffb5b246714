"""Functions of torch that a trace sees written out: beside torch's own, in the loop and by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import assert_close, assert_left_to_the_loop, evaluate
from torch import Tensor
from torch.nn import functional as F

import cello
from cello.compile.written_out import written_out

T, B, H = 4, 3, 12
EDGES = torch.tensor([-0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
IMAGE = (-1, 2, 2, 3)

STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bucketize": lambda x, h: x * torch.bucketize(h, EDGES),
    "bucketize from the right": lambda x, h: x * torch.bucketize(h, EDGES, right=True),
    "searchsorted": lambda x, h: x * torch.searchsorted(EDGES, h, out_int32=True),
    "searchsorted on a side": lambda x, h: x * torch.searchsorted(EDGES, h, side="right"),
    "count_nonzero": lambda x, h: x * torch.count_nonzero(h.relu(), -1).unsqueeze(-1),
    "count_nonzero of a method": lambda x, h: x + (h.view(-1, 3, 4) > 0).count_nonzero((1, 2))[:, None],
    "cross": lambda x, h: torch.cross(x.view(-1, 4, 3), h.view(-1, 4, 3), dim=2).flatten(1),
    "cross of a method": lambda x, h: x.view(-1, 3, 4).cross(h.view(-1, 3, 4), dim=1).flatten(1),
    "linalg.cross": lambda x, h: torch.linalg.cross(
        x.view(-1, 4, 3), h.view(-1, 4, 3)[:, :1]
    ).flatten(1),
    "gaussian_nll_loss": lambda x, h: F.gaussian_nll_loss(
        h, x, (h * x).square(), full=True, eps=0.05, reduction="none"
    ),
    "isfinite": lambda x, h: torch.where(torch.isfinite(1 / h.round()), x, h),
    "isin": lambda x, h: torch.where(torch.isin((2 * h).round(), EDGES * 2), x, h),
    "isin, inverted": lambda x, h: x * torch.isin(h.round(), EDGES.round(), invert=True),
    "linear": lambda x, h: F.interpolate(
        (x + h).view(-1, 2, 6), size=9, mode="linear"
    ).flatten(1)[:, :H],
    "bilinear": lambda x, h: F.interpolate(
        (x + h).view(IMAGE), size=(4, 5), mode="bilinear"
    ).flatten(1)[:, :H],
    "bilinear, corners": lambda x, h: F.interpolate(
        (x + h).view(IMAGE), scale_factor=2, mode="bilinear", align_corners=True
    ).flatten(1)[:, ::4],
    "bilinear, by two factors": lambda x, h: F.interpolate(
        (x + h).view(IMAGE), scale_factor=(1.5, 2.5), mode="bilinear"
    ).flatten(1)[:, :H],
    "bilinear, smaller": lambda x, h: F.interpolate(
        (x + h).view(-1, 1, 3, 4), size=(2, 2), mode="bilinear"
    ).repeat(1, 3, 1, 1).flatten(1),
    "bicubic": lambda x, h: F.interpolate(
        (x + h).view(IMAGE), scale_factor=2.0, mode="bicubic"
    ).flatten(1)[:, ::4],
    "trilinear": lambda x, h: F.interpolate(
        (x + h).view(-1, 1, 2, 2, 3), size=(3, 4, 2), mode="trilinear"
    ).flatten(1)[:, :H],
    "of weights": lambda x, h: x + h * F.interpolate(EDGES.view(1, 1, 4), size=H, mode="linear")[0],
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step(name: str):
    layer = cello.Recurrent(lambda x, h: torch.tanh(STEPS[name](x, h)), state_size=H)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, H, generator=generator, dtype=torch.float64)
    start = torch.randn(1, B, H, generator=generator, dtype=torch.float64)
    start[0, 0, :3] = torch.tensor([0.0, 0.5, float("nan") if "bucket" in name else -0.5])
    plan = cello.explain(layer, x, start).plans[0]
    assert plan.engine == "native", plan.reasons

    def one(parts: list[Tensor]) -> Tensor:
        return parts[0]

    got = evaluate(layer, x, [start], "native", one)
    assert_close(got, evaluate(layer, x, [start], "reference", one))


X = torch.tensor([[-0.5, 0.0, 0.25], [0.5, float("nan"), float("inf")]])
CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (torch.bucketize, (X, EDGES.float()), {}),
    (torch.bucketize, (X, EDGES.float()), {"right": True, "out_int32": True}),
    (torch.bucketize, (0.3, EDGES), {}),
    (torch.searchsorted, (EDGES.float(), X), {"side": "right"}),
    (torch.searchsorted, (EDGES.float().expand(2, 4).contiguous(), X), {}),
    (torch.searchsorted, (EDGES.flip(0), EDGES), {"sorter": torch.tensor([3, 1, 2, 0])}),
    (torch.count_nonzero, (X,), {}),
    (torch.count_nonzero, (X,), {"dim": 1}),
    (torch.count_nonzero, (X, (0, 1)), {}),
    (torch.count_nonzero, (torch.tensor(2.0),), {}),
    (torch.isin, (X, torch.tensor([[0.0], [float("nan")]])), {}),
    (torch.isin, (X, 0.5), {}),
    (torch.isin, (0.5, X), {"invert": True}),
    (F.gaussian_nll_loss, (X[0], X[0] + 1, X[0].abs()), {"reduction": "none"}),
    (F.gaussian_nll_loss, (X[0], X[0] + 1, X[0].abs()), {}),
    (F.gaussian_nll_loss, (X[0], X[0] + 1, 0.5), {"reduction": "none"}),
    (torch.isfinite, (X,), {}),
    (Tensor.isfinite, (X.long(),), {}),
    (torch.linalg.cross, (X, X.flip(0)), {}),
    (torch.cross, (X[0], X[0].flip(0)), {"dim": 0}),
    (torch.allclose, (X, X), {"equal_nan": True}),
    (torch.allclose, (X, X), {}),
    (F.interpolate, (X[None, :1], 5), {}),
    (F.interpolate, (X[None, :1],), {"scale_factor": 2.0, "mode": "area"}),
    (F.interpolate, (X[:1, None, None],), {"size": (3, 2), "mode": "bicubic", "antialias": True}),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
def test_a_call(call: Any):
    function, args, kwargs = call
    own = written_out(function)
    assert own is not None
    found, expected = own(*args, **kwargs), function(*args, **kwargs)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("function", "args", "error"),
    [
        (torch.linalg.cross, (torch.ones(2), torch.ones(2)), "must have length 3"),
        (F.interpolate, (torch.ones(1, 1, 4), (2, 2)), "spatial dimensions"),
    ],
)
def test_an_error_is_torchs(function: Any, args: Any, error: str):
    with pytest.raises((RuntimeError, ValueError), match=error):
        written_out(function)(*args)  # type: ignore[misc]


def test_what_is_not_written_out():
    assert written_out(torch.tanh) is None

    def allclose(x: Tensor) -> bool:
        return False

    assert written_out(allclose) is None


def test_interpolation_is_no_product_to_autocast():
    def step(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(
            x + F.interpolate(h.view(-1, 1, H), size=H // 2, mode="linear").flatten(1).repeat(1, 2)
        )

    layer, x = cello.Recurrent(step, state_size=H), torch.randn(T, B, H)
    assert cello.explain(layer, x).plans[0].engine == "native"
    with torch.autocast("cpu", torch.bfloat16):
        assert_left_to_the_loop("upsample_linear1d", layer, x)


def test_the_dtype_of_a_type():
    layer = cello.Recurrent(
        lambda x, h: torch.tanh(x + h).type(x.dtype) * (h > 0).type(torch.float64), state_size=H
    )
    x = torch.randn(T, B, H, dtype=torch.float64)
    assert cello.explain(layer, x).plans[0].engine == "native"
    assert_close(evaluate(layer, x, (), "native"), evaluate(layer, x, (), "reference"))
    named = cello.Recurrent(lambda x, h: (x + h).type("torch.DoubleTensor"), state_size=H)
    assert_left_to_the_loop(r"calls .type\(\) of a tensor", named, x)
