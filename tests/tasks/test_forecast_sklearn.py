from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from cello.tasks.estimators import ForecastRegressor


def windows(rows: int = 200, window: int = 20, horizon: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    t = np.arange(rows + window + horizon)
    wave = 50 + 10 * np.sin(t / 4) + rng.normal(size=len(t))
    X = np.stack([wave[i : i + window] for i in range(rows)])
    return X, np.stack([wave[i + window : i + window + horizon] for i in range(rows)])


def quick(**changes: object) -> ForecastRegressor:
    options = {"hidden": 8, "epochs": 5, "patch": 4, "device": "cpu", **changes}
    return ForecastRegressor(**options)  # type: ignore[arg-type]  # values of several types


def test_it_forecasts_as_well_as_what_is_best_for_a_wave() -> None:
    X, y = windows()
    model = quick(epochs=40, learning_rate=1e-2).fit(X[:150], y[:150])
    best = LinearRegression().fit(X[:150], y[:150]).score(X[150:], y[150:])
    assert model.predict(X[150:]).shape == (50, 3)
    assert model.score(X[150:], y[150:]) > best - 0.05
    assert model.score(X[150:], y[150:]) == r2_score(y[150:], model.predict(X[150:]))


def test_shapes() -> None:
    X, y = windows(60)
    model = quick().fit(X, y[:, 0])
    assert model.predict(X[:7]).shape == (7,)
    more = np.stack([X, X**2], 2)
    model = quick().fit(more, y)
    assert model.predict(more[:7]).shape == (7, 3)
    assert model.network_.mixed
    with pytest.raises(ValueError, match="X has 19 features of 2 numbers, but ForecastRegressor"):
        model.predict(more[:, 1:])
    with pytest.raises(ValueError, match=r"expected \(n, T\) or \(n, T, F\)"):
        model.predict(more[..., None])


def test_an_argument_that_is_not_allowed_is_a_value_error() -> None:
    X, y = windows(20)
    with pytest.raises(ValueError, match="cell: 'gnu' is not one of"):
        quick(cell="gnu").fit(X, y)


def test_cloned_it_learns_the_same() -> None:
    X, y = windows(60)
    model = quick(seed=3).fit(X, y)
    other = clone(model)
    assert not hasattr(other, "network_")
    np.testing.assert_array_equal(other.fit(X, y).predict(X), model.predict(X))
    assert not np.array_equal(
        clone(model).set_params(seed=4).fit(X, y).predict(X), model.predict(X)
    )


def test_a_row_alone_is_forecast_as_in_a_batch() -> None:
    X, y = windows(60)
    model = quick().fit(X, y)
    alone = np.concatenate([model.predict(X[i : i + 1]) for i in range(60)])
    np.testing.assert_allclose(alone, model.predict(X), rtol=1e-5)


def test_it_works_in_pipelines_and_searches() -> None:
    X, y = windows(120)
    pipeline = make_pipeline(StandardScaler(), quick(normalize="none"))
    scores = cross_val_score(pipeline, X, y, cv=TimeSeriesSplit(2))
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    search = GridSearchCV(quick(epochs=2), {"cell": ["gru", "rnn"]}, cv=TimeSeriesSplit(2))
    assert search.fit(X, y).best_params_["cell"] in ("gru", "rnn")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_the_checks_of_scikit_learn() -> None:
    model = ForecastRegressor(epochs=30, hidden=8, learning_rate=2e-2)
    results = check_estimator(
        model,
        on_fail=None,
        # To 1e-7, where a row alone and in a batch are rounded to float32 differently.
        expected_failed_checks={"check_methods_subset_invariance": "computes in float32"},
    )
    failed = [(one["check_name"], one["exception"]) for one in results if one["status"] == "failed"]
    assert not failed
    assert len(results) > 40
