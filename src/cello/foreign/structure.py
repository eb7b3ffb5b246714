"""The shape of a state as the user writes it: a tensor, a tuple, a named tuple, a dict, or nested ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Nested = Any
"""A tensor, or a tuple, list, named tuple or dict of nested ones (Python cannot type this recursion)."""

_CONTAINERS = (tuple, list)  # torch 2.9's dynamo knows no tuple | list


@dataclass(frozen=True)
class Structure:
    """How a nested state is put together from a flat tuple of tensors.

    Attributes:
        container: ``None`` for a tensor, else the class of the tuple (``tuple``, ``list`` or the
            class of a named tuple), or ``dict``.
        children: the structure of each element of a container.
        keys: those of a dict.
    """

    container: type | None = None
    children: tuple[Structure, ...] = ()
    keys: tuple[Any, ...] = ()
    _is_plain_tuple: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_plain = self.container is tuple and all(c.container is None for c in self.children)
        object.__setattr__(self, "_is_plain_tuple", is_plain)

    @classmethod
    def of(cls, nested: Nested, is_leaf: Callable[[Any], bool] = torch.is_tensor) -> Structure:
        """Read the structure off an example.

        Args:
            nested: the example.
            is_leaf: what counts as a leaf; tensors unless said otherwise.

        Raises:
            TypeError: something in it is neither a leaf nor a tuple or list.
        """
        if is_leaf(nested):
            return LEAF
        if isinstance(nested, _CONTAINERS):
            return cls(type(nested), tuple(cls.of(item, is_leaf) for item in nested))
        if isinstance(nested, dict) and nested:
            return cls(dict, tuple(cls.of(v, is_leaf) for v in nested.values()), tuple(nested))
        raise TypeError(
            f"expected a tensor, or a tuple, named tuple or dict of tensors, got {type(nested).__name__}"
        )

    def __len__(self) -> int:
        """The number of tensors in it."""
        return 1 if self.container is None else sum(len(child) for child in self.children)

    def flatten(self, nested: Nested) -> tuple[Any, ...]:
        """Return the leaves of `nested` in order.

        Raises:
            TypeError: `nested` does not have this structure.
        """
        if self._is_plain_tuple and type(nested) is tuple and len(nested) == len(self.children):
            return nested
        return tuple(self._leaves(nested))

    def _leaves(self, nested: Nested) -> Iterator[Any]:
        if self.container is None:
            yield nested
            return
        if self.container is dict:
            if not isinstance(nested, dict) or nested.keys() != set(self.keys):
                raise TypeError(f"expected {self}, got {describe(nested)}")
            nested = [nested[key] for key in self.keys]
        # A tuple stands for a list and the other way round: cells and callers mix them freely.
        if not isinstance(nested, _CONTAINERS) or len(nested) != len(self.children):
            raise TypeError(f"expected {self}, got {describe(nested)}")
        for child, item in zip(self.children, nested, strict=True):
            yield from child._leaves(item)

    def unflatten(self, leaves: Sequence[Any]) -> Nested:
        """Put `leaves` together again: the inverse of :meth:`flatten`."""
        if self._is_plain_tuple and len(leaves) == len(
            self.children
        ):  # an LSTM's pair, once a step
            return tuple(leaves)
        if len(leaves) != len(self):
            raise TypeError(f"expected {len(self)} tensors for {self}, got {len(leaves)}")
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Nested:
        if self.container is None:
            return next(leaves)
        items = [child._build(leaves) for child in self.children]
        if self.container is dict:
            return dict(zip(self.keys, items, strict=True))
        if hasattr(self.container, "_fields"):  # a named tuple takes its items one by one
            return self.container(*items)
        return self.container(items)

    def same_as(self, other: Structure) -> bool:
        """Whether both nest in the same way; a tuple, a list and a named tuple count as the same."""
        if self.container is None or other.container is None:
            return self.container is other.container
        if self.container is dict or other.container is dict:
            named = (dict(zip(one.keys, one.children, strict=False)) for one in (self, other))
            first, second = named
            same = first.keys() == second.keys() and self.container is other.container
            return same and all(first[key].same_as(second[key]) for key in first)
        return len(self.children) == len(other.children) and all(
            a.same_as(b) for a, b in zip(self.children, other.children, strict=True)
        )

    def has_names(self) -> bool:
        """Whether a named tuple or a dict is among the containers."""
        is_named = self.container is dict or hasattr(self.container, "_fields")
        return is_named or any(child.has_names() for child in self.children)

    def names(self) -> tuple[str, ...]:
        """Return a name for each leaf.

        A lone tensor is ``h``, a pair ``h, c`` as in an LSTM; a named tuple and a dict give their own
        names, and everything else is numbered ``s0, s1, ...``.
        """
        fields = getattr(self.container, "_fields", None)
        if self.keys and all(isinstance(key, str) for key in self.keys):
            fields = self.keys
        if fields is not None and len(self) == len(fields):
            return tuple(fields)
        return {1: ("h",), 2: ("h", "c")}.get(len(self), tuple(f"s{k}" for k in range(len(self))))

    def __str__(self) -> str:
        if self.container is None:
            return "a tensor"
        if self.container is dict:
            parts = zip(self.keys, self.children, strict=True)
            return f"{{{', '.join(f'{key!r}: {child}' for key, child in parts)}}}"
        return f"({', '.join(str(child) for child in self.children)})"


LEAF = Structure()


def describe(nested: Nested) -> str:
    """Describe what a cell took or gave, for messages: shapes in the place of tensors."""
    if isinstance(nested, Tensor):
        return f"a tensor {tuple(nested.shape)}"
    if isinstance(nested, _CONTAINERS):
        inner = ", ".join(describe(item) for item in nested)
        if isinstance(nested, list):
            return f"[{inner}]"
        return f"({inner},)" if len(nested) == 1 else f"({inner})"
    if isinstance(nested, dict):
        return f"{{{', '.join(f'{key!r}: {describe(item)}' for key, item in nested.items())}}}"
    return "None" if nested is None else type(nested).__name__
