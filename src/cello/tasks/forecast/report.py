"""How good forecasts are: errors against simple forecasts, intervals, picture, file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cello.inspect.pictures import finish
from cello.tasks.errors import say, show_table
from cello.tasks.forecast.judged import of_skipped
from cello.tasks.report import Report

if TYPE_CHECKING:
    from rich.console import Console

Array = NDArray[np.float64]

MODEL, NAIVE, SEASONAL = "model", "naive", "seasonal naive"
PANELS = 4
"""Columns that are drawn, at most."""
BLUE, ORANGE, GREY = "#1f6fb4", "#d95f0e", "#777777"


class Errors:
    """Squared and absolute errors by step and column, scaled and in the units of the data.

    Args:
        horizon: H.
        targets: Y.
    """

    KINDS = ("mse", "mae", "mse_units", "mae_units")

    def __init__(self, horizon: int, targets: int) -> None:
        self.sums = np.zeros((len(self.KINDS), horizon, targets))
        self.count = 0

    def add(self, error: Array, deviation: Array) -> None:
        """Add windows.

        Args:
            error: scaled, (H, B, Y).
            deviation: what one of it is in the units of the data, (B, Y).
        """
        units = error * deviation
        for i, one in enumerate((error**2, np.abs(error), units**2, np.abs(units))):
            self.sums[i] += one.sum(1)
        self.count += error.shape[1]

    def means(self) -> dict[str, Array]:
        """Return the mean of each kind of error, (H, Y)."""
        return dict(zip(self.KINDS, self.sums / self.count, strict=True))


class Intervals:
    """How often the truth is in the intervals, and how wide those are.

    Args:
        levels: the share of the truth that should be in each one.
        horizon: H.
        targets: Y.
    """

    def __init__(self, levels: Sequence[float], horizon: int, targets: int) -> None:
        self.levels = levels
        self.inside = np.zeros((horizon, targets, len(levels)))
        self.width = np.zeros(len(levels))
        self.count = 0

    def add(self, truth: Array, lower: Array, upper: Array) -> None:
        """Add windows: the truth, (H, B, Y), and the bounds of all levels, (H, B, Y, levels)."""
        inside = (truth[..., None] >= lower) & (truth[..., None] <= upper)
        self.inside += inside.sum(1)
        self.width += (upper - lower).mean((0, 2)).sum(0)
        self.count += truth.shape[1]

    def figures(self, targets: Sequence[str], lacks: dict[float, str]) -> list[dict[str, Any]]:
        """Return the figures of each interval; see :class:`ForecastReport`.

        Args:
            targets: the names of the columns.
            lacks: why intervals do not promise their level, of those that do not.
        """
        shares = self.inside / self.count
        return [
            {
                "level": level,
                "coverage": float(shares[..., k].mean()),
                "width": float(self.width[k] / self.count),
                "lack": lacks.get(level, ""),
                "steps": shares[..., k].mean(1).tolist(),
                "columns": dict(zip(targets, shares[..., k].mean(0).tolist(), strict=True)),
            }
            for k, level in enumerate(self.levels)
        ]


@dataclass(kw_only=True)
class ForecastReport(Report):
    """How far forecasts are from the truth, beside those of simple forecasts.

    Scaled errors are those of numbers from which the training part's mean is subtracted and which
    are divided by its standard deviation, each column by its own.

    Attributes:
        windows: forecasts that were made, each of `horizon` steps of all columns.
        series: how many series they are of.
        skipped: how many further series are too short for a forecast.
        rows: how many rows are forecast by one or several of them.
        first: the time of the first of these rows, as it is written in the data.
        last: that of the last.
        horizon: steps of a forecast.
        window: steps that it is made from.
        season: steps after which the seasonal naive forecast repeats.
        mse: mean squared error, scaled, of all columns and steps.
        mae: mean absolute error, scaled.
        baselines: the same two figures for the last number (``naive``) and for the last season's
            numbers (``seasonal naive``), repeated.
        columns: for each column and kind of forecast: `mse`, `mae`, and in the units of the data
            `rmse_units`, `mae_units`.
        steps: for each kind of forecast the `mse` and `mae` of each step.
        intervals: for each `level` how much of the truth is inside (`coverage`), that for each of the
            `steps` and `columns`, the mean `width`, scaled, and where the level is not promised, why
            (`lack`); see :mod:`cello.tasks.forecast.conformal`.
        example: some forecasts, for the picture.
    """

    picture: ClassVar[str] = "forecast.png"
    measure: ClassVar[str] = "MSE"

    windows: int
    series: int
    skipped: int
    rows: int
    first: str
    last: str
    horizon: int
    window: int
    season: int
    mse: float
    mae: float
    baselines: dict[str, dict[str, float]]
    columns: dict[str, dict[str, dict[str, float]]]
    steps: dict[str, dict[str, list[float]]]
    intervals: list[dict[str, Any]]
    example: dict[str, Any]

    @property
    def score(self) -> float:
        return self.mse

    def show(self, console: Console) -> None:
        """Print the figures of all columns together and of each."""
        from rich.markup import escape
        from rich.table import Table

        title = f"{self.data}: {self.windows:,} forecasts of {self.horizon:,} steps"
        # Not the title of the table, which would break the path of a file at the table's width.
        say(console, title)
        table = Table()
        table.add_column("column")
        for heading in ("MSE", "naive", "seasonal", "MAE", "RMSE (units)", "MAE (units)"):
            table.add_column(heading, justify="right")
        for column, kinds in self.columns.items():
            own = kinds[MODEL]
            table.add_row(
                escape(column),
                *(f"{kinds[kind]['mse']:.4f}" for kind in (MODEL, NAIVE, SEASONAL)),
                f"{own['mae']:.4f}",
                _units(own["rmse_units"]),
                _units(own["mae_units"]),
            )
        show_table(console, table)
        of = f" of {self.series:,} series" if self.series > 1 else ""
        lines = [
            f"judged: {self.rows:,} rows{of}, {self.first} to {self.last}; each forecast is made from "
            f"the {self.window:,} rows before it",
            *of_skipped(self.skipped),
            f"MSE {self.mse:.4f}  MAE {self.mae:.4f}  (scaled by the training set)  "
            f"{self.seconds:.1f} s",
            *(
                f"{name}: MSE {found['mse']:.4f}  MAE {found['mae']:.4f}"
                + (f"  (season of {self.season:,} steps)" if name == SEASONAL else "")
                for name, found in self.baselines.items()
            ),
            *(
                f"{100 * one['level']:g}% interval: {one['coverage']:.1%} of the truth is inside; "
                f"mean width {one['width']:.3f}" + (one["lack"] and f"; {one['lack']}")
                for one in self.intervals
            ),
        ]
        worse = [name for name, found in self.baselines.items() if found["mse"] <= self.mse]
        if worse:
            lines.append(f"no better than: {', '.join(worse)}")
        for line in lines:
            say(console, line)

    def draw(self, stream: IO[bytes]) -> None:
        """Draw some forecasts against the truth, and the error of each step."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.figure import Figure

        example = self.example
        shown = list(self.columns)[:PANELS]
        figure = Figure(figsize=(10, 2.4 * len(shown) + 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(shown) + 1, squeeze=False)[:, 0]
        times = np.array(example["times"], dtype="datetime64[us]")
        level = example["level"]
        lack = ", not calibrated" if level is not None and self.intervals[0]["lack"] else ""
        for i, (axes, column) in enumerate(zip(panels, shown, strict=False)):
            axes.plot(times, np.array(example["truth"])[:, i], color=GREY, lw=1.2, label="truth")
            for k, one in enumerate(example["forecasts"]):
                rows = slice(one["first"], one["first"] + self.horizon)
                label = {"label": "forecast"} if k == 0 else {}
                axes.plot(times[rows], np.array(one["forecast"])[:, i], color=BLUE, lw=1.4, **label)
                if level is not None:
                    label = {"label": f"{100 * level:g}% interval{lack}"} if k == 0 else {}
                    lower, upper = np.array(one["lower"])[:, i], np.array(one["upper"])[:, i]
                    axes.fill_between(
                        times[rows], lower, upper, color=BLUE, alpha=0.2, lw=0, **label
                    )
                axes.axvline(times[one["first"]], color=GREY, lw=0.6, ls=":")
            axes.set_title(_plain(column), loc="left", fontsize=10)
            locator = AutoDateLocator()  # type: ignore[no-untyped-call]
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        panels[0].legend(loc="upper left", fontsize=8, ncols=3)
        axes = panels[-1]
        steps = np.arange(1, self.horizon + 1)
        styles = {MODEL: (BLUE, "-"), NAIVE: (GREY, "--"), SEASONAL: (ORANGE, "-.")}
        for name, (color, style) in styles.items():
            marker = "o" if self.horizon == 1 else ""
            mse = self.steps[name]["mse"]
            axes.plot(steps, mse, color=color, ls=style, marker=marker, label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("steps ahead")
        axes.set_ylabel("MSE, scaled")
        axes.legend(fontsize=8)
        title = f"MSE {self.mse:.4f}, MAE {self.mae:.4f}: {self.windows:,} forecasts"
        axes.set_title(title, loc="left", fontsize=10)
        finish(figure, stream, format="png", dpi=120)


def _units(number: float) -> str:
    """Write an error in the units of the data: four digits, and all before the point."""
    return f"{number:,.0f}" if 1e4 <= number < 1e16 else f"{number:.4g}"


def figures(errors: dict[str, Errors], targets: Sequence[str]) -> dict[str, Any]:
    """Return a report's `mse`, `mae`, `baselines`, `columns` and `steps`.

    Args:
        errors: of the model and the baselines, by their names.
        targets: the names of the columns.
    """
    means = {name: one.means() for name, one in errors.items()}
    overall = {
        name: {kind: float(mean[kind].mean()) for kind in ("mse", "mae")}
        for name, mean in means.items()
    }
    return {
        **overall.pop(MODEL),
        "baselines": overall,
        "columns": {
            column: {
                name: {
                    "mse": float(mean["mse"][:, i].mean()),
                    "mae": float(mean["mae"][:, i].mean()),
                    "rmse_units": float(np.sqrt(mean["mse_units"][:, i].mean())),
                    "mae_units": float(mean["mae_units"][:, i].mean()),
                }
                for name, mean in means.items()
            }
            for i, column in enumerate(targets)
        },
        "steps": {
            name: {kind: mean[kind].mean(1).tolist() for kind in ("mse", "mae")}
            for name, mean in means.items()
        },
    }


def _plain(text: str) -> str:
    short = text if len(text) <= 60 else text[:59] + "…"
    return short.replace("$", r"\$")
