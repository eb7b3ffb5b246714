"""Steps that convolve, pool and rearrange images, and products at several places of a row."""

from __future__ import annotations

import pytest
import torch
from convolution_cells import (
    CELLS,
    IMAGES,
    PLACES,
    ConvLSTM,
    Mixed,
    assert_like_the_loop,
    assert_same,
    layer_of,
    results,
)
from steps import assert_left_to_the_loop
from torch import Tensor, nn
from torch.nn import functional as F
from toy_engine import Toy

import cello

KNOWN = CELLS | IMAGES | PLACES
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("name", KNOWN)
def test_images_are_those_of_the_loop(name: str, rows: int):
    layer = layer_of(KNOWN[name])
    plan = cello.explain(layer, torch.randn(4, rows, *KNOWN[name].x, dtype=torch.float64)).plans[0]
    assert plan.engine == "native", plan.reasons
    assert_like_the_loop(layer, KNOWN[name], rows, "native")


@pytest.mark.parametrize("name", KNOWN)
def test_single_precision(name: str):
    found = results(layer_of(KNOWN[name], torch.float32), KNOWN[name], 3, "native")
    expected = results(layer_of(KNOWN[name]).float(), KNOWN[name], 3, "reference")
    assert_same(found, expected, 2e-3)


@pytest.mark.parametrize("name", CELLS | PLACES)
def test_an_engine_in_numpy(name: str):
    assert_like_the_loop(layer_of(KNOWN[name]), KNOWN[name], 2, Toy())


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["LSTM", "groups", "by channels", "many channels", "a graph"])
def test_threads(name: str, rows: int, threads: int):
    layer, before = layer_of(KNOWN[name]), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results(layer, KNOWN[name], rows, "native")
    finally:
        torch.set_num_threads(before)
    assert_same(found, results(layer, KNOWN[name], rows, "reference"), 1e-10)


@pytest.mark.parametrize("name", ["LSTM", "down and up", "heads", "a graph"])
def test_lengths_and_both_directions(name: str):
    case = KNOWN[name]
    torch.manual_seed(0)
    sizes = tuple(torch.Size(shape) for shape in case.state)
    layer = cello.Recurrent(
        lambda _: case.make(),
        case.x,
        state_size=sizes if len(sizes) > 1 else sizes[0],
        bidirectional=True,
    ).double()
    x = torch.randn(5, 3, *case.x, dtype=torch.float64, requires_grad=True)
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = layer(x, lengths=torch.tensor([5, 0, 3]))
        found.append([output, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])])
    assert_same(*found, 1e-10)


