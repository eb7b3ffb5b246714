"""Prediction intervals hold their level, or say that they do not promise it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from cello.tasks import forecast
from cello.tasks.forecast import Forecaster, Options
from cello.tasks.forecast.conformal import UNKNOWN, lack, margins, needed, widen
from cello.tasks.forecast.data import Stretch
from cello.tasks.task import Request


def noise(path: Path, rows: int, seed: int = 0) -> Path:
    """Hours of two columns that cannot be forecast: the second is skew, and a thousand times as large."""
    rng = np.random.default_rng(seed)
    values = np.stack([rng.normal(5, 2, rows), 1000 * rng.exponential(size=rows)], 1)
    times = np.arange("2020-01-01", rows, dtype="datetime64[h]")
    lines = [f"{t},{x!r},{y!r}\n" for t, (x, y) in zip(times, values.tolist(), strict=True)]
    path.write_text("time,x,y\n" + "".join(lines))
    return path


def quick(**changes: object) -> Options:
    options = {"horizon": 4, "window": 12, "patch": 4, "hidden": 8, "epochs": 1, "device": "cpu"}
    return Options(**{**options, **changes})  # type: ignore[arg-type]  # values of several types


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("data") / "noise.csv", 3000)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "noise"
    forecast.train(data, folder, quick())
    return folder


# By hand.


def test_a_margin_is_the_smallest_that_holds_its_share() -> None:
    """Of n scores and a further one, which may be at any of n + 1 places, in the n + 1 places counted."""
    rng = np.random.default_rng(0)
    for n in (4, 5, 9, 19, 20, 99):
        scores = rng.normal(size=(2, n, 3, 1))
        for level in (0.5, 0.8, 0.95):
            found = margins(scores, [level])
            if n < needed(level):
                continue
            inside = (scores[..., 0] <= found[0][:, None]).sum(1)
            assert np.all(
                inside / (n + 1) >= level - 1e-9
            )  # a further score is not counted as inside
            assert np.all((inside - 1) / (n + 1) < level)  # and no smaller margin would do


def test_levels_need_forecasts() -> None:
    assert [needed(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    assert lack(0.95, 19) == ""
    assert lack(0.95, 18).startswith("not calibrated: 18 validation forecasts are too few")
    assert lack(0.8, 1).startswith("not calibrated: 1 validation forecast is too few, 80% needs 4")
    assert "no validation forecasts" in lack(0.8, 0)
    assert "before intervals were" in lack(0.5, UNKNOWN)


def test_too_few_scores_are_taken_together() -> None:
    scores = np.arange(24.0).reshape(2, 3, 4, 1)  # three forecasts of two steps and four columns
    assert margins(scores, [0.9]).tolist() == [[[22.0] * 4] * 2]  # ceil(25 * 0.9) = 23rd of 24
    assert margins(scores, [0.97]).tolist() == [[[0.0] * 4] * 2]  # needs 33
    assert margins(scores[:, :0], [0.8]).tolist() == [[[0.0] * 4] * 2]


def test_bounds_move_and_stay_around_each_other() -> None:
    lower, upper = np.array([[-1.0, -2.0]]), np.array([[1.0, 2.0]])
    widen(lower, upper, np.array([[3.0, 0.5]]))  # the narrow level's would pass the wide one's
    assert (lower.tolist(), upper.tolist()) == ([[-4.0, -4.0]], [[4.0, 4.0]])
    lower, upper = np.array([[0.0, -2.0]]), np.array([[1.0, 2.0]])
    widen(lower, upper, np.array([[-3.0, -0.5]]))  # inwards, to the middle at most
    assert (lower.tolist(), upper.tolist()) == ([[0.5, -1.5]], [[0.5, 1.5]])


# Trained models.


def test_intervals_hold_their_level_after_one_epoch(trained: Path) -> None:
    """For each step and column, of a normal and of a skew distribution; without, far from it."""
    report = json.loads((trained / "report.json").read_text())
    for one in report["intervals"]:
        assert one["lack"] == ""
        assert one["coverage"] == pytest.approx(one["level"], abs=0.03)
        for share in (*one["steps"], *one["columns"].values()):
            assert share == pytest.approx(one["level"], abs=0.06)
        assert np.mean(one["steps"]) == pytest.approx(one["coverage"])
        assert np.mean([*one["columns"].values()]) == pytest.approx(one["coverage"])
    assert report["intervals"][1]["width"] > report["intervals"][0]["width"]


def test_the_validation_part_is_held_to_the_count(trained: Path, data: Path) -> None:
    """Of n validation forecasts ceil((n + 1) level) are inside, for each step and column exactly."""
    forecaster = forecast.load(trained)
    read = Forecaster.read(str(data), forecaster.config.options)
    report = forecaster.evaluate(read.valid)
    n = report.windows
    assert int(forecaster.model.calibrated) == n == 300 - 4 + 1
    for one in report.intervals:
        expected = np.ceil((n + 1) * one["level"]) / n
        for share in (*one["steps"], *one["columns"].values()):
            assert share == pytest.approx(expected, abs=1.5 / n)  # float32 at the very bound


def test_without_margins_the_same_model_misses_its_level(trained: Path, data: Path) -> None:
    forecaster = forecast.load(trained)
    forecaster.model.margins.zero_()
    for one in forecaster.evaluate_source(str(data)).intervals:
        assert one["coverage"] < one["level"] - 0.08


def test_too_short_a_validation_part_is_said(tmp_path: Path) -> None:
    path = noise(tmp_path / "short.csv", 100)  # 10 rows of validation: 7 forecasts of 4 steps
    report = forecast.train(path, tmp_path / "run", quick())
    narrow, wide = report.intervals
    assert (narrow["lack"], wide["lack"]) == (
        "", "not calibrated: 7 validation forecasts are too few, 95% needs 19"
    )  # fmt: skip
    with (tmp_path / "shown.txt").open("w") as stream:
        report.show(Console(file=stream, width=80))
    shown = (tmp_path / "shown.txt").read_text()
    (line,) = (line for line in shown.splitlines() if line.startswith("95%"))
    assert line.endswith("not calibrated: 7 validation forecasts are too few, 95% needs 19")
    request = Request(file=path)
    answers = list(forecast.load(tmp_path / "run").answer(request))
    assert len(answers) == 1 + 2 * 4
    assert request.notes == [f"95% interval: {wide['lack']}"]


def test_models_without_margins_are_loaded(trained: Path, data: Path, tmp_path: Path) -> None:
    """Folders that were written before: the bounds that the network learnt, and it is said."""
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: w for k, w in weights.items() if k not in ("margins", "calibrated")}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors")
    old, new = forecast.load(tmp_path), forecast.load(trained)
    assert [*old.lacks()] == [0.8, 0.95]
    (a,), (b,) = old.predict(data), new.predict(data)
    np.testing.assert_array_equal(a.values, b.values)
    assert np.all(a.intervals[0.95][0] > b.intervals[0.95][0])
    for one in old.evaluate_source(str(data)).intervals:
        assert "before intervals were" in one["lack"]
    # And calibrated again they are as new.
    old.calibrate(Forecaster.read(str(data), old.config.options).valid)
    torch.testing.assert_close(old.model.margins, new.model.margins)


def test_margins_grow_with_what_a_window_is_divided_by(trained: Path, data: Path) -> None:
    """A series ten times as large has intervals ten times as wide, whatever it was scaled by."""
    forecaster = forecast.load(trained)
    read = Forecaster.read(str(data), forecaster.config.options)
    (one,) = read.test.series
    flat = replace(one, values=one.values.mean(0) + 10 * (one.values - one.values.mean(0)))
    widths = []
    for series in (one, flat):
        report = forecaster.evaluate(
            Stretch([series], read.test.step, read.test.columns, read.test.rows)
        )
        widths.append(report.intervals[0]["width"])
    assert widths[1] / widths[0] == pytest.approx(10, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("daily-min-temperatures.csv", {"horizon": 7, "missing": "forward"}),
        ("monthly-sunspots.csv", {"horizon": 12}),
    ],
)
def test_real_series_after_a_short_run(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    data = os.environ.get("CELLO_DATA")
    if not data:
        pytest.skip(f"CELLO_DATA does not name a folder with series/{name}")
    short = Options(**options, hidden=32, epochs=2, device="cpu")  # type: ignore[arg-type]
    report = forecast.train(Path(data, "series", name), tmp_path / "run", short)
    for one in report.intervals:
        assert one["coverage"] == pytest.approx(one["level"], abs=0.05)
