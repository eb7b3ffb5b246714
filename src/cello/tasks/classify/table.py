"""Labelled sequences in tables: one sequence a row, or one step a row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cello.tasks.classify.options import SourceOptions
from cello.tasks.classify.rows import Row
from cello.tasks.errors import InputError
from cello.tasks.tables import TABLES, UTF8, csv_records, json_records, listed, suffix


def read_table(
    path: Path,
    text_column: str,
    label_column: str | None = None,
    group_column: str | None = None,
    *,
    encoding: str = UTF8,
    delimiter: str | None = None,
) -> Iterator[Row]:
    """Read the rows of a CSV, TSV or JSONL file (or any of them with .gz) one by one.

    Args:
        path: the file.
        text_column: name of the column with the text; a number, counted from 0, in a file that has
            no header.
        label_column: name or number of the column with the label; without it labels are empty.
        group_column: name or number of the column with the group; without it groups are empty.
        encoding: how the file's characters are written.
        delimiter: what parts the columns of a CSV or TSV; a comma or a tab unless given.

    Yields:
        The rows.

    Raises:
        InputError: the file cannot be read, has no such column, or a row is not as it should be.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if suffix(path) not in TABLES:
        raise InputError(f"{path}: not a table; its name must end in {', '.join(TABLES)} or .gz")
    columns = [text_column, label_column, group_column]
    records: Iterator[tuple[str, dict[str, Any]]]
    if suffix(path) == ".jsonl":
        records = json_records(path, encoding=encoding)
    else:
        records = csv_records(path, columns, encoding=encoding, delimiter=delimiter)
    for place, record in records:
        for column in columns:
            if column is not None and column not in record:
                raise InputError(f"{place}: no column {column!r}; there are: {listed(record)}")
        label = "" if label_column is None else word(record[label_column], "label", place)
        group = "" if group_column is None else word(record[group_column], "group", place)
        text = "" if record[text_column] is None else record[text_column]
        yield Row(text if isinstance(text, str) else numbers(text, place), label, group, place)


def read_steps(path: Path, options: SourceOptions, *, labelled: bool = True) -> Iterator[Row]:
    """Read the sequences of a CSV or TSV file that holds one step a row.

    Args:
        path: the file.
        options: `sequence_column` tells sequences apart, whose rows stand together in the order of
            time; `feature_columns` are the numbers of a step; label and group are the same in all
            rows of a sequence.
        labelled: whether there are labels; without it they are empty, and so are groups.

    Yields:
        One row for each sequence.

    Raises:
        InputError: the file cannot be read, or is not like that.
    """
    sequence = options.sequence_column
    if sequence is None:
        raise InputError("sequence-column: a table with one step a row needs it")
    if suffix(path) not in (".csv", ".tsv"):
        raise InputError(f"{path}: not a table of steps; its name must end in .csv, .tsv or .gz")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    columns = [sequence]
    if labelled:
        columns += [options.label_column, *filter(None, [options.group_column])]
    features = step_features(path, options)
    seen: set[str] = set()
    records = csv_records(path, [*columns, *features], **options.written)
    for key, steps in groupby(records, lambda step: step[1][sequence]):
        place, first = next(steps)
        if key in seen:
            raise InputError(f"{place}: the rows of the sequence {key!r} do not stand together")
        seen.add(key)
        rows = []
        for where, step in chain([(place, first)], steps):
            for name in columns:
                if step[name] != first[name]:
                    raise InputError(
                        f"{where}: {name!r} is {step[name]!r} here, and {first[name]!r} in an "
                        f"earlier step of the sequence {key!r}"
                    )
            rows.append([_number(step[name], name, where) for name in features])
        yield Row(
            np.array(rows, np.float32),
            word(first[options.label_column], "label", place) if labelled else "",
            word(first[options.group_column], "group", place)
            if labelled and options.group_column is not None
            else "",
            place,
        )


def step_features(path: Path, options: SourceOptions) -> list[str]:
    """Return the names of the columns with the numbers of a step, in a table of steps.

    Raises:
        InputError: there are none, or the file cannot be read.
    """
    if options.feature_columns:
        return options.feature_columns.split(",")
    others = {options.sequence_column, options.label_column, options.group_column}
    _, first = next(csv_records(path, [options.sequence_column], **options.written), (None, {}))
    features = [name for name in first if name not in others]
    if not features:
        raise InputError(f"{path}: no columns with the numbers of a step")
    if any("," in name for name in features):
        raise InputError(f"{path}: a column's name has a comma; feature-columns cannot name it")
    return features


def _number(text: str, name: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise InputError(f"{place}: {name!r} is {text!r}, not a number") from error
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise InputError(f"{place}: {name!r} is {text!r}, not finite in float32")
    return number


def numbers(value: Any, place: str) -> NDArray[np.float32]:
    """Turn nested lists, one list of numbers for each step, into an array (T, F).

    Raises:
        InputError: it is something else, or a number is not finite.
    """
    array, infinite = None, f"{place}: a number is not finite in float32"
    try:
        if isinstance(value, list) and {type(x) for step in value for x in step} <= {int, float}:
            with np.errstate(over="ignore"):
                array = np.asarray(value, dtype=np.float32)
    except OverflowError as error:  # an integer of hundreds of digits
        raise InputError(infinite) from error
    except (TypeError, ValueError):
        pass
    if array is None or (array.ndim != 2 and array.size):
        raise InputError(f"{place}: neither a text nor a list of steps, [[1.0, 2.0], [3.0, 4.0]]")
    if not np.isfinite(array).all():
        raise InputError(infinite)
    return array


def word(value: Any, what: str, place: str) -> str:
    """Return a label or a group as it is written; nothing where it is missing."""
    if value is None:
        return ""
    if isinstance(value, list | dict):
        raise InputError(f"{place}: the {what} is not a word or number")
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value).strip()
