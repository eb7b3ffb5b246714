"""torch.compile and torch.export see a layer on the native engine as one operator a direction."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import cello

SCAN = torch.ops.cello.scan.default


class Leaky(nn.Module):
    """A foreign cell with a number and a flag that may change between calls."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.hidden_size, self.rate = size, 0.5
        self.x, self.h = nn.Linear(features, size), nn.Linear(size, size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.x(x) + self.h(h))
        return h + self.rate * (new - h) if self.training else new


class Deeper(cello.Cell):
    """A cell of Cello's, with two states and an initial state that is learned."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.graphs = nn.LSTMCell(features, size)
        self.start = nn.Parameter(torch.randn(size))

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"cold": self.graphs.hidden_size, "warm": self.graphs.hidden_size}

    def initial_state(self, batch_size: int, *, dtype: Any, device: Any) -> Any:
        start = self.start.expand(batch_size, -1)
        return start, start.tanh()

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = self.graphs(x, state)
        return h * c, (h, c)


LAYERS = {
    "stock": lambda: cello.nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "batch first": lambda: cello.nn.GRU(4, 10, batch_first=True, learn_initial_state=True),
    "piecewise linear": lambda: cello.nn.GRU(4, 10, gate_activation="hardsigmoid", reverse=True),
    "foreign": lambda: cello.Recurrent(Leaky(4, 10)),
    "own": lambda: cello.Recurrent(Deeper(4, 10)),
}
SCANS = {"stock": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "padded": {},
    "states": {"return_states": True},
    "all states": {"return_states": "all"},
}


@pytest.fixture(params=LAYERS, ids=str)
def name(request) -> str:
    torch.manual_seed(0)
    torch.compiler.reset()
    return request.param


def leaves(result: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(result)


def assert_same(given: Any, expected: Any) -> None:
    same = torch.utils._pytree.tree_structure(given) == torch.utils._pytree.tree_structure(expected)
    assert same
    for a, b in zip(leaves(given), leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


def forget_programs() -> None:
    """Make the next layer compile its cells as if it were the first with them."""
    sys.modules["cello.compile.cache"]._programs.clear()


class Graphs:
    """A backend that keeps the graphs of forward passes."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func

        def forward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            self.graphs.append(graph)
            return make_boxed_func(graph.forward)

        return aot_autograd(
            fw_compiler=forward, bw_compiler=lambda g, i: make_boxed_func(g.forward)
        )(graph, inputs)

    def scans(self) -> list[int]:
        return [sum(n.target is SCAN for n in graph.graph.nodes) for graph in self.graphs]

    def nodes(self) -> int:
        return sum(len(graph.graph.nodes) for graph in self.graphs)


class Model(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 4), layer, nn.Linear(10, 2)

    def forward(self, x: Any, *args: Any, **options: Any) -> tuple[Tensor, Any]:
        result = self.layer(torch.relu(self.embed(x)), *args, **options)
        return self.head(result[0]), result


