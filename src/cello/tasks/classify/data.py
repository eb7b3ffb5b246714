"""Reading labelled sequences: tables, images, folders of text files, hub datasets, embedded digits."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from cello.tasks.classify import images
from cello.tasks.classify.options import SourceOptions
from cello.tasks.classify.rows import Input, Part, Row
from cello.tasks.classify.table import numbers, read_steps, read_table, step_features, word
from cello.tasks.errors import InputError
from cello.tasks.stored import Stored
from cello.tasks.tables import TABLES, listed, open_text, suffix


@dataclass(frozen=True)
class Source:
    """What was read: the parts that the data itself came in, under train, valid and test.

    `notes` says what was left out, a sentence each.
    """

    name: str
    format: str
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``"text"`` or ``"numbers"``."""
        part = next(iter(self.parts.values()))
        return "text" if isinstance(part[0].input, str) else "numbers"

    def fingerprint(self) -> str:
        """Return a hash of all the rows, by which a resumed run knows its data again."""
        digest = sha256()
        for name, part in sorted(self.parts.items()):
            for row in part:
                content = row.input if isinstance(row.input, str) else row.input.tobytes().hex()
                digest.update(repr((name, content, row.label, row.group)).encode())
        return digest.hexdigest()


def read(name: str, options: SourceOptions, *, stream: bool = False) -> Source:
    """Read data by its name.

    Args:
        name: ``digits``, a table, a folder of text files, or a dataset of the hub.
        options: what the data is and how its columns are named.
        stream: keep the rows on disk.

    Returns:
        The source, with the parts it came in; a table is one part, ``train``. Rows whose text,
        sequence, label or group is empty are left out.

    Raises:
        InputError: the data cannot be read, or holds no rows.
    """
    format = _format(name, options) if options.format == "auto" else options.format
    reader = {
        "digits": _digits, "table": _table, "steps": _steps, "idx": _idx, "folder": _folder,
        "hub": _hub,
    }[format]  # fmt: skip
    parts, notes = {}, []
    for part, rows in reader(name, options).items():
        grouped = options.group_column is not None and part == "train"
        complete = _Complete(iter(rows), grouped)
        first = next(rows := iter(complete), None)
        if first is None:
            raise InputError(f"{name}: {complete.note or 'holds a header but no rows'}")
        rows = _of_one_kind(first, rows)
        if options.distinct:
            rows = _distinct(rows)
        parts[part] = Part(Stored(rows) if stream else list(rows))
        notes += [f"{name}: {complete.note}"] if complete.note else []
    extras = {"valid": options.valid_data, "test": options.test_data}
    for part, extra in extras.items():
        if extra is not None:  # it is not split, so it needs no groups
            alone = replace(options, valid_data=None, test_data=None, group_column=None)
            if format == "steps":
                features = ",".join(step_features(Path(name), options))
                alone = replace(alone, feature_columns=features)
            source = read(extra, alone, stream=stream)
            parts[part] = source.parts.get(part) or whole(source)
            notes += source.notes
    source = Source(name, format, parts, notes)
    for part_ in parts.values():
        list(_of_one_kind(parts["train"][0], iter(part_[:1])))
    return source


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


def is_empty(one: Input) -> bool:
    """Return whether there is nothing to read in an input: no step, or only white space."""
    return not (_BREAK.sub("", one).strip() if isinstance(one, str) else one.size)


_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def whole(source: Source) -> Part:
    """Return all rows of a source."""
    parts = list(source.parts.values())
    return parts[0] if len(parts) == 1 else Part([row for part in parts for row in part])


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


def _steps(name: str, options: SourceOptions) -> dict[str, Iterator[Row]]:
    return {"train": read_steps(Path(name), options)}


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
