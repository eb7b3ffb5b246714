"""Reading labelled sequences: tables, folders of text files, hub datasets, embedded digits."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError
from cello.tasks.options import Options

Input = str | NDArray[np.float32]
"""One sequence: a text, or numbers of shape (T, F)."""

TABLES = (".csv", ".tsv", ".jsonl")


class Row(NamedTuple):
    """One sequence with what is known about it; `place` says where it was read, for messages."""

    input: Input
    label: str
    group: str
    place: str


@dataclass(frozen=True)
class Part:
    """Rows of one part of the data: training, validation or held-out."""

    rows: Sequence[Row]

    @property
    def inputs(self) -> list[Input]:
        """The sequences."""
        return [row.input for row in self.rows]

    @property
    def labels(self) -> list[str]:
        """The label of each sequence."""
        return [row.label for row in self.rows]

    @property
    def places(self) -> list[str]:
        """Where each sequence was read."""
        return [row.place for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Source:
    """What was read: the parts that the data itself came in, under train, valid and test."""

    name: str
    format: str
    parts: dict[str, Part]

    @property
    def kind(self) -> str:
        """``"text"`` or ``"numbers"``."""
        rows = next(iter(self.parts.values())).rows
        return "text" if isinstance(rows[0].input, str) else "numbers"

    def fingerprint(self) -> str:
        """Return a hash of all the rows, by which a resumed run knows its data again."""
        digest = sha256()
        for name, part in sorted(self.parts.items()):
            for row in part.rows:
                content = row.input if isinstance(row.input, str) else row.input.tobytes().hex()
                digest.update(repr((name, content, row.label, row.group)).encode())
        return digest.hexdigest()


def read(name: str, options: Options) -> Source:
    """Read data by its name.

    Args:
        name: ``digits``, a table, a folder of text files, or a dataset of the hub.
        options: what the data is and how its columns are named.

    Returns:
        The source, with the parts it came in; a table is one part, ``train``.

    Raises:
        InputError: the data cannot be read, or holds no rows.
    """
    format = _format(name) if options.format == "auto" else options.format
    reader = {"digits": _digits, "table": _table, "folder": _folder, "hub": _hub}[format]
    parts = {part: Part(rows) for part, rows in reader(name, options).items()}
    for part, extra in (("valid", options.valid_data), ("test", options.test_data)):
        if extra is not None:
            alone = replace(options, valid_data=None, test_data=None)
            source = read(extra, alone)
            parts[part] = source.parts.get(part) or whole(source)
    for rows in parts.values():
        if not rows:
            raise InputError(f"{name}: holds no rows")
    source = Source(name, format, parts)
    for row in (row for part in parts.values() for row in part.rows):
        if isinstance(row.input, str) != (source.kind == "text"):
            raise InputError(f"{row.place}: some rows are texts and some are numbers")
    return source


def whole(source: Source) -> Part:
    """Return all rows of a source."""
    return Part([row for part in source.parts.values() for row in part.rows])


def _format(name: str) -> str:
    path = Path(name)
    if name == "digits":
        return "digits"
    if path.is_dir():
        return "folder" if any((path / "train").glob("*/*.txt")) else "hub"
    if path.exists() or suffix(path) in TABLES or name.count("/") != 1 or name.startswith("/"):
        return "table"
    return "hub"


def suffix(path: Path) -> str:
    """Return the lower-case ending of a file's name, ``.gz`` left out."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


# Tables.


def _table(name: str, options: Options) -> dict[str, list[Row]]:
    rows = list(
        read_table(Path(name), options.text_column, options.label_column, options.group_column)
    )
    if not rows:
        raise InputError(f"{name}: holds a header but no rows")
    return {"train": rows}


def read_table(
    path: Path, text_column: str, label_column: str | None = None, group_column: str | None = None
) -> Iterator[Row]:
    """Read the rows of a CSV, TSV or JSONL file (or any of them with .gz) one by one.

    Args:
        path: the file.
        text_column: name of the column with the text; a number, counted from 0, in a file that has
            no header.
        label_column: name or number of the column with the label; without it labels are empty.
        group_column: name or number of the column with the group; without it groups are empty.

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
    records = _json_records(path) if suffix(path) == ".jsonl" else _csv_records(path, columns)
    for place, record in records:
        for column in columns:
            if column is not None and column not in record:
                names = ", ".join(str(name) for name in record)
                raise InputError(f"{place}: no column {column!r}; there are: {names}")
        label = "" if label_column is None else _word(record[label_column], "label", place)
        group = "" if group_column is None else _word(record[group_column], "group", place)
        text = record[text_column]
        yield Row(text if isinstance(text, str) else numbers(text, place), label, group, place)


def open_text(path: Path) -> Iterator[str]:
    """Read the lines of a UTF-8 file, of a .gz file too, each with its end as it stands.

    Raises:
        InputError: the file cannot be read, or is not UTF-8; the message names line and byte.
    """
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        yield from decode_lines(stream, str(path))


def decode_lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode UTF-8 line by line; see :func:`open_text`."""
    offset = 0
    lines = enumerate(stream, 1)
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{name}: not a whole gzip file ({error})") from error
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from error
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: not UTF-8 at byte {offset + error.start} of the file"
            ) from error
        yield text
        offset += len(line)


