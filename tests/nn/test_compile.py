"""torch.export takes a layer whole; torch.compile compiles what is around it, as with torch.nn's."""

import pytest
import torch
from torch import nn

import cello

LAYERS = {
    "stock": lambda: cello.nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "piecewise linear": lambda: cello.nn.GRU(4, 10, gate_activation="hardsigmoid"),
    "foreign": lambda: cello.Recurrent(nn.RNNCell(4, 10)),
}


@pytest.fixture(params=LAYERS, ids=str)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_export(layer):
    x = torch.randn(7, 3, 4)
    layer(x)  # a foreign cell is tried at the first call, outside of the export
    exported = torch.export.export(layer, (x,)).module()
    fresh = torch.randn(7, 3, 4)
    for given, expected in zip(flat(exported(fresh)), flat(layer(fresh)), strict=True):
        torch.testing.assert_close(given, expected)


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 4), layer, nn.Linear(10, 2)

    def forward(self, x, **options):
        return self.head(self.layer(torch.relu(self.embed(x)), **options)[0].mean(0))


# torch.compile reads .grad of what goes into a layer, and keeps the warning to itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("options", [{}, {"lengths": [7, 2, 0]}], ids=["padded", "lengths"])
def test_compile(layer, options):
    torch.compiler.reset()
    nodes = []

    def backend(graph, inputs):
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    model = Model(layer)
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(7, 3, 4)
    given, expected = compiled(x, **options), model(x, **options)
    torch.testing.assert_close(given, expected)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(given.square().sum(), weights)
    for a, b in zip(gradients, torch.autograd.grad(expected.square().sum(), weights), strict=True):
        torch.testing.assert_close(a, b)
    assert 0 < sum(nodes) < 40  # what is around the layer, and no loop over time


def flat(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]
