"""What describes a series as a whole, as numbers that the network reads: static features.

A column of numbers is scaled over the series; one of texts has one feature for each text, which is 1 for
the series that have it and else 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError
from cello.tasks.forecast.series import Series
from cello.tasks.forecast.windows import Scale
from cello.tasks.tables import listed

STATIC = "static.json"


class Static:
    """The features of the static columns, learned from the series of the training data.

    Args:
        columns: for each column its name, and either the `texts` that are known or `mean` and
            `deviation`.

    Example:
        >>> times = np.arange(2).astype("datetime64[us]")
        >>> series = [
        ...     Series.of(times, np.zeros(2), static=(shop, size))
        ...     for shop, size in [("north", "1"), ("south", "3")]
        ... ]
        >>> Static.of(["shop", "size"], series).encode(series)
        array([[ 1.,  0., -1.],
               [ 0.,  1.,  1.]], dtype=float32)
    """

    def __init__(self, columns: Sequence[dict[str, Any]]) -> None:
        self.columns = columns
        self.width = sum(len(one["texts"]) if "texts" in one else 1 for one in columns)

    @staticmethod
    def of(names: Sequence[str], series: Sequence[Series]) -> Static:
        """Learn the features of columns.

        Raises:
            InputError: a value is missing.
        """
        columns: list[dict[str, Any]] = []
        for j, name in enumerate(names):
            texts = [one.static[j] for one in series]
            if "" in texts:
                raise _wrong(series[texts.index("")], name, "is missing")
            numbers = [_number(text) for text in texts]
            if None in numbers:
                columns.append({"name": name, "texts": sorted(set(texts))})
            else:
                scale = Scale.of(np.array(numbers, np.float64)[:, None])
                mean, deviation = (float(part[0]) for part in scale)
                columns.append({"name": name, "mean": mean, "deviation": deviation})
        return Static(columns)

    @staticmethod
    def read(text: str) -> Static:
        """Read what :meth:`written` gave.

        Raises:
            InputError: it is not whole.
        """
        try:
            columns = json.loads(text)
            for one in columns:
                if "texts" not in one:
                    float(one["mean"]), float(one["deviation"])
            return Static(columns)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{STATIC}: not as it should be") from error

    def written(self) -> str:
        """Return the features as JSON."""
        return json.dumps(self.columns, ensure_ascii=False)

    def encode(self, series: Sequence[Series]) -> NDArray[np.float32]:
        """Return the features of series, (n, width).

        Raises:
            InputError: a value is missing, is not a number, or is a text that training did not have.
        """
        found = np.zeros((len(series), self.width), np.float32)
        for i, one in enumerate(series):
            if len(one.static) != len(self.columns):
                names = listed(column["name"] for column in self.columns)
                raise InputError(f"{one.source}: {one.name!r} needs the static columns {names}")
            j = 0
            for column, text in zip(self.columns, one.static, strict=True):
                if "texts" in column:
                    if text not in column["texts"]:
                        known = f"training had: {listed(column['texts'])}"
                        raise _wrong(one, column["name"], f"is {text!r}; {known}")
                    found[i, j + column["texts"].index(text)] = 1
                    j += len(column["texts"])
                else:
                    number = _number(text)
                    if number is None:
                        raise _wrong(one, column["name"], f"is {text!r}, not a number")
                    found[i, j] = (number - column["mean"]) / column["deviation"]
                    j += 1
        return found


def _wrong(series: Series, name: str, what: str) -> InputError:
    of = f"series {series.name!r}: " if series.name else ""
    return InputError(f"{series.source}: {of}the static column {name} {what}")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
