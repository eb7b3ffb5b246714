"""The tasks with the conventions of scikit-learn."""

from cello.tasks.classify.estimator import RecurrentClassifier
from cello.tasks.forecast.estimator import ForecastRegressor

__all__ = ["ForecastRegressor", "RecurrentClassifier"]
