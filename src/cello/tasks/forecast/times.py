"""Times: how they are written, and the step from one to the next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, datetime, timezone

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError

Times = NDArray[np.datetime64]
"""Times in microseconds, (T,)."""

DAY = np.timedelta64(1, "D").astype("timedelta64[us]")
UNITS = {
    "microsecond": 1, "second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6,
    "day": 86_400 * 10**6, "week": 7 * 86_400 * 10**6,
}  # fmt: skip
"""Microseconds."""
LONGEST_SEASON = 1_000_000
"""More steps than these are not taken for a season."""

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
ROWS = "row"
"""The form of numbers of rows, which stand for times where there are none: microseconds from 1970 on."""


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
        season, rest = divmod(cycle, self.microseconds)
        return season if rest == 0 and season <= LONGEST_SEASON else 1


def parse_times(
    texts: Sequence[str],
    lines: Sequence[int],
    source: str,
    form: str | None = None,
    *,
    unit: str = "line",
) -> tuple[Times, str]:
    """Read times, all of one form.

    A date such as 1/2/1981 may be the second of January or the first of February: the reading is
    taken under which the times rise in equal steps.

    Args:
        texts: the times.
        lines: the line of each one, for messages.
        source: the name of the file.
        form: as in ``datetime.strptime``, or :data:`ROWS`; found unless given.
        unit: what `lines` are the numbers of, for messages.

    Returns:
        The times, (T,), and their form.

    Raises:
        InputError: a time cannot be read, or in several ways.

    Example:
        >>> parse_times(["13/2/1981", "14/2/1981"], [2, 3], "data.csv")[1]
        '%d/%m/%Y'
    """
    if form == ROWS:
        return np.array([int(text) for text in texts]).astype("datetime64[us]"), form
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
        place = f"{source}, {unit} {lines[furthest]}: the time {texts[furthest]!r}"
        if not texts[furthest]:
            raise InputError(f"{source}, {unit} {lines[furthest]}: the time is missing")
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


def check_zone(form: str, known: str, place: str) -> None:
    """Refuse times with a zone for a model of times without one, and the other way round.

    Times with one are read in UTC: the same hours of the day would be others.

    Args:
        form: their form.
        known: the form of the times that the model learned from.
        place: where the first of them stands, and how it is written, for messages.

    Raises:
        InputError: one of the forms has a zone, the other has none.
    """
    if ("%z" in form) == ("%z" in known):
        return
    here, there = ("a zone", "none") if "%z" in form else ("no zone", "one")
    raise InputError(f"{place} says {here}, where the times the model learned from say {there}")


def write_times(times: Times, form: str) -> list[str]:
    """Write times in the form in which others were read.

    Raises:
        InputError: they lie beyond the year 9999.
    """
    if (times > np.datetime64(datetime.max)).any():
        raise InputError(f"the forecast goes beyond the year {MAXYEAR}")
    if form == ROWS:
        return [str(number) for number in times.astype(np.int64)]
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


def _commonest(values: NDArray[np.timedelta64]) -> int:
    found, counts = np.unique(values.astype(np.int64), return_counts=True)
    return int(found[np.argmax(counts)])