# torch.compile reads .grad of what goes into a layer, and keeps the warning to itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_operator_a_direction(name: str, options: dict[str, Any]):
    model, graphs = Model(LAYERS[name]()), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True, dynamic=False)
    x = torch.randn(7, 3, 4)
    given, expected = compiled(x, **options), model(x, **options)
    assert_same(given, expected)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(given[0].square().sum(), weights, allow_unused=True)
    for a, b in zip(
        gradients,
        torch.autograd.grad(expected[0].square().sum(), weights, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert graphs.scans() == [SCANS.get(name, 1)]
    state = expected[1][1]
    assert_same(compiled(x, state, **options), model(x, state, **options))


def test_any_size(name: str):
    forget_programs()
    layer, graphs = LAYERS[name](), Graphs()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True, dynamic=True)
    layer(torch.randn(2, 2, 4))
    for steps, batch in ((7, 3), (9, 5), (12, 6)):
        x = torch.randn(steps, batch, 4)
        assert_same(compiled(x), layer(x))
    assert len(graphs.graphs) == 1
    x = torch.randn(9, 4)  # one sequence without a batch
    assert_same(compiled(x), layer(x))


def test_the_default_backend_in_a_training_step():
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Model(cello.nn.LSTM(4, 10))
    other = Model(cello.nn.LSTM(4, 10))
    other.load_state_dict(model.state_dict())
    start = time.monotonic()
    compiled = torch.compile(other, fullgraph=True)
    for module, run in ((model, model), (other, compiled)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for seed in range(3):
            x = torch.randn(100, 3, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            run(x)[0].square().mean().backward()
            optimizer.step()
    assert time.monotonic() - start < 60  # seconds, where an unrolled loop took minutes
    assert_same(dict(other.named_parameters()), dict(model.named_parameters()))


def test_what_changes_between_calls():
    torch.manual_seed(0)
    torch.compiler.reset()
    layer, x = cello.Recurrent(Leaky(4, 5)), torch.randn(7, 3, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    first = compiled(x)
    assert_same(first, layer(x))
    cell = layer.cells["l0"]
    for rate in (0.25, 1.0):
        cell.rate = rate
        assert_same(compiled(x), layer(x))
    layer.eval()
    assert_same(compiled(x), layer(x))
    with torch.no_grad():
        cell.h.weight.mul_(2)
    assert_same(compiled(x), layer(x))
    assert not torch.equal(compiled(x)[0], first[0])


@pytest.mark.parametrize("value", [torch.relu, nn.Hardtanh()], ids=["function", "module"])
def test_a_function_that_changes_between_calls(value):
    layer = cello.nn.LSTM(4, 5).double()
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.randn(6, 3, 4).double()
    first = compiled(x)[0]
    layer.activation = value
    assert_same(compiled(x)[0], layer(x)[0])
    assert not torch.equal(compiled(x)[0], first)


def test_dropout_between_layers():
    torch.compiler.reset()
    layer, x = cello.nn.LSTM(4, 5, num_layers=2, dropout=0.5), torch.randn(7, 3, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    given = compiled(x)
    torch.manual_seed(0)
    assert_same(given, layer(x))
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    layer.eval()
    assert_same(compiled(x), layer(x))


def test_a_weight_that_is_computed():
    torch.compiler.reset()
    layer, x = cello.nn.LSTM(4, 5), torch.randn(7, 3, 4)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    given, expected = compiled(x), layer(x)
    assert_same(given, expected)
    weights = list(layer.parameters())
    gradients = [torch.autograd.grad(r[0].square().sum(), weights) for r in (given, expected)]
    assert_same(*gradients)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("has_state", [False, True])
def test_export_of_a_layer_that_has_not_run(strict: bool, has_state: bool):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + self.linear(h))

    if strict and has_state:
        pytest.skip("with a state dynamo does not run the layer ahead")
    torch.compiler.reset()
    layer, x = cello.Recurrent(Plain()), torch.randn(7, 3, 4)
    given = (x, torch.randn(1, 3, 4)) if has_state else (x,)
    exported = torch.export.export(layer, given, strict=strict).module()
    assert_same(exported(*given), layer(*given))


class Both(NamedTuple):
    h: Tensor
    c: Tensor


class WithNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 5)

    def forward(self, x: Tensor, state: Both) -> Both:
        h, c = self.cell(x, (state.h, state.c))
        return state._replace(h=h, c=Both(h, c).c)


def test_a_state_with_names():
    torch.compiler.reset()
    layer, x = cello.Recurrent(WithNames(), state_size=Both(5, 5)), torch.randn(7, 3, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x)[0], layer(x)[0])


class Mapped(nn.Module):
    """Each head has a matrix, by vmap over a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        heads = h.unflatten(-1, (3, 4))
        mixed = torch.vmap(lambda w, v: v @ w, (0, 1), 1)(self.matrices, heads)
        return torch.tanh(x + mixed.flatten(1))


def test_vmap_over_a_parameter():
    torch.compiler.reset()
    layer, x = cello.Recurrent(Mapped(), state_size=12), torch.randn(5, 2, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x), layer(x))
    with pytest.raises(RuntimeError, match="fake tensor"):  # as of a loop by hand
        torch.export.export(layer, (x,))


def test_hooks_of_the_layer_run_once():
    torch.compiler.reset()
    layer, x = cello.nn.GRU(4, 5), torch.randn(7, 3, 4)
    layer.register_forward_hook(lambda module, args, result: (result[0] + 1, result[1]))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x), layer(x))


def test_packed_sequences_are_left_out_of_the_graph():
    torch.manual_seed(0)
    torch.compiler.reset()
    layer, graphs = cello.nn.GRU(4, 10), Graphs()
    x = pack_sequence([torch.ones(7, 4), torch.ones(2, 4)])

    def around(x: Any) -> Any:
        output, state = layer(x)
        return output, state.relu() + 1

    compiled = torch.compile(around, backend=graphs)
    assert_same(compiled(x), around(x))
    assert sum(graphs.scans()) == 0
    assert 0 < graphs.nodes() < 40  # what is around the layer, and no loop over time


@pytest.mark.parametrize("engine", ["vendor", "reference"])
def test_another_engine_is_left_out_of_the_graph(engine: str):
    torch.manual_seed(0)
    torch.compiler.reset()
    model, x, graphs = Model(cello.nn.GRU(4, 10)), torch.randn(50, 3, 4), Graphs()
    compiled = torch.compile(model, backend=graphs)
    assert_same(compiled(x), model(x))
    assert sum(graphs.scans()) == 1
    graphs.graphs.clear()
    with cello.engine(engine), cello.engines.observe() as seen:
        assert_same(compiled(x), model(x))
    assert [choice.engine.name for _, choice in seen] == [engine] * 2
    assert sum(graphs.scans()) == 0
    assert graphs.nodes() < 40


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export(name: str, strict: bool, tmp_path: Path):
    forget_programs()
    layer, x = LAYERS[name](), torch.randn(7, 3, 4)
    if isinstance(layer, cello.Recurrent):
        layer(x)  # a foreign cell is tried at the first call, outside of the export
    sizes = {0: Dim("B"), 1: Dim("T")} if name == "batch first" else {0: Dim("T"), 1: Dim("B")}
    exported = torch.export.export(layer, (x,), dynamic_shapes={"input": sizes}, strict=strict)
    assert sum(n.target is SCAN for n in exported.graph.nodes) == SCANS.get(name, 1)
    for steps, batch in ((7, 3), (11, 5), (2, 2)):
        fresh = torch.randn(steps, batch, 4)
        assert_same(leaves(exported.module()(fresh)), leaves(layer(fresh)))
    if strict:
        return
    fresh = torch.randn(11, 5, 4)
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.save((fresh, leaves(layer(fresh))), tmp_path / "expected.pt")
    code = f"""
import sys; sys.path[:0] = {[str(Path(cello.__file__).parents[1])]!r}
import torch, cello
model = torch.export.load({str(tmp_path / "model.pt2")!r}).module()
x, expected = torch.load({str(tmp_path / "expected.pt")!r})
for given, known in zip(torch.utils._pytree.tree_leaves(model(x)), expected, strict=True):
    assert torch.equal(given, known)
model(x)[0].sum().backward()
assert any(p.grad is not None and p.grad.any() for p in model.parameters())
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_export_of_one_sequence():
    forget_programs()
    layer, x = cello.nn.GRU(4, 5), torch.randn(9, 4)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: Dim("T")}})
    fresh = torch.randn(12, 4)
    assert_same(leaves(exported.module()(fresh)), leaves(layer(fresh)))


