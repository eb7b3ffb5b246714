"""The Triton engine in Triton's interpreter: values and every gradient against the Python loop."""

from __future__ import annotations

from typing import Any

import complex_cells
import convolution_cells
import order_cells
import pytest
import random_cells
import random_runs
import torch
from cases import exact_derivatives
from samples import COMPILED, FORMS, LAYERS, Sample, seed_of
from steps import Step, assert_close, assert_close_to_double, evaluate, random
from torch import Tensor, nn

import cello
from cello.engines.triton import Triton, kernel
from cello.engines.triton.library import is_interpreted

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")
pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("default_dtype"),
]


@pytest.mark.parametrize("name", COMPILED)
def test_a_cell(name: str):
    form = FORMS["padded" if seed_of(name) % 2 else "lengths"]
    sample = Sample(name, 4, 6, torch.float64)
    with exact_derivatives():
        expected = sample.run("reference", **form)
    assert_close(sample.run(Triton(), **form), expected, 1e-10)


@pytest.mark.parametrize("name", convolution_cells.CELLS | convolution_cells.PLACES)
def test_places(name: str):
    case = (convolution_cells.CELLS | convolution_cells.PLACES)[name]
    convolution_cells.assert_like_the_loop(convolution_cells.layer_of(case), case, 3, Triton())


@pytest.mark.parametrize("name", order_cells.STEPS)
def test_numbers_in_order(name: str):
    torch.manual_seed(0)
    layer = cello.Recurrent(order_cells.Holder(order_cells.STEPS[name]), state_size=order_cells.H)
    x = random(3, 3, order_cells.H)
    found, expected = (evaluate(layer, x, (), engine) for engine in (Triton(), "reference"))
    assert_close(found, expected, 1e-10)


@pytest.mark.parametrize("name", ["lru", "unitary", "resonator", "arithmetic", "sqrt", "tanh"])
def test_complex_numbers(name: str):
    torch.manual_seed(0)
    layer = cello.Recurrent(complex_cells.Holder(complex_cells.STEPS[name]), state_size=4)
    x, found = random(3, 3, complex_cells.F).requires_grad_(), []
    for engine in (Triton(), "reference"):
        with cello.engine(engine):
            output, end = layer(x)
        loss = output.abs().sum() + end.abs().sum()
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()], allow_unused=True)
        found.append([output, end, *(g for g in gradients if g is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [*FORMS.values(), {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), random(4, 4, 5)
    found, expected = (evaluate(layer, x, (), e, **options) for e in (Triton(), "reference"))
    assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1)], ids=str)
def test_a_weight_whose_numbers_a_matrix_repeats(shape: tuple[int, int]):
    step = Step(lambda c, x, h: [torch.tanh(x + h @ c.w.expand(5, 5))] * 2, [5], w=random(*shape))
    layer, x = cello.Recurrent(step), random(4, 3, 5)
    found, expected = (evaluate(layer, x, (), e) for e in (Triton(), "reference"))
    assert_close(found, expected)


def test_a_repeated_weight_whose_backward_runs_under_autocast():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 1))
    layer = cello.Recurrent(lambda x, h: torch.tanh(x + h @ weight.expand(5, 5)), state_size=5)
    x, found = torch.randn(40, 8, 5), []
    for is_autocast in (False, True):
        with cello.engine(Triton()):
            output, _ = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            found.append(torch.autograd.grad(output.sum(), weight))
    torch.testing.assert_close(*found)


def test_single_numbers_of_a_weight():
    weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
    layer = cello.Recurrent(
        lambda x, h: torch.tanh(x + weight[1, 2] * h + weight[3, 3]), state_size=4
    )
    x = random(3, 2, 4)
    found, expected = (evaluate(layer, x, (), e) for e in (Triton(), "reference"))
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype):
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(5, 20, dtype=dtype), random(6, 4, 5).to(dtype)
    assert_close_to_double(layer, x, Triton())


def test_more_than_a_tile_of_everything():
    """Rows of several programs, and products and states wider than what is computed at a time."""
    torch.manual_seed(0)
    layer, x = cello.nn.GRU(70, 90), random(3, 37, 70)
    lengths = torch.randint(0, 4, (37,)).tolist()
    found, expected = (evaluate(layer, x, (), e, lengths=lengths) for e in (Triton(), "reference"))
    assert_close(found, expected)


