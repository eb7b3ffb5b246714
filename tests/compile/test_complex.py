"""Steps that compute with complex numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from complex_cells import STEPS, F, H, Holder, Step, from_pairs
from steps import assert_left_to_the_loop
from torch import Tensor, nn

import cello
from cello.compile.complex_numbers import FUNCTIONS


def compared(layer: Any, *given: Tensor, **options: Any) -> list[list[Tensor]]:
    """The results and gradients of the native engine and of a Python loop."""
    inputs, found = [*(t for t in given if t.requires_grad), *layer.parameters()], []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, end, states = layer(*given, return_states=True, **options)
        ends = [*(end if isinstance(end, tuple) else [end]), *states.values()]
        loss = sum(
            torch.view_as_real(t).sin().sum() if t.is_complex() else t.sin().sum()
            for t in (output, *ends)
        )
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        found.append([output, *ends, *(g for g in gradients if g is not None)])
    return found


def check(found: list[list[Tensor]], rtol: float = 1e-9, atol: float = 1e-10) -> None:
    assert len(found[0]) == len(found[1])
    for native, reference in zip(*found, strict=True):
        assert native.dtype == reference.dtype
        torch.testing.assert_close(native, reference, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("name", STEPS)
def test_complex_steps_are_those_of_the_loop(name: str, rows: int):
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name]), state_size=H)
    x = torch.randn(5, rows, F, dtype=torch.float64, requires_grad=True)
    z = torch.randn(1, rows, H, dtype=torch.complex128, requires_grad=True)
    assert cello.explain(layer, x, z).plans[0].engine == "native", cello.explain(layer, x, z)
    check(compared(layer, x, z, lengths=torch.randint(1, 6, (rows,))))


AT_ZERO = "abs angle sgn norm square exp tanh sqrt log rsqrt log1p sigmoid"


@pytest.mark.parametrize("name", AT_ZERO.split())
def test_gradients_at_zero(name: str):
    """Torch has zero for some of what has no gradient there, and NaN for the rest."""

    def norm(z: Tensor) -> Tensor:
        return torch.linalg.vector_norm(z, dim=-1, keepdim=True)

    function = getattr(torch, name) if name != "norm" else norm
    layer = cello.Recurrent(lambda x, z: (function(z * x), z * x), state_size=H)
    x = torch.tensor([[[1.0, 0.0, 2.0, 1.0]], [[0.0, 1.0, 1.0, 2.0]]]).double().requires_grad_()
    z = torch.zeros(1, 1, H, dtype=torch.complex128)
    z[..., 2:] = torch.tensor([1j, -2.0])
    check(compared(layer, x, z.requires_grad_()))


@pytest.mark.parametrize("name", ["sqrt", "log", "root", "inverse root"])
def test_gradients_on_the_axes(name: str):
    powers = {"root": 0.5, "inverse root": -0.5}
    function = getattr(torch, name, None) or (lambda z: z ** powers[name])
    layer = cello.Recurrent(lambda x, z: (function(z * x), z * x), state_size=H)
    x = torch.ones(1, 1, H, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[[2j, 4 + 0j, -4 + 0j, -3j]]], dtype=torch.complex128, requires_grad=True)
    check(compared(layer, x, z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_where_terms_cancel(dtype: torch.dtype):
    """Small numbers, and the tail of the sigmoid function, are as exact as torch's."""
    small = torch.tensor([1e-8j, 1e-4 + 1e-4j, -1e-7, -50 + 1j, -17 - 2j], dtype=dtype.to_complex())
    names = "sin sinh tan tanh expm1 log1p sigmoid cosh"
    for function in (getattr(torch, name) for name in names.split()):
        layer = cello.Recurrent(lambda x, z, f=function: (f(z), z), state_size=5)
        with cello.engine("native"):
            found, _ = layer(torch.zeros(1, 1, 5, dtype=dtype), small[None, None])
        exact = function(small.to(torch.complex128))
        for ours, theirs in ((found.real[0, 0], exact.real), (found.imag[0, 0], exact.imag)):
            limit = 1e-5 if dtype is torch.float32 else 1e-12
            usual = theirs.abs() > 1e-30
            assert ((ours - theirs).abs() <= limit * theirs.abs())[usual].all(), function


def test_branches_of_the_angle_and_the_root():
    """Zeros have signs, which tell the two sides of the negative real numbers apart."""
    numbers = torch.tensor([-1.0, -0.0, 0.0, 2.0], dtype=torch.float64)
    z = torch.complex(*(part.flatten() for part in torch.meshgrid(numbers, numbers, indexing="ij")))
    layer = cello.Recurrent(
        lambda x, z: (torch.cat([z.sqrt().real, z.sqrt().imag, z.angle() + 0 * x], -1), z),
        state_size=16,
    )
    x = torch.zeros(1, 1, 16, dtype=torch.float64)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            found.append(layer(x, z[None, None])[0])
    torch.testing.assert_close(*found, rtol=1e-15, atol=1e-15)


