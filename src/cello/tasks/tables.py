"""Reading the rows of text files: CSV, TSV, JSONL, with .gz too; what the rows mean is not known here."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cello.tasks.errors import InputError

TABLES = (".csv", ".tsv", ".jsonl")


def suffix(path: Path) -> str:
    """Return the lower-case ending of a file's name, ``.gz`` left out."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def listed(names: Iterable[object], most: int = 20, longest: int = 40) -> str:
    """Return names as a list for a message; a file without a header may have texts in their place."""
    words = [str(name) for name in names]
    shown = [word if len(word) <= longest else f"{word[:longest]}..." for word in words[:most]]
    return ", ".join(shown) + (f" and {len(words) - most} more" if len(words) > most else "")


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


def csv_records(
    path: Path, columns: Sequence[str | None] = (), header: bool | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV or TSV file.

    Args:
        path: the file.
        columns: the columns that are needed.
        header: whether the first row names the columns; without it they are numbered from 0. Unless
            given, a file has none where all of `columns` are numbers.

    Yields:
        Where each row stands, and its values by the names of the columns.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row has another number of columns.
    """
    if header is None:
        header = any(column is not None and not column.isdecimal() for column in columns)
    names: list[str] | None = None
    for line, fields in csv_rows(open_text(path), str(path), tabs=suffix(path) == ".tsv"):
        if names is None:
            names = fields if header else [str(i) for i in range(len(fields))]
            check_columns(columns, names, str(path))
            if header:
                continue
        yield f"{path}, line {line}", dict(zip(names, fields, strict=True))
    if names is None:
        raise InputError(f"{path}: the file is empty")


def check_columns(columns: Iterable[str | None], names: Sequence[str], source: str) -> None:
    """Refuse columns that a table has not, or has several times; ``None`` stands for none.

    Raises:
        InputError: one is not there once.
    """
    for column in columns:
        if column is not None and names.count(column) != 1:
            count = "several columns" if column in names else "no column"
            raise InputError(f"{source}: {count} {column!r}; there are: {listed(names)}")


def csv_rows(
    lines: Iterable[str], name: str, *, tabs: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Parse the lines of a CSV or TSV file.

    Args:
        lines: of the file.
        name: of the file, for messages.
        tabs: columns are parted by tabs, and nothing is quoted.

    Yields:
        The line on which each row begins, from 1, and its fields; empty lines are left out.

    Raises:
        InputError: a row cannot be parsed, or has another number of columns than the first.
    """
    _raise_field_limit()
    reader = csv.reader(
        lines,
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    width, start = 0, 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = (
                "it ends as on old Macs, by \\r" if "universal-newline" in str(error) else error
            )
            raise InputError(f"{name}, line {start}: {reason}") from error
        if fields:
            width = width or len(fields)
            if len(fields) != width:
                raise InputError(f"{name}, line {start}: {len(fields)} columns, not {width}")
            yield start, fields
        start = reader.line_num + 1


def _raise_field_limit() -> None:
    limit = sys.maxsize
    while True:  # the limit is a C long, which is shorter on some systems
        try:
            csv.field_size_limit(limit)
            return
        except OverflowError:
            limit //= 2


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a JSONL file; see :func:`csv_records`."""
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
