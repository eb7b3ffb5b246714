"""Columns that are known over the horizon, and columns that describe a series."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cello.tasks import forecast
from cello.tasks.errors import InputError
from cello.tasks.forecast.network import RecurrentForecaster
from cello.tasks.forecast.series import Series

ROWS, T, H = 400, 16, 8


def values(seed: int = 0) -> np.ndarray:
    """Sales that rise by 5 at a promotion, which nothing announces, and by -2 for one of the price."""
    rng = np.random.default_rng(seed)
    t = np.arange(ROWS)
    promo, price = (rng.random(ROWS) < 0.3).astype(float), 4 + rng.normal(size=ROWS)
    sales = 50 + 3 * np.sin(2 * np.pi * t / 8) + 5 * promo - 2 * price + 0.2 * rng.normal(size=ROWS)
    return np.stack([sales, promo, price], 1)


def days(count: int = ROWS + H) -> np.ndarray:
    return np.datetime64("2020-01-01", "D") + np.arange(count)


def write(path: Path, rows: np.ndarray, ahead: np.ndarray | None = None, first: int = 0) -> Path:
    lines = ["date,price,sales,promo"]
    lines += [
        f"{d},{c!r},{s!r},{p!r}"
        for d, (s, p, c) in zip(days()[first:], rows.tolist(), strict=False)
    ]
    for d, (p, c) in zip(
        days()[first + len(rows) :], [] if ahead is None else ahead.tolist(), strict=False
    ):
        lines.append(f"{d},{c!r},,{p!r}")
    path.write_text("\n".join(lines) + "\n")
    return path


def options(**changes: Any) -> forecast.Options:
    known = {
        "horizon": H, "window": T, "patch": 4, "hidden": 16, "epochs": 12, "device": "cpu", "season": 8,
        "learning_rate": 1e-2, "future_columns": "promo,price",
    }  # fmt: skip
    return forecast.Options(**{**known, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, forecast.Forecaster, Any]:
    folder = tmp_path_factory.mktemp("known")
    data = write(folder / "sales.csv", values())
    report = forecast.train(data, folder / "run", options())
    return data, forecast.load(folder / "run"), report


def test_what_is_known_ahead_is_used(
    trained: tuple[Path, forecast.Forecaster, Any], tmp_path: Path
) -> None:
    """Without it nobody can tell when there is a promotion; with it noise is most of what is left."""
    data, model, report = trained
    without = forecast.train(data, tmp_path / "run", options(future_columns=None, target="sales"))
    assert list(report.columns) == ["sales"]  # what is known is not forecast
    assert model.columns.values == ("sales", "promo", "price")
    assert report.mse < 0.1 * without.mse
    assert report.columns["sales"]["model"]["rmse_units"] < 1.0  # the effects have 3.0


def test_the_report_by_hand(trained: tuple[Path, forecast.Forecaster, Any]) -> None:
    """The same errors of forecasts that are made one by one, of a history that ends and of a plan."""
    _, model, report = trained
    rows = values()
    train = rows[:280]
    scale = model.scales[""]
    np.testing.assert_allclose(scale.mean, train.mean(0))
    np.testing.assert_allclose(scale.deviation, train.std(0))
    starts = range(320, ROWS - H + 1)
    found = model.predict(
        Series.of(days()[:start], rows[:start], future=rows[start : start + H, 1:])
        for start in starts
    )
    truth = np.stack([rows[start : start + H, :1] for start in starts])
    errors = np.stack([one.values for one in found]) - truth
    assert report.windows == len(starts)
    assert report.mse == pytest.approx((errors**2).mean() / train[:, 0].var(), rel=1e-4)


def test_a_plan_changes_a_forecast_and_later_truth_does_not(
    trained: tuple[Path, forecast.Forecaster, Any], tmp_path: Path
) -> None:
    _, model, _ = trained
    rows = values()
    plan = rows[:H, 1:].copy()
    (one,) = model.predict(write(tmp_path / "a.csv", rows, plan))
    assert one.written[0] == str(days()[ROWS])
    changed = plan.copy()
    changed[3, 0] = 1 - changed[3, 0]
    (other,) = model.predict(write(tmp_path / "b.csv", rows, changed))
    difference = (other.values - one.values)[:, 0] * np.sign(changed[3, 0] - plan[3, 0])
    assert difference[3] == pytest.approx(5, abs=1.5)
    assert np.abs(np.delete(difference, 3)).max() < 2  # others change through their patch alone
    longer = np.concatenate([plan, plan])  # more rows than are needed
    (same,) = model.predict(write(tmp_path / "c.csv", rows[:390], longer))
    (again,) = model.predict(write(tmp_path / "d.csv", rows[:390], plan))
    np.testing.assert_array_equal(same.values, again.values)

    year = np.concatenate([plan, np.zeros((380 - H, 2))])
    (same,) = model.predict(write(tmp_path / "e.csv", rows[:20], year))
    (again,) = model.predict(write(tmp_path / "f.csv", rows[:20], plan))
    np.testing.assert_array_equal(same.values, again.values)

    later = rows.copy()
    later[360:, 0] = 1e6  # what is to be forecast, as a file with the truth would hold it
    outputs = []
    for data in (rows, later):
        series = Series.of(days(ROWS), data)
        part = forecast.predictor.Stretch([series], model.step, model.columns, [range(360, 368)])
        windows = model.windows(part, T)
        assert windows.starts.tolist() == [360]
        batch = windows.collate([360])
        outputs.append(model.outputs(*batch[:3]))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    ahead = rows.copy()
    ahead[360:, 1] = 1 - ahead[360:, 1]
    part = forecast.predictor.Stretch(
        [Series.of(days(ROWS), ahead)], model.step, model.columns, [range(360, 368)]
    )
    flipped = model.outputs(*model.windows(part, T).collate([360])[:3])
    assert np.abs(flipped - outputs[0])[..., 0].min() > 0.1


def test_rows_that_only_hold_a_plan_are_no_training_data(
    trained: tuple[Path, forecast.Forecaster, Any], tmp_path: Path
) -> None:
    _, _, report = trained
    data = write(tmp_path / "sales.csv", values(), values()[:H, 1:])
    for missing in ("error", "forward"):  # nor are their numbers repeated
        same = forecast.train(data, tmp_path / missing, options(missing=missing))
        assert same.mse == report.mse


def test_what_is_missing_is_named(
    trained: tuple[Path, forecast.Forecaster, Any], tmp_path: Path
) -> None:
    data, model, _ = trained
    rows = values()
    plan = rows[:H, 1:]
    last = days()[ROWS - 1]
    needs = f"a forecast needs promo, price in the 8 rows after {last}, and"
    with pytest.raises(InputError, match=f"{needs} none of them is there"):
        model.predict(data)
    with pytest.raises(InputError, match=f"{needs} 5 of them are there"):
        model.predict(write(tmp_path / "a.csv", rows, plan[:5]))
    path = write(tmp_path / "b.csv", rows, plan)
    lines = path.read_text().splitlines()
    line = lines[ROWS + 3].rsplit(",", 1)[0] + ","
    path.write_text("\n".join([*lines[: ROWS + 3], line, *lines[ROWS + 4 :]]) + "\n")
    with pytest.raises(
        InputError, match=f"b.csv, line {ROWS + 4}: promo is missing, which is to be"
    ):
        model.predict(path)
    path.write_text("\n".join([*lines[: ROWS + 3], *lines[ROWS + 4 :]]) + "\n")
    with pytest.raises(
        InputError, match=f"line {ROWS + 4}: the rows of what is known ahead do not"
    ):
        model.predict(path)
    series = Series.of(days(ROWS), rows)
    for future, message in [
        (None, "none of them is there"),
        (plan[:, :1], "future: not of the columns promo, price"),
        (np.full((H, 2), np.nan), "future: a number is not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            model.predict(replace(series, future=future))


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for wrong, message in [
        ({"target": "promo"}, "target, future-columns: 'promo' is in both"),
        ({"future_columns": "promo,promo"}, "future-columns: promo, promo names a column twice"),
        ({"static_columns": "size"}, "static-columns: .* series-column is to name"),
    ]:
        with pytest.raises(InputError, match=message):
            options(**wrong)
    data = write(tmp_path / "sales.csv", values())
    for wrong, message in [
        ({"future_columns": "promo,rain"}, "no column 'rain'"),
        (
            {"future_columns": "promo,price,sales"},
            "all columns are known ahead, there is none to",
        ),
        ({"future_columns": "date"}, "one column is given two meanings"),
    ]:
        with pytest.raises(InputError, match=message):
            forecast.train(data, tmp_path / "run", options(**wrong))


def test_a_known_column_reaches_its_own_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    from cello.nn import GRU

    torch.manual_seed(0)
    network = RecurrentForecaster(
        GRU(8, 8), 8, window=12, horizon=10, patch=4, columns=1, targets=1, calendar=2, future=1,
        linear=True,
    ).eval()  # fmt: skip
    past, before, ahead = torch.randn(12, 3, 1), torch.randn(12, 3, 3), torch.randn(10, 3, 3)
    found = network(past, before, ahead)
    for step in range(10):
        other = ahead.clone()
        other[step, :, 2] += 1
        changed = (network(past, before, other) - found).abs().amax((1, 2, 3)) > 0
        assert changed.nonzero().flatten().tolist() == list(range(10))[step // 4 * 4 :][:4]
    network.effect.weight.data.fill_(2.0)
    # The effect that a window holds is taken out of it: both forecasts are of the same rest.
    shown = network(past + 2 * before[..., 2:], before, ahead) - 2 * ahead[..., 2:, None]
    network.effect.weight.data.zero_()
    torch.testing.assert_close(shown, found)


def shops(sizes: dict[str, tuple[str, float]]) -> str:
    """Series whose level of the next day is the region's: what tells is the static column alone."""
    rows = ["date,shop,region,area,x"]
    for k, (shop, (region, area)) in enumerate(sizes.items()):
        rng = np.random.default_rng(k)
        # A jump at each eighth day, of the height that region and area say.
        height = (4.0 if region == "north" else -4.0) * area
        for t, noise in enumerate(rng.normal(size=160).tolist()):
            x = 0.1 * noise + (height if t % 8 == 7 else 0.0)
            rows.append(f"{days()[t]},{shop},{region},{area},{x!r}")
    return "\n".join(rows) + "\n"


