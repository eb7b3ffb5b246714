"""Runs layers one after the other, with dropout between them, and merges their directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cello.cells.contract import State
from cello.engines import Direction, DirectionResult, Scan, Sequence, run

Merge = Callable[[tuple[Tensor, ...]], Tensor]

MERGES: dict[str, Merge] = {
    "concat": lambda outputs: torch.cat(outputs, dim=1),
    "sum": lambda outputs: outputs[0] + outputs[1],
    "mean": lambda outputs: (outputs[0] + outputs[1]) / 2,
    "mul": lambda outputs: outputs[0] * outputs[1],
    "none": lambda outputs: torch.cat(outputs, dim=1),
}
"""Functions that merge the outputs of the two directions, (N, H) each. With "none" the caller gets both
outputs separately, and the next layer reads them concatenated."""


class StackResult(NamedTuple):
    """The result of a stack of layers.

    Attributes:
        outputs: the last layer's output (N, D*H), or one output (N, H) for each direction if they
            are not merged.
        states: for each layer, for each direction, the final state.
        history: for each layer, for each direction, the states of all steps, (N, ...) each; empty
            tuples for layers whose states were not kept.
    """

    outputs: tuple[Tensor, ...]
    states: list[list[State]]
    history: list[list[tuple[Tensor, ...]]]


def run_stack(
    sequence: Sequence,
    layers: list[tuple[Direction, ...]],
    *,
    merge: str = "concat",
    dropout: float = 0.0,
    keep_states: str = "none",
) -> StackResult:
    """Run layers one after the other; each layer reads the merged outputs of the previous one.

    Args:
        sequence: the input of the first layer.
        layers: the directions of each layer, with their cells and initial states.
        merge: a key of :data:`MERGES`.
        dropout: the probability of zeroing an element between two layers (not after the last one).
        keep_states: the layers whose states of all steps are kept: "none", "last" or "all".
    """
    results: list[tuple[DirectionResult, ...]] = []
    for depth, directions in enumerate(layers):
        is_last = depth == len(layers) - 1
        keep = keep_states == "all" or (keep_states == "last" and is_last)
        results.append(run(Scan(sequence, directions, keep)))
        outputs = tuple(result.output for result in results[-1])
        if not (is_last and merge == "none") and len(outputs) == 2:
            outputs = (MERGES[merge](outputs),)
        if not is_last:
            data = F.dropout(outputs[0], dropout) if dropout > 0 else outputs[0]
            sequence = sequence.with_data(data)
    return StackResult(
        outputs=outputs,
        states=[[result.state for result in layer] for layer in results],
        history=[[result.states for result in layer] for layer in results],
    )
