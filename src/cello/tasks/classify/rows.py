"""Labelled sequences: what every kind of data is read as."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cello.tasks.stored import Chosen

Input = str | NDArray[np.float32]
"""One sequence: a text, or numbers of shape (T, F)."""


class Row(NamedTuple):
    """One sequence with what is known about it; `place` says where it was read, for messages.

    What is missing, as an empty cell of a table, is an empty text, array or word.
    """

    input: Input
    label: str
    group: str
    place: str


class Part(Chosen[Row]):
    """Rows of one part of the data: training, validation or held-out."""

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
