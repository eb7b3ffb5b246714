"""Whether an input, the weights and the states are on one device; the messages name what is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cello.cells.contract import Cell, Equations, State


def check_devices(
    cells: Sequence[Sequence[Cell]],
    initial: Sequence[Sequence[State | None]],
    is_given: bool,
    device: torch.device,
) -> None:
    """Check that weights and states are on the device of the input, for cells that bring none there.

    Args:
        cells: of all layers and directions.
        initial: the state that each begins with, if any.
        is_given: whether the caller gave it.
        device: of the input.

    Raises:
        RuntimeError: one is not; the message names it.
    """
    for layer, (directions, states) in enumerate(zip(cells, initial, strict=True)):
        for direction, (cell, state) in enumerate(zip(directions, states, strict=True)):
            if not isinstance(cell, Equations):
                continue
            suffix = f"_l{layer}{'_reverse' if direction == 1 else ''}"
            held = vars(cell)
            check_weights(device, [(name + suffix, held[name]) for name in cell.weights])
            for index, part in enumerate(state or ()):
                if part.device != device:
                    name = cell.state_names[index]
                    given = "hx" if len(cell.state) == 1 else f"hx[{index}] ({name})"
                    check_state(device, given if is_given else f"initial_{name}{suffix}", part)


def check_weights(device: torch.device, weights: Iterable[tuple[str, Tensor | None]]) -> None:
    """Check that weights are on the device of the input.

    Raises:
        RuntimeError: one is not; the message names it.
    """
    for name, weight in weights:
        if weight is not None and weight.device != device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{device} and parameter tensor {name} at {weight.device}; move the input with "
                "input.to(device), or the weights with module.to(device)"
            )


def check_state(device: torch.device, name: str, part: Tensor) -> None:
    """Check that a part of a state is on the device of the input.

    Raises:
        RuntimeError: it is not.
    """
    if part.device != device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, found input tensor at "
            f"{device} and hidden tensor {name} at {part.device}"
        )
