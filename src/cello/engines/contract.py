"""What an engine is: a way to run cells over all steps of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cello.cells.contract import Cell, State
from cello.engines.sequence import Layout, Sequence


class EngineError(RuntimeError):
    """An engine that was asked for cannot run, or strict mode forbids the one that can."""


class Direction(NamedTuple):
    """One direction of one layer.

    Attributes:
        cell: the equations with their weights.
        state: the state before the first step, one (B, ...) for each of the cell's names, or
            ``None`` for a cell that makes its own at the first step.
        reverse: whether each sequence is read from its own last step to its first.
    """

    cell: Cell
    state: State | None
    reverse: bool = False


class Scan(NamedTuple):
    """The work of one engine call: one layer, all its directions, over one batch of sequences.

    Attributes:
        sequence: the layer's input.
        directions: one or two; all read the same input.
        keep_states: whether the states of all steps are wanted.
    """

    sequence: Sequence
    directions: tuple[Direction, ...]
    keep_states: bool = False


class DirectionResult(NamedTuple):
    """What one direction computed.

    Attributes:
        output: (N, H), row for row with the input, also for a reversed direction.
        state: each sequence's state after its own last step (in the direction of reading), one
            (B, ...) for each name.
        states: the state after each step, one (N, ...) for each name, row for row with the input;
            empty where it was not asked for.
    """

    output: Tensor
    state: State
    states: tuple[Tensor, ...] = ()


Repeat = Callable[[Tensor, Layout, list[Tensor]], tuple[Tensor, list[Tensor]] | None]
"""Runs over the rows of all steps, (N, F), from a state (B, H) or (1, B, H): the output, and the final
state in the shape of that. ``None`` says that it cannot right now."""


class Engine(ABC):
    """Runs a :class:`Scan`. An engine knows no cell by its equations, and a cell knows no engine."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `cello.engine` and `cello.explain` call it."""

    @property
    @abstractmethod
    def is_fused(self) -> bool:
        """Whether the time loop runs below Python. Strict mode accepts only such engines."""

    @property
    def has_operator(self) -> bool:
        """Whether a direction is one operator in the graphs of torch.compile and torch.export."""
        return False

    @abstractmethod
    def why_not(self, scan: Scan) -> list[str]:
        """Return every reason why this engine cannot run `scan`; no reason means that it can."""

    def why_rather_not(self, scan: Scan) -> list[str]:
        """Return why another engine is to be preferred for `scan`, where none was asked for by name."""
        return []

    def describe(self, scan: Scan) -> list[str]:
        """Say in lines of text how `scan` is computed, for `cello.explain`; called where it can run."""
        return []

    def outside(self, scan: Scan) -> tuple[str, ...]:
        """What `scan` depends on that a graph would not see change; called where it can run."""
        return ()

    def repeat(self, scan: Scan) -> Repeat | None:
        """Return a short way to run scans like `scan`, if there is one.

        Args:
            scan: of one direction, whose states are not kept; called where it can run.

        Returns:
            A function for the same cell with the same weights, whose numbers may have changed, and an input
            and a state of the same dtypes and devices.
        """
        return None

    @abstractmethod
    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        """Run `scan`, differentiably; one result for each direction.

        Called only where :meth:`why_not` has no reason.
        """
