"""Operations without numbers, held to the operations with numbers and to torch's own rules."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cello.foreign.memoryless import Memoryless, NeedsNumbersError, without_memory


def a(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


CALLS = {
    "mm": lambda: a(3, 4) @ a(4, 5),
    "addmm": lambda: torch.addmm(a(5), a(3, 4), a(4, 5), beta=2),
    "linear": lambda: F.linear(a(3, 4), a(5, 4), a(5)),
    "mv": lambda: a(3, 4) @ a(4),
    "bmm": lambda: torch.bmm(a(2, 3, 4), a(2, 4, 5)),
    "baddbmm": lambda: torch.baddbmm(a(1, 3, 5), a(2, 3, 4), a(2, 4, 5)),
    "broadcast": lambda: a(3, 1, 4) + a(2, 1),
    "a number in float64": lambda: a(3, 4) * torch.tensor(2.0, dtype=torch.float64),
    "promoted": lambda: a(3, 4) * a(3, 4, dtype=torch.float64),
    "integers": lambda: a(3, dtype=torch.int64) / a(3, dtype=torch.int64),
    "comparison": lambda: a(3, 4) > 0,
    "in place": lambda: a(3, 4).add_(a(4)),
    "into": lambda: torch.add(a(3, 4), a(4), out=torch.empty(0)),
    "where": lambda: torch.where(a(3, 1) > 0, a(4), 0.0),
    "clamp": lambda: a(3, 4).clamp(min=a(4)),
    "cat": lambda: torch.cat([a(3, 4), a(3, 2)], -1),
    "stack": lambda: torch.stack([a(3, 4), a(3, 4)], 1),
    "chunk": lambda: a(3, 8).chunk(4, -1)[1],
    "layer norm": lambda: F.layer_norm(a(3, 4), [4], a(4), a(4)),
    "softmax": lambda: a(3, 4).softmax(-1),
    "mean": lambda: a(3, 4).mean(-1, keepdim=True),
    "maximum of rows": lambda: a(3, 4).max(-1).indices,
    "std": lambda: a(3, 4).std(-1),
    "embedding": lambda: F.embedding(a(3, dtype=torch.int64), a(5, 4)),
    "zeros_like": lambda: torch.zeros_like(a(3, 4), dtype=torch.int32),
    "new_zeros": lambda: a(3, 4).new_zeros(3, 2),
    "half": lambda: a(3, 4).bfloat16().float(),
    "view": lambda: a(3, 4).t().reshape(2, 6)[:, 1:4],
}

WRONG = {
    "product": lambda: a(3, 4) @ a(5, 6),
    "product of dtypes": lambda: a(3, 4) @ a(4, 5, dtype=torch.float64),
    "product of axes": lambda: torch.mm(a(3, 4), a(4)),
    "bias": lambda: F.linear(a(3, 4), a(5, 4), a(6)),
    "batches": lambda: torch.bmm(a(2, 3, 4), a(3, 4, 5)),
    "vector": lambda: torch.mv(a(3, 4), a(3)),
    "sum": lambda: a(3, 4) + a(3, 5),
    "sum in place": lambda: a(4).add_(a(3, 4)),
    "sum of another kind in place": lambda: a(4, dtype=torch.int64).add_(a(4)),
    "joined": lambda: torch.cat([a(3, 4), a(2, 4)], -1),
    "norm": lambda: F.layer_norm(a(3, 4), [5]),
    "axis": lambda: a(3, 4).sum(2),
    "bits": lambda: a(3) & a(3),
    "written at numbers": lambda: a(3, 4).index_put((a(2),), a(2, 4)),
    "added at numbers": lambda: a(3, 4).index_add(0, a(2), a(2, 4)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_shapes_and_dtypes_are_those_of_the_operation(call):
    expected = call()
    with Memoryless():
        found = call()
    assert found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_torch_refuses_is_refused_in_the_same_way(call):
    with pytest.raises((RuntimeError, IndexError)) as expected:
        call()
    with Memoryless(), pytest.raises(type(expected.value)) as found:
        call()
    # The shapes that do not fit are named.
    numbers = [n for n in "3456" if n in str(expected.value)]
    assert all(n in str(found.value) for n in numbers)


def test_large_tensors_have_no_numbers(monkeypatch: pytest.MonkeyPatch):
    """A step of image features would take gigabytes, and seconds to write them, for nothing."""
    made: list[int] = []
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda size, *_, **k: made.append(size) or full((), 0, **k))
    big = torch.empty(1009, 64, 64, 64, device="meta")
    with Memoryless():
        joined = torch.cat([big, big], 1).softmax(1)
    assert joined.shape == (1009, 128, 64, 64)
    assert made == []


def test_gradients_have_shapes_too():
    x = without_memory(a(3, 4)).requires_grad_()
    norm, linear = nn.LayerNorm(5).to("meta"), nn.Linear(4, 5).to("meta")
    with Memoryless():
        y = torch.tanh(norm(linear(x))).softmax(-1)
        (gradient,) = torch.autograd.grad(y, [x], torch.ones_like(y))
    assert gradient.shape == x.shape


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ],
)
def test_numbers_cannot_be_had(call):
    with Memoryless(), pytest.raises(NeedsNumbersError):
        call(without_memory(a(3, 4)))


FIRST_CALLS = """
import sys
import torch
import cello

class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_size = 5
        self.x, self.h, self.norm = torch.nn.Linear(3, 10), torch.nn.Linear(5, 10), torch.nn.LayerNorm(10)

    def forward(self, x, state):
        h, c = state
        gate, value = self.norm(self.x(x) + self.h(h)).chunk(2, dim=-1)
        c = torch.lerp(c, torch.tanh(value), torch.sigmoid(gate))
        return torch.cat([c, h], -1)[:, :5].softmax(-1), c

for layer in (cello.nn.LSTM(3, 5), cello.nn.GRU(3, 5), cello.Recurrent(Cell())):
    x = torch.randn(4, 2, 3, requires_grad=True)
    layer(x)[0].sum().backward()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


BRANCH = """
import torch, cello
class Cell(torch.nn.RNNCell):
    def forward(self, x, h):
        branches = (lambda h: h.tanh(), lambda h: h.sin())
        return torch.cond(h.sum() > 0, *branches, (super().forward(x, h),))
cell, x = Cell(3, 4), torch.randn(6, 2, 3)
out = cello.Recurrent(cell, state_size=4)(x)[0]
h = torch.zeros(2, 4)
for step in x:
    h = cell(step, h)
torch.testing.assert_close(out[-1], h)
"""


def test_torch_cond():
    """It imports the compiler in the trial of the cell, and compiles its branches there."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", BRANCH], check=True)


def test_a_first_call_does_not_import_torchs_compiler():
    """It takes a second and more, in which nothing seems to happen."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
