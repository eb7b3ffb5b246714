"""Which cells a task takes, their arguments, and the layers that are made of them."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cello
from cello.cells import PiecewiseLinear
from cello.tasks import cells, own
from cello.tasks.classify import Options
from cello.tasks.errors import InputError
from cello.tasks.options import from_mapping, read_options, to_yaml

CELLS = '''
import torch
from torch import nn

LIST = [1]


class Gated(nn.Module):
    """A GRU whose arguments say what it is made with."""

    def __init__(self, input_size, hidden_size, gate=torch.sigmoid, name="plain", scale=1.0):
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)
        self.hidden_size, self.gate, self.name, self.scale = hidden_size, gate, name, scale

    def forward(self, x, h):
        return self.gate(self.cell(x, h)) * self.scale


class Needy(Gated):
    def __init__(self, input_size, hidden_size, alpha, *, beta=2):
        super().__init__(input_size, hidden_size)


class Backwards(Gated):
    def __init__(self, hidden_size, input_size):
        super().__init__(input_size, hidden_size)


class Named(Gated):
    def __init__(self, input_size, *, hidden_size, dropout=0.0, merge="mine"):
        super().__init__(input_size, hidden_size)
        self.dropout, self.merge = dropout, merge


class Fixed(Gated):
    def __init__(self, input_size, bias=True):
        super().__init__(input_size, 5)


class Fails(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size // 0)


class Careless(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)

    def forward(self, x):
        return self.linear(x)


def make(features):
    return nn.GRUCell(features, 6)


def step(x, h):
    return x + h
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of cells."""
    (tmp_path / "mine.py").write_text(CELLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def refused(**options: Any) -> str:
    with pytest.raises(InputError) as caught:
        Options(hidden=8, **options).layer(4)
    return str(caught.value)


def test_every_layer_of_cello_nn_has_a_name() -> None:
    layers = {
        kind
        for kind in vars(cello.nn).values()
        if isinstance(kind, type) and issubclass(kind, cello.nn.RNNBase)
    }
    assert {cello.nn.MGU, cello.nn.PeepholeLSTM} < layers
    found = {type(Options(cell=name, hidden=3).layer(2)) for name in cells.known()}
    assert found == layers - {cello.nn.RNNBase} | {cells.TorchLayer}
    for name in ("peephole-lstm", "PeepholeLSTM", "peepholelstm", "peephole_lstm"):
        assert Options(cell=name).cell == "peephole-lstm"
    same = [cello.nn.GRU, cello.cells.GRU, "cello.nn:GRU", "GRU"]
    assert [Options(cell=cell).cell for cell in same] == ["gru"] * 4
    assert Options(cell=nn.GRU).cell == "torch-gru"


@pytest.mark.parametrize(
    ("cell", "arguments", "width", "shown"),
    [
        ("mine.py:Gated", {}, 8, "Gated(4, 8)"),
        ("mine.py:Backwards", {}, 8, "Backwards"),
        ("mine.py:Named", {}, 8, "Named"),
        ("mine.py:Named", {"hidden_size": 3}, 3, "Named"),
        ("mine.py:Fixed", {}, 5, "Fixed(4)"),
        ("mine.py:make", {}, 6, "GRUCell(4, 6)"),
        ("torch.nn:LSTMCell", {"bias": False}, 8, "LSTMCell(4, 8, bias=False)"),
        (functools.partial(nn.GRUCell, bias=False), {}, 8, "GRUCell(4, 8, bias=False)"),
        (lambda features, hidden: nn.RNNCell(features, hidden), {}, 8, "RNNCell(4, 8)"),
    ],
)
def test_what_makes_cells(
    folder: Path, cell: Any, arguments: dict[str, Any], width: int, shown: str
) -> None:
    options = Options(cell=cell, cell_args=arguments, hidden=8, layers=2)
    layer = options.layer(4)
    assert isinstance(layer, cello.nn.Recurrent)
    assert cells.output_size(layer) == 2 * width
    assert layer(torch.randn(3, 2, 4))[0].shape == (3, 2, 2 * width)
    assert layer.extra_repr().startswith(shown)
    assert list(layer.cells) == ["l0", "l0_reverse", "l1", "l1_reverse"]


def test_arguments_reach_the_cell(folder: Path) -> None:
    given = ["gate=hardsigmoid", "name=hardsigmoid", "scale=5e-1"]
    cell = Options(cell="mine.py:Gated", cell_args=given, hidden=8).layer(4).cells["l0"]
    # A name is a function where the default is one, and a text where that is a text.
    assert cell.gate is nn.functional.hardsigmoid
    assert (cell.name, cell.scale) == ("hardsigmoid", 0.5)
    options = Options(
        cell="mine.py:Gated", cell_args=["gate=piecewise(-2.5:0, 2.5:1)"], hidden=8, layers=2
    )
    gate = options.layer(4).cells["l1"].gate
    assert gate(torch.tensor([-3.0, -2.5, 0.0, 1.25, 9.0])).tolist() == [0, 0, 0.5, 0.75, 1]
    # Names that the layer has too are the cell's, where it takes them.
    named = Options(cell="mine.py:Named", cell_args=["dropout=0.25", "merge=theirs"]).layer(4)
    assert (named.cells["l0"].dropout, named.cells["l0"].merge) == (0.25, "theirs")
    assert (named.dropout, named.merge) == (0.0, "concat")


def test_activations_of_stock_cells() -> None:
    text = "piecewise(-2.5:0, 2.5:1)"
    ways = [
        Options(gate_activation=text),
        Options(cell_args={"gate_activation": text}),
        Options(cell_args=[f"gate-activation={text}"]),
        Options(cell_args={"gate_activation": PiecewiseLinear([-2.5, 2.5], [0, 1])}),
    ]
    for options in ways:
        gate = options.layer(3).gate_activation
        assert isinstance(gate, PiecewiseLinear)
        assert (gate.xs, gate.ys) == ((-2.5, 2.5), (0.0, 1.0))
    assert Options(cell_args={"activation": torch.relu}).cell_args == {"activation": "relu"}


def test_values_are_read_as_python_or_yaml() -> None:
    given = ["a=1e-3", "b=true", "c=None", "d=[1, x]", "e=(2, 3)", "f='7'", "g=a: b: c", "h="]
    assert cells.read_arguments(given) == {
        "a": 0.001, "b": True, "c": None, "d": [1, "x"], "e": [2, 3], "f": "7", "g": "a: b: c",
        "h": None,
    }  # fmt: skip


def test_options_files_have_the_same_cell(folder: Path) -> None:
    options = Options(cell="mine.py:Gated", cell_args=["gate=relu", "scale=2"], hidden=3)
    Path("options.yaml").write_text(to_yaml(options))
    again = from_mapping(Options, read_options(Path("options.yaml")), "options.yaml")
    assert again == options
    assert "cell: mine.py:Gated\ncell_args:\n  gate: relu\n  scale: 2\n" in to_yaml(options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cell": "mine.py:Gate"}, "mine.py has no 'Gate'; did you mean Gated?"),
        ({"cell": "mine.py:"}, "'mine.py:' names no class; write mine.py:Gated"),
        ({"cell": "mine.py"}, "'mine.py' names no class; write mine.py:Gated"),
        ({"cell": "mien.py:Gated"}, "mien.py: no such file; did you mean mine.py?"),
        ({"cell": "torch.nn.LSTMCell"}, "names no class; write torch.nn:LSTMCell"),
        ({"cell": "nowhere:Gated"}, "there is no module 'nowhere'"),
        ({"cell": "lsmt"}, "'lsmt' is not one of lstm, peephole-lstm, gru, mgu, rnn, torch-lstm"),
        ({"cell": "lsmt"}, "package.module:Class or file.py:Class; did you mean lstm?"),
        ({"cell": "mine.py:LIST"}, "mine.py:LIST is a list, no class or function"),
        ({"cell": "mine.py:step"}, "must return a cell, it returned 12"),
        ({"cell": "mine.py:Careless"}, "Careless is not a cell: it is called as cell(x, state)"),
        ({"cell": "mine.py:Fails"}, "raised ZeroDivisionError: integer division or modulo by zero"),
        ({"cell": "mine.py:Needy"}, "Needy needs a value for alpha: --cell-arg alpha="),
        (
            {"cell": "mine.py:Needy", "cell_args": {"alpha": 1, "betta": 2}},
            "Needy takes no argument 'betta'; it takes hidden_size, alpha, beta, state_size, merge,"
            " reverse; did you mean beta?",
        ),
        (
            {"cell": "mine.py:Gated", "cell_args": ["gate=soft"]},
            "cell-arg: gate=soft is no activation; choose from tanh, sigmoid,",
        ),
        (
            {"cell": "mine.py:Gated", "cell_args": ["gate=piecewise(1:2)"]},
            "gate: xs must hold at least two knots, got 1",
        ),
        (
            {"cell": "mine.py:Gated", "gate_activation": "relu"},
            "gate-activation: the cell Gated has no argument gate_activation",
        ),
        ({"cell": nn.LSTMCell(4, 8)}, "it is one LSTMCell; give the class LSTMCell"),
        ({"cell": 3}, "it is an int, not a name, class or function that makes cells"),
        ({"cell": "torch.nn:RNNBase"}, "RNNBase is a layer, which runs over whole sequences"),
        ({"cell_args": ["bias"]}, "'bias' is not name=value, such as bias=false"),
        ({"cell_args": ["bias=1", "bias=2"]}, "bias is given twice"),
        ({"cell_args": "bias=1"}, "'bias=1' is no mapping of names to values"),
        ({"cell_args": {"2": 1}}, "'2' is no name of an argument"),
        ({"cell_args": {"activation": print}}, "which a model folder cannot hold"),
        ({"cell_args": {"bias": float("nan")}}, "it must be a number, a text, a list"),
        ({"cell_args": {"hidden_size": 3}}, "hidden_size has an option of its own"),
        ({"cell_args": {"merge": "none"}}, "with merge=none the directions have outputs of"),
        ({"cell": "gru", "cell_args": {"proj_size": 3}}, "gru takes no argument 'proj_size'; it"),
        ({"cell": "torch-gru", "activation": "relu"}, "torch-gru has no argument activation"),
        ({"cell_args": {"activation": "relu"}, "activation": "tanh"}, "given twice"),
        ({"activation": "piecewise(1, 2)"}, "write the knots as piecewise(-2.5:0, 2.5:1)"),
    ],
)
def test_what_is_refused(folder: Path, options: dict[str, Any], expected: str) -> None:
    assert expected in refused(**options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("x = (", "SyntaxError: '(' was never closed, line 1"),
        ("import nosuch", "No module named 'nosuch', line 1"),
        ("def f():\n    raise KeyError('a')\nf()", "KeyError: 'a', line 2"),
        ("import sys\nsys.exit(3)", "SystemExit: 3, line 2"),
        ("from .gates import hard", "a relative import needs a package"),
    ],
)
def test_files_that_cannot_be_imported(folder: Path, content: str, expected: str) -> None:
    Path("broken.py").write_text(content)
    message = refused(cell="broken.py:A")
    assert message.startswith("cell: importing ")
    assert expected in message


