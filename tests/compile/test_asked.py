"""What a step asks of the batch and of its tensors: answered as in a call, or the cell is not compiled."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from steps import loop
from torch import Tensor, nn
from torch.nn import functional

import cello

F, H = 3, 4
Answer = Callable[[Tensor, Tensor], object]


class Asks(nn.Module):
    """A cell that computes one of two things, as an answer says."""

    def __init__(self, ask: Answer):
        super().__init__()
        self.i, self.r, self.ask = nn.Linear(F, H), nn.Linear(H, H), ask

    def forward(self, x, h):
        z = self.i(x) + self.r(h)
        return torch.tanh(z) if self.ask(x, h) else torch.sin(z)


def caught(x: Tensor, h: Tensor) -> bool:
    try:
        return x.size(0) > 2
    except Exception:
        return False


def caught_value(x: Tensor, h: Tensor) -> bool:
    try:
        return h.sum().item() > 0.5
    except Exception:
        return False


DECIDED = {
    "one row": lambda x, h: x.shape[0] == 1,
    "few rows": lambda x, h: x.size(0) < 5,
    "many rows": lambda x, h: x.shape[0] > 1100,
    "len": lambda x, h: len(x) == 1,
    "len of two": lambda x, h: len(h) < 3,
    "twice the length": lambda x, h: len(x) * 2 == 24,
    "a length in a set": lambda x, h: len(x) in {12},
    "a length squared": lambda x, h: len(x) ** 2 == 144,
    "bits of a length": lambda x, h: len(x).bit_length() == 11,
    "a length by its method": lambda x, h: x.__len__() - 2 == 10,
    "numel": lambda x, h: x.numel() > 9,
    "bytes": lambda x, h: x.nbytes > 36,
    "numel of the shape": lambda x, h: x.shape.numel() > 9,
    "parity": lambda x, h: x.size(0) % 2,
    "half and half": lambda x, h: x.size(0) // 2 * 2 == x.size(0),
    "a bit": lambda x, h: x.size(0) & 1,
    "among numbers": lambda x, h: x.size(0) in (2, 3),
    "in a set": lambda x, h: x.size(0) in {2, 3},
    "the smaller": lambda x, h: min(x.size(0), 3) == 3,
    "a float": lambda x, h: float(x.size(0)) > 2,
    "an int": lambda x, h: int(x.size(0)) > 2,
    "a quotient": lambda x, h: x.size(0) / 2 > 1,
    "in words": lambda x, h: f"{x.size(0)}" == "3",
    "bits": lambda x, h: x.size(0).bit_length() > 1,
    "stride": lambda x, h: x.t().contiguous().stride(0) > 2,
    "a list": lambda x, h: list(x.shape) == [3, F],
    "caught": caught,
    "a value, caught": caught_value,
    "class of a tensor": lambda x, h: x.type() == "torch.FloatTensor",
    "offset": lambda x, h: x.storage_offset() == 0,
    "version": lambda x, h: x._version == 0,
    "a leaf": lambda x, h: h.is_leaf,
    "text": lambda x, h: "meta" in repr(x),
    "modes": lambda x, h: torch._C._len_torch_dispatch_stack() > 0,
    "transforms": lambda x, h: torch._C._functorch.peek_interpreter_stack() is None,
    "precision": lambda x, h: torch.get_float32_matmul_precision() == "highest",
}  # fmt: skip
"""Questions of which the answer differs from batch to batch, or between a trace and a call."""

LEN = len
TABLE = torch.linspace(0.5, 1.5, 12).view(4, 3)
LEAKING = {
    "text": lambda x, h: str(x.shape) == "torch.Size([12, 3])",
    "another name": lambda x, h: LEN(x) * 2 == 24,
    "a hint": lambda x, h: operator.length_hint(x) ** 2 == 144,
    "an index": lambda x, h: operator.index(x.size(0)) ** 2 == 144,
    "a range": lambda x, h: len(range(x.size(0))) * 2 == 24,
    "an array": lambda x, h: np.zeros(x.shape[0]).nbytes == 96,
    "a root": lambda x, h: math.isqrt(x.shape[0]) ** 2 == 9 and x.shape[0] != 3,
    "a float": lambda x, h: 0.5 * len(x) == 6.0,
    "in a list": lambda x, h: len([0] * len(x)) * 2 == 24,
    "a part of a list": lambda x, h: sum([1, 1, 1, 0][: operator.index(len(x))]) == 2,
    "a part of a table": lambda x, h: len(TABLE[: len(x)]) == 2,
    "a part of the features": lambda x, h: x[:, : len(x)].shape[1] == 2,
    "below": lambda x, h: torch.ops.aten.sym_size.int(x, 0) * 2 == 24,
    "layout": lambda x, h: x.T.is_contiguous(),
    "squeezed": lambda x, h: x.squeeze().dim() == 1,
    "squeezed along rows": lambda x, h: h.squeeze(0).dim() == 1,
    "an order": lambda x, h: x.T.dim_order() == (0, 1),
    "pairs": lambda x, h: x.new_zeros(len(x), len(x)).numel() == x.repeat(1, 4).numel(),
}  # fmt: skip
"""Questions of which the answer gets past Cello's numbers."""

