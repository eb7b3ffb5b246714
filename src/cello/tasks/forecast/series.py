"""Time series from the rows of a table: times that rise step by step, numbers that are all there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError
from cello.tasks.forecast.table import Table
from cello.tasks.forecast.times import Step, Times, parse_times


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
    """

    name: str
    times: Times
    values: NDArray[np.float64]
    lines: NDArray[np.int64]
    form: str
    source: str

    @staticmethod
    def of(times: Times, values: NDArray[np.float64], name: str = "") -> Series:
        """Make a series of arrays, times (T,) and numbers (T, F) or (T,)."""
        values = np.asarray(values, np.float64)
        return Series(
            name,
            np.asarray(times, "datetime64[us]"),
            values[:, None] if values.ndim == 1 else values,
            np.arange(1, len(times) + 1),
            "%Y-%m-%dT%H:%M:%S",
            "history",
        )

    def __len__(self) -> int:
        return len(self.times)


@dataclass
class _Lines:
    """The rows of one series while they are read."""

    texts: list[str] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))

    def add(self, line: int, time: str, numbers: list[float]) -> None:
        self.texts.append(time)
        self.values.extend(numbers)
        self.lines.append(line)

    def cut(self, rows: int, width: int) -> None:
        """Forget all but the last rows."""
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
    table: Table, *, form: str, step: Step, rows: int, fill: bool = False
) -> Iterator[Series]:
    """Read the last rows of one series after the other; only those of one are in memory.

    Args:
        table: its rows, those of a series together.
        form: how times are written, if they can be read so.
        step: the step.
        rows: how many of each series' last rows are wanted.
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
                series = _series(current, lines, table, form, step, fill, rows)
                form = series.form
                if len(series) < rows:
                    short = series
                else:
                    yield series
            if name in seen:
                raise InputError(
                    f"{table.source}, line {line}: the rows of series {name!r} are not together; "
                    "sort the file by series and time"
                )
            seen.add(name)
            current, lines = name, _Lines()
        lines.add(line, time, numbers)
        if len(lines.lines) >= 4 * rows:
            lines.cut(2 * rows, width)  # more than wanted: what is missing is filled from before
    assert current is not None
    yield short if short is not None else _series(current, lines, table, form, step, fill, rows)


def _series(
    name: str,
    raw: _Lines,
    table: Table,
    form: str | None,
    step: Step | None,
    fill: bool,
    rows: int | None,
) -> Series:
    """Make a series of rows: times that rise step by step, numbers that are all there."""
    source = table.source
    try:
        times, form = parse_times(raw.texts, raw.lines, source, form)
    except InputError:
        if rows is None or form is None:  # a history may write its times in a form of its own
            raise
        times, form = parse_times(raw.texts, raw.lines, source)
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
            f"{source}, line {lines[i + 1]}: {of}{raw.texts[i + 1]} does not come after "
            f"{raw.texts[i]} in line {lines[i]}; rows are to be sorted by time{hint}"
        )
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    for i in (0, -1):
        if not MINYEAR < years[i] < MAXYEAR:
            raise InputError(
                f"{source}, line {lines[i]}: {of}{raw.texts[i]} is in the first or the last year of the "
                "calendar, beyond which there is nothing to draw or to forecast"
            )
    if len(times) > 1:
        found = Step.of(times)
        if step is not None and str(found) != str(step):
            raise InputError(f"{source}: {of}the rows are {found} apart, not {step}")
        times, values, lines = _even(times, values, lines, found, fill, raw.texts, source, of)
    elif step is None:
        raise InputError(f"{source}: {of}one row is no series")
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
        raise InputError(
            f"{source}, line {lines[i]}: {of}{table.columns.values[j]} is missing; {how}"
        )
    return Series(name, times, values, lines, form, source)


def _even(
    times: Times,
    values: NDArray[np.float64],
    lines: NDArray[np.int64],
    step: Step,
    fill: bool,
    texts: Sequence[str],
    source: str,
    of: str,
) -> tuple[Times, NDArray[np.float64], NDArray[np.int64]]:
    """Check that every row is one step after the row before; put in missing ones if `fill`."""
    counts = step.count(times)
    off = np.flatnonzero(counts != np.floor(counts))
    if len(off):
        i = int(off[0])
        raise InputError(
            f"{source}, line {lines[i]}: {of}{texts[i]} is not a whole number of steps of {step} "
            f"after {texts[0]}"
        )
    counts = counts.astype(np.int64)
    gaps = np.flatnonzero(np.diff(counts) > 1)
    if len(gaps) and not fill:
        i = int(gaps[0])
        number = counts[i + 1] - counts[i] - 1
        rows = "a row is" if number == 1 else f"{number:,} rows are"
        others = f" ({len(gaps):,} such gaps in all)" if len(gaps) > 1 else ""
        raise InputError(
            f"{source}, line {lines[i + 1]}: {of}{rows} missing between {texts[i]} and "
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
