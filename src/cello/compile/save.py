"""Chooses which values the forward loop saves and which the backward loop recomputes.

A minimum cut: every value that the backward loop reads is either kept, which costs its width for each
row of each step, or follows by pointwise instructions from values that are kept or at hand anyway.
Products and what compares all pairs are not computed again. The state before a step is the state after the
step before it: it is at hand wherever that is kept.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cello.compile.instructions import OF_PAIRS, Instruction, Loop, Product, Reduce, Value

_FREE, _ENDLESS = 0, 1 << 60


class Saved(NamedTuple):
    """What to save.

    Attributes:
        values: inputs and computed values whose rows the backward loop reads.
        befores: states that it reads as they were before the step; the values of which they are the
            rows one step earlier are among `values`.
        again: the instructions that it runs again.
    """

    values: list[Value]
    befores: list[Value]
    again: list[Instruction]


def choose_saved(forward: Loop, gradient: Loop) -> Saved:
    """Choose what to keep of each step, and what to compute again in the backward loop.

    Among equally small choices it takes the one that leaves the least to compute again.
    """
    makers = {instruction.out: instruction for instruction in forward.body}
    known = {*makers, *forward.states, *forward.inputs}
    needed = {value for instruction in gradient.body for value in instruction.reads()}
    needed |= {outer.row for outer in gradient.outers}
    needed |= {outer.gradient for outer in gradient.outers}
    needed |= {row_sum.source.value for row_sum in gradient.row_sums}
    needed &= known
    states = set(forward.states)
    # Which states are read depends on what is computed again, and the other way round: with all of them
    # at hand first, then with those kept that turned out to be read.
    kept, again = _cut(forward, makers, needed, {*forward.inputs, *forward.outputs, *states})
    read = needed | {value for instruction in again for value in instruction.reads()}
    after = [
        new for state, new in zip(forward.states, forward.new_states, strict=True) if state in read
    ]
    at_hand = {*forward.inputs, *forward.outputs, *after, *states}
    kept, again = _cut(forward, makers, needed | set(after), at_hand)
    read = needed | {value for instruction in again for value in instruction.reads()}
    befores = [state for state in forward.states if state in read]
    after = [forward.new_states[forward.states.index(state)] for state in befores]
    order = [*forward.inputs, *makers]
    saved = sorted((kept | set(after)) - states, key=order.index)
    return Saved(saved, befores, again)


def _cut(
    forward: Loop, makers: dict[Value, Instruction], needed: set[Value], at_hand: set[Value]
) -> tuple[set[Value], list[Instruction]]:
    """Return the values of a minimum cut in front of `needed`, and the instructions behind it."""
    known = {*makers, *forward.states, *forward.inputs}
    network = _Network()
    for value in known:
        network.edge((value, "in"), (value, "out"), _FREE if value in at_hand else value.width)
        maker = makers.get(value)
        if maker is None or _takes_long(maker):
            network.edge("source", (value, "in"), _ENDLESS)
        else:
            for read in maker.reads():
                if read in known:
                    network.edge((read, "out"), (value, "in"), _ENDLESS)
    for value in needed:
        network.edge((value, "out"), "sink", _ENDLESS)
    behind = network.behind_minimum_cut("source", "sink")
    kept = {v for v in known if (v, "out") in behind and (v, "in") not in behind}
    # What is at hand stops the search too, even where the cut lies elsewhere.
    again: set[Value] = set()
    queue = list(needed)
    while queue:
        value = queue.pop()
        if value in at_hand and value in needed:
            kept.add(value)
        if value in kept or value in again or value not in known:
            continue
        if value not in makers:
            kept.add(value)
            continue
        again.add(value)
        queue += [read for read in makers[value].reads() if read in known]
    return kept, [instruction for instruction in forward.body if instruction.out in again]


def _takes_long(instruction: Instruction) -> bool:
    """Whether an instruction does more for each number than to look at those that it is made of."""
    return isinstance(instruction, Product) or (
        isinstance(instruction, Reduce) and instruction.op in OF_PAIRS
    )


class _Network:
    """A flow network, for the algorithm of Edmonds and Karp (1972)."""

    def __init__(self) -> None:
        self.capacity: dict[object, dict[object, int]] = {}

    def edge(self, start: object, end: object, capacity: int) -> None:
        self.capacity.setdefault(start, {})
        self.capacity.setdefault(end, {}).setdefault(start, 0)
        self.capacity[start][end] = self.capacity[start].get(end, 0) + capacity

    def behind_minimum_cut(self, source: object, sink: object) -> set[object]:
        """The nodes from which the sink can still be reached once the flow is at its maximum."""
        if source not in self.capacity or sink not in self.capacity:
            return set()
        while (path := self._path(source, sink)) is not None:
            flow = min(self.capacity[a][b] for a, b in path)
            for a, b in path:
                self.capacity[a][b] -= flow
                self.capacity[b][a] += flow
        found, queue = {sink}, deque([sink])
        while queue:
            node = queue.popleft()
            for before in self.capacity[node]:
                if before not in found and self.capacity[before].get(node, 0) > 0:
                    found.add(before)
                    queue.append(before)
        return found

    def _path(self, source: object, sink: object) -> list[tuple[object, object]] | None:
        came: dict[object, object] = {source: source}
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for after, capacity in self.capacity[node].items():
                if capacity > 0 and after not in came:
                    came[after] = node
                    if after == sink:
                        path = []
                        while after != source:
                            path.append((came[after], after))
                            after = came[after]
                        return path
                    queue.append(after)
        return None
