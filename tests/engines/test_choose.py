"""Which engine runs: by reasons, never by chance, and as asked for or not at all."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import cello
from cello.engines import ENGINES, observe

X = torch.zeros(5, 2, 3)


def engine_of(layer, x=X, **options) -> str:
    with observe() as seen:
        layer(x, **options)
    return ",".join(choice.engine.name for _, choice in seen)


class MyCell(nn.GRUCell):
    """A subclass may compute anything, so it is nobody's stock cell."""


STOCK = {
    "LSTM": lambda: cello.nn.LSTM(3, 4),
    "GRU": lambda: cello.nn.GRU(3, 4),
    "RNN": lambda: cello.nn.RNN(3, 4, nonlinearity="relu"),
}
OTHERS = {
    "activation": (lambda: cello.nn.LSTM(3, 4, activation="relu"), "has tanh built in, not relu"),
    "gates": (lambda: cello.nn.GRU(3, 4, gate_activation="hardsigmoid"), "not hardsigmoid"),
    "rnn": (lambda: cello.nn.RNN(3, 4, activation="gelu"), "knows tanh and relu, not gelu"),
    "foreign": (lambda: cello.Recurrent(MyCell(3, 4)), "not a cell like MyCell"),
}


@pytest.mark.parametrize("kind", STOCK)
def test_torchs_equations_run_on_torchs_kernels(kind):
    assert engine_of(STOCK[kind]()) == "vendor"
    with cello.engine("vendor", strict=True):
        assert engine_of(STOCK[kind]()) == "vendor"


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_cell_runs_in_the_loop_unless_that_is_forbidden(kind):
    make, reason = OTHERS[kind]
    layer = make()
    assert engine_of(layer) == "reference"
    with (
        pytest.raises(cello.EngineError, match=f"^strict mode: no fused.*vendor: .*{reason}"),
        cello.engine(strict=True),
    ):
        layer(X)
    with (
        pytest.raises(cello.EngineError, match=f"'vendor' was asked for and cannot.*{reason}"),
        cello.engine("vendor"),
    ):
        layer(X)
    with cello.engine("reference", strict=True):  # asked for by name, so no fall-back
        assert engine_of(layer) == "reference"


def test_all_reasons_are_given():
    layer = cello.nn.LSTM(3, 4, activation="relu", gate_activation="hardsigmoid")
    with pytest.raises(cello.EngineError) as caught, cello.engine("vendor"):
        layer(X, return_states=True)
    assert all(word in str(caught.value) for word in ("relu", "hardsigmoid", "cell states of all"))


def test_forcing_reaches_the_loop_for_torchs_equations_and_the_results_agree():
    layer = cello.nn.GRU(3, 4, num_layers=2, bidirectional=True).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with cello.engine("reference"):
        assert engine_of(layer, x) == "reference,reference"
        slow = layer(x)
    torch.testing.assert_close(layer(x), slow, rtol=1e-12, atol=1e-14)


def test_contexts_nest_and_end_also_after_an_error():
    layer = STOCK["GRU"]()
    with cello.engine("reference"):
        with cello.engine("vendor"):
            assert engine_of(layer) == "vendor"
        with cello.engine(strict=True):  # says nothing of the name
            assert engine_of(layer) == "reference"
        assert engine_of(layer) == "reference"
        with pytest.raises(KeyError), cello.engine("vendor"):
            raise KeyError
        assert engine_of(layer) == "reference"
    assert engine_of(layer) == "vendor"
    foreign = OTHERS["foreign"][0]()
    with cello.engine(strict=True), cello.engine(strict=False):
        assert engine_of(foreign) == "reference"


def test_an_unknown_name_is_refused_before_anything_runs():
    with pytest.raises(
        ValueError, match="no engine is called 'cuda'; choose from vendor, reference"
    ):
        cello.engine("cuda").__enter__()


@contextmanager
def in_thread(result: list):
    thread = threading.Thread(target=lambda: result.append(engine_of(STOCK["GRU"]())))
    yield thread
    thread.start()
    thread.join()


def test_a_choice_holds_for_its_own_thread():
    result: list[str] = []
    with cello.engine("reference"), in_thread(result):
        pass
    assert result == ["vendor"]
    with observe() as seen, in_thread([]):
        pass
    assert seen == []


def test_observing_ends_and_nests():
    layer = STOCK["GRU"]()
    with observe() as outer:
        with observe() as inner:
            layer(X)
        layer(X)
    layer(X)
    assert (len(outer), len(inner)) == (1, 1)


def test_the_last_engine_takes_everything():
    assert not ENGINES[-1].is_fused
    assert all(engine.is_fused for engine in ENGINES[:-1])
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)
