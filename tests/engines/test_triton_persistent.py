"""Persistent kernels in Triton's interpreter: values and every gradient against other engines.

The interpreter runs the programs of a kernel one after the other, so that each phase is a launch of its
own. In one test the programs of the kernel itself run at the same time, in threads.
"""

from __future__ import annotations

import random as random_numbers
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_cells
import random_runs
import torch
from samples import LAYERS
from steps import assert_close, assert_close_to_double, evaluate, random
from torch import Tensor, nn

import cello
from cello.engines.triton import Triton, kernel, kinds, together
from cello.engines.triton.library import is_interpreted

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")
pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET is not 1"),
    pytest.mark.usefixtures("default_dtype", "selected"),
]


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Persistent kernels, whose programs own few units."""
    monkeypatch.setenv(kinds.SELECTION, "persistent")
    monkeypatch.setattr(kinds, "OWN", (4,))
    kernel.compiled.cache_clear()
    yield
    kernel.compiled.cache_clear()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many exchanges there are in a step of each loop that runs so."""
    found: list[int] = []
    run = together.run

    def counted(source: Any, *arguments: Any) -> None:
        found.append(source.text.split("def loop")[1].count("F.wait("))
        run(source, *arguments)

    monkeypatch.setattr(together, "run", counted)
    return found


@pytest.fixture
def dirty() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("dirty")
@pytest.mark.parametrize("options", [{"lengths": [4, 2, 0, 3]}, {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any], runs: list[int]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), random(4, 4, 5)
    found, expected = (evaluate(layer, x, (), e, **options) for e in (Triton(), "native"))
    assert_close(found, expected)
    loops = {"RNN": 2, "LSTM": 4, "projected": 1, "GRU": 2}[kind]
    assert runs == [2 if kind == "projected" else 1] * 2 * loops


class OwnGRU(nn.Module):
    """A matrix for each gate, the reset before the product, and a state beside that is not multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.ModuleList(nn.Linear(5, 6) for _ in range(3))
        self.h = nn.ModuleList(nn.Linear(6, 6, bias=k < 2) for k in range(3))
        self.rate = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, mean = state
        r, z = (torch.sigmoid(self.x[k](x) + self.h[k](h)) for k in range(2))
        new = torch.tanh(self.x[2](x) + self.h[2](r * h))
        h = z * h + (1 - z) * new
        mean = torch.lerp(mean, h, self.rate)
        return h - mean, (h, mean)


@pytest.mark.usefixtures("dirty")
def test_products_one_after_the_other(runs: list[int]):
    torch.manual_seed(0)
    layer, x = cello.Recurrent(OwnGRU(), state_size=(6, 6)), random(3, 4, 5)
    state = [random(1, 4, 6) for _ in range(2)]
    found, expected = (
        evaluate(layer, x, state, e, tuple, lengths=[2, 3, 0, 1]) for e in (Triton(), "native")
    )
    assert_close(found, expected)
    assert runs == [2, 2]


@pytest.mark.parametrize("kind", ["MGU", "PeepholeLSTM"])
def test_cells_with_statics_between_products(kind: str, runs: list[int]):
    torch.manual_seed(0)
    layer, x = getattr(cello.nn, kind)(5, 6, bidirectional=True), random(3, 2, 5)
    found, expected = (evaluate(layer, x, (), e, lengths=[2, 3]) for e in (Triton(), "native"))
    assert_close(found, expected)
    assert len(runs) == 4


@pytest.mark.usefixtures("dirty")
def test_more_than_a_tile_of_everything(runs: list[int], monkeypatch: pytest.MonkeyPatch):
    """Rows and units of several programs, products that are deeper than what is multiplied at a time."""
    monkeypatch.setattr(kinds, "OWN", (16,))
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(3, 40, proj_size=30), random(2, 18, 3)
    state = [random(1, 18, 30), random(1, 18, 40)]
    lengths = [1 + k % 2 for k in range(18)]
    found, expected = (evaluate(layer, x, state, e, lengths=lengths) for e in (Triton(), "native"))
    assert_close(found, expected)
    assert runs == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, runs: list[int]):
    torch.manual_seed(0)
    layer, x = cello.nn.LSTM(5, 20, dtype=dtype), random(4, 4, 5).to(dtype)
    assert_close_to_double(layer, x, Triton())
    assert runs == [1, 1]


@pytest.mark.parametrize("seed", [7, 10, 28, 43, 56, 95, 102, 112, 126])
def test_random_cells(seed: int, runs: list[int]):
    drawn = random_cells.draw(seed)
    found, expected = (random_runs.run(drawn, e, torch.float64) for e in (Triton(), "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, equal_nan=True)
    assert runs


class Threads(threading.local):
    program: tuple[int, int, int] = 0, 0, 0


@pytest.mark.parametrize("kind", ["LSTM", "MGU"])
def test_programs_that_run_at_the_same_time(kind: str, monkeypatch: pytest.MonkeyPatch):
    """The kernel itself, with its exchange: a thread for each program, delayed at random."""
    from triton.runtime import interpreter

    builder, thread = interpreter.InterpreterBuilder, Threads()
    add = builder.create_atomic_rmw
    lock = threading.Lock()
    failed = []

    def slow_add(self: Any, *arguments: Any) -> Any:
        time.sleep(random_numbers.choice([0, 0, 1e-4, 3e-3]))
        with lock:
            return add(self, *arguments)

    monkeypatch.setattr(builder, "create_atomic_rmw", slow_add)
    place = property(lambda self: thread.program, lambda self, value: None)
    monkeypatch.setattr(builder, "grid_idx", place, raising=False)

    def launch(executor: Any, *given: Any, **constants: Any) -> None:
        names = [name for name in executor.arg_names if name not in constants]
        arguments = {
            name: interpreter._implicit_cvt(value) for name, value in zip(names, given, strict=True)
        }
        constants = {n: constants[n] for n in executor.arg_names if n in constants}

        def program(x: int, y: int) -> None:
            thread.program = x, y, 0
            try:
                with np.errstate(all="ignore"):
                    executor.fn(**arguments, **constants)
            except BaseException as error:
                failed.append(error)

        scope = interpreter._patch_lang(executor.fn)
        interpreter.interpreter_builder.set_grid_dim(*executor.grid, 1)
        programs = [
            threading.Thread(target=program, args=(x, y), daemon=True)
            for x in range(executor.grid[0])
            for y in range(executor.grid[1])
        ]
        for one in programs:
            one.start()
        for one in programs:
            one.join(60)
        scope.restore()
        assert not failed
        assert not any(one.is_alive() for one in programs)

    monkeypatch.setattr(together, "is_interpreted", lambda: False)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    torch.manual_seed(0)
    layer, x = getattr(cello.nn, kind)(3, 10), random(6, 18, 3)
    lengths = [1 + k % 6 for k in range(18)]
    found, expected = (evaluate(layer, x, (), e, lengths=lengths) for e in (Triton(), "native"))
    assert_close(found, expected)


def test_batches_that_are_too_large_run_the_same_kernel():
    layer = cello.nn.RNN(3, 4)
    with cello.engine(Triton()), torch.no_grad():
        layer(random(2, 65, 3))
        before = kernel.compiled.cache_info().misses
        layer(random(2, 66, 3))
    assert kernel.compiled.cache_info().misses == before


def test_a_gpu_with_little_shared_memory(monkeypatch: pytest.MonkeyPatch):
    """As its makers' cards for players have it: 99 KB for a block."""
    properties = SimpleNamespace(
        multi_processor_count=82,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=99 << 10,
    )
    monkeypatch.setattr(kinds, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = torch.device("cuda")
    assert kinds.room_for_programs(device, 20) == (41, 83 << 10)
    properties.shared_memory_per_block_optin = 227 << 10
    assert kinds.room_for_programs(device, 16) == (82, 128 << 10)


def text_of(layer: Any, *shape: int) -> str:
    """What `explain` says of the kernels."""
    with torch.no_grad(), cello.engine(Triton()):
        return cello.explain(layer, random(*shape)).plans[0].program[-1]


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.norm = nn.Linear(5, 6), nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.x(x) + self.h(h)))


