"""Rows of series, cut into parts by time, and what options leave to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from cello.tasks.errors import InputError
from cello.tasks.folder import Assets
from cello.tasks.forecast.memory import is_counted, rows_of
from cello.tasks.forecast.options import Options, words
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.table import COUNTED, Columns, Table
from cello.tasks.forecast.times import Step
from cello.tasks.forecast.windows import Scale, cut, too_short

SCALES = "scales.json"
LONGEST = 512
"""The longest window that is chosen by itself."""


@dataclass(frozen=True)
class Stretch:
    """Rows of series that forecasts are to be made of; what is before them may be looked at."""

    series: Sequence[Series]
    step: Step
    columns: Columns
    rows: Sequence[range]

    def __len__(self) -> int:
        return sum(map(len, self.rows))


class StepFacts(TypedDict):
    """The time from row to row; see :class:`Step`."""

    months: int
    microseconds: int
    month_end: bool


class Facts(TypedDict):
    """What a forecaster has to know again: columns, how times are written, the step, the calendar."""

    time: str
    series: str | None
    targets: list[str]
    inputs: list[str]
    form: str
    step: StepFacts
    cycles: list[str]


def facts_of(stretch: Stretch, targets: Sequence[str], named: Sequence[str]) -> dict[str, Any]:
    """Return what a forecaster has to know again, :class:`Facts`.

    Args:
        stretch: the training rows.
        targets: the columns that are forecast.
        named: the cycles of the calendar that are read.
    """
    columns = stretch.columns
    return {
        "time": columns.time,
        "series": columns.series,
        "targets": list(targets),
        "inputs": [column for column in columns.read if column not in targets],
        "form": stretch.series[0].form,
        "step": asdict(stretch.step),
        "cycles": list(named),
    }


def fingerprint(
    columns: Columns, parts: Sequence[Sequence[range]], series: Sequence[Series]
) -> str:
    """Return a hash of all rows, by which a run knows its data again."""
    digest = sha256(repr((columns, parts)).encode())
    for one in series:
        digest.update(one.name.encode() + one.times.tobytes() + one.values.tobytes())
    if columns.static:
        digest.update(repr([one.static for one in series]).encode())
    return digest.hexdigest()


def scales_of(stretch: Stretch, order: Sequence[int]) -> dict[str, Scale]:
    """Return the scale of each series, of its training rows.

    Args:
        stretch: the training rows.
        order: the columns, those known ahead last; a price or a holiday means the same in every series,
            so these have the scale of all series together.
    """
    parts = {one.name: one.values[rows.start : rows.stop, order] for one, rows in learnt(stretch)}
    scales = {name: Scale.of(part) for name, part in parts.items()}
    future = len(stretch.columns.future)
    if not future:
        return scales
    shared = Scale.of(np.concatenate([part[:, -future:] for part in parts.values()]))
    return {name: scale.ending(shared) for name, scale in scales.items()}


def written_scales(scales: dict[str, Scale]) -> Assets:
    """Return the file with the scale of each series."""
    lists = {name: [part.tolist() for part in scale] for name, scale in scales.items()}
    return {SCALES: json.dumps(lists, ensure_ascii=False)}


def read_scales(text: str, columns: int) -> dict[str, Scale]:
    """Read what :func:`written_scales` gave, of that many columns.

    Raises:
        InputError: it is not whole.
    """
    try:
        scales = {
            name: Scale(np.array(mean, np.float64), np.array(deviation, np.float64))
            for name, (mean, deviation) in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{SCALES}: not as it should be") from error
    if any(part.shape != (columns,) for scale in scales.values() for part in scale):
        raise InputError(f"{SCALES}: not as it should be")
    return scales


def open_table(source: Any, options: Options, columns: Columns | None = None) -> Table:
    """Open a table, a file or one in memory; one for a model has the columns of its training data.

    Raises:
        InputError: it cannot be read, or is no table.
    """
    if columns is not None:
        named, known, given = columns.named, columns.values, True
    else:
        named = {
            "time": options.time_column,
            "series": options.series_column,
            "values": words(options.columns),
            "future": words(options.future_columns),
            "static": words(options.static_columns),
        }
        known, given = (), options.time_column is not None
    if isinstance(source, str | Path):
        return Table.open(Path(source), **options.written, **named)
    if not given and is_counted(source):
        named["time"] = COUNTED
    name, rows = rows_of(source, known, named["time"])
    return Table((), name, rows=rows, **named)


def _horizon(step: Step, options: Options) -> int:
    season = options.season or step.season
    return options.horizon or (season if 1 < season <= LONGEST else 12)


def split(series: Sequence[Series], step: Step, options: Options) -> list[list[range]]:
    """Return the rows of the three parts of each series.

    Raises:
        InputError: a part of a series is empty.
    """
    counts = (options.train_rows, options.valid_rows, options.test_rows)
    fractions = (options.valid_fraction, options.test_fraction)
    horizon, parts = _horizon(step, options), []
    for one in series:
        ranges = cut(len(one), counts, fractions, horizon)
        if not all(ranges):
            needed = sum(
                count or least for count, least in zip(counts, (1, horizon, horizon), strict=True)
            )
            raise too_short(one, needed, "a split into training, validation and test rows")
        parts.append(ranges)
    return parts


def learnt(stretch: Stretch) -> Iterator[tuple[Series, range]]:
    """Return each series of a stretch with its rows."""
    return zip(stretch.series, stretch.rows, strict=True)


def completed(options: Options, stretch: Stretch, targets: Sequence[str]) -> Options:
    """Fill in what the options leave to the data.

    Raises:
        InputError: the training rows are too few for one window.
    """
    season = options.season or stretch.step.season
    horizon = _horizon(stretch.step, options)
    rows = max(map(len, stretch.rows))
    window = options.window
    if window is None:
        window = max(min(7 * season, LONGEST), 4 * horizon)
        window = max(min(window, rows // 4), min(season, rows // 2, LONGEST), 1)
    patch = options.patch
    if patch is None:  # whole parts of a season, seven in a window at least
        most = max(min(window // 7, horizon), 1)
        patch = max(size for size in range(1, most + 1) if season % size == 0)
        patch = max(patch, min(window // 64, horizon)) if season == 1 else patch
    if patch > window:
        raise InputError(f"patch: {patch} steps are more than the {window} of a window")
    if options.window is None:
        window -= window % patch
    windows = sum(max(len(part) - window - horizon + 1, 0) for part in stretch.rows)
    if not windows:
        longest = max(stretch.series, key=len)
        what = f"a window of {window} and a horizon of {horizon} steps among them"
        raise InputError(f"{longest.source}: {rows:,} training rows, too few for {what}")
    # Fewer passes over more windows: a thousand steps, four passes at least.
    epochs = options.epochs or min(max(1000 * options.batch_size // windows, 4), 100)
    mixed = options.mixed
    if mixed == "auto":
        mixed = "no" if set(targets) == set(stretch.columns.read) else "yes"
    return replace(
        options,
        season=season,
        horizon=horizon,
        window=window,
        patch=patch,
        mixed=mixed,
        epochs=epochs,
        patience=options.patience or max(epochs // 3, 3),
        time_column=stretch.columns.time,
    )  # fmt: skip