def test_by_hand():
    """Sums over the neighbours of each number, and of theirs."""
    kernel = torch.ones(1, 1, 3)
    layer = cello.Recurrent(
        lambda x, h: (F.conv1d(h, kernel, padding=1) + x,) * 2, state_size=torch.Size([1, 4])
    )
    x = torch.zeros(2, 1, 1, 4)
    x[0, 0, 0, 1] = 1.0
    with cello.engine("native"):
        output, _ = layer(x)
    assert output[:, 0, 0].tolist() == [[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("sizes", [(4, 4), (12, 12)])
def test_the_size_of_an_image_makes_no_more_products(sizes: tuple[int, int]):
    layer = cello.Recurrent(
        ConvLSTM(2, 3, sizes), state_size=(torch.Size([3, *sizes]), torch.Size([3, *sizes]))
    )
    explained = str(cello.explain(layer, torch.randn(2, 1, 2, *sizes)))
    (product,) = [line for line in explained.splitlines() if "products" in line and "@" in line]
    assert "(6 products)" in product  # of x and of h three rows of the kernel


@pytest.mark.parametrize("name", ["LSTM", "by channels", "heads"])
def test_autocast(name: str):
    """The dtypes of the loop, and numbers that are rounded where its are."""
    case, found = KNOWN[name], []
    layer = layer_of(case, torch.float32)
    x = torch.randn(4, 3, *case.x)
    for engine in ("native", "reference"):
        with torch.autocast("cpu", torch.bfloat16), cello.engine(engine):
            output, _ = layer(x)
        loss = output.float().sin().sum()
        found.append([output.detach(), *torch.autograd.grad(loss, list(layer.parameters()))])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one.float(), other.float(), rtol=0.05, atol=0.05 * float(other.abs().max())
        )


def test_autocast_returns_the_dtypes_of_the_loop():
    conv, dtypes = nn.Conv1d(2, 2, 3, padding=1), []

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = conv(h + x)
        return h, h.float()

    layer = cello.Recurrent(step, state_size=torch.Size([2, 5]))
    for engine in ("native", "reference"):
        with torch.autocast("cpu", torch.bfloat16), cello.engine(engine):
            dtypes.append(layer(torch.randn(3, 2, 2, 5))[0].dtype)
    assert dtypes == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_numbers_of_a_window(dtype: torch.dtype):
    """The first of equal numbers gets the gradient; NaN is the largest number."""
    layer = cello.Recurrent(lambda x, h: (F.max_pool1d(h, 2), h + x), state_size=torch.Size([1, 6]))
    h = torch.tensor([[[[1.0, 1.0, 2.0, 3.0, float("nan"), 4.0]]]], dtype=dtype, requires_grad=True)
    for engine in ("native", "reference"):
        with cello.engine(engine):
            output, _ = layer(torch.zeros(1, 1, 1, 6, dtype=dtype), h)
        (gradient,) = torch.autograd.grad(output.sum(), h)
        assert str(output.flatten().tolist()) == "[1.0, 3.0, nan]"
        assert gradient.flatten().tolist() == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


class ByState(nn.Module):
    """Each row is the kernel of a channel."""

    def __init__(self):
        super().__init__()
        self.image = nn.Parameter(torch.randn(1, 2, 8))

    def forward(self, x: Tensor, h: Tensor):
        h = x + F.conv1d(self.image, h[:, :, :3])[0][:, None]
        return h, h


def test_states_of_images_are_found():
    for case in CELLS.values():
        layer = cello.Recurrent(case.make())
        layer(torch.randn(2, 3, *case.x))
        assert layer._forms["l0"].shapes == case.state


def test_a_pixel_that_fits_as_well_as_an_image_is_asked_for():
    layer = cello.Recurrent(lambda x, h: 0.5 * h + x.mean((2, 3), keepdim=True))
    with pytest.raises(cello.CellError, match=r"\(3, 8, 8\) and \(3, 1, 1\) fit alike"):
        layer(torch.randn(4, 2, 3, 8, 8))


def test_an_image_without_pixels_is_said_by_torch():
    cell = Mixed(nn.ConvTranspose1d(2, 2, 2, padding=3), nn.ReplicationPad1d(2))
    layer = cello.Recurrent(cell, state_size=torch.Size([2, 4]))
    with pytest.raises((RuntimeError, cello.CellError), match="size"):
        layer(torch.randn(3, 1, 2, 4))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "places of extrema": (
        Mixed(nn.AdaptiveMaxPool1d(6, return_indices=False)),
        r"adaptive_max_pool2d \(convolution_cells.py:\d+\)",
    ),
    "windows of unequal sizes": (
        Mixed(nn.AdaptiveAvgPool1d(4), nn.Upsample(6)),
        "divides an image unequally in _?adaptive_avg_pool2d",
    ),
    "unequal repetition": (
        Mixed(nn.AvgPool1d(2), nn.Upsample(7), nn.Conv1d(2, 2, 2)),
        "repeats the numbers of an image unequally in upsample_nearest1d",
    ),
    "a kernel of the state": (
        ByState(),
        "convolves in convolution .* a kernel that is not the same",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_images_are_left_to_the_loop(name: str):
    cell, reason = REFUSED[name]
    layer = cello.Recurrent(cell, state_size=torch.Size([2, 6]))
    assert_left_to_the_loop(reason, layer, torch.randn(3, 1, 2, 6))