def test_what_runs_is_said_and_why_it_does_not(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    lstm, normalised = cello.nn.LSTM(5, 6), cello.Recurrent(Normalised())
    asked = "kernels: persistent, as CELLO_TRITON selects: 4 units of 16 sequences a program"
    assert text_of(lstm, 2, 3, 5) == asked
    rows = "kernels: by rows, since the matrices of a step have {} KB, not more than 150 KB"
    refused = rows + "; not persistent, since {}"
    many = "the batch has 65 sequences, more than 64"
    assert text_of(lstm, 1, 65, 5) == refused.format(1, many)
    assert text_of(normalised, 2, 3, 5) == refused.format(
        0, "numbers of the state meet outside of products"
    )
    monkeypatch.setattr(kinds, "INTERPRETED", 1)
    few = "2 programs for 16 sequences would have to run at once, 1 can"
    assert text_of(lstm, 2, 3, 5) == refused.format(1, few)
    monkeypatch.setattr(kinds, "INTERPRETED", 132)
    monkeypatch.delenv(kinds.SELECTION)
    told = "; CELLO_TRITON=persistent selects persistent kernels, not measured on a GPU yet"
    assert text_of(lstm, 2, 3, 5) == rows.format(1) + told
    assert text_of(normalised, 2, 3, 5) == rows.format(0)
    monkeypatch.setenv(kinds.SELECTION, "fast")
    with pytest.raises(
        ValueError, match="CELLO_TRITON must be 'persistent' or not set, got 'fast'"
    ):
        text_of(lstm, 2, 3, 5)


def test_matrices_that_do_not_fit():
    found = text_of(cello.nn.LSTM(5, 1100), 1, 1, 5)
    assert found.endswith(
        "; not persistent, since 275 programs for 16 sequences would have to run at once, 132 can"
    )


def test_another_kind_runs_where_the_launch_fails(monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: Any) -> None:
        raise together.LaunchError("too many blocks in cooperative launch")

    layer, x = cello.nn.GRU(5, 6), random(4, 3, 5)
    expected = evaluate(layer, x, (), "native")
    monkeypatch.setattr(together, "run", run)
    with pytest.warns(RuntimeWarning, match="cannot be launched .too many blocks"):
        found = evaluate(layer, x, (), Triton())
    assert_close(found, expected)
