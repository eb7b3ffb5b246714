"""What a schedule consists of: a loop with every address in it, which the native engine goes through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from cello.compile.instructions import Value
from cello.compile.stages import Block, Place
from cello.engines.native.place import Buffer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """A block of a buffer's rows; of an accumulation's result, of a sum over all rows."""

    place: Place
    strides: Shape


@dataclass(frozen=True)
class Code:
    """An operation: one of the instruction set on blocks of these sizes, or ``accumulate``."""

    op: str
    sizes: Shape
    out: Operand
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Matrix:
    """A matrix of K rows and N columns, put together from statics."""

    K: int
    N: int
    blocks: tuple[Block, ...]

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of all its blocks."""
        return self.blocks[0].static.dtype


@dataclass
class MatrixTerm:
    """A product of rows with K rows of a matrix, from k0 on.

    Attributes:
        places: at how many places of a row it is computed.
        row_step: how far the numbers of the row move from place to place.
        out_step: how far those of the result do.
        partner: a term of those ahead of the loop that can be done together with this one; its rows of the
            matrix are right above this one's.
    """

    row: Place
    out: Place
    matrix: int
    k0: int
    K: int
    accumulates: bool
    places: int = 1
    row_step: int = 0
    out_step: int = 0
    partner: int | None = None


@dataclass(frozen=True)
class Bias:
    """Columns of a term that start from a static vector."""

    term: int
    column: int
    width: int
    static: Value
    offset: int


class Slice(NamedTuple):
    """Columns of an outer product, and the static whose gradient they are."""

    first: int
    N: int
    static: Value
    offset: int
    k_stride: int
    n_stride: int


@dataclass
class OuterProduct:
    """Gradients of matrices, gathered over all rows: those of one operand with adjacent other ones."""

    row: Place
    K: int
    gradient: Place
    N: int
    slices: list[Slice]
    places: int = 1
    row_step: int = 0
    g_step: int = 0

    @property
    def steps(self) -> tuple[int, int, int]:
        """At which places the sum is taken as well."""
        return self.places, self.row_step, self.g_step


class ScheduledStage(NamedTuple):
    """The terms, or the operations of a fusion, that are done next, by their numbers."""

    is_fusion: bool
    items: list[int]


@dataclass(frozen=True)
class Target:
    """Where a sum over all rows goes, from its number `skipped` on: a block of a static's gradient."""

    sum: int
    skipped: int
    static: Value
    sizes: Shape
    offset: int
    strides: Shape


@dataclass(eq=False)
class Schedule:
    """A loop for the native engine.

    Attributes:
        statics: in the order in which the engine is given them.
        buffers: the memories.
        numbers: the constants.
        codes: the operations of fusions.
        matrices: what terms multiply with.
        terms: the products.
        biases: what terms start from.
        stages: terms, then operations, in turn.
        ahead: the terms done ahead of each chunk.
        behind: the terms done behind each chunk.
        outers: the gradients of matrices.
        sums: the widths of the sums over all rows.
        targets: where they go.
        tiles: the widths of the rooms that buffers of a fusion share.
    """

    statics: list[Value]
    buffers: list[Buffer] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    terms: list[MatrixTerm] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    stages: list[ScheduledStage] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    outers: list[OuterProduct] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
