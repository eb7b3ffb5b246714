"""What a forecaster's training can be told. Nothing here needs torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cello.tasks.errors import InputError
from cello.tasks.options import (
    DATA,
    FileOptions,
    MemberOptions,
    RecurrentOptions,
    cell_option,
    option,
)

LOSSES = ("mse", "mae")
NORMALIZATIONS = ("none", "last", "window")
MISSING = ("error", "forward")


@dataclass(frozen=True, kw_only=True)
class Options(RecurrentOptions, MemberOptions, FileOptions):
    """Everything a forecaster's training can be told; each field is an option of ``cello train``.

    ``None`` means: by the data; the model folder has what was chosen.

    Raises:
        InputError: a value is out of range, or a name is not known.

    Example:
        >>> Options(horizon=24, levels="0.5,0.9").quantiles
        [0.05, 0.25, 0.75, 0.95]
    """

    purpose: ClassVar[str] = "Train a forecaster of time series."
    sources: ClassVar[str] = (
        "A .csv or .tsv file (.gz too) with a column of times: one row for each time, or one row for "
        "each series and time."
    )

    others: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "time_column", "time_format", "series_column", "columns", "target", "future_columns",
            "static_columns", "missing", "horizon", "window", "season", "train_rows", "valid_rows",
            "test_rows", "valid_fraction", "test_fraction",
        ),
        DATA,
    )  # fmt: skip

    time_column: str | None = option(
        None,
        "Column of times; or two, of dates and of times of the day: date,time; or row: none, count rows.",
        shown="date, time, ..., or the first that holds no numbers",
    )
    time_format: str | None = option(
        None, "How times are written, as in strptime: %d.%m.%Y %H:%M.", shown="found"
    )
    series_column: str | None = option(
        None, "Column that names the series of a row, where there are several.", shown="none"
    )
    columns: str | None = option(
        None, "Columns of numbers to read, separated by commas.", shown="all"
    )
    target: str | None = option(
        None, "Columns to forecast, separated by commas.", shown="all that are read"
    )
    future_columns: str | None = option(
        None,
        "Columns whose values are known over the horizon (prices, holidays), separated by commas.",
        shown="none",
    )
    static_columns: str | None = option(
        None,
        "Columns of texts or numbers that describe a series, separated by commas.",
        shown="none",
    )
    missing: str = option(
        "error", "What a missing number or row is: an error, or the last one.", choices=MISSING
    )
    horizon: int | None = option(
        None, "Steps to forecast.", low=1, high=100_000, shown="one season, or 12"
    )
    window: int | None = option(
        None, "Steps that the network reads.", low=1, high=1_000_000, shown="by the data"
    )
    season: int | None = option(
        None,
        "Steps after which the seasonal naive forecast repeats.",
        low=1,
        high=1_000_000,
        shown="a day, a week or a year",
    )
    train_rows: int | None = option(
        None,
        "Training rows of each series; validation and test follow them.",
        low=1,
        high=10**12,
        shown="all before validation",
    )
    valid_rows: int | None = option(
        None, "Rows for validation.", low=1, high=10**12, shown="by valid-fraction"
    )
    test_rows: int | None = option(
        None, "Rows of the test set.", low=1, high=10**12, shown="by test-fraction"
    )
    valid_fraction: float = option(
        0.1, "Share of the rows for validation, before the test rows.", low=0.01, high=0.5
    )
    test_fraction: float = option(
        0.2, "Fraction of the rows for the test set, the last ones.", low=0.01, high=0.5
    )
    # Model.
    patch: int | None = option(
        None, "Steps that go into the layers at a time.", low=1, high=100_000, shown="by the season"
    )
    mixed: str = option(
        "auto",
        "Read all columns together, not each on its own; auto: where some are not forecast.",
        choices=("auto", "yes", "no"),
    )
    normalize: str = option(
        "window",
        "What is taken out of each window: its last number, its deviation too (window), or none.",
        choices=NORMALIZATIONS,
    )
    linear: bool = option(True, "Add a linear map from the window to the forecast.")
    calendar: bool = option(True, "Read the time of the day, the week and the year.")
    loss: str = option(
        "mse", "What the forecast minimises: mse makes it a mean, mae a median.", choices=LOSSES
    )
    levels: str = option("0.8,0.95", "Levels of the prediction intervals.")
    # Other defaults.
    cell: Any = cell_option("gru")  # noqa: RUF009  # it returns a field
    bidirectional: bool = option(False, "Read the window in both directions.")
    dropout: float = option(
        0.2, "Dropout between and behind the recurrent layers.", low=0.0, high=0.99
    )
    learning_rate: float = option(1e-3, "Peak learning rate of Adam.", low=1e-8, high=10.0)
    epochs: int | None = option(  # type: ignore[assignment]  # open until the data is known
        None, "Maximum number of epochs.", low=1, high=100_000, shown="by its size"
    )
    patience: int | None = option(  # type: ignore[assignment]
        None,
        "Stop after that many epochs without a better validation score.",
        low=1,
        high=100_000,
        shown="a third of the epochs",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.intervals
        for flag in ("target", "future_columns", "static_columns"):
            names = words(getattr(self, flag))
            if len(set(names)) < len(names):
                raise InputError(
                    f"{flag.replace('_', '-')}: {', '.join(names)} names a column twice"
                )
        both = set(words(self.target)) & set(words(self.future_columns))
        if both:
            raise InputError(
                f"target, future-columns: {min(both)!r} is in both; what is known ahead is not forecast"
            )
        if self.static_columns is not None and self.series_column is None:
            raise InputError(
                "static-columns: they tell series apart; series-column is to name the column of the series"
            )
        if self.stream:
            raise InputError(
                "stream: a forecaster keeps the rows of its data in memory, once; its windows are "
                "cut when they are needed"
            )

    @property
    def intervals(self) -> list[float]:
        """The levels of the prediction intervals, rising."""
        try:
            levels = sorted({float(level) for level in words(self.levels)})
        except ValueError:
            levels = [0.0]
        if not all(0 < level < 1 for level in levels):
            raise InputError(f"levels: {self.levels!r} is not a list as 0.8,0.95, between 0 and 1")
        return levels

    @property
    def quantiles(self) -> list[float]:
        """The quantiles that bound the intervals, rising."""
        levels = self.intervals
        bounds = [(1 - level) / 2 for level in levels] + [(1 + level) / 2 for level in levels]
        return sorted(round(bound, 12) for bound in bounds)


def words(text: str | None) -> list[str]:
    """Return what stands between commas."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]