ANSWERED = {
    "equal rows": lambda x, h: x.shape[0] == h.shape[0],
    "a shape": lambda x, h: h.shape == (x.shape[0], H),
    "features": lambda x, h: x.size(-1) == F and x.shape[1] < H,
    "unpacked": lambda x, h: x.new_zeros(*x.shape).view(x.size(0) * F).dim() == 1,
    "made for the rows": lambda x, h: torch.ones(x.size(0), H).ndim == 2,
    "made for the length": lambda x, h: torch.ones(len(x), H).ndim == 2,
    "any rows": lambda x, h: len(x) > 0 and x.size(0) >= 1,
    "no rows": lambda x, h: not len(x) or x.shape[0] == 0 or x.numel() < 1,
    "repeated": lambda x, h: torch.ones(1, H).repeat(x.size(0), 1).ndim == 2,
    "device": lambda x, h: x.device.type == "cpu" and x.is_cpu and not x.is_meta,
    "dtype": lambda x, h: x.dtype == torch.float32 and x.is_floating_point(),
    "class": lambda x, h: type(x) is Tensor,
    "contiguous": lambda x, h: x.is_contiguous(),
}  # fmt: skip
"""Questions of which the answer is the same in every batch."""


class Takes(Asks):
    """A cell that takes one tensor or another one, as an answer says."""

    def __init__(self, ask: Answer):
        super().__init__(ask)
        self.other, self.lists = nn.Linear(F, H), [torch.randn(H), torch.randn(H)]

    def forward(self, x, h):
        z = self.i(x) + self.r(h)
        if self.ask(x, h):
            return torch.tanh(self.other(x) + z + self.lists[0])
        return torch.tanh(self.i(x) + z + self.lists[1])


class Returns(Asks):
    """A cell that returns one tensor or another one, as an answer says."""

    def forward(self, x, h):
        z = self.i(x) + self.r(h)
        first, second = torch.tanh(z), torch.sin(z)
        return first if self.ask(x, h) else second


def compare(ask: Answer, kind: type[Asks] = Asks) -> set[str]:
    """Compare a layer with a loop over its cell on batches of several sizes; return its engines."""
    torch.manual_seed(0)
    cell, engines = kind(ask), set()
    layer = cello.Recurrent(cell, state_size=H)
    for rows in (3, 1, 2, 6, 12, 1200):
        x = torch.randn(2, rows, F)
        torch.testing.assert_close(layer(x)[0], loop(cell, x, torch.zeros(rows, H)))
        engines.add(cello.explain(layer, x).plans[0].engine)
    return engines


@pytest.mark.parametrize("name", DECIDED)
def test_what_a_trace_cannot_know_is_left_to_the_loop(name: str):
    assert compare(DECIDED[name]) == {"reference"}


@pytest.mark.parametrize("kind", [Asks, Takes, Returns])
@pytest.mark.parametrize("name", LEAKING)
def test_a_step_is_traced_for_each_number_of_rows_that_it_may_ask_for(name: str, kind: type[Asks]):
    assert "reference" in compare(LEAKING[name], kind)


def test_autocast_is_off_in_a_program_that_asks_for_it():
    torch.manual_seed(0)
    cell = Asks(lambda x, h: torch.is_autocast_enabled("cpu"))
    layer, x = cello.Recurrent(cell, state_size=H), torch.randn(2, 3, F)
    assert cello.explain(layer, x).plans[0].engine == "native"
    off = layer(x)[0]
    torch.testing.assert_close(off, loop(cell, x, torch.zeros(3, H)))
    with torch.autocast("cpu", torch.bfloat16):
        assert cello.explain(layer, x).plans[0].engine == "reference"
        expected = loop(cell, x, torch.zeros(3, H))
        torch.testing.assert_close(layer(x)[0], expected, check_dtype=False)
    assert not torch.allclose(off, expected.float(), atol=0.05)
    assert torch.equal(layer(x)[0], off)


