"""Loops as graphs of steps in Triton's interpreter: values and every gradient against other engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import random_cells
import random_runs
import torch
from cases import exact_derivatives
from samples import COMPILED, LAYERS, Sample
from steps import assert_close, assert_close_to_double, evaluate, random
from torch import Tensor, nn

import cello
from cello.engines.triton import Triton, graph, kernel, kinds
from cello.engines.triton.library import is_interpreted

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")
pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("default_dtype"),
]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small cells run as graphs of steps too, in blocks of three steps."""
    monkeypatch.setattr(kinds, "SMALL", -1)
    monkeypatch.setattr(graph, "BLOCK", 3)
    kernel.compiled.cache_clear()
    yield
    kernel.compiled.cache_clear()


@pytest.fixture
def kept(graphs: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are kept from call to call, as on a GPU; what is replayed are the launches themselves."""
    monkeypatch.setattr(graph, "may_be_kept", lambda like: True)
    monkeypatch.setattr(graph.Capture, "__init__", lambda *_: None)
    monkeypatch.setattr(graph.Capture, "of", lambda _, launches: launches)
    monkeypatch.setattr(graph, "FEW", 0)
    graph._kept.cache_clear()
    yield
    graph._kept.cache_clear()


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("name", COMPILED)
def test_a_cell(name: str):
    sample = Sample(name, 4, 6, torch.float64)
    with exact_derivatives():
        expected = sample.run("reference", lengths=[2, 1, 0, 2])
    assert_close(sample.run(Triton(), lengths=[2, 1, 0, 2]), expected, 1e-10)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("options", [{"lengths": [4, 2, 0, 3]}, {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), random(4, 4, 5)
    found, expected = (evaluate(layer, x, (), e, **options) for e in (Triton(), "native"))
    assert_close(found, expected)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("seed", range(12, 18))
def test_random_cells(seed: int):
    drawn = random_cells.draw(seed)
    if random_runs.nearest_kink(drawn) > 1e-9:
        found, expected = (
            random_runs.run(drawn, e, torch.float64) for e in (Triton(), "reference")
        )
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, equal_nan=True)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype):
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(5, 20, dtype=dtype), random(4, 4, 5).to(dtype)
    assert_close_to_double(layer, x, Triton())


@pytest.mark.parametrize("rows", [16, 1])
def test_a_layer_that_is_too_large_for_a_program(rows: int, monkeypatch: pytest.MonkeyPatch):
    """More numbers than a program owns, initial states, both directions; by one row as on a GPU, too."""
    monkeypatch.setattr(graph, "ROWS", rows)
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(8, 200, proj_size=150, bidirectional=True), random(3, 3, 8)
    state = [random(2, 3, 150), random(2, 3, 200)]
    found, expected = (
        evaluate(layer, x, state, e, lengths=[3, 1, 2]) for e in (Triton(), "native")
    )
    assert_close(found, expected)


class Normalised(nn.Module):
    """Sums over a row between products of two levels, and states of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(5, 300), nn.Linear(300, 300)
        self.norm = nn.LayerNorm(300)
        self.deep, self.out = nn.Linear(300, 40), nn.Linear(40, 300)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, m = state
        deep = torch.tanh(self.deep(self.norm(self.x(x) + self.h(h)))) + m
        return deep, (torch.sigmoid(self.out(deep)) * h, 0.5 * deep)


def test_products_of_several_levels():
    torch.manual_seed(0)
    layer, x = cello.Recurrent(Normalised(), state_size=(300, 40)), random(3, 3, 5)
    state = [random(1, 3, 300), random(1, 3, 40)]
    found, expected = (
        evaluate(layer, x, state, e, tuple, lengths=[2, 3, 0]) for e in (Triton(), "native")
    )
    assert_close(found, expected)


class Part(nn.Module):
    """Goes on with a part of a product, so that the gradient of the rest is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.x = nn.Linear(200, 400), nn.Linear(5, 200)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.h(h)[:, 100:300] + self.x(x))


def test_zeros_beside_the_numbers_of_another_program():
    torch.manual_seed(0)
    layer, x = cello.Recurrent(Part()), random(2, 2, 5)
    found, expected = (evaluate(layer, x, (), e) for e in (Triton(), "native"))
    assert_close(found, expected)


@pytest.mark.usefixtures("kept")
def test_calls_that_replay_a_kept_graph():
    """Of other batches, lengths and weights, and of the same batch once more."""
    torch.manual_seed(0)
    layer = cello.nn.GRU(3, 4)
    calls = [
        (random(7, 4, 3), [7, 2, 5, 0]),
        (random(8, 4, 3), None),
        (random(2, 4, 3), [1, 2, 2, 1]),
        (random(7, 4, 3), [6, 6, 1, 7]),
    ]
    for x, lengths in calls:
        found, expected = (evaluate(layer, x, (), e, lengths=lengths) for e in (Triton(), "native"))
        assert_close(found, expected)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(0.9)
    # Forward and backward, of 3 sequences that are not empty, and of 4.
    assert graph._kept.cache_info().misses == 4


@pytest.mark.usefixtures("kept")
def test_a_graph_that_another_call_has_left_dirty():
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(3, 4), random(5, 3, 3)
    with torch.no_grad(), cello.engine(Triton()):
        expected = layer(x)
        layer(torch.full((9, 3, 3), torch.nan))
        found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.usefixtures("kept")
def test_steps_one_by_one():
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(3, 4), random(5, 2, 3)
    state, outputs = None, []
    with torch.no_grad():
        with cello.engine(Triton()):
            for row in x:
                output, state = layer.step(row, state)
                outputs.append(output)
        expected, last = layer(x)
    torch.testing.assert_close((torch.stack(outputs), state), (expected, last))


class Stream:
    """Writes down who waits for it."""

    current: Stream
    told: list[tuple[Any, ...]]

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        self.told.append(("wait", self, other))


class entered:  # noqa: N801 - stands for torch.cuda.stream
    def __init__(self, stream: Stream) -> None:
        self.stream = self.before = stream

    def __enter__(self) -> None:
        self.before, Stream.current = Stream.current, self.stream

    def __exit__(self, *_: Any) -> None:
        Stream.current = self.before


@pytest.mark.parametrize("fails", [False, True])
def test_two_directions_have_two_streams(fails: bool, monkeypatch: pytest.MonkeyPatch):
    """Each waits for the other where it must, also if something goes wrong in between."""
    Stream.told = told = []
    Stream.current = here = Stream()
    monkeypatch.setattr(graph, "may_be_kept", lambda like: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream.current)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    graph._stream_beside.cache_clear()

    def second() -> None:
        told.append(("second", Stream.current))
        if fails:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        graph.at_once(lambda: told.append(("first", Stream.current)), second, torch.empty(0))
    beside = graph._stream_beside(torch.device("cpu"))
    graph._stream_beside.cache_clear()
    first = [] if fails else [("first", here)]
    assert told == [("wait", beside, here), ("second", beside), *first, ("wait", here, beside)]
    assert beside is not here


class Broken:
    """A CUDA graph whose capture fails, as torch's does."""

    def capture_begin(self, *_: Any, **__: Any) -> None:
        pass

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture\nand more")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streams and graphs that are none, for torch's own way of capturing."""
    Stream.told, Stream.current = [], Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Broken)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    graph._free_streams.cache_clear()
    yield
    graph._free_streams.cache_clear()


