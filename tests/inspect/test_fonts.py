"""Labels in any script: a font that has their letters is used, and where there is none it is said once."""

from __future__ import annotations

import ast
import io
import logging
import warnings
from pathlib import Path

import pytest
import torch

import cello
from cello.inspect import pictures

pytest.importorskip("matplotlib", reason="needs matplotlib")

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

ROOT = Path(cello.__file__).parent
LABEL = "好 day"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    """No font of this machine is known, and nothing has been said."""
    monkeypatch.setattr(pictures, "FALLBACKS", ("Cello Test",))
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    pictures._say_lacking.cache_clear()
    yield
    pictures._say_lacking.cache_clear()


@pytest.fixture
def font(tmp_path: Path) -> None:
    """A font whose only letter is 好, a triangle."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 800))
    pen.lineTo((1000, 0))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "good"])
    builder.setupCharacterMap({ord("好"): "good"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "good": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "good": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Cello Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "test.ttf")
    fontManager.addfont(tmp_path / "test.ttf")


def picture(label: str = LABEL) -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.set_title(label)
    axes.set_xticks([0, 1], [label, "plain"])
    axes.plot([0, 1], [0, 1], label=label)
    axes.legend()
    return figure


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What Cello said; matplotlib may miss a weight of its own font."""
    return [record for record in caplog.records if record.name.startswith("cello")]


def test_a_font_that_is_there_is_used(font: None, caplog: pytest.LogCaptureFixture) -> None:
    boxes, letters = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture().savefig(boxes)
    figure = pictures.finish(picture(), letters)  # warnings are errors: no glyph is missing
    assert boxes.getvalue() != letters.getvalue()
    (axes,) = figure.axes
    for text in (axes.title, axes.get_xticklabels()[0], axes.get_legend().texts[0]):
        assert text.get_fontfamily() == ["sans-serif", "Cello Test"]
    assert axes.get_xticklabels()[1].get_fontfamily() == ["sans-serif"]
    assert caplog.records == []
    figure.savefig(io.BytesIO(), format="svg")  # by the user, later


def test_where_there_is_none_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for label in (LABEL, "坏", "ไทย"):
        pictures.finish(picture(label), io.BytesIO())
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("cello", "WARNING")
    assert "no installed font has all characters" in record.getMessage()


def test_letters_of_the_own_font_need_no_other(caplog: pytest.LogCaptureFixture) -> None:
    (axes,) = pictures.finish(picture("Größe, ρ → ½"), io.BytesIO()).axes
    assert axes.title.get_fontfamily() == ["sans-serif"]
    assert caplog.records == []


class 门(torch.nn.Module):  # noqa: N801  # a cell that somebody names in their own script
    def forward(self, x, h):
        return torch.tanh(x + h)


def test_pictures_of_layers(font: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layer = cello.Recurrent(门(), state_size=4)
    cello.draw(layer, torch.zeros(3, 2, 4), tmp_path / "a.png")
    assert len(said(caplog)) == 1  # the font has another letter
    recording = cello.record(layer, torch.zeros(3, 2, 4))
    recording.plot(path=tmp_path / "b.png")
    assert len(said(caplog)) == 1


def test_every_picture_of_the_library_is_finished() -> None:
    """No file but one writes a figure, and whoever makes one finishes it."""
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {getattr(f, "attr", getattr(f, "id", "")) for f in calls}
        assert "savefig" not in names or path.name == "pictures.py", path
        assert "Figure" not in names or "finish" in names, path
