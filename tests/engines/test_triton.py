"""The Triton engine in Triton's interpreter: values and every gradient against the Python loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import exact_derivatives
from samples import COMPILED, Sample, seed_of
from steps import assert_close, evaluate, random

import cello
from cello.engines.triton import Triton
from cello.engines.triton.kernel import TritonKernel

pytest.importorskip("triton", reason="Triton is not installed")

FORMS: dict[str, dict[str, Any]] = {
    "padded": {"return_states": True},
    "lengths": {"lengths": [4, 2, 0, 3]},
}
LAYERS = {
    "RNN": lambda: cello.nn.RNN(5, 4, num_layers=2),
    "LSTM": lambda: cello.nn.LSTM(5, 4, num_layers=2, bidirectional=True),
    "projected": lambda: cello.nn.LSTM(5, 4, proj_size=3),
    "GRU": lambda: cello.nn.GRU(5, 4, bidirectional=True, bias=False),
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cells that read symbols have a state of torch's default dtype."""
    monkeypatch.setattr(TritonKernel, "device_type", "cpu")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", COMPILED)
def test_a_cell(name: str):
    form = FORMS["padded" if seed_of(name) % 2 else "lengths"]
    sample = Sample(name, 4, 6, torch.float64)
    with exact_derivatives():
        expected = sample.run("reference", **form)
    assert_close(sample.run(Triton(), **form), expected, 1e-10)


@pytest.mark.parametrize("options", [*FORMS.values(), {"return_states": "all"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind: str, options: dict[str, Any]):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), random(4, 4, 5)
    found, expected = (evaluate(layer, x, (), e, **options) for e in (Triton(), "reference"))
    assert_close(found, expected)
