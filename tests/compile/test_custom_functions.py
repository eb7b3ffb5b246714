"""Custom functions of autograd in a step: what they compute, and the gradients that they say they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import loop
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import cello

H = 4


class OneMethod(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class SetupContext(Function):
    @staticmethod
    def forward(x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class Spiking(nn.Module):
    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.function = function

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.decay * v + x
        spike = self.function.apply(v - 0.5)
        return spike, v - 0.5 * spike


@pytest.mark.parametrize("function", [OneMethod, SetupContext])
def test_surrogate_gradients_by_hand(function: type[Function]):
    cell = Spiking(function)
    layer = cello.Recurrent(cell, state_size=4)
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert cello.explain(layer, x).plans[0].engine == "native"
    layer(x)[0].sum().backward()
    # dv'/dv = decay and spike' = surrogate(v - 0.5), back from the last step.
    decay, v = cell.decay.item(), torch.zeros(3, 4, dtype=torch.float64)
    before, potentials = [], []
    for step in x.detach():
        before.append(v)
        v = decay * v + step
        potentials.append(v - 0.5)
        v = v - 0.5 * (v > 0.5)
    g, total = torch.zeros_like(v), 0.0
    for t in reversed(range(6)):
        surrogate = 1 / (1 + potentials[t].abs()) ** 2
        g = g + surrogate * (1 - 0.5 * g)
        assert torch.allclose(x.grad[t], g)
        total += (g * before[t]).sum().item()
        g = g * decay
    assert cell.decay.grad.item() == pytest.approx(total)


# In each of these: x is what the function is applied to, c the cell.


def function(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A custom function of these two, as most authors keep it: the bound method."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Custom", (Function,), methods).apply


def saving(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that saves its tensors."""

    def saved(ctx, *given):
        ctx.save_for_backward(*[item for item in given if isinstance(item, Tensor)])
        ctx.numbers = [item for item in given if not isinstance(item, Tensor)]
        return forward(*given)

    return saved


def masked(ctx, g):
    (x,) = ctx.saved_tensors
    given = g.clone()
    given[x.abs() > 1] = 0
    return given


def in_place(ctx, g):
    """As snnTorch writes its arctangent."""
    (x,) = ctx.saved_tensors
    return 1 / (1 + (torch.pi / 2 * x).pow_(2)) * g


def if_needed(ctx, g):
    return g * 0.5 * ctx.saved_tensors[0] if ctx.needs_input_grad[0] else None


def saved_if_needed(ctx, x):
    if x.requires_grad:  # as SpikingJelly does
        ctx.save_for_backward(x)
    return x.sign()


def doubled_in_place(ctx, x):
    out = x.clone()
    out.mul_(2)
    out[out > 1] = 1
    ctx.save_for_backward(out)
    return out


def marked(ctx, x):
    spike = (x > 0).to(x.dtype)
    ctx.mark_non_differentiable(spike)
    return x * spike, spike


