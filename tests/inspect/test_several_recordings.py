"""Several recordings in one picture, and pictures in axes of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cello

pytest.importorskip("matplotlib", reason="needs matplotlib")

from matplotlib.figure import Figure

LSTM, GRU = cello.nn.LSTM(5, 4), cello.nn.GRU(5, 12)
X = torch.randn(7, 3, 5)
A, G = cello.record(LSTM, X, gradients=True), cello.record(GRU, X, gradients=True)


def labels(axes: object) -> list[str]:
    return axes.get_legend_handles_labels()[1]  # type: ignore[attr-defined,no-any-return]


def test_lines_of_two_recordings(tmp_path: Path):
    figure = Figure()
    axes = figure.subplots()
    for recording, label in ((A, "LSTM"), (G, "GRU")):
        made = recording.plot("h", kind="lines", ax=axes, label=label, path=tmp_path / "x.png")
        assert made is figure
    assert labels(axes) == [
        *(f"LSTM: unit {k}" for k in range(4)),
        "GRU: 8 of 10 units",
        "GRU: median",
    ]
    for k in range(4):
        torch.testing.assert_close(torch.tensor(axes.lines[k].get_ydata()), A["h"][:, 0, k])
    assert axes.lines[4].get_ydata() == pytest.approx(G["h"][:, 0].quantile(0.5, dim=1).numpy())
    assert len({line.get_color() for line in axes.lines}) == 5
    assert axes.get_title("left") == "h"
    assert axes.get_xlabel() == "step"
    assert figure.get_suptitle() == ""
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels(axes)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    G.plot("z", kind="lines", ax=axes, label="GRU")
    assert axes.get_title("left") == "h, z"


def test_maps_side_by_side():
    figure = Figure()
    axes = figure.subplots(2, 2)
    A.plot("i", "f", "g", "o", ax=axes, label="LSTM", sequence=2)
    assert [one.get_title("left") for one in axes.flat] == [f"LSTM: {name}" for name in "ifgo"]
    shown = torch.tensor(axes[0, 1].images[0].get_array())
    torch.testing.assert_close(shown, A["f"][:, 2].T)
    right = figure.subfigures(1, 2)[1]  # the file, and the figure, are those of the whole
    assert A.plot("c", ax=right.subplots()) is figure


def test_a_map_needs_axes_of_its_own():
    axes = Figure().subplots()
    A.plot("i", ax=axes, label="LSTM")
    with pytest.raises(ValueError, match="ax: the axes have an image, which a map would hide"):
        G.plot("r", ax=axes, label="GRU")
    assert len(axes.images) == 1
    assert axes.get_title("left") == "LSTM: i"


def test_reach_of_two_recordings():
    axes = Figure().subplots()
    A.plot_reach(ax=axes, label="LSTM")
    G.plot_reach(ax=axes, label="GRU")
    assert labels(axes) == ["LSTM: h", "LSTM: c", "GRU: h"]
    expected = G.reach("h").log().mean(1).exp()
    torch.testing.assert_close(torch.tensor(axes.lines[2].get_ydata()), expected.double())
    assert len({line.get_color() for line in axes.lines}) == 3
    assert axes.get_title() == ""


def test_saturation_of_two_recordings():
    axes = Figure().subplots(2, 1)
    A.plot_saturation("f", ax=axes, label="LSTM")
    G.plot_saturation("z", ax=axes, label="GRU")
    upper, lower = axes
    assert [label.split(":")[0] for label in labels(upper)] == ["LSTM", "GRU"]
    assert upper.get_title() == "f, z"
    points = [torch.tensor(one.get_offsets().tolist()) for one in lower.collections]
    for found, (recording, name) in zip(points, ((A, "f"), (G, "z")), strict=True):
        torch.testing.assert_close(found, 100 * recording.saturation(name))


def test_a_wrong_number_of_axes_is_refused():
    axes = Figure().subplots(1, 3)
    for draw, needed in (
        (lambda ax: A.plot("i", "f", ax=ax), "2 are needed, for i, f"),
        (lambda ax: A.plot_saturation("i", ax=ax), "2 are needed, for i, i"),
        (lambda ax: A.plot_reach(ax=ax), "1 are needed"),
    ):
        with pytest.raises(ValueError, match=f"ax: 3 axes, where {needed}"):
            draw(axes)
    with pytest.raises(ValueError, match="ax: 1 axes, where 3 are needed, for i, f, o"):
        A.plot("i", "f", "o", ax=axes[0])
