"""Constants made in the step: of as many rows as the batch, as operands of products; of Python numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steps import Step, compare, loop, random
from torch import Tensor, nn

import cello

numpy_random = np.random.default_rng(0)

HELD = {"W": random(5, 5), "b": random(5, seed=1), "T": random(5, 5, 5) * 0.3}


def eyes(x: Tensor) -> Tensor:
    return torch.eye(5, dtype=x.dtype).expand(x.size(0), 5, 5)


CONSTANTS: dict[str, Callable[..., Tensor]] = {
    "zeros": lambda c, x, h: torch.zeros(x.size(0), 5, dtype=x.dtype) @ c.W.t() + h,
    "ones_like": lambda c, x, h: torch.ones_like(h) @ c.W + h,
    "new_zeros in linear": lambda c, x, h: F.linear(x.new_zeros(len(x), 5), c.W, c.b) * h,
    "new_ones in addmm": lambda c, x, h: torch.addmm(c.b, x.new_ones(x.size(0), 5), c.W) * h,
    "addmm to ones": lambda c, x, h: torch.addmm(torch.ones_like(h), h, c.W),
    "full": lambda c, x, h: torch.full((len(x), 5), 0.3, dtype=x.dtype) @ c.W * h,
    "a slice": lambda c, x, h: torch.ones_like(h)[:, 1:4] @ c.W[:3] * h,
    "a part of the operand": lambda c, x, h: (
        torch.cat([torch.zeros_like(h)[:, :2], h[:, 2:]], 1) @ c.W
    ),
    "a function of it": lambda c, x, h: torch.ones_like(h).cos() @ c.W * h,
    "behind the matrix": lambda c, x, h: (c.W @ torch.ones(5, len(x)).to(x)).t() * h,
    "times a vector": lambda c, x, h: (torch.ones_like(h) @ c.b)[:, None] * h,
    "in einsum": lambda c, x, h: torch.einsum("bi,oi->bo", torch.ones_like(h), c.W) * h,
    "in bilinear": lambda c, x, h: F.bilinear(torch.ones_like(h), h, c.T, c.b),
    "a matrix of ones": lambda c, x, h: h @ torch.ones(5, 5).to(x) + x,
    "a matrix of ones in front": lambda c, x, h: (torch.ones(5, 5).to(x) @ h.t()).t() * x,
    "ones times ones": lambda c, x, h: torch.ones_like(h) @ torch.ones(5, 5).to(x) + x,
    "a batch of ones": lambda c, x, h: (
        torch.bmm(h[:, None], torch.ones(len(x), 5, 5).to(x)).sum(1) * x
    ),
    "a batch of ones in front": lambda c, x, h: (
        torch.bmm(torch.ones(len(x), 2, 5).to(x), h[:, :, None]).sum(1) * x
    ),
    "eye in front": lambda c, x, h: torch.bmm(eyes(x), h[:, :, None])[:, :, 0] + x,
    "eye behind": lambda c, x, h: torch.bmm(h[:, None], eyes(x))[:, 0] + x,
    "eye times a matrix": lambda c, x, h: (eyes(x) @ c.W).sum(1) * h,
    "eye times matrices": lambda c, x, h: torch.bmm(eyes(x), c.W.expand(len(x), 5, 5)).sum(1) * h,
    "a parameter": lambda c, x, h: c.b.expand(len(x), 5) @ c.W * h,
    "a parameter behind": lambda c, x, h: (c.W @ c.b.expand(len(x), 5).t()).t() * h,
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant(name: str):
    function = CONSTANTS[name]
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [5], **HELD)
    compare(cell, random(4, 3, 5) * 0.4, (random(1, 3, 5, seed=1),))


NUMBERS = [0.5, -1.0, 2.0, 0.25, 3.0]
ARRAY = np.array(NUMBERS)
ORDER = [4, 2, 0, 1, 3]


def filled(x: Tensor, h: Tensor) -> Tensor:
    m = torch.tensor(NUMBERS, dtype=x.dtype)
    m[0] = 0.3
    m.mul_(0.5)
    return h * m + x


OF_NUMBERS: dict[str, Callable[..., Tensor]] = {
    "a list": lambda c, x, h: h * torch.tensor(NUMBERS, dtype=x.dtype) + x,
    "a matrix": lambda c, x, h: h @ torch.tensor([NUMBERS] * 5, dtype=x.dtype) * 0.1 + x,
    "single precision": lambda c, x, h: h * torch.tensor(NUMBERS) + x,
    "half precision": lambda c, x, h: h * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).half() + x,
    "integers": lambda c, x, h: h * torch.tensor([1, 2, -3, 0, 5]) + x,
    "truth values": lambda c, x, h: torch.where(
        torch.tensor([True, False, True, False, True]), h, x
    ),
    "an array": lambda c, x, h: h * torch.tensor(ARRAY) + x,
    "as_tensor": lambda c, x, h: h * torch.as_tensor(NUMBERS).to(x) + x,
    "new_tensor": lambda c, x, h: h * x.new_tensor(NUMBERS) + x,
    "a class": lambda c, x, h: h * torch.DoubleTensor(NUMBERS) + x,
    "a function of it": lambda c, x, h: h * torch.tensor(NUMBERS).softmax(0).to(x) + x,
    "signs of zeros": lambda c, x, h: (
        h.abs() * torch.tensor([-0.0, 0.0, 1, 2, 3]).reciprocal().clamp(-2, 2) + x
    ),
    "no number": lambda c, x, h: h * torch.tensor([float("nan"), 1, 2, 3, 4]).nan_to_num() + x,
    "written into": lambda c, x, h: filled(x, h),
    "features by a list": lambda c, x, h: h[:, ORDER] * 0.5 + x[:, [0, 0, 1, 2, 3]],
    "features by truth values": lambda c, x, h: (
        h[:, [True, False, True, True, False]].sum(1, keepdim=True) + x
    ),
    "features behind dots": lambda c, x, h: torch.cat([h[..., [3, 4]], x[..., [0, 1, 2]]], 1),
    "rows of a matrix by a list": lambda c, x, h: h @ c.W[[1, 0, 2, 4, 3]] + x,
    "features from the end": lambda c, x, h: h[:, [0, -1, 2, -2, -5]] * 0.5 + x,
    "features from the end by a tensor": lambda c, x, h: (
        h[..., torch.tensor([-1, 1, 0, 2, -3])] + x
    ),
    "one feature": lambda c, x, h: h * x[:, [2]] + c.b,
}


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_tensor_of_python_numbers(name: str):
    function = OF_NUMBERS[name]
    cell = Step(lambda c, x, h: [function(c, x, h)] * 2, [5], **HELD)
    compare(cell, random(4, 3, 5) * 0.4, (random(1, 3, 5, seed=1),))


def test_numbers_of_a_constant_may_change_between_calls():
    numbers, array, order = [1.0, 2.0, 3.0, 4.0], np.array([0.5, 1.0, 1.5, 2.0]), [3, 2, 1, 0]

    def step(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(h[:, order] * torch.tensor(numbers) + x * torch.tensor(array).float())

    layer, x = cello.Recurrent(step, state_size=4), torch.randn(5, 2, 4)
    for change in (lambda: None, lambda: numbers.reverse(), lambda: array.fill(0.1), order.sort):
        change()
        torch.testing.assert_close(layer(x)[0], loop(step, x, torch.zeros(2, 4)))
        assert cello.explain(layer, x).plans[0].engine == "native"


@pytest.mark.parametrize(
    "step",
    [
        lambda x, h: h * torch.tensor([len(x)] * 4) * 0.1 + x,
        lambda x, h: h * torch.tensor(x.shape).sum() * 0.1 + x,
        lambda x, h: h[list(range(len(x)))] * 0.5 + x,
        lambda x, h: h[[*range(1, len(x)), 0]] * 0.5 + x,
        lambda x, h: h[[0]] * 0.5 + x,
        lambda x, h: h * torch.tensor([numpy_random.random()] * 4) * 0 + x,
        lambda x, h: h * torch.tensor([2**60 + 1] * 4) * 1e-20 + x,
    ],
    ids=["length", "shape", "rows", "other rows", "first row", "random", "too large"],
)
def test_what_is_no_constant_runs_in_the_python_loop(step: Callable[[Tensor, Tensor], Tensor]):
    layer, x = cello.Recurrent(step, state_size=4), torch.randn(5, 3, 4)
    torch.testing.assert_close(layer(x)[0], loop(step, x, torch.zeros(3, 4)))
    assert cello.explain(layer, x).plans[0].engine == "reference"


def test_a_constant_in_exported_and_compiled_models():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.lin(h) * torch.tensor([1.0, 0.0, 1.0, 0.5]) + x[:, [3, 2, 1, 0]])

    layer, x = cello.Recurrent(Masked(), state_size=4), torch.randn(5, 2, 4)
    expected, _ = layer(x)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x)[0], expected)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], expected)


@pytest.mark.parametrize("zeros", [(0.0, -0.0), (-0.0, 0.0)])
def test_zeros_have_signs(zeros: tuple[float, float]):
    x = torch.randn(3, 2, 4)
    for zero in zeros:

        def step(x: Tensor, h: Tensor, zero: float = zero) -> Tensor:
            return torch.tanh(x + h) + torch.atan2(
                torch.tensor([zero] * 4), torch.tensor([-1.0] * 4)
            )

        layer = cello.Recurrent(step, state_size=4)
        torch.testing.assert_close(layer(x)[0], loop(step, x, torch.zeros(2, 4)))


class Shared(nn.Module):
    """Tensors and arrays with one memory."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.count, self.k = way, np.zeros(1), torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if self.way == "count":
            number = torch.from_numpy(self.count)
            number += 1
            return torch.tanh(x + h / number.float())
        numbers = self.k.numpy()
        factor = torch.from_numpy(numbers) if self.way == "numpy" else float(numbers.sum())
        return torch.tanh(x + h * factor)


