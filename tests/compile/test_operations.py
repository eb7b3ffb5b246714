"""Every operation that a cell may use, alone in a cell of one line: as torch computes it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import convolution_cells
import pytest
import torch
import torch.nn.functional as F
from cases import exact_derivatives
from steps import Step, assert_close, compare, evaluate, program_of, random
from torch import Tensor, nn

import cello
from cello.compile import Wanted
from cello.compile.instructions import OPERANDS, REDUCTIONS, Pointwise, Reduce
from cello.compile.lower import KNOWN, operation

INF, NAN = math.inf, math.nan
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, 20.0, -20.0, 1e3, -1e3]
SPECIAL += [1.5, -1.5, 2.5, INF, -INF, NAN]


class Unary(NamedTuple):
    """A function of one tensor.

    Attributes:
        function: it.
        domain: from numbers of a normal distribution to numbers where it is smooth.
        special: the numbers at which it is compared as well, of `SPECIAL`; ``None`` for all.
    """

    function: Callable[[Tensor], Tensor]
    domain: Callable[[Tensor], Tensor] = lambda x: x
    special: list[float] | None = None


def positive(x: Tensor) -> Tensor:
    return x.abs() + 0.1


def inside(x: Tensor) -> Tensor:
    return x.tanh() * 0.9


NUMBERS = [x for x in SPECIAL if x == x]
"""Without NaN, where a gradient has no meaning, and torch no rule."""
NORMAL = [0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 20.0, -20.0, NAN]

UNARY = {
    "neg": Unary(torch.neg),
    "abs": Unary(torch.abs),
    "sqrt": Unary(torch.sqrt, positive),
    "rsqrt": Unary(torch.rsqrt, positive),
    "reciprocal": Unary(torch.reciprocal, positive),
    "exp": Unary(torch.exp),
    "expm1": Unary(torch.expm1),
    "log": Unary(torch.log, positive),
    "log1p": Unary(torch.log1p, positive),
    "tanh": Unary(torch.tanh),
    "sigmoid": Unary(torch.sigmoid),
    "erf": Unary(torch.erf),
    "sin": Unary(torch.sin),
    "cos": Unary(torch.cos),
    "sign": Unary(torch.sign),
    "sgn": Unary(torch.sgn),
    "floor": Unary(torch.floor),
    "ceil": Unary(torch.ceil),
    "round": Unary(torch.round),
    "trunc": Unary(torch.trunc),
    "relu": Unary(torch.relu),
    "atan": Unary(torch.atan),
    "frac": Unary(torch.frac),
    "acosh": Unary(torch.acosh, lambda x: x.abs() + 1.1),
    "erfc": Unary(torch.erfc),
    "ndtr": Unary(torch.special.ndtr),
    "angle": Unary(torch.angle),
    "conj_physical": Unary(torch.conj_physical),
    "positive": Unary(torch.positive),
    "deg2rad": Unary(torch.deg2rad),
    "rad2deg": Unary(torch.rad2deg),
    "sinc": Unary(torch.sinc),
    "nan_to_num": Unary(torch.nan_to_num),
    "nan_to_num of numbers": Unary(lambda x: torch.nan_to_num(x, 0.5, 2.0, -3.0)),
    "isnan of all": Unary(lambda x: torch.isnan(x) * torch.nan_to_num(x)),
    "isinf": Unary(lambda x: torch.isinf(x).to(x.dtype)),
    "isfinite": Unary(lambda x: torch.isfinite(x).to(x.dtype)),
    "isposinf": Unary(lambda x: torch.isposinf(x).to(x.dtype)),
    "isneginf": Unary(lambda x: torch.isneginf(x).to(x.dtype)),
    "isreal": Unary(lambda x: torch.isreal(x).to(x.dtype)),
    "any": Unary(lambda x: (x > 1).any(-1, keepdim=True) * x, special=NORMAL),
    "all": Unary(lambda x: (x > -9).all(-1, keepdim=True) * x, special=NORMAL),
    "round to decimals": Unary(lambda x: torch.round(x, decimals=1)),
    "floor_divide": Unary(lambda x: x.detach() // 0.7 + x, special=NORMAL),
    "xlogy of a number": Unary(lambda x: torch.xlogy(2.0, x), positive),
    "std_mean": Unary(
        lambda x: torch.std_mean(x, -1, keepdim=True)[0] * x + torch.std_mean(x, -1)[1][:, None],
        special=NORMAL[:-1],
    ),
    "exp2": Unary(torch.exp2),
    "log2": Unary(torch.log2, positive),
    "log10": Unary(torch.log10, positive),
    "tan": Unary(torch.tan),
    "sinh": Unary(torch.sinh),
    "cosh": Unary(torch.cosh),
    "asin": Unary(torch.asin, inside),
    "acos": Unary(torch.acos, inside),
    "asinh": Unary(torch.asinh),
    "atanh": Unary(torch.atanh, inside),
    "square": Unary(torch.square),
    "hardtanh": Unary(F.hardtanh, special=NUMBERS),
    "relu6": Unary(F.relu6, special=NUMBERS),
    "hardsigmoid": Unary(
        lambda x: F.hardsigmoid(x), special=[0.0, 1.0, -1.0, 6.0, 20.0, -20.0, INF, -INF]
    ),
    "hardswish": Unary(lambda x: F.hardswish(x), special=[0.0, 1.0, -1.0, 6.0, 20.0, -20.0, INF]),
    "leaky_relu": Unary(lambda x: F.leaky_relu(x, 0.2)),
    "threshold": Unary(lambda x: F.threshold(x, 0.5, -3.0)),
    "elu": Unary(lambda x: F.elu(x, 0.7), special=NUMBERS),
    "celu": Unary(lambda x: F.celu(x, 0.5), special=NUMBERS),
    "selu": Unary(F.selu, special=NUMBERS),
    "silu": Unary(F.silu),
    "gelu": Unary(F.gelu),
    "gelu tanh": Unary(lambda x: F.gelu(x, approximate="tanh")),
    "softplus": Unary(lambda x: F.softplus(x, 2.0, 5.0)),
    "mish": Unary(F.mish),
    "log_sigmoid": Unary(F.logsigmoid),
    "norm of 3": Unary(lambda x: x * x.norm(3, dim=-1, keepdim=True), special=[0.0, 0.0, 1.0]),
    "norm of 1.5": Unary(lambda x: x + x.norm(1.5, dim=-1, keepdim=True)),
    "norm of 0": Unary(lambda x: x * x.norm(0, dim=-1, keepdim=True), special=[0.0, 2.0]),
    "nansum": Unary(lambda x: x.tanh() + x.nansum(-1, keepdim=True), special=[1.0, NAN]),
    "nanmean": Unary(lambda x: torch.tanh(x) + x.nanmean(-1, keepdim=True), special=[1.0, NAN]),
    "pairwise_distance": Unary(lambda x: x + F.pairwise_distance(x, x.flip(-1))[..., None]),
    "mse_loss": Unary(lambda x: F.mse_loss(x, x.flip(-1) * 2, reduction="none")),
    "smooth_l1_loss": Unary(
        lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none", beta=0.5),
        special=NUMBERS,
    ),
    "smooth_l1_loss without": Unary(
        lambda x: F.smooth_l1_loss(x, x * x, reduction="none", beta=0.0)
    ),
    "huber_loss": Unary(
        lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=2.0), special=NUMBERS
    ),
    "logit at its ends": Unary(torch.logit, torch.sigmoid, special=[0.0, 1.0, 0.25]),
    "logit": Unary(lambda x: torch.logit(x, 1e-3), torch.sigmoid, special=NUMBERS),
    "softshrink": Unary(F.softshrink),
    "hardshrink": Unary(F.hardshrink),
    "softsign": Unary(F.softsign),
    "tanhshrink": Unary(F.tanhshrink),
    "nan_to_num by where": Unary(lambda x: torch.where(x != x, 0.0, x)),
    "isnan": Unary(lambda x: (x != x).to(x.dtype)),
    "bitwise_not": Unary(lambda x: (~(x > 0)).to(x.dtype)),
    "logical_not": Unary(lambda x: torch.logical_not(x > 0).double()),
    "clamp": Unary(lambda x: x.clamp(-1, 2)),
    "clamp_min": Unary(lambda x: x.clamp_min(0.5)),
    "clamp_max": Unary(lambda x: x.clamp_max(0.5)),
    "clamp below": Unary(lambda x: torch.clamp(x, min=-1.0)),
    "masked_fill": Unary(lambda x: x.masked_fill(x > 1, 0.25)),
    "index_put": Unary(lambda x: x.clone().index_put((x > 1,), torch.tensor(0.25).double())),
    "detach": Unary(lambda x: x * x.detach()),
    "clone": Unary(lambda x: x.clone() * 2),
    "copy": Unary(lambda x: torch.zeros_like(x).copy_(x)),
    "fill": Unary(
        lambda x: x * torch.full_like(x, 3.0) + torch.ones_like(x) + x.new_full((5,), 2.0)
    ),
    "zeros": Unary(lambda x: x + torch.zeros(x.shape).to(x) + x.new_zeros(x.shape) + x.new_ones(1)),
    "rsub": Unary(lambda x: 1.0 - x),
    "add alpha": Unary(lambda x: torch.add(x, x.sin(), alpha=3)),
    "sub alpha": Unary(lambda x: torch.sub(x, x.sin(), alpha=3), special=NORMAL),
    "remainder": Unary(lambda x: torch.remainder(x, 0.7)),
    "fmod": Unary(lambda x: torch.fmod(x, 0.7)),
    "div floor": Unary(lambda x: torch.div(x, 0.7, rounding_mode="floor") + x, special=NORMAL),
    "div trunc": Unary(lambda x: torch.div(x, 0.7, rounding_mode="trunc") + x),
    "reflected div": Unary(lambda x: 2.0 / x, positive),
    "softmax": Unary(lambda x: torch.softmax(x, -1), special=[0.0, 1.0, 20.0, 1e3, -1e3, -INF]),
    "safe softmax": Unary(lambda x: torch._safe_softmax(x, -1), special=[0.0, 1.0, 1e3, -INF]),
    "safe softmax of nothing": Unary(lambda x: torch._safe_softmax(x, -1), special=[-INF, -INF]),
    "softmax of inf": Unary(lambda x: torch.softmax(x, -1), special=[0.0, INF]),
    "log_softmax": Unary(lambda x: F.log_softmax(x, -1), special=[0.0, 1.0, 20.0, 1e3, -1e3]),
    "logsumexp": Unary(
        lambda x: x - torch.logsumexp(x, -1, keepdim=True), special=[0.0, 1.0, 1e3, -1e3]
    ),
    "cumsum": Unary(lambda x: torch.cumsum(x, -1), special=NORMAL),
    "logcumsumexp": Unary(lambda x: torch.logcumsumexp(x, -1), special=NORMAL),
    "aminmax": Unary(
        lambda x: x - x.aminmax(dim=-1, keepdim=True).min + x.aminmax(dim=-1)[1][:, None],
        special=NORMAL,
    ),
    "cdist": Unary(lambda x: x - torch.cdist(x[:, :, None], x[:, :, None]).sum(-1), special=NORMAL),
    "sum": Unary(lambda x: x * x.sum(-1, keepdim=True), special=NORMAL),
    "mean": Unary(lambda x: x - x.mean(1, keepdim=True), special=NORMAL),
    "amax": Unary(lambda x: x - x.amax(-1, keepdim=True), special=[1.0, 1.0, 0.5, -INF, 1.0]),
    "amin": Unary(lambda x: x - x.amin(-1, keepdim=True), special=[1.0, 2.0, 1.0, INF, 3.0]),
    "amax of NaN": Unary(lambda x: x * x.amax(-1, keepdim=True), special=[1.0, NAN, 2.0]),
    "max": Unary(lambda x: x * x.max(-1, keepdim=True)[0], special=[1.0, 3.0, 3.0, 0.5, 3.0]),
    "min": Unary(lambda x: x * x.min(1)[0][:, None], special=[1.0, -3.0, 3.0, -3.0, 0.5]),
    "max of NaN": Unary(lambda x: x * x.max(-1)[0][:, None], special=[NAN, 3.0, NAN, 0.5]),
    "var": Unary(lambda x: x * x.var(-1, keepdim=True), special=NORMAL[:-1]),
    "var biased": Unary(lambda x: x * x.var(1, correction=0, keepdim=True), special=NORMAL[:-1]),
    "std": Unary(lambda x: x * x.std(-1, keepdim=True), special=NORMAL[:-1]),
    "var_mean": Unary(
        lambda x: torch.var_mean(x, -1, keepdim=True)[0] * x + torch.var_mean(x, -1)[1][:, None],
        special=NORMAL[:-1],
    ),
    "norm": Unary(lambda x: x * x.norm(dim=-1, keepdim=True), special=[0.0, 0.0]),
    "norm 1": Unary(lambda x: x * x.norm(1, dim=-1, keepdim=True), special=[0.0, 1.0, -1.0]),
    "norm inf": Unary(
        lambda x: x * torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True),
        special=[0.0, 2.0, -2.0, 1.0],
    ),
    "normalize": Unary(lambda x: F.normalize(x, dim=-1), special=[0.0, 0.0]),
    "layer_norm": Unary(lambda x: F.layer_norm(x, x.shape[-1:]), special=NORMAL[:-1]),
    "layer_norm of equals": Unary(lambda x: F.layer_norm(x, x.shape[-1:]), special=[1.0, 1.0]),
    "rms_norm": Unary(lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6), special=NORMAL[:-1]),
    "rms_norm at zero": Unary(lambda x: F.rms_norm(x, x.shape[-1:]), special=[0.0, 0.0]),
    "group_norm": Unary(
        lambda x: F.group_norm(torch.cat([x, x.sin()], 1), 2)[:, ::2][:, : x.shape[1]],
        special=NORMAL[:-1],
    ),
    "cosine_similarity": Unary(
        lambda x: x * F.cosine_similarity(x, x.cos(), dim=-1)[:, None], special=NORMAL[1:-1]
    ),
    "glu": Unary(lambda x: F.glu(torch.cat([x, x.cos()], 1), -1)),
    "roll": Unary(lambda x: x + torch.roll(x, (2, -1), (1, 1))),
    "slice_scatter": Unary(lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 3, 5)),
    "select_scatter": Unary(lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, 1)),
    "diagonal_scatter": Unary(
        lambda x: torch.diagonal_scatter(torch.stack([x, x.cos()], 1), x[:, 1:3] * 2, 1, 1, 2).prod(
            1
        )
    ),
    "unbind": Unary(lambda x: torch.stack(x.unbind(1)[::-1], 1) * 2),
    "split": Unary(lambda x: torch.cat(x.split(2, 1)[::-1], 1) * 2),
    "unsafe_split_with_sizes": Unary(
        lambda x: torch.cat(torch.unsafe_split_with_sizes(x, [1, x.shape[1] - 1], 1)[::-1], 1) * 2
    ),
    "split_with_sizes": Unary(lambda x: torch.cat(x.split([1, x.shape[1] - 1], 1)[::-1], 1) * 2),
    "ones": Unary(lambda x: x + torch.ones(len(x), 1).to(x)),
    "empty with strides": Unary(
        lambda x: (
            x * torch.empty_strided((1,), (1,)).to(x).fill_(2.0)
            + x.new_empty_strided((1,), (1,)).fill_(3.0)
        )
    ),
    "empty and fill": Unary(lambda x: x + torch.empty_like(x).fill_(2.0) + x.new_empty(1).zero_()),
    "flip": Unary(lambda x: x + 2 * x.flip(-1)),
    "repeat": Unary(lambda x: x * x.repeat(1, 2).view(len(x), 2, -1).sum(1)),
    "pad": Unary(lambda x: F.pad(x, (2, 1), value=0.5)[:, 1:-2]),
}


def power(exponent: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.pow(x, exponent)


for exponent in (0, 0.5, -0.5, -1, 1, 2, 3, 4, 5, -2, 1.7, -1.3):
    UNARY[f"pow {exponent}"] = Unary(power(exponent), positive, [0.0, 0.5, 1.0, 20.0, INF, NAN])
    if exponent == int(exponent):
        UNARY[f"pow {exponent} of all"] = Unary(power(exponent))
UNARY["2 to the power"] = Unary(lambda x: torch.pow(2.0, x))
UNARY["0 to the power"] = Unary(lambda x: torch.pow(0.0, x), positive, [0.0, 1.0, 2.0, -1.0])


def cell_of(function: Callable[[Tensor], Tensor], width: int) -> cello.Cell:
    """Gives the function of the state, and keeps that of the input, so that it meets both."""
    return Step(lambda cell, x, h: (function(h), function(x)), [width])


@pytest.mark.parametrize("name", UNARY)
def test_a_function_and_its_gradient(name: str):
    unary = UNARY[name]
    x, h = unary.domain(random(2, 3, 5)), unary.domain(random(1, 3, 5, seed=1))
    with exact_derivatives() if name.startswith("hard") else warnings.catch_warnings():
        expected = evaluate(cello.Recurrent(cell_of(unary.function, 5)), x[:1], (h,), "reference")
    # A step at a time: what a function makes of its own result may be far from where it is smooth.
    got = evaluate(cello.Recurrent(cell_of(unary.function, 5)), x[:1], (h,), "native")
    assert_close(got, expected)


@pytest.mark.parametrize("name", UNARY)
def test_special_points(name: str):
    """Zeros, kinks, ties, infinities and NaN: the same kind of number, and of gradient."""
    unary = UNARY[name]
    points = torch.tensor(SPECIAL if unary.special is None else unary.special).double()
    if unary.special in (None, NUMBERS):  # each in its own row, so that none hides another
        points = points[:, None].expand(-1, 5)
    x = points.expand(1, *points.shape) if points.dim() == 2 else points.expand(1, 1, -1)
    layer = cello.Recurrent(cell_of(unary.function, x.shape[-1]))
    with exact_derivatives() if name.startswith("hard") else warnings.catch_warnings():
        expected = evaluate(layer, x, (x,), "reference")
    assert_close(
        evaluate(cello.Recurrent(cell_of(unary.function, x.shape[-1])), x, (x,), "native"), expected
    )


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sort": lambda a, b: a.sort(-1).values * b.sort(-1, descending=True).values,
    "topk": lambda a, b: a.scatter(1, b.topk(1).indices, a.gather(1, b.topk(1).indices).exp()),
    "kthvalue": lambda a, b: a - b.kthvalue(b.shape[-1], keepdim=True).values,
    "medians": lambda a, b: a.median(-1, True).values - b.nanmedian(-1, True).values + a,
    "running extrema": lambda a, b: a.cummax(-1).values - b.cummin(-1).values,
    "cumprod": lambda a, b: torch.cumprod(a, -1) + b.prod(-1, keepdim=True),
    "argmax": lambda a, b: b + (a - b).argmax(-1, keepdim=True).to(a.dtype),
    "argmin and gather": lambda a, b: a * b.gather(1, (a + b).argmin(-1, keepdim=True)),
    "scatter": lambda a, b: a.scatter(1, (a + b).argmax(-1, keepdim=True), 0.5),
    "scatter_add": lambda a, b: a.scatter_add(1, (a + b).argmax(-1, keepdim=True), b[:, :1]),
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": lambda a, b: torch.pow(a.abs(), b),
    "pow of all": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "lt": lambda a, b: (a < b).to(a.dtype),
    "le": lambda a, b: (a <= b).to(a.dtype),
    "gt": lambda a, b: (a > b).to(a.dtype),
    "ge": lambda a, b: (a >= b).to(a.dtype),
    "eq": lambda a, b: (a == b).to(a.dtype),
    "ne": lambda a, b: (a != b).to(a.dtype),
    "bitwise_and": lambda a, b: ((a > 0) & (b > 0)).to(a.dtype),
    "bitwise_or": lambda a, b: ((a > 0) | (b > 0)).to(a.dtype),
    "bitwise_xor": lambda a, b: ((a > 0) ^ (b > 0)).to(a.dtype),
    "logical_and": lambda a, b: torch.logical_and(a > 0, b > 0).to(a.dtype),
    "logical_or": lambda a, b: torch.logical_or(a > 0, b > 0).to(a.dtype),
    "logical_xor": lambda a, b: torch.logical_xor(a > 0, b > 0).to(a.dtype),
    "where": lambda a, b: torch.where(a > b, a, b * 2),
    "where of numbers": lambda a, b: torch.where(a > b, a, 0.5) + torch.where(b > a, 2.0, b),
    "where keeps NaN out": lambda a, b: torch.where(a > 0, a, torch.zeros_like(b)),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, -2.0),
    "clamp by tensors": lambda a, b: torch.clamp(a, min=b - 0.5, max=b + 0.5),
    "clamp from below by a tensor": lambda a, b: torch.clamp_min(a, b),
    "clamp from above by a tensor": lambda a, b: torch.clamp_max(a, b),
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "ldexp": torch.ldexp,
    "xlogy": torch.xlogy,
    "xlog1py": torch.special.xlog1py,
    "floor_divide": lambda a, b: torch.floor_divide(a.detach(), b.detach()) + a,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp by a tensor": lambda a, b: torch.lerp(a, b, a * b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.7),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b, value=0.7),
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor") + a,
    "prelu": lambda a, b: F.prelu(a, torch.full((1,), 0.3).double()),
    "muladd": lambda a, b: a * b + a,
    "distance": lambda a, b: (a - b).pow(2).sum(-1, keepdim=True).sqrt() * a,
    "bmm": lambda a, b: torch.bmm(a[:, :, None], b[:, None, :]).sum(1),
    "bmm with a state": lambda a, b: torch.bmm(a[:, None, :], b[:, :, None]).squeeze(1) + a,
    "baddbmm": lambda a, b: torch.baddbmm(
        a[:, None, :], b[:, None, :1], a[:, None, :], beta=0.5, alpha=2
    )[:, 0],
    "einsum": lambda a, b: torch.einsum("bi,bj->bi", a, b),
    "nested where": lambda a, b: torch.where(a > 0, torch.where(b > 0, a, b), -a),
}


def pair_of(function: Callable[[Tensor, Tensor], Tensor], width: int) -> cello.Cell:
    return Step(lambda cell, x, h: (function(h, x), function(x, h)), [width])


@pytest.mark.parametrize("name", BINARY)
def test_a_function_of_two(name: str):
    compare(pair_of(BINARY[name], 5), random(1, 3, 5), (random(1, 3, 5, seed=1),))


PAIRS = torch.cartesian_prod(*[torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, INF, -INF, NAN])] * 2)


@pytest.mark.parametrize("name", [n for n in BINARY if "smooth" not in n and "bmm" not in n])
def test_special_pairs(name: str):
    """Every pair of special numbers in a row of its own."""
    a, b = PAIRS.double().unbind(1)
    if name in ("maximum", "minimum"):  # beside a NaN torch gives its gradient to the other one
        keep = (a == a) & (b == b)
        a, b = a[keep], b[keep]
    if "div floor" in name or "lerp" in name or name.startswith("addc"):
        keep = a.isfinite() & b.isfinite() & (a != b) & (b != 0)
        a, b = a[keep], b[keep]
    compare(pair_of(BINARY[name], 1), a[None, :, None], (b[None, :, None],))


def test_bounds_that_are_tensors_at_special_points():
    """Bounds that are NaN, equal or crossed, and what is beyond them."""
    points = torch.tensor([0.0, 1.0, -1.0, 2.0, INF, -INF, NAN]).double()
    x, low, high = torch.cartesian_prod(points, points, points)[None, :, :, None].unbind(2)
    for function in (
        lambda c, x, a, b: (torch.clamp(x, a, b), a, b),
        lambda c, x, a, b: (torch.clamp(a, min=x), x, b),
        lambda c, x, a, b: (torch.clamp(b, max=x), a, x),
        lambda c, x, a, b: (torch.clamp(x, -0.5, 1.0), torch.clamp(a, min=1.0), b.clamp(max=1.0)),
    ):
        compare(Step(function, [1, 1]), x, (low, high))


def test_ties_of_bounds():
    """A gradient at the bounds themselves: clamp lets it through, hardtanh does not."""
    points = torch.tensor([-1.0, 1.0, 0.0, 2.0, -2.0]).double().expand(1, 1, -1)
    for function in (
        lambda x: x.clamp(-1, 1),
        lambda x: F.hardtanh(x, -1, 1),
        lambda x: torch.clamp(x, min=x.detach(), max=x.detach()),
        lambda x: torch.clamp(x, min=2.0, max=1.0),
        lambda x: torch.maximum(x, x.detach()),
        lambda x: torch.maximum(x, x),
        lambda x: F.relu6(x + 5),
    ):
        compare(cell_of(function, 5), points, (points,))


# Products


def put(h: Tensor, where: Any, values: Tensor) -> Tensor:
    h = h.clone()
    h[where] = values
    return h


def old_cholesky(a: Tensor) -> Tensor:
    return torch.ops.aten.cholesky(a)  # torch.cholesky warns


def square(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """A matrix of each row, whose pivots are wherever."""
    return h.tanh()[:, :, None] * x.tanh()[:, None] + c.W


def firm(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """A matrix of each row with triangles that are far from singular."""
    return square(c, x, h) + 9 * torch.eye(5, dtype=h.dtype)


def positive(c: Any, x: Tensor, h: Tensor) -> Tensor:
    s = square(c, x, h)
    return s @ s.mT + torch.eye(5, dtype=h.dtype)


MATRICES: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "triangles, diagonals, windows": (
        lambda c, x, h: (
            (c.a * h[:, None] * x[..., None]).tril().sum(1)
            + (torch.diag_embed(h) * c.a).rot90(1, (1, 2)).triu(1).sum(2)
            + (c.a * h[:, None]).diagonal(dim1=1, dim2=2)
            + x.unfold(1, 5, 1).sum(1)
        ),
        {"a": (5, 5)},
    ),
    "inverse": (lambda c, x, h: torch.inverse(square(c, x, h)).mean(1), {"W": (5, 5)}),
    "equations": (
        lambda c, x, h: (
            torch.linalg.solve(square(c, x, h), x)
            + torch.linalg.solve(square(c, x, h), positive(c, x, h)).sum(1)
            + torch.linalg.solve(square(c, h, x), positive(c, x, h), left=False).sum(2)
        ),
        {"W": (5, 5)},
    ),
    "equations of a static matrix": (
        lambda c, x, h: (
            torch.linalg.solve(c.W, h.t()).t()
            + torch.linalg.solve(c.W, square(c, x, h), left=False).sum(1)
            + torch.linalg.solve(square(c, x, h), c.W).sum(1)
        ),
        {"W": (5, 5)},
    ),
    "determinants": (
        lambda c, x, h: (
            torch.det(square(c, x, h))[:, None] * x
            + torch.logdet(positive(c, x, h))[:, None]
            + torch.slogdet(square(c, x, h))[0][:, None]
        ),
        {"W": (5, 5)},
    ),
    "factors": (
        lambda c, x, h: (
            torch.linalg.cholesky(firm(c, x, h)).sum(1)
            + torch.linalg.cholesky(positive(c, x, h), upper=True).sum(2)
            + torch.cholesky_solve(positive(c, x, h), firm(c, x, h)).sum(2)
            + torch.cholesky_solve(x[:, :, None], firm(c, x, h), upper=True)[..., 0]
            + torch.cholesky_inverse(firm(c, x, h)).sum(1)
        ),
        {"W": (5, 5)},
    ),
    "old factors": (lambda c, x, h: old_cholesky(positive(c, x, h)).sum(1), {"W": (5, 5)}),
    "triangular equations": (
        lambda c, x, h: sum(
            torch.linalg.solve_triangular(
                firm(c, x, h), positive(c, x, h), upper=upper, left=left, unitriangular=is_unit
            ).sum(1)
            for upper in (False, True)
            for left in (False, True)
            for is_unit in (False, True)
        ),
        {"W": (5, 5)},
    ),
    "products of numbers, turned": (
        lambda c, x, h: (
            ((x[:, :, None] * h[:, None]).mT + c.W)[:, 1]
            + (c.W + (x[:, :, None] * h.sin()[:, None]).mT).flip(1)[:, :, 2]
            + (x[:, :, None] * h.cos()[:, None]).mT.sum(-1)
            + ((c.W * h[:, None]).mT + h[:, None])[:, 3]
        ),
        {"W": (5, 5)},
    ),
    "linear": (lambda c, x, h: F.linear(h, c.W, c.b), {"W": (5, 5), "b": (5,)}),
    "linear without bias": (lambda c, x, h: F.linear(h, c.W), {"W": (5, 5)}),
    "matmul": (lambda c, x, h: h @ c.W + x @ c.W.t(), {"W": (5, 5)}),
    "addmm": (
        lambda c, x, h: torch.addmm(c.b, h, c.W, beta=0.5, alpha=2.0),
        {"W": (5, 5), "b": (5,)},
    ),
    "addmm of rows": (lambda c, x, h: torch.addmm(x, h, c.W), {"W": (5, 5)}),
    "matrix first": (lambda c, x, h: (c.W @ h.t()).t(), {"W": (5, 5)}),
    "index": (lambda c, x, h: h[:, c.order] + x, {"order": (5,)}),
    "index of what is infinite": (
        lambda c, x, h: torch.maximum(torch.where(x > 0.5, -math.inf, h)[:, c.order], x.sin()),
        {"order": (5,)},
    ),
    "put along an axis": (
        lambda c, x, h: (
            h.index_copy(1, c.order, x)
            + h.index_fill(1, c.order[1:3], 0.5).sin()
            + put(h, (slice(None), c.order[2:]), x[:, :3]).cos()
            + put(h, (slice(None), c.order % 2), x).tanh()
            + put(h.view(-1, 5, 1), (slice(None), [0, -1, 2]), x[:, 1:4, None])[..., 0]
        ),
        {"order": (5,)},
    ),
    "added along an axis": (
        lambda c, x, h: h.index_add(1, c.order % 3, x),
        {"order": (5,)},
    ),
    "nll_loss": (
        lambda c, x, h: F.nll_loss(h @ c.W, x.argmax(-1), reduction="none")[:, None] + x,
        {"W": (5, 5)},
    ),
    "embedding": (lambda c, x, h: F.embedding((h + x).argmax(-1), c.W), {"W": (5, 5)}),
    "index_select": (lambda c, x, h: h.index_select(1, c.order) + x, {"order": (5,)}),
    "vector": (lambda c, x, h: x * (h @ c.v)[:, None], {"v": (5,)}),
    "mv": (lambda c, x, h: x * torch.mv(h, c.v).unsqueeze(1), {"v": (5,)}),
    "slices of a matrix": (
        lambda c, x, h: torch.cat([h[:, 1:3] @ c.W[1:3, ::2], h[:, :4] @ c.W[:4, 3:]], 1),
        {"W": (5, 5)},
    ),
    "as many columns as between two": (
        lambda c, x, h: torch.cat([h[:, ::2][:, :2], h], 1) @ c.W + h[:, :4:2] @ c.W[:2],
        {"W": (7, 5)},
    ),
    "every other column": (lambda c, x, h: h[:, ::2] @ c.W[::2], {"W": (5, 5)}),
    "flipped operand": (lambda c, x, h: h.flip(1) @ c.W, {"W": (5, 5)}),
    "cat of both": (lambda c, x, h: torch.cat([x, h, x], 1) @ c.W, {"W": (15, 5)}),
    "cat with a parameter": (
        lambda c, x, h: torch.cat([x, c.b.expand(len(h), 5), h], 1) @ c.W,
        {"W": (15, 5), "b": (5,)},
    ),
    "cat with zeros": (
        lambda c, x, h: torch.cat([h, torch.zeros_like(x), x], 1) @ c.W,
        {"W": (15, 5)},
    ),
    "twice the same matrix": (lambda c, x, h: (h @ c.W).tanh() @ c.W, {"W": (5, 5)}),
    "matrix from weights": (lambda c, x, h: h @ (c.W * c.s.exp()), {"W": (5, 5), "s": (5, 1)}),
    "matrix times matrix": (lambda c, x, h: h @ (c.W @ c.U), {"W": (5, 3), "U": (3, 5)}),
    "low rank": (lambda c, x, h: (h @ c.W) @ c.U, {"W": (5, 2), "U": (2, 5)}),
    "expanded matrix": (lambda c, x, h: h @ c.v[:, None].expand(5, 5), {"v": (5,)}),
    "chunks": (
        lambda c, x, h: torch.cat([p.tanh() for p in (h @ c.W).chunk(5, 1)][::-1], 1),
        {"W": (5, 5)},
    ),
    "bilinear": (lambda c, x, h: F.bilinear(x, h, c.W, c.b), {"W": (5, 5, 5), "b": (5,)}),
    "einsum": (lambda c, x, h: torch.einsum("bi,oi->bo", h, c.W), {"W": (5, 5)}),
    "einsum of three": (lambda c, x, h: torch.einsum("bi,bj,oij->bo", x, h, c.W), {"W": (5, 5, 5)}),
    "batches of blocks": (
        lambda c, x, h: (h.view(-1, 5, 1).transpose(0, 1) @ c.W).transpose(0, 1).reshape(-1, 5),
        {"W": (5, 1, 1)},
    ),
    "heads": (
        lambda c, x, h: (
            torch.bmm(torch.cat([x, h], 1).view(-1, 2, 5).permute(1, 0, 2), c.W)
            .permute(1, 0, 2)
            .sum(1)
        ),
        {"W": (2, 5, 5)},
    ),
    "one matrix for all heads": (
        lambda c, x, h: (torch.cat([x, h], 1).view(-1, 5) @ c.W).view(-1, 2, 5).sum(1),
        {"W": (5, 5)},
    ),
    "weights of a softmax": (
        lambda c, x, h: torch.softmax(h @ c.W.t(), -1) @ c.W,
        {"W": (3, 5)},
    ),
}


def held_by(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    held = {key: random(*shape, seed=7) * 0.5 for key, shape in shapes.items()}
    return held | {key: torch.tensor([3, 0, 0, 4, 1]) for key in shapes if key == "order"}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", MATRICES)
def test_a_product(name: str, batch_size: int):
    function, shapes = MATRICES[name]
    held = held_by(shapes)
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [5], **held)
    compare(cell, random(3, batch_size, 5), (random(1, batch_size, 5, seed=1),))


# Modules with equations of their own


MODULES: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(6),
    "RMSNorm": lambda: nn.RMSNorm(6),
    "GroupNorm": lambda: nn.GroupNorm(3, 6),
    "BatchNorm1d": lambda: nn.BatchNorm1d(6),
    "BatchNorm1d without weights": lambda: nn.BatchNorm1d(6, affine=False),
    "PReLU": lambda: nn.PReLU(),
    "PReLU for each unit": lambda: nn.PReLU(6),
    "Softmax": lambda: nn.Softmax(-1),
    "Linear": lambda: nn.Linear(6, 6),
    "Bilinear": lambda: Twice(nn.Bilinear(6, 6, 6)),
    "GRUCell": lambda: Twice(nn.GRUCell(6, 6)),
    "RNNCell": lambda: Twice(nn.RNNCell(6, 6)),
}


class Twice(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.sin())


@pytest.mark.parametrize("name", MODULES)
def test_a_module(name: str):
    torch.manual_seed(0)
    module = MODULES[name]().double().eval()
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point():
            value.data.add_(0.1 * random(*value.shape, seed=3).abs())
        del key
    cell = Step(lambda c, x, h: [c.module(h) + x] * 2, [6], module=module)
    compare(cell, random(3, 3, 6), (random(1, 3, 6, seed=1),))


# Nothing is left out


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_operation_has_a_case():
    """Each operation that is known and each instruction is met by one of the cells above."""
    cells = [(cell_of(u.function, 5), 5) for u in UNARY.values()]
    cells += [(pair_of(function, 5), 5) for function in BINARY.values()]
    for function, shapes in MATRICES.values():
        held = held_by(shapes)
        cells.append((Step(lambda c, x, h, f=function: [f(c, x, h)] * 2, [5], **held), 5))
    cells += [
        (Step(lambda c, x, h: [c.module(h) + x] * 2, [6], module=m().double().eval()), 6)
        for m in MODULES.values()
    ]
    programs = [program_of(cell, torch.zeros(1, 1, width).double()) for cell, width in cells]
    for case in (convolution_cells.CELLS | convolution_cells.IMAGES).values():
        layer, x = convolution_cells.layer_of(case), torch.zeros(1, 1, *case.x).double()
        layer(x)
        programs.append(program_of(layer._cells()[0][0], x))
    seen, operations = set(), set()
    for program in programs:
        seen |= {operation(node) for node in program.trace.nodes}
        everything = Wanted((True,) * len(program.beforehand), (True,) * len(program.statics))
        loops = program.loops(False, everything)
        for way in (loops.forward, loops.backward):
            operations |= {i.op for i in way.loop.body if isinstance(i, Pointwise | Reduce)}
    assert sorted(KNOWN - seen) == []
    # Loops have copies in its place; files that were exported before may hold it.
    assert {*OPERANDS, *REDUCTIONS} - operations == {"replace"}


def test_an_infinite_gradient_of_a_power():
    """At base 0, where the gradient of the exponent is zero, and zero times infinity is NaN."""
    exponents = torch.full((2, 1, 3), 0.5, requires_grad=True)
    start, found = torch.zeros(1, 1, 3, requires_grad=True), []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = cello.Recurrent(lambda x, h: torch.pow(h, x), state_size=3)(
                exponents, start
            )
            found.append(torch.autograd.grad(output.sum(), [exponents, start]))
    torch.testing.assert_close(*found, equal_nan=True)
    assert found[0][0].isnan().any()
