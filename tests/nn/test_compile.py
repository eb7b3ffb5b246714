"""torch.export and torch.compile take Cello's layers whole; torch.compile refuses torch.nn's own."""

import pytest
import torch

import cello

LAYERS = {
    "stock": lambda: cello.nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "piecewise linear": lambda: cello.nn.GRU(4, 5, gate_activation="hardsigmoid"),
}


@pytest.fixture(params=LAYERS, ids=str)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_export(layer):
    x = torch.randn(7, 3, 4)
    exported = torch.export.export(layer, (x,)).module()
    fresh = torch.randn(7, 3, 4)
    for given, expected in zip(flat(exported(fresh)), flat(layer(fresh)), strict=True):
        torch.testing.assert_close(given, expected)


def test_compile_without_a_graph_break(layer):
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(7, 3, 4)
    given, expected = flat(compiled(x)), flat(layer(x))
    weights = list(layer.parameters())
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(sum(t.square().sum() for t in given), weights),
        torch.autograd.grad(sum(t.square().sum() for t in expected), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def flat(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]
