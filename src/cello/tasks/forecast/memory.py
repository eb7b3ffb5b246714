"""Tables in memory as rows of texts, so that they are read and checked as files are.

No package of tables is imported: what a table can do is asked of the object itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from cello.tasks.errors import InputError
from cello.tasks.memory import check_lengths

Rows = Iterator[tuple[int, list[str]]]


def rows_of(data: Any, columns: tuple[str, ...] = (), time: str | None = None) -> tuple[str, Rows]:
    """Return the name of a table in memory, for messages, and its rows, of which the first is the header.

    Args:
        data: a DataFrame of pandas or polars, a Series of pandas, a dictionary with a list for each
            column, or an array (T,) or (T, F).
        columns: the names of the columns of numbers of an array, and of a Series that has no name.
        time: the name of the column of times, which the index of pandas may stand for.

    Raises:
        InputError: it is none of these.
    """
    name = type(data).__name__
    if isinstance(data, np.ndarray):
        header, values = _array(data, columns)
    elif isinstance(data, Mapping):
        name, header, values = "data", [str(key) for key in data], list(data.values())
    elif hasattr(data, "index") and hasattr(data, "to_numpy"):
        header, values = _pandas(data, columns, time)
    elif hasattr(data, "columns") and hasattr(data, "get_column"):
        header, values = list(data.columns), [data.get_column(column) for column in data.columns]
    else:
        raise InputError(
            f"data: {name} is not a path, a DataFrame, a Series, an array or a dictionary of columns"
        )
    texts = [_texts(column) for column in values]
    check_lengths(name, header, texts)
    rows: Iterable[tuple[str, ...]] = zip(*texts, strict=True)
    return name, chain([(0, header)], ((i, list(row)) for i, row in enumerate(rows)))


def is_table(data: Any) -> bool:
    """Return whether data is a table in memory, of which :func:`rows_of` gives the rows."""
    kinds = (np.ndarray, Mapping)
    return isinstance(data, kinds) or hasattr(data, "to_numpy") or hasattr(data, "columns")


def is_counted(data: Any) -> bool:
    """Return whether a table in memory cannot have times: an array, or pandas with a plain index alone.

    Example:
        >>> is_counted(np.zeros(3)), is_counted({"time": ["2020"], "x": [1.0]})
        (True, False)
    """
    if isinstance(data, np.ndarray):
        return True
    is_column = hasattr(data, "index") and not hasattr(data, "columns")
    return is_column and type(data.index).__name__ == "RangeIndex"


def _array(data: Any, columns: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    if data.ndim not in (1, 2) or data.dtype.kind not in "fiub":
        raise InputError(
            f"data: an array of {data.dtype} and shape {data.shape}; expected numbers, (T,) or (T, F)"
        )
    parts = list(data[:, None].T if data.ndim == 1 else data.T)
    named = list(columns) or (["value"] if data.ndim == 1 else [f"x{i}" for i in range(len(parts))])
    if len(parts) != len(named):
        raise InputError(
            f"data: an array of {len(parts)} columns, where the model reads {', '.join(columns)}"
        )
    return named, parts


def _pandas(data: Any, columns: tuple[str, ...], time: str | None) -> tuple[list[str], list[Any]]:
    if not hasattr(data, "columns"):
        given = data.name if data.name is not None else columns[0] if len(columns) == 1 else "value"
        data = data.to_frame(str(given))
    header = [str(column) for column in data.columns]
    values = [data.iloc[:, i] for i in range(len(header))]
    if type(data.index).__name__ != "RangeIndex":
        # A plain index numbers the rows; any other one holds times, or names of series and times.
        for i in reversed(range(data.index.nlevels)):
            level = data.index.get_level_values(i)
            is_time = type(level).__name__ in ("DatetimeIndex", "PeriodIndex")
            if not is_time and level.name is None:
                continue
            wanted = time if is_time and time not in (None, *header) else None
            known = str(level.name if level.name is not None else "time")
            header.insert(0, wanted or known)
            values.insert(0, level)
    return header, values


def _texts(column: Any) -> list[str]:
    """Return the values of a column as they would stand in a file; a missing one is empty."""
    if str(getattr(column, "dtype", "")).startswith("period"):
        column = (getattr(column, "dt", None) or column).to_timestamp()
    kind = str(getattr(column, "dtype", ""))
    if kind.lower().startswith("datetime"):
        zone = getattr(getattr(column, "dtype", None), "tz", None)
        if zone is not None:
            column = (getattr(column, "dt", None) or column).tz_convert("UTC")
            column = getattr(column, "array", column)
            column = np.asarray(column.tz_localize(None))
        times = np.asarray(column).astype("datetime64[us]")
        there = times[~np.isnat(times)]
        units = ("D", "m", "s", "us")
        unit = next(u for u in units if (there.astype(f"datetime64[{u}]") == there).all())
        texts: list[str] = times.astype(f"datetime64[{unit}]").astype(str).tolist()
        mark = "Z" if zone is not None and unit != "D" else ""
        return ["" if text == "NaT" else text + mark for text in texts]
    if hasattr(column, "to_list"):
        column = column.to_list()
    elif hasattr(column, "tolist"):
        column = column.tolist()
    return [_text(value) for value in column]


def _text(value: Any) -> str:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else repr(float(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
