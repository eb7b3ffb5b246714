"""torch.compile and torch.export around layers on the Triton engine, in Triton's interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import cello
from cello.engines.choose import ENGINES
from cello.engines.native.kernel import NativeKernel
from cello.engines.programs import operator
from cello.engines.triton import kernel
from cello.engines.triton.library import is_interpreted

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")
pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


class Leaky(nn.Module):
    """A custom cell with a number that may change between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.rate = 10, 0.5
        self.x, self.h = nn.Linear(4, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + self.rate * (torch.tanh(self.x(x) + self.h(h)) - h)


LAYERS = {
    "stack": lambda: cello.nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "custom cell": lambda: cello.Recurrent(Leaky()),
}
SCANS = {"stack": 4, "custom cell": 1}


class Model(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 4), LAYERS[name](), nn.Linear(10, 2)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.head(self.layer(torch.relu(self.embed(x)), **options)[0])


@pytest.fixture(params=LAYERS)
def name(request) -> str:
    torch.manual_seed(0)
    torch.compiler.reset()
    return request.param


@pytest.fixture
def runs(monkeypatch) -> Iterator[Counter[bool]]:
    """Let the operators run on the interpreter's kernels, as on a GPU; count runs by direction."""
    seen: Counter[bool] = Counter()
    real = kernel.TritonKernel.run

    def run(calls: list[kernel.Call]) -> None:
        seen.update(bool(call.origins) for call in calls)
        real(calls)

    monkeypatch.setattr(kernel.TritonKernel, "run", staticmethod(run))
    monkeypatch.setitem(operator._kinds, "cpu", kernel.TritonKernel)
    with cello.engine("triton"):
        yield seen


def evaluate(run: Any, model: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradients of the weights."""
    output = run(x, **options)
    return [output, *torch.autograd.grad(output.square().sum(), [*model.parameters()])]


def in_a_loop(model: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    with cello.engine("reference"):
        return evaluate(model, model, x, **options)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_model_is_one_graph(name: str, backend: str, runs):
    """Of any number of steps and sequences."""
    model = Model(name)
    model(torch.randn(2, 2, 4))
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for shape in ((7, 3, 4), (5, 2, 4), (9, 18, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(evaluate(compiled, model, x), in_a_loop(model, x))
    runs.clear()
    evaluate(compiled, model, x)
    assert runs == {False: SCANS[name], True: SCANS[name]}


def test_a_number_that_changes(runs):
    torch.compiler.reset()
    model = Model("custom cell")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, found = torch.randn(5, 3, 4), []
    for rate in (0.5, 0.25):
        model.layer.cells["l0"].rate = rate
        found.append(evaluate(compiled, model, x))
        torch.testing.assert_close(found[-1], in_a_loop(model, x))
    assert not torch.equal(found[0][0], found[1][0])


def test_lengths_are_a_tensor_of_the_graph(name: str, runs):
    """As on the native engine, for any of them: what counts is packed when the graph runs."""
    model, x = Model(name), torch.randn(6, 3, 4)
    model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for lengths in map(torch.tensor, ([6, 2, 4], [3, 5, 0])):
        found = evaluate(compiled, model, x, lengths=lengths)
        torch.testing.assert_close(found, in_a_loop(model, x, lengths=lengths))
    assert runs[True] == 2 * SCANS[name]


def test_export(name: str, runs):
    layer = LAYERS[name]()
    layer(torch.randn(2, 2, 4))
    sizes = {0: Dim("T"), 1: Dim("B")}
    exported = torch.export.export(
        layer, (torch.randn(7, 3, 4),), dynamic_shapes={"input": sizes}, strict=False
    )
    scan = torch.ops.cello.scan.default
    assert sum(n.target is scan for n in exported.graph.nodes) == SCANS[name]
    x = torch.randn(5, 6, 4)
    with np.errstate(all="raise"):
        found = exported.module()(x)[0]
    with cello.engine("reference"):
        torch.testing.assert_close(found, layer(x)[0])


@pytest.mark.parametrize("options", [{}, {"lengths": [5, 2, 4]}], ids=str)
def test_the_operators_keep_the_rules_of_torch(options: dict[str, Any], monkeypatch, runs):
    seen: list[Any] = []
    real = operator.scan_operator

    def scan(kernel, program, layout, descending, *groups):
        seen.append((kernel.text, *groups, layout.sizes_tensor, layout.rows, descending))
        return real(kernel, program, layout, descending, *groups)

    monkeypatch.setattr("cello.engines.programs.scan.scan_operator", scan)
    monkeypatch.setattr("cello.engines.programs.scan.have_memory", lambda tensors: False)
    layer = cello.nn.LSTM(3, 4).double()
    layer(torch.randn(5, 3, 3).double().requires_grad_(), **options)
    text, *groups, sizes, rows, descending = seen[-1]
    groups = [[t.detach().requires_grad_() for t in group] for group in groups]
    torch.library.opcheck(torch.ops.cello.scan.default, (text, *groups, sizes, rows, descending))
    own = kernel.TritonKernel.read(text)
    found = [t.detach() for t in torch.ops.cello.scan(text, *groups, sizes, rows, descending)]
    count = len(own.widths)
    kept = [r for r, is_read in zip(found, own.reads, strict=False) if is_read]
    kept += found[count + len(groups[2]) :]
    given = [True] * (count + len(groups[2]))
    seeds = [torch.randn_like(t) for t in found[: len(given)]]
    groups = [[t.detach() for t in group] for group in groups]
    torch.library.opcheck(
        torch.ops.cello.scan_backward.default,
        (text, seeds, given, *groups, kept, sizes, rows, descending),
    )
    assert runs[True] > 0


@pytest.mark.parametrize(("steps", "count"), [(0, 3), (3, 0), (0, 0)])
def test_operators_of_nothing(steps: int, count: int, monkeypatch, runs):
    seen: list[Any] = []
    real = operator.scan_operator

    def scan(kernel, program, layout, descending, *groups):
        seen.append((kernel.text, *groups))
        return real(kernel, program, layout, descending, *groups)

    monkeypatch.setattr("cello.engines.programs.scan.scan_operator", scan)
    monkeypatch.setattr("cello.engines.programs.scan.have_memory", lambda tensors: False)
    with torch.no_grad():
        cello.nn.LSTM(3, 4)(torch.randn(5, 3, 3))
    text, inputs, statics, states = seen[-1]
    inputs = [torch.zeros(steps * count, *t.shape[1:]) for t in inputs]
    states = [torch.randn(count, *t.shape[1:]) for t in states]
    arguments = text, inputs, statics, states, None, steps * count, False
    found = torch.ops.cello.scan(*arguments)
    monkeypatch.setitem(operator._kinds, "cpu", NativeKernel)
    torch.testing.assert_close(found, torch.ops.cello.scan(*arguments), rtol=0, atol=0)


def test_without_operators_a_selected_engine_is_left_out_of_the_graph(name: str):
    """The interpreter's kernels are no operators: a graph would run the native engine in its place."""
    triton = next(e for e in ENGINES if e.name == "triton")
    assert not triton.has_operator
    model, x = Model(name), torch.randn(5, 3, 4)
    compiled = torch.compile(model, backend="aot_eager")
    with cello.engine("triton"), cello.engines.observe() as seen:
        found = evaluate(compiled, model, x)
    torch.testing.assert_close(found, in_a_loop(model, x))
    assert {choice.engine.name for _, choice in seen} == {"triton"}


class NoLaunch:
    """Kernels that are there and do nothing, by any name."""

    def __getattr__(self, name: str) -> NoLaunch:
        return self

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: None


@pytest.mark.parametrize("options", [{}, {"lengths": [5, 0, 2]}, {"return_states": True}], ids=str)
def test_nothing_around_the_kernels_reads_numbers(name: str, options: dict[str, Any], monkeypatch):
    """Each number that Python reads makes it wait for the GPU; the meta device has none to read."""
    real = kernel.compiled
    monkeypatch.setattr(kernel, "compiled", lambda *args: (real(*args)[0], NoLaunch()))
    monkeypatch.setattr(kernel.TritonKernel, "device_types", ("meta",))
    model, x = Model(name).to("meta"), torch.empty(5, 3, 4, device="meta")
    with cello.engine("triton"):
        found = evaluate(model, model, x, **options)
    assert all(tensor.is_meta for tensor in found)


def test_tf32_by_the_newer_setting():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            matmul.fp32_precision = precision
            assert kernel._precision() == precision
    finally:
        matmul.fp32_precision = before
