"""The state that a foreign cell may take: what is said of it, and what may be guessed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from cello.cells.contract import CellError
from cello.foreign.adapt import FunctionCell, cell_name
from cello.foreign.structure import Nested, Structure

StateSize = Any
"""A width, a ``torch.Size``, or a tuple or dict of these, possibly nested."""

SAY_STATE_SIZE = (
    "Say it with state_size=: a width for a tensor, widths nested as the cell nests its state "
    "(20, 20), ((20, 20), 5) or MyNamedTuple(20, 20), or a dict, for one or to name the parts of a tuple: "
    'state_size={"h": 20, "c": 20}. A part of several axes is a torch.Size in the place of a width, '
    "or in a dict a tuple."
)


@dataclass(frozen=True)
class Guess:
    """A state as the cell may expect it: everything but the number of rows."""

    structure: Structure
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    names: tuple[str, ...] | None = None

    @classmethod
    def like(cls, state: Nested) -> Guess:
        structure = Structure.of(state)
        leaves = structure.flatten(state)
        shapes = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
        return cls(structure, shapes, tuple(leaf.dtype for leaf in leaves))

    def in_dtypes_of(self, other: Guess) -> Guess:
        return replace(self, dtypes=other.dtypes) if len(other.dtypes) == len(self.dtypes) else self

    def with_shape(self, index: int, shape: tuple[int, ...]) -> Guess:
        return replace(self, shapes=(*self.shapes[:index], shape, *self.shapes[index + 1 :]))

    def changed_to(self, shapes: tuple[tuple[int, ...], ...]) -> list[Guess]:
        """The same with another shape of one part, of each in turn, and then of all."""
        ones = [self.with_shape(index, shape) for index, shape in enumerate(shapes)]
        return [*ones, replace(self, shapes=shapes)]

    def as_dict(self) -> Guess:
        """The same parts by their names, which have been said."""
        assert self.names is not None
        return replace(self, structure=replace(self.structure, container=dict, keys=self.names))

    def without_last(self) -> Guess:
        children, keys = self.structure.children[:-1], self.structure.keys[:-1]
        structure = replace(self.structure, children=children, keys=keys)
        count = len(structure)
        return Guess(structure, self.shapes[:count], self.dtypes[:count])


def read_state_size(state_size: StateSize, dtype: torch.dtype) -> Guess:
    """Return the state of these sizes.

    Raises:
        TypeError: `state_size` is none.
    """
    names = None
    if isinstance(state_size, Mapping):
        names = tuple(state_size)
        state_size = tuple(map(_shape, state_size.values()))
    try:
        structure = Structure.of(state_size, is_leaf=_is_size)
    except TypeError:
        raise TypeError(
            "state_size must be a width above zero, a torch.Size, or a tuple or dict of these, "
            f"got {state_size!r}"
        ) from None
    sizes = structure.flatten(state_size)
    shapes = tuple((size,) if isinstance(size, int) else tuple(size) for size in sizes)
    if not shapes:
        raise TypeError(f"state_size must have one width at least, got {state_size!r}")
    if names is not None and len(names) != len(shapes):
        raise TypeError(f"state_size as a dict must not nest, got {state_size!r}")
    return Guess(structure, shapes, (dtype,) * len(shapes), names)


def _shape(size: Any) -> Any:
    """A part of a dict, which does not nest: a tuple of integers is its shape."""
    is_shape = type(size) in (tuple, list) and size and all(type(n) is int for n in size)
    return torch.Size(size) if is_shape else size


def _is_size(size: Any) -> bool:
    return isinstance(size, torch.Size) or (type(size) is int and size > 0)


class Signature:
    """What the parameters of a cell's ``forward`` say about it.

    Attributes:
        state_is_optional: whether the cell may be called with its input alone.
        third: the name of an argument after the state that may be left out, or ``None``.
    """

    state_is_optional = False
    third: str | None = None

    def __init__(self, cell: nn.Module) -> None:
        function = cell.function if isinstance(cell, FunctionCell) else cell.forward
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some built-in functions have no signature
            return
        if isinstance(function, torch._C.ScriptMethod) and "self" in signature.parameters:
            rest = list(signature.parameters.values())[1:]
            signature = signature.replace(parameters=rest)
        shown = f"{cell_name(cell)} is not a cell: it is called as cell(x, state)"
        try:
            signature.bind(None, None)
        except TypeError as error:
            written = next(
                iter(inspect.signature(getattr(function, "__func__", len)).parameters), ""
            )
            if inspect.ismethod(function) and written not in ("", "self"):
                shown = f"{shown} (its first parameter is {written!r}: is `self` missing?)"
            raise CellError(f"{shown}, but it has the arguments {signature}: {error}") from None
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p for p in signature.parameters.values() if p.kind in kinds]
        if len(positional) < 2:  # the rest goes to *args
            return
        default = positional[1].default
        self.state_is_optional = default is None or isinstance(default, tuple | list)
        if not self.state_is_optional and default is not inspect.Parameter.empty:
            raise CellError(
                f"{shown}, but its second argument is {str(positional[1])!r}; "
                "a state has no default but None"
            )
        self.third = positional[2].name if len(positional) > 2 else None


def candidate_widths(
    cell: nn.Module, feature_shape: tuple[int, ...], said: object = None
) -> list[int]:
    """The widths that a state may have, likely ones first; each is tried, none is trusted.

    They are what was `said`, `hidden_size`, other numbers among the cell's attributes, the sizes of its
    weights and buffers and of its input, and what is left of a weight over x and h side by side, or of
    one over several gates. Of a step of several axes the first one counts, too: it has the channels of
    an image.
    """
    sizes = {size for t in chain(cell.parameters(), cell.buffers()) for size in t.shape}
    features = {*feature_shape[-1:], *feature_shape[:1]}
    attributes = {value for value in vars(cell).values() if type(value) is int} & set(
        range(1, max(sizes | features, default=0) + 1)
    )
    beside_x = {size - f for size in sizes for f in features if size > f}
    per_gate = {size // gates for size in sizes for gates in (2, 3, 4) if size % gates == 0}
    first = [width for width in (said, getattr(cell, "hidden_size", None)) if type(width) is int]
    groups = (attributes, sizes | features, beside_x, per_gate)
    return list(dict.fromkeys(chain(first, *(sorted(group) for group in groups))))
