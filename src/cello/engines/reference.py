"""The loop that everything else is measured against: the cell itself, one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from cello.cells.contract import Cell, CellError, State
from cello.engines.contract import Direction, DirectionResult, Engine, Scan
from cello.engines.sequence import Sequence


class Reference(Engine):
    """A Python loop over the cell: any cell, any device, any dtype, and every transform of torch."""

    name = "reference"
    is_fused = False

    def why_not(self, scan: Scan) -> list[str]:
        return []

    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        return tuple(_run_direction(scan, direction) for direction in scan.directions)


def _run_direction(scan: Scan, direction: Direction) -> DirectionResult:
    sequence = scan.sequence
    if not direction.reverse:
        return _loop(direction.cell, sequence, direction.state, scan.keep_states)
    result = _loop(direction.cell, sequence.reversed(), direction.state, scan.keep_states)
    return DirectionResult(
        output=sequence.reverse_rows(result.output),
        state=result.state,
        states=tuple(sequence.reverse_rows(rows) for rows in result.states),
    )


def _loop(
    cell: Cell, sequence: Sequence, state: State | None, keep_states: bool
) -> DirectionResult:
    outputs: list[Tensor] = []
    history: list[State] = []
    finished: list[State] = []  # the last states of sequences that have ended, longest last
    for x in sequence.data.split(sequence.batch_sizes):
        if state is not None and len(x) < len(state[0]):
            finished.append(tuple(part[len(x) :] for part in state))
            state = tuple(part[: len(x)] for part in state)
        output, new_state = cell(x, state)
        if state is not None:
            _check_shapes(cell, state, new_state)
        state = new_state
        outputs.append(output)
        if keep_states:
            history.append(state)
    assert state is not None  # a sequence has at least one step
    finished.append(state)
    return DirectionResult(
        output=torch.cat(outputs),
        state=tuple(torch.cat(parts) for parts in zip(*reversed(finished), strict=True)),
        states=tuple(torch.cat(parts) for parts in zip(*history, strict=True)),
    )


def _check_shapes(cell: Cell, old: State, new: State) -> None:
    for name, before, after in zip(cell.state_names, old, new, strict=True):
        if before.shape != after.shape:
            raise CellError(
                f"the state {name!r} of {cell.label} went into a step as "
                f"{tuple(before.shape)} and came out as {tuple(after.shape)}; "
                "a cell keeps the shapes of its state"
            )
