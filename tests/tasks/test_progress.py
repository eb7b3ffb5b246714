"""Where the progress of a training is shown, and what."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cello.tasks import Classifier, ClassifierOptions, errors
from cello.tasks.errors import InputError, console_of

ROWS = [(f"a {('fine', 'dull')[i % 2]} film", "ab"[i % 2]) for i in range(40)]
OPTIONS = ClassifierOptions(hidden=4, epochs=2, device="cpu")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verbose: bool | int | None, stream: io.StringIO
) -> str:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    Classifier.train(ROWS, folder / "run", OPTIONS, verbose=verbose)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("verbose", "terminal", "lines", "bar"),
    [
        (None, True, True, True),
        (None, False, False, False),
        (0, True, False, False),
        (False, True, False, False),
        (1, False, True, False),
        (True, True, True, True),
        (2, True, True, False),
        (2, False, True, False),
    ],
)
def test_what_is_shown_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verbose: bool | int | None, terminal: bool, lines: bool, bar: bool,
) -> None:  # fmt: skip
    out = shown(tmp_path, monkeypatch, verbose, Terminal() if terminal else io.StringIO())
    assert ("data: 32 rows for training, 4 for validation, 4 for testing" in out) == lines
    assert ("epoch 2/2  loss " in out) == lines
    assert ("\x1b[" in out) == ("━" in out) == bar
    assert lines or out == ""
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_shows_lines_and_with_widgets_a_bar(
    monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    from rich import console

    from cello.tasks import trainer

    monkeypatch.setattr(console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    usual = console_of(None)
    assert usual.is_jupyter
    assert not usual.quiet
    monkeypatch.setattr(trainer, "find_spec", lambda name: "there" if widgets else None)
    assert trainer.has_bar(usual) == widgets
    lines = console_of(2)
    assert (lines.is_jupyter, lines.file, trainer.has_bar(lines)) == (False, sys.stdout, False)


def test_other_values_are_refused() -> None:
    for wrong in (3, -1, "loud"):
        with pytest.raises(InputError, match=r"verbose: .* is not 0"):
            console_of(wrong)  # type: ignore[arg-type]
    assert isinstance(console_of(1), Console)
    assert errors.console_of(0).quiet
