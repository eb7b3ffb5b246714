"""MGU and PeepholeLSTM against loops written out by hand, values and all gradients."""

from __future__ import annotations

from typing import Any

import by_hand
import pytest
import torch
from by_hand import layers_by_hand, variables_of, with_gradients
from cases import F, H, P, assert_same
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cello

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
STEPS = {"MGU": by_hand.mgu, "PeepholeLSTM": by_hand.peephole}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("MGU", {}),
    ("MGU", {"bias": False, "num_layers": 2, "bidirectional": True}),
    ("PeepholeLSTM", {"num_layers": 2, "bidirectional": True}),
    ("PeepholeLSTM", {"proj_size": P, "bias": False}),
]


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(cello.nn, name)(F, H, dtype=torch.float64, **options)


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_values_and_gradients(name: str, options: dict[str, Any], engine: str):
    layer, x = make(name, **options), torch.randn(6, 3, F, dtype=torch.float64, requires_grad=True)
    variables = variables_of(layer, x)
    with cello.engine(engine):
        found = with_gradients(layer(x), variables)
    expected = with_gradients(layers_by_hand(STEPS[name], layer, x), variables)
    assert_same(found, expected, **CLOSE)


@pytest.mark.parametrize("name", STEPS)
def test_packed_and_step_by_step(name: str):
    layer = make(name)
    x = torch.randn(5, 2, F, dtype=torch.float64)
    expected, _ = layers_by_hand(STEPS[name], layer, x)
    packed, _ = layer(pack_padded_sequence(x, [5, 2]))
    output, lengths = pad_packed_sequence(packed)
    for b, length in enumerate(lengths):
        assert_same(output[:length, b], expected[:length, b], **CLOSE)
    state = None
    for row, known in zip(x, expected, strict=True):
        output, state = layer.step(row, state)
        assert_same(output, known, **CLOSE)


@pytest.mark.parametrize("name", STEPS)
def test_it_is_fused_and_says_its_gates(name: str):
    layer, x = make(name), torch.randn(5, 2, F, dtype=torch.float64)
    told = cello.explain(layer, x)
    assert told.plans[0].engine == "native"
    assert "".join(g.name for g in told.shapes.gates) == {"MGU": "fn"}.get(name, "ifgo")
