"""Tables in memory, forecasts as DataFrames and pictures, models of earlier versions."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cello.tasks import forecast
from cello.tasks.errors import InputError
from cello.tasks.forecast.data import open_table
from cello.tasks.forecast.series import Series, read_all
from cello.tasks.forecast.windows import Scale

pd = pytest.importorskip("pandas", reason="needs pandas")

STORED = Path(__file__).parents[1] / "data" / "forecast"


def options(**changes: Any) -> forecast.Options:
    small = {"horizon": 4, "window": 12, "patch": 4, "hidden": 4, "epochs": 1, "device": "cpu"}
    return forecast.Options(**{**small, "levels": "0.8", **changes})


def frame(rows: int = 120) -> Any:
    t = np.arange(rows)
    index = pd.date_range("2024-01-01", periods=rows, freq="h", name="time")
    return pd.DataFrame({"x": np.sin(t / 4) + 0.1, "y": 3 * np.cos(t / 5) + 9}, index=index)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> forecast.Forecaster:
    folder = tmp_path_factory.mktemp("runs") / "frame"
    forecast.train(frame(), folder, options())
    return forecast.load(folder)


def read(data: Any, **changes: Any) -> tuple[Any, Any]:
    found, step = read_all(open_table(data, options(**changes)))
    return found, step


def test_a_stored_model_of_the_first_version_with_margins(tmp_path: Path) -> None:
    """The numbers that the version before columns known ahead gave for it."""
    hours = np.arange("2024-01-01", "2024-01-08", dtype="datetime64[h]")
    t = np.arange(len(hours))
    x, y = np.round(np.sin(t / 4), 4), np.round(np.cos(t / 5) * 3 + 9, 4)
    path = tmp_path / "tiny.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("time", "x", "y"), *zip(hours.astype(str), x, y, strict=True)])
    stored = forecast.load(STORED, device="cpu")
    (one,) = stored.predict(path)
    expected = [
        [-0.8043047068, 7.7609377117], [-0.8181792648, 7.7317129178],
        [-0.9796362823, 7.3572272719], [-0.6021056839, 8.2147610647],
    ]  # fmt: skip
    np.testing.assert_allclose(one.values, expected, rtol=1e-5)
    lower = [-0.8561383586, -1.5226143277, -1.8457302801, -2.1170426537]
    np.testing.assert_allclose(one.intervals[0.8][0][:, 0], lower, rtol=1e-5)
    report = stored.evaluate_source(path, "test")
    assert report.mse == pytest.approx(0.4230749320066112, rel=1e-5)
    assert stored.evaluate_source(path).rows == report.rows == 34  # it knows its own data again


def test_a_frame_is_read_as_its_file(tmp_path: Path, model: forecast.Forecaster) -> None:
    data = frame()
    path = tmp_path / "frame.csv"
    data.to_csv(path)
    report = forecast.train(path, tmp_path / "file", options())
    of_file = forecast.load(tmp_path / "file").predict(path)[0]
    of_frame = model.predict(data)[0]
    np.testing.assert_array_equal(of_frame.values, of_file.values)
    assert model.evaluate_source(data).mse == pytest.approx(report.mse, rel=1e-6)
    assert (
        model.evaluate_source(path).rows == report.rows
    )  # the same rows in a file are its own too
    assert of_frame.times.tolist() == of_file.times.tolist()
    assert model.config.data["source"] is None


def test_every_kind_of_table_has_the_same_rows(model: forecast.Forecaster) -> None:
    data = frame()
    expected = model.predict(data)[0].values
    flat = data.reset_index()
    periods = data.set_axis(data.index.to_period("h"))
    unnamed = data.set_axis(data.index.rename(None))
    columns = {name: flat[name].tolist() for name in flat.columns}
    columns["time"] = flat["time"].astype(str).tolist()
    for kind in (flat, periods, unnamed, columns, data[["y", "x"]], data.assign(z="text")):
        np.testing.assert_array_equal(model.predict(kind)[0].values, expected)


def test_values_of_other_types_are_numbers() -> None:
    data = frame(6).assign(
        flag=[True, False] * 3, count=pd.array([1, 2, 3, 4, 5, 6], dtype="Int64"), name="text"
    )
    (one,), step = read(data)
    assert str(step) == "1 hour"
    assert one.values[:, 2:].tolist() == [[1, 1], [0, 2], [1, 3], [0, 4], [1, 5], [0, 6]]
    np.testing.assert_array_equal(one.values[:, :2], data[["x", "y"]])
    daily = frame(3).set_axis(pd.date_range("2024-01-31", periods=3, freq="ME"))
    assert str(read(daily)[1]) == "1 month"


def test_several_series_in_the_index() -> None:
    two = pd.concat({"a": frame(5), "b": 2 * frame(5)}, names=["shop"])
    found, _ = read(two, series_column="shop")
    assert [one.name for one in found] == ["a", "b"]
    np.testing.assert_array_equal(found[1].values, 2 * found[0].values)


@pytest.mark.parametrize("normalize", ["none", "last", "window"])
def test_an_unknown_series_is_scaled_by_the_rows_that_are_read(
    tmp_path: Path, normalize: str
) -> None:
    """However it is given, and whatever was before them."""
    data = frame()
    forecast.train(data, tmp_path, options(normalize=normalize))
    model = forecast.load(tmp_path)
    model.scales.clear()  # so that the one series is unknown
    model.scales["another"] = Scale(np.zeros(2), np.ones(2))
    new = data * [1.0, 50.0] + np.linspace(0, 9, len(data))[:, None]
    (expected,) = model.predict(new.iloc[-12:])
    for history in (new, Series.of(new.index.to_numpy(), new.to_numpy())):
        (found,) = model.predict([history] if isinstance(history, Series) else history)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)


def test_a_series_called_by_a_number(tmp_path: Path) -> None:
    """Pandas makes 1.0 of 1 where another name is missing, in a merge for one."""
    long = pd.concat([frame().assign(shop=shop) for shop in (1, 2)]).reset_index()
    long.loc[long["shop"] == 2, ["x", "y"]] *= 40
    forecast.train(long, tmp_path, options(series_column="shop"))
    model = forecast.load(tmp_path)
    found = model.predict(long.assign(shop=long["shop"].astype(float)))
    for one, expected in zip(found, model.predict(long), strict=True):
        np.testing.assert_array_equal(one.values, expected.values)


def test_arrays_have_rows_for_times(tmp_path: Path) -> None:
    values = frame()[["x", "y"]].to_numpy()
    report = forecast.train(values, tmp_path / "run", options(season=25))
    assert (report.first, report.last, report.season) == ("96", "119", 25)
    assert list(report.columns) == ["x0", "x1"]
    loaded = forecast.load(tmp_path / "run")
    (one,) = loaded.predict(values)
    assert one.written == ["120", "121", "122", "123"]
    assert one.to_pandas().index.tolist() == [120, 121, 122, 123]
    assert loaded.evaluate_source(values).mse == pytest.approx(report.mse)
    with pytest.raises(InputError, match="an array of 1 columns, where the model reads x0, x1"):
        loaded.predict(values[:, 0])
    (shorter,) = loaded.predict(values[50:])  # rows are counted anew, which nothing depends on
    np.testing.assert_allclose(shorter.values, one.values, rtol=1e-6)
    forecast.train(pd.Series(values[:, 0]), tmp_path / "one", options(season=25))
    assert forecast.load(tmp_path / "one").predict(values[:, 0])[0].columns == ("value",)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    texts = ["", *["$3.50"] * 119]
    prices = frame().assign(price=texts, sold=[f"{i + 1000:,}" for i in range(120)])
    report = forecast.train(prices, tmp_path / "run", options())
    (note,) = (note for note in report.training["notes"] if "not read" in note)
    assert note == (
        "columns that are not read, as they hold no numbers: price ('$3.50'), sold ('1,000')"
    )
    named = forecast.train(prices, tmp_path / "named", options(columns="x,y"))
    assert not any("not read" in note for note in named.training["notes"])


def test_what_is_wrong_with_a_table_in_memory(model: forecast.Forecaster) -> None:
    holed = frame()
    holed.iloc[7, 1] = np.nan
    for data, message in [
        (holed, "DataFrame, row 7: y is missing"),
        (frame().drop(index=frame().index[9]), "DataFrame, row 9: a row is missing between"),
        (frame().iloc[::-1], "DataFrame, row 1: 2024-01-05T22:00 does not come after"),
        (frame().assign(x="a"), "DataFrame: no column of numbers|DataFrame, row 0: x is 'a'"),
        (np.zeros((3, 2, 2)), "shape \\(3, 2, 2\\); expected numbers"),
        (np.array(["a"]), "an array of <U1"),
        ({"time": ["2020", "2021"], "x": [1.0]}, "columns of different lengths \\(time 2, x 1\\)"),
        (3, "int is not a path, a DataFrame"),
    ]:
        with pytest.raises(InputError, match=message):
            read(data, columns="x,y") if data is not holed else read(data)
    with pytest.raises(InputError, match="DataFrame: no column 'y'"):
        model.predict(frame()[["x"]])
    with pytest.raises(InputError, match="DataFrame: 5 rows, where a forecast needs 12"):
        model.predict(frame(5))
    with pytest.raises(InputError, match="history: NoneType is not a table, a Series or a list"):
        model.predict(None)
    with pytest.raises(InputError, match="history: a list with a DataFrame; expected a Series of"):
        model.predict([frame()])
    with pytest.raises(InputError, match="DataFrame: the table is empty"):
        read(pd.DataFrame())
    with pytest.raises(
        InputError, match=r"\(numbers too, .*\), or may be the index of a DataFrame"
    ):
        read(frame().reset_index(drop=True))
    with pytest.raises(InputError, match="DataFrame, row 0: the time is missing"):
        read(frame().set_axis([pd.NaT, *frame().index[1:]]), time_column="time")


def test_an_interrupted_run_takes_its_data_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cello.tasks import trainer
    from cello.tasks.errors import Interrupted

    epoch = trainer.Training._epoch
    monkeypatch.setattr(trainer.Training, "_epoch", _stop)
    with pytest.raises(Interrupted):
        forecast.train(frame(), tmp_path / "run", options())
    monkeypatch.setattr(trainer.Training, "_epoch", epoch)
    with pytest.raises(InputError, match=r"in memory; Forecaster.resume\(folder, data\)"):
        forecast.resume(tmp_path / "run")
    with pytest.raises(InputError, match="the data has changed"):
        forecast.resume(tmp_path / "run", 2 * frame())
    assert forecast.resume(tmp_path / "run", frame()).windows == 21


def _stop(_: Any) -> None:
    raise KeyboardInterrupt


def test_a_forecast_as_a_frame(model: forecast.Forecaster) -> None:
    (one,) = model.predict(frame())
    found = one.to_pandas()
    assert list(found.columns) == [
        "x", "x_lower_80", "x_upper_80", "y", "y_lower_80", "y_upper_80"
    ]  # fmt: skip
    expected = pd.date_range("2024-01-06", periods=4, freq="h", name="time")
    pd.testing.assert_index_equal(found.index, expected, exact="equiv")
    assert found.index.freqstr == "h"
    np.testing.assert_array_equal(found["y"], one.values[:, 1])
    np.testing.assert_array_equal(found["y_upper_80"], one.intervals[0.8][1][:, 1])
    single = replace(one, times=one.times[:1], values=one.values[:1], intervals={}).to_pandas()
    assert single.index.freqstr == "h"


def test_times_with_a_zone_are_those_of_utc(tmp_path: Path) -> None:
    data = frame().tz_localize("UTC")
    forecast.train(data, tmp_path, options())
    model = forecast.load(tmp_path)
    (expected,) = model.predict(data)
    assert str(expected.to_pandas().index.tz) == "UTC"
    (found,) = model.predict(data.set_axis(data.index.tz_convert("Asia/Shanghai")))
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_forecast_as_a_picture(model: forecast.Forecaster) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    (one,) = model.predict(frame())
    panels = one.plot()
    assert [axes.get_title("left") for axes in panels] == ["x", "y"]
    lines = {line.get_label(): line for line in panels[1].lines}
    np.testing.assert_array_equal(lines["history"].get_ydata(), frame()["y"].iloc[-12:])
    drawn = lines["forecast"].get_ydata()  # it begins at the last known number
    np.testing.assert_array_equal(drawn, [frame()["y"].iloc[-1], *one.values[:, 1]])
    _, axes = pyplot.subplots()
    assert one.plot(axes, history=5, columns=["y"]) is axes
    assert len(axes.lines[0].get_xdata()) == 5
    one.plot(pyplot.subplots()[1], history=frame(), columns=["y"])
    assert one.plot(columns=["x"], history=frame()["x"]).lines[0].get_xdata().shape == (120,)
    pyplot.close("all")
    for wrong, message in [
        ({"columns": ["z"]}, "columns: 'z' is not one of x, y"),
        ({"ax": 3}, "ax: int is not axes of matplotlib"),
        ({"ax": pyplot.subplots(3)[1]}, "ax: 3 axes for the columns x, y"),
        ({"history": 0}, "history: 0 rows; expected 1 or more"),
        ({"history": frame()[["x"]]}, "history: no column 'y'"),
        ({"history": [1.0]}, "history: list is not a number of rows"),
        ({"history": frame().reset_index()}, "its index is not of the times of the forecast"),
    ]:
        with pytest.raises(InputError, match=message):
            one.plot(**wrong)
    pyplot.close("all")
