"""Sequences of different lengths in the graphs of torch.compile and torch.export, for any lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import cello

SCAN = torch.ops.cello.scan.default
LENGTHS = [[7, 0, 3, 1, 7], [0, 0, 4, 7, 2], [0, 0, 0, 0, 0], [7, 7, 7, 7, 7]]


class Leaky(nn.Module):
    """A cell that is not Cello's."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.hidden_size = size
        self.x, self.h = nn.Linear(features, size), nn.Linear(size, size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + 0.5 * (torch.tanh(self.x(x) + self.h(h)) - h)


class OwnStart(Leaky):
    """A cell that makes its own first state, of zeros as nn.LSTMCell does or of others."""

    def __init__(self, features: int, size: int, start: float = 0.0):
        super().__init__(features, size)
        self.start = start

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = torch.full((len(x), self.hidden_size), self.start, dtype=x.dtype)
        return h + 0.5 * (torch.tanh(self.x(x) + self.h(h)) - h)


LAYERS = {
    "stock": lambda: cello.nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True),
    "reverse": lambda: cello.nn.GRU(4, 5, learn_initial_state=True, reverse=True, batch_first=True),
    "projected": lambda: cello.nn.LSTM(4, 6, proj_size=3, batch_first=True),
    "foreign": lambda: cello.Recurrent(Leaky(4, 5), batch_first=True),
    "own start": lambda: cello.Recurrent(OwnStart(4, 5), batch_first=True),
}


class Model(nn.Module):
    """A layer as a part of a model of texts; returns all that the layer does."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.embed, self.layer = nn.Embedding(20, 4), layer

    def forward(self, ids: Tensor, lengths: Tensor) -> list[Tensor]:
        result = self.layer(self.embed(ids), lengths=lengths, return_states="all")
        return torch.utils._pytree.tree_leaves(result)


@pytest.fixture(params=LAYERS)
def model(request) -> Model:
    torch.manual_seed(0)
    torch.compiler.reset()
    return made(request.param)


@pytest.fixture(params=[name for name in LAYERS if name != "own start"])
def exportable(request) -> Model:
    torch.manual_seed(0)
    return made(request.param)


def made(name: str) -> Model:
    layer = LAYERS[name]()
    layer(torch.randn(2, 3, 4))  # a foreign cell is tried at the first call
    return Model(layer)


def ids(batch: int = 5, steps: int = 7) -> Tensor:
    return torch.randint(20, (batch, steps), generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, results: list[Tensor]) -> list[Tensor]:
    loss = sum((r * torch.linspace(0, 1, r.numel()).view(r.shape)).sum() for r in results)
    weights = list(model.parameters())
    if not loss.requires_grad:  # no sequence has a step
        return [torch.zeros_like(weight) for weight in weights]
    return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(model: Model, backend: str):
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for lengths in map(torch.tensor, LENGTHS):
        expected, found = model(ids(), lengths), compiled(ids(), lengths)
        assert_same(found, expected)
        assert_same(gradients(model, found), gradients(model, expected))


def test_compiled_once_for_all_lengths(model: Model):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(ids(), torch.tensor(LENGTHS[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in map(torch.tensor, LENGTHS):
            assert_same(compiled(ids(), lengths), model(ids(), lengths))


def test_lengths_that_are_a_list(model: Model):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for lengths in LENGTHS[:2]:
        assert_same(compiled(ids(), lengths), model(ids(), lengths))


def test_exported(exportable: Model, tmp_path: Path):
    model = exportable
    batch, steps = Dim("batch"), Dim("steps")
    exported = torch.export.export(
        model,
        (ids(), torch.tensor(LENGTHS[0])),
        dynamic_shapes=({0: batch, 1: steps}, {0: batch}),
    )
    torch.export.save(exported, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for lengths in map(torch.tensor, [*LENGTHS, [9, 2], [9]]):
        x = ids(len(lengths), 9 if len(lengths) < 5 else 7)
        assert_same(again(x, lengths), model(x, lengths))
    expected = gradients(model, model(x, lengths))
    found = again(x, lengths)
    parameters = dict(again.named_parameters())
    loss = sum((r * torch.linspace(0, 1, r.numel()).view(r.shape)).sum() for r in found)
    loss.backward()
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient)


def test_exported_with_the_python_loop(exportable: Model):
    """For a cell that is not compiled: the steps are written out, for as many as there are."""
    model = exportable
    lengths = torch.tensor(LENGTHS[0])
    with cello.engine("reference"):
        exported = torch.export.export(model, (ids(), lengths))
    assert not any(node.target is SCAN for node in exported.graph.nodes)
    for lengths in map(torch.tensor, LENGTHS):
        assert_same(exported.module()(ids(), lengths), model(ids(), lengths))


def test_exported_in_segments():
    torch.manual_seed(0)
    model = Model(cello.nn.LSTM(4, 5, bidirectional=True, batch_first=True))
    lengths = torch.tensor(LENGTHS[0])
    with cello.engine(segment=3), torch.no_grad():
        exported = torch.export.export(model, (ids(), lengths))
    assert sum(node.target is SCAN for node in exported.graph.nodes) == 6
    for lengths in map(torch.tensor, LENGTHS):
        assert_same(exported.module()(ids(), lengths), model(ids(), lengths))


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_first_state_that_an_export_does_not_know(start: float):
    x, lengths = ids(2), torch.tensor([7, 0])
    model = Model(cello.Recurrent(OwnStart(4, 5, start), batch_first=True))
    model(x, torch.tensor([7, 3]))
    with pytest.raises(RuntimeError, match=r"not known to be zero .* with lengths; give hx"):
        torch.export.export(model, (x, lengths))


def test_a_first_state_that_is_not_zero():
    x, lengths = ids(2), torch.tensor([7, 0])
    model = Model(cello.Recurrent(OwnStart(4, 5, start=1.0), batch_first=True))
    model(x, torch.tensor([7, 3]))
    compiled = torch.compile(model, backend="aot_eager")  # the layer is not in the graph
    with torch.no_grad():
        assert_same(compiled(x, torch.tensor([7, 3])), model(x, torch.tensor([7, 3])))
        with pytest.raises(cello.CellError, match="which is learned or not zero"):
            compiled(x, lengths)


class Learned(Leaky):
    """A first state that is zero until training changes it."""

    def __init__(self, features: int, size: int, is_buffer: bool = False):
        super().__init__(features, size)
        start = torch.zeros(size)
        if is_buffer:
            self.register_buffer("start", start)
        else:
            self.start = nn.Parameter(start)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = self.start.expand(len(x), -1) if h is None else h
        return h + 0.5 * (torch.tanh(self.x(x) + self.h(h)) - h)


@pytest.mark.parametrize("is_buffer", [False, True])
def test_a_first_state_that_is_zero_for_now(is_buffer: bool):
    """A graph that was made while it is zero has to see it change, and to give its gradient."""
    torch.manual_seed(0)
    torch.compiler.reset()
    layer = cello.Recurrent(Learned(4, 5, is_buffer), batch_first=True)
    start, x = layer.cells["l0"].start, torch.randn(2, 7, 4)
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        layer(x)
        compiled(x)
        torch.testing.assert_close(compiled(x), layer(x))
    if not is_buffer:
        found, expected = (
            torch.autograd.grad(run(x)[0].sum(), start)[0] for run in (compiled, layer)
        )
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        start.fill_(1.0)
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(
            compiled(x, lengths=torch.tensor([7, 2])), layer(x, lengths=[7, 2])
        )


def test_a_cell_that_reads_whole_numbers():
    """Its own first state is tried on such numbers."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.h = nn.Embedding(20, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
            h = self.embed.weight.new_zeros(len(x), 5) if h is None else h
            return torch.tanh(self.embed(x[:, 0]) + self.h(h))

    torch.manual_seed(0)
    torch.compiler.reset()
    layer, x = cello.Recurrent(Reads(), state_size=5), torch.randint(20, (7, 3, 1))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    lengths = torch.tensor([7, 0, 3])
    torch.testing.assert_close(compiled(x, lengths=lengths), layer(x, lengths=lengths))