@pytest.mark.parametrize("name", ["json.py", "my-cell.py", "torch.py", "2.py"])
def test_names_of_files_that_no_import_could_name(folder: Path, name: str) -> None:
    """The module is imported once, and takes nobody's place."""
    import json

    Path(name).write_text(CELLS + "\nwith open('count', 'a') as f:\n    f.write('.')\n")
    first, second = (Options(cell=f"{name}:Gated", hidden=8).cell for _ in range(2))
    assert first is second
    assert Path("count").read_text() == "."
    assert own.name_of(first) == f"{name}:Gated"
    assert (json.dumps, torch.zeros(1).item()) == (__import__("json").dumps, 0.0)


def test_files_in_packages_import_their_neighbours(folder: Path) -> None:
    package = folder / "some_package_of_cells"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "gates.py").write_text("from torch.nn.functional import hardsigmoid as gate")
    (package / "cells.py").write_text(
        CELLS + "\nfrom .gates import gate\n\n\nclass Near(Gated):\n    near = gate\n"
    )
    by_file = Options(cell="some_package_of_cells/cells.py:Near").cell
    by_name = Options(cell="some_package_of_cells.cells:Near").cell
    assert by_file is by_name
    assert own.name_of(by_file) == "some_package_of_cells.cells:Near"