@pytest.mark.usefixtures("streams")
def test_what_cannot_be_captured_is_launched_on_the_stream_of_the_caller():
    here, there = Stream.current, []
    capture = graph.Capture(torch.device("cpu"))
    with pytest.warns(RuntimeWarning, match=r"in a CUDA graph \(operation failed .* capture\);"):
        assert capture.of(lambda: there.append(Stream.current)) is None
    assert there == [capture.stream]
    assert Stream.current is here


@pytest.mark.usefixtures("graphs")
def test_after_a_capture_that_fails_nothing_is_replayed(monkeypatch: pytest.MonkeyPatch):
    """What fails may take the memory that what was captured before works in."""
    captured, replayed = [], []

    def of(_: graph.Capture, launches: Any) -> Any:
        captured.append(launches)
        return (lambda: replayed.append(launches())) if len(captured) == 1 else None

    monkeypatch.setattr(graph.Capture, "__init__", lambda *_: None)
    monkeypatch.setattr(graph.Capture, "of", of)
    torch.manual_seed(0)
    monkeypatch.setattr(graph, "may_be_kept", lambda like: True)
    monkeypatch.setattr(graph, "FEW", 0)
    layer, x = cello.nn.LSTM(3, 4), random(6, 3, 3)
    graph._kept.cache_clear()
    with torch.no_grad():
        expected, _ = layer(x)
        with cello.engine(Triton()):
            for lengths, blocks in ([6, 6, 6], 1), ([6, 6, 3], 2), ([6, 6, 6], 2):
                found, _ = layer(x, lengths=lengths)
                assert len(replayed) == blocks
    graph._kept.cache_clear()
    assert len(captured) == 3  # of three rows, of two, and again of three
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("streams")
def test_graphs_have_streams_of_their_own():
    device = torch.device("cpu")
    found = [graph.Capture(device) for _ in range(graph.KEPT)]
    assert len({capture.stream for capture in found}) == graph.KEPT
    stream = found.pop().stream
    assert graph.Capture(device).stream is stream  # which nothing uses any more


