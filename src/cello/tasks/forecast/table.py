"""Tables of time series: which columns hold times, names of series, numbers.

A table is *wide*, one row for each time and a column for each quantity, or *long*: a column names the
series that a row belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
COUNTED = "row"
"""The column of times of a table that has none: the number of the row, from 0."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table: of times, of the names of series (if it is long), of numbers.

    Where date and time of day stand in two columns, `time` is both names with a comma between. The last
    ones of `values` are those of `future`, which are known ahead; `static` describe a series as a whole.
    """

    time: str
    series: str | None
    values: tuple[str, ...]
    future: tuple[str, ...] = field(default=(), repr=False)  # a fingerprint is made of the others
    static: tuple[str, ...] = field(default=(), repr=False)

    @property
    def named(self) -> dict[str, Any]:
        """What to tell a :class:`Table`, so that it has these columns."""
        names = ("time", "series", "values", "future", "static")
        return {name: getattr(self, name) for name in names}

    @property
    def read(self) -> tuple[str, ...]:
        """The columns of numbers of which only the past is known."""
        return self.values[: len(self.values) - len(self.future)]


class Table:
    """The rows of a CSV or TSV, or of a table in memory, with a column of times.

    Attributes:
        static: the texts of the static columns of each series of which a row was read.
        left_out: the columns that are not read, since they hold no numbers, each with a text of it.

    Args:
        lines: the lines of the file.
        source: its name, for messages.
        tabs: columns are parted by tabs rather than by commas.
        delimiter: what parts them instead of either.
        time: the column of times; by its name, or the first that holds no numbers, unless given. Two
            names, parted by a comma, are columns of dates and of times of the day. :data:`COUNTED`, where
            no column has that name, counts the rows of each series.
        series: the column with the names of series; none unless given.
        values: the columns of numbers; all of them unless given.
        future: those that are known ahead; they become the last ones.
        static: columns that describe a series.
        rows: the number and the fields of each row of a table in memory, in the place of lines.

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
        future: Sequence[str] = (),
        static: Sequence[str] = (),
        rows: Iterator[tuple[int, list[str]]] | None = None,
    ) -> None:
        self.source, self.unit = source, "line" if rows is None else "row"
        if rows is None:
            rows = csv_rows(lines, source, tabs=tabs, delimiter=delimiter)
        self._rows = rows
        _, header = next(self._rows, (0, []))
        if not header:
            raise InputError(f"{source}: the {'file' if self.unit == 'line' else 'table'} is empty")
        self.header = header
        self.counts = time == COUNTED and time not in header
        times = () if self.counts else parted(time, header)
        values = [*values, *(name for name in future if values and name not in values)]
        check_columns((*times, series, *values, *future, *static), header, source)
        head = list(islice(self._rows, LOOK))
        if not head:
            raise InputError(f"{source}: holds a header but no rows")
        self._rows = chain(head, self._rows)
        numeric = [_numeric([row[i] for _, row in head]) for i in range(len(header))]
        if time is None:
            times = self._find_times(numeric, [row for _, row in head], series)
            time = ",".join(times)
        self.left_out: dict[str, str] = {}
        if not values:
            known = (*times, series, *static, *future)
            self.left_out = {
                column: next((row[i] for _, row in head if _number(row[i]) is None), "")
                for i, column in enumerate(header)
                if not numeric[i] and column not in known
            }
            values = [
                column
                for column, holds in zip(header, numeric, strict=True)
                if column in future or (holds and column not in (*times, series, *static))
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
        values = [*(name for name in values if name not in future), *future]
        meanings = [*times, *values, *([] if series is None else [series]), *static]
        if len({*times}) < len(times) or len({*meanings}) < len(meanings):
            raise InputError(
                f"{source}: one column is given two meanings (time {time!r}, series {series!r}, "
                f"numbers {', '.join(values)}{', static ' if static else ''}{', '.join(static)})"
            )
        self._times = [header.index(column) for column in times]
        self.columns = Columns(time or COUNTED, series, tuple(values), tuple(future), tuple(static))
        self.static: dict[str, tuple[str, ...]] = {}

    def place(self, line: int) -> str:
        """Say where a row stands, for messages."""
        return f"{self.source}, {self.unit} {line}"

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
        fixed = [self.header.index(column) for column in self.columns.static]
        counts: dict[str, int] = {}
        for line, row in self._rows:
            name = "" if series is None else row[series].strip()
            if series is not None and name.lower() in EMPTY:
                raise InputError(
                    f"{self.place(line)}: {self.header[series]}, the name of the series, is missing"
                )
            numbers = []
            for i in places:
                number = _number(row[i])
                if number is None:
                    which = " that float32 holds" if _is_float(row[i]) else ""
                    raise InputError(
                        f"{self.place(line)}: {self.header[i]} is {row[i]!r}, not a number{which}"
                    )
                numbers.append(number)
            texts = tuple(row[i].strip() for i in fixed)
            known = self.static.setdefault(name, texts)
            if texts != known:
                column, here, before = next(
                    found
                    for found in zip(self.columns.static, texts, known, strict=True)
                    if found[1] != found[2]
                )
                raise InputError(
                    f"{self.place(line)}: the static column {column} is {here!r}, but {before!r} in an "
                    f"earlier row of {f'series {name!r}' if name else 'the series'}"
                )
            time = " ".join(row[i].strip() for i in self._times)
            if self.counts:
                counts[name] = counts.get(name, -1) + 1
                time = str(counts[name])
            yield line, name, time, numbers

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
        index = "" if self.unit == "line" else ", or may be the index of a DataFrame"
        raise InputError(
            f"{self.source}: no column of times found among {listed(self.header)}. If one of them holds "
            f"times, time-column names it (numbers too, as 2020 or 20200131){index}; if none does, "
            f"time-column {COUNTED} counts the rows, which are then to be in the order of time, at equal "
            "steps"
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


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _numeric(texts: Sequence[str]) -> bool:
    """Say whether a column holds numbers, by its first field that is not empty."""
    there = (text for text in texts if text.strip().lower() not in EMPTY)
    first = next(there, None)
    return first is not None and _number(first) is not None
