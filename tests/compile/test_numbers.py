"""Truth values, integers and other dtypes in a step: what torch computes, or the Python loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import Step, compare, evaluate, random
from torch import Tensor

import cello
from cello.compile.lower.lowering import LOWERINGS

HELD = {
    "k": torch.tensor([1, 2, 3, 2, 1]),
    "far": torch.tensor([2**40, -(2**40), 3, 2, 1]),
    "byte": torch.tensor([250, 2, 3, 2, 1], dtype=torch.uint8),
    "few": torch.tensor([1, 2, -3, 2, 1], dtype=torch.int8),
    "mask": torch.tensor([True, False, True, True, False]),
    "order": torch.tensor([3, 0, 0, 4, 1]),
    "w": random(5),
    "s": torch.tensor(0.3, dtype=torch.float64),
}


def up(x: Tensor) -> Tensor:
    return x > 0


EXACT: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a remainder": lambda c, x, h: (up(h).sum(-1, True) % 2) * x + (up(h) * -7 % 3) * h,
    # truth values
    "or, as a sum": lambda c, x, h: (up(h) + up(x)) * h,
    "and, as a product": lambda c, x, h: (up(h) * up(x)) * x,
    "a sum of three": lambda c, x, h: (up(h) + up(x) + (h > 0.5)).to(h.dtype),
    "and with True": lambda c, x, h: (up(h) & True) * h,
    "or with False": lambda c, x, h: (up(h) | False) * h,
    "xor with True": lambda c, x, h: (up(h) ^ True) * h,
    "and with 1": lambda c, x, h: (up(h) & 1) * h,
    "not": lambda c, x, h: ~up(h) * h,
    "of a mask that is held": lambda c, x, h: (up(h) & c.mask) * h + ~c.mask * x,
    "where to truth values": lambda c, x, h: torch.where(h > x, up(h), up(x)).to(h.dtype),
    "max of truth values": lambda c, x, h: torch.maximum(up(h), up(x)) * h,
    "any": lambda c, x, h: up(h).any(-1, keepdim=True) * x,
    "any of numbers": lambda c, x, h: (h.floor().any(1)[:, None]) * x,
    "all": lambda c, x, h: up(h).all(-1, keepdim=True) * x,
    "to bool": lambda c, x, h: h.trunc().bool() * x,
    "picked": lambda c, x, h: up(h)[:, c.order] * x,
    "a copy into": lambda c, x, h: torch.zeros_like(h, dtype=torch.bool).copy_(h.trunc()) * x,
    "a constant": lambda c, x, h: torch.ones(len(x), 5, dtype=torch.bool) * h,
    # integers
    "a count": lambda c, x, h: up(h).sum(-1, keepdim=True) * h,
    "a count, shared": lambda c, x, h: h / up(h).sum(-1, keepdim=True).to(h.dtype).clamp_min(1),
    "a count so far": lambda c, x, h: up(h).cumsum(1) * x,
    "a count that is compared": lambda c, x, h: (up(h).sum(-1, keepdim=True) > 2) * x,
    "compared with one that is held": lambda c, x, h: (up(h).cumsum(1) > c.k) * x,
    "compared with a large one": lambda c, x, h: (up(h).cumsum(1) > c.far) * x,
    "a difference": lambda c, x, h: (up(h).long() - up(x).long()) * h,
    "a product": lambda c, x, h: (up(h) * 3 - 1) * (up(x).int() + 2) * h,
    "negative": lambda c, x, h: -up(h).int() * x,
    "squared": lambda c, x, h: (up(h).int() * 3 - 1) ** 2 * x,
    "the complement": lambda c, x, h: ~up(h).long() * x,
    "the complement of a byte": lambda c, x, h: ~up(h).to(torch.uint8) * x,
    "chosen": lambda c, x, h: torch.where(up(h), 3, -1) * x,
    "chosen from what is held": lambda c, x, h: torch.where(up(h), c.k, c.few) * x,
    "filled": lambda c, x, h: up(h).long().masked_fill(up(x), 7) * x,
    "clamped": lambda c, x, h: up(h).cumsum(1).clamp(1, 3) * x,
    "the largest": lambda c, x, h: up(h).cumsum(1).amax(-1, keepdim=True) * x,
    "bytes": lambda c, x, h: (up(h).to(torch.uint8) * 200 + 55) * x,
    "a sum of bytes": lambda c, x, h: (up(h).to(torch.uint8) * 200).sum(-1, keepdim=True) * x,
    "of a constant": lambda c, x, h: torch.full((len(x), 5), 3) * h + torch.ones(1).to(x),
    "that is held": lambda c, x, h: h * c.k + x / c.byte + c.far * 1e-12 * x,
    "together with one that is held": lambda c, x, h: (up(h) * c.few) * x,
    "added to a mask": lambda c, x, h: (up(h) + 1) * x,
    "abs and sign": lambda c, x, h: (up(h) * 3 - 2).abs() * (up(x) * 3 - 2).sign() * x,
    # truth values in torch's default dtype, in a cell of either
    "as single precision": lambda c, x, h: up(h).float() * h,
    "one minus a mask": lambda c, x, h: (1 - up(h).float()) * h + up(x).float()[:, :1] * x,
    "sums of masks": lambda c, x, h: (2.0 * up(h).float() - 1).sum(-1, keepdim=True) * x,
    "with ones": lambda c, x, h: (torch.ones(len(x), 5) - up(h).float()) * x,
    "chosen in single precision": lambda c, x, h: torch.where(up(h), 1.0, -1.0).to(x.dtype) * x,
    # floating-point numbers
    "a number that is held": lambda c, x, h: c.s * h + x,
    "a single precision constant": lambda c, x, h: torch.full((len(x), 1), 0.1) * h,
    "rounded to decimals": lambda c, x, h: torch.round(h, decimals=2) + torch.round(x, decimals=-1),
    "a sum in its own dtype": lambda c, x, h: x.sum(-1, keepdim=True, dtype=x.dtype) + h,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EXACT)
def test_as_torch_computes_it(name: str, dtype: torch.dtype):
    if dtype == torch.float32 and name == "a number that is held":
        pytest.skip("the cell is converted, and a number with it")
    function = EXACT[name]
    held = {k: v.to(dtype) if v.is_floating_point() else v for k, v in HELD.items()}
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [5], **held)
    x, h = random(1, 7, 5, dtype=dtype), random(1, 7, 5, seed=1, dtype=dtype)
    compare(cell, x, (h,), 1e-12 if dtype == torch.float64 else 1e-6)


def test_integers_and_truth_values_that_are_returned():
    x, h = random(3, 2, 5), random(1, 2, 5, seed=1)
    for made in (lambda x, h: up(h).cumsum(1), lambda x, h: up(h)):
        layer = cello.Recurrent(Step(lambda c, x, h, made=made: (made(x, h), h + x), [5]))
        results = []
        for engine in ("native", "reference"):
            with cello.engine(engine):
                results.append(layer(x, (h,))[0])
        assert results[0].dtype == results[1].dtype == made(x, h).dtype
        assert torch.equal(*results)


REFUSED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str]] = {
    "from numbers": (lambda c, x, h: h.to(torch.uint8) * x, "converts to torch.uint8"),
    "a sum of numbers as integers": (
        lambda c, x, h: h.sum(-1, keepdim=True, dtype=torch.int64) * x,
        "computes int64 in sum",
    ),
    "bytes that wrap": (
        lambda c, x, h: (up(h).to(torch.uint8) * 200 + 100) * x,
        "computes uint8 in add",
    ),
    "a byte below zero": (lambda c, x, h: -up(h).to(torch.uint8) * x, "computes uint8 in neg"),
    "int8 that wraps": (
        lambda c, x, h: (up(h).to(torch.int8) * c.few * 2) * x,
        "computes int8 in mul",
    ),
    "a wider one made narrow": (
        lambda c, x, h: (up(h) * 300).to(torch.uint8) * x,
        "uint8 in _to_copy",
    ),
    "a large one": (lambda c, x, h: (up(h) + c.far) * x, "computes int64 in add"),
    "large ones compared": (
        lambda c, x, h: (torch.where(up(h), c.far, 1) > c.far) * x,
        "computes bool in gt",
    ),
    "a large one that is returned": (
        lambda c, x, h: torch.where(up(h), c.far, 1),
        "returns integers of torch.int64",
    ),
    "whole division": (lambda c, x, h: (up(h).sum(-1, True) // -2) * x, "int64 in floor_divide"),
    "a remainder": (lambda c, x, h: (up(h).sum(-1, True) % -2) * x, "int64 in remainder"),
    "bits": (lambda c, x, h: (up(h).sum(-1, True) & 1) * x, "computes int64 in bitwise_and"),
    "a shift": (lambda c, x, h: (up(h).long() << 2) * x, "__lshift__"),
    "double precision": (
        lambda c, x, h: x.sum(-1, keepdim=True, dtype=torch.float64).float() + h,
        "mixes torch.float64 with torch.float32",
    ),
    "doubled": (lambda c, x, h: (h.double() * x).float(), "mixes torch.float64"),
    "halved": (lambda c, x, h: h.bfloat16().float() * x, "mixes torch.bfloat16"),
    "a double that is held": (lambda c, x, h: (h > c.double) * x, "mixes torch.float64"),
    "a double constant": (
        lambda c, x, h: (h > torch.full((5,), 0.1, dtype=torch.float64)) * x,
        "mixes torch.float64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_loop_would_compute_otherwise_runs_in_python(name: str):
    function, reason = REFUSED[name]
    held: dict[str, Any] = {k: v.float() if v.is_floating_point() else v for k, v in HELD.items()}
    cell = Step(lambda c, x, h: (function(c, x, h), h + x), [5], **held)
    cell.double = HELD["w"].clone()  # not a parameter, so that it stays as it is
    layer, x = cello.Recurrent(cell), random(2, 3, 5, dtype=torch.float32)
    plan = cello.explain(layer, x).plans[0]
    assert plan.engine == "reference"
    assert reason in plan.reasons["native"][0]
    assert ("of double" if "held" in name else "test_numbers.py:") in plan.reasons["native"][0]
    output, _ = layer(x)
    assert torch.equal(output[0], function(cell, x[0], torch.zeros(3, 5)))
    assert torch.equal(output[1], function(cell, x[1], x[0]))


def test_default_dtype_that_is_not_the_cells():
    """torch divides integers in its default dtype, which is coarser than this cell's."""
    cell = Step(lambda c, x, h: [up(h) / 3 * x + h] * 2, [5])
    third = Step(lambda c, x, h: [(up(h).float() * 0.3) * x + h] * 2, [5])
    whole = Step(
        lambda c, x, h: [torch.sub(up(h).float(), up(x).float(), alpha=0.3) * x + h] * 2, [5]
    )
    for other in (third, whole):
        plan = cello.explain(cello.Recurrent(other), random(2, 3, 5)).plans[0]
        assert "mixes torch.float32 with torch.float64" in plan.reasons["native"][0]
    plan = cello.explain(cello.Recurrent(cell), random(2, 3, 5)).plans[0]
    assert "mixes torch.float32 with torch.float64" in plan.reasons["native"][0]
    compare(
        cell, random(2, 3, 5, dtype=torch.float32), (random(1, 3, 5, dtype=torch.float32),), 1e-6
    )