step_ = saving(lambda x, *rest: (x > 0).to(x.dtype))
straight = function(lambda ctx, x: x.round(), lambda ctx, g: g)
masking = function(saving(torch.sign), masked)
arctangent = function(step_, in_place)
needed = function(saving(torch.sign), if_needed)
needed_forward = function(saved_if_needed, lambda ctx, g: g / (1 + ctx.saved_tensors[0] ** 2))
clipped = function(lambda ctx, x: x * 1.0, lambda ctx, g: g.clamp(-0.5, 0.5))
hard = function(lambda ctx, x: x.view_as(x), lambda ctx, g: torch.nn.functional.hardtanh(g))
reverse = function(lambda ctx, x, scale: x.clone(), lambda ctx, g: (-0.3 * g, None))
sloped = function(
    step_, lambda ctx, g: (g * torch.exp(-ctx.numbers[0] * ctx.saved_tensors[0] ** 2), None)
)
itself = function(lambda ctx, x: x, lambda ctx, g: 2 * g)
result = function(doubled_in_place, lambda ctx, g: g * ctx.saved_tensors[0])
halves = function(
    lambda ctx, x: (x[:, : H // 2].sin(), x[:, H // 2 :] * 2),
    lambda ctx, a, b: torch.cat([3 * a, b.abs() * a], 1),
)
parts = function(
    lambda ctx, x: (x[:, : H // 2].sin(), x[:, H // 2 :] * 2),
    lambda ctx, a, b: torch.cat([3 * a - b, b / 2], 1),
)
marking = function(marked, lambda ctx, g, unused: g * 0.7 + unused)
once = function(saving(torch.sin), once_differentiable(lambda ctx, g: g * ctx.saved_tensors[0]))
two = function(saving(torch.mul), lambda ctx, g: (g * 2, g * ctx.saved_tensors[0]))
bias = function(lambda ctx, x, b: x + b, lambda ctx, g: (g, g * 0.5))
gain = function(saving(torch.mul), lambda ctx, g: (g * 2, (g * ctx.saved_tensors[0]).sum(0)))
level = function(
    saving(lambda x, s: (x / s).round() * s),
    lambda ctx, g: (g, (g * ctx.saved_tensors[0].sin()).sum().view(1)),
)
slices = function(
    saving(lambda x, w: x.view(-1, 2, 2) * w[:, None]),
    lambda ctx, g: (2 * g.flatten(1), (g * 3).sum((0, 2))),
)
kept = function(
    saving(lambda x, w: x * w), lambda ctx, g: (g, (g * ctx.saved_tensors[0]).sum(0, keepdim=True))
)
OF_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the other sign": lambda u, w: -u.sum(0),
    "a multiple": lambda u, w: 2 * u.sum(0) / 3,
    "times a weight": lambda u, w: w * u.sum(0),
    "divided by a weight": lambda u, w: u.sum(0).neg() / (2 + w.cos()),
    "the one row": lambda u, w: u.sum(0, keepdim=True)[0],
    "in another shape": lambda u, w: (u.sum(0, True) * w * 2).view(-1),
    "a number": lambda u, w: -3 * u.sum().view(1) * w,
}
"""What is done with a sum over the rows, which is the gradient of a vector w."""


def after_a_sum(name: str) -> Callable[..., Tensor]:
    return function(
        saving(torch.mul),
        lambda ctx, g: (g * 2, OF_SUMS[name](g * ctx.saved_tensors[0], ctx.saved_tensors[1])),
    )


def of_sum(name: str) -> Callable[[Any, Tensor], Tensor]:
    apply, size = after_a_sum(name), 1 if name == "a number" else H
    return lambda c, x: apply(x, c.bias[:size])


squared = function(
    saving(torch.mul), lambda ctx, g: (g, (g * ctx.saved_tensors[0]).sum(0) * g.sum(0))
)
turned = function(
    saving(lambda x, w: x * w[0, 0]),
    lambda ctx, g: (g, (g[:, :2, None] * ctx.saved_tensors[0][:, None, :2]).sum(0).t() * 2),
)
normed = function(
    saving(lambda x: x / (1 + x.abs().sum(1, keepdim=True))),
    lambda ctx, g: (g * ctx.saved_tensors[0]).sum(1, keepdim=True) * ctx.saved_tensors[0],
)
linear = function(
    saving(lambda x, w: x @ w), lambda ctx, g: (g @ ctx.saved_tensors[1].t() * 2, None)
)
tanh = function(saving(torch.tanh), lambda ctx, g: g * (1 - ctx.saved_tensors[0].tanh() ** 2))


def turned_back(ctx, g):
    (x,) = ctx.saved_tensors
    g = 0.5 * g
    g[x >= 0] = -g[x >= 0]
    g[x.abs() > 1] = 0.0
    return g


def weighed_where(ctx, g):
    (x,) = ctx.saved_tensors
    g, below = g.clone(), x < 0
    g[below] = g[below] * x[below].exp() / (1 + x[below].abs())
    return g


def raised_where(ctx, g):
    (x,) = ctx.saved_tensors
    g = g.clone()
    g[x > 0] = g[x > 0] + 0.1
    return g


by_mask = function(saving(torch.round), turned_back)
by_two_masks = function(saving(torch.floor), weighed_where)
by_mask_raised = function(saving(torch.round), raised_where)


def many_operations(ctx, x):
    ctx.is_needed = ctx.needs_input_grad[0]
    for _ in range(30):
        x = 0.5 * (x * x + x).tanh()
    return x


def many_operations_back(ctx, g):
    for _ in range(30):
        g = 0.25 * (g + g) + 0.25 * g
    return g


many = function(many_operations, many_operations_back)


def nested_forward(ctx, x):
    return straight(x * 3) + x


nested = function(nested_forward, lambda ctx, g: straight(g * 2))

COMPILED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "straight through": lambda c, x: straight(3 * x) + x,
    "a mask": lambda c, x: masking(x),
    "a mask that chooses": lambda c, x: by_mask(3 * x),
    "a mask that chooses several": lambda c, x: by_two_masks(3 * x),
    "in place": lambda c, x: arctangent(x),
    "needs_input_grad": lambda c, x: needed(x),
    "requires_grad": lambda c, x: needed_forward(x),
    "a clipped gradient": lambda c, x: clipped(2 * x),
    "a hard gradient": lambda c, x: hard(3 * x),
    "reversed": lambda c, x: reverse(x, 0.3),
    "a slope": lambda c, x: sloped(x, 2.5) + sloped(x - 0.5, 0.5),
    "the same tensor": lambda c, x: itself(x).sin(),
    "saves its result": lambda c, x: result(x),
    "two results": lambda c, x: torch.cat(halves(x), 1),
    "one of two results": lambda c, x: halves(x)[1].repeat(1, 2),
    "a result without gradient": lambda c, x: marking(x)[0] + marking(x * 2)[1],
    "a result without gradient, of the input": lambda c, x: of_input(c, c.x, 0, x),
    "a result without gradient, read last": lambda c, x: of_input(c, c.x, 1, x),
    "a result without gradient, of a weight": lambda c, x: weighed(x, marking(c.matrix)),
    "a result without gradient, of a weight, read last": lambda c, x: weighed(
        x, marking(c.matrix)[::-1]
    ),
    "noise that it is given": lambda c, x: two(x, torch.rand_like(x) * 0 + 0.5),
    "many operations": lambda c, x: many(x),
    "once differentiable": lambda c, x: once(x),
    "two arguments": lambda c, x: two(x, c.h + 0.1),
    "a weight": lambda c, x: bias(x, c.bias),
    "a number that is learned": lambda c, x: bias(x, c.scale),
    "a quantized weight": lambda c, x: x @ straight(c.matrix * 4) / 4,
    "a weight with a mask": lambda c, x: x @ masking(c.matrix) + two(c.bias, c.scale),
    "a weight in two": lambda c, x: x @ torch.cat(parts(c.matrix), 1),
    "the input": lambda c, x: x + needed(c.x) @ c.matrix[:3],
    "a sum over rows": lambda c, x: gain(x, c.bias),
    "a sum over everything": lambda c, x: level(x, c.level),
    "a sum over rows and features": lambda c, x: slices(x, c.bias[:2]).flatten(1),
    **{f"after a sum, {name}": of_sum(name) for name in OF_SUMS},
    "a sum over rows that stays": lambda c, x: kept(x, c.matrix[:1]),
    "sums along features": lambda c, x: normed(x),
    "a matrix": lambda c, x: linear(x, c.matrix.detach()),
    "inside another": lambda c, x: nested(x),
    "after another": lambda c, x: clipped(tanh(2 * tanh(x))),
    "of a part": lambda c, x: torch.cat([tanh(x[:, 1:]), straight(x[:, :1])], 1),
    "in another shape": lambda c, x: tanh(x.view(-1, 2, 2).transpose(1, 2)).flatten(1),
    "under no_grad": lambda c, x: x.tanh() * no_gradient(x.tanh()),
}


def of_input(c: Any, x: Tensor, first: int, z: Tensor) -> Tensor:
    pair = marking(x)
    return z + (pair[first] + 2 * pair[1 - first] * pair[first]) @ c.matrix[:3]


def weighed(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    return x @ (pair[0] + pair[1] * 2 + pair[0] * pair[1])


def no_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return straight(x)


def drawn(x: Tensor) -> Tensor:
    return (x + torch.rand_like(x) * 0).round()


scaled = function(lambda ctx, x: x.sin(), lambda ctx, g: torch.ones_like(g))
unit = function(lambda ctx, x: x.sin(), lambda ctx, g: g / g.abs().sum(1, keepdim=True))
inverse = function(lambda ctx, x: x.sin(), lambda ctx, g: g * (1 / g))
shifted = function(lambda ctx, x: x.sin(), lambda ctx, g: (g + 0.1).clamp(-1, 1))
over_rows = function(saving(torch.mul), lambda ctx, g: (g, (g * ctx.saved_tensors[0]).mean(0)))
tutorial = function(
    saving(lambda x, w, b: x @ w.t() + b),
    lambda ctx, g: (g @ ctx.saved_tensors[1], g.t() @ ctx.saved_tensors[0], g.sum(0)),
)
drawing = function(lambda ctx, x: drawn(x), lambda ctx, g: g)
object_ = function(lambda ctx, x, f: f(x), lambda ctx, g: (g, None))
OUTSIDE = torch.linspace(0.5, 1.5, H, dtype=torch.float64)
outside = function(lambda ctx, x: x * OUTSIDE, lambda ctx, g: g * 0.5)


def unless_needed(ctx, x):
    return x.sin() if x.requires_grad else x.cos()


def none_for_zeros(ctx, x):
    ctx.set_materialize_grads(False)
    return x.sin(), x.cos()


def dirty(ctx, x):
    ctx.mark_dirty(x)
    return x.mul_(2)


def writes_into_the_gradient(ctx, g):
    g[g > 0.5] = 0.5
    return g


def writes_into_a_view(ctx, x):
    x.view(-1).mul_(2)
    return x.sin()


def kept_on_ctx(ctx, x):
    ctx.kept = x
    return x * 2


def written_later(c, x):
    v = x * 1.0
    y = keeping(v)
    v += 1
    return y.tanh() + 0.1 * v


def view_on_ctx(ctx, x):
    ctx.kept = x.view(-1, H)
    return x * 2


def writes_into_what_was_kept(ctx, g):
    ctx.kept.add_(1.0)
    return g


def detached_on_ctx(ctx, x):
    out = x * 2
    ctx.kept = out.detach()
    return out


def twice(ctx, x):
    y = x * 2
    return y, y


def one_of_two(ctx, x):
    p, q = x * 2, x * 3
    return p if ctx.needs_input_grad[0] else q


def by_the_other(ctx, g):
    x, q = ctx.saved_tensors
    return (g * q, (g * x).sum(0)) if ctx.needs_input_grad[1] else (2 * g * q, None)


def flagged(ctx, x, y):
    ctx.flag = y.requires_grad
    return x * 2


class Last(Function):
    seen = None

    @staticmethod
    def forward(ctx, x):
        Last.seen = x
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * Last.seen.cos()


class Spike(Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope, None


def made_in_the_step(c, x):
    class Here(Function):
        @staticmethod
        def forward(ctx, a):
            return a * x.sum(1, True)

        @staticmethod
        def backward(ctx, g):
            return g * 2

    return Here.apply(c.matrix[0] * x)


keeping = function(kept_on_ctx, lambda ctx, g: g * ctx.kept.cos())
writing_a_view = function(view_on_ctx, writes_into_what_was_kept)
writing_a_detached = function(detached_on_ctx, lambda ctx, g: ctx.kept.mul_(g))
double = function(twice, lambda ctx, p, q: 3 * p + 5 * q)
choosing = function(one_of_two, lambda ctx, g: g * 2)
by_need = function(saving(torch.mul), by_the_other)
flagging = function(flagged, lambda ctx, g: (g * (2.0 if ctx.flag else 3.0), None))
laid_out = function(lambda ctx, x: x * 2, lambda ctx, g: g * (2.0 if g.is_contiguous() else 3.0))
columns = function(saving(torch.mul), lambda ctx, g: (g, (g * ctx.saved_tensors[0]).sum(0)[0]))
whole = function(saving(torch.mul), lambda ctx, g: (g, (g * 4).sum(dtype=torch.int64)))
shapes = function(lambda ctx, x, size: x.view(size), lambda ctx, g: (g, None))
of_a_weight = [
    function(lambda ctx, x: x.clone(), backward)
    for backward in (
        lambda ctx, g: g.bool().to(g.dtype),
        lambda ctx, g: (4 * g).long().to(g.dtype),
        lambda ctx, g: torch.div(g, 0.25, rounding_mode="floor"),
        lambda ctx, g: g.float().to(g.dtype),
    )
]
either = function(unless_needed, lambda ctx, g: g)
undefined = function(none_for_zeros, lambda ctx, a, b: a if b is None else 5 * b)
dirtying = function(dirty, lambda ctx, g: 2 * g)
writing = function(lambda ctx, x: x.sin(), writes_into_the_gradient)
viewing = function(writes_into_a_view, lambda ctx, g: g)

REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a constant gradient": (lambda c, x: scaled(x), "another number than zero"),
    "a gradient of length one": (lambda c, x: unit(x), "another number than zero"),
    "a gradient times its inverse": (lambda c, x: inverse(x), "another number than zero"),
    "a gradient that a mask shifts": (lambda c, x: by_mask_raised(x), "another number than zero"),
    "a shifted gradient": (lambda c, x: shifted(x), "another number than zero"),
    "a product of sums over rows": (lambda c, x: squared(x, c.bias), "mixes the rows of a batch"),
    "a sum of matrices, turned": (
        lambda c, x: turned(x, c.matrix[:2, :2]),
        "mixes the rows of a batch",
    ),
    "a mean over rows": (lambda c, x: over_rows(x, c.bias), "mixes the rows of a batch"),
    "a matrix of its own": (lambda c, x: tutorial(x, c.matrix, c.bias), "rows of a batch apart"),
    "a clipped gradient of a weight": (
        lambda c, x: x + clipped(c.bias),
        "is not linear in the gradient",
    ),
    "a weight in nonlinear parts": (
        lambda c, x: x @ torch.cat(halves(c.matrix), 1),
        "is not linear in the gradient",
    ),
    "a clipped gradient of the input": (
        lambda c, x: x + clipped(c.x) @ c.matrix[:3],
        "is not linear in the gradient",
    ),
    "random numbers": (lambda c, x: drawing(x), "draws random numbers"),
    "an object": (lambda c, x: object_(x, torch.sin), "is given a builtin_function_or_method"),
    "a tensor from outside": (lambda c, x: outside(x), "reads tensors that it is not given"),
    "another result without gradients": (lambda c, x: either(x), "computes something else where"),
    "one of two results": (lambda c, x: choosing(x), "computes something else where"),
    "a gradient by another need": (
        lambda c, x: by_need(x, c.bias),
        "computes something else where",
    ),
    "a flag": (lambda c, x: flagging(x, c.h.detach()), "computes something else where"),
    "written later": (written_later, "writes into what a custom autograd.Function has seen"),
    "a view written": (lambda c, x: writing_a_view(x * 1.0) + x, "has seen"),
    "what was detached": (lambda c, x: writing_a_detached(x), "has seen"),
    "a result twice": (lambda c, x: double(x)[0].tanh() + 0.1 * double(x)[1], "a tensor twice"),
    "an attribute of its class": (
        lambda c, x: Last.apply(x),
        "the attribute seen of the class Last",
    ),
    "a layout": (lambda c, x: x + laid_out(x * c.h).sum(1, True), "is_contiguous() of a gradient"),
    "a column": (lambda c, x: columns(x, c.scale), ""),
    "a sum of another dtype": (lambda c, x: whole(x, c.scale), ""),
    "a shape": (lambda c, x: x @ shapes(c.matrix, c.matrix.shape), "is given a Size"),
    "keywords": (lambda c, x: Spike.apply(x, slope=2.0), "is called with keywords"),
    "made in the step": (made_in_the_step, "captures tensors"),
    **{
        f"a weight, not linear {k}": (lambda c, x, f=f: x + c.h @ f(c.matrix), "is not linear")
        for k, f in enumerate(of_a_weight)
    },
    "gradients of None": (lambda c, x: undefined(x)[0], "takes None for a gradient of zeros"),
    "a dirty argument": (lambda c, x: dirtying(x * 1.0), "writes into what"),
    "a gradient in place": (lambda c, x: writing(x), "has seen"),
    "an argument in place": (lambda c, x: viewing(x.clone()), "has seen"),
}


class Custom(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.r = nn.Linear(3, H), nn.Linear(H, H)
        self.matrix = nn.Parameter(torch.randn(H, H))
        self.bias, self.scale = nn.Parameter(torch.randn(H)), nn.Parameter(torch.tensor(0.3))
        self.level = nn.Parameter(torch.tensor([0.2]))
        self.compute = compute
        self.double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.x, self.h = x, h
        try:
            return self.compute(self, self.i(x) + self.r(h)) + 0.1 * h
        finally:
            del self.x, self.h


def agree(cell: nn.Module, lengths: list[int] | None, needs: bool = True) -> None:
    """Compare values and all gradients with a loop over the cell."""
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=needs)
    h = torch.randn(3, H, dtype=torch.float64, requires_grad=needs)
    layer = cello.Recurrent(cell, state_size=H)
    state, outputs = h, []
    keep = torch.tensor(lengths or [5] * 3)
    for t, row in enumerate(x):
        state = torch.where((t < keep)[:, None], cell(row, state), state)
        outputs.append(state * (t < keep)[:, None])
    parameters = [p for p in cell.parameters() if p.requires_grad]
    weights = torch.randn(5, 3, H, dtype=torch.float64)
    results = []
    for out, last in (
        (torch.stack(outputs), state),
        [
            part.squeeze(0) if k else part
            for k, part in enumerate(layer(x, h[None], lengths=lengths))
        ],
    ):
        gradients: Any = ()
        if needs or parameters:
            loss = (out * weights).sum() + last.cos().sum()
            wanted = [*([x, h] if needs else []), *parameters]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([out, last, *(torch.zeros(()) if g is None else g for g in gradients)])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found), (expected, found)


@pytest.mark.parametrize("lengths", [None, [2, 5, 4]], ids=["", "lengths"])
@pytest.mark.parametrize("name", COMPILED)
def test_values_and_gradients(name: str, lengths: list[int] | None):
    torch.manual_seed(0)
    cell = Custom(COMPILED[name])
    layer = cello.Recurrent(cell, state_size=H)
    plan = cello.explain(layer, torch.randn(5, 3, 3, dtype=torch.float64)).plans[0]
    assert plan.engine == "native", plan.reasons["native"]
    agree(cell, lengths)
    agree(cell, lengths, needs=False)
    cell.requires_grad_(False)
    agree(cell, lengths)
    agree(cell, lengths, needs=False)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_to_the_loop(name: str):
    torch.manual_seed(0)
    compute, reason = REFUSED[name]
    cell = Custom(compute)
    layer = cello.Recurrent(cell, state_size=H)
    plan = cello.explain(layer, torch.randn(5, 3, 3, dtype=torch.float64)).plans[0]
    assert plan.engine == "reference"
    assert reason in plan.reasons["native"][0]
    if "of the class" not in reason:  # which is set from anywhere
        assert "test_custom_functions.py:" in plan.reasons["native"][0]
    for frozen in ([], [cell.bias], list(cell.parameters())):
        for parameter in frozen:
            parameter.requires_grad_(False)
        for needs in (True, False):
            if not is_refused_by_torch(cell, needs):
                agree(cell, None, needs)


def is_refused_by_torch(cell: nn.Module, needs: bool) -> bool:
    """Whether a loop over the cell raises an error, forward or backward."""
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=needs)
    try:
        out = loop(cell, x, torch.zeros(x.shape[1], H, dtype=x.dtype))[-1]
        if out.requires_grad:
            out.sin().sum().backward()
    except (RuntimeError, TypeError):
        return True
    finally:
        cell.zero_grad()
    return False


@pytest.mark.parametrize(
    "name",
    [
        "a slope",
        "two arguments",
        "a weight in two",
        "saves its result",
        "a result without gradient, of the input",
        "a result without gradient, of a weight, read last",
    ],
)
def test_second_derivatives(name: str):
    torch.manual_seed(0)
    cell = Custom(COMPILED[name])
    layer = cello.Recurrent(cell, state_size=H)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert cello.explain(layer, x).plans[0].engine == "native"
    found = []
    for run in (
        lambda x: layer(x)[0][-1],
        lambda x: loop(cell, x, torch.zeros(x.shape[1], H, dtype=x.dtype))[-1],
    ):
        (first,) = torch.autograd.grad(run(x).sin().sum(), x, create_graph=True)
        wanted = [x, cell.matrix, cell.r.weight]
        second = torch.autograd.grad(first.cos().sum(), wanted, allow_unused=True)
        found.append((first, *second))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


SLOPE = 1.0


class Global(Function):
    factor = 0.5

    @staticmethod
    def forward(ctx, x):
        return SLOPE * x.sin()

    @staticmethod
    def backward(ctx, g):
        return SLOPE**2 * Global.factor * g


class Other(Function):
    @staticmethod
    def forward(ctx, x):
        return x.cos()

    @staticmethod
    def backward(ctx, g):
        return 3 * g


def change_number(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SLOPE", 2.0)


def change_attribute(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Global, "factor", 2.0)


def change_function(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cell.function = Other


def change_backward(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Global, "backward", Other.backward)


def change_forward(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Global, "forward", Other.forward)


@pytest.mark.parametrize(
    "change", [change_number, change_attribute, change_function, change_backward, change_forward]
)
@pytest.mark.parametrize("kind", ["state", "weight", "input"])
def test_changes_are_seen(kind: str, change: Any, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    apply = {
        "state": lambda c, x: c.function.apply(x),
        "weight": lambda c, x: x @ c.function.apply(c.matrix),
        "input": lambda c, x: x + c.function.apply(c.x) @ c.matrix[:3],
    }[kind]
    cell = Custom(apply)
    cell.function = Global
    for _ in range(2):
        agree(cell, None)
        change(cell, monkeypatch)
        agree(cell, None)
        monkeypatch.undo()
        cell.function = Global


def slope(alpha: float) -> Callable[[Tensor], Tensor]:
    """A class for each number, as some libraries make them."""

    class Sloped(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x > 0).to(x.dtype)

        @staticmethod
        def backward(ctx, g):
            return g / (1 + alpha * ctx.saved_tensors[0].abs()) ** 2

    return Sloped.apply


def test_a_class_for_each_cell():
    torch.manual_seed(0)
    cells = [Custom(lambda c, x: c.slope(x) + x @ c.slope(c.matrix)) for _ in range(3)]
    for cell, alpha in zip(cells, (1.0, 5.0, 1.0), strict=True):
        cell.slope = slope(alpha)
    for cell in cells * 2:
        layer = cello.Recurrent(cell, state_size=H)
        assert (
            cello.explain(layer, torch.randn(5, 3, 3, dtype=torch.float64)).plans[0].engine
            == "native"
        )
        agree(cell, None)


def test_layers_directions_and_segments():
    torch.manual_seed(0)
    layer = cello.Recurrent(lambda size: Wide(size), 3, num_layers=2, bidirectional=True)
    x = torch.randn(9, 3, 3, requires_grad=True)
    results = []
    for engine, segment in (("reference", None), ("native", None), ("native", 4)):
        with cello.engine(engine, segment=segment):
            out, h = layer(x, lengths=[9, 4, 7])
        results.append(
            [out, h, *torch.autograd.grad(out.sin().sum() + h.sum(), [x, *layer.parameters()])]
        )
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Wide(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.i, self.r = nn.Linear(size, H), nn.Linear(H, H)
        self.hidden_size = H

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return tanh(self.i(x) + self.r(h)) + 0.1 * arctangent(h)


def test_steps_and_inference():
    torch.manual_seed(0)
    cell = Custom(COMPILED["a slope"])
    layer = cello.Recurrent(cell, state_size=H)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        whole, _ = layer(x)
        state = None
        for t, row in enumerate(x):
            out, state = layer.step(row, state)
            torch.testing.assert_close(out, whole[t])
    torch.testing.assert_close(
        whole[-1], loop(cell, x, torch.zeros(x.shape[1], H, dtype=x.dtype))[-1]
    )
