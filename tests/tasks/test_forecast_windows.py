"""The parts below a forecaster: windows, calendar, network, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from cello.nn import GRU, LSTM
from cello.tasks.forecast.network import FLOOR, RecurrentForecaster, pinball
from cello.tasks.forecast.report import Errors, Intervals
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.times import Step
from cello.tasks.forecast.windows import Frame, Scale, Windows, calendar, cut, cycles

HOUR = Step(microseconds=3600 * 10**6)


def series(name: str, values: np.ndarray, first: str = "2020-01-01") -> Series:
    times = HOUR.after(np.datetime64(first, "us"), np.arange(len(values)))
    return Series.of(times, values, name)


# Windows.


def test_windows_hold_what_they_should() -> None:
    rng = np.random.default_rng(0)
    both = [series("a", rng.normal(size=(30, 3))), series("b", rng.normal(size=(20, 3)))]
    scales = [Scale.of(one.values) for one in both]
    frame = Frame(both, scales, ["day"])
    windows = Windows.of(frame, [range(20, 30), range(0, 20)], 5, 4, 2, least=5)
    # Of the first series the rows 20 to 26 begin a forecast, of the second 5 to 16.
    assert [int(start) for start in windows.starts] == [*range(20, 27), *range(35, 47)]
    batch = windows.collate([windows[i] for i in range(len(windows))])
    expected_starts = [(0, start) for start in range(20, 27)] + [(1, i) for i in range(5, 17)]
    for i, (number, start) in enumerate(expected_starts):
        one, scale = both[number], scales[number]
        scaled = (one.values - one.values.mean(0)) / one.values.std(0)
        np.testing.assert_allclose(batch.past[:, i], scaled[start - 5 : start], rtol=1e-5)
        np.testing.assert_allclose(batch.future[:, i], scaled[start : start + 4, :2], rtol=1e-5)
        phase = 2 * np.pi * (np.arange(start - 5, start + 4) % 24) / 24
        expected = np.stack([np.sin(phase), np.cos(phase)], 1)
        found = torch.cat([batch.past_known[:, i], batch.future_known[:, i]])
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert scale.deviation == pytest.approx(one.values.std(0))
    assert frame.series_of(windows.starts).tolist() == [0] * 7 + [1] * 12
    assert [start for part in windows.batches(5) for start in part] == windows.starts.tolist()


def test_a_column_that_does_not_change_is_not_divided() -> None:
    scale = Scale.of(np.array([[1.0, 7.0], [3.0, 7.0]]))
    assert (scale.mean.tolist(), scale.deviation.tolist()) == ([2.0, 7.0], [1.0, 1.0])
    assert Scale.of(np.full((1000, 1), 0.1)).deviation.tolist() == [1.0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((None, None, None), [(0, 70), (70, 80), (80, 100)]),
        ((None, 5, None), [(0, 75), (75, 80), (80, 100)]),
        ((30, 20, 10), [(0, 30), (30, 50), (50, 60)]),
        ((30, None, None), [(0, 30), (30, 40), (40, 60)]),
        ((None, 90, 20), [(0, 0)] * 3),
        ((90, 10, 10), [(0, 0)] * 3),
    ],
)
def test_parts_follow_each_other(
    counts: tuple[int | None, ...], expected: list[tuple[int, int]]
) -> None:
    parts = cut(100, counts, (0.1, 0.2))
    assert [(part.start, part.stop) for part in parts] == expected


# Calendar.


def test_the_calendar_is_what_a_calendar_says() -> None:
    # 2024-01-01 was a Monday; 2024 has 366 days.
    times = np.array(["2024-01-01T06:00", "2024-01-04T12:00", "2024-07-02T00:00"], "datetime64[us]")
    found = calendar(times, ["day", "week", "year"])
    turns = [[0.25, 0.5, 0.0], [0.25 / 7, 3.5 / 7, 1 / 7], [0.25 / 366, 3.5 / 366, 0.5]]
    expected = [wave(2 * np.pi * np.array(t)) for t in turns for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-6)
    assert calendar(times, []).shape == (3, 0)


def test_cycles_are_longer_than_a_step_and_seen_twice() -> None:
    start = np.datetime64("2020-01-01", "us")
    day, month = Step(microseconds=86_400 * 10**6), Step(months=1)
    assert cycles(HOUR, HOUR.after(start, np.arange(47))) == []
    assert cycles(HOUR, HOUR.after(start, np.arange(48))) == ["day"]
    assert cycles(HOUR, HOUR.after(start, np.arange(24 * 800))) == ["day", "week", "year"]
    assert cycles(day, day.after(start, np.arange(800))) == ["week", "year"]
    assert cycles(month, month.after(start, np.arange(30))) == ["year"]
    assert cycles(Step(months=12), Step(months=12).after(start, np.arange(30))) == []


# The network.


def network(**changes: object) -> RecurrentForecaster:
    torch.manual_seed(0)
    sizes = {"window": 25, "horizon": 10, "patch": 4, "columns": 3, "targets": 2, **changes}
    cell = sizes.pop("cell", GRU)
    layers = cell(8, 8, **sizes.pop("layers", {}))  # type: ignore[operator, arg-type]
    return RecurrentForecaster(layers, 8, **sizes).eval()  # type: ignore[arg-type]


def none(batch: int, calendar: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(25, batch, calendar), torch.randn(10, batch, calendar)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("calendar", [0, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": LSTM, "layers": {"num_layers": 2, "bidirectional": True}},
        {"patch": 25, "outputs": 5, "normalize": "window", "linear": True},
        {"patch": 1, "targets": 3, "normalize": "none"},
    ],
)
def test_one_batch_equals_its_windows_one_by_one(
    mixed: bool, calendar: int, changes: dict[str, object]
) -> None:
    model = network(mixed=mixed, calendar=calendar, **changes)
    inputs = (torch.randn(25, 6, 3), *none(6, calendar))
    together = model(*inputs)
    assert together.shape == (10, 6, changes.get("targets", 2), changes.get("outputs", 1))
    for i in range(6):
        alone = model(*(x[:, i : i + 1] for x in inputs))
        torch.testing.assert_close(alone[:, 0], together[:, i])


def test_every_output_is_learnt_and_in_its_place() -> None:
    """The gradient of a forecast reaches its own column and, where columns are mixed, the others."""
    for mixed in (False, True):
        x = torch.randn(25, 1, 3, requires_grad=True)
        y = network(mixed=mixed, normalize="none")(x, *none(1))
        (gradient,) = torch.autograd.grad(y[:, 0, 1, 0].sum(), x)
        reached = gradient.abs().sum((0, 1)) > 0
        assert reached.tolist() == ([True, True, True] if mixed else [False, True, False])


def test_what_normalizing_takes_out_is_put_back() -> None:
    x = torch.randn(25, 6, 3)
    last, window = network(normalize="last"), network(normalize="window")
    torch.testing.assert_close(last(x + 7, *none(6)), last(x, *none(6)) + 7, rtol=1e-4, atol=1e-4)
    # Scaling is exact but for the floor, which keeps a window without change finite.
    scaled = window(x * 100 + 7, *none(6))
    expected = 100 * window(x, *none(6)) + 7
    torch.testing.assert_close(scaled, expected, rtol=2 * FLOOR, atol=2.0)
    flat = window(torch.full((25, 1, 3), 5.0), *none(1))
    assert (flat - 5).abs().max() < 10 * FLOOR**0.5


def test_the_linear_map_begins_as_nothing_and_is_a_linear_map() -> None:
    x = torch.randn(25, 6, 3)
    with_, without = network(linear=True), network()
    with_.load_state_dict({**with_.state_dict(), **without.state_dict()})
    torch.testing.assert_close(with_(x, *none(6)), without(x, *none(6)))
    assert with_.linear is not None
    weight = torch.randn(10, 25)
    with torch.no_grad():
        with_.linear.weight.copy_(weight)
    difference = with_(x, *none(6)) - without(x, *none(6))
    past = (x - x[-1])[..., :2]
    expected = torch.einsum("ht,tby->hby", weight, past)
    torch.testing.assert_close(difference[..., 0], expected, rtol=1e-4, atol=1e-4)


def test_the_future_calendar_changes_its_own_patch_only() -> None:
    model = network(calendar=2)
    past, future = none(1, 2)
    x = torch.randn(25, 1, 3)
    before = model(x, past, future)
    future = future.clone()
    future[4] += 1  # the first step of the second patch
    changed = (model(x, past, future) != before).any(-1).any(-1)[:, 0]
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 2


# Losses and errors.


def test_pinball_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, forecast = rng.normal(size=50), rng.normal(size=(50, 3))
    levels = [0.1, 0.5, 0.975]
    found = pinball(torch.tensor(forecast), torch.tensor(truth), levels).mean(0)
    for i, level in enumerate(levels):
        expected = mean_pinball_loss(truth, forecast[:, i], alpha=level)
        assert found[i].item() == pytest.approx(expected)


def test_errors_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, forecast = rng.normal(size=(2, 7, 30, 2))
    deviation = rng.uniform(1, 5, size=(30, 2))
    errors = Errors(7, 2)
    for part in (slice(0, 13), slice(13, 30)):
        errors.add((forecast - truth)[:, part], deviation[part])
    means = errors.means()
    for h in range(7):
        for j in range(2):
            pair = truth[h, :, j], forecast[h, :, j]
            units = [one * deviation[:, j] for one in pair]
            assert means["mse"][h, j] == pytest.approx(mean_squared_error(*pair))
            assert means["mae"][h, j] == pytest.approx(mean_absolute_error(*pair))
            assert means["mse_units"][h, j] == pytest.approx(mean_squared_error(*units))
            assert means["mae_units"][h, j] == pytest.approx(mean_absolute_error(*units))


def test_coverage_by_hand() -> None:
    intervals = Intervals([0.5, 0.9], 2, 1)
    truth = np.array([[[0.0]], [[2.0]]])  # (H=2, B=1, Y=1)
    lower = np.array([[[[-1.0, -3.0]]], [[[-1.0, -3.0]]]])
    upper = -lower
    intervals.add(truth, lower, upper)
    narrow, wide = intervals.figures(["x"], {0.9: "too few"})
    assert narrow == {
        "level": 0.5, "coverage": 0.5, "width": 2.0, "lack": "", "steps": [1.0, 0.0],
        "columns": {"x": 0.5},
    }  # fmt: skip
    assert wide == {
        "level": 0.9, "coverage": 1.0, "width": 6.0, "lack": "too few", "steps": [1.0, 1.0],
        "columns": {"x": 1.0},
    }  # fmt: skip
