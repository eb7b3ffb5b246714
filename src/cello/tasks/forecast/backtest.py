"""Rolling origins: every forecast that a model would have made, beside what came."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import say, show_table
from cello.tasks.forecast.answers import write_number
from cello.tasks.forecast.judged import of_skipped
from cello.tasks.forecast.times import ROWS, Times

if TYPE_CHECKING:
    from rich.console import Console


Array = NDArray[np.float64]

SHOWN = 8
"""Steps and columns of a summary that are printed, at most."""


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """Forecasts from rolling origins, without training again.

    An origin is the last row that a forecast knows. n is the number of forecasts, H their steps, Y the
    columns. Numbers are in the units of the data.

    Attributes:
        data: what was forecast, for the eye.
        columns: the names of the Y columns.
        time: the name of the column of times.
        form: how times are written.
        stride: rows from origin to origin.
        season: steps after which the seasonal naive forecast repeats.
        series: the name of the series of each forecast, (n,).
        origins: the time of each origin, (n,).
        times: of the rows that are forecast, (n, H).
        written: these times, and before them that of the origin, as they are written, (n, 1 + H).
        actual: what came, (n, H, Y).
        values: the forecasts, (n, H, Y).
        naive: the seasonal naive forecasts, (n, H, Y).
        intervals: for each level the lower and the upper bounds, (n, H, Y) each.
        unit: what absolute errors are divided by in MASE, (n, Y): the mean absolute error of the seasonal
            naive forecast, one season ahead, in the rows of the series before its first forecast; NaN if
            there is none, or it is zero.
        resolution: the least difference of numbers that the network tells apart, (n, Y).
        lacks: why intervals do not promise their level, of those that do not.
        skipped: how many further series are too short for a forecast.
    """

    data: str
    columns: tuple[str, ...]
    time: str
    form: str
    stride: int
    season: int
    series: NDArray[np.str_]
    origins: Times
    times: NDArray[np.datetime64]
    written: NDArray[np.str_]
    actual: Array
    values: Array
    naive: Array
    intervals: dict[float, tuple[Array, Array]]
    unit: Array
    resolution: Array
    lacks: dict[float, str] = field(default_factory=dict)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.series)

    @property
    def horizon(self) -> int:
        """H."""
        return int(self.actual.shape[1])

    def summary(self) -> list[dict[str, Any]]:
        """Return the errors by column and step.

        Returns:
            For each column a dictionary for all steps together, whose `step` is 0, and one for each step.
            They have `column`, `step`, `forecasts` (how many), `mae`, `rmse`, `mase`, the same three of the
            seasonal naive forecast, as ``naive_mae``, and for each level coverage and width of its
            interval, as ``coverage_80``. `mase` is the mean over the series whose history has a seasonal
            error, and NaN if there is none.
        """
        errors = {"": self.values - self.actual, "naive_": self.naive - self.actual}
        found, of_series = [], [self.series == name for name in np.unique(self.series)]
        for j, column in enumerate(self.columns):
            for step in range(self.horizon + 1):
                steps = slice(None) if step == 0 else slice(step - 1, step)
                row: dict[str, Any] = {"column": column, "step": step, "forecasts": len(self)}
                for name, error in errors.items():
                    one = error[:, steps, j]
                    row[f"{name}mae"] = float(np.abs(one).mean())
                    row[f"{name}rmse"] = float(np.sqrt((one**2).mean()))
                    scaled, known = np.abs(one) / self.unit[:, None, j], ~np.isnan(self.unit[:, j])
                    means = [scaled[own & known].mean() for own in of_series if (own & known).any()]
                    row[f"{name}mase"] = float(np.mean(means)) if means else np.nan
                truth = self.actual[:, steps, j]
                for level, bounds in self.intervals.items():
                    lower, upper = (bound[:, steps, j] for bound in bounds)
                    inside = (lower <= truth) & (truth <= upper)
                    row[f"coverage_{100 * level:g}"] = float(inside.mean())
                    row[f"width_{100 * level:g}"] = float((upper - lower).mean())
                found.append(row)
        return found

    def rows(self) -> Iterator[list[Any]]:
        """Yield the table row by row, with its head: one row for each forecast, column and step."""
        bounds = [f"{side}_{100 * k:g}" for k in self.intervals for side in ("lower", "upper")]
        named = ["series"] if self.series.any() else []
        head = [*named, "origin", "step", self.time, "column", "actual", "forecast", *bounds]
        yield [*head, "seasonal_naive"]
        pairs = [bound for pair in self.intervals.values() for bound in pair]
        numbers = np.stack([self.actual, self.values, *pairs, self.naive], -1)
        for i, name in enumerate(self.series):
            origin, *times = self.written[i]
            for j, column in enumerate(self.columns):
                for step, time in enumerate(times):
                    row = numbers[i, step, j].tolist()
                    yield [*([name] if named else []), origin, step + 1, time, column, *row]

    def to_pandas(self) -> Any:
        """Return the table as a DataFrame of pandas, with times as times.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas

        head, *rows = self.rows()
        table = pandas.DataFrame(rows, columns=head)
        Y, H = len(self.columns), self.horizon
        zone = "UTC" if "%z" in self.form else None
        for name, times in (
            ("origin", np.repeat(self.origins, Y * H)),
            (self.time, np.repeat(self.times, Y, 0).ravel()),
        ):
            index = pandas.DatetimeIndex(times).tz_localize(zone)
            table[name] = times.astype(np.int64) if self.form == ROWS else index
        return table

    def save(self, stream: IO[str]) -> None:
        """Write the table as CSV."""
        writer = csv.writer(stream, lineterminator="\n")
        rows = self.rows()
        head = next(rows)
        writer.writerow(head)
        first = head.index("actual")
        size = len(self.columns) * self.horizon
        for number, row in enumerate(rows):
            i, j = number // size, number % size // self.horizon
            texts = (write_number(x, self.resolution[i, j]) for x in row[first:])
            writer.writerow([*row[:first], *texts])

    def save_summary(self, stream: IO[str]) -> None:
        """Write the errors by column and step as CSV; a number that is not there is empty."""
        rows = self.summary()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow("" if value != value else value for value in row.values())

    def show(self, console: Console) -> None:
        """Print the errors of some steps of some columns."""
        from rich.markup import escape  # here: predictions do without
        from rich.table import Table

        count = f"{len(self):,} forecast{'' if len(self) == 1 else 's'} of {self.horizon:,} steps"
        say(console, f"{self.data}: {count}, {self.stride:,} rows apart")
        table = Table()
        levels = [f"{100 * level:g}" for level in self.intervals]
        for heading in ("column", "step"):
            table.add_column(heading)
        for heading in (
            "MAE",
            "seasonal",
            "RMSE",
            "seasonal",
            "MASE",
            "seasonal",
            *(f"in {k}%" for k in levels),
        ):
            table.add_column(heading, justify="right")
        steps = np.unique(np.linspace(1, self.horizon, SHOWN).round()).astype(int).tolist()
        for row in self.summary():
            if row["column"] not in self.columns[:SHOWN] or row["step"] not in (0, *steps):
                continue
            table.add_row(
                escape(row["column"]) if row["step"] == 0 else "",
                str(row["step"] or "all"),
                *(f"{row[f'{who}{k}']:.4g}" for k in ("mae", "rmse") for who in ("", "naive_")),
                *(_ratio(row[f"{who}mase"]) for who in ("", "naive_")),
                *(f"{row[f'coverage_{k}']:.1%}" for k in levels),
                end_section=row["step"] == self.horizon,
            )
        show_table(console, table)
        first, last = (self.written[at(self.origins), 0] for at in (np.argmin, np.argmax))
        lines = [
            f"origins: {first} to {last}; seasonal: the numbers of the last season, {self.season:,} steps",
            *of_skipped(self.skipped),
            *(f"{100 * level:g}% interval: {why}" for level, why in self.lacks.items()),
        ]
        if len(self.columns) > SHOWN:
            lines.append(f"{len(self.columns) - SHOWN:,} more columns are not shown")
        for line in lines:
            say(console, line)


