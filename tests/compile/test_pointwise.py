"""What torch calls pointwise: each operation is in the instruction set, or listed as left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import exact_derivatives
from steps import Step, assert_close, compare, evaluate, random
from torch import Tensor, nn

import cello
from cello.compile.lower import KNOWN, RANDOM

PAGE = Path(__file__).parents[2] / "docs" / "compiled.md"


def left_out() -> set[str]:
    """The names in the first column of the page's table."""
    table = PAGE.read_text().split("left out | because")[1].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.M))))


def pointwise() -> set[str]:
    """The operations that torch marks as pointwise, without their forms in place."""
    names = set()
    for qualified in torch._C._dispatch_get_all_op_names():
        space, _, name = qualified.partition("::")
        name, _, overload = name.partition(".")
        if space == "aten":
            operation = getattr(getattr(torch.ops.aten, name), overload or "default")
            if torch.Tag.pointwise in operation.tags:
                names.add(name)
    return {n for n in names if not n.startswith("__i") and (n.startswith("__") or n[-1] != "_")}


ELSEWHERE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "__xor__": lambda a, b: ((a > 0) ^ (b > 0)) * a,
    "_conj_physical": lambda a, b: torch.conj_physical(a) * b,
    "float_power": lambda a, b: torch.float_power(a, 2) + b,  # in double precision, as here
    "conj_physical": lambda a, b: torch.conj_physical(a) * b,
    "positive": lambda a, b: torch.positive(a) * b,
    "relu6": lambda a, b: F.relu6(a) * b,
    "selu": lambda a, b: F.selu(a) * b,
    "square": lambda a, b: torch.square(a) * b,
    "clip": lambda a, b: torch.clip(a, -0.5, 0.5) + b,
    "isfinite": lambda a, b: torch.isfinite(a) * b,
    "true_divide": torch.true_divide,
}
"""torch makes other operations of these, in versions 2.9 to 2.13, before they arrive."""


def test_the_list_of_what_is_left_out():
    assert sorted(pointwise() - KNOWN - RANDOM - set(ELSEWHERE)) == sorted(left_out())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_arrives_as_something_else(name: str):
    function = ELSEWHERE[name]
    cell = Step(lambda c, x, h: (function(h, x), function(x, h)), [5])
    compare(cell, random(1, 3, 5), (random(1, 3, 5, seed=1),))


OTHER_NAMES = {
    "gammainc": "igamma",
    "gammaincc": "igammac",
    "gammaln": "lgamma",
    "multigammaln": "mvlgamma",
    "psi": "digamma",
}

SPECIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.special.erf,
    "erfc": torch.special.erfc,
    "exp2": torch.special.exp2,
    "expit": torch.special.expit,
    "expm1": torch.special.expm1,
    "log1p": lambda x: torch.special.log1p(x.square()),
    "log_softmax": lambda x: torch.special.log_softmax(x, -1),
    "logit": lambda x: torch.special.logit(x.sigmoid()),
    "logsumexp": lambda x: x * torch.special.logsumexp(x, -1, keepdim=True),
    "ndtr": torch.special.ndtr,
    "round": lambda x: torch.special.round(x) + x,
    "sinc": torch.special.sinc,
    "softmax": lambda x: torch.special.softmax(x, -1),
    "xlog1py": lambda x: torch.special.xlog1py(x, x.square()),
    "xlogy": lambda x: torch.special.xlogy(x, x.square() + 0.1),
}


def test_all_of_torch_special():
    names = {n for n in torch.special.__all__ if callable(getattr(torch.special, n))}
    listed = left_out()
    known = {n for n in names if {f"special_{n}", n, OTHER_NAMES.get(n)} & listed}
    assert sorted(names - known) == sorted(SPECIAL)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_function_of_torch_special(name: str):
    function = SPECIAL[name]
    cell = Step(lambda c, x, h: (function(h), function(x)), [5])
    compare(cell, random(1, 3, 5), (random(1, 3, 5, seed=1),))


ARGUMENTS = {
    "Threshold": (0.1, -0.2),
    "GLU": None,
    "MultiheadAttention": None,  # no activation
    "RReLU": None,  # writes into its noise
    "Softmax2d": None,  # of pictures
}


@pytest.mark.parametrize("name", torch.nn.modules.activation.__all__)
def test_an_activation_module(name: str):
    arguments = ARGUMENTS.get(name, ())
    if arguments is None:
        pytest.skip("it is of another shape")
    if "Softm" in name or name == "LogSoftmax":
        arguments = (-1,)
    module = getattr(nn, name)(*arguments).double()
    layer = cello.Recurrent(Step(lambda c, x, h: (c.module(h), c.module(x)), [5], module=module))
    x, h = random(1, 3, 5), random(1, 3, 5, seed=1)
    got = evaluate(layer, x, (h,), "native")
    with exact_derivatives():
        assert_close(got, evaluate(layer, x, (h,), "reference"))
