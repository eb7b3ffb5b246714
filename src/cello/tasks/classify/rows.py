"""Labelled sequences: rows, parts and sources; what a sequence and a label may be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cello.tasks.errors import InputError
from cello.tasks.stored import Chosen
from cello.tasks.tables import check_characters

Input = str | NDArray[Any]
"""One sequence: a text, or numbers of shape (T, F), in double precision but for those of images."""

LARGEST = float(np.finfo(np.float32).max)
"""Larger numbers are refused: the network computes in single precision."""


class Row(NamedTuple):
    """One sequence with what is known about it; `place` says where it was read, for messages.

    What is missing, as an empty cell of a table, is an empty text, array or word.
    """

    input: Input
    label: str
    group: str
    place: str


class Part(Chosen[Row]):
    """Rows of one part of the data: training, validation or test set."""

    @staticmethod
    def make(row: Any) -> Row:
        """Return a row; on disk it is a plain tuple."""
        return Row(*row)

    @property
    def labels(self) -> list[str]:
        """The label of each sequence."""
        return [row.label for row in self]

    @property
    def groups(self) -> list[str]:
        """The group of each sequence."""
        return [row.group for row in self]


@dataclass(frozen=True)
class Source:
    """What was read: the parts that the data itself came in, under train, valid and test.

    `notes` says what was left out, a sentence each; `features` are the columns with the numbers of a
    step, in a table with one step a row.
    """

    name: str
    format: str
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)
    features: Sequence[str] = ()

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


def is_empty(one: Input) -> bool:
    """Return whether there is nothing to read in an input: no step, or only white space."""
    return not (_BREAK.sub("", one).strip() if isinstance(one, str) else one.size)


_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def whole(source: Source) -> Part:
    """Return all rows of a source."""
    parts = list(source.parts.values())
    return parts[0] if len(parts) == 1 else Part([row for part in parts for row in part])


def as_input(value: Any, place: str) -> Input:
    """Return a text, or an array (T, F) of what holds numbers: (T, F), or (T,) of one number a step.

    Nothing, as a missing cell of a table, is an empty text.

    Raises:
        InputError: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        check_characters(value, place)
        return str(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu().double()
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: neither a text nor numbers, (T, F) or (T,)") from error
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise InputError(f"{place}: the sequence has the shape {array.shape}, not (T, F) or (T,)")
    return array


def numbers(value: Any, place: str) -> NDArray[np.float64]:
    """Turn nested lists, one list of numbers for each step, into an array (T, F).

    Raises:
        InputError: it is something else, or a number is not finite.
    """
    array, infinite = None, f"{place}: a number is not finite in float32"
    try:
        if isinstance(value, list) and {type(x) for step in value for x in step} <= {int, float}:
            array = np.asarray(value, dtype=np.float64)
    except OverflowError as error:  # an integer of hundreds of digits
        raise InputError(infinite) from error
    except (TypeError, ValueError):
        pass
    if array is None or (array.ndim != 2 and array.size):
        raise InputError(f"{place}: neither a text nor a list of steps, [[1.0, 2.0], [3.0, 4.0]]")
    if not (np.abs(array) <= LARGEST).all():
        raise InputError(infinite)
    return array


def word(value: Any, what: str, place: str) -> str:
    """Return a label or group as a word; nothing for ``None``.

    Raises:
        InputError: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, list | dict):
        raise InputError(f"{place}: the {what} is not a word or number")
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value).strip()
