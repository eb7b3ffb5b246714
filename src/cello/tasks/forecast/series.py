"""Time series from tables: columns, times, the step between them, gaps.

A table is *wide*, one row for each time and a column for each quantity, or *long*: a column names the
series that a row belongs to.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, datetime, timezone
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError
from cello.tasks.tables import (
    UTF8,
    check_columns,
    csv_rows,
    listed,
    open_text,
    suffix,
    undivided,
)

Times = NDArray[np.datetime64]
"""Times in microseconds, (T,)."""

DAY = np.timedelta64(1, "D").astype("timedelta64[us]")
UNITS = {
    "microsecond": 1, "second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6,
    "day": 86_400 * 10**6, "week": 7 * 86_400 * 10**6,
}  # fmt: skip
"""Microseconds."""
TIME_NAMES = (
    "date", "time", "datetime", "timestamp", "ds", "day", "week", "month", "quarter", "year",
)  # fmt: skip
"""What a column of times is usually called, in lower case."""
HOUR_NAMES = ("hour", "hours", "hr")
"""What a column of whole hours is usually called, in lower case."""
EMPTY = ("", "na", "n/a", "nan", "null", "none", "?")
"""How a table says that a number is missing, in lower case."""
LOOK = 1000
"""Rows that are read before it is decided which columns hold numbers."""

_DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y",
    "%d-%b-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%Y%m%d",
    "%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%B %Y", "%b-%Y", "%Y",
)  # fmt: skip
_CLOCKS = (
    "",
    " %H",
    "T%H",
    " %H:%M",
    " %H:%M:%S",
    " %H:%M:%S.%f",
    " %I:%M %p",
    " %I:%M:%S %p",
    "T%H:%M",
    "T%H:%M:%S",
    "T%H:%M:%S.%f",
)
FORMATS = tuple(
    date + clock + zone
    for date in _DATES
    for clock in _CLOCKS
    for zone in (("", "%z") if clock else ("",))
    if not clock or "d" in date
)
"""Forms of times that are known, in the letters of ``datetime.strptime``."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table: of times, of the names of series (if it is long), of numbers.

    Where date and time of day stand in two columns, `time` is both names with a comma between.
    """

    time: str
    series: str | None
    values: tuple[str, ...]

    @property
    def named(self) -> dict[str, Any]:
        """What to tell a :class:`Table`, so that it has these columns."""
        return {"time": self.time, "series": self.series, "values": self.values}


@dataclass(frozen=True)
class Step:
    """The time from one row to the next: a number of months, or of microseconds.

    `month_end` says that the rows are the last days of their months, whatever their number.
    """

    months: int = 0
    microseconds: int = 0
    month_end: bool = False

    @property
    def is_positive(self) -> bool:
        """Whether it is a time that goes by, of one kind and within the calendar."""
        months, days = self.months, self.microseconds / UNITS["day"]
        return (0 < months < 12 * MAXYEAR and days == 0) or (
            0 < days < 366 * MAXYEAR and months == 0
        )

    @staticmethod
    def of(times: Times) -> Step:
        """Find the step that occurs most often.

        Args:
            times: rising times, (T,), two at least.
        """
        between = np.diff(times)
        if np.median(between) >= 28 * DAY:
            months = times.astype("datetime64[M]")
            ends = bool(np.all((times + DAY).astype("datetime64[M]") > months))
            if ends or 2 * np.sum(times - months == times[0] - months[0]) > len(times):
                return Step(months=_commonest(np.diff(months)), month_end=ends)
        return Step(microseconds=_commonest(between))

    def count(self, times: Times) -> NDArray[np.float64]:
        """Return how many steps each time is after the first, whole numbers if all is well."""
        if not self.months:
            steps: NDArray[np.float64] = (times - times[0]).astype(np.int64) / self.microseconds
            return steps
        months = times.astype("datetime64[M]")
        steps = (months - months[0]).astype(np.int64) / self.months
        rest = times - months
        last = (times + DAY).astype("datetime64[M]") > months
        return np.where(last if self.month_end else rest == rest[0], steps, np.nan)

    def after(self, last: np.datetime64, steps: NDArray[np.int64]) -> Times:
        """Return the times that lie so many steps after another one."""
        if not self.months:
            return np.asarray(last + steps * np.timedelta64(self.microseconds, "us"))
        month = last.astype("datetime64[M]")
        months = month + steps * self.months
        first = months.astype("datetime64[us]")
        next_ = (months + 1).astype("datetime64[us]")
        within = last - month.astype("datetime64[us]")
        if self.month_end:
            return np.asarray(next_ - DAY + within % DAY)
        return np.asarray(np.minimum(first + within, next_ - DAY + within % DAY))

    def __str__(self) -> str:
        units = {"month": 1, "year": 12} if self.months else UNITS
        number = self.months or self.microseconds
        unit = [name for name, size in units.items() if number % size == 0][-1]
        count = number // units[unit]
        return f"{count:,} {unit}{'' if count == 1 else 's'}"

    @property
    def span(self) -> np.timedelta64:
        """The length of the step; months are a twelfth of 365 days."""
        return np.timedelta64(self.microseconds + 365 * self.months * UNITS["day"] // 12, "us")

    @property
    def season(self) -> int:
        """The steps after which such series usually repeat: a day, a week or a year; else 1."""
        if self.months:
            return 12 // self.months if 12 % self.months == 0 else 1
        day, week = UNITS["day"], UNITS["week"]
        if self.microseconds == week:
            return 52
        cycle = day if self.microseconds < day else week
        return cycle // self.microseconds if cycle % self.microseconds == 0 else 1


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


class Table:
    """The rows of a CSV or TSV with a column of times.

    Args:
        lines: the lines of the file.
        source: its name, for messages.
        tabs: columns are parted by tabs rather than by commas.
        delimiter: what parts them instead of either.
        time: the column of times; by its name, or the first that holds no numbers, unless given. Two
            names, parted by a comma, are columns of dates and of times of the day.
        series: the column with the names of series; none unless given.
        values: the columns of numbers; all of them unless given.

    Raises:
        InputError: the file cannot be understood; the message names the line.
    """

    def __init__(
        self,
        lines: Iterable[str],
        source: str,
        *,
        tabs: bool = False,
        delimiter: str | None = None,
        time: str | None = None,
        series: str | None = None,
        values: Sequence[str] = (),
    ) -> None:
        self.source = source
        self._rows = csv_rows(lines, source, tabs=tabs, delimiter=delimiter)
        _, header = next(self._rows, (0, []))
        if not header:
            raise InputError(f"{source}: the file is empty")
        self.header = header
        times = parted(time, header)
        check_columns((*times, series, *values), header, source)
        head = list(islice(self._rows, LOOK))
        if not head:
            raise InputError(f"{source}: holds a header but no rows")
        self._rows = chain(head, self._rows)
        numeric = [_numeric([row[i] for _, row in head]) for i in range(len(header))]
        if time is None:
            times = self._find_times(numeric, [row for _, row in head], series)
            time = ",".join(times)
        if not values:
            values = [
                column
                for column, holds in zip(header, numeric, strict=True)
                if holds and column not in (*times, series)
            ]
            if not values:
                line, row = head[0]
                others = [c for c in zip(header, row, strict=True) if c[0] not in (*times, series)]
                found = listed(f"{name} is {text!r}" for name, text in others)
                seen = f"; in line {line} {found}" if others else ""
                advice = undivided(header)
                raise InputError(f"{source}: no column of numbers beside {time!r}{seen}{advice}")
            if len(set(values)) < len(values):
                raise InputError(f"{source}: two columns of numbers have the same name")
        meanings = [*times, *values, *([] if series is None else [series])]
        if len({*times}) < len(times) or len({*meanings}) < len(meanings):
            raise InputError(
                f"{source}: one column is given two meanings (time {time!r}, series {series!r}, "
                f"numbers {', '.join(values)})"
            )
        self._times = [header.index(column) for column in times]
        self.columns = Columns(time, series, tuple(values))

    @staticmethod
    def open(path: Path, *, encoding: str = UTF8, **how: Any) -> Table:
        """Open a file: .tsv has tabs, anything else commas, unless `delimiter` is given; .gz too.

        Args:
            path: the file.
            encoding: how its characters are written.
            **how: further arguments of :class:`Table`.
        """
        if not path.is_file():
            raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
        return Table(open_text(path, encoding), str(path), tabs=suffix(path) == ".tsv", **how)

    def __iter__(self) -> Iterator[tuple[int, str, str, list[float]]]:
        """Yield each row's line, series, time and numbers (NaN where one is missing)."""
        series = None if self.columns.series is None else self.header.index(self.columns.series)
        places = [self.header.index(column) for column in self.columns.values]
        for line, row in self._rows:
            numbers = []
            for i in places:
                number = _number(row[i])
                if number is None:
                    raise InputError(
                        f"{self.source}, line {line}: {self.header[i]} is {row[i]!r}, not a number"
                    )
                numbers.append(number)
            time = " ".join(row[i].strip() for i in self._times)
            yield line, "" if series is None else row[series].strip(), time, numbers

    def _find_times(
        self, numeric: Sequence[bool], rows: Sequence[Sequence[str]], series: str | None
    ) -> tuple[str, ...]:
        """Return the column of times; and that of the times of the day, where dates alone stand still."""
        known = [column for column in self.header if column.strip().lower() in TIME_NAMES]
        other = [c for c, holds in zip(self.header, numeric, strict=True) if not holds]
        found = [c for c in (*known, *other) if self.header.count(c) == 1 and c != series]
        texts = {c: [row[self.header.index(c)].strip() for row in rows] for c in self.header}
        clocks = [
            c for c in self.header if c in (*found, *other) or c.strip().lower() in HOUR_NAMES
        ]
        clocks = [c for c in clocks if self.header.count(c) == 1 and _are_clocks(c, texts[c])]
        for column in (*(c for c in found if c not in clocks), *found):
            if clocks and column not in clocks and _CLOCK.search(texts[column][0]) is None:
                names = texts[series] if series in texts else [""] * len(rows)
                last: dict[str, str] = {}
                for name, date in zip(names, texts[column], strict=True):
                    if last.get(name) == date:
                        return column, clocks[0]
                    last[name] = date
            return (column,)
        raise InputError(
            f"{self.source}: no column of times found; time-column names it, of: "
            f"{', '.join(self.header)}"
        )


