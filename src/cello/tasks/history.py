"""The learning curve of a run: a table with a row for each epoch, and its picture."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cello.tasks.files import HISTORY, written_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Epoch = dict[str, float]
"""What an epoch gave: its number from 1 as `epoch`, `train_loss`, `valid_loss`, the score under a name as
`valid_accuracy`, `learning_rate` at its end, and `seconds`."""


def write(epochs: Sequence[Epoch], folder: Path) -> None:
    """Write ``history.csv`` to a folder: the names, and a row for each epoch."""
    with written_beside(folder / HISTORY, "w") as stream:
        table = csv.DictWriter(stream, list(epochs[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(epochs)


def columns(epochs: Sequence[Epoch]) -> dict[str, list[float]]:
    """Return the values of all epochs by name.

    Example:
        >>> columns([{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}])
        {'epoch': [1, 2], 'train_loss': [0.5, 0.25]}
    """
    return {name: [epoch[name] for epoch in epochs] for name in (epochs[0] if epochs else ())}


def read(folder: Path) -> dict[str, list[float]]:
    """Return the values of all epochs by name, from ``history.csv``; nothing if there is none.

    Warns:
        UserWarning: the file is not whole; nothing but the learning curve depends on it.
    """
    path = folder / HISTORY
    if not path.exists():  # a model of an earlier version
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
        return columns([{**row, "epoch": int(row["epoch"])} for row in rows])
    except (ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        warnings.warn(f"{path}: not whole ({error}); the model has no learning curve", stacklevel=3)
        return {}


def draw(epochs: Sequence[Epoch], kept: int, stream: IO[bytes]) -> None:
    """Draw loss, score and learning rate over the epochs, in PNG.

    Args:
        epochs: what each gave.
        kept: the number of the epoch whose weights are kept; it is marked.
        stream: where to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cello.inspect.pictures import finish

    values = columns(epochs)
    scores = [n for n in values if n.startswith("valid_") and n != "valid_loss"]
    figure = Figure(figsize=(11 if scores else 7.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, *judged, rate = figure.subplots(1, 2 + len(scores))
    for name, label in (("train_loss", "training set"), ("valid_loss", "validation set")):
        _line(loss, values["epoch"], values[name], label)
    _line(rate, values["epoch"], values["learning_rate"], None, "C2")
    named = {"loss": loss, "learning rate": rate}
    for axes, score in zip(judged, scores, strict=True):
        _line(axes, values["epoch"], values[score], "validation set", "C1")
        named[score.removeprefix("valid_").replace("_", " ")] = axes
    for title, axes in named.items():
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        if axes is not rate:
            axes.axvline(kept, color="0.4", lw=1, ls="--", label=f"kept: epoch {kept}")
            axes.legend(frameon=False, fontsize=9)
    finish(figure, stream, format="png", dpi=120)


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float], label: str | None, color: str | None = None
) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "o" if len(x) <= 50 else None  # a run of one epoch is a point
    axes.plot(x, [v if math.isfinite(v) else math.nan for v in y], marker=marker, ms=3, lw=1.5,
              label=label, color=color)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