def test_complex_numbers_that_a_step_makes_of_a_real_state():
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(from_pairs), state_size=H)
    x = torch.randn(5, 3, F, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 3, H, dtype=torch.float64, requires_grad=True)
    assert cello.explain(layer, x, h).plans[0].engine == "native"
    check(compared(layer, x, h))


class OfBoth(nn.Module):
    """A real state beside a complex one, which the cell makes itself if it has none."""

    def __init__(self):
        super().__init__()
        self.real, self.turn = nn.Linear(F + H, H), nn.Parameter(torch.rand(H))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        if state is None:
            h = x.new_zeros(len(x), H)
            state = h, torch.complex(h, h)
        h, z = state
        h = torch.tanh(self.real(torch.cat([x, z.imag], -1)) + h)
        z = torch.polar(torch.full_like(self.turn, 0.9), self.turn) * z + h
        return h + z.real, (h, z)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_state_beside_a_complex_one(given: bool, dtype: torch.dtype):
    torch.manual_seed(0)
    layer = cello.Recurrent(OfBoth().to(dtype), num_layers=1)
    x = torch.randn(6, 4, F, dtype=dtype, requires_grad=True)
    hx = torch.randn(1, 4, H, dtype=dtype), torch.randn(1, 4, H, dtype=dtype.to_complex())
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, (h, z) = layer(x, hx if given else None, lengths=[6, 2, 5, 1])
        assert (h.dtype, z.dtype) == (dtype, dtype.to_complex())
        loss = output.sum() + h.sum() + z.imag.square().sum()
        found.append([output, h, z, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    check(found, *((1e-9, 1e-10) if dtype is torch.float64 else (1e-4, 1e-5)))


def test_layers_and_directions_of_complex_numbers():
    """The second layer reads what the first one gives."""
    torch.manual_seed(0)

    class Cell(nn.Module):
        def __init__(self, features: int):
            super().__init__()
            self.W = nn.Parameter(torch.randn(H, features, dtype=torch.complex128))
            self.a = nn.Parameter(torch.randn(H, dtype=torch.complex128))

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(nn.functional.linear(x, 0.3 * self.W, self.a) + 0.5 * z)

    layer = cello.Recurrent(Cell, F, num_layers=2, bidirectional=True, state_size=H)
    x = torch.randn(5, 3, F, dtype=torch.complex128, requires_grad=True)
    assert [plan.engine for plan in cello.explain(layer, x).plans] == ["native"] * 2
    found = compared(layer, x, lengths=[5, 0, 3])
    assert found[0][0].shape == (5, 3, 2 * H)
    check(found)
    packed = nn.utils.rnn.pack_padded_sequence(x.detach(), [5, 3, 1])
    output, _ = layer(packed)
    with cello.engine("reference"):
        torch.testing.assert_close(output.data, layer(packed)[0].data)


def test_a_complex_lstm_is_torchs():
    torch.manual_seed(0)
    theirs = nn.LSTM(F, H, dtype=torch.complex128)
    ours = cello.Recurrent(nn.LSTMCell(F, H, dtype=torch.complex128))
    for name, parameter in ours.cells["l0"].named_parameters():
        parameter.data.copy_(getattr(theirs, name + "_l0"))
    x = torch.randn(7, 3, F, dtype=torch.complex128)
    with cello.engine("native"):
        output, (h, c) = ours(x)
    expected, (h_n, c_n) = theirs(x)
    for mine, torchs in ((output, expected), (h, h_n), (c, c_n)):
        torch.testing.assert_close(mine, torchs)


def test_three_steps_by_hand():
    """h' = .9 exp(i pi / 4) h + x, x = 1, 0, 0."""
    turn = torch.polar(torch.tensor(0.9), torch.tensor(math.pi / 4))
    layer = cello.Recurrent(lambda x, z: (z.real, turn * z + x), state_size=1)
    with cello.engine("native"):
        _, z = layer(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1))
    torch.testing.assert_close(z, torch.tensor([[[0.81j]]]))


def test_second_derivatives():
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS["unitary"]), state_size=H)
    x = torch.randn(3, 2, F, dtype=torch.float64, requires_grad=True)
    z = torch.randn(1, 2, H, dtype=torch.complex128, requires_grad=True)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, end = layer(x, z)
        inputs = [x, z, layer.cells["l0"].a]
        first = torch.autograd.grad(output.sin().sum() + end.abs().sum(), inputs, create_graph=True)
        loss = sum(g.abs().square().sum() for g in first)
        found.append([*first, *torch.autograd.grad(loss, inputs)])
    check(found)


@pytest.mark.parametrize("name", ["lru", "unitary", "resonator"])
def test_complex_steps_in_segments_and_without_gradients(name: str):
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name], torch.float32), state_size=H)
    x = torch.randn(9, 3, F, requires_grad=True)
    check(compared(layer, x), 1e-4, 1e-5)
    whole = layer(x)[0]
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], whole)
    layer.segment = 4
    torch.testing.assert_close(layer(x)[0], whole)


