"""One step of a cell as a list of ATen operations.

The cell runs once on tensors without memory (torch's "meta" device), below autograd and with writes in
place turned into new values. Every operation that reaches torch's dispatcher is written down, with the
line of the cell that asked for it. Nothing is computed and no random number is drawn.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile.asked import Asked
from cello.compile.assumed import Numbers, replay_for
from cello.compile.custom import CustomFunctions
from cello.compile.node import Trace
from cello.compile.reasons import CannotCompile, Raises, line_of
from cello.compile.recorder import StepRecorder
from cello.foreign.memoryless import (
    without_cache,
    without_compiler,
    without_hooks,
    without_symbols,
    without_tracer,
)
from cello.foreign.reach import Reach
from cello.foreign.scope import Watch
from cello.foreign.undo import Undo


@dataclass(frozen=True)
class Tracer:
    """Traces one step of a cell, as often as it is asked to.

    Args:
        cell: the cell; whatever a step changes in it, or elsewhere, is put back.
        x: rows of its input; only shape and dtype count.
        state: a state, likewise.
        label: what messages call the cell.
        autocast: the dtype that torch.autocast casts to, or ``None`` where it is off.
        undo: puts back what a step changes.
        answers: what a step is told where it asks for truth values, as far as that is known.
        numbers: numbers that answer instead, if there are any.
    """

    cell: Cell
    x: Tensor
    state: tuple[Tensor, ...]
    label: str
    autocast: torch.dtype | None
    undo: Undo
    answers: Sequence[bool] = ()
    numbers: Numbers | None = None

    def trace(
        self,
        rows: int,
        watch: Watch | None = None,
        *,
        reach: Reach | None = None,
        tells_rows: bool = False,
        most: int | None = None,
    ) -> Trace:
        """Return the trace of a step.

        Args:
            rows: the size of its batch; a prime tells what counts rows.
            watch: is shown what runs.
            reach: what the step can read, where that is known better than from the cell alone.
            tells_rows: whether the trace says what a step asks of the number of rows.
            most: how many operations it may have.

        Raises:
            TooLongError: it has more.
            CannotCompile: the step raises an error, changes what outlives it, or does what no trace holds.
        """
        reach, watch = reach or self.undo.reach, watch or Watch()
        device = self.x.device
        recorder = StepRecorder(
            self.cell, reach, self.label, self.autocast, rows, tells_rows, watch, device
        )
        recorder.most, recorder.answers = most, self.answers
        given = [
            torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
            for tensor in (self.x, *self.state)
        ]
        x_node = recorder.enter(given[0], "x")
        state_nodes = tuple(recorder.enter(part, index) for index, part in enumerate(given[1:]))
        if self.numbers is not None:
            recorder.replay = replay_for(rows, x_node, state_nodes, self.numbers)
        asked = Asked(self.label, recorder, self.undo.reach)

        def step(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            asked.note(x, *state)
            output, new_state = self.cell(x, state)
            asked.note(output, *new_state)
            return (output, *new_state)

        try:
            # Gradient mode is on to see where the cell turns it off; no hook of the caller's is to meet
            # what autograd saves meanwhile.
            with (
                torch.enable_grad(),
                without_hooks(),
                without_compiler(),
                without_symbols(),
                without_tracer(),
                without_cache(),
                torch._C._DisablePythonDispatcher(),  # with which torch.export keeps composite operations
                _without_autocast(device.type),
                asked,
                asked.counting_lengths(),
                CustomFunctions(self.label, recorder, asked).seen(),
                recorder,
                watch,
            ):
                results = torch.func.functionalize(step)(*given)
        except CannotCompile:
            raise
        except Exception as error:
            if recorder.is_too_long:
                raise TooLongError from None
            if recorder.refusal is not None:
                raise recorder.refusal from None
            hold_calls(self.label, watch)
            _hold_still(self.undo.restore(recorder.is_made))
            kind = Raises if _is_raised(error) else CannotCompile
            raise kind(_told(self.label, error, rows)) from error
        finally:
            changed = self.undo.restore(recorder.is_made)
        if recorder.is_too_long:  # which the cell has caught
            raise TooLongError
        if recorder.refusal is not None:  # which the cell has caught
            raise recorder.refusal
        _hold_still(changed)
        output, *new_state = (recorder.node(result) for result in results)
        return Trace(
            tuple(recorder.nodes),
            x_node,
            state_nodes,
            output,
            tuple(new_state),
            rows,
            self.autocast,
            tuple(recorder.calls),
            recorder.counted or watch.calls_operators,
            questions=tuple(recorder.questions),
            lines=tuple(recorder.lines),
        )


class TooLongError(Exception):
    """A step has more operations than its trace was to have."""


def hold_calls(label: str, watch: Watch) -> None:
    """Refuse a step that calls what may answer otherwise at another call.

    Raises:
        CannotCompile: the message names it.
    """
    if watch.refusal is not None:
        raise CannotCompile(
            f"{label} calls {watch.refusal}, which may answer otherwise at another step or call, or "
            "changes something"
        )


def _hold_still(changed: list[str]) -> None:
    """Refuse a step that changes what outlives it.

    Raises:
        CannotCompile: something is in the list of what has changed.
    """
    if changed:
        names = ", ".join(changed)
        raise CannotCompile(
            f"the cell changes {names} in a step; what the next step needs belongs in the state"
        )


def _is_raised(error: Exception) -> bool:
    """Whether a statement has raised an error, and no operation that meets a tensor without memory."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or isinstance(error, NotImplementedError):
        return False
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _told(label: str, error: Exception, rows: int) -> str:
    """Return what to say of an error that a step raised in a trace on some rows."""
    told = (str(error).splitlines() or [""])[0]
    message = (
        f"{label} could not be traced{line_of(error.__traceback__)}: {type(error).__name__}: {told}"
    )
    if "mutating a non-functional tensor" in told:
        return (
            f"{label} writes into a part of a tensor that it holds{line_of(error.__traceback__)}; make it "
            "a part of the state"
        )
    if re.search(r"\bmeta\b", told) and "device" in told:
        return (
            f"{label} calls a function{line_of(error.__traceback__)} that asks where its tensors are, "
            "which have no memory while a step is traced; written with other operations it may compile"
        )
    if f" {rows} " in told or f"({rows})" in told or f"({rows}x" in told or f"[{rows}," in told:
        message += f"; the step is traced on {rows} rows, and fits one batch size only"
    return message


@contextmanager
def _without_autocast(device: str) -> Iterator[None]:
    """Switch torch.autocast off: it casts weights, and not tensors without memory, and keeps the casts."""
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        yield
        return
    torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, True)