def test_narrower_numbers_that_are_held():
    held = {"w": random(5, dtype=torch.float32), "v": random(5, 5, seed=1, dtype=torch.float32)}
    cell = Step(lambda c, x, h: [h * c.w + x @ c.v.to(x.dtype) * c.w] * 2, [5], **held)
    compare(cell, random(3, 2, 5), (random(1, 2, 5, seed=1),), 1e-6)
    half = Step(lambda c, x, h: [h * c.w + x] * 2, [5], w=random(5, dtype=torch.bfloat16))
    x, h = random(1, 2, 5, dtype=torch.float32), random(1, 2, 5, seed=1, dtype=torch.float32)
    compare(half, x, (h,), 1e-2)


def test_an_operation_with_many_arguments():
    cell = Step(
        lambda c, x, h: [torch.nn.functional.embedding_bag(c.k[None], c.T)[:, :5] + h] * 2,
        [5],
        k=HELD["k"],
        T=random(9, 5),
    )
    compare(cell, random(2, 3, 5), (random(1, 3, 5),))


ARGUMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, h: h.sum(-1, keepdim=True, dtype=h.dtype) * x,
    "sum of a mask": lambda x, h: up(x).sum(-1, keepdim=True, dtype=h.dtype) * h,
    "mean": lambda x, h: h.mean(-1, keepdim=True, dtype=h.dtype) * x,
    "mean of a mask": lambda x, h: up(x).to(h.dtype).mean(-1, keepdim=True) * h,
    "softmax": lambda x, h: torch.softmax(h, -1, dtype=h.dtype) * x,
    "log_softmax": lambda x, h: F.log_softmax(h, -1, dtype=h.dtype) * x,
    "cumsum": lambda x, h: h.cumsum(-1, dtype=h.dtype) * x,
    "vector_norm": lambda x, h: (
        torch.linalg.vector_norm(h, dim=-1, keepdim=True, dtype=h.dtype) * x
    ),
    "to": lambda x, h: h.to(x.dtype, copy=True, non_blocking=True) * x,
    "memory_format": lambda x, h: h.clone(memory_format=torch.contiguous_format) * x,
    "layout": lambda x, h: torch.ones(5, dtype=h.dtype, layout=torch.strided) * h + x,
    "alpha": lambda x, h: torch.add(h, x, alpha=0.5) + torch.sub(h, x, alpha=2),
    "beta": lambda x, h: torch.baddbmm(h[:, :, None], h[:, :, None], x[:, :1, None], beta=2)[
        :, :, 0
    ],
    "value": lambda x, h: torch.addcmul(h, x, h, value=-0.5),
    "rounding_mode": lambda x, h: torch.div(h, x.detach(), rounding_mode="trunc") + h + x,
    "approximate": lambda x, h: F.gelu(h, approximate="tanh") + x,
    "decimals": lambda x, h: torch.round(h, decimals=1) + h * x,
    "correction": lambda x, h: h.var(-1, correction=2, keepdim=True) * x,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_by_name(name: str, dtype: torch.dtype):
    cell = Step(lambda c, x, h: [ARGUMENTS[name](x, h)] * 2, [5])
    x, h = random(2, 3, 5, dtype=dtype), random(1, 3, 5, seed=1, dtype=dtype)
    compare(cell, x, (h,), 1e-12 if dtype == torch.float64 else 2e-6)


