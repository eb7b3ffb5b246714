"""Whether a model folder holds all that a cell computes with: a file holds parameters and buffers only."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.tasks.errors import InputError


def hold_whole(label: str, layer: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Refuse a cell that would be another one after it was saved and loaded.

    Args:
        label: what messages call the cell.
        layer: the layer that holds it.
        make: makes the layer again.

    Raises:
        InputError: the cell holds a parameter that is not registered, which is neither trained nor saved,
            or a tensor that is not saved and comes out otherwise each time that the cell is made.
    """
    left_out = _left_out(layer)
    for (_, path), tensor in left_out.items():
        if isinstance(tensor, nn.Parameter):
            raise InputError(
                f"cell: {label} holds {path.readable}, a weight that is no parameter of it and would be "
                "neither trained nor saved: a module belongs in an attribute of an nn.Module, several in "
                "an nn.ModuleList"
            )
    if not left_out:
        return
    with _other_numbers():
        again = _left_out(make())
    for place, tensor in left_out.items():
        other, path = again.get(place), place[1]
        if other is not None and not _equal(tensor, other):
            raise InputError(
                f"cell: {label} holds {path.readable}, which is another one each time that the cell is "
                "made, and is no part of its state_dict: a model folder would not hold it. "
                f'self.register_buffer("{path.readable.rpartition(".")[2]}", ...) makes it one'
            )


def _left_out(layer: nn.Module) -> dict[tuple[str, Path], Tensor]:
    """The tensors that a layer's cells hold and no file does, by the name of the cell and their paths."""
    saved = {id(tensor) for tensor in layer.state_dict(keep_vars=True).values()}
    found: dict[tuple[str, Path], Tensor] = {}
    for name, cell in getattr(layer, "cells", nn.ModuleDict()).items():
        places = Reach(cell).places
        found |= {(name, path): t for path, t in places.items() if id(t) not in saved}
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return False
    a, b = (x if x.layout == torch.strided else x.to_dense() for x in (a, b))
    return bool(torch.all((a == b) | (a != a) & (b != b)))


@contextmanager
def _other_numbers() -> Iterator[None]:
    """Let all sources of random numbers give others than before, and put them back."""
    numpy = sys.modules.get("numpy.random")
    states = random.getstate(), None if numpy is None else numpy.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(torch.initial_seed() + 1)
        random.seed(random.random())
        if numpy is not None:
            numpy.seed(int(numpy.randint(1 << 31)))
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy is not None:
                numpy.set_state(states[1])