SIZES = {"a": ("north", 1.0), "b": ("south", 1.0), "c": ("north", 2.0), "d": ("south", 2.0)}


def test_static_columns(tmp_path: Path) -> None:
    data = tmp_path / "shops.csv"
    data.write_text(shops(SIZES))
    changes = {"future_columns": None, "series_column": "shop", "static_columns": "region,area"}
    report = forecast.train(data, tmp_path / "run", options(**changes, target="x"))
    assert report.series == 4
    stored = json.loads((tmp_path / "run" / "static.json").read_text())
    assert stored == [
        {"name": "region", "texts": ["north", "south"]},
        {"name": "area", "mean": 1.5, "deviation": 0.5},
    ]
    model = forecast.load(tmp_path / "run")
    assert model.columns.values == ("x",)  # a static number is not one of the series
    history = np.random.default_rng(9).normal(size=40) * 0.1
    new = {
        kind: model.predict(Series.of(days(40), history, "new", static=kind)).values
        for kind in (("north", "2"), ("south", "2"), ("north", "1"))
    }
    assert np.abs(new["north", "2"] - new["south", "2"]).max() > 1e-3
    assert np.abs(new["north", "2"] - new["north", "1"]).max() > 1e-3
    assert [one.series for one in model.predict(data)] == ["a", "b", "c", "d"]
    for static, message in [
        (
            ("west", "1"),
            "series 'new': the static column region is 'west'; training had: north, south",
        ),
        (("north", "big"), "the static column area is 'big', not a number"),
        ((), "'new' needs the static columns region, area"),
    ]:
        with pytest.raises(InputError, match=message):
            model.predict(Series.of(days(40), history, "new", static=static))
    lines = data.read_text().splitlines()
    lines[5] = lines[5].replace("north", "south")
    data.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        InputError, match="line 6: the static column region is 'south', but 'north' in"
    ):
        model.predict(data)
    data.write_text(shops({**SIZES, "d": ("", 1.0)}))
    with pytest.raises(InputError, match="series 'd': the static column region is missing"):
        forecast.train(data, tmp_path / "other", options(**changes))


