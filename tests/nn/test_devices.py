"""Tensors on two devices, and layers on a device whose numbers cannot be read: torch's meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cello
from cello.compile import compiled

LENGTHS = [5, 3, 2]


class Leaky(nn.Module):
    """A cell with a parameter, a buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.x, self.h = nn.Linear(3, 4), nn.Linear(4, 4)
        self.register_buffer("rate", torch.full((4,), 0.5))
        self.scale = torch.ones(4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.scale * h + self.rate * torch.tanh(self.x(x) + self.h(h))


LAYERS = {
    "LSTM": lambda: cello.nn.LSTM(3, 4, num_layers=2),
    "GRU": lambda: cello.nn.GRU(3, 4, bidirectional=True),
    "RNN": lambda: cello.nn.RNN(3, 4, nonlinearity="relu"),
    "MGU": lambda: cello.nn.MGU(3, 4),
    "PeepholeLSTM": lambda: cello.nn.PeepholeLSTM(3, 4, reverse=True),
    "learned start": lambda: cello.nn.LSTM(3, 4, learn_initial_state=True),
    "cell of torch": lambda: cello.Recurrent(nn.LSTMCell(3, 4)),
}
"""Layers of which Cello knows the equations."""
ENGINES = [None, "native", "vendor", "reference"]


def inputs() -> Tensor:
    return torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1))


def warm(name: str) -> nn.Module:
    """A layer that has run, so that it has a plan."""
    layer = LAYERS[name]()
    for _ in range(2):
        layer(inputs())
    return layer


def other(hx: Any) -> Any:
    return tuple(map(other, hx)) if isinstance(hx, tuple) else hx.to("meta")


