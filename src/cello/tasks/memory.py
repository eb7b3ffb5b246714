"""Data in memory: tables, which are DataFrames and their like, and what is in their cells.

No package of tables is imported: what a table can do is asked of the object itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from cello.tasks.errors import InputError
from cello.tasks.tables import check_columns, listed

PARTS = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}
"""What the parts of a data set may be called, and what they are here."""


def is_name(source: Any) -> bool:
    """Return whether data is given by its name or path, not in memory."""
    return isinstance(source, str | Path)


def parts_of(source: Any) -> dict[str, Any]:
    """Return the parts of a data set, ``{"train": ..., "test": ...}``; other data is the part ``train``.

    Raises:
        InputError: there is no part for training, or one is there twice.
    """
    known = isinstance(source, Mapping) and {*source} & {"train", "validation"}
    if not known or not {*source} <= PARTS.keys():
        return {"train": source}
    if "train" not in source:
        raise InputError(f"data: no part 'train'; there are: {listed(source)}")
    if {"valid", "validation"} <= {*source}:
        raise InputError("data: 'valid' and 'validation' are one part; give one of them")
    return {PARTS[name]: part for name, part in source.items()}


def names_of(table: Any) -> list[str] | None:
    """Return the names of a table's columns, or ``None`` if an object is no table.

    A table is a DataFrame of pandas or polars, a table of pyarrow, a data set of Hugging Face, or a
    dictionary with a list for each column.
    """
    keys = _keys(table)
    return None if keys is None else [str(key) for key in keys]


def _keys(table: Any) -> list[Any] | None:
    if isinstance(table, Mapping):
        sized = all(hasattr(one, "__len__") and not isinstance(one, str) for one in table.values())
        return list(table) if table and sized else None
    keys = getattr(
        table, "column_names", None
    )  # of pyarrow, whose `columns` are the values, and datasets
    keys = getattr(table, "columns", None) if keys is None else keys
    return None if keys is None else list(keys)


def title(source: Any) -> str:
    """Return what a message calls data: its name or path or, in memory, its kind."""
    if is_name(source):
        return str(source)
    is_table = names_of(source) is not None and not isinstance(source, Mapping)
    return type(source).__name__ if is_table else "data"


def records(table: Any, columns: Sequence[str | None] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a table in memory, or of a list with a dictionary for each row.

    Args:
        table: the table.
        columns: the columns that are read, by name; ``None`` stands for none.

    Yields:
        Where each row stands, counted from 0, and its values by name; a missing one is ``None``.

    Raises:
        InputError: a column is not there once, or columns differ in length.
    """
    name, keys = title(table), _keys(table)
    wanted = [column for column in columns if column is not None]
    if keys is None:
        for i, record in enumerate(table):
            place = f"{name}, row {i}"
            check_columns(wanted, [*map(str, record)], place)
            yield place, {column: plain(record[column]) for column in wanted}
        return
    check_columns(wanted, [str(key) for key in keys], name)
    by_name = {str(key): key for key in keys}
    values = [list(table[by_name[column]]) for column in wanted]
    check_lengths(name, wanted, values)
    for i, row in enumerate(zip(*values, strict=True)):
        yield f"{name}, row {i}", dict(zip(wanted, map(plain, row), strict=True))


def check_lengths(name: str, columns: Sequence[str], values: Sequence[Sized]) -> None:
    """Hold the columns of a table to one length.

    Raises:
        InputError: they differ.
    """
    if len({len(one) for one in values}) > 1:
        pairs = zip(columns, values, strict=True)
        counts = ", ".join(f"{column} {len(one):,}" for column, one in pairs)
        raise InputError(f"{name}: columns of different lengths ({counts})")


def in_a_row(values: Any, name: str) -> Iterable[Any]:
    """Return the values of a list, an array, a column, or a table whose rows are values.

    Args:
        values: these.
        name: what they are, for messages.

    Raises:
        InputError: it is one text, or not a sequence at all.
    """
    if isinstance(values, str):
        raise InputError(f"{name}: one text, where several are expected")
    names = names_of(values)
    if names is not None:  # to go through a table would give the names of its columns
        rows = [list(record.values()) for _, record in records(values, names)]
        return [row[0] for row in rows] if len(names) == 1 else rows
    if not isinstance(values, Iterable):
        raise InputError(f"{name}: {type(values).__name__}, where a list or array is expected")
    return values


def plain(value: Any) -> Any:
    """Return a value without the packing of a table's package; ``None`` for a missing one.

    Example:
        >>> import numpy as np
        >>> plain(np.int64(3)), plain(float("nan")), plain("a")
        (3, None, 'a')
    """
    if hasattr(value, "as_py"):
        value = value.as_py()
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of NumPy or torch
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value