def parted(time: str | None, header: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns that `time` stands for: one, or two with a comma between.

    Example:
        >>> parted("day, hour", ["day", "hour", "x"]), parted("a,b", ["a,b", "x"])
        (('day', 'hour'), ('a,b',))
    """
    if time is None:
        return ()
    if time in header:
        return (time,)
    return tuple(name.strip() for name in time.split(",", 1))


_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?( ?[AaPp][Mm])?([+-]\d\d:?\d\d|Z)?$")


def _are_clocks(name: str, texts: Sequence[str]) -> bool:
    """Say whether a column holds times of the day and no dates: 9:30, or whole hours by its name."""
    there = [text for text in texts if text.lower() not in EMPTY]
    if name.strip().lower() in HOUR_NAMES and all(text.isdecimal() for text in there):
        return all(int(text) < 24 for text in there)
    return bool(there) and all(_CLOCK.match(text) for text in there)


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


def parse_times(
    texts: Sequence[str], lines: Sequence[int], source: str, form: str | None = None
) -> tuple[Times, str]:
    """Read times, all of one form.

    A date such as 1/2/1981 may be the second of January or the first of February: the reading is
    taken under which the times rise in equal steps.

    Args:
        texts: the times.
        lines: the line of each one, for messages.
        source: the name of the file.
        form: as in ``datetime.strptime``; found unless given.

    Returns:
        The times, (T,), and their form.

    Raises:
        InputError: a time cannot be read, or in several ways.

    Example:
        >>> parse_times(["13/2/1981", "14/2/1981"], [2, 3], "data.csv")[1]
        '%d/%m/%Y'
    """
    read: dict[str, list[datetime]] = {}
    furthest, best = 0, ""
    for one in FORMATS if form is None else (form,):
        times: list[datetime] = []
        try:
            for text in texts:
                times.append(_without_zone(datetime.strptime(text, one)))
        except (ValueError, OverflowError):  # there may be no such time in UTC
            if len(times) > furthest:
                furthest, best = len(times), one
            continue
        read[one] = times
    if not read:
        place = f"{source}, line {lines[furthest]}: the time {texts[furthest]!r}"
        if form is None and not best:
            raise InputError(
                f"{place} is not of a form that is known; time-format says how to read it, "
                "for instance %d.%m.%Y"
            )
        raise InputError(f"{place} is not of the form {form or best}")
    arrays = {one: np.array(times, dtype="datetime64[us]") for one, times in read.items()}
    if len(arrays) > 1:  # of several readings the even one
        kinds = {one: _unevenness(times) for one, times in arrays.items()}
        least = min(kinds.values())
        arrays = {one: times for one, times in arrays.items() if kinds[one] == least}
        if len(arrays) > 1 and len({times.tobytes() for times in arrays.values()}) > 1:
            raise InputError(
                f"{source}: times such as {texts[-1]!r} can be read as {' or as '.join(arrays)}; "
                "time-format says which"
            )
    one = next(iter(arrays))
    return arrays[one], one


def write_times(times: Times, form: str) -> list[str]:
    """Write times in the form in which others were read.

    Raises:
        InputError: they lie beyond the year 9999.
    """
    if (times > np.datetime64(datetime.max)).any():
        raise InputError(f"the forecast goes beyond the year {MAXYEAR}")
    moments: list[datetime] = times.astype("datetime64[us]").tolist()
    if "%z" in form:
        moments = [moment.replace(tzinfo=timezone.utc) for moment in moments]
    return [moment.strftime(form) for moment in moments]


def split_time(text: str) -> tuple[str, str]:
    """Part a time that was read from two columns into what stands in them.

    Example:
        >>> split_time("1 Jan 2020 13:00"), split_time("2020-01-01 1:00 PM")
        (('1 Jan 2020', '13:00'), ('2020-01-01', '1:00 PM'))
    """
    found = re.fullmatch(r"(.*?) (\d{1,2}(?::\S+)?(?: [AaPp][Mm]\S*)?)", text)
    return (found[1], found[2]) if found else (text, "")


def write_number(number: float, resolution: float) -> str:
    """Write a number with the digits that it has: all down to a difference, and nine at least.

    Nine digits are what a float32 needs to be read again as the same one.

    Args:
        number: the number.
        resolution: the least difference that counts, more than zero.

    Example:
        >>> write_number(1e9 / 3, 1.0), write_number(1e9 + 1 / 3, 1e-6), write_number(1e9, 1e-6)
        ('333333333', '1000000000.333333', '1000000000')
        >>> write_number(1e-9 / 3, 1e-16)
        '3.33333333e-10'
    """
    digits = 9
    if number:
        places = np.floor(np.log10([abs(number), resolution]))
        digits = int(np.clip(places[0] - places[1] + 1, 9, 17))
    return repr(float(f"{number:.{digits}g}")).removesuffix(".0")


def _without_zone(time: datetime) -> datetime:
    """The time in UTC, of one that says its zone."""
    return time if time.tzinfo is None else time.astimezone(timezone.utc).replace(tzinfo=None)


def _unevenness(times: Times) -> float:
    """How many times are not one step after the time before; more than any where they fall."""
    if len(times) < 2:
        return 0.0
    if (np.diff(times).astype(np.int64) <= 0).any():
        return float("inf")
    steps = Step.of(times).count(times)
    return float((np.diff(steps) != 1).sum())


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


def _number(text: str) -> float | None:
    """Read a number: NaN where it is missing, ``None`` where the text is none, or none of float32."""
    text = text.strip()
    if text.lower() in EMPTY:
        return float("nan")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) <= float(np.finfo(np.float32).max) and "_" not in text else None


def _numeric(texts: Sequence[str]) -> bool:
    """Say whether a column holds numbers, by its first field that is not empty."""
    there = (text for text in texts if text.strip().lower() not in EMPTY)
    first = next(there, None)
    return first is not None and _number(first) is not None


def _commonest(values: NDArray[np.timedelta64]) -> int:
    found, counts = np.unique(values.astype(np.int64), return_counts=True)
    return int(found[np.argmax(counts)])
