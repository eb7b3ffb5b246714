"""Where forecasting by scikit-learn's conventions was first: see :mod:`cello.tasks.estimators`."""

from cello.tasks.estimators import ForecastRegressor

__all__ = ["ForecastRegressor"]
