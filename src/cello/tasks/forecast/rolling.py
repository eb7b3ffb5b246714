"""The forecasts of a backtest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cello.tasks.forecast.backtest import Backtest, seasonal_error, strided
from cello.tasks.forecast.conformal import bounds
from cello.tasks.forecast.times import write_times
from cello.tasks.forecast.windows import Windows

if TYPE_CHECKING:
    from cello.tasks.forecast.predictor import Forecaster


def rolling(
    forecaster: Forecaster,
    windows: Windows,
    *,
    data: str,
    horizon: int,
    stride: int,
    batch_size: int,
) -> Backtest:
    """Make the forecasts of windows; see :meth:`cello.tasks.forecast.Forecaster.backtest`.

    Args:
        forecaster: the model.
        windows: what it may forecast.
        data: what that is, for the eye.
        horizon: steps of each forecast that are kept.
        stride: rows from origin to origin.
        batch_size: forecasts computed at a time.
    """
    H, season = horizon, forecaster.season
    frame, Y = windows.frame, len(forecaster.targets)
    every = frame.series_of(windows.starts)
    units = np.full((len(frame.series), Y), np.nan)
    for number in np.unique(every):
        offset, first = frame.offsets[number], windows.starts[every == number][0]
        units[number] = seasonal_error(frame.raw[offset:first, :Y], season)
    windows = replace(windows, starts=strided(windows.starts, every, stride))
    numbers = frame.series_of(windows.starts)
    outputs = np.concatenate(
        [
            forecaster.outputs(*windows.collate(starts.tolist())[:3])[:H]
            for starts in windows.batches(batch_size)
        ],
        1,
    )
    deviation, mean = (
        np.stack([getattr(frame.scales[i], name)[:Y] for i in numbers])
        for name in ("deviation", "mean")
    )
    outputs = outputs * deviation[..., None] + mean[..., None]
    outputs = outputs.transpose(1, 0, 2, 3)
    lower, upper = bounds(outputs)
    rows = windows.starts[:, None] + np.arange(-1, H)
    form = frame.series[numbers[0]].form
    times = np.concatenate([one.times for one in frame.series])
    return Backtest(
        data=data,
        columns=tuple(forecaster.targets),
        time=forecaster.columns.time,
        form=form,
        stride=stride,
        season=season,
        series=np.array([frame.series[i].name for i in numbers], np.str_),
        origins=times[rows[:, 0]],
        times=times[rows[:, 1:]],
        written=np.array(write_times(times, form), np.str_)[rows],
        actual=frame.raw[rows[:, 1:], :Y],
        values=outputs[..., 0],
        naive=frame.raw[windows.season_before(windows.starts, season)[:H].T, :Y],
        intervals={
            level: (lower[..., k], upper[..., k])
            for k, level in enumerate(forecaster.config.options.intervals)
        },
        unit=units[numbers],
        resolution=deviation * np.finfo(np.float32).epsneg,
        lacks=forecaster.lacks(),
        skipped=len(frame.series) - len(np.unique(every)),
    )
