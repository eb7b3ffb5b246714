"""Weights, inputs and states that change between the forward pass and the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence

import cello

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def native():
    with cello.engine("native"):
        yield


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 7)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([x, h], -1)))


MAKE: list[Callable[[], nn.Module]] = [
    lambda: cello.nn.GRU(5, 7),
    lambda: cello.nn.LSTM(5, 7, bidirectional=True),
    lambda: cello.Recurrent(Plain(), state_size=7),
]


def gradient(layer: nn.Module, x: Tensor, change: Callable[[], object]) -> Tensor:
    """The gradient that x has of a loss, behind whose forward pass something changes."""
    loss = layer(x)[0].square().sum()
    change()
    (found,) = torch.autograd.grad(loss, x)
    return found


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "twice": lambda data: data * 2,
    "half": lambda data: data.half(),
    "double": lambda data: data.double(),
    "one number": lambda data: data[:1, :1] if data.dim() > 1 else data[:1],
    "none": lambda data: data.new_empty(0),
}


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_are_of_the_numbers_that_the_forward_pass_read(
    make: Callable[[], nn.Module], change: str
):
    layer, x = make(), torch.randn(6, 4, 5).requires_grad_()
    expected = gradient(layer, x, lambda: None)

    def change_all() -> None:
        for tensor in layer.parameters():
            tensor.data = CHANGES[change](tensor.data)

    assert gradient(layer, x, change_all).equal(expected)


def test_so_are_those_of_the_rows_of_a_packed_sequence():
    layer, x = cello.Recurrent(lambda x, h: torch.tanh(x * h + 1), state_size=5), torch.randn(9, 5)
    found = []
    for again in (False, True):
        leaf = x.clone().requires_grad_()
        packed = nn.utils.rnn.PackedSequence(leaf, torch.tensor([4, 3, 2]))
        loss = layer(packed)[0].data.square().sum()
        if again:
            leaf.data = torch.zeros(9, 5)
        found.append(torch.autograd.grad(loss, leaf)[0])
    assert found[0].abs().sum() > 0
    assert found[1].equal(found[0])


@pytest.mark.parametrize("size", [(9, 5), (1, 1)])
def test_computed_rows_that_are_replaced_are_an_error(size: tuple[int, int]):
    layer = cello.Recurrent(lambda x, h: torch.tanh(x * h + 1), state_size=5)
    rows = 2 * torch.randn(9, 5, requires_grad=True)
    packed = nn.utils.rnn.PackedSequence(rows, torch.tensor([4, 3, 2]))
    loss = layer(packed)[0].data.square().sum()
    rows.data = torch.zeros(size)
    with pytest.raises(RuntimeError, match="was given other numbers"):
        loss.backward()


def test_copies_that_autograd_keeps():
    """As those of save_on_cpu, in the first and in the second backward pass, NaN and all."""
    layer, x = cello.nn.GRU(5, 7), torch.randn(6, 4, 5, requires_grad=True)
    with torch.no_grad():
        layer.weight_hh_l0[0, 0] = float("nan")
    expected = torch.autograd.grad(layer(x)[0].nansum(), x)
    for create_graph in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            loss = layer(x)[0].nansum()
        found = torch.autograd.grad(loss, x, create_graph=create_graph)
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_weight_without_memory_is_an_error():
    layer, x = cello.nn.GRU(5, 7), torch.randn(6, 4, 5).requires_grad_()
    loss = layer(x)[0].sum()
    layer.weight_hh_l0.untyped_storage().resize_(16)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(21, 7\) has no memory"):
        loss.backward()
    layer.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(21, 7\) has no memory"):
        layer(x)


def test_a_backward_pass_that_is_differentiated_refuses_other_numbers():
    layer, x = cello.nn.GRU(5, 7), torch.randn(6, 4, 5).requires_grad_()
    loss = layer(x)[0].square().sum()
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.clone()
    (first,) = torch.autograd.grad(loss, x, create_graph=True, retain_graph=True)
    assert first.requires_grad
    layer.weight_hh_l0.data = layer.weight_hh_l0.data * 2
    with pytest.raises(RuntimeError, match="was given other numbers"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_writes_in_place_are_still_seen():
    layer, x = cello.nn.GRU(5, 7), torch.randn(6, 4, 5).requires_grad_()
    loss = layer(x)[0].square().sum()
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_a_tangent_goes_through_a_backward_pass():
    x = torch.randn(6, 4, 5, requires_grad=True)
    found = []
    for make in (nn.GRU, cello.nn.GRU):
        torch.manual_seed(0)
        output = make(5, 7)(x)[0]
        with forward_ad.dual_level():
            seed = forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 2.0))
            (made,) = torch.autograd.grad(output, x, seed)
            found.append(forward_ad.unpack_dual(made).tangent)
    torch.testing.assert_close(*found)


def test_many_gradients_at_once_through_one_backward_pass():
    x, seeds = torch.randn(6, 4, 5, requires_grad=True), torch.randn(3, 6, 4, 7)
    output = cello.nn.LSTM(5, 7)(x)[0]

    def of(seed: Tensor) -> Tensor:
        return torch.autograd.grad(output, x, seed, retain_graph=True)[0]

    torch.testing.assert_close(torch.func.vmap(of)(seeds), torch.stack(list(map(of, seeds))))


def test_batches_of_many_lengths_where_the_default_device_is_another_one():
    layer, x = cello.nn.LSTM(5, 7, bidirectional=True), torch.randn(6, 4, 5)
    lengths = torch.tensor([6, 4, 4, 1])
    packed = pack_padded_sequence(x, lengths)
    expected = layer(packed)[0].data, layer(x, lengths=lengths)[0]
    for engine in ("native", "vendor", "reference"):
        with cello.engine(engine), torch.device("meta"):
            found = (
                layer(packed)[0].data,
                layer(x, lengths=lengths)[0],
                layer(x, lengths=[6, 4, 4, 1])[0],
            )
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
        torch.testing.assert_close(found[2], expected[1])
