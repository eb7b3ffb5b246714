"""Windows of time series: parts by time, scaling, calendar features, batches.

T is the steps of a window, H the steps forecast, B the batch, F the columns read, Y the columns
forecast (the first ones of F), N the columns known ahead (the last ones of F), K the calendar and
static features. What is called known are these K and, after them, the N columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cello.tasks.errors import InputError
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.times import DAY, Step, Times

CYCLES = {"day": DAY, "week": 7 * DAY, "year": 365 * DAY}
"""Lengths of what repeats in calendars."""
PARTS = ("train", "valid", "test")


class Batch(NamedTuple):
    """Some windows: what is known of each, and what follows."""

    past: Tensor
    """Scaled numbers, (T, B, F - N)."""
    past_known: Tensor
    """(T, B, K + N)."""
    future_known: Tensor
    """(H, B, K + N)."""
    future: Tensor
    """Scaled numbers, (H, B, Y)."""


class Scale(NamedTuple):
    """Mean and standard deviation of each column of a series, (F,)."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @staticmethod
    def of(values: NDArray[np.float64]) -> Scale:
        """Measure rows, (T, F); a column that does not change, up to rounding, is not divided."""
        mean, deviation = values.mean(0), values.std(0)
        return Scale(mean, np.where(deviation > 1e-14 * np.abs(mean), deviation, 1.0))

    def ending(self, other: Scale) -> Scale:
        """Return this scale with the last columns of another one, (N,)."""
        N = len(other.mean)
        pairs = zip(self, other, strict=True)
        return Scale(*(np.concatenate([own[:-N], last]) for own, last in pairs))


def cut(
    rows: int, counts: Sequence[int | None], fractions: Sequence[float], least: int = 1
) -> list[range]:
    """Cut a series, in the order of time, into training, validation and test rows.

    With a count of training rows the parts follow each other from the first row on, and later rows
    belong to none; without one the test part ends with the series and training has all before
    validation.

    Args:
        rows: of the series.
        counts: of training, validation and test rows, as far as they are given.
        fractions: of validation and test rows, where there is no count.
        least: validation and test rows where there is no count.

    Returns:
        The rows of the three parts; empty ones where the counts do not fit.

    Example:
        >>> cut(100, (None, None, None), (0.1, 0.2))
        [range(0, 70), range(70, 80), range(80, 100)]
        >>> cut(100, (50, 20, 20), (0.1, 0.2))
        [range(0, 50), range(50, 70), range(70, 90)]
    """
    train, *others = counts
    valid, test = (
        max(round(fraction * rows), least) if count is None else count
        for count, fraction in zip(others, fractions, strict=True)
    )
    if train is None:
        train = max(rows - valid - test, 0)
    ends = [train, train + valid, train + valid + test]
    if ends[-1] > rows:
        return [range(0)] * 3
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def cycles(step: Step, times: Times) -> list[str]:
    """Name what of the calendar may help: what is longer than a step and occurs twice in `times`.

    Example:
        >>> hours = np.arange("2016-07-01", "2016-08-01", dtype="datetime64[h]")
        >>> cycles(Step(microseconds=3_600_000_000), hours.astype("datetime64[us]"))
        ['day', 'week']
    """
    span = times[-1] - times[0] + step.span
    return [name for name, length in CYCLES.items() if step.span < length and span >= 2 * length]


