"""Forecasting: train a model of time series, load it, forecast, evaluate.

Example::

    from cello.tasks import forecast

    report = forecast.train("load.csv", "runs/load", forecast.Options(horizon=24))
    forecaster = forecast.load("runs/load")
    for one in forecaster.predict("load.csv"):
        print(one.times, one.values)
"""

from typing import TYPE_CHECKING

from cello.tasks import lazily
from cello.tasks.errors import InputError
from cello.tasks.forecast.options import Options

__all__ = [
    "Backtest", "Forecast", "ForecastReport", "Forecaster", "InputError", "Options", "Series", "load",
    "resume", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from cello.tasks.forecast.answers import Forecast
    from cello.tasks.forecast.backtest import Backtest
    from cello.tasks.forecast.predictor import Forecaster, load, resume, train
    from cello.tasks.forecast.report import ForecastReport
    from cello.tasks.forecast.series import Series
else:
    __getattr__ = lazily("cello.tasks.forecast.predictor", __all__)
