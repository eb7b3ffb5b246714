"""What a forecast needs of a series: its window, and what is known ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cello.tasks.errors import InputError
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.table import Columns
from cello.tasks.forecast.times import Step, write_times
from cello.tasks.forecast.windows import too_short
from cello.tasks.tables import listed


@dataclass(frozen=True)
class History:
    """The series that a model can forecast.

    Args:
        columns: those of the model.
        step: the time from row to row.
        window: T.
        horizon: H.
    """

    columns: Columns
    step: Step
    window: int
    horizon: int

    def check(self, one: Series) -> Series:
        """Return a series, of which a forecast can be made; one of a table has been checked as it was read.

        Raises:
            InputError: it cannot.
        """
        if not isinstance(one, Series):
            raise InputError(
                f"history: a list with a {type(one).__name__}; expected a Series of cello.tasks.forecast "
                "in each place, or one table"
            )
        if len(one) < self.window:
            raise too_short(one, self.window, "a forecast")
        if one.values.shape[1:] != (len(self.columns.values),):
            names = ", ".join(self.columns.values)
            raise InputError(f"{one.source}: the model reads the columns {names}")
        name = f"{one.source}, {one.name}" if one.name else one.source
        if len(one.times) != len(one.values):
            raise InputError(f"{name}: {len(one.times)} times, but {len(one.values)} rows")
        if not np.isfinite(one.values).all():
            raise InputError(f"{name}: a number is not finite")
        if (np.diff(self.step.count(one.times)) != 1).any():
            raise InputError(f"{name}: the times do not rise by one step of {self.step} each")
        self._check_future(one, name)
        return one

    def _check_future(self, one: Series, name: str) -> None:
        """Refuse a series without the numbers that are known ahead, of all steps of the forecast."""
        H, names = self.horizon, self.columns.future
        if not names:
            return
        count = 0 if one.future is None else len(one.future)
        if count < H:
            last = write_times(one.times[-1:], one.form)[0]
            raise InputError(
                f"{name}: a forecast needs {listed(names)} in the {H:,} rows after {last}, and "
                f"{f'{count:,} of them are' if count else 'none of them is'} there; they are rows whose "
                "other numbers are empty"
            )
        if one.future is None or one.future.shape[1:] != (len(names),):
            raise InputError(f"{name}: future: not of the columns {listed(names)}")
        if not np.isfinite(one.future[:H]).all():
            raise InputError(f"{name}: future: a number is not finite")
