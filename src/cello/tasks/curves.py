"""Pictures of a comparison, for a paper: learning curves, and the score of each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cello.inspect.pictures import finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
"""Of the cells in order, which colour-blind readers tell apart too: Okabe and Ito, 2008; no yellow."""
DASHES = ("-", "--", ":")
"""With more cells the colours come again, with other lines."""
WIDTH = 6.9
"""Inches, two columns of a paper."""


@contextmanager
def style() -> Iterator[None]:
    """Draw and write in the type of a paper: small, thin, and letters that stay letters in a PDF."""
    from matplotlib import rc_context

    settings: Any = {
        "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 8, "axes.linewidth": 0.6,
        "xtick.labelsize": 7, "ytick.labelsize": 7, "xtick.major.width": 0.6,
        "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
        "pdf.fonttype": 42, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with rc_context(settings):
        yield


def write(figure: Figure, stream: IO[bytes], kind: str) -> None:
    """Write a picture, as ``pdf`` or ``png``."""
    finish(figure, stream, format=kind, dpi=200)


def learning_curves(epochs: pd.DataFrame, valid: str) -> Figure:
    """Draw the loss and the validation score after each epoch: the mean over the runs, and its band.

    The band is one standard deviation to both sides. A line ends with the first of its runs to end.

    Args:
        epochs: `cell`, `seed`, `epoch`, `loss` and `valid`, a row for each epoch of each run.
        valid: what the validation score is, for the eye.
    """
    names = list(dict.fromkeys(epochs["cell"]))
    columns = _columns([_plain(name) for name in names])
    figure = _figure(2.4 + 0.17 * -(-len(names) // columns))
    left, right = figure.subplots(1, 2)
    for axes, column, label in (
        (left, "loss", "training loss"),
        (right, "valid", f"validation {valid}"),
    ):
        for number, name in enumerate(names):
            own = epochs[epochs["cell"] == name]
            runs = own.pivot(index="epoch", columns="seed", values=column).dropna()
            _line(axes, runs, name, number)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _line(axes: Axes, runs: pd.DataFrame, name: str, number: int) -> None:
    colour, dash = _look(number)
    x, mean = runs.index.to_numpy(), runs.mean(axis=1).to_numpy()
    marker = "o" if len(x) <= 20 else ""
    axes.plot(x, mean, color=colour, ls=dash, lw=1.2, marker=marker, ms=2.5, label=_plain(name))
    if runs.shape[1] > 1:
        deviation = runs.std(axis=1).to_numpy()
        axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, lw=0)


def scores(runs: pd.DataFrame, test: str, higher_is_better: bool) -> Figure:
    """Draw the test score of each run as a dot, their mean as a stroke, one deviation as a line.

    Args:
        runs: what :func:`cello.tasks.summary.summarize` takes, finished runs only.
        test: what the score is, for the eye.
        higher_is_better: of it.
    """
    names = list(dict.fromkeys(runs["cell"]))
    figure = _figure(0.7 + 0.28 * len(names))
    axes = figure.subplots()
    for number, name in enumerate(names):
        found = runs[runs["cell"] == name]["test"].to_numpy()
        colour, _ = _look(number)
        axes.plot(found, np.full(len(found), number), "o", color=colour, ms=4, alpha=0.6, mew=0)
        spread = found.std(ddof=1) if len(found) > 1 else 0.0
        axes.errorbar(
            found.mean(), number, xerr=spread, color=colour, fmt="|", ms=13, mew=1.6, lw=0.9
        )
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", lw=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"test {test} ({'higher' if higher_is_better else 'lower'} is better)")
    return figure


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def _look(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _columns(labels: Sequence[str]) -> int:
    """Return how many labels stand beside each other above the picture."""
    longest = max(map(len, labels)) + 6
    return max(1, min(len(labels), 110 // longest))


def _plain(text: str) -> str:
    short = text if len(text) <= 40 else text[:39] + "…"
    return short.replace("$", r"\$")