def test_a_file_that_has_changed_is_read_again(folder: Path) -> None:
    before = Options(cell="mine.py:Fixed").layer(4)
    Path("mine.py").write_text(
        CELLS.replace("super().__init__(input_size, 5)", "super().__init__(input_size, 50)")
    )
    after = Options(cell="mine.py:Fixed").layer(4)
    assert [cells.output_size(layer) for layer in (before, after)] == [10, 100]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_torchs_layers_with_lengths(name: str, bidirectional: bool) -> None:
    options = Options(cell=name, hidden=5, layers=2, dropout=0.0, bidirectional=bidirectional)
    own_layer = options.layer(3)
    torchs = Options(
        cell=f"torch-{name}", hidden=5, layers=2, dropout=0.0, bidirectional=bidirectional
    ).layer(3)
    assert isinstance(torchs, cells.TorchLayer)
    torchs.layer.load_state_dict(own_layer.state_dict())
    x, lengths = torch.randn(6, 3, 3), torch.tensor([2, 6, 4])
    (a, state_a), (b, state_b) = (one(x, lengths=lengths) for one in (own_layer, torchs))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(state_a, state_b)
    assert cells.output_size(torchs) == b.shape[-1]
    if not bidirectional:
        state, outputs = None, []
        for step in x:
            output, state = torchs.step(step, state)
            outputs.append(output)
        torch.testing.assert_close(torch.stack(outputs), torchs(x)[0])


