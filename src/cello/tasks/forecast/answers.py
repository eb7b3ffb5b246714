"""Forecasts, and the lines that tell them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cello.tasks.forecast.table import Columns
from cello.tasks.forecast.times import ROWS, Times, split_time


@dataclass(frozen=True)
class Forecast:
    """What follows a history.

    Attributes:
        series: the name of the series; empty where there is only one.
        columns: the names of the Y columns that are forecast.
        times: of the H steps.
        values: the point forecasts, (H, Y).
        intervals: for each level the lower and the upper bounds, (H, Y) each.
        written: the times as text, in the form of the history.
        resolution: the least difference of numbers that the network tells apart, (Y,).
        form: how the times of the history were written; see :data:`cello.tasks.forecast.times.FORMATS`.
        time: the name of the column of times.
        past: the last rows of the history, those that the network has read, (T, Y).
        past_times: their times, (T,).
    """

    series: str
    columns: tuple[str, ...]
    times: Times
    values: NDArray[np.float64]
    intervals: dict[float, tuple[NDArray[np.float64], NDArray[np.float64]]]
    written: list[str]
    resolution: NDArray[np.float64]
    form: str = field(repr=False)
    time: str = field(repr=False)
    past: NDArray[np.float64] = field(repr=False)
    past_times: Times = field(repr=False)

    def to_pandas(self) -> Any:
        """Return the forecast as a DataFrame of pandas.

        Returns:
            One row for each step. The index holds the times, of time zone UTC if the history says one; or
            the numbers of the rows, if it has no times. For each column that is forecast there is one of
            that name, and for each level two, as ``load_lower_80`` and ``load_upper_80``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas

        if self.form == ROWS:
            index = pandas.Index(self.times.astype(np.int64), name=self.time)
        else:
            zone = "UTC" if "%z" in self.form else None
            # Three times at least tell how far they are apart, in the words of pandas.
            times = np.concatenate([self.past_times[-2:], self.times])
            freq = "infer" if len(times) > 2 else None
            index = pandas.DatetimeIndex(times, name=self.time, freq=freq)[-len(self.times) :]
            index = index.tz_localize(zone)
        found = {}
        for j, column in enumerate(self.columns):
            found[column] = self.values[:, j]
            for level, (lower, upper) in self.intervals.items():
                found[f"{column}_lower_{100 * level:g}"] = lower[:, j]
                found[f"{column}_upper_{100 * level:g}"] = upper[:, j]
        return pandas.DataFrame(found, index=index)

    def plot(
        self,
        ax: Any = None,
        history: int | Any | None = None,
        columns: Sequence[str] | None = None,
    ) -> Any:
        """Draw the last part of the series, the forecast and its intervals.

        Args:
            ax: axes of matplotlib, or a list with those of each column; a new figure unless given.
            history: how many of the rows that the network has read are drawn, by default three times the
                horizon; or a Series or DataFrame of pandas, whose index holds the times.
            columns: what is drawn, by default the first four columns.

        Returns:
            The axes; an array of them for several columns.

        Raises:
            InputError: a column is not forecast, or `history` is none of these.
        """
        from cello.tasks.forecast.plot import plot

        return plot(self, ax, history, None if columns is None else list(columns))


def told(
    forecasts: Iterable[Forecast], columns: Columns, levels: Sequence[float], *, as_json: bool
) -> Iterator[str]:
    """Return the rows of a table of forecasts, with its head, or one object of JSON a row.

    Args:
        forecasts: what to tell.
        columns: of the table that they follow.
        levels: of the intervals.
        as_json: JSON instead of CSV.
    """
    series = [] if columns.series is None else [columns.series]
    bounds = [f"{side}_{100 * level:g}" for level in levels for side in ("lower", "upper")]
    times = columns.time.split(",", 1)  # two, where date and time of day stand apart
    names = [*series, "column", *times, "forecast", *bounds]
    if not as_json:
        yield _csv(names)
    for one in forecasts:
        for j, column in enumerate(one.columns):
            for i, moment in enumerate(one.written):
                numbers = [one.values[i, j]]
                numbers += [bound[i, j] for pair in one.intervals.values() for bound in pair]
                parts = split_time(moment) if len(times) == 2 else (moment,)
                row = [*([one.series] if series else []), column, *parts]
                if as_json:
                    shown: list[Any] = [*row, *map(float, numbers)]
                    yield json.dumps(dict(zip(names, shown, strict=True)), ensure_ascii=False)
                else:
                    texts = (write_number(n, one.resolution[j]) for n in numbers)
                    yield _csv([*row, *texts])


def write_number(number: float, resolution: float) -> str:
    """Write a number with the digits that it has: all down to a difference, and nine at least.

    Nine digits are what a float32 needs to be read again as the same one.

    Args:
        number: the number.
        resolution: the least difference that counts, more than zero.

    Example:
        >>> write_number(1e9 / 3, 1.0), write_number(1e9 + 1 / 3, 1e-6), write_number(1e9, 1e-6)
        ('333333333', '1000000000.333333', '1000000000')
        >>> write_number(1e-9 / 3, 1e-16)
        '3.33333333e-10'
    """
    digits = 9
    if number:
        places = np.floor(np.log10([abs(number), resolution]))
        digits = int(np.clip(places[0] - places[1] + 1, 9, 17))
    return repr(float(f"{number:.{digits}g}")).removesuffix(".0")


def _csv(row: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(row)
    return line.getvalue()