@pytest.mark.parametrize("way", ["count", "numpy", "sum"])
def test_memory_that_is_shared_with_an_array(way: str):
    x = torch.randn(4, 2, 4)
    layer = cello.Recurrent(Shared(way), state_size=4)
    torch.testing.assert_close(layer(x)[0], loop(Shared(way), x, torch.zeros(2, 4)))
    assert cello.explain(layer, x).plans[0].engine == "reference"


def test_features_in_an_order_that_is_written_out_keep_infinities():
    def step(x: Tensor, h: Tensor) -> Tensor:
        holed = torch.where(x > 0.5, torch.inf, torch.where(x < -0.5, torch.nan, x + h))
        return holed[:, [1, 0, -1, 2, 1]][:, 1:].nan_to_num(3.0).clamp(-2, 2)

    layer, x = cello.Recurrent(step, state_size=4), torch.randn(5, 3, 4)
    assert cello.explain(layer, x).plans[0].engine == "native"
    found, _ = layer(x)
    with cello.engine("reference"):
        expected, _ = layer(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("places", [[0, 4], [0, -5]])
def test_places_outside_are_an_error(places: list[int]):
    layer = cello.Recurrent(lambda x, h: torch.tanh(x + h[:, places].sum(1, True)), state_size=4)
    with pytest.raises((IndexError, RuntimeError), match="bounds"):
        layer(torch.randn(5, 3, 4))
