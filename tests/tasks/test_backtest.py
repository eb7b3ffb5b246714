"""Rolling origins: the table against forecasts made one by one, the summary against numbers by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cello.tasks import forecast
from cello.tasks.errors import InputError
from cello.tasks.forecast.series import Series

H, T = 4, 12


def table(path: Path, rows: int = 120, known: bool = False) -> tuple[Path, np.ndarray, np.ndarray]:
    """Two series of other lengths, hourly."""
    rng = np.random.default_rng(1)
    hours = np.datetime64("2024-01-01", "h") + np.arange(rows)
    lines, found = ["time,shop,x,y"], []
    for shop, count in (("a", rows), ("b", rows - 11)):
        t = np.arange(count)
        values = np.stack([np.sin(t / 4), 50 + 5 * np.cos(t / 3)], 1) + rng.normal(size=(count, 2))
        lines += [
            f"{h},{shop},{x!r},{y!r}" for h, (x, y) in zip(hours, values.tolist(), strict=False)
        ]
        found.append(values)
    path.write_text("\n".join(lines) + "\n")
    return path, hours, found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("backtest")
    found = table(folder / "two.csv")
    options = forecast.Options(
        horizon=H,
        window=T,
        patch=4,
        hidden=4,
        epochs=1,
        device="cpu",
        season=6,
        series_column="shop",
    )
    report = forecast.train(found[0], folder / "run", options)
    return (*found, forecast.load(folder / "run"), report)


def test_each_row_is_what_would_have_been_forecast(trained: tuple[Any, ...]) -> None:
    data, hours, series, model, _ = trained
    found = model.backtest(data, horizon=3, stride=5)
    expected = []
    for name, values in zip("ab", series, strict=True):
        first = len(values) - round(0.2 * len(values))
        for start in range(first, len(values) - H + 1, 5):
            (one,) = model.predict([Series.of(hours[:start], values[:start], name)])
            expected.append((name, start, values, one))
    assert found.series.tolist() == [name for name, *_ in expected]
    assert (len(found), found.horizon) == (len(expected), 3)
    unit = {}
    for i, (name, start, values, one) in enumerate(expected):
        assert found.origins[i] == hours[start - 1]
        assert found.times[i].tolist() == one.times[:3].tolist()
        assert found.written[i].tolist() == hours[start - 1 : start + 3].astype(str).tolist()
        np.testing.assert_array_equal(found.actual[i], values[start : start + 3])
        np.testing.assert_array_equal(found.naive[i], values[start - 6 : start - 3])
        np.testing.assert_allclose(found.values[i], one.values[:3], rtol=1e-4)
        for level, bounds in one.intervals.items():
            for ours, theirs in zip(found.intervals[level], bounds, strict=True):
                np.testing.assert_allclose(ours[i], theirs[:3], rtol=1e-4)
        unit.setdefault(name, np.abs(values[6:start] - values[: start - 6]).mean(0))
        np.testing.assert_allclose(found.unit[i], unit[name])


def test_the_figures_are_those_of_the_report(trained: tuple[Any, ...]) -> None:
    data, _, _, model, report = trained
    found = model.backtest(data)
    assert len(found) == report.windows
    rows = {(row["column"], row["step"]): row for row in found.summary()}
    assert len(rows) == 2 * (1 + H)
    for column in "xy":
        own, naive = (report.columns[column][kind] for kind in ("model", "seasonal naive"))
        row = rows[column, 0]
        assert row["mae"] == pytest.approx(own["mae_units"], rel=1e-5)
        assert row["rmse"] == pytest.approx(own["rmse_units"], rel=1e-5)
        assert row["naive_rmse"] == pytest.approx(naive["rmse_units"], rel=1e-5)
    one = report.intervals[0]
    mean = np.mean([rows[column, 2]["coverage_80"] for column in "xy"])
    assert mean == pytest.approx(one["steps"][1], abs=1e-6)


def by_hand(unit: float = 2.0) -> forecast.Backtest:
    """Two forecasts of two steps: the truth 1, 2 and 3, 5; the forecasts 2, 2 and 3, 1."""
    actual = np.array([[1.0, 2.0], [3.0, 5.0]])[..., None]
    times = np.datetime64("2024-01-02", "us") + np.array([[0, 1], [1, 2]]).astype("timedelta64[D]")
    return forecast.Backtest(
        data="data", columns=("x",), time="day", form="%Y-%m-%d", stride=1, season=1,
        series=np.array(["", ""]),
        origins=times[:, 0] - np.timedelta64(1, "D"),
        times=times,
        written=np.array(
            [["2024-01-01", "2024-01-02", "2024-01-03"], ["2024-01-02", "2024-01-03", "2024-01-04"]]
        ),
        actual=actual,
        values=np.array([[2.0, 2.0], [3.0, 1.0]])[..., None],
        naive=np.array([[0.0, 0.0], [1.0, 1.0]])[..., None],
        intervals={0.8: (actual - 1, actual + np.array([[1, -0.5], [2, 3]])[..., None])},
        unit=np.full((2, 1), unit),
        resolution=np.full((2, 1), 1e-7),
    )  # fmt: skip


def test_the_summary_by_hand() -> None:
    whole, first, second = by_hand().summary()
    assert (whole["column"], whole["step"], whole["forecasts"]) == ("x", 0, 2)
    # Errors 1, 0 and 0, -4; naive -1, -2 and -2, -4.
    assert (whole["mae"], whole["rmse"], whole["mase"]) == (1.25, pytest.approx(4.25**0.5), 0.625)
    assert (first["mae"], first["rmse"], first["mase"]) == (0.5, pytest.approx(0.5**0.5), 0.25)
    assert (second["mae"], second["rmse"], second["mase"]) == (2.0, pytest.approx(8**0.5), 1.0)
    assert (whole["naive_mae"], whole["naive_rmse"]) == (2.25, 2.5)
    assert (first["naive_mase"], second["naive_mase"]) == (0.75, 1.5)
    # Widths 2, 0.5 and 3, 4; the second truth lies above its bound.
    assert (first["coverage_80"], second["coverage_80"], whole["coverage_80"]) == (1.0, 0.5, 0.75)
    assert (first["width_80"], second["width_80"]) == (2.5, 2.25)


def test_the_table() -> None:
    stream = io.StringIO()
    by_hand().save(stream)
    assert stream.getvalue() == (
        "origin,step,day,column,actual,forecast,lower_80,upper_80,seasonal_naive\n"
        "2024-01-01,1,2024-01-02,x,1,2,0,2,0\n"
        "2024-01-01,2,2024-01-03,x,2,2,1,1.5,0\n"
        "2024-01-02,1,2024-01-03,x,3,3,2,5,1\n"
        "2024-01-02,2,2024-01-04,x,5,1,4,8,1\n"
    )
    found = by_hand()
    found.unit[1] = np.nan  # of a constant series
    assert (found.summary()[0]["mase"], found.summary()[0]["naive_mase"]) == (0.25, 0.75)
    stream = io.StringIO()
    by_hand(np.nan).save_summary(stream)
    head, first, *_ = stream.getvalue().splitlines()
    assert head.startswith("column,step,forecasts,mae,rmse,mase,naive_mae")
    assert first.startswith("x,0,2,1.25,2.0615528128088303,,2.25,")  # there is no MASE


def test_the_table_as_a_frame(trained: tuple[Any, ...]) -> None:
    pd = pytest.importorskip("pandas", reason="needs pandas")
    data, _, _, model, _ = trained
    found = model.backtest(data, stride=3)
    frame = found.to_pandas()
    assert len(frame) == len(found) * H * 2
    assert list(frame.columns[:7]) == [
        "series",
        "origin",
        "step",
        "time",
        "column",
        "actual",
        "forecast",
    ]
    assert (frame["time"] == frame["origin"] + pd.to_timedelta(frame["step"], "h")).all()
    i, rows = 2, frame[(frame["series"] == "a") & (frame["column"] == "y")]
    np.testing.assert_array_equal(
        rows["forecast"][rows["origin"] == found.origins[i]], found.values[i, :, 1]
    )
    assert model.backtest(pd.read_csv(data), stride=3).summary() == found.summary()


def test_other_parts_and_what_is_wrong(trained: tuple[Any, ...], tmp_path: Path) -> None:
    data, _, series, model, _ = trained
    every = model.backtest(data, part="all")
    assert len(every) == sum(len(values) - T - H + 1 for values in series)
    # Twelve rows before the first forecast of each series are two seasons, of which errors can be told.
    np.testing.assert_allclose(every.unit[0], np.abs(series[0][6:12] - series[0][:6]).mean(0))
    other, *_ = table(tmp_path / "other.csv", 40)
    assert len(model.backtest(other)) == 40 - T - H + 1 + 29 - T - H + 1  # other data: all rows
    for wrong, message in [
        ({"horizon": 5}, "horizon: 5; expected 1 to 4"),
        ({"horizon": 0}, "horizon: 0 is not positive"),
        ({"stride": 0}, "stride: 0 is not positive"),
        ({"stride": 1.5}, "stride: 1.5 is not a whole number"),
        ({"batch_size": True}, "batch_size: True is not a whole number"),
        ({"part": "tset"}, "part: 'tset' is not one of all, train, valid, test"),
    ]:
        with pytest.raises(InputError, match=message):
            model.backtest(data, **wrong)
    short, *_ = table(tmp_path / "short.csv", 15)
    with pytest.raises(
        InputError, match="15 rows, where one forecast of 4 steps from its past needs 16"
    ):
        model.backtest(short)


def test_series_that_are_too_short_are_told(trained: tuple[Any, ...], tmp_path: Path) -> None:
    """Of the second series fewer rows are there than a forecast and its past need."""
    model = trained[3]
    short, _, series = table(tmp_path / "short.csv", T + H + 4)
    assert len(series[1]) < T + H
    found, report = model.backtest(short), model.evaluate_source(short)
    assert (found.skipped, report.skipped, report.series) == (1, 1, 1)
    assert (model.backtest(trained[0]).skipped, trained[4].skipped) == (0, 0)
    for one in (found, report):
        shown = io.StringIO()
        one.show(Console(file=shown, width=300))
        assert "1 series is too short for a forecast, and not judged" in shown.getvalue()


def test_forecasts_of_an_unknown_series_know_no_later_rows(
    trained: tuple[Any, ...], tmp_path: Path
) -> None:
    """Neither its numbers nor their scale: what comes after an origin changes no forecast from it."""
    model, (path, hours, _) = trained[3], table(tmp_path / "two.csv", 60)
    text = path.read_text().replace(",a,", ",new,").replace(",b,", ",other,")
    path.write_text(text)
    before = model.backtest(path)
    changed = [
        line if number <= 40 or ",new," not in line else line.rpartition(",")[0] + ",1e6"
        for number, line in enumerate(path.read_text().splitlines())
    ]
    path.write_text("\n".join(changed) + "\n")
    after = model.backtest(path)
    origins = np.flatnonzero((before.series == "new") & (before.times[:, -1] < hours[40]))
    assert len(origins) == 40 - T - H + 1
    np.testing.assert_array_equal(after.values[origins], before.values[origins])
    for level in before.intervals:
        np.testing.assert_array_equal(
            after.intervals[level][0][origins], before.intervals[level][0][origins]
        )


def test_the_scaled_error_is_a_mean_over_series() -> None:
    """A long series counts as much as a short one."""
    one, rows = by_hand(), [0, 1, 1]
    parts = {
        name: getattr(one, name)[rows] for name in ("actual", "values", "naive", "times", "origins")
    }
    of_two = replace(
        one,
        **parts,
        series=np.array(["a", "b", "b"]),
        unit=np.array([[2.0], [4.0], [4.0]]),
        intervals={},
    )
    (together, *_) = of_two.summary()
    assert together["mae"] == pytest.approx((0.5 + 2 + 2) / 3)
    assert together["mase"] == pytest.approx((0.5 / 2 + 2 / 4) / 2)


def test_data_that_has_changed_is_other_data(trained: tuple[Any, ...], tmp_path: Path) -> None:
    """Whatever its name: else rows of training would be called the test set."""
    own, model = trained[0], trained[3]
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_bytes(own.read_bytes())
    assert model.evaluate(elsewhere).windows == model.evaluate(own).windows == trained[4].windows
    elsewhere.write_text("".join(own.read_text().splitlines(keepends=True)[:-40]))
    other, _, _ = table(tmp_path / "two.csv", 90)
    kept = own.read_bytes()
    own.write_bytes(elsewhere.read_bytes())  # with fewer rows, all of them of the training
    try:
        assert ", all rows" in model.evaluate(own).data
    finally:
        own.write_bytes(kept)
    for changed in (elsewhere, other):
        assert ", all rows" in model.evaluate(changed).data
    with pytest.raises(InputError, match="batch_size: 0 is not positive"):
        model.evaluate(own, batch_size=0)
