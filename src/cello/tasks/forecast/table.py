"""Tables of time series: which columns hold times, names of series, numbers.

A table is *wide*, one row for each time and a column for each quantity, or *long*: a column names the
series that a row belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from cello.tasks.errors import InputError
from cello.tasks.tables import UTF8, check_columns, csv_rows, listed, open_text, suffix, undivided

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
