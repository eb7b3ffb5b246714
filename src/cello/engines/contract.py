"""The contract of an engine, which runs cells over all steps of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cello.cells.contract import Cell, State
from cello.engines.sequence import Layout, Sequence


class EngineError(RuntimeError):
    """The selected engine cannot run the layer, or strict mode forbids the only engine that can."""


class Direction(NamedTuple):
    """One direction of one layer.

    Attributes:
        cell: the equations with their weights.
        state: the state before the first step, one (B, ...) for each name of the cell's state, or
            ``None`` if the cell makes its own initial state at the first step.
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
        keep_states: whether to return the states of all steps.
    """

    sequence: Sequence
    directions: tuple[Direction, ...]
    keep_states: bool = False


class DirectionResult(NamedTuple):
    """The result of one direction.

    Attributes:
        output: (N, H), in the order of the input rows, also for a reversed direction.
        state: each sequence's state after its own last step (in the direction of reading), one
            (B, ...) for each name.
        states: the state after each step, one (N, ...) for each name, in the order of the input rows;
            empty if `keep_states` is false.
    """

    output: Tensor
    state: State
    states: tuple[Tensor, ...] = ()


class Declined(NamedTuple):
    """What an engine returns in the place of results: it has found that it cannot run the scan.

    Attributes:
        reason: why not, which only the numbers could tell.
    """

    reason: str


class Prepared(NamedTuple):
    """What runs scans like one before, see :meth:`Engine.prepare`.

    Attributes:
        holds: whether it can run a scan of this layout now, or that has to be done in the ordinary way.
            It draws no random numbers.
        run: runs over the rows of all steps, (N, F), from a state whose parts are (1, B, ...). Returns the
            output, and the final state in the shapes of the initial one.
    """

    holds: Callable[[Layout], bool]
    run: Callable[[Tensor, Layout, list[Tensor]], tuple[Tensor, list[Tensor]]]


class Engine(ABC):
    """Runs a :class:`Scan`. An engine does not depend on a cell's equations, nor a cell on an engine."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the engine in `cello.engine` and `cello.explain`."""

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
        """Return every reason why this engine cannot run `scan`; an empty list if it can."""

    def why_rather_not(self, scan: Scan) -> list[str]:
        """Return why another engine is better for `scan`; used only if no engine was selected by name."""
        return []

    def describe(self, scan: Scan) -> list[str]:
        """Return lines of text on how `scan` runs, for `cello.explain`; called only if it can run."""
        return []

    def outside(self, scan: Scan) -> tuple[str, ...]:
        """Return the values that `scan` depends on but a graph does not guard; only if it can run."""
        return ()

    def prepare(self, scan: Scan) -> Prepared | None:
        """Return what runs scans like `scan` without finding anything out again, if there can be such.

        Args:
            scan: a scan of one direction without `keep_states` that this engine can run.

        Returns:
            What is for the same cell, and for an input and a state of the same dtypes and devices; if
            `scan` has one step, for one step. Whoever keeps it sees to it that a cell of Cello's equations
            has the same weight tensors, whose values may change. For any other cell it sees all changes.
        """
        return None

    @abstractmethod
    def run(self, scan: Scan) -> tuple[DirectionResult, ...] | Declined:
        """Run `scan` and return one differentiable result for each direction.

        Called only if :meth:`why_not` returns no reason. An engine whose program assumes something of the
        numbers returns :class:`Declined` where that does not hold; then another one runs the scan.
        """