def test_few_graphs_for_all_numbers_of_rows():
    found = {rows: graph.rounded(rows) for rows in range(1, 1025)}
    assert all(rows <= more <= rows * 1.125 + 1 for rows, more in found.items())
    assert len(set(found.values())) < 70
    assert all(graph.rounded(more) == more for more in found.values())


@pytest.mark.usefixtures("graphs")
def test_another_batch_runs_the_same_kernels():
    layer = cello.nn.LSTM(3, 4)
    with cello.engine(Triton()):
        layer(random(4, 2, 3))
        before = kernel.compiled.cache_info().misses
        layer(random(7, 20, 3))
        layer(random(5, 3, 3), lengths=[1, 5, 2])
    assert kernel.compiled.cache_info().misses == before


def test_the_kind_is_chosen_by_the_program_and_the_shape():
    texts = {}
    for width, dtype in ((64, torch.float32), (64, torch.float64), (150, torch.float32)):
        layer = cello.nn.LSTM(8, width, dtype=dtype)
        with torch.no_grad(), cello.engine(Triton()):
            (plan,) = cello.explain(layer, random(2, 1, 8).to(dtype)).plans
        texts[width, dtype] = plan.program[-1]
    small, large = "not more than 150 KB", "more than 150 KB"
    told = "since the matrices of a step have {} KB"
    end = "; CELLO_TRITON=persistent selects persistent kernels, not measured on a GPU yet"
    assert texts[64, torch.float32] == f"kernels: by rows, {told.format(64)}, {small}{end}"
    assert texts[64, torch.float64] == f"kernels: by rows, {told.format(128)}, {small}{end}"
    assert texts[150, torch.float32] == f"kernels: graph of steps, {told.format(352)}, {large}{end}"


@pytest.mark.usefixtures("graphs")
def test_segments_of_a_long_sequence():
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(3, 4), random(5, 2, 3).requires_grad_()
    found = []
    for engine, segment in ((Triton(), 2), ("native", 0)):
        with cello.engine(engine, segment=segment):
            loss = layer(x)[0].sin().sum()
        found.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("kept")
def test_a_graph_made_in_inference_mode_serves_other_calls():
    layer = cello.nn.GRU(3, 4)
    x = torch.randn(5, 2, 3)
    with cello.engine("triton"):
        with torch.inference_mode():
            first = layer(x)[0]
        with torch.no_grad():
            second = layer(x)[0]
    assert torch.equal(first, second)
