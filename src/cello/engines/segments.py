"""Long sequences in bounded memory: only the states between segments of steps are kept.

The backward pass runs each segment forward again before it computes the gradient (gradient checkpointing;
Chen et al., "Training deep nets with sublinear memory cost", 2016). That costs one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cello.cells.contract import Cell, State
from cello.engines.contract import Direction, DirectionResult, Scan
from cello.engines.sequence import Layout, Sequence

Run = Callable[[Scan], tuple[DirectionResult, ...]]


class _Held:
    """What the modules of a cell hold, which is to be the same when a segment runs again.

    Else its gradient would be that of another function. Buffers that a step writes into are left out.

    Args:
        cell: the cell.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell, self._found = cell, _facts(cell)
        self._is_settled = False

    def settle(self) -> None:
        """Say that the forward pass is over."""
        now = _facts(self._cell)
        self._found = {name: fact for name, fact in self._found.items() if fact == now.get(name)}
        self._is_settled = True

    def check(self) -> None:
        """Refuse to run a segment again if something has changed since the forward pass.

        Raises:
            RuntimeError: it has.
        """
        if not self._is_settled:
            return
        now = _facts(self._cell)
        for name, fact in self._found.items():
            if now.get(name) != fact:
                raise RuntimeError(
                    f"{name} of {self._cell.label} has changed since the forward pass; with segment= the "
                    "backward pass runs the steps again, and would give the gradient of another function"
                )


def _facts(cell: Cell) -> dict[str, tuple[Any, Any]]:
    """The tensors of a cell's modules with their versions, and their plain attributes, by name."""
    found: dict[str, tuple[Any, Any]] = {}
    for prefix, module in cell.named_modules():
        for name, value in (
            *vars(module).items(),
            *module._parameters.items(),
            *module._buffers.items(),
        ):
            path = f"{prefix}.{name}".removeprefix("cell.").removeprefix(".")
            if isinstance(value, Tensor):
                found[path] = (id(value), 0 if value.is_inference() else value._version)
            elif isinstance(value, bool | int | float | str):
                found[path] = (type(value), value)
    return found


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
    held = None
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        held = _Held(direction.cell)
    outputs: list[Tensor] = []
    history: list[tuple[Tensor, ...]] = []
    finished: list[State] = []
    for data, layout in zip(parts, layouts, strict=True):
        rows = layout.batch_size
        if state is not None and rows < len(state[0]):
            finished.append(tuple(part[rows:] for part in state))
            state = tuple(part[:rows] for part in state)
        output, state, states = _segment(
            data, state, layout, direction, scan.keep_states, run, held
        )
        outputs.append(output)
        history.append(states)
    if held is not None:
        held.settle()
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
    held: _Held | None,
) -> tuple[Tensor, State, tuple[Tensor, ...]]:
    def go(data: Tensor, *state: Tensor) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        if held is not None:
            held.check()
        start = Direction(direction.cell, state or None)
        (result,) = run(Scan(Sequence(data, layout), (start,), keep_states))
        return result.output, result.state, result.states

    if not torch.is_grad_enabled():
        return go(data, *(state or ()))
    return checkpoint(go, data, *(state or ()), use_reentrant=False)  # type: ignore[no-any-return]
