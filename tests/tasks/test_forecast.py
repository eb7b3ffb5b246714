from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cello.tasks import forecast
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.forecast import Forecaster, Options
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.times import Step
from cello.tasks.task import Request


def waves(rows: int, seed: int = 0) -> np.ndarray:
    """A day in 8 steps, a slow wave, and noise; two columns, of which the second is wider."""
    t, rng = np.arange(rows), np.random.default_rng(seed)
    day, slow = np.sin(2 * np.pi * t / 8), np.sin(2 * np.pi * t / 61)
    values = np.stack([day + slow, 100 + 30 * day - 20 * slow], 1)
    return values + rng.normal(size=(rows, 2)) * [0.1, 3.0]


def write(path: Path, values: np.ndarray, first: str = "2020-01-01", series: str = "") -> Path:
    """Write rows three hours apart; with a name of a series, append them to a long table."""
    step = Step(microseconds=3 * 3600 * 10**6)
    times = step.after(np.datetime64(first, "us"), np.arange(len(values))).astype("datetime64[s]")
    head = f"time,{'series,' if series else ''}x,y\n"
    name = f"{series}," if series else ""
    lines = [f"{t},{name}{x!r},{y!r}\n" for t, (x, y) in zip(times, values.tolist(), strict=True)]
    before = path.read_text() if series and path.exists() else head
    path.write_text(before + "".join(lines))
    return path


def quick(**changes: object) -> Options:
    options = {"horizon": 8, "window": 16, "patch": 4, "hidden": 8, "epochs": 2, "device": "cpu"}
    return Options(**{**options, **changes})  # type: ignore[arg-type]  # values of several types


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "waves.csv", waves(400))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "waves"
    forecast.train(str(data), folder, quick(epochs=20, hidden=16, learning_rate=5e-3))
    return folder