def test_lengths_that_are_wrong():
    model = Model(cello.nn.GRU(4, 5, batch_first=True))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for wrong in (8, -1):
        with pytest.raises(ValueError, match="lengths must lie between 0 and the 7 steps"):
            compiled(ids(2), torch.tensor([3, wrong]))
    with pytest.raises(Exception, match="one length for each of the 2 sequences"):
        compiled(ids(2), torch.tensor([3, 1, 2]))
    with pytest.raises(Exception, match="lengths must hold integers"):
        compiled(ids(2), torch.tensor([3.0, 1.0]))
    with pytest.raises(ValueError, match=r"expects its lengths as \(2,\) int64"):
        scan_of(model.layer, torch.randn(7, 2, 4), torch.tensor([7, 7], dtype=torch.int32))


def scan_of(layer: Any, x: Tensor, lengths: Tensor) -> None:
    """Call the operator with lengths that no layer would give it."""
    from cello.engines.native.kernel import NativeKernel

    with cello.engines.observe() as seen:
        layer(x.transpose(0, 1))
    ((scan, choice),) = seen
    program = choice.engine._programs(scan)[0]
    kernel = NativeKernel.of(program, False, None)
    cell = scan.directions[0].cell
    flat = x.flatten(0, 1)
    torch.ops.cello.scan(
        kernel.text,
        program.input_tensors(cell, flat),
        program.static_tensors(cell, x.device),
        [torch.zeros(x.shape[1], 5)],
        None,
        len(flat),
        False,
        lengths,
    )


def test_a_graph_has_no_second_derivatives():
    model = Model(cello.nn.GRU(4, 5, batch_first=True))
    exported = torch.export.export(model, (ids(), torch.tensor(LENGTHS[0]))).module()
    output, *_ = exported(ids(), torch.tensor(LENGTHS[0]))
    weight = dict(exported.named_parameters())["layer.weight_hh_l0"]
    (first,) = torch.autograd.grad(output.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives of a scan with lengths"):
        first.square().sum().backward()