def test_an_export_without_gradients_saves_nothing_for_them():
    layer, x = cello.nn.LSTM(4, 5), torch.randn(7, 3, 4)
    counts = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            exported = torch.export.export(layer, (x,))
        (node,) = (n for n in exported.graph.nodes if n.target is SCAN)
        counts.append(len(node.meta["val"]))
    assert counts == [4, 3]  # output and two states, and what is saved


SETTINGS = {"rate": 2.0}


@pytest.mark.parametrize("place", ["global", "list", "object", "closure", "tensor", "class"])
def test_settings_that_a_graph_would_not_see_change(place: str):
    holder = {"rate": 2.0}

    class Reads(nn.Module):
        shared = [2.0]  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.w, self.h = nn.Linear(3, 4), nn.Linear(4, 4)
            self.list, self.object = [2.0], SimpleNamespace(rate=2.0)
            self.plain = torch.full((4,), 2.0)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            new = torch.tanh(self.w(x) + self.h(h))
            if place == "tensor":
                return new * self.plain
            if place == "global":
                return new * SETTINGS["rate"]
            if place == "closure":
                return new * holder["rate"]
            if place == "class":
                return new * self.shared[0]
            return new * (self.list[0] if place == "list" else self.object.rate)

    layer, x = cello.Recurrent(Reads()), torch.randn(5, 2, 3)
    run = torch.compile(lambda x: layer(x)[0], backend="aot_eager")
    cell: Any = layer.cells["l0"]
    layer(x)
    try:
        for rate in (2.0, 0.5, 1.0):
            SETTINGS["rate"] = holder["rate"] = cell.list[0] = cell.object.rate = rate
            cell.shared[0] = rate
            cell.plain.fill_(rate)
            torch.testing.assert_close(run(x), layer(x)[0])
    finally:
        SETTINGS["rate"] = 2.0