def test_results_that_are_written_to_a_place():
    """Without gradients, which torch has none of there."""

    def function(c: Any, x: Tensor, h: Tensor) -> list[Tensor]:
        return [torch.tanh(torch.add(h, x, out=torch.empty_like(h)), out=h.new_empty(h.shape))] * 2

    layer, x = cello.Recurrent(Step(function, [5])), random(3, 2, 5)
    with torch.no_grad():
        results = []
        for engine in ("native", "reference"):
            with cello.engine(engine):
                results.append(layer(x)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


WIDER: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(-1, keepdim=True, dtype=torch.float64),
    "mean": lambda x: x.mean(-1, keepdim=True, dtype=torch.float64),
    "softmax": lambda x: x.softmax(-1, dtype=torch.float64),
    "log_softmax": lambda x: x.log_softmax(-1, dtype=torch.float64),
    "cumsum": lambda x: x.cumsum(-1, dtype=torch.float64),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64),
    "to": lambda x: x.to(torch.float64),
    "double": lambda x: x.double().tanh(),
    "type": lambda x: x.type(torch.float64),
    "result of a constant": lambda x: x[:, :1] * torch.full((5,), 0.1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", WIDER)
def test_double_precision_that_is_asked_for_is_given(name: str):
    """By the Python loop: the native engine would compute it in single precision."""
    cell = Step(lambda c, x, h: [h + WIDER[name](x).float()] * 2, [5])
    x, h = random(2, 3, 5, dtype=torch.float32), random(1, 3, 5, dtype=torch.float32)
    layer = cello.Recurrent(cell)
    reasons = cello.explain(layer, x).plans[0].reasons["native"]
    assert "mixes torch.float64 with torch.float32 (test_numbers.py:" in reasons[0]
    assert torch.equal(evaluate(layer, x, (h,), None)["output"], cell_by_hand(cell, x, h))


def cell_by_hand(cell: cello.Cell, x: Tensor, h: Tensor) -> Tensor:
    state, outputs = (h[0],), []
    for row in x:
        output, state = cell(row, state)
        outputs.append(output)
    return torch.stack(outputs)


def ours(x: Any) -> Any:
    raise TypeError("an argument of ours")


def test_an_error_of_the_compiler_is_told_and_the_cell_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LOWERINGS, "tanh", ours)
    cell, x = Step(lambda c, x, h: [torch.tanh(x + h)] * 2, [7]), random(2, 3, 7)
    layer = cello.Recurrent(cell)
    with pytest.warns(RuntimeWarning, match=r"a fault of Cello's: TypeError: an argument of ours"):
        output, _ = layer(x)
    assert torch.equal(output, cell_by_hand(cell, x, torch.zeros(1, 3, 7)))


