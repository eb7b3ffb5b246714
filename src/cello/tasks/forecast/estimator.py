"""Forecasting by scikit-learn's conventions: windows in, the steps that follow out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y
from torch import Tensor

from cello.tasks.batches import Examples
from cello.tasks.forecast import Options
from cello.tasks.forecast.network import RecurrentForecaster
from cello.tasks.forecast.windows import Scale
from cello.tasks.task import find_device

Pair = tuple[Tensor, Tensor]
"""A window, (T, F), and what follows it, (H,)."""


class ForecastRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """The network of :mod:`cello.tasks.forecast` for windows that are cut already.

    It works in ``Pipeline``, ``cross_val_score``, ``GridSearchCV``, and takes part in ``clone``. The
    rows of the data are taken to be in the order of time: the last ones are for validation.

    Args:
        cell: ``lstm``, ``gru`` or ``rnn``.
        hidden: units of a layer.
        layers: recurrent layers.
        patch: steps that go into the layers at a time.
        normalize: as in :class:`cello.tasks.forecast.Options`.
        linear: add a linear map from the window to the forecast.
        dropout: between and behind the recurrent layers.
        loss: ``mse`` or ``mae``.
        epochs: most passes over the training rows.
        patience: stop after that many epochs without a better validation score.
        batch_size: windows in a batch.
        learning_rate: the largest step size of Adam.
        valid_fraction: share of the rows for validation.
        seed: of the first weights, the order and the dropout.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Attributes:
        network_: the trained network.
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

    def __init__(
        self,
        cell: str = "gru",
        hidden: int = 64,
        layers: int = 1,
        patch: int = 1,
        normalize: str = "window",
        linear: bool = True,
        dropout: float = 0.2,
        loss: str = "mse",
        epochs: int = 50,
        patience: int = 15,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        valid_fraction: float = 0.1,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.cell = cell
        self.hidden = hidden
        self.layers = layers
        self.patch = patch
        self.normalize = normalize
        self.linear = linear
        self.dropout = dropout
        self.loss = loss
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.valid_fraction = valid_fraction
        self.seed = seed
        self.device = device

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
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        from cello.tasks.trainer import Job, fit

        options = Options(**self.get_params())
        found = check_X_y(X, y, dtype=np.float64, allow_nd=True, multi_output=True, estimator=self)
        past, future = _windows(found[0]), found[1].astype(np.float64)
        self._flat = future.ndim == 1
        future = future.reshape(len(future), -1)
        if len(past) < 2:
            raise ValueError(
                f"n_samples={len(past)} is too few: one to learn from, one to validate"
            )
        self._shape = past.shape[1:]
        self.n_features_in_ = past.shape[1]
        valid = min(max(round(self.valid_fraction * len(past)), 1), len(past) - 1)
        kept = len(past) - valid
        T, F = self._shape
        self.mean_, self.scale_ = Scale.of(past[:kept].reshape(-1, F))
        torch.manual_seed(self.seed)
        self.network_ = RecurrentForecaster(
            options.layer(self.hidden),
            self.hidden,
            window=T,
            horizon=future.shape[1],
            patch=min(self.patch, T),
            columns=F,
            targets=1,
            mixed=F > 1,
            normalize=self.normalize,
            linear=self.linear,
            dropout=self.dropout,
        )
        future = (future - self.mean_[0]) / self.scale_[0]
        pairs = list(zip(self._scaled(past), torch.from_numpy(future).float(), strict=True))
        squared = self.loss == "mse"

        def loss(batch: Pair) -> tuple[Tensor, int]:
            error = self._forward(batch[0]) - batch[1]
            return (error**2 if squared else error.abs()).sum(), error.numel()

        job = Job(
            model=self.network_,
            loss=loss,
            update=lambda metric, batch: metric.update(
                self._forward(batch[0]).flatten(), batch[1].flatten()
            ),
            metric=MeanSquaredError() if squared else MeanAbsoluteError(),
            metric_name="MSE" if squared else "MAE",
            higher_is_better=False,
            train=Examples(pairs[:kept], [T] * kept),
            valid=Examples(pairs[kept:], [T] * valid),
            collate=_collate,
        )
        options = replace(options, device=find_device(self.device).type)
        with TemporaryDirectory() as folder:
            self.epochs_ = fit(job, options, Path(folder), Console(quiet=True))
        self.network_.to("cpu").eval()
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
        with torch.inference_mode():
            parts = [self._forward(part) for part in self._scaled(past).split(1024)]
        y: NDArray[np.float64] = torch.cat(parts).double().numpy()
        y = y * self.scale_[0] + self.mean_[0]
        return y[:, 0] if self._flat else y

    def _scaled(self, past: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy((past - self.mean_) / self.scale_).float()

    def _forward(self, past: Tensor) -> Tensor:
        """Forecast scaled windows, (B, T, F) to (B, H)."""
        B, T, _ = past.shape
        none = (past.new_zeros(T, B, 0), past.new_zeros(self.network_.horizon, B, 0))
        y: Tensor = self.network_(past.transpose(0, 1), *none)[:, :, 0, 0].T
        return y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _windows(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return windows as (n, T, F)."""
    if X.ndim > 3:
        raise ValueError(f"X has {X.ndim} dimensions; expected (n, T) or (n, T, F)")
    return X if X.ndim == 3 else X[:, :, None]


def _collate(pairs: list[Pair]) -> Pair:
    past, future = zip(*pairs, strict=True)
    return torch.stack(past), torch.stack(future)
