"""The reference implementation: a Python loop over the cell, one step after the other."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from cello.cells.contract import Cell, CellError, State
from cello.engines.contract import Direction, DirectionResult, Engine, Scan
from cello.engines.sequence import Sequence
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.rows_held import RowsHeld, gives_each_row_its_own
from cello.foreign.structure import describe


class Reference(Engine):
    """A Python loop over the cell: for any cell, device and dtype, and for every transform of torch."""

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
    finished: list[
        State
    ] = []  # final states of sequences that have ended; the longest sequence is the last
    lengths = sequence.layout.lengths
    if lengths is not None:
        lengths = lengths.to(sequence.data.device)
    # One step may have as many rows as a symbol of a graph says.
    rows = [sequence.data] if sequence.steps == 1 else sequence.data.split(sequence.batch_sizes)
    for step, x in enumerate(rows):
        if state is not None and len(x) < len(state[0]):
            finished.append(tuple(part[len(x) :] for part in state))
            state = tuple(part[: len(x)] for part in state)
        try:
            if step == 0 and _may_be_reordered(sequence):
                output, new_state = _hold_to_order(cell, sequence, x, state)
            else:
                output, new_state = cell(x, state)
        except RuntimeError as error:
            others = _elsewhere(cell, x.device, state)
            if type(error) is not RuntimeError:
                raise
            if others:
                raise RuntimeError(
                    f"{error}\nThe input of {cell.label} is on {x.device}. These tensors are not: "
                    f"{', '.join(others)}"
                ) from error
            batch = sequence.batch_size
            if len(x) == batch or not re.search(rf"\b{batch}\b", str(error)):
                raise
            raise RuntimeError(f"{error}\n{_rest(len(x), sequence)}") from error
        _check(cell, sequence, x.shape[0], output, state, new_state)
        if lengths is not None:
            assert state is not None  # whoever does not know the lengths makes one ahead
            alive = step < lengths
            output = _where(alive, output, torch.zeros_like(output))
            kept = tuple([_where(alive, new, torch.zeros_like(new)) for new in new_state])
            pairs = zip(new_state, state, strict=True)
            new_state = tuple([_where(alive, new, old) for new, old in pairs])
        else:
            kept = new_state
        state = new_state
        outputs.append(output)
        if keep_states:
            history.append(kept)
    assert state is not None  # a sequence has at least one step
    finished.append(state)
    return DirectionResult(
        output=torch.cat(outputs),
        state=tuple(torch.cat(parts) for parts in zip(*reversed(finished), strict=True)),
        states=tuple(torch.cat(parts) for parts in zip(*history, strict=True)),
    )


def _where(alive: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows of the sequences that go on, and the old ones of those that have ended."""
    return torch.where(alive.view(-1, *(1 for _ in new.shape[1:])), new, old)


def _may_be_reordered(sequence: Sequence) -> bool:
    """Whether rows may be in another order than in the caller's batch; without reading numbers of a GPU."""
    order = sequence.layout.order
    return (
        sequence.batch_size > 1
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None  # which shows other tensors below
        and order is not None
        and not (order.is_cpu and sequence.layout.is_in_order())
    )


def _hold_to_order(
    cell: Cell, sequence: Sequence, x: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """Run the first step of sequences that may be in another order than in the caller's batch.

    Raises:
        CellError: the cell holds rows in the order of that batch, and pairs them with others here.
    """
    reach = Reach(cell)
    watch = RowsHeld(len(x), (x, *(state or ())), reach.tensors)
    with watch:
        output, new_state = cell(x, state)
    watch.take((output, *new_state))
    if watch.found is None or sequence.layout.is_in_order():
        return output, new_state
    if not gives_each_row_its_own(cell, x, state):
        path = reach.path(watch.found)
        where = "a tensor" if path is None else path.readable
        raise CellError(
            f"{cell.label} holds {where} {tuple(watch.found.shape)} and pairs it with the {len(x)} "
            "sequences of the batch, one by one. Sequences of different lengths run in the order of "
            "decreasing lengths, which is not that of this batch. Make it a part of the input or of the "
            "state, or sort the batch by decreasing lengths"
        )
    return output, new_state


def _rest(rows: int, sequence: Sequence) -> str:
    """What to say of a step that comes after the end of some sequences."""
    return (
        f"At this step {rows} of {sequence.batch_size} sequences go on, those of the largest lengths. A "
        "tensor that the cell holds for each sequence has more rows: make it a part of the input or of the "
        "state"
    )


_MAX_NAMES = 4
"""How many tensors on another device are named."""


def _elsewhere(cell: Cell, device: torch.device, state: State | None) -> list[str]:
    """Name what is on another device than the input of a step, and so may have made it fail."""
    told = [
        f"state {name!r} on {part.device}"
        for name, part in zip(cell.state_names, state or (), strict=False)
        if part.device != device
    ]
    registered = []
    for prefix, module in cell.named_modules():
        owned = {**module._parameters, **module._buffers}
        for name, value in (*vars(module).items(), *owned.items()):
            if isinstance(value, Tensor) and value.device != device:
                path = Path((*filter(None, prefix.split(".")), name)).readable
                if name in owned:
                    registered.append(f"{path} on {value.device}")
                else:
                    told.append(
                        f"{path} on {value.device} (a plain attribute, which .to() does not move: "
                        "register_buffer makes a buffer of it)"
                    )
    told += registered
    more = len(told) - _MAX_NAMES
    return [*told[:_MAX_NAMES], f"and {more} more"] if more > 0 else told


def _check(
    cell: Cell, sequence: Sequence, rows: int, output: Tensor, old: State | None, new: State
) -> None:
    """Check the result of a step; a cell that passed its trial may still break a rule later.

    Raises:
        CellError: the output or a part of the state has another number of rows than the input, or a
            part changed its shape.
    """
    names = cell.state_names
    if len(new) != len(names):
        raise CellError(
            f"{cell.label} returned a state of {len(new)} parts, expected {len(names)}: "
            f"{', '.join(names)}"
        )
    for name, part in zip(("output", *names), (output, *new), strict=True):
        if not isinstance(part, Tensor) or part.dim() == 0 or part.shape[0] != rows:
            what = "output" if part is output else f"state {name!r}"
            more = "" if rows == sequence.batch_size else f". {_rest(rows, sequence)}"
            raise CellError(
                f"{cell.label} returned the {what} as {describe(part)}, expected {rows} rows{more}"
            )
    for name, before, after in zip(names, old or new, new, strict=True):
        if before.shape != after.shape:
            raise CellError(
                f"{cell.label} changed the shape of the state {name!r} from {tuple(before.shape)} to "
                f"{tuple(after.shape)}; a cell must keep the shapes of its state"
            )
