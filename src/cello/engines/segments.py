"""Long sequences in bounded memory: only the states between segments of steps are kept.

The backward pass runs each segment forward again before it computes the gradient (gradient checkpointing;
Chen et al., "Training deep nets with sublinear memory cost", 2016). That costs one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cello.cells.contract import State
from cello.engines.contract import Direction, DirectionResult, Scan
from cello.engines.sequence import Layout, Sequence

Run = Callable[[Scan], tuple[DirectionResult, ...]]


def run_in_segments(scan: Scan, steps: int, run: Run) -> tuple[DirectionResult, ...]:
    """Run `scan` in segments of `steps` steps.

    Args:
        scan: the scan.
        steps: the length of a segment.
        run: the function that runs a segment.
    """
    return tuple(_run_direction(scan, direction, steps, run) for direction in scan.directions)


def _run_direction(scan: Scan, direction: Direction, steps: int, run: Run) -> DirectionResult:
    sequence = scan.sequence.reversed() if direction.reverse else scan.sequence
    layouts = [
        sequence.layout.steps_from(start, start + steps)
        for start in range(0, sequence.steps, steps)
    ]
    # One split for all segments: the gradient of each slice would be as long as the sequence.
    parts = sequence.data.split([layout.rows for layout in layouts])
    state = direction.state
    outputs: list[Tensor] = []
    history: list[tuple[Tensor, ...]] = []
    finished: list[State] = []
    for data, layout in zip(parts, layouts, strict=True):
        rows = layout.batch_size
        if state is not None and rows < len(state[0]):
            finished.append(tuple(part[rows:] for part in state))
            state = tuple(part[:rows] for part in state)
        output, state, states = _segment(data, state, layout, direction, scan.keep_states, run)
        outputs.append(output)
        history.append(states)
    assert state is not None
    finished.append(state)
    result = DirectionResult(
        output=torch.cat(outputs),
        state=tuple(torch.cat(part) for part in zip(*reversed(finished), strict=True)),
        states=tuple(torch.cat(part) for part in zip(*history, strict=True)),
    )
    if not direction.reverse:
        return result
    return DirectionResult(
        scan.sequence.reverse_rows(result.output),
        result.state,
        tuple(scan.sequence.reverse_rows(rows) for rows in result.states),
    )


def _segment(
    data: Tensor,
    state: State | None,
    layout: Layout,
    direction: Direction,
    keep_states: bool,
    run: Run,
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    def go(data: Tensor, *state: Tensor) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        start = Direction(direction.cell, state or None)
        (result,) = run(Scan(Sequence(data, layout), (start,), keep_states))
        return result.output, result.state, result.states

    if not torch.is_grad_enabled():
        return go(data, *(state or ()))
    return checkpoint(go, data, *(state or ()), use_reentrant=False)  # type: ignore[no-any-return]