def test_it_learns(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert report["season"] == 8
    assert report["mse"] < 0.5 * report["baselines"]["seasonal naive"]["mse"]
    assert report["baselines"]["seasonal naive"]["mse"] < report["baselines"]["naive"]["mse"]
    assert (trained / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_by_hand(data: Path, trained: Path) -> None:
    """Every figure again, from forecasts made one by one, each of a history that ends before it."""
    forecaster = forecast.load(trained)
    report = forecaster.evaluate_source(str(data), "test", batch_size=7)
    values = waves(400)
    mean, deviation = values[:280].mean(0), values[:280].std(0)
    times = Step(microseconds=3 * 3600 * 10**6).after(
        np.datetime64("2020-01-01", "us"), np.arange(400)
    )
    starts = range(320, 393)
    histories = [Series.of(times[:start], values[:start]) for start in starts]
    found = list(forecaster.predict(histories))
    truth = np.stack([values[start : start + 8] for start in starts])
    point = np.stack([one.values for one in found])
    naive = np.stack([np.repeat(values[start - 1 : start], 8, 0) for start in starts])
    seasonal = np.stack([values[start - 8 : start] for start in starts])
    assert report.windows == len(starts)
    for guess, figures in (
        (point, {"mse": report.mse, "mae": report.mae}),
        (naive, report.baselines["naive"]),
        (seasonal, report.baselines["seasonal naive"]),
    ):
        error = (guess - truth) / deviation
        assert figures["mse"] == pytest.approx((error**2).mean(), rel=1e-4)
        assert figures["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    units = point - truth
    for i, column in enumerate("xy"):
        own = report.columns[column]["model"]
        assert own["rmse_units"] == pytest.approx((units[..., i] ** 2).mean() ** 0.5, rel=1e-4)
        assert own["mae_units"] == pytest.approx(np.abs(units[..., i]).mean(), rel=1e-4)
    by_step = ((units / deviation) ** 2).mean((0, 2))
    np.testing.assert_allclose(report.steps["model"]["mse"], by_step, rtol=1e-4)
    for one in report.intervals:
        bounds = [forecast_.intervals[one["level"]] for forecast_ in found]
        lower, upper = (np.stack([pair[k] for pair in bounds]) for k in (0, 1))
        assert np.all(lower <= upper)
        inside = (truth >= lower) & (truth <= upper)
        assert one["coverage"] == pytest.approx(inside.mean(), abs=2e-3)
        width = ((upper - lower) / deviation).mean()
        assert one["width"] == pytest.approx(width, rel=1e-3)
    wide, narrow = found[0].intervals[0.95], found[0].intervals[0.8]
    assert np.all((wide[0] <= narrow[0]) & (narrow[1] <= wide[1]))
    np.testing.assert_allclose(forecaster.scales[""].mean, mean)


def test_nothing_of_later_rows_is_known_in_training(tmp_path: Path) -> None:
    """Other numbers in the test part: the same weights, scales and validation scores."""
    values = waves(200)
    changed = values.copy()
    changed[160:] = 1e6
    reports, models = [], []
    for name, rows in (("a", values), ("b", changed)):
        path = write(tmp_path / f"{name}.csv", rows)
        reports.append(forecast.train(str(path), tmp_path / name, quick()))
        models.append(forecast.load(tmp_path / name))
    assert models[0].scales[""].mean.tolist() == models[1].scales[""].mean.tolist()
    for a, b in zip(*(model.model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)
    assert reports[0].mse != reports[1].mse


def test_targets_and_columns(tmp_path: Path, data: Path) -> None:
    forecast.train(str(data), tmp_path / "a", quick(target="y"))
    forecaster = forecast.load(tmp_path / "a")
    options = forecaster.config.options
    assert isinstance(options, Options)
    assert (options.mixed, forecaster.columns.values, forecaster.targets) == (
        "yes", ("y", "x"), ["y"]
    )  # fmt: skip
    (one,) = forecaster.predict(data)
    assert (one.columns, one.values.shape) == (("y",), (8, 1))
    assert one.written[0] == "2020-02-20T00:00:00"
    # The order of a file's columns does not matter, their names do.
    lines = [line.split(",") for line in data.read_text().split("\n")[:-1]]
    (tmp_path / "turned.csv").write_text("".join(f"{t},hm,{y},{x}\n" for t, x, y in lines))
    (other,) = forecaster.predict(tmp_path / "turned.csv")
    np.testing.assert_array_equal(one.values, other.values)
    forecast.train(str(data), tmp_path / "b", quick(columns="x"))
    assert forecast.load(tmp_path / "b").columns.values == ("x",)
    with pytest.raises(InputError, match="target: 'z' is not one of the columns read: x, y"):
        forecast.train(str(data), tmp_path / "c", quick(target="z"))
    (tmp_path / "y.csv").write_text("".join(f"{t},{y}\n" for t, _, y in lines))
    with pytest.raises(InputError, match="no column 'x'; there are: time, y"):
        list(forecaster.predict(tmp_path / "y.csv"))


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "lstm", "layers": 2, "bidirectional": True, "mixed": "yes"},
        {"cell": "rnn", "normalize": "last", "linear": False, "calendar": False, "loss": "mae"},
        {"normalize": "none", "levels": "", "precision": "bfloat16"},
        {"horizon": 1, "window": 3, "patch": 3, "levels": "0.5"},
    ],
)
def test_choices_of_model(tmp_path: Path, data: Path, changes: dict[str, object]) -> None:
    report = forecast.train(str(data), tmp_path / "a", quick(**{"epochs": 1, **changes}))
    forecaster = forecast.load(tmp_path / "a")
    assert forecaster.evaluate_source(str(data)).mse == pytest.approx(report.mse, rel=1e-4)
    (one,) = forecaster.predict(data)
    assert sorted(one.intervals) == Options(**changes).intervals  # type: ignore[arg-type]
    assert np.isfinite(one.values).all()


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A long table of three series, at times and levels of their own, and a model of it."""
    folder = tmp_path_factory.mktemp("shops")
    path = folder / "shops.csv"
    for i, (name, level) in enumerate([("a", 0.0), ("b", 500.0), ("ä, c", -3.0)]):
        write(path, waves(120, i)[:, ::-1] + level, f"202{i}-01-01", f'"{name}"')
    forecast.train(str(path), folder / "run", quick(series_column="series"))
    return path, folder / "run"


def test_many_series(shops: tuple[Path, Path]) -> None:
    path, run = shops
    forecaster = forecast.load(run)
    assert list(forecaster.scales) == ["a", "b", "ä, c"]
    difference = forecaster.scales["b"].mean - forecaster.scales["a"].mean
    np.testing.assert_allclose(difference, 500, rtol=0.05)
    report = json.loads((run / "report.json").read_text())
    # Of each series' 24 test rows, 17 begin a forecast of 8.
    assert (report["series"], report["windows"]) == (3, 3 * 17)
    found = list(forecaster.predict(path, batch_size=2))
    assert [one.series for one in found] == ["a", "b", "ä, c"]
    assert [one.times[0].astype(str)[:4] for one in found] == ["2020", "2021", "2022"]
    alone = list(forecaster.predict(path, batch_size=1))
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-5, atol=1e-4)


def test_a_series_the_model_does_not_know_is_scaled_by_itself(shops: tuple[Path, Path]) -> None:
    forecaster = forecast.load(shops[1])
    values = waves(16)
    times = Step(microseconds=3 * 3600 * 10**6).after(
        np.datetime64("2020-01-01", "us"), np.arange(16)
    )
    small, large = (Series.of(times, values * k, "new") for k in (1, 1000))
    a, b = forecaster.predict([small, large])
    np.testing.assert_allclose(1000 * a.values, b.values, rtol=1e-3, atol=1.0)


def test_answers_are_a_table_or_json(shops: tuple[Path, Path], tmp_path: Path) -> None:
    forecaster = forecast.load(shops[1])
    lines = list(forecaster.answer(Request(file=shops[0])))
    assert lines[0] == "series,column,time,forecast,lower_80,upper_80,lower_95,upper_95"
    assert len(lines) == 1 + 3 * 2 * 8
    assert lines[1].startswith("a,x,2020-01-16T00:00:00,")
    assert lines[-1].startswith('"ä, c",y,2022-01-16T21:00:00,')
    found = list(forecaster.predict(shops[0]))
    numbers = [float(number) for number in lines[1].split(",")[3:]]
    pairs = found[0].intervals
    expected = [found[0].values[0, 0], *(bound[0, 0] for level in pairs for bound in pairs[level])]
    np.testing.assert_allclose(numbers, expected, rtol=1e-6)
    records = [json.loads(line) for line in forecaster.answer(Request(file=shops[0], json=True))]
    assert [record["series"] for record in records[::16]] == ["a", "b", "ä, c"]
    assert records[0]["forecast"] == pytest.approx(numbers[0], rel=1e-6)
    text = shops[0].read_bytes().splitlines(keepends=True)
    assert list(forecaster.answer(Request(stream=text))) == lines
    with pytest.raises(InputError, match="takes a table: --file"):
        list(forecaster.answer(Request(texts=["1,2,3"])))


def test_series_are_answered_while_the_rest_is_read(shops: tuple[Path, Path]) -> None:
    forecaster = forecast.load(shops[1])
    read: list[int] = []

    def lines():  # type: ignore[no-untyped-def]
        yield b"time,series,x,y\n"
        for i in range(500):
            read.append(i)
            for h in range(16):
                yield f"2020-01-{1 + h // 8:02d}T{h % 8 * 3:02d}:00:00,{i},{h},{h}\n".encode()

    answers = forecaster.answer(Request(stream=lines(), batch_size=4))
    next(answers), next(answers)
    assert len(read) < 100
    assert sum(1 for _ in answers) == 500 * 16 - 1


def test_one_series_has_one_forecast_and_several_a_list(trained: Path) -> None:
    forecaster = forecast.load(trained)
    times = np.arange("2020-01-01", "2020-01-04", dtype="datetime64[h]")[::3]
    series = Series.of(times, waves(24))
    one = forecaster.predict(series)
    for several in ([series, series], iter([series] * 2)):
        found = forecaster.predict(several)
        assert isinstance(found, list)
        for answer in found:
            np.testing.assert_allclose(answer.values, one.values, rtol=1e-6, atol=1e-7)
    assert forecaster.predict([]) == []


def test_tables_in_other_encodings_and_with_other_delimiters(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.csv", waves(120))
    header, _, rows = plain.read_text().partition("\n")
    content = f"{header.replace('x', 'Größe')}\n{rows}".replace(",", ";")
    path, run = tmp_path / "x.csv", tmp_path / "run"
    path.write_bytes(content.encode("cp1252"))
    form = {"encoding": "windows-1252", "delimiter": ";"}
    report = forecast.train(path, run, quick(epochs=1, **form))
    assert list(report.columns) == ["Größe", "y"]
    (one,) = forecast.load(run).predict(path)
    lines = list(forecast.load(run).answer(Request(file=path)))
    assert len(lines) == 1 + 2 * len(one.times)
    with path.open("rb") as stream:
        request = Request(stream=stream, encoding="windows-1252")
        assert list(forecast.load(run).answer(request)) == lines
    with pytest.raises(InputError, match=r"line 1: not UTF-8 at byte .*; --encoding says how"):
        forecast.train(path, tmp_path / "other", quick())
    with pytest.raises(InputError, match=r"no column of numbers beside .*; --delimiter says what"):
        forecast.train(path, tmp_path / "other", quick(encoding="windows-1252"))
    path.write_text("time;load\n2020-01-01;1,5\n")
    with pytest.raises(InputError, match=r"line 2: 2 columns, not 1; --delimiter says what"):
        forecast.train(path, tmp_path / "other", quick())


def test_what_is_wrong_with_a_history(
    shops: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    forecaster = forecast.load(shops[1])
    path = tmp_path / "short.csv"
    for name, rows in (("a", 16), ("b", 15), ("c", 16)):
        write(path, waves(rows), series=name)
    answers = forecaster.predict_stream(path)
    assert next(answers).series == "a"  # what came before is answered first
    with pytest.raises(InputError, match=r"short.csv: series 'b': 15 rows, where .* needs 16"):
        next(answers)
    gap = write(tmp_path / "gap.csv", waves(40)).read_text().splitlines(keepends=True)
    del gap[30]
    (tmp_path / "gap.csv").write_text("".join(gap))
    with pytest.raises(InputError, match=r"gap.csv, line 31: a row is missing between 2020-01-04"):
        list(forecast.load(trained).predict(tmp_path / "gap.csv"))
    times = np.arange("2020-01-01", "2020-02-01", dtype="datetime64[D]")
    with pytest.raises(InputError, match="the model reads the columns x, y"):
        list(forecast.load(trained).predict([Series.of(times, np.zeros(len(times)))]))


def test_series_that_are_not_whole(trained: Path) -> None:
    forecaster = forecast.load(trained)
    hours = np.arange("2020-01-01", "2020-01-04", dtype="datetime64[h]")
    times, values = hours[::3], waves(24)
    (one,) = forecaster.predict([Series.of(times, values)])
    assert str(one.times[0]).startswith("2020-01-04T00")
    holed = values.copy()
    holed[20, 1] = np.nan
    for wrong, expected in [
        (Series.of(times, holed), "history: a number is not finite"),
        (Series.of(times, values[1:]), "history: 24 times, but 23 rows"),
        (Series.of(times[::-1], values), "the times do not rise by one step of 3 hours each"),
        (Series.of(hours[:24], values), "the times do not rise by one step of 3 hours each"),
        (Series.of(np.delete(hours[::3], 5), values[1:]), "do not rise by one step"),
    ]:
        with pytest.raises(InputError, match=expected):
            list(forecaster.predict([wrong]))


def test_data_that_is_too_short(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", waves(40))
    with pytest.raises(InputError, match=r"a.csv: 24 training rows, too few for a window of 24"):
        forecast.train(str(path), tmp_path / "run", quick(window=24))
    with pytest.raises(InputError, match=r"40 rows, where a split .* needs 100"):
        forecast.train(
            str(path), tmp_path / "run", quick(train_rows=50, valid_rows=20, test_rows=30)
        )
    with pytest.raises(InputError, match="valid-rows: 7 rows, too few for a horizon of 8 steps"):
        forecast.train(str(path), tmp_path / "run", quick(window=4, valid_rows=7))
    assert not (tmp_path / "run").exists()


def test_defaults_fit_the_data(tmp_path: Path) -> None:
    """Whatever the step and the length: a model with nothing left open."""
    for step, rows in (
        (Step(months=1), 60),
        (Step(months=12), 60),
        (Step(microseconds=86_400 * 10**6), 300),
        (Step(microseconds=60 * 10**6), 3000),
    ):
        times = step.after(np.datetime64("1960-01-01", "us"), np.arange(rows)).astype(str)
        path = tmp_path / "data.csv"
        values = np.random.default_rng(0).normal(size=rows)
        lines = [f"{t},{x}\n" for t, x in zip(times, values, strict=True)]
        path.write_text("time,x\n" + "".join(lines))
        read = Forecaster.read(str(path), Options())
        options, _, _ = Forecaster.describe(read, Options())
        assert options.patch <= options.window <= rows // 4 + 1
        assert options.season == step.season
        forecast.train(
            str(path), tmp_path / "run", Options(epochs=1, hidden=4, device="cpu"), overwrite=True
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": "0.8,x"}, "levels: '0.8,x' is not a list as 0.8,0.95, between 0 and 1"),
        ({"levels": "80"}, "levels: '80' is not a list"),
        ({"horizon": 0}, "horizon: 0 is not between 1 and"),
        ({"stream": True}, "stream: a forecaster keeps the rows of its data in memory"),
        ({"missing": "zero"}, "missing: 'zero' is not one of error, forward"),
    ],
)
def test_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(**changes)


def test_patches_are_no_longer_than_windows(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="patch: 17 steps are more than the 16 of a window"):
        forecast.train(str(data), tmp_path / "run", quick(patch=17))


def test_a_stopped_run_goes_on_to_the_same_model(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = quick(epochs=3, checkpoint_every=3)
    forecast.train(str(data), tmp_path / "whole", options)
    loss, calls = Forecaster._loss, 0

    def interrupted(self, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 14:  # of 9 batches an epoch
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(Forecaster, "_loss", interrupted)
    with pytest.raises(Interrupted):
        forecast.train(str(data), tmp_path / "parts", options)
    report = forecast.resume(tmp_path / "parts")
    assert len(report.training["epochs"]) == 3
    whole, parts = (forecast.load(tmp_path / f).model.state_dict() for f in ("whole", "parts"))
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_changed_data_is_not_resumed(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", waves(200))
    forecast.train(str(path), tmp_path / "run", quick(epochs=1))
    (tmp_path / "run" / "report.json").unlink()
    write(path, waves(200, 1))
    with pytest.raises(InputError, match="changed"):
        forecast.resume(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{}", '{"": [[1.0], [2.0]]}', '{"": 3}', "[1]"])
def test_damaged_scales(trained: Path, tmp_path: Path, text: str) -> None:
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "scales.json").write_text(text)
    if text == "{}":
        assert forecast.load(tmp_path).scales == {}
        return
    with pytest.raises(InputError, match=r"scales.json: not as it should be"):
        forecast.load(tmp_path)


def test_quantiles_of_noise(tmp_path: Path) -> None:
    """White noise has the quantiles of the normal distribution, and nothing is better than its mean."""
    rng = np.random.default_rng(0)
    path = write(tmp_path / "noise.csv", rng.normal(5, 2, size=(3000, 2)))
    options = quick(epochs=6, horizon=2, window=8, normalize="none", learning_rate=3e-3)
    report = forecast.train(str(path), tmp_path / "run", replace(options, calendar=False))
    assert report.mse == pytest.approx(1.0, abs=0.1)
    for one in report.intervals:
        assert one["coverage"] == pytest.approx(one["level"], abs=0.04)
    (found,) = forecast.load(tmp_path / "run").predict(path)
    lower, upper = found.intervals[0.8]
    assert lower == pytest.approx(5 - 2 * 1.2816, abs=0.8)
    assert upper == pytest.approx(5 + 2 * 1.2816, abs=0.8)


@pytest.mark.slow
def test_real_series(tmp_path: Path) -> None:
    """Monthly passengers: better than the year before."""
    data = os.environ.get("CELLO_DATA")
    if not data:
        pytest.skip("CELLO_DATA does not name a folder with series/airline-passengers.csv")
    path = Path(data, "series", "airline-passengers.csv")
    report = forecast.train(str(path), tmp_path / "a", Options(horizon=12, device="cpu"))
    assert report.windows == 18
    assert report.mse < 0.7 * report.baselines["seasonal naive"]["mse"]


def test_times_with_and_without_a_zone_are_not_mixed(tmp_path: Path) -> None:
    """A model of times in UTC would take local times for other hours of the day."""
    local, values = write(tmp_path / "local.csv", waves(200)), waves(200)
    zoned = tmp_path / "zoned.csv"
    first, *rows = local.read_text().splitlines()
    zoned.write_text("\n".join([first, *(row.replace(",", "+02:00,", 1) for row in rows)]) + "\n")
    assert len(values) == len(rows)
    for own, other, message in [
        (zoned, local, "says no zone, where the times the model learned from say one"),
        (local, zoned, "says a zone, where the times the model learned from say none"),
    ]:
        folder = tmp_path / f"of_{own.stem}"
        forecast.train(own, folder, quick())
        model = forecast.load(folder)
        assert len(model.predict(own)) == 1
        for ask in (model.predict, model.evaluate_source, model.backtest):
            with pytest.raises(InputError, match=message):
                ask(other)


def test_days_of_local_time_with_a_zone(tmp_path: Path) -> None:
    """When the clocks change, a day has 23 hours: the message says how to write such data."""
    days = [f"2020-03-{day:02}T00:00:00+0{1 if day < 30 else 2}:00,{day}" for day in range(1, 32)]
    path = tmp_path / "days.csv"
    path.write_text("time,x\n" + "\n".join(days) + "\n")
    with pytest.raises(
        InputError, match=r"line 31: .* is not a whole number of steps of 1 day .*without the zone"
    ):
        forecast.train(path, tmp_path / "run", quick())
    path.write_text("time,x\n" + "\n".join(day.replace("+01:00", "") for day in days[:20]) + "\n")
    assert forecast.Forecaster.read(path, quick(horizon=2, window=4)).train.step == Step(
        microseconds=86_400 * 10**6
    )
