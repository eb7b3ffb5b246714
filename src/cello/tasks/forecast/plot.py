"""A forecast as a picture: the last part of the series, what follows, and its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError
from cello.tasks.forecast.report import BLUE, GREY, PANELS
from cello.tasks.forecast.times import ROWS, Times

if TYPE_CHECKING:
    from cello.tasks.forecast.answers import Forecast


def plot(
    forecast: Forecast, ax: Any = None, history: Any = None, columns: list[str] | None = None
) -> Any:
    """Draw a forecast; see :meth:`cello.tasks.forecast.Forecast.plot`."""
    shown = list(forecast.columns[:PANELS]) if columns is None else columns
    unknown = [column for column in shown if column not in forecast.columns]
    if unknown or not shown:
        names = ", ".join(forecast.columns)
        raise InputError(f"columns: {unknown[0] if unknown else shown!r} is not one of {names}")
    if ax is None:
        from matplotlib import pyplot

        size = (8, 2.6 * len(shown) + 0.6)
        _, made = pyplot.subplots(len(shown), figsize=size, squeeze=False, layout="constrained")
        panels = list(made[:, 0])
    else:
        panels = list(np.ravel(ax))
        if not all(hasattr(axes, "fill_between") for axes in panels):
            raise InputError(
                f"ax: {type(ax).__name__} is not axes of matplotlib, or a list of them"
            )
        if columns is None:
            shown = shown[: len(panels)]
    if len(panels) != len(shown):
        raise InputError(f"ax: {len(panels)} axes for the columns {', '.join(shown)}")
    for axes, column in zip(panels, shown, strict=True):
        _panel(forecast, axes, column, history)
    # Above the axes, where it hides no line.
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
    panels[0].legend(**place, ncols=4, fontsize=8, frameon=False)
    return panels[0] if len(panels) == 1 else np.array(panels)


def _panel(forecast: Forecast, axes: Any, column: str, history: Any) -> None:
    i = forecast.columns.index(column)
    times, before = _history(forecast, column, history)
    # The lines begin at the last known number, so that there is no gap.
    joined = np.concatenate([times[-1:], _numbers(forecast, forecast.times)])

    def from_last(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([before[-1:], numbers[:, i]])

    axes.plot(times, before, color=GREY, lw=1.2, label="history")
    levels = sorted(forecast.intervals, reverse=True)
    for level in levels:
        lower, upper = map(from_last, forecast.intervals[level])
        label = f"{100 * level:g}% interval"
        alpha = 0.15 if level == levels[0] and len(levels) > 1 else 0.25
        axes.fill_between(joined, lower, upper, color=BLUE, alpha=alpha, lw=0, label=label)
    marker = "o" if len(forecast.times) == 1 else ""
    axes.plot(
        joined, from_last(forecast.values), color=BLUE, lw=1.5, marker=marker, label="forecast"
    )
    name = f"{forecast.series}: {column}" if forecast.series else column
    axes.set_title(name.replace("$", r"\$"), loc="left", fontsize=10)
    axes.margins(x=0.01)
    if forecast.form == ROWS:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("row")
    else:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _numbers(forecast: Forecast, times: Times) -> Any:
    """Return times as what is drawn: numbers of rows where there are no times."""
    return times.astype(np.int64) if forecast.form == ROWS else times


def _history(forecast: Forecast, column: str, history: Any) -> tuple[Any, NDArray[np.float64]]:
    """Return times and numbers of what is drawn before the forecast."""
    if history is None or isinstance(history, int):
        count = max(3 * len(forecast.times), 24) if history is None else history
        if count < 1:
            raise InputError(f"history: {count} rows; expected 1 or more, or a DataFrame")
        numbers = forecast.past[:, forecast.columns.index(column)]
        return _numbers(forecast, forecast.past_times)[-count:], numbers[-count:]
    if hasattr(history, "columns"):
        if column not in history.columns:
            raise InputError(f"history: no column {column!r}")
        history = history[column]
    if not hasattr(history, "index") or not hasattr(history, "to_numpy"):
        raise InputError(
            f"history: {type(history).__name__} is not a number of rows, a Series or a DataFrame"
        )
    history = history.dropna()
    index = history.index
    if type(index).__name__ == "PeriodIndex":
        index = index.to_timestamp()
    is_time = type(index).__name__ == "DatetimeIndex"
    if is_time != (forecast.form != ROWS) or not len(history):
        raise InputError("history: its index is not of the times of the forecast, or it is empty")
    if is_time and index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return index.to_numpy(), history.to_numpy(np.float64)