def _csv_records(path: Path, columns: Sequence[str | None]) -> Iterator[tuple[str, dict[str, Any]]]:
    tabs = suffix(path) == ".tsv"
    _raise_field_limit()
    reader = csv.reader(
        open_text(path),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    numbered = all(column is None or column.isdecimal() for column in columns)
    header: list[str] | None = None
    end = 0
    while True:
        start, place = end + 1, f"{path}, line {end + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(f"{place}: {error}") from error
        end = reader.line_num
        if not fields:
            continue
        if header is None:
            header = [str(i) for i in range(len(fields))] if numbered else fields
            for column in columns:
                if column is not None and header.count(column) != 1:
                    names = ", ".join(header)
                    count = "several columns" if column in header else "no column"
                    raise InputError(f"{path}: {count} {column!r}; there are: {names}")
            if not numbered:
                continue
        if len(fields) != len(header):
            raise InputError(f"{path}, line {start}: {len(fields)} columns, not {len(header)}")
        yield place, dict(zip(header, fields, strict=True))
    if header is None:
        raise InputError(f"{path}: the file is empty")


def _raise_field_limit() -> None:
    limit = sys.maxsize
    while True:  # the limit is a C long, which is shorter on some systems
        try:
            csv.field_size_limit(limit)
            return
        except OverflowError:
            limit //= 2


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    empty = True
    for number, line in enumerate(open_text(path), 1):
        if not line.strip():
            continue
        empty, place = False, f"{path}, line {number}"
        record = parse_json(line, place)
        if not isinstance(record, dict):
            raise InputError(f"{place}: not a JSON object")
        yield place, record
    if empty:
        raise InputError(f"{path}: the file is empty")


def parse_json(line: str, place: str) -> Any:
    """Parse one line of JSON.

    Raises:
        InputError: it is not JSON.
    """
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # an escape of half a character, unless its other half follows
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half of a surrogate pair, which is no character") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    return value


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


def _word(value: Any, what: str, place: str) -> str:
    if value is None or isinstance(value, list | dict) or str(value).strip() == "":
        raise InputError(f"{place}: the {what} is empty or not a word or number")
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value).strip()


# Folders of text files.


def _folder(name: str, options: Options) -> dict[str, list[Row]]:
    root = Path(name)
    if options.group_column is not None:
        raise InputError(f"{name}: a folder of text files has no columns, so no group-column")
    parts: dict[str, list[Row]] = {}
    for part in ("train", "valid", "test"):
        files = sorted(
            file
            for file in (root / part).glob("*/*.txt")
            if file.parent.name != "unsup" and not file.parent.name.startswith(".")
        )
        if files:
            parts[part] = [
                Row("".join(open_text(file)), file.parent.name, "", str(file)) for file in files
            ]
    if "train" not in parts:
        raise InputError(f"{name}: no files {root / 'train' / 'CLASS' / '*.txt'}")
    return parts


# Datasets of the hub, and embedded data.


def _hub(name: str, options: Options) -> dict[str, list[Row]]:
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
    parts: dict[str, list[Row]] = {}
    for split, data in loaded.items():
        if split not in names:
            continue
        columns = [options.text_column, options.label_column, options.group_column]
        for column in columns:
            if column is not None and column not in data.column_names:
                there = ", ".join(data.column_names)
                raise InputError(f"{name}: no column {column!r}; there are: {there}")
        label = data.features[options.label_column]
        rows = parts[names[split]] = []
        for number, record in enumerate(data.select_columns([c for c in columns if c])):
            place = f"{name}, {split}, row {number}"
            value = record[options.label_column]
            if isinstance(label, datasets.ClassLabel) and value is not None:
                if value < 0:
                    raise InputError(f"{place}: has no label")
                value = label.int2str(value)
            group = "" if options.group_column is None else record[options.group_column]
            text = record[options.text_column]
            rows.append(
                Row(
                    text if isinstance(text, str) else numbers(text, place),
                    _word(value, "label", place),
                    group if options.group_column is None else _word(group, "group", place),
                    place,
                )
            )
    if "train" not in parts:
        raise InputError(f"{name}: no split 'train'; there are: {', '.join(loaded)}")
    return parts


def _digits(name: str, options: Options) -> dict[str, list[Row]]:
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
    return {"train": train, "test": test}
