"""Pictures: what is written in them, that nothing lies on anything else, and that files are whole."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import cello

pytest.importorskip("matplotlib", reason="needs matplotlib")

from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cello.inspect.draw import STATES, _Picture, _weights

T, B, F, H = 4, 3, 7, 4
X = torch.randn(T, B, F)


class MinimalGatedUnit(nn.Module):
    def __init__(self, features, width):
        super().__init__()
        self.gate = nn.Linear(features + width, width)
        self.new = nn.Linear(features + width, width)

    def forward(self, x, h):
        f = torch.sigmoid(self.gate(torch.cat([x, h], -1)))
        n = torch.tanh(self.new(torch.cat([x, f * h], -1)))
        return (1 - f) * h + f * n


def four_parts(x, state):
    return tuple(torch.tanh(part + x) for part in state)


def foreign(**options):
    return cello.Recurrent(lambda f: MinimalGatedUnit(f, 20), F, **options)


LAYERS = {
    "one": (cello.nn.LSTM(F, H), X),
    "two by two": (cello.nn.LSTM(F, H, num_layers=2, bidirectional=True), X),
    "three": (cello.nn.GRU(F, H, num_layers=3, dropout=0.5), X),
    "projection": (cello.nn.LSTM(F, 400, proj_size=100, batch_first=True), X.transpose(0, 1)),
    "merge": (cello.nn.GRU(F, (5, 6), num_layers=2, bidirectional=True, merge="sum"), X),
    "pair": (cello.nn.RNN(F, H, bidirectional=True, merge="none"), X),
    "backward": (cello.nn.RNN(F, H, reverse=True), X),
    "long": (cello.nn.LSTM(F, H, bidirectional=True), torch.randn(50, B, F)),
    "one sequence": (cello.nn.LSTM(F, H), X[:, 0]),
    "one step": (cello.nn.GRU(F, H, bidirectional=True), X[:1]),
    "packed": (cello.nn.GRU(F, H), pack_sequence([torch.randn(5, F), torch.randn(2, F)])),
    "foreign": (foreign(num_layers=2, bidirectional=True), X),
    "function": (cello.Recurrent(four_parts, state_size=(F,) * 4), X),
}


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_lies_on_anything_else(name):
    layer, x = LAYERS[name]
    figure = cello.draw(layer, x)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = {patch: patch.get_window_extent(renderer).padded(-1) for patch in axes.patches}
    for a, b in itertools.combinations(boxes.values(), 2):
        assert not a.overlaps(b)
    for text in axes.texts:
        own = text.get_window_extent(renderer).padded(-1)
        assert text.get_text() == "" or figure.bbox.padded(1).fully_containsx(own.x0)
        assert figure.bbox.fully_containsx(own.x1), text.get_text()
        assert figure.bbox.fully_containsy(own.y0)
        assert figure.bbox.fully_containsy(own.y1)
        around = [box for box in boxes.values() if text.get_text() and box.overlaps(own)]
        assert len(around) <= 1, text.get_text()  # the box that it is written in
        for box in around:
            assert box.padded(3).fully_containsx(own.x0), text.get_text()
            assert box.padded(3).fully_containsx(own.x1), text.get_text()
    written = [text for text in axes.texts if text.get_text()]
    extents = [text.get_window_extent(renderer).padded(-1) for text in written]
    for (one, a), (other, b) in itertools.combinations(zip(written, extents, strict=True), 2):
        assert not a.overlaps(b), (one.get_text(), other.get_text())


@pytest.mark.parametrize("name", LAYERS)
def test_every_final_state_is_marked_once(name):
    layer, x = LAYERS[name]
    explanation = cello.explain(layer, x)
    shown = words(explanation.draw())
    for place in explanation.shapes.places:
        for part in explanation.shapes.names:
            for end in "0n":
                assert shown.count(f"{part}_{end}{place.index}") == 1
    cells = len(explanation.shapes.places) * min(
        explanation.shapes.letters["T"], 4 if len(x) > 6 else 6
    )
    assert shown.count(explanation.shapes.places[0].cell) == cells


def test_what_is_written():
    shown = words(cello.draw(cello.nn.LSTM(28, 4, bidirectional=True), torch.zeros(3, 10, 28)))
    for text in (
        "LSTM(28, 4, bidirectional=True)",
        "weight_ih_l0_reverse (G*H, F) = (16, 28)",
        "h_n (L*D, B, H) = (2, 10, 4): h of every layer and direction after its last step",
        "h_n[1] equals output[0, :, H:]",
        "output[-1]",
        "concat",
    ):
        assert text in shown
    assert "dropout 0.5 in training" in words(cello.draw(*LAYERS["three"]))
    assert words(cello.draw(*LAYERS["long"])).count("…") == 4
    assert "output[1][0]" in words(cello.draw(*LAYERS["pair"]))


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_files(ending, tmp_path):
    recording = cello.record(cello.nn.LSTM(F, H), X, gradients=True)
    for name, draw in {
        "draw": lambda path: cello.draw(cello.nn.LSTM(F, H), X, path),
        "plot": lambda path: recording.plot(path=path),
        "saturation": lambda path: recording.plot_saturation(path=path),
        "reach": lambda path: recording.plot_reach(path=path),
    }.items():
        path = tmp_path / f"{name}.{ending}"
        draw(path)
        if ending == "svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            pixels = image.imread(path)
            assert min(pixels.shape[:2]) > 200
            assert pixels.std() > 0.02


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_values_over_time_are_those_of_one_sequence():
    layer = cello.nn.LSTM(F, H, num_layers=2, bidirectional=True, batch_first=True)
    recording = cello.record(layer, X.transpose(0, 1), lengths=[2, 4, 3])
    figure = recording.plot("f", "c", sequence=2, layer=0, direction=1)
    assert titles(figure) == ["f", "c"]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for name, values in zip("fc", shown, strict=True):
        expected = recording[f"{name}_l0_reverse"][2, :3].T
        torch.testing.assert_close(torch.tensor(values.data), expected)
    assert titles(recording.plot()) == ["i", "f", "g", "o", "h", "c"]
    lines = recording.plot("h", kind="lines").axes[0].lines
    torch.testing.assert_close(torch.tensor(lines[1].get_ydata()), recording["h_l1"][0, :2, 1])


def test_values_of_a_foreign_cell_and_of_many_units():
    recording = cello.record(foreign(), X)
    assert titles(recording.plot(kind="lines")) == ["f", "n", "h"]
    assert recording.gates() == ("f",)
    (middle,) = recording.plot("n", kind="lines").axes[0].lines
    expected = recording["n"][:, 0].quantile(0.5, dim=1)
    torch.testing.assert_close(torch.tensor(middle.get_ydata()), expected)


def test_complex_values_are_shown_by_their_size():
    def rotate(x, h):
        return 1j * h + x

    layer = cello.Recurrent(rotate, state_size=F)
    recording = cello.record(layer, torch.randn(T, B, F, dtype=torch.complex64))
    lines = recording.plot("h", kind="lines").axes[0].lines
    torch.testing.assert_close(torch.tensor(lines[2].get_ydata()), recording["h"][:, 0, 2].abs())


class Sometimes(nn.Module):
    """Assigns `extra` at every step but the first."""

    def forward(self, x, h):
        if bool((h != 0).any()):
            extra = 3 * h
            h = h + extra
        return h + x


def test_a_map_of_a_value_that_a_step_does_not_assign():
    recording = cello.record(cello.Recurrent(Sometimes(), state_size=F), X)
    (image,) = recording.plot("extra").axes[0].images
    most = float(recording["extra"][1:, 0].abs().max())
    assert image.get_clim() == pytest.approx((-most, most))
    recording = cello.record(cello.Recurrent(gate_of, state_size=F), X)
    assert recording["gate"][0].isnan().all()
    assert recording.plot("gate").axes[0].images[0].get_clim() == (0, 1)
    histogram, _ = recording.plot_saturation().axes
    assert sum(bar.get_height() for bar in histogram.patches[:40]) == pytest.approx(100)


def gate_of(x, h):
    if bool((h != 0).any()):
        gate = torch.sigmoid(h)
        h = h * gate
    return h + x


def test_lines_have_one_legend_where_all_panels_show_the_same_units():
    figure = cello.record(cello.nn.LSTM(F, H), X).plot(kind="lines")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"unit {k}" for k in range(H)
    ]
    assert all(axes.get_legend() is None for axes in figure.axes)
    figure = cello.record(cello.nn.LSTM(F, 16, proj_size=3), X).plot("f", "h", kind="lines")
    assert not figure.legends
    assert [
        [text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes
    ] == [
        ["8 of 10 units", "median"],
        ["unit 0", "unit 1", "unit 2"],
    ]


class Normed(NamedTuple):
    x: torch.Tensor
    x_norm: torch.Tensor


def test_states_have_the_colours_of_their_own():
    def step(x, state):
        return x, Normed(state.x + x, state.x_norm * 0.5)

    layer = cello.Recurrent(step, state_size=Normed(F, F))
    picture = _Picture(cello.explain(layer, X).shapes)
    colours = {text.split()[0]: colour for colour, text in picture.legend()}
    assert (colours["x_n"], colours["x_norm_n"]) == STATES[:2]


def test_a_layer_shows_its_own_weights():
    class Named(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.w_l0 = nn.Parameter(torch.eye(features))

        def forward(self, x, h):
            return x @ self.w_l0 + h

    layer = cello.Recurrent(Named, F, num_layers=2, state_size=F)
    shapes = cello.explain(layer, X).shapes
    assert [_weights(shapes, place) for place in shapes.places] == [["w_l0 (7, 7)"]] * 2


def test_saturation_is_that_of_the_numbers():
    recording = cello.record(cello.nn.GRU(F, H), 30 * X)
    figure = recording.plot_saturation("r")
    histogram, units = figure.axes
    values = recording["r"]
    said = re.fullmatch(r"r: (\d+) % near 0, (\d+) % near 1", histogram.get_title())
    assert said is not None
    near = [100 * float(part.double().mean()) for part in (values <= 0.05, values >= 0.95)]
    assert [int(percent) for percent in said.groups()] == pytest.approx(near, abs=0.501)
    assert sum(bar.get_height() for bar in histogram.patches[:40]) == pytest.approx(100)
    points = torch.tensor(units.collections[0].get_offsets().data)
    torch.testing.assert_close(points.float(), 100 * recording.saturation("r"))


def test_reach_is_the_mean_of_logarithms():
    recording = cello.record(cello.nn.GRU(F, H), X, lengths=[4, 2, 3], gradients=True)
    axes = recording.plot_reach("h", "n").axes[0]
    assert axes.get_yscale() == "log"
    norms = recording.reach("h").double()
    found = torch.tensor(axes.lines[0].get_ydata())
    assert found[3] == pytest.approx(float(norms[3, 0]))
    assert found[0] == pytest.approx(float(norms[0].log().mean().exp()))


def test_reach_leaves_out_what_has_no_gradient():
    def carries(x, state):
        h, context = state
        return torch.tanh(x + h + context), (torch.tanh(x + h), context)

    layer = cello.Recurrent(carries, state_size=(F, F))
    recording = cello.record(layer, X, gradients=True)
    assert "c" not in recording.gradients
    (axes,) = recording.plot_reach().axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["h"]
    with pytest.raises(KeyError, match="'c'"):
        recording.plot_reach("c")


def test_what_is_refused():
    recording = cello.record(cello.nn.RNN(F, H), X)
    with pytest.raises(ValueError, match="kind must be 'map' or 'lines', got 'bars'"):
        recording.plot(kind="bars")
    with pytest.raises(ValueError, match="sequence 1 has no steps, so there is nothing to draw"):
        cello.record(cello.nn.RNN(F, H), X, lengths=[4, 0, 2]).plot(sequence=1)
    with pytest.raises(IndexError, match="sequence 3: the recording has 3 sequences"):
        recording.plot(sequence=3)
    with pytest.raises(KeyError, match="'q'"):
        recording.plot("q")
    with pytest.raises(
        ValueError, match="this cell has no gate, that is a value always between 0 and 1"
    ):
        recording.plot_saturation()
    with pytest.raises(ValueError, match="gradients=True"):
        recording.plot_reach()
    empty = cello.record(cello.nn.GRU(F, H), X[:, :0])
    with pytest.raises(ValueError, match="'r': no step has assigned a value, so there is nothing"):
        empty.plot_saturation()
    with pytest.raises(ValueError, match="has no sequences, so there is nothing to draw"):
        empty.plot_reach()
    with pytest.raises(IndexError, match="sequence 0: the recording has 0 sequences"):
        empty.plot()