WHOLE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "prelu": lambda c, x: functional.prelu(x, c.weight[0]),
    "attention": lambda c, x: functional.scaled_dot_product_attention(*[x[:, None]] * 3)[:, 0],
    "a vector": lambda c, x: (x @ c.weight[0])[:, None],
    "dot products": lambda c, x: torch.linalg.vecdot(x, x)[:, None],
    "mse_loss": lambda c, x: functional.mse_loss(c(x), 2 * c(x), reduction="none"),
    "cross_entropy": lambda c, x: functional.cross_entropy(
        c(x), c(x).softmax(-1), reduction="none"
    )[:, None],
    "a border": lambda c, x: functional.pad(c(x)[:, None], (1, 1), mode="reflect")[:, 0],
    "averages": lambda c, x: functional.avg_pool3d(c(x).view(-1, 1, 1, 2, 2), (1, 2, 2)).flatten(1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_autocast_casts_above_the_dispatcher(name: str):
    """It knows these functions as they are called, not what they are made of."""
    torch.manual_seed(0)
    weights = nn.Linear(4, 4)
    layer, x = (
        cello.Recurrent(lambda x, h: (WHOLE[name](weights, x), h), state_size=4),
        torch.randn(3, 2, 4),
    )
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = layer(x)
        expected = torch.stack([WHOLE[name](weights, row) for row in x])
    torch.testing.assert_close(found, expected)


class Wide(nn.Module):
    """Its width is larger than the numbers of rows that a step is traced with first."""

    def __init__(self):
        super().__init__()
        self.hidden = 1024
        self.i = nn.Linear(F, self.hidden)

    def forward(self, x, h):
        h = h.view(h.size(0), 4, h.size(1) // 4).mean(1).repeat(1, 4)
        return torch.tanh(self.i(x) + 0.5 * h + x.new_zeros(x.size(0), self.hidden))


def test_a_width_like_a_number_of_rows():
    layer, x = cello.Recurrent(Wide(), state_size=1024), torch.randn(2, 3, F)
    assert cello.explain(layer, x).plans[0].engine == "native"


@pytest.mark.parametrize("name", LEAKING)
def test_so_it_is_where_sequences_end(name: str):
    torch.manual_seed(0)
    cell = Asks(LEAKING[name])
    layer, x = cello.Recurrent(cell, state_size=H), torch.randn(5, 12, F)
    for lengths in ([5] * 5 + [4] * 7, [5, 5, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1], [5] + [2] * 11):
        h, outputs = torch.zeros(12, H), []
        for t, row in enumerate(x):
            rows = sum(t < length for length in lengths)
            h = torch.cat([cell(row[:rows], h[:rows]), h[rows:]])
            outputs.append(torch.cat([h[:rows], torch.zeros(12 - rows, H)]))
        torch.testing.assert_close(layer(x, lengths=lengths)[0], torch.stack(outputs))


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_the_same_in_every_batch_compiles(name: str):
    assert compare(ANSWERED[name]) == {"native"}


def scaled(x: Tensor, h: Tensor) -> Tensor:
    return h + torch.full((H,), float(x.shape[1])) * x.sum(1, keepdim=True)


def by_rows(x: Tensor, h: Tensor) -> Tensor:
    return h + torch.full((H,), x.shape[0]) * x.sum(1, keepdim=True)


def by_new_rows(x: Tensor, h: Tensor) -> Tensor:
    return h + x.new_full((H,), x.shape[0]) * x.sum(1, keepdim=True)


@pytest.mark.parametrize("cell", [scaled, by_rows, by_new_rows], ids=lambda cell: cell.__name__)
def test_the_number_of_rows_as_a_value(cell: Callable[..., Tensor]):
    layer = cello.Recurrent(cell, state_size=H)
    for rows in (2, 5):
        x = torch.randn(1, rows, F)
        torch.testing.assert_close(layer(x)[0][0], cell(x[0], torch.zeros(rows, H)))
    is_compiled = cello.explain(layer, x).plans[0].engine == "native"
    assert is_compiled == (cell is scaled)


class Seeds(nn.Module):
    """A cell that changes torch's state, or a region of it, in its step."""

    def __init__(self, change: Callable[[], object]):
        super().__init__()
        self.i, self.r, self.change = nn.Linear(F, H), nn.Linear(H, H), change

    def forward(self, x, h):
        with self.change() or torch.enable_grad():
            return torch.tanh(self.i(x) + self.r(h) + 0.1 * torch.rand(len(x), H))


def seed() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize(
    "change",
    [
        seed,
        lambda: torch.random.fork_rng(devices=[]),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.set_default_dtype(torch.float32),
    ],
    ids=["seed", "fork", "autocast", "default dtype"],
)
@pytest.mark.parametrize("compiler", [False, True], ids=["", "with torch's compiler"])
def test_what_a_step_changes_in_torch_is_seen(change: Callable[[], object], compiler: bool):
    if compiler:
        importlib.import_module("torch._dynamo")  # it wraps some of torch's functions
    cell = Seeds(change)
    layer, x = cello.Recurrent(cell, state_size=H), torch.randn(3, 5, F)
    assert cello.explain(layer, x).plans[0].engine == "reference"
