"""Runs a direction in parts: some steps in one way, the rest in another."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cello.engines.contract import Direction, DirectionResult, Scan
from cello.engines.reference import Reference
from cello.engines.sequence import Sequence


def run_by_itself(scan: Scan) -> DirectionResult:
    """Let the cell take the steps of a scan of one direction itself."""
    return Reference().run(scan)[0]


def run_in_two(
    scan: Scan,
    direction: Direction,
    steps: int,
    begin: Callable[[Scan], DirectionResult],
    go_on: Callable[[Scan], DirectionResult],
) -> DirectionResult:
    """Run some steps of a direction in one way, and the rest in another.

    Args:
        scan: the scan.
        direction: one of its directions.
        steps: how many steps are run in the first way; where there are no others, or this is 0, all.
        begin: the first way, of a scan that reads forward.
        go_on: the other way, likewise.
    """
    sequence = scan.sequence.reversed() if direction.reverse else scan.sequence
    layout, keep = sequence.layout, scan.keep_states
    steps = steps or sequence.steps
    first = layout.steps_from(0, steps)
    start = Direction(direction.cell, direction.state)
    output, final, states = begin(
        Scan(Sequence(sequence.data[: first.rows], first), (start,), keep)
    )
    if sequence.steps > steps:
        rest = Sequence(sequence.data[first.rows :], layout.steps_from(steps))
        alive = rest.batch_size
        going = Direction(direction.cell, tuple([part[:alive] for part in final]))
        end = go_on(Scan(rest, (going,), keep))
        output = torch.cat([output, end.output])
        final = tuple(
            [torch.cat([new, old[alive:]]) for new, old in zip(end.state, final, strict=True)]
        )
        states = tuple([torch.cat(pair) for pair in zip(states, end.states, strict=True)])
    if direction.reverse:
        output = scan.sequence.reverse_rows(output)
        states = tuple([scan.sequence.reverse_rows(rows) for rows in states])
    return DirectionResult(output, final, states)