UNKNOWN: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "by position": ("softplus", lambda x: F.softplus(x, beta=2), "beta=2"),
    "by name": ("gelu", lambda x: F.gelu(x, approximate="tanh"), "approximate=tanh"),
    "a tensor": ("clamp", lambda x: torch.clamp(x, max=x.sin()), "max=a tensor"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_argument_that_is_not_known_is_named(kind: str, monkeypatch: pytest.MonkeyPatch):
    name, function, argument = UNKNOWN[kind]
    monkeypatch.setitem(LOWERINGS, name, ours)
    cell = Step(lambda c, x, h: [function(x + h)] * 2, [9])
    (reason,) = cello.explain(cello.Recurrent(cell), random(2, 3, 9)).plans[0].reasons["native"]
    said = (
        rf"uses {name} \(test_numbers.py:\d+\) with {argument}, which is not in the instruction set"
    )
    assert re.search(said, reason)


def test_an_argument_that_changes_nothing_need_not_be_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LOWERINGS, "gelu", lambda x: x)
    cell = Step(lambda c, x, h: [F.gelu(x + h, approximate="none")] * 2, [9])
    x, h = random(1, 3, 9), random(1, 3, 9, seed=1)
    assert torch.equal(evaluate(cello.Recurrent(cell), x, (h,), "native")["output"], x + h)


def test_a_form_of_an_operation_with_fewer_arguments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LOWERINGS, "tanh", lambda x, more: x)
    cell = Step(lambda c, x, h: [torch.tanh(x + h)] * 2, [9])
    (reason,) = cello.explain(cello.Recurrent(cell), random(2, 3, 9)).plans[0].reasons["native"]
    assert "uses tanh (test_numbers.py:" in reason
    assert "missing a required argument: 'more'" in reason
