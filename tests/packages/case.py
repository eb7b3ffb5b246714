"""A cell of somebody else's package, and what its package says that it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

Run = Callable[[Any, Tensor], "tuple[Tensor, Any]"]

CHANGES = "the cell changes its attribute"
UNSEEN = "under no_grad after a write in place"
MIXES = "in a way that does not keep the rows of a batch apart"


@dataclass(frozen=True)
class Case:
    """A cell of a package.

    Attributes:
        package: the name of its distribution.
        name: what it is called there, and how it was made where that matters.
        make: number of features and width -> the cell as it is given to Recurrent.
        run: the cell and x (T, B, F) -> the outputs (T, B, ...) and the final state, as the package
            computes them.
        state_size: number of features and width -> the argument of Recurrent, or ``None``.
        reason: what the reason not to compile begins with after the cell's name; ``None``: it compiles.
        error: what CellError says, where the cell cannot be run.
        adapter: whether `make` puts a small module of ours around the package's.
        widens: whether the width may differ from the number of features.
        spikes: whether it emits zeros and ones, of which a test must see both.
        scale: how strong an input it takes to make it spike.
        dtype: what it runs in: float64 where the package allows it.
        tolerance: how far its own run may be off: some keep a float32 in float64.
    """

    package: str
    name: str
    make: Callable[[int, int], Any]
    run: Run
    state_size: Callable[[int, int], Any] | None = None
    reason: str | None = None
    error: str | None = None
    adapter: bool = False
    widens: bool = True
    spikes: bool = False
    scale: float = 1.0
    tolerance: float = 1e-9
    dtype: torch.dtype = torch.float64

    @property
    def label(self) -> str:
        return f"{self.package}-{self.name}"


def installed(package: str) -> str | None:
    """The version of a package, or ``None`` where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def flat(state: Any) -> list[Tensor]:
    """The tensors of a nested state."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in flat(part)]


def stepwise(step: Callable[[Tensor, Any], tuple[Tensor, Any]], x: Tensor, state: Any) -> Any:
    outputs = []
    for row in x:
        output, state = step(row, state)
        outputs.append(output)
    return torch.stack(outputs), state
