"""Reading labelled sequences: tables, images, folders of text files, hub datasets, embedded digits.

What is in memory is read too: DataFrames and other tables, lists, and inputs with their labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from cello.tasks.classify import images
from cello.tasks.classify.options import SourceOptions
from cello.tasks.classify.rows import (
    LARGEST,
    Input,
    Part,
    Row,
    Source,
    as_input,
    is_empty,
    numbers,
    whole,
    word,
)
from cello.tasks.errors import InputError
from cello.tasks.memory import in_a_row, is_name, names_of, parts_of, plain, records, title
from cello.tasks.stored import Stored
from cello.tasks.tables import (
    TABLES,
    UTF8,
    check_columns,
    csv_records,
    json_records,
    listed,
    open_text,
    suffix,
)


def read(source: Any, options: SourceOptions, *, stream: bool = False) -> Source:
    """Read data by its name, or in memory.

    Args:
        source: the name: ``digits``, a table, a folder of text files, or a dataset of the hub. Or data in
            memory: a table, as a DataFrame; a pair of inputs and labels; a list with a dictionary or a pair
            of input and label for each row; or a dictionary of such parts.
        options: what the data is and how its columns are named.
        stream: keep the rows on disk.

    Returns:
        What was read, with the parts it came in; a table is one part, ``train``. Rows whose text,
        sequence, label or group is empty are left out.

    Raises:
        InputError: the data cannot be read, or holds no rows.
    """
    if is_name(source):
        name = str(source)
        format = _format(name, options) if options.format == "auto" else options.format
        reader = {
            "digits": _digits, "table": _table, "steps": _steps, "idx": _idx, "folder": _folder,
            "hub": _hub,
        }[format]  # fmt: skip
        found = reader(name, options)
    else:
        name, format = title(source), "memory" if options.sequence_column is None else "steps"
        found = _memory(source, options)
    parts, notes = {}, []
    for part, rows in found.items():
        grouped = options.group_column is not None and part == "train"
        complete = _Complete(iter(rows), grouped)
        first = next(rows := iter(complete), None)
        if first is None:
            empty = "holds a header but no rows" if is_name(source) else "holds no rows"
            raise InputError(f"{name}: {complete.note or empty}")
        rows = _of_one_kind(first, rows)
        if options.distinct:
            rows = _distinct(rows)
        parts[part] = Part(Stored(rows) if stream else list(rows))
        notes += [f"{name}: {complete.note}"] if complete.note else []
    table = Path(name) if is_name(source) else parts_of(source)["train"]
    features = step_features(table, options) if format == "steps" else []
    extras = {"valid": options.valid_data, "test": options.test_data}
    for part, extra in extras.items():
        if extra is not None:  # it is not split, so it needs no groups
            alone = replace(options, valid_data=None, test_data=None, group_column=None)
            if features:
                alone = replace(alone, feature_columns=",".join(features))
            other = read(extra, alone, stream=stream)
            parts[part] = other.parts.get(part) or whole(other)
            notes += other.notes
    for part_ in parts.values():
        list(_of_one_kind(parts["train"][0], iter(part_[:1])))
    return Source(name, format, parts, notes, features)


class _Complete:
    """Rows that lack nothing, and how many do: in `note`, when all have been read.

    Args:
        rows: the rows.
        grouped: whether each needs a group.
    """

    def __init__(self, rows: Iterator[Row], grouped: bool) -> None:
        self.rows, self.grouped = rows, grouped
        self.first: dict[str, str] = {}
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            lacking = self._lacking(row)
            if lacking is None:
                yield row
            else:
                self.count += 1
                self.first.setdefault(lacking, row.place)

    def _lacking(self, row: Row) -> str | None:
        if is_empty(row.input):
            return "text" if isinstance(row.input, str) else "sequence"
        if not row.label:
            return "label"
        return "group" if self.grouped and not row.group else None

    @property
    def note(self) -> str:
        """What was left out; nothing if all rows are complete."""
        if not self.count:
            return ""
        rows = "1 row is" if self.count == 1 else f"{self.count:,} rows are"
        places = ", ".join(f"{place} has no {what}" for what, place in self.first.items())
        return f"{rows} left out where something is missing ({places})"


def _of_one_kind(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    for row in rest:
        if type(row.input) is not type(first.input):
            raise InputError(f"{row.place}: some rows are texts and some are numbers")
        yield row


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    seen: set[bytes] = set()
    for row in rows:
        content = row.input if isinstance(row.input, str) else row.input.tobytes().hex()
        digest = sha256(repr((content, row.label)).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield row


def _format(name: str, options: SourceOptions) -> str:
    path = Path(name)
    if not name:  # an unset variable, not this folder
        raise InputError("DATA is empty")
    if name == "digits":
        return "digits"
    if path.is_dir():
        if images.found(path, "train-"):
            return "idx"
        classes = {file.parent for file in _text_files(path)}
        return "folder" if _text_files(path / "train") or len(classes) > 1 else "hub"
    if images.NAME.search(path.name):
        return "idx"
    if path.exists() or suffix(path) in TABLES or name.count("/") != 1 or name.startswith("/"):
        return "table" if options.sequence_column is None else "steps"
    return "hub"


# Tables.


def _table(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    if options.sequence_column is not None:
        raise InputError(
            "sequence-column: only a table with one step a row has one, a .csv or .tsv"
        )
    columns = options.text_column, options.label_column, options.group_column
    return {"train": read_table(Path(name), *columns, **options.written)}


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
        other = "; cello train language reads plain text" if suffix(path) == ".txt" else ""
        raise InputError(
            f"{path}: not a table; its name must end in {', '.join(TABLES)} or .gz{other}"
        )
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


def _steps(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    return {"train": read_steps(Path(name), options)}


def read_steps(table: Any, options: SourceOptions, *, labelled: bool = True) -> Iterator[Row]:
    """Read the sequences of a table that holds one step a row.

    Args:
        table: a CSV or TSV file, or a table in memory.
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
    if isinstance(table, Path):
        if suffix(table) not in (".csv", ".tsv"):
            raise InputError(
                f"{table}: not a table of steps; its name must end in .csv, .tsv or .gz"
            )
        if not table.exists():
            raise InputError(f"{table}: no such file")
    columns = [sequence]
    if labelled:
        columns += [options.label_column, *filter(None, [options.group_column])]
    features = step_features(table, options)
    seen: set[str] = set()
    lines = _step_records(table, [*columns, *features], options)
    for key, steps in groupby(lines, lambda step: step[1][sequence]):
        place, first = next(steps)
        if not key:
            raise InputError(f"{place}: {sequence!r} is empty, which tells sequences apart")
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
            np.array(rows, np.float64),
            word(first[options.label_column], "label", place) if labelled else "",
            word(first[options.group_column], "group", place)
            if labelled and options.group_column is not None
            else "",
            place,
        )