class Spiking(nn.Module):
    """Every number of the state depends on itself alone; the width is no multiple of a tile."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(5, 70)
        self.beta = nn.Parameter(torch.rand(70))

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.input(x)
        spike = torch.sigmoid(4 * (v - 1))
        return spike, v - spike


def test_units_that_do_not_meet():
    torch.manual_seed(0)
    layer, x = cello.Recurrent(Spiking(), state_size=70), random(6, 9, 5)
    lengths, state = [6, 3, 1, 5, 0, 6, 2, 4, 3], [random(1, 9, 70)]
    runs = [
        evaluate(layer, x, state, e, lambda parts: parts[0], lengths=lengths)
        for e in (Triton(), "reference")
    ]
    assert_close(*runs)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each launch, the directions that it runs."""
    found: list[int] = []
    launch = kernel._launch
    monkeypatch.setattr(kernel, "_launch", lambda ready: (found.append(len(ready)), launch(ready)))
    return found


@pytest.mark.parametrize("lengths", [None, [6, 0, 3]], ids=["dense", "lengths"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: cello.nn.LSTM(5, 20, num_layers=2, bidirectional=True),
        lambda: cello.Recurrent(lambda _: Spiking(), 5, state_size=70, bidirectional=True),
    ],
    ids=["rows", "units"],
)
def test_both_directions_are_one_launch(make: Any, lengths: Any, ways: list[int]):
    torch.manual_seed(0)
    layer, x = make(), random(6, 3, 5)
    runs = [evaluate(layer, x, (), e, lengths=lengths) for e in (Triton(), "reference")]
    assert_close(*runs)
    assert ways == [2] * (2 * layer.num_layers)  # forward and backward


def test_directions_that_are_not_the_same_kernel_run_in_turn(ways: list[int]):
    """Only one has gradients of its output, or other columns of weights that learn."""
    torch.manual_seed(0)
    layer, x = cello.nn.GRU(5, 4, bidirectional=True), random(6, 3, 5).requires_grad_()
    layer.weight_hh_l0_reverse.requires_grad_(False)
    weights = [p for p in layer.parameters() if p.requires_grad]
    found = []
    for engine in (Triton(), "reference"):
        with cello.engine(engine):
            outputs, final = layer(x)
            loss = outputs[..., :4].sin().sum() + final[1].sin().sum()
            found.append(torch.autograd.grad(loss, [x, *weights], allow_unused=True))
    torch.testing.assert_close(*found)
    assert ways == [2, 1, 1]


@pytest.mark.parametrize("seed", range(12))
def test_random_cells(seed: int):
    drawn = random_cells.draw(seed)
    if random_runs.nearest_kink(drawn) > 1e-9:
        found, expected = (
            random_runs.run(drawn, e, torch.float64) for e in (Triton(), "reference")
        )
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, equal_nan=True)


def test_gradients_that_are_zero():
    """Of a loss of the final state alone, and of the output alone."""
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(5, 4), random(6, 3, 5).requires_grad_()
    for loss in (lambda out: out[1][1].sin().sum(), lambda out: out[0].sin().sum()):
        found = []
        for engine in (Triton(), "reference"):
            with cello.engine(engine):
                found.append(torch.autograd.grad(loss(layer(x)), [x, *layer.parameters()]))
        torch.testing.assert_close(*found)


def test_second_derivatives():
    layer, x = cello.nn.GRU(3, 4), random(4, 2, 3).requires_grad_()
    found = []
    for engine in (Triton(), "reference"):
        with cello.engine(engine):
            (first,) = torch.autograd.grad(layer(x)[0].sin().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*found)


def test_another_batch_runs_the_same_kernel():
    layer = cello.nn.LSTM(3, 4)
    with cello.engine(Triton()):
        layer(random(4, 2, 3))
        before = kernel.compiled.cache_info().misses
        layer(random(9, 20, 3))
        layer(random(5, 3, 3), lengths=[1, 5, 2])
    assert kernel.compiled.cache_info().misses == before