class Shifted(nn.Module):
    """A cell whose output is neither its state nor as wide, with the state's parts in odd order."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell, self.hidden_size = nn.LSTMCell(input_size, hidden_size), hidden_size
        self.out = nn.Linear(hidden_size, 7)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        c, h = state
        h, c = self.cell(x, (h, c))
        return self.out(h), (c, h)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", Shifted])
def test_the_last_step_of_each_sequence(cell: Any, bidirectional: bool) -> None:
    layer = Options(cell=cell, hidden=5, layers=2, dropout=0.0, bidirectional=bidirectional).layer(
        3
    )
    x, lengths = torch.randn(6, 4, 3), torch.tensor([2, 6, 1, 4])
    output, hx = layer(x, lengths=lengths)
    found = cells.last_step(layer, output, lengths)
    width = cells.output_size(layer) // layer.num_directions
    for b, length in enumerate(lengths.tolist()):
        alone = layer(x[:length, b : b + 1])[0][:, 0]
        parts = [alone[-1, :width], *([alone[0, width:]] if bidirectional else [])]
        torch.testing.assert_close(found[b], torch.cat(parts))
    if cell == "lstm":
        h = hx[0][-layer.num_directions :]
        torch.testing.assert_close(found, torch.cat(list(h), 1))


def test_the_last_step_of_a_layer_that_reads_in_reverse() -> None:
    layer = Options(cell_args={"reverse": True}, hidden=5, bidirectional=False).layer(3)
    x, lengths = torch.randn(6, 4, 3), torch.tensor([2, 6, 1, 4])
    output, (h, _) = layer(x, lengths=lengths)
    torch.testing.assert_close(cells.last_step(layer, output, lengths), h[0])


def test_the_notation_of_piecewise_linear_functions() -> None:
    x = torch.linspace(-4, 4, 33)
    cases = {
        "piecewise(-3:0, 3:1)": PiecewiseLinear.hard_sigmoid(),
        " piecewise( -1 : -1 ,1:1 ) ": PiecewiseLinear.hard_tanh(),
        "piecewise(-1:1e-1, 0:2.5, 1.5:-3, beyond=linear)": PiecewiseLinear(
            [-1, 0, 1.5], [0.1, 2.5, -3], "linear"
        ),
        "piecewise(0:0, 1:1, beyond=constant:linear)": PiecewiseLinear(
            [0, 1], [0, 1], ("constant", "linear")
        ),
    }
    for text, expected in cases.items():
        read = PiecewiseLinear.read(text)
        assert torch.equal(read(x), expected(x))
        assert torch.equal(PiecewiseLinear.read(read.text)(x), expected(x))
        assert torch.equal(cello.nn.LSTM(2, 3, activation=text).activation(x), expected(x))
    third = PiecewiseLinear([-1 / 3, 1 / 3], [0.1, 0.2])
    assert PiecewiseLinear.read(third.text).xs == third.xs
    for text in (
        "piecewise()",
        "piecewise(1:2",
        "piecewise(a:1, 2:2)",
        "piecewise(1:1, beyond=far)",
    ):
        with pytest.raises(ValueError, match=r"cannot be read|must"):
            PiecewiseLinear.read(text)