def _step_records(
    table: Any, columns: Sequence[str], options: SourceOptions
) -> Iterator[tuple[str, dict[str, str]]]:
    if isinstance(table, Path):
        return csv_records(table, columns, **options.written)
    return (
        (place, {name: word(value, "value", place) for name, value in record.items()})
        for place, record in records(table, columns)
    )


def step_features(table: Any, options: SourceOptions) -> list[str]:
    """Return the names of the columns with the numbers of a step, in a table of steps.

    Raises:
        InputError: there are none, or the file cannot be read.
    """
    if options.feature_columns:
        return options.feature_columns.split(",")
    others = {options.sequence_column, options.label_column, options.group_column}
    if isinstance(table, Path):
        lines = csv_records(table, [options.sequence_column], **options.written)
        _, first = next(lines, (None, {}))
        names = list(first)
    else:
        names = names_of(table) or []
    features = [name for name in names if name not in others]
    place = table if isinstance(table, Path) else title(table)
    if not features:
        raise InputError(f"{place}: no columns with the numbers of a step")
    if any("," in name for name in features):
        raise InputError(f"{place}: a column's name has a comma; feature-columns cannot name it")
    return features


def _number(text: str, name: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise InputError(f"{place}: {name!r} is {text!r}, not a number") from error
    if not abs(number) <= LARGEST:
        raise InputError(f"{place}: {name!r} is {text!r}, not finite in float32")
    return number


# Data in memory.


def _memory(source: Any, options: SourceOptions) -> dict[str, Iterator[Row]]:
    found = {}
    for name, part in parts_of(source).items():
        alone = options if name == "train" else replace(options, group_column=None)
        if options.sequence_column is not None:
            if names_of(part) is None:
                raise InputError("sequence-column: only a table with one step a row has one")
            features = step_features(parts_of(source)["train"], options)
            found[name] = read_steps(part, replace(alone, feature_columns=",".join(features)))
        elif hasattr(part, "features") and hasattr(part, "select_columns"):
            columns = [alone.text_column, alone.label_column, alone.group_column]
            check_columns(columns, part.column_names, title(part))
            found[name] = _hub_rows(part, alone, title(part))
        else:
            found[name] = _rows_in_memory(part, alone)
    return found


def _rows_in_memory(part: Any, options: SourceOptions) -> Iterator[Row]:
    """Return the rows of a table, of a pair of inputs and labels, or of a list of rows."""
    if names_of(part) is None and options.group_column is not None and not _is_records(part):
        raise InputError("group-column: only a table has columns")
    if names_of(part) is not None or _is_records(part):
        columns = (options.text_column, options.label_column, options.group_column)
        for place, record in records(part, columns):
            text, label, group = (None if c is None else record[c] for c in columns)
            yield Row(
                as_input(text, place),
                word(label, "label", place),
                word(group, "group", place),
                place,
            )
        return
    for place, value, label in _pairs(part):
        yield Row(as_input(value, place), word(plain(label), "label", place), "", place)


def _is_records(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and isinstance(part[0], Mapping)


def _pairs(part: Any) -> Iterator[tuple[str, Any, Any]]:
    """Return inputs with their labels, of a pair of both or of a list of pairs."""
    if isinstance(part, tuple) and len(part) == 2:
        shape = getattr(part[1], "shape", None)
        if shape is not None and len(shape) != 1:
            raise InputError(
                f"data: the labels have the shape {tuple(shape)}, where (n,) is expected"
            )
        inputs, labels = (
            list(in_a_row(one, name)) for one, name in zip(part, ("inputs", "labels"), strict=True)
        )
        if len(inputs) != len(labels):
            raise InputError(
                f"data: {len(labels):,} labels, where there are {len(inputs):,} inputs"
            )
        for i, (value, label) in enumerate(zip(inputs, labels, strict=True)):
            yield f"data, row {i}", plain(value), label
        return
    if not isinstance(part, list):
        raise InputError(
            f"data: {type(part).__name__}, where a path, a table, (inputs, labels) or a list of rows is "
            "expected"
        )
    for i, row in enumerate(part):
        if not isinstance(row, tuple | list) or len(row) != 2:
            raise InputError(
                f"data, row {i}: neither a pair of input and label nor a dictionary; two lists are "
                "given as a tuple, (inputs, labels)"
            )
        yield f"data, row {i}", plain(row[0]), row[1]


def read_inputs(inputs: Any, options: SourceOptions) -> Iterator[tuple[Input, str]]:
    """Return the inputs of a table in memory, or of a sequence of them, each with its place.

    Raises:
        InputError: a table has no such column, or an input is of no form that there is.
    """
    if names_of(inputs) is None and not _is_records(inputs):
        for i, one in enumerate(in_a_row(inputs, "inputs"), 1):
            yield as_input(plain(one), f"input {i}"), f"input {i}"
    elif options.sequence_column is not None:
        yield from ((row.input, row.place) for row in read_steps(inputs, options, labelled=False))
    else:
        for place, record in records(inputs, [options.text_column]):
            yield as_input(record[options.text_column], place), place


# Images: their rows are the steps.


def _idx(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    path = Path(name)
    if options.group_column is not None:
        raise InputError(f"{name}: images have no columns, so no group-column")
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{name}: no such file")
        return {"train": _images(path)}
    parts = {}
    for part, start in (("train", "train-"), ("test", "t10k-")):
        for file in images.found(path, start)[:1]:
            parts[part] = _images(file)
    if "train" not in parts:
        raise InputError(
            f"{name}: no file train-images-idx3-ubyte, nor one with .gz or dots for hyphens"
        )
    return parts


def _images(path: Path) -> Iterator[Row]:
    for i, (image, label) in enumerate(images.read(path)):
        yield Row(image.astype(np.float32), str(label), "", f"{path}, image {i}")


# Folders of text files.


def _folder(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    root = Path(name)
    if options.group_column is not None:
        raise InputError(f"{name}: a folder of text files has no columns, so no group-column")
    parts = {part: _text_files(root / part) for part in _PARTS}
    if not any(parts.values()):
        parts = {"train": [file for file in _text_files(root) if file.parent.name not in _PARTS]}
    if not parts["train"]:
        looked = root / "train" / "CLASS" / "*.txt", root / "CLASS" / "*.txt"
        raise InputError(f"{name}: no files {looked[0]} or {looked[1]}")
    return {
        part: (
            Row("".join(open_text(file, options.encoding)), file.parent.name, "", str(file))
            for file in files
        )
        for part, files in parts.items()
        if files
    }


_PARTS = ("train", "valid", "test")


def _text_files(folder: Path) -> list[Path]:
    """Return the texts in the folders of classes."""
    return sorted(
        file
        for file in folder.glob("*/*.txt")
        if file.parent.name != "unsup" and not file.parent.name.startswith(".")
    )


# Datasets of the hub, and embedded data.


def _hub(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    import datasets

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):  # what matters of their advice is in the error
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name}: cannot be loaded as a dataset ({lines[0]})") from error
    names = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}
    parts: dict[str, Iterator[Row]] = {}
    for split, data in loaded.items():
        if split not in names:
            continue
        groups = options.group_column if names[split] == "train" else None  # others are not split
        columns = [options.text_column, options.label_column, groups]
        for column in columns:
            if column is not None and column not in data.column_names:
                there = listed(data.column_names)
                raise InputError(f"{name}: no column {column!r}; there are: {there}")
        parts[names[split]] = _hub_rows(
            data, replace(options, group_column=groups), f"{name}, {split}"
        )
    if "train" not in parts:
        raise InputError(f"{name}: no split 'train'; there are: {', '.join(loaded)}")
    return parts


def _hub_rows(data: Any, options: SourceOptions, name: str) -> Iterator[Row]:
    import datasets

    columns = [options.text_column, options.label_column, options.group_column]
    label = data.features[options.label_column]
    for number, record in enumerate(data.select_columns([c for c in columns if c])):
        place = f"{name}, row {number}"
        value = record[options.label_column]
        if isinstance(label, datasets.ClassLabel) and value is not None:
            value = None if value < 0 else label.int2str(value)  # -1 stands for no label
        group = "" if options.group_column is None else record[options.group_column]
        text = "" if record[options.text_column] is None else record[options.text_column]
        yield Row(
            text if isinstance(text, str) else numbers(text, place),
            word(value, "label", place),
            group if options.group_column is None else word(group, "group", place),
            place,
        )


def _digits(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if options.group_column is not None:
        raise InputError("digits: has no columns, so no group-column")
    images, labels = load_digits(return_X_y=True)
    rows = [
        Row(image.reshape(8, 8).astype(np.float32), str(label), "", f"digits, image {i}")
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    train, test = train_test_split(rows, test_size=0.2, random_state=0, stratify=labels)
    return {"train": iter(train), "test": iter(test)}
