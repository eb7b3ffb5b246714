"""Which results of a loop autograd links to which tensors, as it would in the cell's own code.

A link is more than a gradient that is not zero: ``torch.round(w * h)`` is linked to w, whose gradient is
zero, and not ``None``. What is detached, compared or counted is not linked to what it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import compress

from cello.compile.derive import Used
from cello.compile.instructions import Instruction, Loop, Pointwise, Reduce, Ruled, Value

Flags = tuple[bool, ...]

_NONE = frozenset[int]()
_LINKED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne", "not", "stop"), ()),
    "where": (1, 2),
    "replace": (0,),
    "select": (2,),
    "rank": (),
}
"""The operands that are linked to the result, of operations where these are not all."""


class Links:
    """The links of a step.

    Args:
        loop: the step.
        outputs: what it returns for each step, beside the new states at the end.
    """

    def __init__(self, loop: Loop, outputs: Sequence[Value]) -> None:
        leaves = [*loop.inputs, *loop.statics, *loop.states]
        first = len(leaves) - len(loop.states)
        self.leaves = range(len(leaves))
        self.states = frozenset(self.leaves[first:])
        known = {leaf: frozenset([k]) for k, leaf in enumerate(leaves)}
        for instruction in loop.body:
            found = [known.get(value, _NONE) for value in _linked(instruction)]
            known[instruction.out] = _NONE.union(*found)
        self.outputs = [known.get(value, _NONE) for value in outputs]
        self.new_states = [known.get(value, _NONE) for value in loop.new_states]

    @lru_cache(maxsize=64)  # noqa: B019 - it lives as long as its program
    def have_gradients(self, leaves: Flags, steps: int, is_dense: bool) -> Flags:
        """Whether each output and each final state has a gradient.

        Args:
            leaves: whether each input, static and initial state has one.
            steps: T.
            is_dense: whether all sequences have T steps.
        """
        now = frozenset(k for k in self.leaves if leaves[k])
        fixed, ever = now - self.states, now
        for _ in range(steps - 1):
            new = zip(sorted(self.states), self.new_states, strict=True)
            before, now = now, fixed.union(state for state, links in new if links & now)
            ever |= now
            if now == before:
                break
        last = now if is_dense else ever
        outputs = (bool(links & ever) for links in self.outputs)
        return (*outputs, *(bool(links & last) for links in self.new_states))

    @lru_cache(maxsize=64)  # noqa: B019
    def get_gradients(self, used: Used, steps: int, is_dense: bool) -> Flags:
        """Whether each input, static and initial state gets a gradient.

        Args:
            used: whether each output and each final state has one.
            steps: T.
            is_dense: whether all sequences have T steps.
        """
        count = len(self.outputs)
        each = _NONE.union(*compress(self.outputs, used[:count]))
        now = each.union(*compress(self.new_states, used[count:]))
        ever = now
        for _ in range(steps - 1):
            carried = (state in now for state in sorted(self.states))
            before, now = now, each.union(*compress(self.new_states, carried))
            ever |= now
            if now == before:
                break
        first = now if is_dense else ever
        return tuple([k in (first if k in self.states else ever) for k in self.leaves])


def _linked(instruction: Instruction) -> Iterable[Value]:
    """What autograd links the result of an instruction to."""
    if isinstance(instruction, Ruled):
        return [target.value for _, target, _ in instruction.rule.given]
    if isinstance(instruction, Pointwise | Reduce) and instruction.op in _LINKED:
        return [instruction.args[k].value for k in _LINKED[instruction.op]]
    return instruction.reads()