@pytest.mark.parametrize("name", ["lru", "unitary"])
def test_complex_steps_in_a_compiled_graph(name: str):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name], torch.float32), state_size=H)
    x, found = torch.randn(4, 3, F, requires_grad=True), []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        output, end = run(x)
        loss = output.sin().sum() + end.abs().sum()
        found.append([output, end, *torch.autograd.grad(loss, [x, layer.cells["l0"].B])])
    check(found, 1e-4, 1e-5)


REFUSED: dict[str, tuple[Step, str]] = {
    "an exponent": (lambda c, x, z: (x, 2**z), "pow of complex numbers"),
    "an infinite power": (lambda c, x, z: (x, z ** float("inf")), "pow of complex numbers"),
    "by zero": (lambda c, x, z: (x, z / 0), "div of complex numbers"),
    "another precision": (
        lambda c, x, z: (x, z.to(torch.complex128).to(z.dtype)),
        "mixes torch.complex128 with torch.complex64",
    ),
    "a function": (lambda c, x, z: (x, torch.acos(z)), "acos of complex numbers"),
    "a power": (lambda c, x, z: (x, z**0.3), "pow of complex numbers"),
    "an inverse": (lambda c, x, z: (x, torch.linalg.inv(z.view(-1, 2, 2)).flatten(1)), "linalg"),
    "a large transform": (
        lambda c, x, z: (x, torch.fft.fft(z.repeat(1, 64))[:, :H]),
        "_fft_c2c of complex numbers",
    ),
    "the batch": (lambda c, x, z: (x, z * z.mean(0).conj()), "mixes the rows"),
    "a transform of the batch": (lambda c, x, z: (x, torch.fft.fft(z, dim=0)), "_fft_c2c"),
    "of real numbers": (lambda c, x, z: (x, z.real), "and returns"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_steps_are_left_to_the_loop(name: str):
    step, reason = REFUSED[name]
    layer = cello.Recurrent(Holder(step, torch.float32), state_size=H)
    z = torch.randn(1, 2, H, dtype=torch.complex64)
    told = assert_left_to_the_loop(reason, layer, torch.randn(3, 2, F), z)
    assert "test_complex.py:" in told or name == "of real numbers"


def test_each_function_has_a_step_here():
    assert set(FUNCTIONS) <= set(STEPS)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 8, 12, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transforms_of_real_numbers_are_symmetric(size: int, dtype: torch.dtype):
    """Mirrored waves are exact conjugates, and the one in the middle is real, as torch has them."""
    layer = cello.Recurrent(lambda x, z: (torch.fft.fft(x), z), state_size=1)
    with cello.engine("native"):
        waves, _ = layer(torch.randn(20, 3, size, dtype=dtype))
    mirrored = waves.conj().roll(-1, -1).flip(-1)
    assert torch.equal(waves, mirrored.resolve_conj())
    if size % 2 == 0:
        assert torch.equal(waves[..., size // 2].imag, torch.zeros(20, 3, dtype=dtype))


class Spike(torch.autograd.Function):
    """A step function whose gradient is that of a smooth one."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient / (1 + v.abs()) ** 2


def test_a_custom_function_beside_complex_numbers():
    def step(c: Holder, x: Tensor, z: Tensor) -> Any:
        z = c.a * z + c.real(x)
        spike = Spike.apply(z.real - 0.2)
        return spike + z.imag, z * (1 - 0.5 * spike)

    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(step), state_size=H)
    x = torch.randn(5, 3, F, dtype=torch.float64, requires_grad=True)
    z = torch.randn(1, 3, H, dtype=torch.complex128, requires_grad=True)
    assert cello.explain(layer, x, z).plans[0].engine == "native"
    check(compared(layer, x, z))


def test_a_complex_input_of_a_real_state():
    layer = cello.Recurrent(lambda x, h: torch.tanh(0.5 * h + x.real * x.imag), state_size=H)
    x = torch.randn(5, 3, H, dtype=torch.complex128)
    h = torch.zeros(1, 3, H, dtype=torch.float64)
    for _ in range(2):  # a call like the one before
        found = []
        for engine in ("native", "reference"):
            with cello.engine(engine):
                found.append(layer(x, h)[0])
        torch.testing.assert_close(*found)


def test_parts_are_multiplied_one_by_one():
    """Real factors reach both parts; torch takes them for complex ones, of which infinities make NaN."""
    layer = cello.Recurrent(lambda x, z: (z * x, z), state_size=1)
    z = torch.tensor([[[complex("inf+1j")]]], dtype=torch.complex128)
    with cello.engine("native"):
        output, _ = layer(torch.full((1, 1, 1), 2.0, dtype=torch.float64), z)
    assert output.item() == complex("inf+2j")