def calendar(times: Times, names: Sequence[str]) -> NDArray[np.float32]:
    """Return where in each cycle each time is: sine and cosine of its phase, (T, 2 * cycles)."""
    days = times.astype("datetime64[D]")
    start = {
        "day": days,
        "week": days - (days.astype(np.int64) + 3) % 7,  # day 0 is a Thursday
        "year": times.astype("datetime64[Y]"),
    }
    length = {**CYCLES, "year": 366 * DAY}
    phases = [2 * np.pi * ((times - start[name]) / length[name]) for name in names]
    waves = [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
    features: NDArray[np.float32] = np.array(waves, dtype=np.float32).reshape(-1, len(times)).T
    return features


class Frame:
    """Series, one after the other, scaled, with the calendar.

    Args:
        series: of F columns each.
        scales: of each series.
        names: the cycles of the calendar.
        future: N.
        static: features of each series, (n, S); none unless given.
    """

    def __init__(
        self,
        series: Sequence[Series],
        scales: Sequence[Scale],
        names: Sequence[str],
        future: int = 0,
        static: NDArray[np.float32] | None = None,
    ) -> None:
        self.series, self.scales = series, scales
        self.offsets = np.cumsum([0, *map(len, series)])
        self.raw = np.concatenate([one.values for one in series])
        scaled = [
            (one.values - scale.mean) / scale.deviation
            for one, scale in zip(series, scales, strict=True)
        ]
        values = torch.from_numpy(np.concatenate(scaled).astype(np.float32))
        self.values, self.future = values.split([values.shape[1] - future, future], 1)
        self.static = None if static is None else torch.from_numpy(static)
        self.calendar = torch.from_numpy(
            np.concatenate([calendar(one.times, names) for one in series])
        )

    def series_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the series to which rows belong."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def known(self, rows: Tensor, number: NDArray[np.int64]) -> Tensor:
        """Return what is known ahead in rows, (T, B), of B series by their number: (T, B, K + N)."""
        parts = [self.calendar[rows]]
        if self.static is not None:
            parts.append(self.static[torch.from_numpy(number)].expand(len(rows), -1, -1))
        if self.future.shape[1]:
            parts.append(self.future[rows])
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


@dataclass(frozen=True)
class Windows(Sequence[int]):
    """The windows of one part; each is the number of the first row that it forecasts.

    Args:
        frame: the series.
        starts: first rows that are forecast, among the rows of the frame.
        window: T.
        horizon: H.
        targets: Y.
    """

    frame: Frame
    starts: NDArray[np.int64]
    window: int
    horizon: int
    targets: int

    @staticmethod
    def of(
        frame: Frame, parts: Sequence[range], window: int, horizon: int, targets: int, least: int
    ) -> Windows:
        """Take all windows that forecast rows of a part; they may look back beyond its first row.

        Args:
            frame: the series.
            parts: the rows of each series that belong to the part.
            window: T.
            horizon: H.
            targets: Y.
            least: rows of the series that there must be before the first row that is forecast.
        """
        starts = [
            offset + np.arange(max(part.start, least), part.stop - horizon + 1, dtype=np.int64)
            for offset, part in zip(frame.offsets[:-1], parts, strict=True)
        ]
        return Windows(frame, np.concatenate(starts), window, horizon, targets)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> int:  # type: ignore[override]  # slices are not asked for
        return int(self.starts[i])

    @property
    def lengths(self) -> Sequence[int]:
        """The steps of each window, all the same."""
        return [self.window] * len(self)

    def collate(self, starts: Sequence[int]) -> Batch:
        """Put windows together."""
        first = torch.as_tensor(starts)
        past = first + torch.arange(-self.window, 0)[:, None]
        future = first + torch.arange(self.horizon)[:, None]
        frame, number = self.frame, self.frame.series_of(np.asarray(starts))
        return Batch(
            frame.values[past],
            frame.known(past, number),
            frame.known(future, number),
            frame.values[future][..., : self.targets],
        )

    def season_before(self, starts: NDArray[np.int64], season: int) -> NDArray[np.int64]:
        """Return the rows that a seasonal naive forecast of windows repeats, (H, B)."""
        return np.asarray(starts - season + np.arange(self.horizon)[:, None] % season)

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Yield the windows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.starts[start : start + size]


def too_short(series: Series, needed: int, what: str) -> InputError:
    """Return the error for a series that has too few rows."""
    name = f"{series.source}: " + (f"series {series.name!r}: " if series.name else "")
    rows = "1 row" if len(series) == 1 else f"{len(series):,} rows"
    return InputError(f"{name}{rows}, where {what} needs {needed:,}")