@pytest.mark.parametrize("name", LAYERS)
def test_an_input_on_another_device(name: str):
    layer, x = warm(name), inputs().to("meta")
    message = r"found input tensor at meta and parameter tensor weight_ih_l0 at cpu"
    for options in ({}, {"lengths": LENGTHS}, {"return_states": True}):
        with pytest.raises(RuntimeError, match=message):
            layer(x, **options)
    packed = PackedSequence(inputs().flatten(0, 1)[:7].to("meta"), torch.tensor([3, 2, 2]))
    with pytest.raises(RuntimeError, match=message):
        layer(packed)
    if not (layer.reverse or layer.bidirectional):
        with pytest.raises(RuntimeError, match=message):
            layer.step(x[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_on_another_device(engine: str | None):
    """Of a layer that has moved, and of one of which a single weight has."""
    moved, one = warm("LSTM").to("meta"), warm("LSTM")
    one.weight_hh_l1 = nn.Parameter(one.weight_hh_l1.detach().to("meta"))
    for layer, name in ((moved, "weight_ih_l0"), (one, "weight_hh_l1")):
        message = rf"input tensor at cpu and parameter tensor {name} at meta; move .*\.to\(device\)"
        with cello.engine(engine):
            with pytest.raises(RuntimeError, match=message):
                layer(inputs())
            with pytest.raises(RuntimeError, match=message), torch.no_grad():
                layer.step(inputs()[0])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["padded", "lengths", "packed", "step"])
def test_a_state_on_another_device(name: str, form: str):
    layer, x = warm(name), inputs()
    _, state = layer(x)
    is_pair = isinstance(state, tuple)
    wrong = [(state[0], other(state[1])), other(state)] if is_pair else [other(state)]
    for hx in wrong:
        expected = "hx" if not is_pair else r"hx\[0\] \(h\)" if hx[0].is_meta else r"hx\[1\] \(c\)"
        message = rf"found input tensor at cpu and hidden tensor {expected} at meta"
        run, options, given = layer, {}, x
        if form == "packed":
            given = pack_padded_sequence(x, LENGTHS)
        elif form == "lengths":
            options["lengths"] = LENGTHS
        elif form == "step" and not (layer.reverse or layer.bidirectional):
            run, given = layer.step, x[0]
        with pytest.raises(RuntimeError, match=message):
            run(given, hx, **options)


def test_a_learned_state_on_another_device():
    layer = warm("learned start")
    layer.initial_c_l0 = nn.Parameter(layer.initial_c_l0.detach().to("meta"))
    with pytest.raises(RuntimeError, match="hidden tensor initial_c_l0 at meta"):
        layer(inputs())


def test_indices_of_a_packed_sequence_on_another_device():
    packed = pack_padded_sequence(inputs(), [2, 5, 3], enforce_sorted=False)
    data, sizes, order, back = packed
    with pytest.raises(RuntimeError, match="data at cpu and unsorted_indices at meta"):
        cello.nn.GRU(3, 4)(PackedSequence(data, sizes, order, back.to("meta")))


def test_lengths_without_numbers():
    with pytest.raises(ValueError, match=r"lengths must hold numbers, got .* meta device"):
        cello.nn.GRU(3, 4)(inputs(), lengths=torch.tensor(LENGTHS, device="meta"))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("activation", [None, "softsign"])
def test_a_cell_on_two_devices(name: str, activation: str | None):
    options = {} if activation is None else {"activation": activation}
    cell = getattr(cello.nn, name)(3, 4, **options)
    x, h = inputs()[0], torch.zeros(3, 4)
    hx = (h, h.to("meta")) if name == "LSTMCell" else h.to("meta")
    expected = r"hx\[1\]" if name == "LSTMCell" else "hx"
    with pytest.raises(RuntimeError, match=rf"input tensor at cpu and hidden tensor {expected} at"):
        cell(x, hx)
    with pytest.raises(RuntimeError, match="at meta and parameter tensor weight_ih at cpu"):
        cell(x.to("meta"))
    cell.bias_hh = nn.Parameter(cell.bias_hh.detach().to("meta"))
    with pytest.raises(RuntimeError, match="at cpu and parameter tensor bias_hh at meta"):
        cell(x)


@pytest.mark.parametrize("engine", [None, "native"])
@pytest.mark.parametrize("name", ["x.weight", "h.bias", "rate", "scale"])
def test_a_tensor_of_a_custom_cell_without_numbers(name: str, engine: str | None):
    """torch.nn.functional.linear would read memory that is not there, and return anything."""
    layer = cello.Recurrent(Leaky())
    layer(inputs())
    *path, last = name.split(".")
    owner: Any = layer.cells["l0"]
    for part in path:
        owner = getattr(owner, part)
    tensor = getattr(owner, last).detach().to("meta")
    setattr(owner, last, nn.Parameter(tensor) if path else tensor)
    with cello.engine(engine), pytest.raises(RuntimeError, match=rf"{name}.* on meta"):
        layer(inputs())


def test_a_custom_cell_is_told_what_is_elsewhere():
    layer, x = cello.Recurrent(Leaky()), inputs()
    layer(x)
    with pytest.raises(RuntimeError) as caught:
        layer.to("meta")(x.to("meta"))
    assert str(caught.value).endswith(
        "The input of Leaky is on meta. These tensors are not: scale on cpu (a plain attribute, which "
        ".to() does not move: register_buffer makes a buffer of it)"
    )
    layer = cello.Recurrent(Leaky())
    with pytest.raises(RuntimeError, match=r"rate on cpu, x\.weight on cpu, .* and 2 more"):
        layer(x.to("meta"))
    with pytest.raises(RuntimeError, match=r"is on cpu\. These tensors are not: state 'h' on meta"):
        layer(x, torch.zeros(1, 3, 4, device="meta"))


class Carries(nn.Module):
    """A cell that brings its input to where its weights are, as parts of large models do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.x, self.h = nn.Linear(3, 4, device="meta"), nn.Linear(4, 4, device="meta")

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x.to("meta")) + self.h(h.to("meta")))


def test_a_cell_that_brings_tensors_together_runs_as_in_a_loop_of_ones_own():
    layer = cello.Recurrent(Carries())
    with cello.engine("reference"):
        output, state = layer(inputs())
        assert (output.device.type, state.device.type) == ("meta", "meta")
        assert layer(inputs(), state)[0].shape == (5, 3, 4)


class Asks(nn.Module):
    """A cell that does something else on another device, and has a number on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.x = nn.Linear(3, 4)
        self.two = torch.tensor(2.0)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.two * h + self.x(x)
        return h.sigmoid() if x.is_meta else h.tanh()


def test_a_program_is_for_one_device():
    ops = []
    for device in ("cpu", "meta", "cpu"):
        layer = cello.Recurrent(Asks())
        layer(inputs())
        ((cell,),) = layer.to(device)._cells()
        rows = torch.zeros(2, 3, device=device), (torch.zeros(2, 4, device=device),)
        program = compiled(cell, *rows)
        ops.append({str(node.op).split(".")[1] for node in program.trace.nodes if node.op})
        statics = program.static_tensors(cell, torch.device(device))
        assert {static.device.type for static in statics} == {device}  # the number, too
        assert program.elsewhere(cell, torch.device(device)) is None
    assert [{"tanh", "sigmoid"} & found for found in ops] == [{"tanh"}, {"sigmoid"}, {"tanh"}]


@pytest.mark.parametrize(
    "options", [{}, {"lengths": [5, 0, 2]}, {"return_states": "all"}, "packed"]
)
@pytest.mark.parametrize("name", [*LAYERS, "custom cell"])
def test_no_layer_reads_numbers(name: str, options: Any):
    """On a GPU each number that Python reads makes it wait; on the meta device there are none."""
    layer: Any = cello.Recurrent(Asks()) if name == "custom cell" else LAYERS[name]()
    layer, x = layer.to("meta"), inputs().to("meta").requires_grad_()
    if options == "packed":
        packed = pack_padded_sequence(inputs(), [2, 5, 3], enforce_sorted=False)
        data, order, back = (t.to("meta") for t in (packed.data, packed[2], packed[3]))
        output = layer(PackedSequence(data, packed.batch_sizes, order, back))[0].data
        x = []
    else:
        with cello.engine("reference" if options.get("lengths") else None):
            output = layer(x, **options)[0]
        x = [x]
    found = torch.autograd.grad(output.sum(), [*x, *layer.parameters()], allow_unused=True)
    assert output.is_meta
    assert found[0] is not None