def _ratio(number: float) -> str:
    return "-" if number != number else f"{number:.3f}"


def seasonal_error(values: Array, season: int) -> Array:
    """Return the mean absolute error of the seasonal naive forecast of rows, (T, Y): (Y,).

    Hyndman and Koehler, "Another look at measures of forecast accuracy", 2006.

    Args:
        values: rows.
        season: steps after which it repeats.

    Returns:
        NaN where there is no error, or it is zero.

    Example:
        >>> seasonal_error(np.array([[1.0], [2.0], [4.0], [4.0]]), 2)
        array([2.5])
    """
    if len(values) <= season:
        return np.full(values.shape[1], np.nan)
    error: Array = np.abs(values[season:] - values[:-season]).mean(0)
    return np.where(error > 0, error, np.nan)


def strided(
    starts: NDArray[np.int64], numbers: NDArray[np.int64], stride: int
) -> NDArray[np.int64]:
    """Return each `stride`-th start of each series, from its first.

    Example:
        >>> strided(np.array([3, 4, 5, 9, 10, 11]), np.array([0, 0, 0, 1, 1, 1]), 2).tolist()
        [3, 5, 9, 11]
    """
    parts: Sequence[NDArray[np.int64]] = [
        starts[numbers == n][::stride] for n in np.unique(numbers)
    ]
    return np.concatenate(parts)
