"""Forecasting by scikit-learn's conventions: windows in, the steps that follow out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y

from cello.tasks.forecast.data import Stretch, completed, facts_of, written_scales
from cello.tasks.forecast.options import Options
from cello.tasks.forecast.predictor import Forecaster
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.table import Columns
from cello.tasks.forecast.times import Step
from cello.tasks.forecast.windows import Frame, Scale, Windows
from cello.tasks.scikit import TaskEstimator, parameters
from cello.tasks.task import Data

DAILY = Step(microseconds=86_400 * 10**6)
"""The time from step to step, which nothing is made of: there is no calendar."""


class _Forecaster(Forecaster):
    """A forecaster whose data is windows that are cut already."""

    def windows(self, part: Any, least: int) -> Windows:
        cut: Windows = part
        return cut


@parameters(
    Options,
    also=("valid_fraction",),
    without=("calendar", "levels"),
    hidden=64,
    patch=1,
    epochs=50,
    patience=15,
    learning_rate=3e-3,
)
class ForecastRegressor(RegressorMixin, TaskEstimator):  # type: ignore[misc]  # of untyped bases
    """The network of :mod:`cello.tasks.forecast` for windows that are cut already.

    It works in ``Pipeline``, ``cross_val_score``, ``GridSearchCV``, and takes part in ``clone``. The
    rows of the data are taken to be in the order of time: the last ones are for validation. The
    arguments are those options of :class:`cello.tasks.forecast.Options` that are on the network and its
    training, with `valid_fraction`; the steps of a patch and the passes over the data have defaults of
    their own.

    Attributes:
        predictor_: the :class:`cello.tasks.forecast.Forecaster` behind it.
        network_: its network.
        epochs_: for each epoch its loss, validation score and seconds.
        n_features_in_: what there is in a row of a two-dimensional X.

    Example:
        >>> wave = np.sin(np.arange(300) / 3)
        >>> X, y = np.stack([wave[i : i + 24] for i in range(270)]), wave[24:294]
        >>> y = np.stack([wave[i + 24 : i + 30] for i in range(270)])
        >>> model = ForecastRegressor(hidden=16, epochs=30).fit(X[:200], y[:200])
        >>> model.predict(X[200:]).shape
        (70, 6)
        >>> model.score(X[200:], y[200:]) > 0.9
        True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> ForecastRegressor:
        """Train on windows and what follows them.

        Args:
            X: (n, T), or (n, T, F), of which the first feature is the one that is forecast.
            y: (n, H), or (n,) for a single step.

        Returns:
            The estimator itself.

        Raises:
            ValueError: the shapes do not fit, a number is not finite, or an argument is not allowed.
        """
        options: Options = self._chosen()
        found = check_X_y(X, y, dtype=np.float64, allow_nd=True, multi_output=True, estimator=self)
        past, future = _windows(found[0]), found[1].astype(np.float64)
        self._flat = future.ndim == 1
        future = future.reshape(len(future), -1)
        if len(past) < 2:
            raise ValueError(
                f"n_samples={len(past)} is too few: one to learn from, one to validate"
            )
        n, T, F = past.shape
        self._shape = past.shape[1:]
        self.n_features_in_ = T
        H = future.shape[1]
        kept = n - min(max(round(options.valid_fraction * n), 1), n - 1)
        self._scale = Scale.of(past[:kept].reshape(-1, F))
        follows = np.zeros((n, H, F))  # of features that are not forecast that is not looked at
        follows[..., 0] = future
        rows = np.concatenate([past, follows], 1)
        train, valid = (self._cut(part, H) for part in (rows[:kept], rows[kept:]))
        columns = Columns("time", None, tuple(str(i) for i in range(F)))
        stretch = Stretch(train.frame.series, DAILY, columns, [range(T + H)] * kept)
        fixed = replace(options, window=T, horizon=H, season=1, calendar=False, levels="")
        if fixed.patch is not None:
            fixed = replace(fixed, patch=min(fixed.patch, T))
        data = Data("X", "memory", train, valid, valid, fingerprint="")
        facts, assets = facts_of(stretch, ["0"], []), written_scales({"": self._scale})
        self._train(_Forecaster, data, completed(fixed, stretch, ["0"]), facts, assets)
        self.network_ = self.predictor_.model
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Forecast what follows windows.

        Args:
            X: (n, T) or (n, T, F), as in :meth:`fit`.

        Returns:
            (n, H), or (n,) where `fit` was given such a y.

        Raises:
            ValueError: X is not of the shape that `fit` was given.
        """
        check_is_fitted(self, "network_")
        past = _windows(check_array(X, dtype=np.float64, allow_nd=True, estimator=self))
        if past.shape[1:] != self._shape:
            given, known = (
                f"{T} features" + (f" of {F} numbers" if F > 1 else "")
                for T, F in (past.shape[1:], self._shape)
            )
            raise ValueError(f"X has {given}, but ForecastRegressor is expecting {known} as input")
        n, _, F = past.shape
        H = self.predictor_.horizon
        windows = self._cut(np.concatenate([past, np.zeros((n, H, F))], 1), H)
        parts = [
            self.predictor_.outputs(*windows.collate(starts.tolist())[:3])[:, :, 0, 0].T
            for starts in windows.batches(1024)
        ]
        y: NDArray[np.float64] = np.concatenate(parts)
        y = y * self._scale.deviation[0] + self._scale.mean[0]
        return y[:, 0] if self._flat else y

    def _cut(self, rows: NDArray[np.float64], horizon: int) -> Windows:
        """Return windows with what follows each, (n, T + H, F), as those of one long series."""
        n, length, F = rows.shape
        times = DAILY.after(np.datetime64(0, "us"), np.arange(n * length))
        frame = Frame([Series.of(times, rows.reshape(-1, F))], [self._scale], [])
        window = length - horizon
        return Windows(frame, window + length * np.arange(n), window, horizon, targets=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _windows(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return windows as (n, T, F)."""
    if X.ndim > 3:
        raise ValueError(f"X has {X.ndim} dimensions; expected (n, T) or (n, T, F)")
    return X if X.ndim == 3 else X[:, :, None]