class Indexed(nn.Module):
    """A cell that indexes what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(2, 4))
        self.register_buffer("rows", torch.rand(3, 4))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.w[0] * h + self.w[1:, ...] * x + self.rows[-1, :])


def test_export_of_a_cell_that_indexes_its_weights():
    layer, x = cello.Recurrent(Indexed(), state_size=4), torch.randn(7, 3, 4)
    expected, _ = layer(x)
    sizes = ({0: Dim("T", min=2), 1: Dim("B", min=2)},)
    for _ in range(2):
        program = torch.export.export(layer, (x,), dynamic_shapes=sizes)
        assert [n.target for n in program.graph.nodes].count(SCAN) == 1
        torch.testing.assert_close(program.module()(x)[0], expected)
        torch.testing.assert_close(program.module()(x[:5, :2])[0], layer(x[:5, :2])[0])


def test_export_of_functions_that_torch_keeps_whole():
    """Within torch.export composite operations are not taken apart, of which a trace knows the parts."""

    def step(x: Tensor, h: Tensor) -> Tensor:
        return F.relu6(F.selu(x)) + F.rms_norm(h, (4,))

    layer, x = cello.Recurrent(step, state_size=4), torch.randn(7, 3, 4)
    expected, _ = layer(x)
    forget_programs()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim("T"), 1: Dim("B")},))
    assert [n.target for n in program.graph.nodes].count(SCAN) == 1
    torch.testing.assert_close(program.module()(x)[0], expected)


def test_a_step_that_cannot_be_traced_does_not_disturb_an_export():
    """An error within a call of a module would leave the stack of torch's tracer as it was."""

    def step(x: Tensor, h: Tensor) -> Tensor:
        assert h.requires_grad in (True, False)
        return torch.tanh(x + h)

    class Asking(Indexed):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return step(x, h) * self.w.sum()

    layer, x = cello.Recurrent(Asking(), state_size=4), torch.randn(3, 2, 4)
    expected, _ = layer(x)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x)[0], expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_empty_batch(bidirectional: bool):
    layer, x = cello.nn.LSTM(5, 7, bidirectional=bidirectional), torch.randn(4, 0, 5)
    output, (h, _) = torch.compile(layer, backend="aot_eager")(x)
    expected, (h_n, _) = layer(x)
    assert (output.shape, h.shape) == (expected.shape, h_n.shape)


def test_a_cell_whose_state_changes_its_dtype_under_autocast():
    layer, x = cello.Recurrent(Leaky(4, 4)), torch.randn(6, 3, 4)
    compiled = torch.compile(layer, backend="aot_eager")
    compiled(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = layer(x)
        found, _ = compiled(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = cello.nn.LSTM(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.lstm(x)[0]


def test_export_under_autocast_keeps_the_dtype():
    model, x = Autocast().eval(), torch.randn(6, 4, 5)
    found = torch.export.export(model, (x,)).module()(x)
    assert found.dtype == model(x).dtype == torch.bfloat16
    torch.testing.assert_close(found, model(x), rtol=0.05, atol=0.02)


def test_a_selective_checkpoint_of_the_first_call():
    """Both calls of a checkpoint do the same operations."""
    contexts = partial(
        create_selective_checkpoint_contexts,
        lambda *_, **__: CheckpointPolicy.PREFER_RECOMPUTE,
    )
    layer, x = cello.nn.LSTM(5, 7), torch.randn(6, 4, 5, requires_grad=True)
    for _ in range(2):
        output, _ = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
        found = torch.autograd.grad(output.sum(), x)
        torch.testing.assert_close(found, torch.autograd.grad(layer(x)[0].sum(), x))
