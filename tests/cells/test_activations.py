"""Activations by name, and piecewise-linear ones against torch.nn.functional and numpy.interp."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cello import PiecewiseLinear
from cello.cells import ACTIVATIONS, activation_name, resolve_activation

INF, NAN = math.inf, math.nan
GRID = torch.linspace(-6, 6, 2401, dtype=torch.float64)  # contains every knot used below

STOCK = {  # the function, torch's, the knot and the slope between the knots
    "hard_sigmoid": (PiecewiseLinear.hard_sigmoid(), F.hardsigmoid, 3.0, 1 / 6),
    "hard_tanh": (PiecewiseLinear.hard_tanh(), F.hardtanh, 1.0, 1.0),
}
KNOTS = {
    "ramp": ([0.0, 1.0], [0.0, 1.0]),
    "hat": ([-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]),
    "uneven": ([-4.0, -1.5, 0.25, 2.0, 5.0], [2.0, -1.0, 0.5, 0.5, -3.0]),
    "falling": ([-0.5, 0.5], [7.0, -7.0]),
}


@pytest.mark.parametrize("name", STOCK)
def test_hard_functions_equal_torch(name):
    function, reference, *_ = STOCK[name]
    for dtype, tolerance in [(torch.float64, 1e-15), (torch.float32, 2e-7)]:
        x = GRID.to(dtype)
        torch.testing.assert_close(function(x), reference(x), rtol=0, atol=tolerance)
    for dtype in (torch.float16, torch.bfloat16):
        x = GRID.to(dtype)
        assert function(x).dtype == dtype
        torch.testing.assert_close(function(x), reference(x), rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", STOCK)
def test_gradients_of_hard_functions_off_the_knots(name):
    function, reference, knot, slope = STOCK[name]
    x = GRID[(GRID.abs() - knot).abs() > 1e-9].requires_grad_()
    (got,) = torch.autograd.grad(function(x).sum(), x)
    (expected,) = torch.autograd.grad(reference(x).sum(), x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)  # torch's 1/6 is a float32
    torch.testing.assert_close(got, slope * (x.abs() < knot).double(), rtol=0, atol=1e-16)


@pytest.mark.parametrize("name", KNOTS)
def test_values_equal_numpy(name):
    xs, ys = KNOTS[name]
    expected = torch.from_numpy(np.interp(GRID.numpy(), xs, ys))
    torch.testing.assert_close(PiecewiseLinear(xs, ys)(GRID), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("beyond", ["linear", ("linear", "constant"), ("constant", "linear")])
@pytest.mark.parametrize("name", KNOTS)
def test_straight_continuation(name, beyond):
    xs, ys = KNOTS[name]
    left, right = (beyond, beyond) if isinstance(beyond, str) else beyond
    # The outermost pieces drawn out far beyond the grid, or level.
    first = (ys[1] - ys[0]) / (xs[1] - xs[0]) if left == "linear" else 0.0
    last = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]) if right == "linear" else 0.0
    wide_xs = [xs[0] - 64, *xs, xs[-1] + 64]
    wide_ys = [ys[0] - 64 * first, *ys, ys[-1] + 64 * last]
    expected = torch.from_numpy(np.interp(GRID.numpy(), wide_xs, wide_ys))
    got = PiecewiseLinear(xs, ys, beyond)(GRID)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-12)


def test_the_slope_on_a_knot_is_that_of_the_piece_to_its_right():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    hat = PiecewiseLinear([-1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    (gradient,) = torch.autograd.grad(hat(x).sum(), x)
    assert gradient.tolist() == [0, 1, 1, -1, -1, 0, 0]
    (gradient,) = torch.autograd.grad(
        PiecewiseLinear([-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], "linear")(x).sum(), x
    )
    assert gradient.tolist() == [1, 1, 1, -1, -1, -1, -1]


def test_gradcheck():
    x = torch.linspace(-5.93, 5.97, 60, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PiecewiseLinear(*KNOTS["uneven"]), x)
    assert torch.autograd.gradcheck(PiecewiseLinear(*KNOTS["uneven"], beyond="linear"), x)


def test_infinity_and_nan():
    xs, ys = KNOTS["uneven"]
    x = torch.tensor([-INF, INF, NAN])
    low, high, nan = PiecewiseLinear(xs, ys)(x).tolist()
    assert (low, high) == (2.0, -3.0)
    assert math.isnan(nan)
    low, high, nan = PiecewiseLinear(xs, ys, "linear")(x).tolist()
    assert (low, high) == (INF, -INF)
    assert math.isnan(nan)
    low, high, _ = PiecewiseLinear(xs, ys, ("constant", "linear"))(x).tolist()
    assert (low, high) == (2.0, -INF)


def test_gradient_at_infinity_is_zero_where_it_is_constant():
    x = torch.tensor([-INF, INF], requires_grad=True)
    (gradient,) = torch.autograd.grad(PiecewiseLinear.hard_sigmoid()(x).sum(), x)
    assert gradient.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_last_value_is_exact_beyond_the_last_knot(dtype):
    function = PiecewiseLinear([0.1, 0.7, 1.3], [0.3, 0.9, 0.4])
    x = torch.tensor([2.0, 100.0, INF], dtype=dtype)
    assert (function(x) == torch.tensor(0.4, dtype=dtype)).all()


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 1, 3)])
def test_shapes_are_kept(shape):
    assert PiecewiseLinear.hard_tanh()(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [1.0]), "two knots.*1"),
        (([], []), "two knots.*0"),
        (([0.0, 1.0], [1.0]), "same length.*2 and 1"),
        (([0.0, 0.0], [1.0, 2.0]), "increase strictly"),
        (([1.0, 0.0], [1.0, 2.0]), "increase strictly"),
        (([0.0, NAN], [1.0, 2.0]), "finite"),
        (([0.0, 1.0], [1.0, INF]), "finite"),
        (([-INF, 1.0], [1.0, 2.0]), "finite"),
        (([0.0, 1.0], [1.0, 2.0], "flat"), "beyond.*'flat'"),
        (([0.0, 1.0], [1.0, 2.0], ("linear", "flat")), "beyond.*'flat'"),
        (([0.0, 1.0], [1.0, 2.0], ("linear",)), "beyond"),
        (([0.0, 1.0], [1.0, 2.0], None), "beyond"),
    ],
    ids=str,
)
def test_bad_knots(arguments, message):
    with pytest.raises(ValueError, match=message):
        PiecewiseLinear(*arguments)


def test_repr():
    assert repr(PiecewiseLinear.hard_sigmoid()) == "PiecewiseLinear([-3, 3], [0, 1])"
    assert repr(PiecewiseLinear([0, 0.5], [1, 2], ("linear", "constant"))) == (
        "PiecewiseLinear([0, 0.5], [1, 2], beyond=('linear', 'constant'))"
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name(name):
    function = resolve_activation(name)
    assert function is ACTIVATIONS[name]
    assert activation_name(function) == name
    x = GRID.clone()
    expected = x if name == "identity" else getattr(torch, name, None) or getattr(F, name)
    torch.testing.assert_close(function(x), expected if name == "identity" else expected(x))


def test_activations_that_are_modules_or_functions():
    def double(x):
        return 2 * x

    module = nn.Softplus()
    assert resolve_activation(double) is double
    assert resolve_activation(module) is module
    assert activation_name(double) == "double"
    assert activation_name(module) == repr(module)


@pytest.mark.parametrize(
    ("activation", "error", "message"),
    [
        ("sine", ValueError, "argument 'sine'.*tanh"),
        (nn.Tanh, TypeError, "Tanh\\(\\)"),
        (None, TypeError, "argument.*NoneType"),
        (3, TypeError, "argument.*int"),
    ],
)
def test_what_is_no_activation(activation, error, message):
    with pytest.raises(error, match=message):
        resolve_activation(activation, "argument")