def test_a_series_known_ahead_is_scaled_as_all_are(tmp_path: Path) -> None:
    """A holiday means the same in each series, also in one without any in its history."""
    pieces = ["date,shop,promo,x"]
    for shop, share in (("a", 0.5), ("b", 0.1)):
        rng = np.random.default_rng(ord(shop))
        promo = (rng.random(200) < share).astype(int)
        pieces += [
            f"{days()[t]},{shop},{p},{3 * p + rng.normal()}" for t, p in enumerate(promo.tolist())
        ]
    data = tmp_path / "two.csv"
    data.write_text("\n".join(pieces) + "\n")
    forecast.train(
        data, tmp_path / "run", options(future_columns="promo", series_column="shop", epochs=1)
    )
    model = forecast.load(tmp_path / "run")
    all_ = np.concatenate(
        [[int(row.split(",")[2]) for row in pieces[1 + k : 141 + k]] for k in (0, 200)]
    )
    for scale in (
        *model.scales.values(),
        model._scale(Series.of(days(20), np.zeros((20, 2)), "new")),
    ):
        assert scale.mean[1] == pytest.approx(all_.mean())
        assert scale.deviation[1] == pytest.approx(all_.std())
    assert model.scales["a"].mean[0] != model.scales["b"].mean[0]
