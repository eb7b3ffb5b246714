"""Products in bfloat16: as accurate as torch's, and as little disturbed as those in float32."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from cases import distance
from foreign_cells import CELLS
from torch import Tensor, nn

import cello
from cello.compile import compiled
from cello.engines.native.library import library, multiplies_bfloat16

EPS = 2**-8
SHAPES = {
    "small": (28, 10, 28, 4),
    "odd": (20, 33, 33, 65),
    "wide": (12, 40, 70, 130),
    "one row": (40, 1, 16, 200),
    "few rows": (2, 3, 7, 150),
}


@pytest.fixture(autouse=True)
def native():
    if library() is None:
        pytest.skip("the native engine was not built")
    with cello.engine("native"):
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(layer: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output, _ = layer(x, **options)
    seed = draw(*output.shape, seed=1).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [x, *layer.parameters()], seed)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_errors_are_no_larger_than_those_of_torch(kind, shape):
    """Against float64 of the same numbers: in all, as one of few numbers may be rounded unluckily."""
    T, B, F, H = SHAPES[shape]
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(F, H, dtype=torch.bfloat16)
    ours = getattr(cello.nn, kind)(F, H, dtype=torch.bfloat16)
    truth = getattr(nn, kind)(F, H, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    truth.load_state_dict(theirs.state_dict())
    x = draw(T, B, F).bfloat16()
    errors = [
        (distance(got, expected), distance(other, expected))
        for got, other, expected in zip(
            results(ours, x), results(theirs, x), results(truth, x.double()), strict=True
        )
    ]
    assert sum(mine for mine, _ in errors) <= sum(other for _, other in errors)
    assert all(mine <= max(2 * other, EPS) for mine, other in errors)


def test_products_round_and_nothing_else_does():
    """Sums that bfloat16 cannot hold: rounded where they are an operand, and not before."""
    layer = cello.nn.RNN(2, 64, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.copy_(torch.eye(64))
    x = torch.full((9, 12, 2), 0.5, dtype=torch.bfloat16)
    x[1:] = 2**-9  # h = 1 + t / 256, which bfloat16 cannot hold for odd t
    cell = layer._cells()[0][0]
    program = compiled(cell, x.flatten(0, 1), (torch.zeros(12, 64, dtype=torch.bfloat16),))
    assert [value.dtype for value in program.loop.statics] == [torch.bfloat16] * 2
    with torch.no_grad():
        output = layer(x)[0]
    rounds = multiplies_bfloat16()
    # Where h is rounded for the product it stays at 1 (ties to even); in float32 it goes on.
    assert float(output[-1, 0, 0]) == (1.0 if rounds else 1 + 8 / 256)


@pytest.mark.parametrize("name", ["EightLinears", "LayerNormLSTM"])
def test_foreign_cells(name):
    if name not in CELLS:
        pytest.skip("no such cell")
    torch.manual_seed(0)
    layer = cello.Recurrent(CELLS[name].make(7, 20).bfloat16())
    x = draw(6, 5, 7).bfloat16()
    got = results(layer, x)
    with cello.engine("reference"):
        other = results(layer, x)
        expected = results(layer.double(), x.double())
    for a, b, c in zip(got, other, expected, strict=True):
        assert distance(a, c) <= max(1.1 * distance(b, c), EPS)


@pytest.mark.parametrize("shape", ["odd", "wide"])
def test_the_same_bits_again_and_a_row_alone(shape):
    T, B, F, H = SHAPES[shape]
    layer, x = cello.nn.LSTM(F, H, dtype=torch.bfloat16), draw(T, B, F).bfloat16()
    first, second = results(layer, x), results(layer, x)
    assert all(map(torch.equal, first, second))
    with torch.no_grad():
        output = layer(x)[0]
        some = layer(x[:, :9])[0]
    assert torch.equal(output[:, :9], some)


def test_packed_is_dense_without_the_padding():
    layer, x = cello.nn.GRU(7, 33, dtype=torch.bfloat16), draw(9, 4, 7).bfloat16()
    lengths = [9, 7, 3, 1]
    output, h_n = layer(x, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, last = layer(x[:length, row : row + 1])
        assert distance(output[:length, row], alone[:, 0]) <= EPS
        assert distance(h_n[0, row], last[0, 0]) <= EPS
        assert not output[length:, row].any()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_steps_are_one_call(kind):
    layer, x = getattr(cello.nn, kind)(7, 40, dtype=torch.bfloat16), draw(6, 2, 7).bfloat16()
    whole, _ = layer(x)
    state, steps = None, []
    for x_t in x:
        output, state = layer.step(x_t, state)
        steps.append(output)
    assert distance(torch.stack(steps), whole) <= 4 * EPS  # the states between are rounded


def test_an_exported_layer():
    layer, x = cello.nn.LSTM(7, 20, dtype=torch.bfloat16), draw(6, 5, 7).bfloat16()
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), file)
    file.seek(0)
    output, _ = torch.export.load(file).module()(x)
    assert torch.equal(output, layer(x)[0])


def test_memory_with_any_content(monkeypatch):
    """Scratch that is full of NaN changes nothing."""
    layer, x = cello.nn.LSTM(9, 33, dtype=torch.bfloat16), draw(12, 20, 9).bfloat16()
    before = results(layer, x)
    results(layer, torch.full_like(x, float("nan")))  # leaves its memory to the next call
    assert all(map(torch.equal, before, results(layer, x)))


def test_second_derivatives():
    torch.manual_seed(0)
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        torch.manual_seed(0)
        layer = cello.nn.GRU(3, 5, dtype=torch.bfloat16).to(dtype)
        x = draw(4, 3, 3).bfloat16().to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        gradients.append(torch.autograd.grad(first.square().sum(), layer.weight_hh_l0)[0])
    assert distance(*gradients) <= 16 * EPS


AUTOCAST = {
    "LSTM": {},
    "GRU": {"num_layers": 2},
    "RNN": {},
    "LSTM projected": {"proj_size": 6},
    "LSTM both ways": {"bidirectional": True, "num_layers": 2},
}


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_gives_what_torch_gives(name, form):
    kind, options = name.split()[0], AUTOCAST[name]
    torch.manual_seed(0)
    layers = [getattr(space, kind)(9, 20, **options) for space in (nn, cello.nn)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = draw(8, 20, 9)
    if form == "packed":
        lengths = [8, 7, 5, 5, *[3] * 16]
        x = nn.utils.rnn.pack_padded_sequence(x, lengths)
    found = []
    for index, (layer, is_cast) in enumerate([(layers[0], 1), (layers[1], 1), (layers[0], 0)]):
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(is_cast)):
            if index == 1:
                assert cello.explain(layer, x).plans[0].engine == "native"
            output, state = layer(x)
        output = output.data if form == "packed" else output
        tensors = [output, *(state if isinstance(state, tuple) else (state,))]
        seed = draw(*output.shape, seed=1).to(output.dtype)
        gradients = torch.autograd.grad(output, list(layer.parameters()), seed)
        found.append([*tensors, *gradients])
    for theirs, ours, exact in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert distance(ours, exact) <= max(1.1 * distance(theirs, exact), EPS)


@pytest.mark.parametrize("engine", ["native", "vendor", "reference"])
@pytest.mark.parametrize("name", AUTOCAST)
def test_every_engine_returns_the_dtypes_of_torch_under_autocast(name, engine):
    kind, options = name.split()[0], AUTOCAST[name]
    x, found = draw(4, 3, 9), []
    for space in (nn, cello.nn):
        layer = getattr(space, kind)(9, 20, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16), cello.engine(engine):
            output, state = layer(x)
        found.append([part.dtype for part in (output, *(state if kind == "LSTM" else [state]))])
    assert found[0] == found[1]


def test_a_foreign_cell_under_autocast():
    layer = cello.Recurrent(CELLS["EightLinears"].make(7, 20))
    x = draw(6, 30, 7)
    exact = results(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert cello.explain(layer, x).plans[0].engine == "native"
        ours = results(layer, x)
        with cello.engine("reference"):
            loop = results(layer, x)
    assert not torch.equal(ours[0].float(), exact[0])
    for a, b, c in zip(ours, loop, exact, strict=True):
        assert a.dtype == b.dtype
        assert distance(a, c) <= max(1.1 * distance(b, c), EPS)


class Excepted(nn.Module):
    """Leaves autocast for its own product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.tanh(x + h @ self.weight)


def test_a_cell_with_a_region_of_its_own_runs_in_the_loop():
    layer, x = cello.Recurrent(Excepted(), state_size=4), draw(5, 2, 4)
    with torch.autocast("cpu", torch.bfloat16), cello.engine("reference"):
        expected = layer(x)[0]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(cello.EngineError, match=r"Excepted has a region of torch.autocast"),
    ):
        layer(x)
    assert expected.dtype == torch.float32


def test_autocast_leaves_nothing_behind():
    layer, x = cello.nn.GRU(4, 5), draw(6, 3, 4)
    plain = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(x)[0]
        assert torch.equal(layer(x)[0], cast)
    assert torch.equal(layer(x)[0], plain)
    assert not torch.equal(plain, cast)
