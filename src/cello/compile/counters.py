"""How far the integers in a state may grow from step to step, such as a counter of steps."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from cello.compile.integers import (
    CHOOSES,
    MOST_IN_STATE,
    Integers,
    filled_with,
    is_integer,
    operands_of,
)
from cello.compile.node import FACTORIES, Node, Trace, by_name, operation
from cello.compile.reasons import CannotCompile


class Growth(NamedTuple):
    """The size of an integer after a step, where those of the state are at most m: max(least, m + step).

    Attributes:
        least: what it may be, however small those of the state are.
        step: how much larger than these it may be; minus infinity if it does not depend on them.
    """

    least: float
    step: float

    def after(self, steps: int, start: float) -> float:
        """The size after so many steps from an integer of at most `start`."""
        return max(self.least, start) + steps * max(self.step, 0)


def growth(trace: Trace, label: str, integers: Integers) -> Growth | None:
    """Return how the integers of a state grow, or ``None`` where it has none.

    Args:
        trace: the step.
        label: what messages call the cell.
        integers: the bounds of its integers in one step.

    Raises:
        CannotCompile: they may grow in another way than by adding the same at each step.
    """
    if not any(is_integer(node.dtype) for node in trace.state):
        return None
    known: dict[int, Growth] = {}

    def of(operand: Any) -> Growth:
        if not isinstance(operand, Node):
            return Growth(abs(operand), -inf)
        return known.get(id(operand)) or Growth(max(map(abs, integers.span(operand))), -inf)

    for node in trace.nodes:
        if not is_integer(node.dtype):
            continue
        if type(node.source) is int:
            known[id(node)] = Growth(0, 0)
        elif node.op is not None:
            name = operation(node)
            made_of = [filled_with(node, name)] if name in FACTORIES else operands_of(node)
            parts = [of(operand) for operand in made_of]
            if any(part.step > -inf for part in parts):
                known[id(node)] = _made(node, parts, of(node))
    found = [of(node) for node in trace.new_state if is_integer(node.dtype)]
    least, step = (max(numbers) for numbers in zip(*found, strict=True))
    if least > MOST_IN_STATE:
        raise CannotCompile(
            f"the integers in the state of {label} may grow beyond {MOST_IN_STATE}, which is how far the "
            "loop counts in a state: sums with other integers, bounds and remainders are sure to stay below"
        )
    return Growth(least, step)


def _made(node: Node, parts: list[Growth], by_itself: Growth) -> Growth:
    """How an integer grows that is made of others, and which bound it has by itself."""
    if by_itself.least < MOST_IN_STATE:
        return by_itself
    name = operation(node)
    if name in CHOOSES | FACTORIES | {"_to_copy", "neg", "abs", "relu"}:
        return Growth(max(p.least for p in parts), max(p.step for p in parts))
    are_moving = [part.step > -inf for part in parts]
    if name in ("add", "sub", "rsub") and sum(are_moving) == 1:
        factors = [1, abs(by_name(node)["alpha"])]
        if name == "rsub":  # other - alpha * self
            factors.reverse()
        moving = parts[are_moving.index(True)]
        if factors[are_moving.index(True)] == 1:
            other = parts[are_moving.index(False)].least * factors[are_moving.index(False)]
            return Growth(moving.least + other, moving.step + other)
    if name == "mul" and sum(are_moving) == 1 and parts[are_moving.index(False)].least <= 1:
        return parts[are_moving.index(True)]
    return Growth(inf, inf)
