"""The answers that a step most often gets where it asks for truth values; whether others are errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile.assumed import Numbers, first_other, next_state
from cello.compile.node import Trace, depends_on_rows
from cello.compile.reasons import CannotCompile, Raises
from cello.compile.trace import trace
from cello.foreign.scope import Watch


def _numbers_of(cell: Cell, x: Tensor, state: Sequence[Tensor]) -> list[Numbers]:
    """The numbers of one step, or of two if there are so many rows; none of tensors without numbers."""
    is_plain = all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta for t in (x, *state))
    if not is_plain or torch.compiler.is_compiling():
        return []
    rows = min(len(state[0]), len(x))
    state = [part[:rows] for part in state]
    second = x[rows : 2 * rows] if 2 * rows <= len(x) else x[:rows]
    return [Numbers(cell, x[:rows], state), Numbers(cell, second, state)]


def traced_with_answers(
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    label: str,
    watch: Watch,
    autocast: torch.dtype | None,
    is_second: bool,
) -> Trace:
    """Trace a step; where it asks for truth values, with the answers that it most often gets.

    Args:
        cell: the cell.
        x: rows of its input.
        state: a state.
        label: what messages call the cell.
        watch: is shown what runs.
        autocast: the dtype that torch.autocast casts to.
        is_second: whether the answers are those of the second step, since at the first one many cells do
            something else; else those of the first one.
    """

    def told_by(numbers: Numbers) -> Trace:
        seen = Watch()
        found = trace(cell, x, state, label, seen, autocast, numbers=numbers)
        watch.become(seen)
        return found

    steps = _numbers_of(cell, x, state)
    if not is_second:
        if not steps:
            raise CannotCompile(f"the numbers that {label} asks for are not known here")
        return told_by(steps[0])
    usual = trace(cell, x, state, label, watch, autocast)
    if not usual.questions or not steps:
        return usual
    try:
        first = usual if first_other(usual, steps[0]) is None else told_by(steps[0])
        second = steps[1]._replace(state=next_state(first, steps[0]))
        return first if first_other(first, second) is None else told_by(second)
    # That way it may go only here, as where it raises an error; or tensors do not fit, as a run will say.
    except Exception:
        return usual


def hold_assertions(
    traced: Trace, cell: Cell, x: Tensor, state: tuple[Tensor, ...], label: str
) -> None:
    """Refuse a step that asks for what depends on random numbers, unless another answer is an error.

    Steps that are otherwise are run anew, with other random numbers: those that are not would be too many.

    Raises:
        CannotCompile: it does.
    """
    if not traced.is_random:
        return
    known: dict[int, bool] = {}
    answers = traced.answers
    for place, question in enumerate(traced.questions):
        if question.is_assertion or not depends_on_rows(question.node, known):
            continue
        others = [*answers[:place], not answers[place]]
        try:
            trace(cell, x, state, label, Watch(), traced.autocast, others)
        except Raises:
            continue
        except CannotCompile:
            pass
        raise CannotCompile(
            f"{label} draws random numbers, and asks in Python for what depends on the values of tensors: "
            f"{question.told}"
        )
