"""Sequences that stay on disk, in Arrow's format, and take memory only for what is looked at; parts."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Item = TypeVar("Item")
AnyChosen = TypeVar("AnyChosen", bound="Chosen[Any]")

ROWS = 1000
"""How many items are written at a time."""


class Stored(Sequence[Any]):
    """Items that are tuples, in a temporary file without a name that is mapped into memory.

    The file is in the system's folder for temporary files, which TMPDIR names, and its space is free
    again with the last use of it, however the process ends.

    Each place of the tuple holds one kind of value in all items: a string, an integer, a NumPy
    array or a tensor; arrays may differ in shape, not in dtype.

    Args:
        items: what to keep; taken one by one, at least one.

    Example:
        >>> stored = Stored([("a", torch.tensor([1, 2])), ("b", torch.tensor([3]))])
        >>> stored[1]
        ('b', tensor([3]))
    """

    def __init__(self, items: Iterable[tuple[Any, ...]]) -> None:
        import pyarrow as pa  # here: predictions need no Arrow

        rest = iter(items)
        first = next(rest)
        self._kinds = [_Kind(value) for value in first]
        schema = pa.schema(
            [(f"{i}{name}", t) for i, k in enumerate(self._kinds) for name, t in k.columns]
        )
        with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
            with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in _cut(chain([first], rest)):
                    columns = [
                        column
                        for kind, values in zip(self._kinds, zip(*batch, strict=True), strict=True)
                        for column in kind.pack(values)
                    ]
                    writer.write_batch(pa.record_batch(columns, schema=schema))
            self._table = pa.ipc.open_file(pa.memory_map(file.name)).read_all()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Any, ...]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        columns = iter(self._table.columns)
        return tuple(
            kind.unpack([next(columns)[index] for _ in kind.columns]) for kind in self._kinds
        )


class Chosen(Sequence[Item]):
    """The items of one part of some data, made when they are looked at.

    Args:
        rows: what they are made of, which may be on disk.
        chosen: which of the rows; all unless given.
    """

    def __init__(self, rows: Sequence[Any], chosen: Sequence[int] | None = None) -> None:
        self._rows, self._chosen = rows, range(len(rows)) if chosen is None else chosen

    @staticmethod
    @abstractmethod
    def make(row: Any) -> Any:
        """Return the item of a row."""

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.make(self._rows[i]) for i in self._chosen[index]]
        return self.make(self._rows[self._chosen[index]])

    def take(self: AnyChosen, positions: Iterable[int]) -> AnyChosen:
        """Return the items at some positions."""
        return type(self)(self._rows, [self._chosen[i] for i in positions])


class _Kind:
    """How one place of the items is kept in columns."""

    def __init__(self, example: Any) -> None:
        import pyarrow as pa

        self.tensor = isinstance(example, Tensor)
        self.columns: list[tuple[str, Any]]
        if isinstance(example, str):
            self.columns = [("", pa.large_string())]
        elif isinstance(example, int):
            self.columns = [("", pa.int64())]
        else:
            self.dtype = np.asarray(example).dtype
            flat = pa.large_list(pa.from_numpy_dtype(self.dtype))
            self.columns = [("", flat), ("shape", pa.list_(pa.int64()))]

    def pack(self, values: Sequence[Any]) -> Iterator[Any]:
        import pyarrow as pa

        (_, kind), *rest = self.columns
        if not rest:
            yield pa.array(values, kind)
            return
        arrays: list[NDArray[Any]] = [np.asarray(value) for value in values]
        ends = np.cumsum([0, *(array.size for array in arrays)])
        flat = np.concatenate([array.ravel() for array in arrays])
        yield pa.LargeListArray.from_arrays(ends, pa.array(flat, kind.value_type))
        yield pa.array([list(array.shape) for array in arrays], pa.list_(pa.int64()))

    def unpack(self, scalars: list[Any]) -> Any:
        first, *rest = scalars
        if not rest:
            return first.as_py()
        array = first.values.to_numpy().reshape(rest[0].as_py()).astype(self.dtype)
        return torch.from_numpy(array) if self.tensor else array


def _cut(items: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    rest = iter(items)
    while batch := list(islice(rest, ROWS)):
        yield batch
