"""Shapes: broadcasting, several feature axes, views, pieces, and a batch axis that moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from steps import Step, assert_close, compare, evaluate, loop, random

import cello


def every_other(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    y = x + h
    y[:, ::2] *= 2
    y[:, 1:5:3] = h[:, :2]
    square = y.view(-1, 2, 3).clone()
    square[:, :, 2::2] += 1
    return square.flatten(1) + y


class Layout(NamedTuple):
    """A step ``(cell, x, h) -> result``, which is the output and the new state.

    Attributes:
        function: it.
        held: the shapes of the parameters that it uses.
        size: of the state, and of the input, in the shape of one row.
    """

    function: Callable[..., Any]
    held: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    size: tuple[int, ...] = (6,)


LAYOUTS = {
    # broadcasting
    "a number held as a tensor": Layout(lambda c, x, h: h * c.a + x, {"a": ()}),
    "one for each unit": Layout(lambda c, x, h: torch.tanh(h * c.a + x), {"a": (6,)}),
    "one in a row": Layout(lambda c, x, h: h * c.a + x, {"a": (1,)}),
    "one in a row of a matrix": Layout(lambda c, x, h: h * c.a + x, {"a": (1, 6)}),
    "a column against a row": Layout(
        lambda c, x, h: (h[:, :, None] * c.a + x[:, None, :]).sum(-1), {"a": (6, 1)}
    ),
    "a product of all pairs": Layout(lambda c, x, h: (h[:, :, None] * x[:, None]).tanh().mean(2)),
    "weights of all pairs": Layout(
        lambda c, x, h: (h[:, :, None] * c.a * x[:, None, :]).amax(2), {"a": (6, 6)}
    ),
    "a parameter alone": Layout(lambda c, x, h: c.a.expand(len(x), -1) * 1.0 + 0 * h, {"a": (6,)}),
    "a parameter as it is": Layout(lambda c, x, h: c.a.expand(len(x), 6), {"a": (6,)}),
    "a constant": Layout(lambda c, x, h: torch.ones_like(h)),
    "a reduced row, spread": Layout(lambda c, x, h: h.sum(1, keepdim=True).expand(-1, 6) + x),
    "min of a parameter and rows": Layout(
        lambda c, x, h: torch.minimum(h, c.a) + torch.where(h > c.a, c.a, x), {"a": (6,)}
    ),
    "a bias for one slice": Layout(
        lambda c, x, h: torch.cat([h[:, :2] + c.a, h[:, 2:] * c.b], 1), {"a": (2,), "b": (4,)}
    ),
    "a slice of a parameter": Layout(lambda c, x, h: h * c.a[2:8] + x * c.a[::2][:6], {"a": (12,)}),
    "a parameter of two axes, summed": Layout(lambda c, x, h: h * c.a.sum(0) + x, {"a": (3, 6)}),
    "rows of a parameter": Layout(lambda c, x, h: h * c.a[0] + x * c.a[2] + c.a[-1], {"a": (3, 6)}),
    # slices
    "slices with steps": Layout(lambda c, x, h: torch.cat([h[:, ::2], x[:, 1::2]], 1) * h[:, :1]),
    "negative indices": Layout(lambda c, x, h: h[:, -1:] * x + h[:, -4:-1].sum(1)[:, None]),
    "single units": Layout(
        lambda c, x, h: torch.stack([h[:, k] * x[:, 5 - k] for k in range(6)], 1)
    ),
    "a unit by itself": Layout(lambda c, x, h: x + h.select(1, -2).unsqueeze(-1)),
    "ellipsis and None": Layout(lambda c, x, h: (h[..., None, :] + x[:, None, ...]).squeeze(1)),
    "overlapping slices": Layout(
        lambda c, x, h: h[:, :5].sum(1, True) * x + F.pad(h[:, 1:], (0, 1))
    ),
    "unfolded by hand": Layout(
        lambda c, x, h: torch.stack([F.pad(h, (1, 1))[:, k : k + 6] for k in range(3)]).sum(0) + x
    ),
    "two orders of one axis": Layout(
        lambda c, x, h: (
            h.view(-1, 2, 3).mT.reshape(-1, 6) * x.view(-1, 3, 2).mT.reshape(-1, 6) + c.a
        ),
        {"a": (6,)},
    ),
    "two orders of batch and features": Layout(
        lambda c, x, h: torch.where(
            (h.view(-1, 2, 3).mT.reshape(-1) > 0), x.view(-1, 3, 2).mT.reshape(-1), h.flatten()
        ).view(-1, 6)
    ),
    "split of uneven parts": Layout(
        lambda c, x, h: torch.cat([p.tanh() for p in h.split([1, 3, 2], 1)][::-1], 1) + x
    ),
    "chunks that do not fit": Layout(
        lambda c, x, h: torch.cat([p * p for p in h.chunk(4, 1)], 1) + x
    ),
    "unbind": Layout(lambda c, x, h: torch.stack(h.unbind(1)[::-1], dim=1) + x),
    "diagonals": Layout(
        lambda c, x, h: (
            h[:, :, None].mul(c.a).mul(x[:, None]).diagonal(dim1=1, dim2=2)
            + h.view(-1, 2, 3).diagonal(1, 1, 2).sum(1, True)
            + x.view(-1, 3, 2).diagonal(-1, -2, -1).sum(1, True)
        ),
        {"a": (6, 6)},
    ),
    "a diagonal of a parameter": Layout(lambda c, x, h: h * c.a.diagonal() + x, {"a": (6, 6)}),
    "sums over a diagonal": Layout(
        lambda c, x, h: torch.einsum("bii->bi", h[:, :, None] * x[:, None]) + h[:, :1]
    ),
    "rows as diagonals": Layout(
        lambda c, x, h: (
            (torch.diag_embed(h) * c.a).sum(1)
            + torch.diag_embed(h.view(-1, 2, 3), 1)[:, 1, 1].sum(1, True)
            + torch.diag_embed(x[:, :3], -2, 1, 2).sum(2)[:, 2:3]
        ),
        {"a": (6, 6)},
    ),
    "triangles": Layout(
        lambda c, x, h: (
            (h[:, :, None] * x[:, None]).tril().sum(1)
            + (h[:, :, None] * c.a).triu(1).sum(2)
            + (h.view(-1, 2, 3).tril(-1) + x.view(-1, 2, 3).triu(2)).flatten(1)
            + h.view(-1, 3, 2).tril(9).flatten(1) * x.view(-1, 3, 2).triu(9).flatten(1)
        ),
        {"a": (6, 6)},
    ),
    "windows": Layout(
        lambda c, x, h: (
            h.unfold(1, 3, 1).sum(2).repeat(1, 2)[:, :6] * x
            + x.unfold(1, 2, 2).flatten(1)
            + h.view(-1, 2, 3).unfold(-1, 2, 1).transpose(1, 2).flatten(1)[:, :6]
        )
    ),
    "turned squares": Layout(
        lambda c, x, h: (
            torch.cat([h.view(-1, 2, 3).rot90(k, (1, 2)).flatten(1)[:, :2] for k in (1, 2, 3)], 1)
            + x.view(-1, 3, 2).rot90(-1, (2, 1)).flatten(1)
        )
    ),
    "padding that takes away": Layout(
        lambda c, x, h: F.pad(F.pad(h, (2, 1)), (-1, -2)) * x + F.pad(h[:, :4], (-1, 3), value=0.5)
    ),
    "every other one, written": Layout(lambda c, x, h: every_other(x, h)),
    "tensor_split": Layout(lambda c, x, h: torch.cat(torch.tensor_split(h, 4, 1)[::-1], 1) * x),
    # pieces
    "cat of everything": Layout(
        lambda c, x, h: torch.cat(
            [x[:, :1], c.a.expand(len(x), 2), torch.zeros(len(x), 1).to(x), h[:, 4:] * 2], 1
        ),
        {"a": (2,)},
    ),
    "cat of a product and a sum": Layout(
        lambda c, x, h: torch.cat([(h @ c.W).tanh(), (h + x)[:, ::2]], 1), {"W": (6, 3)}
    ),
    "stack on every axis": Layout(
        lambda c, x, h: torch.stack([h, x], 0).sum(0) + torch.stack([h, x], 2).amax(2)
    ),
    "stack in front": Layout(lambda c, x, h: torch.stack([h, x.sin(), h * x]).mean(0)),
    "hstack and roll": Layout(lambda c, x, h: torch.hstack([x[:, :2], h.roll(1, 1)[:, 2:]])),
    "write a slice": Layout(lambda c, x, h: torch.slice_scatter(h, x[:, :2], 1, 3, 5)),
    "write a unit": Layout(lambda c, x, h: torch.select_scatter(h * 2, x[:, 0], 1, -1)),
    "a local tensor that is filled": Layout(
        lambda c, x, h: fill(torch.empty_like(h), h[:, :2] * x[:, :2], x[:, 2:])
    ),
    "repeat": Layout(lambda c, x, h: h * x[:, :2].repeat(1, 3)),
    "repeat_interleave by hand": Layout(
        lambda c, x, h: h * x[:, :2, None].expand(-1, 2, 3).reshape(-1, 6)
    ),
    "flip and roll": Layout(lambda c, x, h: h.flip(1) * x + x.roll(2, 1) * h.roll(-1, -1)),
    # several feature axes
    "heads": Layout(
        lambda c, x, h: (h.view(-1, 2, 3).softmax(-1) * x.view(-1, 2, 3)).reshape(-1, 6)
    ),
    "heads, swapped": Layout(
        lambda c, x, h: (h.view(-1, 2, 3).transpose(1, 2) * c.a).transpose(2, 1).reshape(-1, 6) + x,
        {"a": (3, 2)},
    ),
    "swapped for good": Layout(
        lambda c, x, h: h.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6) * 0.9 + x
    ),
    "reductions of several axes": Layout(
        lambda c, x, h: (
            x + h.view(-1, 2, 3).sum((1, 2))[:, None] + h.view(-1, 2, 3).mean(1).repeat(1, 2)
        )
    ),
    "three axes": Layout(
        lambda c, x, h: (h.view(-1, 1, 2, 3) * c.a * x.view(-1, 3, 2, 1)).sum((1, 3)).repeat(1, 3),
        {"a": (3, 1, 3)},
    ),
    "four axes": Layout(
        lambda c, x, h: (
            (h.view(-1, 2, 3, 1, 1) * x.view(-1, 1, 1, 2, 3) * c.a).sum((1, 4)).flatten(1)
        ),
        {"a": (2, 1, 2, 1)},
    ),
    "five axes": Layout(
        lambda c, x, h: (
            (
                h.view(-1, 2, 3)[:, :, None, :, None, None]
                * x.view(-1, 2, 3)[:, None, :, None, :, None]
                + c.a
            )
            .amax((2, 4, 5))
            .flatten(1)
        ),
        {"a": (2, 2, 3, 3, 2)},
    ),
    "a matrix as the state": Layout(
        lambda c, x, h: torch.bmm(h, h.transpose(1, 2)).tanh() @ x + h * c.a, {"a": (2, 1)}, (2, 3)
    ),
    "a matrix times a weight": Layout(lambda c, x, h: (h @ c.W).tanh() + x, {"W": (3, 3)}, (2, 3)),
    "a weight times a matrix": Layout(lambda c, x, h: (c.W @ h).tanh() + x, {"W": (2, 2)}, (2, 3)),
    "both sides": Layout(
        lambda c, x, h: (c.U @ h @ c.W + x).tanh(), {"U": (2, 2), "W": (3, 3)}, (2, 3)
    ),
    "outer product of the state": Layout(
        lambda c, x, h: h * 0.5 + torch.einsum("bi,bj->bij", x[:, :, 0], x[:, 0]), {}, (2, 3)
    ),
    "a linear layer over the last of three": Layout(
        lambda c, x, h: F.linear(h + x, c.W, c.b), {"W": (3, 3), "b": (3,)}, (2, 2, 3)
    ),
    "permuted": Layout(
        lambda c, x, h: (h.permute(0, 3, 1, 2) * c.a).permute(0, 2, 3, 1) + x,
        {"a": (3, 1, 1)},
        (2, 2, 3),
    ),
    "layer norm of two axes": Layout(
        lambda c, x, h: F.layer_norm(h + x, (2, 3), c.a, c.b), {"a": (2, 3), "b": (2, 3)}, (2, 3)
    ),
    "a slice of what was swapped": Layout(
        lambda c, x, h: (
            h.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)[:, 1:5].repeat(1, 2)[:, :6]
            * x.view(-1, 2, 3).transpose(1, 2).flatten(1).flip(1)
            + x.view(-1, 3, 2).transpose(1, 2).reshape(-1, 6)[:, 3:4]
        )
    ),
    # the batch elsewhere
    "a product of the input, the batch in the middle": Layout(
        lambda c, x, h: (
            torch.bmm(x.view(-1, 2, 3).transpose(0, 1), c.W).transpose(0, 1).reshape(-1, 6) @ c.U
            + (c.U @ x.t()).t() @ c.U
            + h
        ),
        {"W": (2, 3, 3), "U": (6, 6)},
    ),
    "batch last": Layout(lambda c, x, h: (c.W @ h.t() + x.t()).tanh().t(), {"W": (6, 6)}),
    "batch last, pointwise": Layout(
        lambda c, x, h: (h.t() * c.a[:, None] + x.t()).t(), {"a": (6,)}
    ),
    "batch in the middle": Layout(
        lambda c, x, h: (
            torch.bmm(h.view(-1, 2, 3).transpose(0, 1), c.W).transpose(0, 1).reshape(-1, 6) + x
        ),
        {"W": (2, 3, 3)},
    ),
    "merged with heads": Layout(
        lambda c, x, h: (h.reshape(-1, 3) @ c.W).tanh().view(-1, 6) + x, {"W": (3, 3)}
    ),
    "merged, the batch inside": Layout(
        lambda c, x, h: (
            (h.view(-1, 2, 3).transpose(0, 1).reshape(-1, 3) @ c.W)
            .view(2, -1, 3)
            .transpose(0, 1)
            .reshape(-1, 6)
            + x
        ),
        {"W": (3, 3)},
    ),
    "merged, pointwise": Layout(
        lambda c, x, h: (h.view(-1, 3) * c.a + x.view(-1, 3)).view(-1, 6), {"a": (3,)}
    ),
    "merged norm": Layout(lambda c, x, h: F.layer_norm(h.view(-1, 3), (3,)).view_as(x) + x),
    "stacked in front of the batch": Layout(
        lambda c, x, h: (torch.stack([h, x]) @ c.W).sum(0), {"W": (6, 6)}
    ),
    "concatenated matrices": Layout(
        lambda c, x, h: torch.cat([x, h], 1) @ torch.cat([c.U, c.W], 0),
        {"U": (6, 6), "W": (6, 6)},
    ),
    # matrices that lie in their parameter in other ways
    "every other column of a matrix": Layout(
        lambda c, x, h: (h @ c.W[:, ::2]).tanh() + x, {"W": (6, 12)}
    ),
    "every other row of a matrix": Layout(lambda c, x, h: h @ c.W[1::2] + x, {"W": (12, 6)}),
    "a matrix in front": Layout(lambda c, x, h: h @ c.W[1] + x @ c.W[0], {"W": (2, 6, 6)}),
    "a matrix behind": Layout(
        lambda c, x, h: h @ c.W[..., 0] + x @ c.W[..., 1].t(), {"W": (6, 6, 2)}
    ),
    "a matrix in the middle": Layout(lambda c, x, h: h @ c.W[:, 1] + x, {"W": (6, 2, 6)}),
    "a flipped matrix": Layout(lambda c, x, h: h @ c.W.flip(1) + x @ c.W.flip(0), {"W": (6, 6)}),
    "a matrix of equal columns": Layout(
        lambda c, x, h: h @ c.a[:, None].expand(6, 6) + x, {"a": (6,)}
    ),
    "interleaved gates": Layout(
        lambda c, x, h: (h @ c.W[:, 0::3]).tanh() * (x @ c.W[:, 1::3]).sigmoid() + h @ c.W[:, 2::3],
        {"W": (6, 18)},
    ),
    # attention
    "attention over a memory in the state": Layout(
        lambda c, x, h: (
            h * 0.5 + torch.softmax((h * (x[:, :1] @ c.W)).sum(-1, keepdim=True), 1) * x
        ),
        {"W": (3, 3)},
        (4, 3),
    ),
    "scaled_dot_product_attention": Layout(
        lambda c, x, h: F.scaled_dot_product_attention(h + x, x, h), {}, (2, 4, 3)
    ),
    "attention to what a mask leaves, and to nothing": Layout(
        lambda c, x, h: F.scaled_dot_product_attention(
            h + x, x, h, attn_mask=x[:, :, None, :, 0] > 0
        ),
        {},
        (2, 2, 3),
    ),
    # gradients
    "no_grad": Layout(lambda c, x, h: h * rate(h) + x),
    "detached in part": Layout(lambda c, x, h: torch.cat([h[:, :3].detach(), h[:, 3:]], 1) * x),
    "straight through": Layout(lambda c, x, h: h + (h.round() - h).detach() + x),
    "clamped in place": Layout(lambda c, x, h: (h * 2).clamp_(-1, 1) + (x + 1).mul_(h)),
    "the same value many times": Layout(lambda c, x, h: h * h * h + (h + h) * (x + x) - h),
    "x is the output": Layout(lambda c, x, h: x),
    "the state as it is": Layout(lambda c, x, h: h),
}


def fill(out, a, b):
    out[:, :2] = a
    out[:, 2:] = b
    return out


def rate(h):
    with torch.no_grad():
        return torch.sigmoid(h)


def cell_of(layout: Layout) -> cello.Cell:
    held = {key: random(*shape, seed=7) * 0.5 for key, shape in layout.held.items()}
    return Step(lambda c, x, h: [layout.function(c, x, h)] * 2, [layout.size], **held)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout(name: str):
    layout = LAYOUTS[name]
    x, h = random(3, 2, *layout.size) * 0.5, random(1, 2, *layout.size, seed=1) * 0.5
    compare(cell_of(layout), x, (h,), return_states=True)


def test_a_batch_of_one_is_not_mistaken_for_a_feature():
    for name in ("batch last", "merged with heads", "heads, swapped", "a matrix as the state"):
        layout = LAYOUTS[name]
        compare(cell_of(layout), random(2, 1, *layout.size), (random(1, 1, *layout.size, seed=1),))


@pytest.mark.parametrize("batch", [1009, 2018, 1013])
def test_the_size_of_the_batch_is_not_mistaken_for_that_of_the_trace(batch: int):
    """Sizes of the cell that are those of the traced batch, and batches that are."""
    for name in (
        "merged, the batch inside",
        "a constant",
        "repeat",
        "stacked in front of the batch",
    ):
        layout = LAYOUTS[name]
        compare(cell_of(layout), random(1, batch, *layout.size), (random(1, batch, *layout.size),))


def test_a_cell_as_wide_as_the_traced_batch():
    def function(c, x, h):
        out = torch.tanh(h * c.a + x[:, :1]) + torch.zeros(1009).to(h)
        return out, out

    compare(
        Step(function, [1009], a=random(1009)), random(2, 2, 2018), (random(1, 2, 1009, seed=1),)
    )


TWO_STATES: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "swapped": (lambda c, x, a, b: (a + x, b, a), [4, 4]),
    "one passes through": (lambda c, x, a, b: (a * b, a, b * x), [4, 4]),
    "one is overwritten": (lambda c, x, a, b: (a + b, x, a), [4, 4]),
    "both the same": (lambda c, x, a, b: (a - b, a * x, a * x), [4, 4]),
    "the output is a state": (lambda c, x, a, b: (b, b, (a * x).tanh()), [4, 4]),
    "the output is the new state": (lambda c, x, a, b: ((a + b).tanh(),) * 2 + (a * x,), [4, 4]),
    "a part of it is the output": (
        lambda c, x, a, b: (
            torch.cat([a, b], 1)[:, 3:6],
            b[:, :4] * x,
            torch.cat([b, a], 1)[:, 2:7],
        ),
        [4, 5],
    ),
    "widths that differ": (
        lambda c, x, a, b: (x, a + b.sum((1, 2))[:, None], b * a[:, :3, None]),
        [4, (3, 2)],
    ),
    "a counter": (lambda c, x, a, b: (a * b, torch.tanh(a + x / (1 + b)), b + 1), [4, 1]),
    "three": (lambda c, x, a, b, d: (a + d, b.tanh(), d * x, a - b), [4, 4, 4]),
}


@pytest.mark.parametrize("options", [{}, {"lengths": [3, 0, 1]}], ids=["padded", "lengths"])
@pytest.mark.parametrize("name", TWO_STATES)
def test_states(name: str, options: dict[str, Any]):
    function, sizes = TWO_STATES[name]
    shapes = [s if isinstance(s, tuple) else (s,) for s in sizes]
    state = [random(1, 3, *shape, seed=k) for k, shape in enumerate(shapes)]
    compare(Step(function, sizes), random(4, 3, 4), state, return_states=True, **options)


def test_writes_that_autograd_does_not_see():
    """Under no_grad a write in place changes a value and not its gradient."""

    def function(c, x, h):
        out = h * x
        with torch.no_grad():
            out.clamp_(-0.1, 0.1)
        return out, out

    cell, x, state = Step(function, [4]), random(3, 2, 4), (random(1, 2, 4, seed=1),)
    results = [evaluate(cello.Recurrent(cell), x, state, e) for e in (None, "reference")]
    assert_close(*results)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "mean over the batch": (lambda c, x, h: h - h.mean(0), "mixes the rows of a batch in mean"),
    "sum of all": (lambda c, x, h: h * x.sum(), "mixes the rows of a batch in sum"),
    "softmax over the batch": (lambda c, x, h: h.softmax(0) + x, "mixes the rows of a batch"),
    "rows times rows": (lambda c, x, h: (h @ h.t()) @ x, "test_layouts.py"),
    "flipped batch": (lambda c, x, h: h.flip(0) + x, "test_layouts.py"),
    "shifted batch": (lambda c, x, h: h.roll(1, 0) + x, "test_layouts.py"),
    "one row for all": (lambda c, x, h: h[:1] + x, "test_layouts.py"),
    "a row of zeros in front": (
        lambda c, x, h: torch.cat([torch.zeros_like(h[:1]), h[1:]]) + x,
        "test_layouts.py",
    ),
    "features as rows": (
        lambda c, x, h: h.t().reshape(-1, 4) + x,
        "keep the rows of a batch apart",
    ),
    "cumulative over the batch": (lambda c, x, h: h.cumsum(0) + x, "test_layouts.py"),
    "divided by the number of rows": (
        lambda c, x, h: (h + x) / len(x),
        "depends on the number of rows in the batch (test_layouts.py",
    ),
    "times the number of rows": (
        lambda c, x, h: (h * h.shape[0] + x).tanh(),
        "depends on the number of rows in the batch (test_layouts.py",
    ),
    "a constant of the number of rows": (
        lambda c, x, h: h + torch.full_like(x, x.size(0)),
        "depends on the number of rows in the batch (test_layouts.py",
    ),
    "clamped by the number of numbers": (
        lambda c, x, h: h + x.clamp(max=1 / x.numel()),
        "decides by the number of rows in the batch (test_layouts.py",
    ),
    "a mean over the batch by hand": (lambda c, x, h: h + x.sum(0) / len(x), "rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_rows_is_not_compiled(name: str):
    function, reason = REFUSED[name]
    layer = cello.Recurrent(Step(lambda c, x, h: [function(c, x, h)] * 2, [4]))
    x, h = random(2, 3, 4), (random(1, 3, 4, seed=1),)
    plan = cello.explain(layer, x, h).plans[0]
    assert plan.engine == "reference"
    assert reason in plan.reasons["native"][0]
    assert "test_layouts.py:" in plan.reasons["native"][0]


NONE = torch.zeros(6, dtype=torch.bool)

EMPTY = {
    "nothing chosen": lambda x, h: torch.tanh(x + h) + h[:, NONE].sum(1, keepdim=True),
    "an empty index": lambda x, h: torch.tanh(x + h) + h[:, NONE.nonzero()[:, 0]].sum(1, True),
    "zeros without width": lambda x, h: torch.cat([torch.tanh(x + h), x.new_zeros(len(x), 0)], 1),
    "bits": lambda x, h: torch.tanh(x.view(torch.int32).view(torch.float32) + h),
}


@pytest.mark.parametrize("name", EMPTY)
def test_tensors_without_numbers_run_in_the_loop(name: str):
    step, x = EMPTY[name], torch.randn(4, 3, 6)
    layer = cello.Recurrent(step, state_size=6)
    torch.testing.assert_close(layer(x)[0], loop(step, x, torch.zeros(3, 6)))
    reasons = cello.explain(layer, x).plans[0].reasons["native"]
    assert "fault" not in reasons[0]
    assert "test_layouts.py:" in reasons[0]
