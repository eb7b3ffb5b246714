"""Which rows a report is on, and some forecasts for its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cello.tasks.forecast.conformal import bounds
from cello.tasks.forecast.times import write_times
from cello.tasks.forecast.windows import Windows

if TYPE_CHECKING:
    from cello.tasks.forecast.predictor import Forecaster


def example(forecaster: Forecaster, windows: Windows) -> dict[str, Any]:
    """Return up to three forecasts, one after the other, that end with the first series' part."""
    frame, H, Y = windows.frame, forecaster.horizon, len(forecaster.targets)
    number = int(frame.series_of(windows.starts[:1])[0])
    starts = windows.starts[frame.series_of(windows.starts) == number]
    chosen = starts[::-1][::H][:3][::-1]
    first = max(int(chosen[0]) - 2 * max(H, forecaster.season), int(frame.offsets[number]))
    rows = slice(first, int(chosen[-1]) + H)
    scale = frame.scales[number]
    mean, deviation = scale.mean[:Y], scale.deviation[:Y]
    outputs = forecaster.outputs(*windows.collate(chosen.tolist())[:3])
    outputs = outputs * deviation[:, None] + mean[:, None]
    lower, upper = bounds(outputs)
    offset = int(frame.offsets[number])
    levels = forecaster.config.options.intervals
    forecasts = []
    for i, start in enumerate(chosen):
        one = {"first": int(start) - first, "forecast": outputs[:, i, :, 0].tolist()}
        if levels:
            one |= {"lower": lower[:, i, :, 0].tolist(), "upper": upper[:, i, :, 0].tolist()}
        forecasts.append(one)
    series = frame.series[number]
    return {
        "series": series.name,
        "times": series.times[rows.start - offset : rows.stop - offset].astype(str).tolist(),
        "truth": frame.raw[rows, :Y].tolist(),
        "level": levels[0] if levels else None,
        "forecasts": forecasts,
    }


def extent(windows: Windows) -> dict[str, Any]:
    """Return a report's `series`, `skipped`, `rows`, `first` and `last`: what the windows forecast."""
    frame, numbers = windows.frame, windows.frame.series_of(windows.starts)
    known = np.unique(numbers)
    times, rows = [], 0
    for number in known:
        offset, starts = frame.offsets[number], windows.starts[numbers == number]
        first, last = int(starts[0] - offset), int(starts[-1] - offset) + windows.horizon - 1
        times += [frame.series[number].times[i] for i in (first, last)]
        rows += last - first + 1
    form = frame.series[known[0]].form
    first_time, last_time = write_times(np.array([min(times), max(times)]), form)
    return {
        "series": len(known),
        "skipped": len(frame.series) - len(known),
        "rows": rows,
        "first": first_time,
        "last": last_time,
    }


def of_skipped(number: int) -> list[str]:
    """Return the line about series that were not judged, if there are any."""
    if number == 0:
        return []
    series = "1 series is" if number == 1 else f"{number:,} series are"
    return [f"{series} too short for a forecast, and not judged"]
