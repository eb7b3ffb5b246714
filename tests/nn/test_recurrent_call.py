"""Recurrent is called like a layer of torch.nn: a class of cells, its sizes, and what layers take."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

import cello

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    def __init__(self, input_size, hidden_size, gain=1.0):
        super().__init__()
        self.f = nn.Linear(input_size + hidden_size, hidden_size)
        self.n = nn.Linear(input_size + hidden_size, hidden_size)
        self.gain = gain

    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        return f * h + (1 - f) * torch.tanh(self.gain * self.n(torch.cat([x, f * h], 1)))


def by_factory(make, widths, **options):
    torch.manual_seed(0)
    left = [w for w in widths for _ in range(2 if options.get("bidirectional") else 1)]
    return cello.Recurrent(lambda f: make(f, left.pop(0)), 3, num_layers=len(widths), **options)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"bidirectional": True, "merge": "sum"}], ids=str
)
@pytest.mark.parametrize(
    ("arguments", "keywords", "widths"),
    [
        ((3, 4), {}, [4]),
        ((3, 4, 2), {}, [4, 4]),
        ((3, 4), {"num_layers": 2}, [4, 4]),
        ((3,), {"hidden_size": 4, "num_layers": 2}, [4, 4]),
        ((), {"input_size": 3, "hidden_size": [4, 6], "num_layers": 2}, [4, 6]),
    ],
    ids=str,
)
def test_a_class_with_its_sizes(arguments, keywords, widths, options):
    torch.manual_seed(0)
    layer = cello.Recurrent(Gated, *arguments, **keywords, **options)
    expected = by_factory(Gated, widths, **options)
    assert list(layer.state_dict()) == list(expected.state_dict())
    for ours, theirs in zip(layer(X), expected(X), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_what_torch_calls_its_layers_with(name):
    """The cell class of torch with the arguments of its layer: the same numbers and the same repr."""
    arguments, options = (3, 4, 2), {"bias": False, "dtype": torch.float64, "bidirectional": True}
    torch.manual_seed(0)
    theirs = getattr(nn, name)(*arguments, **options)
    ours = cello.Recurrent(getattr(nn, f"{name}Cell"), *arguments, **options)
    for layer, weights in enumerate(theirs.all_weights):
        cell = list(ours.cells.values())[layer]
        for weight, value in zip(cell.parameters(), weights, strict=True):
            weight.data.copy_(value)
    torch.testing.assert_close(ours(X.double())[0], theirs(X.double())[0])


def test_options_of_the_cell():
    layer = cello.Recurrent(Gated, 3, 4, num_layers=2, gain=0.5)
    assert [cell.gain for cell in layer.cells.values()] == [0.5, 0.5]


def leaky(x, h):
    return 0.9 * h + x


class Decay:
    def __call__(self, x, h):
        return 0.5 * h + x


REPRS = {
    "Recurrent(Gated(3, 4), num_layers=2)": lambda: cello.Recurrent(Gated, 3, 4, 2),
    "Recurrent(Gated(3, 4, gain=0.5), dropout=0.1, bidirectional=True, merge='sum')": lambda: (
        cello.Recurrent(Gated, 3, 4, bidirectional=True, gain=0.5, merge="sum", dropout=0.1)
    ),
    "Recurrent(LSTMCell(3, 4, bias=False), batch_first=True)": lambda: cello.Recurrent(
        nn.LSTMCell, 3, 4, bias=False, batch_first=True
    ),
    "Recurrent(GRUCell(3, 4), reverse=True)": lambda: cello.Recurrent(
        nn.GRUCell(3, 4), reverse=True
    ),
    "Recurrent(GRUCell(3, 5), num_layers=2)": lambda: cello.Recurrent(
        lambda f: nn.GRUCell(f, 5), 3, num_layers=2
    ),
    "Recurrent(Gated)": lambda: cello.Recurrent(Gated(3, 4)),
    "Recurrent(Gated, input_size=3, num_layers=2)": lambda: cello.Recurrent(
        functools.partial(Gated, hidden_size=4), 3, num_layers=2
    ),
    "Recurrent(leaky, state_size=3)": lambda: cello.Recurrent(leaky, state_size=3),
    "Recurrent(lambda, state_size=3)": lambda: cello.Recurrent(lambda x, h: x + h, state_size=3),
    "Recurrent(Decay, state_size=3)": lambda: cello.Recurrent(Decay(), state_size=3),
}


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize("expected", REPRS)
def test_how_it_is_written(expected):
    layer = REPRS[expected]()
    x = X
    for _ in range(2):  # the same before and after a call
        shown = repr(layer).splitlines()
        assert shown[:2] == ["Recurrent(", f"  {expected[len('Recurrent(') : -1]}"]
        assert "(cells): ModuleDict(" in shown[2]
        assert cello.explain(layer, x).title == expected
    assert repr(copy.deepcopy(layer)) == repr(layer)
    if "lambda" not in expected:
        assert repr(pickle.loads(pickle.dumps(layer))) == repr(layer)
