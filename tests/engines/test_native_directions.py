"""Both directions of a layer at the same time: the same results as one after the other."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from foreign_cells import CELLS
from steps import assert_close, evaluate, random
from torch import Tensor

import cello
from cello.engines.native.kernel import NativeKernel

LENGTHS = [9, 2, 5]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def together(monkeypatch):
    """Scans of two directions run together; how many calls were run each time."""
    counts = []
    run = NativeKernel.run

    def counted(calls: list[Any]) -> None:
        counts.append(len(calls))
        run(calls)

    monkeypatch.setattr(NativeKernel, "run", staticmethod(counted))
    monkeypatch.setattr(NativeKernel, "is_better_together", lambda *_: True)
    return counts


def foreign() -> cello.Recurrent:
    torch.manual_seed(0)
    make = CELLS["MinimalGatedUnit"].make
    return cello.Recurrent(lambda f: make(f, 7).double(), 5, bidirectional=True)


LAYERS = {
    "LSTM": lambda: cello.nn.LSTM(5, 7, num_layers=2, bidirectional=True).double(),
    "projected": lambda: cello.nn.LSTM(5, 7, proj_size=3, bidirectional=True).double(),
    "GRU": lambda: cello.nn.GRU(5, 7, bidirectional=True, bias=False).double(),
    "foreign": foreign,
}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS, "return_states": "all"}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name: str, options: dict[str, Any], count: int, together, threads):
    threads(count)
    layer, x = LAYERS[name](), random(9, 3, 5)
    results = [evaluate(layer, x, (), engine, **options) for engine in ("native", "reference")]
    assert_close(*results, tolerance=1e-11)
    assert set(together) == {2}
    with torch.no_grad(), cello.engine("native"):
        output, *_ = layer(x, **options)
    torch.testing.assert_close(output, results[1]["output"], rtol=1e-11, atol=1e-12)


def gradients(layer: Any, loss: Tensor, x: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, [x, *layer.parameters()], allow_unused=True))


def test_one_direction_alone_has_a_gradient(together):
    layer, x = cello.nn.GRU(5, 7, bidirectional=True).double(), random(9, 3, 5).requires_grad_()
    found = []
    for engine in ("native", "reference"):
        with cello.engine(engine):
            found.append(gradients(layer, layer(x)[1][0].sum(), x))
    assert together == [2, 2]
    for got, expected in zip(*found, strict=True):
        if expected is None:  # of the direction that the loss does not depend on
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_a_frozen_direction_gets_no_gradient(together):
    layer, x = cello.nn.LSTM(5, 7, bidirectional=True).double(), random(9, 3, 5)
    for name, weight in layer.named_parameters():
        weight.requires_grad_(not name.endswith("_reverse"))
    with cello.engine("native"):
        output, (h, _) = layer(x)
    assert h.requires_grad
    output.sum().backward()
    assert together == [1, 1, 1]  # they have not the same to do
    with cello.engine("reference"):
        expected = torch.autograd.grad(layer(x)[0].sum(), [layer.weight_hh_l0])
    torch.testing.assert_close(layer.weight_hh_l0.grad, expected[0], rtol=1e-11, atol=1e-12)
    assert layer.weight_hh_l0_reverse.grad is None


def test_second_derivatives(together):
    layer, x = cello.nn.GRU(2, 3, bidirectional=True).double(), random(3, 2, 2).requires_grad_()
    with cello.engine("native"):
        assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)
    assert together[0] == 2


@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobian(vectorize: bool, together):
    layer, x = cello.nn.GRU(2, 3, bidirectional=True).double(), random(3, 2, 2)

    def of(engine: str) -> Tensor:
        with cello.engine(engine):
            return torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=vectorize)

    torch.testing.assert_close(of("native"), of("reference"), rtol=1e-11, atol=1e-12)


def test_the_same_bits_again(together):
    layer, x = cello.nn.LSTM(30, 40, bidirectional=True), torch.randn(50, 2, 30)
    first = evaluate(layer, x, (), "native")
    for _ in range(5):
        for name, found in evaluate(layer, x, (), "native").items():
            assert torch.equal(found, first[name]), name


@pytest.fixture
def alarmed(together, monkeypatch):
    """Calls a function at signals that come while two directions run; how long it took each time."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("needs setitimer")
    real, spans = NativeKernel.run, []

    def begin(handler: Any, first: float, again: float = 0) -> None:
        signal.signal(signal.SIGALRM, handler)

        def run(calls: list[Any]) -> None:
            spans.append(time.monotonic())
            signal.setitimer(signal.ITIMER_REAL, first, again)
            try:
                real(calls)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                spans.append(time.monotonic())

        monkeypatch.setattr(NativeKernel, "run", staticmethod(run))

    before = signal.getsignal(signal.SIGALRM)
    yield begin, spans
    signal.signal(signal.SIGALRM, before)


def run_long() -> None:
    layer = cello.nn.LSTM(64, 128, bidirectional=True)
    with torch.no_grad(), cello.engine("native"):
        layer(torch.randn(1, 4, 64).expand(100_000, 4, 64))


def test_an_interrupt_ends_both(alarmed, together):
    def interrupt(*_: object) -> None:
        times.append(time.monotonic())
        raise KeyboardInterrupt

    begin, spans = alarmed
    times: list[float] = []
    begin(interrupt, 0.1)
    with pytest.raises(KeyboardInterrupt):
        run_long()
    assert together == [2]
    assert spans[1] - times[0] < 1


def test_signals_arrive_in_both_where_one_thread_runs_them_in_turn(alarmed, together, threads):
    threads(1)
    begin, spans = alarmed
    times: list[float] = []
    begin(lambda *_: times.append(time.monotonic()), 0.05, 0.05)
    run_long()
    assert together == [2]
    gaps = [after - earlier for earlier, after in pairwise([spans[0], *times, spans[1]])]
    assert max(gaps) < 0.45 * (spans[1] - spans[0])  # a direction takes half of it
