"""What ``x[i, j]`` chooses: along which axes, and by which indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cello.compile.node import VIEWS, Node, by_name, operation
from cello.foreign.scope import words


@dataclass(frozen=True)
class Chosen:
    """An index of tensors.

    Attributes:
        axes: the axes of features along which is chosen.
        indices: the index for each of them.
        rank: of the indices together, which stand first in the result; their first axis is the batch.
    """

    axes: tuple[int, ...]
    indices: tuple[Node, ...]
    rank: int


@dataclass(frozen=True)
class Places:
    """What an index with known numbers chooses along axes side by side.

    Attributes:
        first: the first of these axes, none of which is the batch's.
        count: how many they are.
        places: the places, counted over these axes together.
        shape: the shape of the index, which stands in the result in the place of the axes.
    """

    first: int
    count: int
    places: tuple[int, ...]
    shape: tuple[int, ...]


def known_places(
    indices: list[Any], sizes: Sequence[int], values: Callable[[Node], Tensor | None]
) -> Places | None:
    """What an index such as ``x[:, [0, 1, 1], [0, 0, 1]]`` chooses; ``None`` if that is not known.

    Args:
        indices: for each axis its index, or ``None``.
        sizes: the sizes of the axes.
        values: gives the numbers of an index, if they are known.
    """
    chosen = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    first, count = chosen[0][0], len(chosen)
    are_apart = [axis for axis, _ in chosen] != list(range(first, first + count))
    if not first or are_apart or any(index.dtype not in _INDICES for _, index in chosen):
        return None
    found = [values(index) for _, index in chosen]
    known = [tensor for tensor in found if tensor is not None]
    if len(known) < count:
        return None
    flat = torch.zeros((), dtype=torch.int64)
    for (axis, _), tensor in zip(chosen, torch.broadcast_tensors(*known), strict=True):
        size = sizes[axis]
        if bool(((tensor < -size) | (tensor >= size)).any()):  # which torch refuses
            return None
        flat = flat * size + tensor % size
    return Places(first, count, tuple(flat.flatten().tolist()), tuple(flat.shape))


def chosen_in_rows(indices: list[Any], rows: int) -> Chosen | None:
    """What every row chooses for itself, as in ``x[torch.arange(B), i]``; ``None`` for another index.

    Args:
        indices: for each axis its index, or ``None``.
        rows: the number of rows in the trace.
    """
    if not indices or not isinstance(indices[0], Node) or not is_row_number(indices[0], rows):
        return None
    others = [(axis, index) for axis, index in enumerate(indices) if axis and index is not None]
    if any(index.dtype not in _INDICES for _, index in others):
        return None  # a mask
    rank = max(len(index.shape) for index in indices if index is not None)
    if len(indices[0].shape) < rank:  # its first axis stands for another one
        return None
    return Chosen(tuple(axis for axis, _ in others), tuple(index for _, index in others), rank)


def is_row_number(node: Node, rows: int) -> bool:
    """Whether a tensor holds the number of each row, with or without axes along which it is repeated."""
    if not node.shape or any(size and size % rows == 0 for size in node.shape[1:]):
        return False
    if node.op is not None and operation(node) == "expand":
        node = node.args[0]
    if node.shape != (rows, *(1,) * (len(node.shape) - 1)):
        return False
    while node.op is not None and operation(node) in _UNCHANGED and node.dtype in _INDICES:
        node = node.args[0]
    if node.op is None or operation(node) != "arange" or node.dtype not in _INDICES:
        return False
    given = by_name(node)
    return (given.get("start", 0), given["end"], given.get("step", 1)) == (0, rows, 1)


_INDICES = torch.int32, torch.int64
"""Dtypes that count all rows there may be, and that torch indexes with."""

_UNCHANGED = VIEWS | words("_to_copy clone detach")
"""Operations that leave numbers in their order, where they leave the shape."""
