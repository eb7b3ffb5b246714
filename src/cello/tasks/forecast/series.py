"""Time series from the rows of a table: times that rise step by step, numbers that are all there."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError
from cello.tasks.forecast.table import Table
from cello.tasks.forecast.times import ROWS, Step, Times, check_zone, parse_times
from cello.tasks.tables import listed


@dataclass(frozen=True)
class Series:
    """Numbers at times of equal distance.

    Args:
        name: of the series; empty in a wide table.
        times: (T,).
        values: (T, F), one column for each of the table's columns of numbers.
        lines: the line of the file that each row was read from, (T,).
        form: how its times were written; see :data:`FORMATS`.
        source: the name of the file.
        future: numbers of the columns that are known ahead, in the rows that follow, (H or more, N).
        static: the texts of the columns that describe the series.
    """

    name: str
    times: Times
    values: NDArray[np.float64]
    lines: NDArray[np.int64]
    form: str
    source: str
    future: NDArray[np.float64] | None = None
    static: tuple[str, ...] = ()

    @staticmethod
    def of(
        times: Times,
        values: NDArray[np.float64],
        name: str = "",
        *,
        future: NDArray[np.float64] | None = None,
        static: Sequence[str] = (),
    ) -> Series:
        """Make a series of arrays.

        Args:
            times: (T,).
            values: (T, F) or (T,); the columns that are known ahead are the last ones of F.
            name: of the series.
            future: numbers of the columns that are known ahead, in the rows that follow, (H, N) or (H,).
            static: the texts of the columns that describe the series.
        """
        values = np.asarray(values, np.float64)
        if future is not None:
            future = np.asarray(future, np.float64)
            future = future[:, None] if future.ndim == 1 else future
        return Series(
            name,
            np.asarray(times, "datetime64[us]"),
            values[:, None] if values.ndim == 1 else values,
            np.arange(1, len(times) + 1),
            "%Y-%m-%dT%H:%M:%S",
            "history",
            future,
            tuple(static),
        )

    def __len__(self) -> int:
        return len(self.times)


@dataclass
class _Lines:
    """The rows of one series while they are read.

    Attributes:
        texts: their times.
        values: their numbers, row by row.
        lines: where they were read.
        before: the last number of each column in rows that were forgotten; nothing if none were.
    """

    texts: list[str] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    before: list[float] = field(default_factory=list)

    def add(self, line: int, time: str, numbers: list[float]) -> None:
        self.texts.append(time)
        self.values.extend(numbers)
        self.lines.append(line)

    def cut(self, rows: int, width: int) -> None:
        """Forget all but the last rows, and the last number of each column before them."""
        columns = [self.values[j : -rows * width : width] for j in range(width)]
        self.before = [
            next((value for value in reversed(column) if not isnan(value)), known)
            for column, known in zip(columns, self.before or [nan] * width, strict=True)
        ]
        del self.texts[:-rows], self.values[: -rows * width], self.lines[:-rows]


def read_all(
    table: Table, *, form: str | None = None, step: Step | None = None, fill: bool = False
) -> tuple[list[Series], Step]:
    """Read every series of a table.

    Args:
        table: its rows; those of a series may be anywhere in it, in the order of time.
        form: how times are written; found unless given.
        step: the step; the commonest of the first series unless given.
        fill: repeat the last number where one, or a whole row, is missing.

    Returns:
        The series in the order in which they begin, and the step.

    Raises:
        InputError: times do not rise, or rows or numbers are missing; the message names the line.
    """
    raw: dict[str, _Lines] = {}
    for line, name, time, numbers in table:
        raw.setdefault(name, _Lines()).add(line, time, numbers)
    all_ = []
    for name, lines in raw.items():
        series = _series(name, lines, table, form, step, fill, None)
        form, step = series.form, Step.of(series.times) if step is None else step
        all_.append(series)
    assert step is not None
    return all_, step


def stream(
    table: Table, *, form: str, step: Step, rows: int, ahead: int = 0, fill: bool = False
) -> Iterator[Series]:
    """Read the last rows of one series after the other; only those of one are in memory.

    Args:
        table: its rows, those of a series together.
        form: how times are written, if they can be read so.
        step: the step.
        rows: how many of each series' last rows are wanted.
        ahead: how many rows after these are wanted of the columns that are known ahead.
        fill: as in :func:`read_all`.

    Yields:
        Each series, of `rows` rows. One of fewer rows is the last one: it is that short, or its rows are
        not together, which is found out first.

    Raises:
        InputError: as in :func:`read_all`; or the rows of a series are not together.
    """
    width, seen = len(table.columns.values), set[str]()
    current: str | None = None
    lines = _Lines()
    short: Series | None = None  # either that, or the rest of its rows are elsewhere
    for line, name, time, numbers in table:
        if name != current:
            if current is not None and short is None:
                series = _series(current, lines, table, form, step, fill, rows, ahead)
                form = series.form
                if len(series) < rows:
                    short = series
                else:
                    yield series
            if name in seen:
                raise InputError(
                    f"{table.place(line)}: the rows of series {name!r} are not together; "
                    "sort the file by series and time"
                )
            seen.add(name)
            current, lines = name, _Lines()
        lines.add(line, time, numbers)
        # Rows that only hold what is known ahead may follow the last known row, however many they are.
        is_known = not ahead or not all(map(isnan, numbers[: len(table.columns.read)]))
        if is_known and len(lines.lines) >= 4 * rows:
            lines.cut(2 * rows, width)  # more than wanted: what is missing is filled from before
    assert current is not None
    if short is None:
        short = _series(current, lines, table, form, step, fill, rows, ahead)
    yield short


def _series(
    name: str,
    raw: _Lines,
    table: Table,
    form: str | None,
    step: Step | None,
    fill: bool,
    rows: int | None,
    ahead: int = 0,
) -> Series:
    """Make a series of rows: times that rise step by step, numbers that are all there."""
    source, place = table.source, table.place
    form = ROWS if table.counts else form
    try:
        times, form = parse_times(raw.texts, raw.lines, source, form, unit=table.unit)
    except InputError:
        if rows is None or form is None:  # a history may write its times in a form of its own
            raise
        times, found_form = parse_times(raw.texts, raw.lines, source, unit=table.unit)
        check_zone(found_form, form, f"{place(raw.lines[0])}: {raw.texts[0]!r}")
        form = found_form
    lines = np.array(raw.lines, dtype=np.int64)
    values = np.array(raw.values, dtype=np.float64).reshape(len(times), -1)
    of = f"series {name!r}, " if name else ""
    falls = np.flatnonzero(np.diff(times).astype(np.int64) <= 0)
    if len(falls):
        i = int(falls[0])
        hint = "" if name else ", or series-column is to name the column that tells series apart"
        if raw.texts[i] == raw.texts[i + 1] and "," not in table.columns.time:
            hint += "; where the time of the day has its own column, time-column takes both, as date,time"
        raise InputError(
            f"{place(lines[i + 1])}: {of}{raw.texts[i + 1]} does not come after "
            f"{raw.texts[i]} in {table.unit} {lines[i]}; rows are to be sorted by time{hint}"
        )
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    for i in (0, -1):
        if not MINYEAR < years[i] < MAXYEAR:
            raise InputError(
                f"{place(lines[i])}: {of}{raw.texts[i]} is in the first or the last year of the "
                "calendar, beyond which there is nothing to draw or to forecast"
            )
    if len(times) > 1:
        found = Step.of(times)
        if step is not None and str(found) != str(step):
            raise InputError(f"{source}: {of}the rows are {found} apart, not {step}")
        end = _end(values, table, of)
        follow, future = times[end - 1 :], values[end:, len(table.columns.read) :]
        future_lines = lines[end:]
        times, values, lines = _even(
            times[:end], values[:end], lines[:end], found, fill, form, raw.texts, place, of
        )
        if fill and raw.before:
            values = np.where(np.isnan(values), raw.before, values)
        if ahead:
            _check_future(found.count(follow), future[:ahead], future_lines, table, of)
    elif step is None:
        raise InputError(f"{source}: {of}one row is no series")
    else:
        future = np.empty((0, len(table.columns.future)))
    if rows is not None:
        times, values, lines = times[-rows:], values[-rows:], lines[-rows:]
    missing = np.argwhere(np.isnan(values))
    if len(missing):
        i, j = missing[0]
        how = (
            "there is none before to repeat"
            if fill
            else "train with missing=forward to repeat the last one"
        )
        raise InputError(f"{place(lines[i])}: {of}{table.columns.values[j]} is missing; {how}")
    static = table.static.get(name, ())
    return Series(name, times, values, lines, form, source, future[:ahead], static)


def _end(values: NDArray[np.float64], table: Table, of: str) -> int:
    """Return the number of rows before those in which only what is known ahead is there."""
    if not table.columns.future:
        return len(values)
    if not table.columns.read:
        raise InputError("future-columns: all columns are known ahead, there is none to forecast")
    there = np.flatnonzero(~np.isnan(values[:, : len(table.columns.read)]).all(1))
    if not len(there):
        raise InputError(f"{table.source}: {of}no row has a number of {listed(table.columns.read)}")
    return int(there[-1]) + 1


def _check_future(
    counts: NDArray[np.float64],
    future: NDArray[np.float64],
    lines: NDArray[np.int64],
    table: Table,
    of: str,
) -> None:
    """Refuse rows after the last known one that do not follow each other, or lack a number."""
    off = np.flatnonzero(counts != np.arange(len(counts)))
    if len(off) and off[0] <= len(future):
        raise InputError(
            f"{table.place(lines[off[0] - 1])}: {of}the rows of what is known ahead do not follow each "
            "other step by step"
        )
    missing = np.argwhere(np.isnan(future))
    if len(missing):
        i, j = missing[0]
        raise InputError(
            f"{table.place(lines[i])}: {of}{table.columns.future[j]} is missing, which is to be known over "
            "the whole forecast"
        )


def _even(
    times: Times,
    values: NDArray[np.float64],
    lines: NDArray[np.int64],
    step: Step,
    fill: bool,
    form: str,
    texts: Sequence[str],
    place: Callable[[int], str],
    of: str,
) -> tuple[Times, NDArray[np.float64], NDArray[np.int64]]:
    """Check that every row is one step after the row before; put in missing ones if `fill`."""
    counts = step.count(times)
    off = np.flatnonzero(counts != np.floor(counts))
    if len(off):
        i = int(off[0])
        hint = (
            "; times with a zone are read in UTC, where a day of local time may have 23 or 25 hours: "
            "without the zone they are read as local times"
            if "%z" in form
            else ""
        )
        raise InputError(
            f"{place(lines[i])}: {of}{texts[i]} is not a whole number of steps of {step} "
            f"after {texts[0]}{hint}"
        )
    counts = counts.astype(np.int64)
    gaps = np.flatnonzero(np.diff(counts) > 1)
    if len(gaps) and not fill:
        i = int(gaps[0])
        number = counts[i + 1] - counts[i] - 1
        rows = "a row is" if number == 1 else f"{number:,} rows are"
        others = f" ({len(gaps):,} such gaps in all)" if len(gaps) > 1 else ""
        raise InputError(
            f"{place(lines[i + 1])}: {of}{rows} missing between {texts[i]} and "
            f"{texts[i + 1]}, at steps of {step}{others}; train with missing=forward to repeat "
            "the last values"
        )
    if fill:
        again = np.repeat(np.arange(len(counts)), np.append(np.diff(counts), 1))
        times = step.after(times[0], np.arange(counts[-1] + 1))
        values, lines = values[again], lines[again]
        there = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
        values = np.take_along_axis(values, np.maximum.accumulate(there, axis=0), axis=0)
    return times, values, lines
