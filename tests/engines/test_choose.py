"""Which engine runs: by reasons, never by chance, and as asked for or not at all."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import cello
from cello.engines import ENGINES, observe
from cello.engines.native import engine as native_engine

X = torch.zeros(5, 2, 3)


NOT_BUILT = "the native engine was not built: there was no C++ compiler"


@pytest.fixture
def not_built(monkeypatch):
    """As if the native engine had not been built."""
    monkeypatch.setattr(native_engine, "library", lambda: None)


def engine_of(layer, x=X, **options) -> str:
    with observe() as seen:
        layer(x, **options)
    return ",".join(choice.engine.name for _, choice in seen)


class MyCell(nn.GRUCell):
    """A subclass may compute anything, so it is nobody's stock cell."""


class Gammas(nn.Module):
    """A cell with an operation that the native engine does not have."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x, h):
        return self.cell(x, torch.lgamma(1 + h.abs()))


STOCK = {
    "LSTM": lambda: cello.nn.LSTM(3, 4),
    "GRU": lambda: cello.nn.GRU(3, 4),
    "RNN": lambda: cello.nn.RNN(3, 4, nonlinearity="relu"),
}
OTHERS = {
    "activation": (lambda: cello.nn.LSTM(3, 4, activation="relu"), "has tanh built in, not relu"),
    "gates": (lambda: cello.nn.GRU(3, 4, gate_activation="hardsigmoid"), "not hardsigmoid"),
    "rnn": (lambda: cello.nn.RNN(3, 4, activation="gelu"), "has tanh and relu, not gelu"),
    "foreign": (lambda: cello.Recurrent(MyCell(3, 4)), "not a cell like MyCell"),
}


def test_the_order():
    assert [engine.name for engine in ENGINES] == ["native", "vendor", "triton", "reference"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [*STOCK, *OTHERS])
def test_whatever_compiles_runs_on_the_native_engine(kind, dtype):
    layer = (STOCK[kind] if kind in STOCK else OTHERS[kind][0])().to(dtype)
    assert engine_of(layer, X.to(dtype)) == "native"
    with cello.engine("native", strict=True):
        assert engine_of(layer, X.to(dtype)) == "native"


@pytest.mark.parametrize("kind", STOCK)
def test_torchs_equations_run_on_torchs_kernels_where_that_is_asked_for(kind):
    with cello.engine("vendor", strict=True):
        assert engine_of(STOCK[kind]()) == "vendor"


@pytest.mark.parametrize("kind", STOCK)
def test_torchs_kernels_take_what_the_native_engine_leaves(kind, not_built):
    layer = STOCK[kind]()
    told = cello.explain(layer, X).plans[0]
    assert told.engine == "vendor"
    assert told.reasons == {"native": [NOT_BUILT]}
    asked = pytest.raises(cello.EngineError, match=r"'native' was selected and cannot.*not built")
    with asked, cello.engine("native"):
        layer(X)
    with cello.engine(strict=True):
        assert engine_of(layer) == "vendor"


def test_torchs_kernels_take_complex_numbers_where_there_are_no_others(not_built):
    layer = cello.nn.LSTM(3, 4, dtype=torch.complex64)
    assert cello.explain(layer, X.to(torch.complex64)).plans[0].engine == "vendor"


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_cell_then_runs_in_the_loop_unless_that_is_forbidden(kind, not_built):
    make, reason = OTHERS[kind]
    layer = make()
    assert engine_of(layer) == "reference"
    with (
        pytest.raises(
            cello.EngineError, match=f"^strict mode: no fused.*native: .*vendor: .*{reason}"
        ),
        cello.engine(strict=True),
    ):
        layer(X)
    with (
        pytest.raises(cello.EngineError, match=f"'vendor' was selected and cannot.*{reason}"),
        cello.engine("vendor"),
    ):
        layer(X)
    with cello.engine("reference", strict=True):  # asked for by name, so no fall-back
        assert engine_of(layer) == "reference"


def test_a_cell_that_does_not_compile_runs_in_the_loop():
    layer = cello.Recurrent(Gammas())
    assert engine_of(layer) == "reference"
    reason = r"Gammas uses lgamma \(test_choose.py:\d+\), which is not in the instruction set"
    for settings in ({"strict": True}, {"name": "native"}):
        with pytest.raises(cello.EngineError, match=reason), cello.engine(**settings):
            layer(X)


def test_all_reasons_are_given(not_built):
    layer = cello.nn.LSTM(3, 4, activation="relu", gate_activation="hardsigmoid")
    with pytest.raises(cello.EngineError) as caught, cello.engine("vendor"):
        layer(X, return_states=True)
    assert all(word in str(caught.value) for word in ("relu", "hardsigmoid", "cell states of all"))
    layer = cello.nn.LSTM(3, 4)
    with pytest.raises(cello.EngineError) as caught, cello.engine("native"):
        layer(X[:, :0])
    assert all(word in str(caught.value) for word in ("no sequences", "not built"))


@pytest.mark.parametrize("multiplies", [True, False])
def test_dense_bfloat16_lstms_run_where_bfloat16_is_multiplied(multiplies, monkeypatch):
    layer, x = cello.nn.LSTM(3, 200, dtype=torch.bfloat16), torch.zeros(5, 40, 3).bfloat16()
    monkeypatch.setattr(native_engine, "multiplies_in_bfloat16", lambda scan: True)
    monkeypatch.setattr(native_engine, "multiplies_bfloat16", lambda: multiplies)
    told = cello.explain(layer, x).plans[0]
    assert told.engine == ("native" if multiplies else "vendor")
    if not multiplies:
        (reason,) = told.reasons["native"]
        assert reason.startswith("torch's LSTM kernel multiplies in bfloat16, and the native")
        with cello.engine("native"):  # asked for by name it runs, in float32
            assert engine_of(layer, x) == "native"


@pytest.mark.parametrize("kind", [*STOCK, *OTHERS])
def test_under_autocast_too(kind):
    layer = (STOCK[kind] if kind in STOCK else OTHERS[kind][0])()
    with torch.autocast("cpu"), cello.engine("native", strict=True):
        assert engine_of(layer) == "native"


@pytest.mark.parametrize("name", ["native", "vendor"])
def test_forcing_reaches_every_engine_for_torchs_equations_and_the_results_agree(name):
    layer = cello.nn.GRU(3, 4, num_layers=2, bidirectional=True).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    results = []
    for engine in (name, "reference"):
        with cello.engine(engine):
            assert engine_of(layer, x) == f"{engine},{engine}"
            results.append(layer(x))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


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
    assert engine_of(layer) == "native"
    foreign = cello.Recurrent(Gammas())
    with cello.engine(strict=True), cello.engine(strict=False):
        assert engine_of(foreign) == "reference"


def test_an_unknown_name_is_refused_before_anything_runs():
    with pytest.raises(
        ValueError, match="name must be one of native, vendor, triton, reference, got 'cuda'"
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
    assert result == ["native"]
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
